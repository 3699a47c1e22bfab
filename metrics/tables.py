"""Results of evaluate.py as text: one with its protocol, or several side by side with what sets them apart."""

from pathlib import Path

import utils
from metrics import ema_sweep, truncation_sweep
from metrics.protocol import compare_protocols

# What evaluate.py goes through, by its key in a result, and what names a point: a field of the protocol.
SWEEPS = {truncation_sweep.KEY: "truncation", ema_sweep.KEY: "ema_power"}


def table(metrics: dict) -> str:
    """Metrics and protocol as aligned lines of text."""
    numbers = {name: _text(name, value) for name, value in metrics.items() if isinstance(value, float)}
    protocol = {name: "-" if value is None else str(value) for name, value in metrics["protocol"].items()}
    width = max(map(len, [*numbers, *protocol]))
    whole = max(text.index(".") for text in numbers.values())  # digits before the point, where all are aligned
    lines = [f"{name:<{width}}  {' ' * (whole - text.index('.'))}{text}" for name, text in numbers.items()]
    return "\n".join([*lines, "", *(f"{name:<{width}}  {text}" for name, text in protocol.items())])


def _text(name, value):
    return f"{value:.6f}" if name.startswith("kid") else f"{value:.4f}"  # KID of good images is about 0.001


def rows_table(results: list[tuple[str, dict]], heading: str = "") -> str:
    """A line for each of `results`, (name, metrics) pairs, a column for each number that any of them has."""
    names = list(dict.fromkeys(key for _, metrics in results for key, v in metrics.items() if isinstance(v, float)))
    cells = [[heading, *names]]
    for name, metrics in results:
        cells.append([name, *(_text(key, metrics[key]) if key in metrics else "-" for key in names)])
    first, *others = zip(*cells, strict=True)
    columns = [[f"{c:<{max(map(len, first))}}" for c in first]]
    columns += [[f"{c:>{max(map(len, column))}}" for c in column] for column in others]
    return "\n".join(map("  ".join, zip(*columns, strict=True)))


def sweep_of(result: dict) -> str | None:
    """Which sweep a result is of, a key of SWEEPS, or None."""
    return next((key for key in SWEEPS if key in result), None)


def named_results(name: str, result: dict) -> list[tuple[str, dict]]:
    """The (name, metrics) pairs of what evaluate.py --json printed: one, or one for each point of a sweep."""
    sweep = sweep_of(result)
    if sweep is None:
        return [(name, result)]
    prefix = "" if name == "this" else f"{name} "
    return [(f"{prefix}{point['protocol'][SWEEPS[sweep]]:g}", point) for point in result[sweep]]


def read_results(path: str | Path) -> list[tuple[str, dict]]:
    """The (name, metrics) pairs of a file written by evaluate.py --json. Raises: utils.UserError naming it."""
    result = utils.load_json(path)
    try:
        results = named_results(str(path), result)
        distances = all(metrics.keys() & {"fid", "fd"} for _, metrics in results)
        if results and distances and all("bn_mode" in metrics["protocol"] for _, metrics in results):
            return results
    except (TypeError, KeyError, ValueError, AttributeError):
        pass
    raise utils.UserError(f"{path} holds no results of evaluate.py --json")


def differences(results: list[tuple[str, dict]]) -> list[str]:
    """Lines that say why the numbers of `results`, (name, metrics) pairs, are not to be compared with the first's."""
    (first, reference), *others = results
    return [
        f"{first} and {name} are not comparable: {line}"
        for name, metrics in others
        for line in incomparable(reference["protocol"], metrics["protocol"])
    ]


def incomparable(one: dict, other: dict) -> list[str]:
    """The lines of `compare_protocols` about what both protocols record.

    Of images from files nobody knows batch norm and classes; the order decides only which split of IS has which image.
    """
    if None in (one.get("bn_mode"), other.get("bn_mode")):
        keys = one.keys() & other.keys() - {"order", "bn_mode", "class_sampling"}
    else:  # results of before do not record how classes were drawn: evenly
        one, other = ({"class_sampling": "uniform"} | protocol for protocol in (one, other))
        keys = one.keys() & other.keys() - {"order"}
    return compare_protocols(*({key: p[key] for key in p if key in keys} for p in (one, other)))
