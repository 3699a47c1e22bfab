"""How fast G and D train and sample: ours against the plain composition of the same layers.

    python benchmarks/bench_step.py                                    # 5 models, about 5 minutes on two CPU cores
    python benchmarks/bench_step.py --models SAGAN-64 --amp bf16 --profile --json step.json
    python benchmarks/bench_step.py --published --ours_alone --compile # published widths and batches, for a GPU

Training is one iteration (a step of D, one of G, Adam, moving average; no data are read), sampling a batch of images in
evaluation. The plain side (plain_twins.py) upsamples and then convolves, convolves and then pools, normalises,
multiplies, adds and rectifies in separate passes, has PyTorch's own memory format and C's own allocator, and goes
through Adam and the average tensor by tensor; it stays in float32 and is not compiled, whatever the flags, so that a
ratio is all that they bring. Each side is a process of its own, and both take turns, so that a machine whose speed
drifts slows both: quote the ratio of medians; in brackets are the least and the largest ratio of a turn. Multiply-adds
(of an image, in 10⁹) are those that PyTorch counts in convolutions and products; the peak is what this machine does in
products of square matrices of the type that a side computes in. Memory is a process's peak less what it held before it
made the networks.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import utils
from benchmarks.bench_side import Case, How, serve
from torch_utils.distributed import add_device_arg
from torch_utils.mixed_precision import PrecisionOptions

SAGAN = "--G_init xavier --D_init xavier --num_D_steps 1 --G_lr 1e-4 --D_lr 4e-4".split()
# N02 instead of ortho, which takes its time and changes none
BIGGAN = "--G_init N02 --D_init N02 --G_shared --hier --dim_z 120 --shared_dim 128 --G_lr 1e-4 --D_lr 4e-4".split()
DEEP = [*BIGGAN, *"--model BigGANdeep --G_depth 2 --D_depth 2 --dim_z 128".split()]
ATTENTION = {64: "--G_attn 32 --D_attn 32".split(), 128: "--G_attn 64 --D_attn 64".split()}
# name -> resolution, flags, (ch, batch) that two CPU cores can do, those that were published
MODELS = {
    "SAGAN-64": (64, SAGAN, (32, 32), (32, 128)),
    "SAGAN-64-SSM": (64, [*SAGAN, "--ssm", "voxel"], (32, 32), (32, 128)),
    "BigGAN-64": (64, BIGGAN, (32, 32), (64, 256)),
    "BigGAN-128": (128, BIGGAN, (32, 8), (96, 64)),
    "BigGAN-deep-128": (128, DEEP, (32, 8), (128, 64)),
}
TASKS = ("sample", "train")  # in this order: the memory of sampling is the smaller one


def make_case(name: str, published: bool, ch: int | None, batch_size: int | None) -> Case:
    """The Case of a name of MODELS; ch, batch_size: others than its own."""
    resolution, flags, *sizes = MODELS[name]
    own_ch, own_batch = sizes[published]
    widths = [word for flag in ("--G_ch", "--D_ch") for word in (flag, str(ch or own_ch))]
    return Case(name, resolution, (*flags, *ATTENTION[resolution], *widths), batch_size or own_batch)


class Child:
    """A process that serves (bench_side.py), asked for one thing at a time."""

    def __init__(self, case: Case | None, how: How, plain: bool):
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler's own chatter
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, case, how, plain), daemon=True)
        self.process.start()
        other.close()

    def __call__(self, method: str, *arguments):
        """Raises: utils.UserError with the one line of what failed."""
        try:
            self.connection.send((method, arguments))
            outcome, result = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            raise utils.UserError(f"the process of a side ended with status {self.process.exitcode}") from None
        if outcome == "failed":
            raise utils.UserError(result)
        return result

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.connection.close()
        self.process.join(timeout=20)
        self.process.kill()


def measure(case: Case, how: How, repeats: int, ours_alone: bool, profile: bool) -> list[dict]:
    """A record for each task: of each side `seconds` (all of them), `images_per_s`, `multiply_adds`, `memory_mb`, and
    of the two their ratios; `error` instead, in words, where a side failed."""
    sides = ["ours"] if ours_alone else ["ours", "plain"]
    children = {}
    records = []
    try:
        for side in sides:
            children[side] = Child(case, how, side == "plain")
        for task in TASKS:
            record = {"model": case.name, "batch_size": case.batch_size, "task": task, "flags": " ".join(case.flags)}
            records.append(record)
            record |= {side: child("prepare", task) | {"seconds": []} for side, child in children.items()}
            for _ in range(repeats):
                for side, child in children.items():
                    record[side]["seconds"].append(child("timed", task))
            for side, child in children.items():
                record[side]["images_per_s"] = case.batch_size / statistics.median(record[side]["seconds"])
                record[side]["memory_mb"] = child("memory_mb")
            if not ours_alone:
                record |= ratios(record["ours"], record["plain"])
            if profile:
                record["profile"] = children["ours"]("profile", task)
    except utils.UserError as error:
        records[-1]["error"] = str(error)
    finally:
        for child in children.values():
            child.__exit__()
    return records


def ratios(ours: dict, plain: dict) -> dict:
    """How many times faster ours is, by medians and turn by turn, and what share of memory it takes."""
    turns = [b / a for a, b in zip(ours["seconds"], plain["seconds"], strict=True)]
    faster = ours["images_per_s"] / plain["images_per_s"]
    return {
        "faster": faster,
        "spread": [min(turns), max(turns)],
        "memory": ours["memory_mb"] / max(plain["memory_mb"], 1),
    }


def add_shares(records: list[dict], peaks: dict, amp: str) -> None:
    """Give each side its share of the peak of the type that it computes in."""
    types = {"off": "float32", "bf16": "bfloat16", "fp16": "float16"}
    for record in records:
        for side, name in (("ours", types[amp]), ("plain", "float32")):
            if "images_per_s" in record.get(side, {}):
                rate = record[side]["images_per_s"] * record[side]["multiply_adds"]
                record[side]["share_of_peak"] = rate / peaks[name]


HEAD = "| model | batch | | images/s | plain | faster | 10⁹ | plain | MiB | plain | share of peak | plain |"


def row(record: dict) -> str:
    """A line of the table, in Markdown."""
    start = f"| {record['model']} | {record['batch_size']} | {record['task']} |"
    if "error" in record:
        return f"{start} {record['error']} |"
    sides = [record.get(side) for side in ("ours", "plain")]
    values = [
        _both(sides, lambda side: f"{side['images_per_s']:.3g}"),
        f"{record['faster']:.2f}x ({record['spread'][0]:.2f}-{record['spread'][1]:.2f})" if "faster" in record else "-",
        _both(sides, lambda side: f"{side['multiply_adds'] / 1e9:.2f}"),
        _both(sides, lambda side: f"{side['memory_mb']}"),
        _both(sides, lambda side: f"{side['share_of_peak']:.0%}"),
    ]
    return f"{start} {' | '.join(values)} |"


def _both(sides, text):
    return " | ".join(text(side) if side else "-" for side in sides)


def profile_text(record: dict) -> str:
    """Where the time of a task of ours goes, as a table."""
    lines = [f"\n{record['model']}, {record['task']}: {'seconds':>36}{'share':>8}{'calls':>8}"]
    for entry in record["profile"]:
        lines.append(f"{entry['name'][:56]:<56}{entry['seconds']:>9.4f}{entry['share']:>8.1%}{entry['calls']:>8}")
    return "\n".join(lines)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = utils.ArgumentParser(__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="which")
    parser.add_argument("--published", action="store_true", help="published widths and batches, which need a GPU")
    parser.add_argument("--ch", type=utils.positive_int, help="another width of all models")
    parser.add_argument("--batch_size", type=utils.positive_int, help="another batch of all models")
    parser.add_argument("--repeats", type=utils.positive_int, default=3, help="turns")
    parser.add_argument("--ours_alone", action="store_true", help="without the plain side")
    parser.add_argument("--profile", action="store_true", help="tell where the time of ours goes")
    parser.add_argument("--json", metavar="FILE", help="write all that was measured there, model by model")
    PrecisionOptions.add_to(parser, only=("amp", "tf32", "compile"))
    add_device_arg(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    how, records = How(args.device, args.amp, args.tf32, args.compile), []
    if args.json:
        utils.save_json({}, args.json)  # where it cannot be written, this shows now
    with Child(None, how, False) as child:
        about = child("machine")
    peaks = about["peak_multiply_adds_per_s"]
    told = ", ".join(f"{name} {peak / 1e9:,.0f}" for name, peak in peaks.items())
    print(f"{about['device']}, {utils.counted(about['threads'], 'thread')}, torch {about['torch']}")
    print(f"ours: amp {how.amp}, tf32 {how.tf32}, compile {how.compile}; 10⁹ multiply-adds a second at most: {told}\n")
    print(HEAD + "\n|" + "---|" * 3 + "--:|" * 9)
    for name in args.models:
        case = make_case(name, args.published, args.ch, args.batch_size)
        records += measure(case, how, args.repeats, args.ours_alone, args.profile)
        add_shares(records, peaks, how.amp)
        print("\n".join(row(record) for record in records if record["model"] == name))
        if args.json:
            utils.save_json({"machine": about, "options": vars(args), "records": records}, args.json)
    for record in records:
        if "profile" in record:
            print(profile_text(record))


if __name__ == "__main__":
    utils.run_main(main)
