"""Run plumbing shared by the scripts: errors, argument parsing, seeding, processes and files.

Nothing in here knows about networks, data sets or metrics, and nothing here imports another file of the project.
"""

import argparse
import contextlib
import difflib
import errno
import hashlib
import json
import os
import signal
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parent  # of the project
# What reading a damaged npz file raises.
DAMAGED_NPZ = (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


class UserError(Exception):
    """Bad input. `run_main` reports it as one line on stderr and exits with status 2."""


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Short names for values, and defaults only where there is one to show."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=34, width=110)

    def _get_default_metavar_for_optional(self, action):
        return {int: "N", positive_int: "N", count: "N", float: "X"}.get(action.type, "TEXT")

    def _get_help_string(self, action):
        if isinstance(action.default, tuple) and action.default:
            return f"{action.help} (default: {'_'.join(map(str, action.default))})"
        is_off = action.nargs == 0 and (
            action.default is False or not isinstance(action, argparse.BooleanOptionalAction)
        )
        if action.default in (None, "", ()) or is_off:
            return action.help
        return super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one-line errors, a guess at what a mistyped flag was meant to be, and no abbreviations.

    `positional`: the names of positional arguments, for the usage line, which would list every flag otherwise.
    """

    def __init__(self, description=None, positional=""):
        usage = " ".join(["%(prog)s", *positional.split(), "[flags]"])
        super().__init__(description=description, usage=usage, allow_abbrev=False, formatter_class=_HelpFormatter)

    def error(self, message):
        if "unrecognized arguments" in message:
            message += self._guess(message)
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")

    def _guess(self, message):
        flags = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        unknown = next((word for word in message.split() if word.startswith("--")), "").split("=")[0]
        close = difflib.get_close_matches(unknown, flags, n=1)
        return f"; did you mean {close[0]}?" if close else ""


def count(text):
    """argparse type: a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 0")
    return int(text)


def positive_int(text):
    """argparse type: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return int(text)


def run_main(main):
    """Run a script's `main()`: bad input ends in one line and status 2, Ctrl-C in one line and status 130."""
    warnings.formatwarning = _one_line_warning
    try:
        main()
    except UserError as error:
        _exit_with_line(error)
    except BrokenPipeError:  # the reader of our output (head, less) has gone away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:  # a disk can fill up under any write
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _exit_with_line(f"the disk is full ({error.filename or error.strerror})")
    except KeyboardInterrupt:
        print(f"\n{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _one_line_warning(message, category, filename, lineno, line=None, default=warnings.formatwarning):
    """A warning as text; one of the project's own is for the user, who has no use for the line of code."""
    own = category is UserWarning and Path(filename).is_relative_to(ROOT) and ".venv" not in Path(filename).parts
    return f"warning: {message}\n" if own else default(message, category, filename, lineno, line)


def _exit_with_line(text):
    if is_main_process():  # the others have found the same, or are ended by torchrun
        print(f"{Path(sys.argv[0]).name}: error: {text}", file=sys.stderr)
    sys.exit(2)


def bar_interval():
    """Keyword for tqdm: often on a terminal, seldom where every refresh becomes a line of a log file."""
    return {"mininterval": 0.2 if sys.stderr.isatty() else 15}


def is_main_process():
    """Whether this is the process that speaks to the user: the only one, or rank 0 of torchrun's."""
    return os.environ.get("RANK", "0") == "0"


# ---------------------------------------------------------------------------------------------------------------------
# Randomness that does not depend on accident

# A number per stream, so that no two uses of one seed ever share their draws.
STREAMS = {
    "z": 1,
    "y": 2,
    "order": 3,
    "flip": 4,
    "dequantise": 5,
    "sample": 6,
    "metric": 7,
    "classifier": 8,
    "crop": 9,
    "standing": 10,
}


def rng(seed, stream, *counters):
    """A CPU random generator that is a pure function of (seed, stream, counters).

    Args: seed: int >= 0; stream: a key of STREAMS; counters: ints >= 0 (step, draw within the step, image index ...).
    Returns: numpy Generator. Streams with other seeds, names or counters are independent of it.
    """
    # The number of counters is in the seed because numpy pads seeds with zeros: (3,) and (3, 0) would be the same.
    return np.random.default_rng([seed, STREAMS[stream], len(counters), *counters])


# ---------------------------------------------------------------------------------------------------------------------
# Processes


@dataclass(frozen=True)
class Ranks:
    """This process among the run's: `rank` 0 to world_size - 1, and the device it computes on."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self):
        return self.rank == 0

    def slice(self, batch):
        """This rank's contiguous part of something drawn for the whole batch."""
        local = len(batch) // self.world_size
        return batch[self.rank * local : (self.rank + 1) * local]


def add_device_args(parser):
    parser.add_argument("--device", default="auto", help="auto (the GPU if there is one), cpu, cuda or cuda:N")


def resolve_device(name):
    """The torch device of a `--device` value; `auto` is the GPU if there is one. Raises: UserError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: no such device; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: this PyTorch sees no GPU; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there are only {torch.cuda.device_count()} GPUs here")
    return device


def launch_per_gpu():
    """Replace this process by one process per visible GPU, all running the same command, if there are several."""
    gpus = torch.cuda.device_count()
    if gpus > 1 and "RANK" not in os.environ:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={gpus}"]
        os.execv(sys.executable, [*launcher, *sys.argv])


@contextlib.contextmanager
def process_group(device_name):
    """Yield the Ranks of this process, joined to the others if torchrun started it: nccl on GPUs, gloo on the CPU."""
    device = resolve_device(device_name)
    if "RANK" not in os.environ:
        yield Ranks(0, 1, device)
        return
    if device.type == "cuda":
        gpus, needed = torch.cuda.device_count(), int(os.environ["LOCAL_WORLD_SIZE"])
        if needed > gpus:
            raise UserError(f"--nproc_per_node {needed}: there are only {gpus} GPUs here")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # gloo beside nccl lets the ranks agree on small things without waiting for their GPUs
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    yield Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)
    torch.distributed.destroy_process_group()  # not after an error: nccl's ranks can only do it together


def on_main(ranks, function):
    """What `function()` returns on rank 0 (small, picklable), on all ranks; so is a UserError that it raises."""
    result, text = None, None
    if ranks.is_main:
        try:
            result = function()
        except UserError as error:
            text = str(error)
    if ranks.world_size > 1:
        box = [result, text]
        torch.distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        result, text = box
    if text is not None:
        raise UserError(text)
    return result


def data_parallel(module, ranks):
    """`module`, wrapped so that a backward averages its gradients over the ranks; buffers stay each rank's own."""
    if ranks.world_size == 1:
        return module
    device_ids = [ranks.device.index] if ranks.device.type == "cuda" else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`?broadcast_buffers", FutureWarning)  # deprecated only in the newest PyTorch
        return torch.nn.parallel.DistributedDataParallel(module, device_ids=device_ids, broadcast_buffers=False)


def mean_over_ranks(terms, ranks):
    """A dict of 0-dim tensors as floats, each the mean over all ranks."""
    values = torch.stack(list(terms.values()))
    if ranks.world_size > 1:
        torch.distributed.all_reduce(values)
    return dict(zip(terms, (values / ranks.world_size).tolist(), strict=True))


def broadcast_buffers(modules, ranks):
    """Give rank 0's buffers (batch-norm statistics, spectral-norm vectors) to all ranks."""
    if ranks.world_size > 1:
        for module in modules:
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, 0)


class StopSignal:
    """Ctrl-C (SIGINT) and SIGTERM as a flag that the loop asks for, so that a run ends between two steps.

    A second signal acts as usual: at once.
    """

    def __enter__(self):
        self.received = None
        self.previous = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _receive(self, number, frame):
        if self.received is None:
            self.received, self.since = number, time.monotonic()
            if is_main_process():
                print("\nstopping after this step, with a checkpoint; once more stops at once", file=sys.stderr)
        elif time.monotonic() - self.since > 2:  # torchrun passes on a Ctrl-C that the terminal has sent us too
            self.__exit__()
            signal.raise_signal(number)

    def __exit__(self, *error):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def requested(self, ranks):
        """Whether any rank has received a signal: the same answer on all of them."""
        if ranks.world_size > 1:
            flag = torch.tensor([self.received or 0])
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            self.received = flag.item() or None
        return self.received is not None


# ---------------------------------------------------------------------------------------------------------------------
# Files


@contextlib.contextmanager
def atomic_path(path):
    """Yield a temporary path in the folder of `path`; on success it is synced and takes the name `path`.

    On any error the temporary file is removed and whatever `path` held before is still there.
    Raises: UserError if the folder cannot be written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    os.close(handle)
    os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only their owner can read
    try:
        yield Path(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save_json(obj, path):
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(obj, indent=1) + "\n")


def load_json(path):
    """The content of a JSON file. Raises: UserError naming the file if it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error})") from error


def load_npz(path):
    """All arrays of an npz file, by name; no pickled objects. Raises: UserError naming the file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (TypeError, AttributeError, *DAMAGED_NPZ) as error:  # the first two: a single array, an .npy file
        raise UserError(f"{path} is not a readable npz file (damaged or another format)") from error


def save_torch(obj, path):
    with atomic_path(path) as temporary:
        try:
            torch.save(obj, temporary)
        except RuntimeError as error:  # what torch's writer makes of a full disk
            raise UserError(f"cannot write {path}: is the disk full? ({str(error).splitlines()[0]})") from error


def load_torch(path):
    """Tensors and plain Python values of a .pth file, on the CPU. Raises: UserError naming the file."""
    path = Path(path)
    if path.is_dir() or not path.exists():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # of damaged files torch raises RuntimeError, OSError, UnpicklingError ...
        raise UserError(f"{path} is not a readable checkpoint (damaged, truncated, or another format)") from error


def sha256(path):
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
