"""Several evaluations in one go, which a rank of several makes with the others."""

import evaluate
import utils
from torch_utils import distributed


def evaluate_all(commands: list[list[str]], out: str) -> None:
    """The results of commands of evaluate.py, as JSON."""
    with distributed.process_group("cpu") as ranks:
        results = [evaluate._evaluate(*evaluate.parse_args(command), ranks) for command in commands]
        if ranks.is_main:
            utils.save_json(results, out)
