"""How fast images are prepared, and how near that is to decoding them and doing nothing else.

    python benchmarks/bench_make_hdf5.py [--images 2000 --resolution 64 --num_workers 16 --repeats 5]

JPEGs like ImageNet's (500x375, quality 90, about 85 kB) are made in a temporary folder. All rows are measured in turn
in one run, several times, and the fastest of each counts, since what else runs on a machine only slows. "decode only"
is Pillow, each process with its share of the files: no resizing, nothing written, nothing sent. The rows of
`make_hdf5` are the whole command, from listing the folder to the synced file, without the start of Python.
"""

import argparse
import contextlib
import io
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

import make_hdf5
from image_datasets import decoding


def make_jpegs(folder, number):
    """Files with detail on every scale, as photographs have. Returns: list of paths."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(number):
        path = folder / f"{i % 10}" / f"{i:06}.jpg"
        path.parent.mkdir(exist_ok=True)
        if i < 20:  # as many different pictures are enough
            picture = np.full((375, 500, 3), 128.0)
            for scale, contrast in ((125, 60), (25, 30), (5, 15), (1, 13)):
                coarse = rng.normal(0, contrast, (375 // scale, 500 // scale, 3)).astype(np.float32)
                for channel in range(3):
                    layer = Image.fromarray(coarse[..., channel]).resize((500, 375), Image.Resampling.BICUBIC)
                    picture[..., channel] += np.asarray(layer)
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        else:
            path.write_bytes(Path(paths[i % 20]).read_bytes())
        paths.append(str(path))
    return paths


def decode_only(paths, resolution):
    for path in paths:
        with Image.open(path) as image:
            image.load()


def decode_and_resize(paths, resolution):
    for path in paths:
        decoding.read_pixels(path, resolution)


def in_processes(function, paths, resolution, num_workers):
    """Run `function(paths, resolution)` with the paths shared out over processes."""
    fork = multiprocessing.get_context("fork")
    shares = [(paths[k::num_workers], resolution) for k in range(num_workers)]
    processes = [fork.Process(target=function, args=share) for share in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def prepare(folder, resolution, num_workers):
    with tempfile.TemporaryDirectory(dir=folder.parent) as out, contextlib.redirect_stderr(io.StringIO()):
        command = f"--dataset folder --resolution {resolution} --num_workers {num_workers} --overwrite".split()
        with contextlib.redirect_stdout(io.StringIO()):
            make_hdf5.main([*command, "--images", str(folder), "--out", f"{out}/a.hdf5"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--num_workers", type=int, default=decoding.available_cores())
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        folder.mkdir()
        paths = make_jpegs(folder, args.images)
        kilobytes = statistics.mean(Path(path).stat().st_size for path in paths) / 1000
        print(f"{args.images} JPEGs of 500x375, {kilobytes:.0f} kB each, to {args.resolution}x{args.resolution}")
        rows = {
            "decode only": lambda workers: in_processes(decode_only, paths, args.resolution, workers),
            "decode and resize": lambda workers: in_processes(decode_and_resize, paths, args.resolution, workers),
            "make_hdf5": lambda workers: prepare(folder, args.resolution, workers),
        }
        seconds = {(name, workers): [] for name in rows for workers in (1, args.num_workers)}
        decode_only(paths, args.resolution)  # from here on the files are in memory
        for _ in range(args.repeats):
            for (name, workers), times in seconds.items():
                start = time.perf_counter()
                rows[name](workers)
                times.append(time.perf_counter() - start)
    speeds = {key: args.images / min(times) for key, times in seconds.items()}
    many = args.num_workers
    columns = ["1 process", f"{many} processes", "scaling", "of decode only", "of decode and resize"]
    print(f"{'images/s':<20}" + "".join(f"{column:>22}" for column in columns))
    for name in rows:
        one, all_of_them = speeds[name, 1], speeds[name, many]
        shares = [all_of_them / speeds[other, many] for other in ("decode only", "decode and resize")]
        cells = [f"{one:.0f}", f"{all_of_them:.0f}", f"{all_of_them / one:.2f}x", *(f"{share:.0%}" for share in shares)]
        print(f"{name:<20}" + "".join(f"{cell:>22}" for cell in cells))


if __name__ == "__main__":
    main()
