"""Files of CIFAR in both versions, a few images each, for the tests."""

import pickle
import shutil
import tarfile

import numpy as np

from image_datasets import cifar

PART = 20  # images per file


class Python2Pickler(pickle._Pickler):
    """Writes protocol 2 as Python 2 did: text and bytes alike as byte strings, numpy's functions under old names."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_string(self, obj):
        content = obj.encode("latin1") if isinstance(obj, str) else obj
        self.write(pickle.BINSTRING + len(content).to_bytes(4, "little") + content)
        self.memoize(obj)

    def save_global(self, obj, name=None):
        module = obj.__module__.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{obj.__name__}\n".encode())
        self.memoize(obj)

    dispatch[str] = dispatch[bytes] = save_string
    dispatch[type] = dispatch[type(len)] = dispatch[type(cifar._encode)] = save_global


def pickled(obj, path):
    with open(path, "wb") as file:
        Python2Pickler(file, protocol=2).dump(obj)


def make_files(root, dataset, archives=False):
    """Both versions of a made data set under `root`. Returns: pixels (N,3,32,32) and labels (N,) of the train split."""
    rng = np.random.default_rng(0)
    layout = cifar.LAYOUTS[dataset]
    python, binary = root / layout.python_folder, root / layout.binary_folder
    python.mkdir(parents=True)
    binary.mkdir()
    names = [f"class_{y}" for y in range(layout.num_classes)]
    pickled({layout.names_key: names, "num_vis": 3072}, python / layout.python_meta)
    (binary / layout.binary_meta).write_text("\n".join(names) + "\n\n")
    train = []
    for split, parts in layout.parts.items():
        for part in parts:
            pixels = rng.integers(0, 256, (PART, 3072), dtype=np.uint8)
            labels = rng.integers(0, layout.num_classes, PART)
            coarse = labels // 5
            batch = {"data": pixels, layout.labels_key: labels.tolist(), "filenames": ["a.png"] * PART}
            columns = [labels[:, None], pixels]
            if dataset == "C100":
                batch["coarse_labels"] = coarse.tolist()
                columns.insert(0, coarse[:, None])
            pickled(batch, python / part)
            (binary / f"{part}.bin").write_bytes(np.hstack(columns).astype(np.uint8).tobytes())
            if split == "train":
                train.append((pixels, labels))
    if archives:
        for folder, archive in ((python, layout.python_archive), (binary, layout.binary_archive)):
            with tarfile.open(root / archive, "w:gz") as tar:
                tar.add(folder, folder.name)
            shutil.rmtree(folder)
    pixels, labels = (np.concatenate(column) for column in zip(*train, strict=True))
    return pixels.reshape(-1, 3, 32, 32), labels
