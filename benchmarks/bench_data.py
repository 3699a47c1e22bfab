"""How fast training images come out of a file, and in how much memory: this loader against its alternatives.

    python benchmarks/bench_data.py [--resolutions 64 128 --gigabytes 0.5 --memory_gigabytes 0.25 2 --repeats 5]

Random access, every image once or as many as fit into --seconds, in batches of uint8 tensors:
  ours          HDF5Dataset and BatchLoader with one thread, from opening the file
  open per item the reference family's way: each item opens the file with h5py, reads one image and its label, and
                closes it, under torch's DataLoader without workers; uint8 here, so that no side converts to float
  plain copies  of the same images out of a numpy memory map of the contiguous file into one buffer: the bound

Every measurement is a process of its own, forked after the imports and before anything else, so that each maps its
pages and grows its memory from nothing. The three alternate, so that a machine whose speed drifts slows them all;
speeds and ratios are medians over the rounds. The files have just been written, so the system's cache holds them: disks
are not measured. Up to 2 GB of temporary files (TMPDIR says where).

Then the memory: a process that limits its own data (RLIMIT_DATA) to little more than it has reads files of some sizes
at random. Its private memory (RssAnon of /proc/self/status) must not grow with the file, apart from 24 bytes an image
for labels and order; --load_in_mem must fail.
"""

import argparse
import concurrent.futures
import itertools
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent.parent))

import utils
from image_datasets import loading

STORAGE = {  # of `imgs`, as h5py's create_dataset takes it; the family writes chunks of 500
    "contiguous": lambda resolution: {},
    "chunks of 500": lambda resolution: {"chunks": (500, 3, resolution, resolution)},
    "chunks of 500, LZF": lambda resolution: {"chunks": (500, 3, resolution, resolution), "compression": "lzf"},
}
MB, GB = 10**6, 10**9


def write_file(path, num_images, resolution, storage):
    """A data set of noise of a few grey levels, which LZF can halve as it can photographs."""
    generator = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        pixels = file.create_dataset("imgs", (num_images, 3, resolution, resolution), "uint8", **storage)
        for start in range(0, num_images, 500):
            shape = (min(500, num_images - start), 3, resolution, resolution // 4)
            pixels[start : start + 500] = generator.integers(0, 256, shape, dtype=np.uint8).repeat(4, axis=3)
        file["labels"] = np.arange(num_images) % 1000


# ---------------------------------------------------------------------------------------------------------------------
# What is measured: generators of batches


def ours(path, num_images, batch_size):
    with loading.BatchLoader(loading.HDF5Dataset(path), batch_size, seed=0) as loader:
        for images, _ in itertools.islice(loader, num_images // batch_size):
            yield images


class OpenPerItem(torch.utils.data.Dataset):
    def __init__(self, path, num_images):
        self.path, self.num_images = path, num_images

    def __len__(self):
        return self.num_images

    def __getitem__(self, index):
        with h5py.File(self.path, "r") as file:
            return torch.from_numpy(file["imgs"][index]), int(file["labels"][index])


def open_per_item(path, num_images, batch_size):
    order = loading.batch_indices(num_images, num_images, 0, seed=0)
    for images, _ in DataLoader(OpenPerItem(path, num_images), batch_size, sampler=order, num_workers=0):
        yield images


def plain_copies(path, num_images, batch_size):
    with h5py.File(path) as file:
        offset, shape = file["imgs"].id.get_offset(), file["imgs"].shape
    # The fastest way there is: a plain array over the map, indices that are not checked, memory that is there already.
    images = np.asarray(np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=shape))
    buffer = torch.zeros(batch_size, *shape[1:], dtype=torch.uint8)
    order = loading.batch_indices(num_images, num_images, 0, seed=0)
    for start in range(0, num_images - batch_size + 1, batch_size):
        images.take(order[start : start + batch_size], axis=0, out=buffer.numpy(), mode="clip")
        yield buffer


def measure(method, path, num_images, batch_size, seconds):
    """Images per second of a method, and by how many bytes its process's private memory grew."""
    torch.set_num_threads(1)
    before, start, count = private_bytes(), time.perf_counter(), 0
    for images in method(path, num_images, batch_size):
        count += len(images)
        elapsed = time.perf_counter() - start
        if elapsed > seconds:
            break
    return count / elapsed, private_bytes() - before


def read_under_limit(path, num_batches, batch_size, headroom, load_in_mem):
    """Read batches at random after limiting this process's data to `headroom` bytes more than it has.

    Returns: the limit, private memory before and after, bytes read; None for the last two if the limit was exceeded.
    """
    torch.set_num_threads(1)
    before, limit = private_bytes(), status_bytes("VmData") + headroom
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    done = 0
    try:
        with loading.BatchLoader(loading.HDF5Dataset(path, load_in_mem), batch_size, seed=0) as loader:
            for images, _ in itertools.islice(loader, num_batches):
                done += images.numel()
            return limit, before, private_bytes(), done
    except MemoryError:
        return limit, before, None, None


def private_bytes():
    return status_bytes("RssAnon")


def status_bytes(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}: this benchmark needs Linux 4.5 or later")


# ---------------------------------------------------------------------------------------------------------------------
# The tables


def in_fresh_process(function, *arguments):
    """function(*arguments), computed in a new process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "datasets"])
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def images_in(gigabytes, resolution, batch_size):
    """How many images make a file of that size; at least one batch, and a chunk."""
    return max(batch_size, 500, int(gigabytes * GB) // (3 * resolution**2))


def compare_speed(resolution, args, folder):
    num_images = images_in(args.gigabytes, resolution, args.batch_size)
    plain = folder / "contiguous.hdf5"
    for name, storage in STORAGE.items():
        path = folder / f"{name}.hdf5"
        write_file(path, num_images, resolution, storage(resolution))
        jobs = {ours: path, open_per_item: path, plain_copies: plain}
        rates, growth = {method: [] for method in jobs}, {}
        for _ in range(args.repeats):
            for method, file in jobs.items():
                rate, growth[method] = in_fresh_process(
                    measure, method, file, num_images, args.batch_size, args.seconds
                )
                rates[method].append(rate)
        our, per_item, copies = (statistics.median(rates[method]) for method in jobs)
        gain, share = (
            statistics.median(a / b for a, b in zip(rates[ours], rates[method], strict=True))
            for method in (open_per_item, plain_copies)
        )
        memory = " ".join(f"{growth[method] / MB:5.0f}" for method in jobs)
        print(
            f"{resolution:>4}  {name:<19}{our:>10,.0f}{per_item:>15,.0f}{copies:>14,.0f}{gain:>15.1f}x"
            f"{share:>13.2f}x   {memory}",
            flush=True,
        )
        if path != plain:
            path.unlink()
    plain.unlink()


def compare_memory(args, folder):
    resolution = args.resolutions[0]
    path = folder / "memory.hdf5"
    for gigabytes in args.memory_gigabytes:
        num_images = images_in(gigabytes, resolution, args.batch_size)
        write_file(path, num_images, resolution, {})
        num_batches = 2 * num_images // args.batch_size  # two epochs touch every page
        for load_in_mem in (False, True):
            limit, before, after, done = in_fresh_process(
                read_under_limit, path, num_batches, args.batch_size, args.headroom_megabytes * MB, load_in_mem
            )
            outcome = "refused: out of memory" if after is None else f"{before / MB:.0f} -> {after / MB:.0f} MB"
            outcome += f" (+{(after - before) / MB:.1f}), {done / GB:.2f} GB read" if after else ""
            name = "--load_in_mem" if load_in_mem else "memory map"
            print(f"{path.stat().st_size / GB:>7.2f} GB{limit / MB:>9.0f} MB   {name:<15}{outcome}", flush=True)
        path.unlink()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolutions", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--gigabytes", type=float, default=0.5, help="size of the files of the speed test")
    parser.add_argument("--memory_gigabytes", type=float, nargs="+", default=[0.25, 2.0], help="of the memory test")
    parser.add_argument("--headroom_megabytes", type=int, default=64, help="what the memory test may add")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=0.75, help="longest measurement")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench_data_") as folder:
        print(f"images/s, medians of {args.repeats}; batches of {args.batch_size}, files of {args.gigabytes} GB")
        print(
            f"{'':>4}  {'file':<19}{'ours':>10}{'open per item':>15}{'plain copies':>14}{'ours/per item':>16}"
            f"{'ours/copies':>14}   MB of private memory gained"
        )
        for resolution in args.resolutions:
            compare_speed(resolution, args, Path(folder))
        print(f"\nmemory under RLIMIT_DATA, {args.resolutions[0]}x{args.resolutions[0]} images")
        print(f"{'file':>10}{'limit':>12}   {'':<15}private memory (RssAnon)")
        compare_memory(args, Path(folder))


if __name__ == "__main__":
    utils.run_main(main)
