"""What a run writes for people to look at: a JSON line per event, TensorBoard, and a picture of the curves."""

import contextlib
import itertools
import json
import os
import re
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import utils
from torch_utils import schema
from training.run_folder import shown

EVENT_FILE = re.compile(r"events\.out\.tfevents\.(\d{10})\.")  # of TensorBoard, with the time when it was begun


class RunLog:
    """log.jsonl and TensorBoard of one run folder.

    Each line of log.jsonl is an object with `event`, `step`, `time` (Unix seconds) and then the event's own entries.
    A run that goes on from step `step` drops the lines of later steps that the interrupted run had still written, so
    that the finished log is that of a run that was never interrupted; `step` None starts the log afresh. What led on
    from that very step (changed flags, a rollback) is dropped too: it will be written again, if it is still so. So is
    its evaluation, and what follows it, where the step is not `evaluated`.

    Where the disk is full, lines wait until it is not, and TensorBoard goes without; both say so, once.
    """

    def __init__(self, folder: Path, step: int | None = None, evaluated: bool = True):
        self.folder, self.path = Path(folder), Path(folder) / "log.jsonl"
        events, bad = ([], []) if step is None else read_lines(self.path)
        if bad:
            print(f"note: {self.path}: {bad_lines(bad)} left out")
        kept = [line for line in events if _is_past(line, step)]
        if not evaluated:
            kept = list(itertools.takewhile(lambda line: (line["event"], line["step"]) != ("eval", step), kept))
        with utils.atomic_path(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.file = open(self.path, "ab", buffering=0)  # noqa: SIM115  (open for the life of the run)
        self.pending, self.waits = b"", False
        self.board, self.without_board = None, False
        self.excepthook, threading.excepthook = threading.excepthook, _without_boards(threading.excepthook)
        _put_in_order(self.folder / "tensorboard")
        self._to_board(lambda board: None, purge_step=0 if step is None else step + 1)

    def write(self, event: str, step: int, entries: dict) -> None:
        """Append one event; its numbers also go to TensorBoard, as event/name."""
        line = {"event": event, "step": step, "time": round(time.time(), 3), **entries}
        self.pending += (json.dumps(line) + "\n").encode()
        self._flush()
        numbers = {
            name: value
            for name, value in entries.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        if numbers:
            self._to_board(lambda board: [board.add_scalar(f"{event}/{k}", v, step) for k, v in numbers.items()])

    def image(self, name: str, step: int, picture: Image.Image) -> None:
        """A PIL image to TensorBoard."""
        self._to_board(lambda board: board.add_image(name, np.asarray(picture), step, dataformats="HWC"))

    def close(self) -> None:
        self._flush()
        self.file.close()
        if self.board:
            self._to_board(lambda board: board.close())
        threading.excepthook = self.excepthook

    def _flush(self):
        """Append the pending lines, whole or, where they cannot be written, not at all."""
        end = self.file.seek(0, os.SEEK_END)
        try:
            rest = self.pending
            while rest:
                rest = rest[self.file.write(rest) :]
            self.pending, self.waits = b"", False
        except OSError as error:
            with contextlib.suppress(OSError):
                self.file.truncate(end)
            if not self.waits:
                warn(f"cannot write {self.path}: {error.strerror}; its lines wait until that is possible")
            self.waits = True

    def _to_board(self, add, purge_step=None):
        """Call add(SummaryWriter), whose thread passes on what went wrong in it before; a new one is then made."""
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import: only a run that trains pays

        try:
            if self.board is None:
                folder = _text_path(self.folder / "tensorboard")
                self.board = SummaryWriter(folder, purge_step=purge_step)
            add(self.board)
        except OSError as error:
            self.board = None
            if not self.without_board:
                warn(f"cannot write {self.folder / 'tensorboard'}: {error.strerror}; what is missing is in log.jsonl")
            self.without_board = True


def _without_boards(hook):
    """threading.excepthook less what ends TensorBoard's thread on a full disk, which `RunLog` tells by itself."""

    def reduced(args):
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard")):
            hook(args)

    return reduced


def _put_in_order(folder):
    """Rename TensorBoard's files of a later time than now, as they are there after the clock has been set back.

    It reads files in the order of the times in their names, and none before the newest that it has seen.
    """
    stamps = {path: EVENT_FILE.match(path.name) for path in folder.glob("events.out.tfevents.*")}
    later = sorted((int(found[1]), path) for path, found in stamps.items() if found and int(found[1]) >= time.time())
    now = int(time.time())
    for i, (stamp, path) in enumerate(later):
        name = path.name.replace(f".{stamp:010d}.", f".{now - len(later) + i:010d}.", 1)
        with contextlib.suppress(OSError):
            path.rename(path.with_name(name))


def warn(text: str) -> None:
    """One line on stderr, above a progress bar; also where that is a file on the full disk that it tells of."""
    with contextlib.suppress(OSError):
        tqdm.write(f"warning: {utils.printable(text)}", file=sys.stderr)


def _is_past(event, step):
    """Whether a run that goes on from a step has the event behind it."""
    return event["step"] < step or (event["step"] == step and event["event"] not in ("change", "rollback"))


def _text_path(folder):
    """A path to a folder, made if need be, that is text: TensorBoard takes no other names, where the system does."""
    try:
        return str(folder).encode().decode()
    except UnicodeEncodeError:
        folder.mkdir(parents=True, exist_ok=True)
        return f"/proc/self/fd/{os.open(folder, os.O_RDONLY)}"  # open for the life of the process, as the log is


def read_log(path: str | Path) -> list[dict]:
    """The events of a log.jsonl, as dicts; empty if there is none. A line that is no event is left out."""
    return read_lines(path)[0]


def read_lines(path: str | Path) -> tuple[list[dict], list[int]]:
    """The events of a log.jsonl, and the numbers, from 1, of the lines that are none.

    A last line that is cut, as a killed run leaves it, is neither.
    """
    events, bad = [], []
    lines = Path(path).read_bytes().split(b"\n") if Path(path).exists() else [b""]
    for number, line in enumerate(lines, 1):
        try:
            events.append(_event(line))
        except (ValueError, RecursionError):
            bad.append(number)
    return events, [number for number in bad if number < len(lines)]


def _event(line):
    """The event of a line, bytes. Raises: ValueError or RecursionError where it is none."""
    event = json.loads(line)
    if problem := schema.problem(event, EVENT) or schema.problem(event, EVENTS.get(event["event"], {})):
        raise ValueError(problem)
    return event


def bad_lines(numbers: list[int]) -> str:
    """What to say of such lines."""
    which = utils.listed([str(number) for number in numbers])
    return f"line {which} is no event, and is" if len(numbers) == 1 else f"lines {which} are no events, and are"


# Fields of a line of log.jsonl: of all, and of those that are read again.
EVENT = {"event": str, "step": schema.COUNT}
METRICS = (
    "fid",
    "fd",
    "is_mean",
    "is_std",
    "kid_mean",
    "kid_std",
    "precision",
    "recall",
    "density",
    "coverage",
    "accuracy",
)
EVENTS = {
    "change": {"flags": {str: schema.Check(lambda x: isinstance(x, list) and len(x) == 2, "be a pair")}},
    "eval": {f"{name}?": float for name in METRICS},
    "collapse": {"action": str, "text": str, "rollbacks": schema.COUNT, "command?": str},
    "rollback": {"number": schema.COUNT, "noticed": schema.COUNT},
}

# Curves that share a panel; a panel whose numbers the run does not have is left out.
PANELS = {
    "losses": ("D_loss_real", "D_loss_fake", "D_loss", "G_loss"),
    "penalties": ("D_r1", "D_r2", "D_lecam", "D_cr", "D_bcr_real", "D_bcr_fake", "D_zcr", "G_zcr"),
    "auxiliary classifier": ("D_d2dce", "G_d2dce"),
    "strength of augmentation": ("ada_p",),
    "Frechet distance": ("fid", "fd"),
    "Inception score": ("is_mean",),
    "kernel distance": ("kid_mean",),
    "precision and recall": ("precision", "recall"),
    "density and coverage": ("density", "coverage"),
    "class accuracy": ("accuracy",),
}

MANY = 1000  # points of a curve: more hide one another


def plot_curves(log_path: Path, path: Path) -> None:
    """Draw the curves of a log.jsonl into one PNG: losses at each logged step, metrics at each evaluation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    events = read_log(log_path)
    curves = {name: _curve(events, name) for names in PANELS.values() for name in names}
    panels = {title: [n for n in names if curves[n]] for title, names in PANELS.items()}
    panels = {title: names for title, names in panels.items() if names}
    if not panels:
        return
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, names) in zip(
        figure.subplots(rows, columns, squeeze=False).flat[: len(panels)], panels.items(), strict=True
    ):
        for name in names:
            _draw(axes, name, *zip(*curves[name], strict=True))
        _set_ticks(axes, logarithmic=title == "Frechet distance")  # it falls by orders of magnitude
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("generator step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        for step, text, color in _moments(events):
            axes.axvline(step, color=color, linestyle="--", linewidth=1)
            place = {"xycoords": axes.get_xaxis_transform(), "xytext": (3, 0), "textcoords": "offset points"}
            axes.annotate(text, (step, 0.03), **place, rotation=90, fontsize=6, color=color)
        if len(names) > 1:
            axes.legend(fontsize=8)
    for axes in figure.axes[len(panels) :]:
        axes.set_axis_off()
    with utils.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _draw(axes, name, steps, values):
    """One curve; of very many points the average over a hundredth of them, and behind it, pale, the points."""
    (line,) = axes.plot(steps, values, label=name, linewidth=1, marker="." if len(steps) < 40 else None)
    if len(steps) > MANY:
        line.set(label=None, linewidth=0.5, alpha=0.2)
        width = len(steps) // 100
        middle = np.convolve(values, np.full(width, 1 / width), "valid")
        axes.plot(steps[width // 2 :][: len(middle)], middle, label=name, linewidth=1, color=line.get_color())


def _set_ticks(axes, logarithmic):
    """Whole steps, large ones as 200k; numbers at the other axis that can be read, also where it is logarithmic."""
    from matplotlib import ticker

    axes.xaxis.set_major_locator(ticker.MaxNLocator("auto", steps=(1, 2, 5, 10), integer=True, min_n_ticks=1))
    if axes.dataLim.x1 >= 100_000:
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    low, high = axes.dataLim.y0, axes.dataLim.y1
    if logarithmic and high > 5 * low > 0:  # less than that has no two round numbers in it
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(ticker.NullLocator())


def _curve(events, name):
    return [(event["step"], event[name]) for event in events if schema.problem(event.get(name), float) is None]


def _moments(events, most=60):
    """Step, text and colour of what is marked: changed flags (--allow_change), collapses and rollbacks."""
    told = []
    for event in events:
        if event["event"] == "change":
            told.append((event["step"], change_text(event["flags"]), "0.4"))
        elif event["event"] == "collapse":
            told.append((event["step"], f"{event['action']}: {event['text']}", "tab:red"))
        elif event["event"] == "rollback":
            told.append((event["step"], f"rollback {event['number']} from step {event['noticed']}", "tab:red"))
    return [(step, text if len(text) <= most else f"{text[: most - 3]}...", color) for step, text, color in told]


def change_text(changes: dict[str, list]) -> str:
    """What changed, of {flag: [before, now]}."""
    return ", ".join(f"{name} {shown(before)} \u2192 {shown(now)}" for name, (before, now) in changes.items())


class Speedometer:
    """Images per second since the last restart."""

    def __init__(self, step: int, images_per_step: int):
        self.images_per_step = images_per_step
        self.restart(step)

    def restart(self, step: int) -> None:
        self.start, self.start_step = time.perf_counter(), step

    @property
    def elapsed(self) -> float:
        """Seconds."""
        return time.perf_counter() - self.start

    def at(self, step: int) -> float:
        return (step - self.start_step) * self.images_per_step / self.elapsed


def peak_memory_mb(device: torch.device) -> int:
    """Peak memory of this process in MiB: of the GPU's allocator on CUDA, else of resident memory."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
