"""The same log in Weights & Biases, where --wandb asks for it. The package is optional, and takes seconds to import."""

import os
from collections.abc import Callable
from pathlib import Path

from PIL import Image

import utils

KEPT = "wandb_id.txt"  # in the run folder: the id by which a resumed run goes on in the same one


def check_wandb() -> None:
    """Raise utils.UserError unless the package is there."""
    try:
        from wandb import init  # noqa: F401  (not of a mere folder of that name)
    except ImportError as error:
        raise utils.UserError("--wandb: its package is missing: pip install wandb, or leave the flag out") from error


class WandbRun:
    """The run of a run folder at Weights & Biases, named as it is.

    Steps are a number among others (`step`), by which all else is drawn: its own count never goes back, as a resumed
    run and a rollback do. What goes wrong after the beginning is passed to `tell` once, and ends it.
    """

    def __init__(self, folder: Path, config: dict, resumed: bool, tell: Callable[[str], None]):
        """Raises: utils.UserError where it cannot begin."""
        import wandb

        self.tell, self.run = tell, None
        kept = folder / KEPT
        if not (resumed and kept.exists()):
            with utils.atomic_path(kept) as temporary:
                temporary.write_text(os.urandom(8).hex())
        names = {"project": os.environ.get("WANDB_PROJECT", "gans"), "name": folder.name, "id": kept.read_text()}
        try:
            self.run = wandb.init(**names, dir=str(folder), config=config, resume="allow")
            self.run.define_metric("*", step_metric="step")
        except (wandb.Error, OSError, ValueError) as error:
            reason = utils.printable(str(error))
            raise utils.UserError(f"--wandb: {reason}; log in with wandb login, or set WANDB_MODE=offline") from error

    def numbers(self, step: int, numbers: dict[str, float]) -> None:
        self._try(lambda: self.run.log({"step": step, **numbers}))

    def image(self, step: int, name: str, picture: Image.Image) -> None:
        import wandb

        self._try(lambda: self.run.log({"step": step, name: wandb.Image(picture)}))

    def finish(self) -> None:
        self._try(lambda: self.run.finish())

    def _try(self, action):
        import wandb

        if self.run is None:
            return
        try:
            action()
        except (wandb.Error, OSError) as error:
            self.run = None
            self.tell(f"Weights & Biases: {utils.printable(str(error))}; what is missing there is in log.jsonl")
