"""A sweep: the same evaluation at several points, as numbers and as a picture, of which an interrupted one is kept."""

from collections.abc import Callable, Iterable
from pathlib import Path

import utils
from torch_utils.distributed import Ranks


def run(
    points: Iterable[dict],
    about: dict,
    path: Path,
    ranks: Ranks,
    key: str,
    draw: Callable[[list[dict], Path], None],
) -> dict:
    """Evaluate, and write a picture to `path` and the numbers beside it (.json), replacing an earlier sweep's.

    Args: points: metrics with their protocol, evaluated as it is gone through; about: what they are of; path: of a PNG;
        key: the sweep's name in the result; draw: makes the picture.
    Returns: as in the JSON file.
    Raises: utils.UserError, before anything is evaluated, if the folder cannot be written to.
    """
    result = {**about, "plot": str(path), key: []}
    partial = path.with_suffix(".partial.json")  # what there is if the sweep is interrupted
    if ranks.is_main:
        utils.save_json(result, partial)
    for metrics in points:
        result[key].append(metrics)
        if ranks.is_main:
            utils.save_json(result, partial)
    if ranks.is_main:
        draw(result[key], path)
        utils.save_json(result, path.with_suffix(".json"))
        partial.unlink(missing_ok=True)  # another process may have made the same sweep
    return result
