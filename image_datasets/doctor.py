"""What is in a data set: classes and their sizes, images that occur twice or are of one colour; kept beside the file.

One pass over all pixels; its findings are kept in NAME_doctor.json and NAME_doctor.png, and read from there as long as
the file does not change.
"""

import collections
import concurrent.futures
import hashlib
import os
import time
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

import utils
from image_datasets import doctor_picture, loading
from image_datasets.hdf5 import HDF5Dataset
from torch_utils.images import save_image

FORMAT = 1  # of the findings
BLOCK_BYTES = 4 * 2**20  # pixels read at a time: small enough for a CPU's cache, large enough for a disk
NUM_EXAMPLES = 10
MANY_DUPLICATES = 0.01  # of the images: from here on worth a warning
IMBALANCE = 100  # ratio of the largest class to the smallest: above it worth a warning


def examine(dataset: HDF5Dataset, folder: str | Path | None = None, overwrite: bool = False) -> dict:
    """The findings of a full pass over a data set: those kept from an earlier pass, or else of one made now.

    Findings belong to a file while its size, modification time and labels stay the same. Where they cannot be written,
    that is said in a line, and they are returned all the same.

    Args: folder: of the kept findings, None: that of the data set; overwrite: make the pass again in any case.
    Returns: plain Python values, see `full_pass`, and `key`; `fresh`: whether the pass was made now; `picture`: path
        of the picture, None if it could not be written.
    """
    json_path, picture_path = paths(dataset, folder)
    key = file_key(dataset)
    findings = None if overwrite else _kept(json_path, picture_path, key)
    if findings is not None:
        return findings | {"fresh": False, "picture": str(picture_path)}
    findings = full_pass(dataset) | {"key": key}
    drawn = None
    try:
        save_image(doctor_picture.draw(dataset, findings["counts"], report(findings)), picture_path)
        drawn = str(picture_path)
        utils.save_json(findings, json_path)  # last: where there are findings there is a picture
    except utils.UserError as error:
        print(f"note: the findings on {dataset.name} are not kept, the next start examines it again: {error}")
    return findings | {"fresh": True, "picture": drawn}


def introduce(dataset: HDF5Dataset) -> dict:
    """Examine a data set, print its report if that took a pass over it and one line if not, and return the findings."""
    findings = examine(dataset)
    if findings["fresh"]:
        print_report(findings)
    else:
        warned = f"{len(warnings(findings))} warning(s), see " if warnings(findings) else ""
        print(f"{dataset.name} was examined before: {warned}{findings['picture']}")
    return findings


def print_report(findings: dict, kept: ArrayLike | None = None) -> None:
    print(report(findings, kept))
    if findings["picture"]:
        print(f"classes and examples: {findings['picture']}")


def paths(dataset: HDF5Dataset, folder: str | Path | None = None) -> tuple[Path, Path]:
    """Where the findings are kept, and their picture."""
    folder = dataset.path.parent if folder is None else Path(folder)
    return tuple(folder / f"{dataset.path.stem}_doctor{suffix}" for suffix in (".json", ".png"))


def file_key(dataset: HDF5Dataset) -> dict:
    """What tells without reading pixels that a file is still the same: its size, modification time (ns), labels."""
    status, labels = dataset.path.stat(), hashlib.sha256(_label_bytes(dataset))
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "labels": labels.hexdigest()}


def _label_bytes(dataset):
    return np.ascontiguousarray(dataset.labels, dtype="<i8").tobytes()


def _kept(json_path, picture_path, key):
    if not (json_path.exists() and picture_path.exists()):
        return None
    try:
        findings = utils.load_json(json_path)
    except utils.UserError:  # damaged
        return None
    same = isinstance(findings, dict) and (findings.get("format"), findings.get("key")) == (FORMAT, key)
    return findings if same else None


def full_pass(dataset: HDF5Dataset) -> dict:
    """Read all images of a data set once, in the file's order.

    Returns: `format`; `content`: sha256 hex of all pixels and labels, the same for any file that holds them;
        `name`, `num_images`, `resolution`, `num_classes`, `class_names`; `counts`: images per class;
        `smallest`, `largest`: {"name", "count"} of the classes that have images; `empty`: names of those without;
        `num_duplicates`: images with the pixels of an earlier one; `num_duplicates_across_classes`: those of them that
        have the pixels of an earlier one of another class; `num_constant`: images of one colour; `num_grey`: images
        with R = G = B; `duplicates`: the first few as [index, index of the first such image], those across classes
        first; `constants`: indices of the first few; `seconds`.
    """
    start = time.perf_counter()
    n, resolution = len(dataset), dataset.resolution
    content = hashlib.sha256(f"{n} images {resolution}x{resolution}".encode())
    digests = np.empty((n, 2), dtype=np.uint64)  # 128 bits: unlike images do not agree in them by accident
    constant, grey = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    done = 0
    with tqdm(total=n, desc=f"examining {dataset.name}", unit="image", disable=None, **utils.bar_interval()) as bar:
        for hashes, is_constant, is_grey in _map_blocks(_examine_block, dataset):
            part = slice(done, done + len(hashes))
            content.update(hashes)
            digests[part] = hashes.view(np.uint64)[:, :2]
            constant[part], grey[part] = is_constant, is_grey
            done += len(hashes)
            bar.update(len(hashes))
    content.update(_label_bytes(dataset))
    duplicates, originals, across = find_duplicates(digests, dataset.labels)
    order = np.argsort(~across, kind="stable")[:NUM_EXAMPLES]
    return {
        "format": FORMAT,
        "content": content.hexdigest(),
        "name": dataset.name,
        "num_images": n,
        "resolution": resolution,
        **_class_sizes(dataset),
        "num_duplicates": len(duplicates),
        "num_duplicates_across_classes": int(across.sum()),
        "num_constant": int(constant.sum()),
        "num_grey": int(grey.sum()),
        "duplicates": np.stack([duplicates, originals], axis=1)[order].tolist(),
        "constants": np.flatnonzero(constant)[:NUM_EXAMPLES].tolist(),
        "seconds": round(time.perf_counter() - start, 3),
    }


def _map_blocks(function, dataset):
    """function(images uint8 (b,3,R,R)) of consecutive blocks of a data set, in order.

    Blocks are read one after the other, which suits disks and compressed chunks best; threads compute on them.
    """
    size = max(1, BLOCK_BYTES // (3 * dataset.resolution**2))
    num_threads = min(8, os.cpu_count())
    pending = collections.deque()
    threads = concurrent.futures.ThreadPoolExecutor(num_threads, thread_name_prefix="doctor")
    try:
        for images, _ in loading.iterate(dataset, size):
            pending.append(threads.submit(function, images.numpy()))
            if len(pending) > num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


def _examine_block(images):
    """sha256 of each image, uint8 (b,32), and whether it is of one colour, and grey, both bool (b,).

    SHA-256 is the fastest sound hash of hashlib on CPUs that compute it in hardware (1.5 GB/s on a core, BLAKE2b 0.9),
    and lets other threads run meanwhile.
    """
    hashes = b"".join(hashlib.sha256(image).digest() for image in images)
    constant = _all_equal(images, lambda x: x[..., :1, :1])
    grey = _all_equal(images, lambda x: x[:, :1])
    return np.frombuffer(hashes, dtype=np.uint8).reshape(-1, 32), constant, grey


def _all_equal(images, reference):
    """Whether all of an image equals its part `reference(image)`, broadcast: bool (b,).

    The first row alone rules out nearly all images.
    """
    row = images[:, :, :1]
    result = (row == reference(row)).all(axis=(1, 2, 3))
    candidates = images[result]
    result[result] = (candidates == reference(candidates)).all(axis=(1, 2, 3))
    return result


def find_duplicates(digests: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images that are equal to an earlier one.

    Args: digests: uint64 (N,2), equal for equal images; labels: int64 (N,).
    Returns: their indices in increasing order, int64 (M,); the index of the first image that equals each, int64 (M,);
        whether any earlier image that equals it is of another class, bool (M,).
    """
    order = np.lexsort(digests.T)  # stable: equal images stay in the file's order
    same = np.zeros(len(order), dtype=bool)  # as the one before
    same[1:] = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
    first = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))  # position of the first of a group
    changes = np.zeros(len(order), dtype=np.int64)
    changes[1:] = np.cumsum(same[1:] & (labels[order[1:]] != labels[order[:-1]]))
    across = changes > changes[first]  # the class has changed since the group began
    by_index = np.argsort(order[same])
    return order[same][by_index], order[first][same][by_index], across[same][by_index]


def _class_sizes(dataset):
    names = dataset.class_names
    counts = np.bincount(dataset.labels, minlength=len(names))
    present = np.flatnonzero(counts)
    smallest, largest = present[counts[present].argmin()], counts.argmax()
    return {
        "num_classes": len(names),
        "class_names": names,
        "counts": counts.tolist(),
        "smallest": {"name": names[smallest], "count": int(counts[smallest])},
        "largest": {"name": names[largest], "count": int(counts[largest])},
        "empty": [names[i] for i in np.flatnonzero(counts == 0)],
    }


def report(findings: dict, kept: ArrayLike | None = None) -> str:
    """Findings as a few lines of text: sizes, oddities, and warnings, a line each.

    kept: images that instance selection keeps of each class, ints (num_classes,).
    """
    size = f"{findings['resolution']}x{findings['resolution']}"
    lines = [f"{findings['name']}: {findings['num_images']:,} images {size}, {_classes(findings)}", _oddities(findings)]
    if kept is not None:
        lines.append(_selection(findings, np.asarray(kept)))
    return "\n".join([*lines, *(f"warning: {text}" for text in warnings(findings))])


def warnings(findings: dict) -> list[str]:
    """What is likely to be a mistake in the data, or to spoil training, in lines; mostly none."""
    n, small, large = findings["num_images"], findings["smallest"], findings["largest"]
    duplicates, across = findings["num_duplicates"], findings["num_duplicates_across_classes"]
    pairs = [f"number {index} is number {original}" for index, original in findings["duplicates"][:3]]
    lines = []
    if empty := findings["empty"]:
        names = ", ".join(map(_quoted, empty[:3])) + (", ..." if len(empty) > 3 else "")
        lines.append(f"{len(empty):,} of {findings['num_classes']:,} classes have no images: {names}")
    if large["count"] > IMBALANCE * small["count"]:
        ratio = large["count"] // small["count"]
        lines.append(f"class {_quoted(large['name'])} has {ratio:,} times the images of {_quoted(small['name'])}")
    if duplicates > MANY_DUPLICATES * n:
        lines.append(f"{100 * duplicates / n:.1f} % of the images are duplicates: {', '.join(pairs)}")
    if across:
        lines.append(f"{across:,} of the duplicates are of different classes: {', '.join(pairs[:across])}")
    if constant := findings["num_constant"]:
        numbers = ", ".join(map(str, findings["constants"][:3]))
        lines.append(f"{constant:,} of the images are of one colour: number {numbers}")
    return lines


def _classes(findings):
    small, large = findings["smallest"], findings["largest"]
    if findings["num_classes"] == 1:
        return f"one class, {_quoted(large['name'])}"
    if small["count"] == large["count"] and not findings["empty"]:
        return f"{findings['num_classes']:,} classes of {small['count']:,} each"
    ends = ((kind, findings[kind]) for kind in ("smallest", "largest"))
    sizes = ", ".join(f"{kind} {_quoted(end['name'])} ({end['count']:,})" for kind, end in ends)
    return f"{findings['num_classes']:,} classes; {sizes}"


def _oddities(findings):
    duplicates, constant, grey = (findings[key] for key in ("num_duplicates", "num_constant", "num_grey"))
    parts = [
        f"{duplicates:,} duplicates" if duplicates else "no duplicates",
        f"{constant:,} of one colour" if constant else "none of one colour",
        "all grey" if grey == findings["num_images"] else f"{grey:,} grey" if grey else "",
    ]
    return ", ".join(part for part in parts if part)


def _selection(findings, kept):
    present = np.flatnonzero(findings["counts"])
    smallest = present[kept[present].argmin()]
    return (
        f"instance selection keeps {kept.sum():,} of {findings['num_images']:,} images; {kept[smallest]:,} to "
        f"{kept.max():,} a class (smallest {_quoted(findings['class_names'][smallest])})"
    )


def _quoted(name):
    """A class name as part of a line of text, however long it is."""
    name = utils.printable(name)
    return f"'{name if len(name) <= 40 else name[:39] + '…'}'"
