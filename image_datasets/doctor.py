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
from image_datasets.content import content_hash as content_of
from image_datasets.content import image_hashes, label_bytes
from image_datasets.doctor_report import headline, report, warnings
from image_datasets.hdf5 import HDF5Dataset
from torch_utils import schema
from torch_utils.images import save_image

FORMAT = 2  # of the findings
BLOCK_BYTES = 4 * 2**20  # pixels read at a time: small enough for a CPU's cache, large enough for a disk
NUM_EXAMPLES = 10
GRID = 16  # pixels a side of an image are enough to tell the range of its values
OUTLIERS = 0.1  # share of the images whose values do not count as those of a class
NARROW = 64  # values of 256: a class that uses no wider range is worth a warning


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
    """Examine a data set, print its report if that took a pass over it, else how many warnings it has, if any."""
    findings = examine(dataset)
    if findings["fresh"]:
        print_report(findings)
    else:
        warned = len(warnings(findings))
        print(
            headline(findings) + (f"; {utils.counted(warned, 'warning')}, see {findings['picture']}" if warned else "")
        )
    return findings


def content_hash(dataset: HDF5Dataset) -> str:
    """The hash of a file's pixels and labels that all is kept with that is derived from it, 64 hex digits.

    Without reading the pixels where the doctor has seen this very file, or where it was never seen and says its hash
    itself; else, as for a file that has changed since it was seen, by examining it.
    """
    kept = _load(paths(dataset)[0])
    if kept is None and dataset.content:
        return dataset.content
    if kept and kept.get("key") == file_key(dataset) and isinstance(kept.get("content"), str):
        return kept["content"]
    return examine(dataset)["content"]


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
    status, labels = dataset.path.stat(), hashlib.sha256(label_bytes(dataset.labels))
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "labels": labels.hexdigest()}


NAMED = {"name": str}
FINDINGS = {  # see `full_pass`
    **dict.fromkeys(("content", "name"), str),
    **dict.fromkeys(("as_written", "narrow"), bool),
    **dict.fromkeys(("num_images", "resolution", "num_classes", "num_duplicates"), schema.COUNT),
    **dict.fromkeys(("num_duplicates_across_classes", "num_constant", "num_grey"), schema.COUNT),
    **{key: [str] for key in ("class_names", "empty")},
    **{key: [schema.COUNT] for key in ("counts", "constants", "values")},
    **dict.fromkeys(("smallest", "largest"), NAMED | {"count": schema.COUNT}),
    "duplicates": [[schema.COUNT]],
    "duplicate_paths": [[str]],
    "constant_paths": [str],
    "narrow_classes": [NAMED | {"low": schema.COUNT, "high": schema.COUNT}],
    "seconds": float,
}


def _kept(json_path, picture_path, key):
    findings = _load(json_path) if picture_path.exists() else None
    same = findings is not None and (findings.get("format"), findings.get("key")) == (FORMAT, key)
    return findings if same and schema.problem(findings, FINDINGS) is None else None


def _load(json_path):
    """Findings of any earlier pass, {} where they are damaged, None where there are none."""
    if not json_path.exists():
        return None
    try:
        findings = utils.load_json(json_path)
    except utils.UserError:
        return {}
    return findings if isinstance(findings, dict) else {}


def full_pass(dataset: HDF5Dataset) -> dict:
    """Read all images of a data set once, in the file's order.

    Returns: `format`; `content`: its `content_hash`; `as_written`: whether that is what the file says of itself;
        `name`, `num_images`, `resolution`, `num_classes`, `class_names`; `counts`: images per class;
        `smallest`, `largest`: {"name", "count"} of the classes that have images; `empty`: names of those without;
        `num_duplicates`: images with the pixels of an earlier one; `num_duplicates_across_classes`: those of them that
        have the pixels of an earlier one of another class; `num_constant`: images of one colour; `num_grey`: images
        with R = G = B; `duplicates`: all of them as [index, index of the first such image], those across classes
        first; `constants`: indices of the first few; `duplicate_paths`, `constant_paths`: the same as paths of files,
        empty where the data set does not have them; `values`: [low, high] that nearly all images keep to;
        `narrow`: whether that is a small part of 0 to 255; `narrow_classes`: {"name", "low", "high"} of the classes
        that keep to such; `seconds`.
    """
    start = time.perf_counter()
    n, resolution = len(dataset), dataset.resolution
    hashes = np.empty((n, 32), dtype=np.uint8)
    constant, grey = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    lowest, highest = np.empty(n, dtype=np.uint8), np.empty(n, dtype=np.uint8)
    done = 0
    with tqdm(total=n, desc=f"examining {dataset.name}", unit="image", disable=None, **utils.bar_interval()) as bar:
        for found in _map_blocks(_examine_block, dataset):
            part = slice(done, done + len(found[0]))
            hashes[part], constant[part], grey[part], lowest[part], highest[part] = found
            done = part.stop
            bar.update(len(found[0]))
    digests = hashes.view(np.uint64)[:, :2]  # 128 bits: unlike images do not agree in them by accident
    duplicates, originals, across = find_duplicates(digests, dataset.labels)
    pairs = np.stack([duplicates, originals], axis=1)[np.argsort(~across, kind="stable")].tolist()
    constants = np.flatnonzero(constant)[:NUM_EXAMPLES].tolist()
    low, high = _values(lowest, highest)
    content, files = content_of(hashes, dataset.labels, resolution), dataset.read_paths()
    return {
        "format": FORMAT,
        "content": content,
        "as_written": dataset.content in (None, content),
        "name": dataset.name,
        "num_images": n,
        "resolution": resolution,
        **_class_sizes(dataset),
        "num_duplicates": len(duplicates),
        "num_duplicates_across_classes": int(across.sum()),
        "num_constant": int(constant.sum()),
        "num_grey": int(grey.sum()),
        "duplicates": pairs,
        "constants": constants,
        "duplicate_paths": [[files[i] for i in pair] for pair in pairs] if files else [],
        "constant_paths": [files[i] for i in constants] if files else [],
        "values": [low, high],
        "narrow": high - low <= NARROW,
        "narrow_classes": _narrow_classes(dataset, lowest, highest),
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
    """sha256 of each image, uint8 (b,32); whether it is of one colour, and grey, both bool (b,); the range of values
    that it keeps to, low and high, both uint8 (b,)."""
    constant = _all_equal(images, lambda x: x[..., :1, :1])
    grey = _all_equal(images, lambda x: x[:, :1])
    return image_hashes(images), constant, grey, *_range(images)


def _range(images):
    """Between which values all but 1 % above and below of each image lie, of a grid of its pixels: two of uint8 (b,).

    A few saturated pixels, or letters, do not make up for an image that is dark.
    """
    step = -(-images.shape[-1] // GRID)
    values = images[:, :, ::step, ::step].reshape(len(images), -1)
    outside = values.shape[1] // 100
    ends = (outside, values.shape[1] - 1 - outside)
    return np.partition(values, ends, axis=1)[:, ends].T


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


def _values(lowest, highest):
    """[low, high] that all but some outliers among the images keep to, of the `_range` of each."""
    low = np.quantile(lowest, OUTLIERS, method="lower")
    return [int(low), int(np.quantile(highest, 1 - OUTLIERS, method="higher"))]


def _narrow_classes(dataset, lowest, highest):
    order = np.argsort(dataset.labels, kind="stable")
    found = []
    for part in np.split(order, np.flatnonzero(np.diff(dataset.labels[order])) + 1):
        low, high = _values(lowest[part], highest[part])
        if high - low <= NARROW:
            found.append({"name": dataset.class_names[dataset.labels[part[0]]], "low": low, "high": high})
    return found


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
