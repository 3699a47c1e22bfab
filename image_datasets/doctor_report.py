"""What the doctor has found in a data set, in words: a few lines, and warnings."""

import numpy as np
from numpy.typing import ArrayLike

import utils
from image_datasets.image_sets import empty_classes, quoted

MANY_DUPLICATES = 0.01  # of the images: from here on worth a warning
IMBALANCE = 3  # ratio of the largest class to the smallest: above it worth a warning
SHOWN = 3  # of anything, in a line


def report(findings: dict, kept: ArrayLike | None = None) -> str:
    """Findings as a few lines of text: sizes, oddities, and warnings, a line each.

    kept: images that instance selection keeps of each class, ints (num_classes,).
    """
    lines = [headline(findings), _oddities(findings)]
    if kept is not None:
        lines.append(_selection(findings, np.asarray(kept)))
    return "\n".join([*lines, *(f"warning: {text}" for text in warnings(findings))])


def headline(findings: dict) -> str:
    """A data set in a line: its name, how many images of which size, its classes."""
    size = f"{findings['resolution']}x{findings['resolution']}"
    return f"{findings['name']}: {utils.counted(findings['num_images'], 'image')} {size}, {_classes(findings)}"


def warnings(findings: dict) -> list[str]:
    """What is likely to be a mistake in the data, or to spoil training, in lines; mostly none."""
    n, small, large = findings["num_images"], findings["smallest"], findings["largest"]
    duplicates, across = findings["num_duplicates"], findings["num_duplicates_across_classes"]
    pairs = _pairs(findings)
    lines = []
    if not findings["as_written"]:
        lines.append("pixels or labels are not those that the file was written with: a damaged copy, or changed since")
    if empty := empty_classes(findings["empty"], findings["class_names"]):
        lines.append(empty)
    if large["count"] > IMBALANCE * small["count"]:
        ratio = large["count"] / small["count"]
        times = f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"
        lines.append(f"class {quoted(large['name'])} has {times} times the images of {quoted(small['name'])}")
    lines += _narrow(findings)
    if duplicates > MANY_DUPLICATES * n:
        lines.append(f"{100 * duplicates / n:.1f} % of the images are duplicates: {', '.join(pairs)}")
    if across:
        which = f"{across:,} of the duplicates {'is' if across == 1 else 'are'} of different classes"
        lines.append(f"{which}: {', '.join(pairs[:across])}")
    if constant := findings["num_constant"]:
        which = f"{constant:,} of the images {'is' if constant == 1 else 'are'} of one colour"
        lines.append(f"{which}: {_constants(findings)}")
    return lines


def _pairs(findings):
    """The first few duplicates in words, by the paths of their files where these are known."""
    if paths := findings["duplicate_paths"][:SHOWN]:
        return [f"{_path(path)} is {_path(original)}" for path, original in paths]
    return [f"number {index} is number {original}" for index, original in findings["duplicates"][:SHOWN]]


def _constants(findings):
    if paths := findings["constant_paths"][:SHOWN]:
        return ", ".join(map(_path, paths))
    return f"number {', '.join(map(str, findings['constants'][:SHOWN]))}"


def _path(path):
    """The path of a file as part of a line: its end, which tells most, where it is long."""
    path = utils.printable(path)
    return path if len(path) <= 60 else f"…{path[-59:]}"


def _narrow(findings):
    """Lines about a set, or else classes, of values in a small part of 0 to 255."""
    low, high = findings["values"]
    classes = findings["narrow_classes"]
    if findings["narrow"]:
        return [f"nearly all images keep to the values {low} to {high} of 0 to 255{_remedy(high)}"]
    named = [f"{quoted(end['name'])} ({end['low']} to {end['high']})" for end in classes[:SHOWN]]
    more = ", ..." if len(classes) > SHOWN else ""
    which = f"{utils.counted(len(classes), 'class')} keep{'s' * (len(classes) == 1)} to a small part of 0 to 255"
    return [f"{which}: {', '.join(named)}{more}{_remedy(max(end['high'] for end in classes))}"] if classes else []


def _remedy(high):
    """What to do about values up to `high`: fewer bits than the 16 of their files, most often."""
    bits = int(max(high - 0.5, 0) * 257).bit_length()  # 16-bit values are divided by 257
    bits = max(8, bits + bits % 2) if bits else 0  # as cameras and scanners have them: 8, 10, 12, 14
    such = f", such as 0 {2**bits - 1} for {bits} bits in 16-bit files" if 0 < bits < 16 and high <= 64 else ""
    return f"; make_hdf5.py --range LOW HIGH stretches what the files hold{such}"


def _classes(findings):
    small, large = findings["smallest"], findings["largest"]
    if findings["num_classes"] == 1:
        return f"one class, {quoted(large['name'])}"
    if small["count"] == large["count"] and not findings["empty"]:
        return f"{findings['num_classes']:,} classes of {small['count']:,} each"
    ends = ((kind, findings[kind]) for kind in ("smallest", "largest"))
    sizes = ", ".join(f"{kind} {quoted(end['name'])} ({end['count']:,})" for kind, end in ends)
    return f"{findings['num_classes']:,} classes; {sizes}"


def _oddities(findings):
    duplicates, constant, grey = (findings[key] for key in ("num_duplicates", "num_constant", "num_grey"))
    parts = [
        utils.counted(duplicates, "duplicate") if duplicates else "no duplicates",
        f"{constant:,} of one colour" if constant else "none of one colour",
        "all grey" if grey == findings["num_images"] else f"{grey:,} grey" if grey else "",
    ]
    return ", ".join(part for part in parts if part)


def _selection(findings, kept):
    present = np.flatnonzero(findings["counts"])
    smallest = present[kept[present].argmin()]
    return (
        f"instance selection keeps {kept.sum():,} of {utils.counted(findings['num_images'], 'image')}; "
        f"{kept[smallest]:,} to {kept.max():,} a class (smallest {quoted(findings['class_names'][smallest])})"
    )
