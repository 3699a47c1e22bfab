"""How fast the metrics' statistics are, and how much memory they take, against what is commonly used for them.

    python benchmarks/bench_metrics.py [--num 10000 --threads 2 --repeats 3 --memory_mb 1024]
    python benchmarks/bench_metrics.py --large        # PRDC of 50,000 against 50,000 features alone: time, whole memory

* PRDC: prdc.py against scikit-learn's pairwise_distances on whole matrices with numpy.partition, as the PyPI package
  `prdc` computes it.
* Frechet distance of two given pairs of moments: ours against scipy.linalg.sqrtm, as pytorch-fid computes it.
* Moments of features that come in batches, against numpy.mean and numpy.cov of the whole array.

Features are float32: `pooled` (ReLU of a low-rank part plus noise, as Inception's pooled features are), plain noise
(`gaussian`) or its absolute values (`abs_gaussian`). Each measurement runs in a process of its own; memory is its peak
less what it held once the modules were imported and the features made. The two sides take turns, so that a machine
whose speed drifts slows both; the ratio of medians is what to quote. Both sides' values are printed and must agree.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
BASELINES = {"prdc": "dense scikit-learn", "frechet": "scipy sqrtm", "moments": "numpy cov"}
KINDS = "pooled", "gaussian", "abs_gaussian"


def pooled(generator, num, d, mixing):
    """Non-negative features (num,d): 64 shared directions of falling weight, and noise."""
    import numpy as np

    shared = generator.standard_normal((num, 64), dtype=np.float32) @ mixing
    return np.maximum(0.3 + shared + 0.2 * generator.standard_normal((num, d), dtype=np.float32), 0)


def make_features(kind, num, d, which):
    """Features float32 (num,d), `which` 0 for real ones, 1 for generated ones of a slightly other distribution."""
    import numpy as np

    weight = np.float32(0.5) / np.arange(1, 65, dtype=np.float32)[:, None] ** 0.5
    mixing = weight * np.random.default_rng(0).standard_normal((64, d), dtype=np.float32) * (1 - 0.05 * which)
    features = np.empty((num, d), dtype=np.float32)
    for start in range(0, num, 1000):
        part, generator = features[start : start + 1000], np.random.default_rng((1, which, start))
        if kind == "pooled":
            part[:] = pooled(generator, len(part), d, mixing)
        else:
            generator.standard_normal(out=part, dtype=np.float32)
            if kind == "abs_gaussian":
                np.abs(part, out=part)
    return features


def dense_prdc(real, fake, k, n_jobs):
    import numpy as np
    from sklearn.metrics import pairwise_distances

    def distances(a, b=None):
        return pairwise_distances(a, b, metric="euclidean", n_jobs=n_jobs)

    real_radii, fake_radii = (np.partition(distances(points), k, axis=1)[:, k] for points in (real, fake))
    between = distances(real, fake)
    in_real = between < real_radii[:, None]
    return {
        "precision": in_real.any(0).mean(),
        "recall": (between < fake_radii).any(1).mean(),
        "density": in_real.sum(0).mean() / k,
        "coverage": (between.min(1) < real_radii).mean(),
    }


def sqrtm_frechet(mu1, sigma1, mu2, sigma2):
    import numpy as np
    from scipy.linalg import sqrtm

    return ((mu1 - mu2) ** 2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(sqrtm(sigma1 @ sigma2)).real


def task(args):
    """The function that a child measures: no arguments, to a dict of floats."""
    import numpy as np

    metric, side, kind = args.measure
    ours = side == "ours"
    real = make_features(kind, args.num, args.features, 0)
    if metric == "moments":
        if ours:
            return lambda: describe(*stream_moments(real, args.batch_size))
        return lambda: describe(real.mean(0, dtype=np.float64), np.cov(real, rowvar=False, dtype=np.float64))
    fake = make_features(kind, args.num, args.features, 1)
    if metric == "prdc":
        if ours:
            import prdc

            return lambda: prdc.prdc(real=real, fake=fake, memory_mb=args.memory_mb)
        import sklearn.metrics  # noqa: F401, so that importing it is not measured

        return lambda: dense_prdc(real, fake, 5, args.threads)
    import scipy.linalg  # noqa: F401

    from metrics.functional import frechet_distance

    moments = [moment for points in (real, fake) for moment in (points.mean(0, dtype=float), np.cov(points.T))]
    return lambda: {"distance": float((frechet_distance if ours else sqrtm_frechet)(*moments))}


def stream_moments(features, batch_size):
    import torch

    from metrics.functional import RunningMoments

    moments = RunningMoments()
    for part in torch.from_numpy(features).split(batch_size):
        moments.update(part)
    return moments.finalize()


def describe(mu, sigma):
    return {"mean": float(mu.mean()), "trace": float(sigma.trace()), "sum": float(sigma.sum())}


def memory_now():
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(args):
    """One measurement, printed as JSON."""
    sys.path.insert(0, str(ROOT))
    import torch

    torch.set_num_threads(args.threads)
    torch.ones(512, 512) @ torch.ones(512, 512)  # threads and libraries start
    work = task(args)
    before = memory_now()
    clock = time.process_time if args.cpu_time else time.perf_counter
    start = clock()
    values = work()
    seconds = clock() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    values = {key: float(value) for key, value in values.items()}
    print(json.dumps({"seconds": seconds, "extra": (peak - before) / 2**20, "peak": peak / 2**20, "values": values}))


def run_child(args, metric, side, kind, num):
    flags = ["num", "features", "threads", "batch_size", "memory_mb"]
    options = vars(args) | {"num": num}
    command = [sys.executable, __file__, "--measure", metric, side, kind]
    command += [text for flag in flags for text in (f"--{flag}", str(options[flag]))]
    command += ["--cpu_time"] * args.cpu_time
    libraries = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = os.environ | dict.fromkeys(libraries, str(args.threads))
    child = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if child.returncode:
        sys.exit(f"{metric} of {side} on {kind} features failed (status {child.returncode}); see above")
    return json.loads(child.stdout.splitlines()[-1])


def compare(args, metric, kind):
    """Print one row of the table; return both sides' values."""
    runs = {"ours": [], "theirs": []}
    for _ in range(args.repeats):
        for side, results in runs.items():
            results.append(run_child(args, metric, side, kind, args.num))
    seconds = {side: statistics.median(run["seconds"] for run in results) for side, results in runs.items()}
    extra = {side: max(1.0, statistics.median(run["extra"] for run in results)) for side, results in runs.items()}
    print(
        f"{metric:<8}{kind:<14}{BASELINES[metric]:<20}{seconds['ours']:>8.2f} s{seconds['theirs']:>9.2f} s"
        f"{seconds['theirs'] / seconds['ours']:>8.1f}x{extra['ours']:>9.0f} MiB{extra['theirs']:>7.0f} MiB"
        f"{extra['theirs'] / extra['ours']:>8.1f}x",
        flush=True,
    )
    return {side: results[0]["values"] for side, results in runs.items()}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=10_000, help="features of each set")
    parser.add_argument("--features", type=int, default=2048, help="width d of a feature")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=64, help="features a batch, for our moments")
    parser.add_argument("--memory_mb", type=int, default=1024, help="working memory of our PRDC")
    parser.add_argument("--metrics", nargs="+", choices=tuple(BASELINES), default=list(BASELINES))
    parser.add_argument(
        "--cpu_time", action="store_true", help="count processor time, for a busy machine; best with --threads 1"
    )
    parser.add_argument("--large", action="store_true", help="only our PRDC of 50,000 features a set")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)  # metric, side, kind: what a child does
    return parser.parse_args()


def main():
    args = parse_args()
    if args.measure:
        return measure(args)
    if args.large:
        run = run_child(args, "prdc", "ours", "pooled", 50_000)
        print(f"PRDC of 2 x 50,000 features ({args.features}), {args.threads} threads: {run['seconds']:.0f} s")
        print(f"{run['peak']:.0f} MiB in all, {run['extra']:.0f} MiB of it beside modules and features")
        return None
    print(f"{args.num} features of {args.features}, {args.threads} threads, medians of {args.repeats}")
    print(f"{'metric':<8}{'features':<14}{'against':<20}{'ours':>10}{'theirs':>11}{'faster':>9}", end="")
    print(f"{'ours':>13}{'theirs':>11}{'less':>9}")
    values = {}
    for metric in args.metrics:
        for kind in KINDS:
            values[metric, kind] = compare(args, metric, kind)
    for (metric, kind), sides in values.items():
        pairs = (f"{key} {value:.6g} / {sides['theirs'][key]:.6g}" for key, value in sides["ours"].items())
        print(f"{metric}, {kind}, ours / theirs: " + ", ".join(pairs))
    return None


if __name__ == "__main__":
    main()
