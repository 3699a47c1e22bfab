"""Files as the BigGAN-PyTorch family makes them, for the tests of data sets."""

import h5py
import numpy as np

N, R = 50, 8


def random_images(seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (N, 3, R, R), dtype=np.uint8), np.arange(N) % 7


def write(path, images, labels, **storage):
    """A file as the BigGAN-PyTorch family makes it: no attributes."""
    with h5py.File(path, "w") as file:
        file.create_dataset("imgs", data=images, **storage)
        file.create_dataset("labels", data=labels)
    return path
