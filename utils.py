"""What every file may use: errors, flags and typed options, randomness, files.

Nothing here knows of torch.distributed, networks, data sets or metrics, or imports another file of the project.
"""

import argparse
import contextlib
import dataclasses
import difflib
import errno
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import traceback
import typing
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parent  # of the project
MAIN_PROCESS = os.getpid()  # that which runs a script, not one of its forks
TORCHRUN_VARIABLES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
# What reading a damaged npz file raises.
DAMAGED_NPZ = (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


class UserError(Exception):
    """Bad input. `run_main` reports it as one line on stderr and exits with status 2."""


class LostProcess(UserError):
    """Another process of a run is gone, or does not answer; reported only where none has said why."""


class CannotWrite(UserError):
    """A file could not be written: no room, no permission, a broken disk."""


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


class _NotGiven:
    """Stands for the value of a flag that is not on the command line; false, as what it stands for mostly is."""

    def __bool__(self):
        return False


NOT_GIVEN = _NotGiven()


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one-line errors, a guess at what a mistyped flag was meant to be, and no abbreviations.

    `positional`: the names of positional arguments, for the usage line, which would list every flag otherwise.
    """

    def __init__(self, description: str | None = None, positional: str = ""):
        usage = " ".join(["%(prog)s", *positional.split(), "[flags]"])
        super().__init__(description=description, usage=usage, allow_abbrev=False, formatter_class=_HelpFormatter)
        self._negative_number_matcher = re.compile(r"-\.?\d")  # -3,4 and -1e5 are values too, as of Python 3.14

    def error(self, message):
        if "unrecognized arguments" in message:
            message += self._guess(message)
        _tell(f"{self.prog}: error: {printable(message)} (see --help)")
        self.exit(2)

    def parse_layers(self, argv: list[str] | None = None) -> tuple[dict, dict]:
        """Defaults of all flags, and the values that are given on the command line: two dicts by name.

        What else has a say (the flags of a run, the options of a checkpoint) goes between the two.
        """
        flags = [action for action in self._actions if action.option_strings and action.default != argparse.SUPPRESS]
        defaults = {flag.dest: flag.default for flag in flags} | self._defaults
        values = vars(self.parse_intermixed_args(argv, argparse.Namespace(**dict.fromkeys(defaults, NOT_GIVEN))))
        return defaults, {name: value for name, value in values.items() if value is not NOT_GIVEN}

    def _guess(self, message):
        flags = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        unknown = next((word for word in message.split() if word.startswith("--")), "").split("=")[0]
        close = difflib.get_close_matches(unknown, flags, n=1)
        return f"; did you mean {close[0]}?" if close else ""


def count(text: str) -> int:
    """argparse type: a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 0")
    return int(text)


def positive_int(text: str) -> int:
    """argparse type: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return int(text)


def number(text: str) -> int | float:
    """argparse type: a number, an int where it is whole."""
    value = float(text)
    return int(value) if value.is_integer() else value


def number_list(text: str) -> tuple[int, ...]:
    """argparse type: '32_64' or '4-4-2-1' or '32,64' to a tuple of ints; '0' and '' to none."""
    try:
        numbers = tuple(int(word) for word in text.replace("_", "-").replace(",", "-").split("-") if word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 32_64") from None
    return () if numbers == (0,) else numbers


# ---------------------------------------------------------------------------------------------------------------------
# Options: a frozen dataclass for each concern. A field made by `option` is a flag, with its help, default and check,
# and an entry of the checkpoint; nothing else needs to be told of it.


class Check(NamedTuple):
    """What a value must be: a predicate, and how the predicate reads after "must"."""

    holds: Callable
    text: str


POSITIVE = Check(lambda x: 0 < x < math.inf, "be positive")
NOT_NEGATIVE = Check(lambda x: 0 <= x < math.inf, "be 0 or positive")
AT_LEAST_1 = Check(lambda x: x >= 1, "be at least 1")
SHARE = Check(lambda x: 0 <= x <= 1, "lie in [0, 1]")
BELOW_1 = Check(lambda x: 0 <= x < 1, "lie in [0, 1)")


def option(
    default,
    help: str,
    *,
    choices: Collection | None = None,
    kind: Callable | None = None,
    metavar: str | None = None,
    switch: bool = False,
    check: Check | None = None,
    changeable: bool = False,
    bare: Any = None,
) -> dataclasses.Field:
    """A field of an Options class.

    Args: default, help, choices, metavar: of the flag --<field name>; kind: argparse type where the field's own type
        takes too much; switch: of a bool, whether the flag can only set it; check: a Check of the value; changeable:
        whether it may be another when a run is resumed; bare: what the flag means without a value, None: it needs one.
    """
    about = {"help": help, "choices": choices, "kind": kind, "metavar": metavar, "switch": switch, "bare": bare}
    return dataclasses.field(default=default, metadata=about | {"check": check, "changeable": changeable})


class Options:
    """Base of the frozen dataclasses that hold options. `title`: of their flags in --help.

    Raises, when one is made: UserError for a value that its check does not hold for.
    """

    title = ""

    def __post_init__(self):
        for field in self.fields():
            value, check = getattr(self, field.name), field.metadata["check"]
            if check and value is not None and not check.holds(value):
                raise UserError(f"--{field.name} {value}: must {check.text}")

    @classmethod
    def fields(cls) -> list[dataclasses.Field]:
        """The dataclass fields that are flags."""
        return [field for field in dataclasses.fields(cls) if "help" in field.metadata]

    @classmethod
    def add_to(
        cls, parser: argparse.ArgumentParser | argparse._ArgumentGroup, only: Collection[str] | None = None, **defaults
    ):
        """Add a flag for each field, or for those named in `only`; `defaults`: others than the fields' own.

        Args: parser: an ArgumentParser, which gets a group of this title, or such a group. Returns: the group.
        """
        group = parser.add_argument_group(cls.title) if isinstance(parser, argparse.ArgumentParser) else parser
        for field in cls.fields():
            if only is None or field.name in only:
                default, text = defaults.get(field.name, field.default), field.metadata["help"]
                group.add_argument(f"--{field.name}", default=default, help=text, **_argument_type(field))
        return group

    @classmethod
    def of(cls, values: argparse.Namespace | dict, **others):
        """From parsed flags (a namespace or a dict by name) and what is no flag; absent fields have their default."""
        values = values if isinstance(values, dict) else vars(values)
        return cls(**{field.name: values[field.name] for field in cls.fields() if field.name in values}, **others)

    @classmethod
    def changeable(cls) -> set[str]:
        """Names of the fields that may change when a run is resumed."""
        return {field.name for field in cls.fields() if field.metadata["changeable"]}

    def record(self) -> dict:
        """Values by name, as JSON and torch.load(weights_only=True) take them."""
        return plain({field.name: getattr(self, field.name) for field in self.fields()})


def plain(values: dict) -> dict:
    """A dict with lists instead of tuples."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _argument_type(field):
    """Keywords of add_argument that follow from a field's type."""
    if field.type is bool:
        return {"action": "store_true" if field.metadata["switch"] else argparse.BooleanOptionalAction}
    if field.type is tuple:
        return {"type": field.metadata["kind"] or number_list, "metavar": field.metadata["metavar"] or "N-N"}
    if field.type == tuple[str, ...]:
        return {"nargs": "+", "type": field.metadata["kind"], "metavar": field.metadata["metavar"]}
    if field.type == tuple[float, ...]:
        return {"type": field.metadata["kind"], "metavar": field.metadata["metavar"]}
    own = next(kind for kind in (typing.get_args(field.type) or (field.type,)) if kind is not NoneType)
    names = {name: field.metadata[name] for name in ("choices", "metavar") if field.metadata[name] is not None}
    bare = field.metadata["bare"]
    return {"type": field.metadata["kind"] or own} | names | ({} if bare is None else {"nargs": "?", "const": bare})


# ---------------------------------------------------------------------------------------------------------------------
# Running a script


def run_main(main: Callable[[], None]) -> None:
    """Run a script's `main()`: bad input ends in one line and status 2, Ctrl-C in one line and status 130.

    SIGTERM and SIGHUP end it with 128 + their number, and temporary files are removed on the way. What it prints
    appears line by line, in a log file too; letters that the locale does not have are escaped.
    """
    warnings.formatwarning = _one_line_warning
    _open_streams()
    if not is_rank():  # one that waits for others would not get to it: torchrun's are ended at once
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP, and so do we then
                signal.signal(number, _exit_by_signal)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        main()
    except LostProcess as error:
        _exit_with_line(str(error), only_if_first=True)
    except UserError as error:
        _exit_with_line(str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _exit_with_line(
            f"out of memory ({first_line(error)[:200]}); lower --batch_size (in training, more accumulations make up "
            "for it), --metric_batch_size or --bn_batch_size, or the model"
        )
    except BrokenPipeError:  # the reader of our output (head, less) has gone away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:  # a disk can fill up under any write, a name be too long in any flag
        if error.errno == errno.ENAMETOOLONG:
            _exit_with_line(f"{error.filename}: longer than a name can be")
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _exit_with_line(f"the disk is full ({error.filename or error.strerror})")
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends at once, without a traceback
        print(f"\n{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:  # a fault of ours, whose last line is not to drown in what other processes say of it
        if is_rank():
            traceback.print_exc()
            _tell(f"{Path(sys.argv[0]).name}: {type(error).__name__}: {printable(str(error))}")
            sys.exit(1)
        raise


def _exit_by_signal(number, frame):
    """End as by an error, so that what is temporary is removed; the forks of this process end with it."""
    if os.getpid() != MAIN_PROCESS:
        os._exit(128 + number)
    signal.signal(number, signal.SIG_DFL)  # once more ends at once
    sys.exit(128 + number)


def _open_streams():
    """Have all three standard streams, closed ones as /dev/null: no file opened later shall be taken for one."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if name == "stdin" else "w", closefd=False))  # noqa: SIM115


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Whatever becomes of the standard streams (`| head`, a closed terminal, a full disk), printing raises nothing."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_LastingStream(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _LastingStream:
    """A text stream, or nothing, from where it fails on."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._lasting("write", text) or len(text)

    def flush(self) -> None:
        self._lasting("flush")

    def _lasting(self, name, *arguments):
        try:
            return getattr(self._stream, name)(*arguments)
        except (OSError, ValueError):  # the latter of a closed one
            with contextlib.suppress(OSError, ValueError):  # what it still holds goes nowhere, also at the exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            self._stream = open(os.devnull, "w")  # noqa: SIM115  (open for the life of the process)


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python, numpy or PyTorch, which has no class for it on the CPU, could not get memory."""
    text = str(error)
    of_torch = type(error).__name__ == "OutOfMemoryError" or "allocate memory" in text or "not enough memory" in text
    return isinstance(error, MemoryError) or of_torch


def _one_line_warning(message, category, filename, lineno, line=None, default=warnings.formatwarning):
    """A warning as text; one of the project's own is for the user, who has no use for the line of code."""
    own = category is UserWarning and Path(filename).is_relative_to(ROOT) and ".venv" not in Path(filename).parts
    return f"warning: {printable(str(message))}\n" if own else default(message, category, filename, lineno, line)


def _exit_with_line(text, only_if_first=False):
    _tell(f"{Path(sys.argv[0]).name}: error: {printable(text)}", only_if_first)
    sys.exit(2)


def _tell(line, only_if_first=False):
    """Print the line that this process ends with.

    Of torchrun's ranks, what several on a machine have to say alike is said once, and what was said first comes once
    more when torchrun is done with its own account of it. only_if_first: say nothing after another's line.
    """
    before = _said_before(line) if is_rank() else None
    if before == line or (before and only_if_first):
        return
    text = line if is_main_process() else f"rank {os.environ['RANK']}: {line}"
    print(text, file=sys.stderr)
    if before is None:
        say_last(text)


def say_last(line: str) -> None:
    """In a rank of torchrun's: have a line come when torchrun is done with its own account of how its ranks ended."""
    if _ranks_folder():
        about = [str(os.getppid()), line[:10000]]
        nothing = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        subprocess.Popen([sys.executable, "-SEc", LAST_WORD, *about], start_new_session=True, **nothing)


# Of a process of its own: torchrun's end, which comes after that of its ranks.
LAST_WORD = """
import contextlib, os, select, sys
with contextlib.suppress(OSError):  # it has ended already
    select.select([os.pidfd_open(int(sys.argv[1]))], [], [], 120)
print(sys.argv[2], file=sys.stderr)
"""


def _ranks_folder():
    """The folder that torchrun has made for what this rank reports, in one for all ranks of the machine; or None."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE") if is_rank() else None
    return Path(path).parent if path else None


def _said_before(line):
    """What a rank of this machine has ended with before; None where this is the first, and noted."""
    folder = _ranks_folder()
    try:
        (folder / "line").write_text(line, encoding="utf-8")
        os.link(folder / "line", folder.parent / "first_line")  # whole, and by one rank alone
    except FileExistsError:
        return (folder.parent / "first_line").read_text(encoding="utf-8")
    except (TypeError, OSError):  # no such folder
        return None


def bar_interval() -> dict:
    """Keyword for tqdm: often on a terminal, seldom where every refresh becomes a line of a log file."""
    return {"mininterval": 0.2 if sys.stderr.isatty() else 15}


def is_main_process() -> bool:
    """Whether this is the process that speaks to the user: the only one, or rank 0 of torchrun's."""
    return not is_rank() or os.environ["RANK"] == "0"


def is_rank() -> bool:
    """Whether torchrun has started this process as one of its ranks.

    All of its variables tell: some clusters set RANK for every job, which is no reason to be silent, or to wait.
    """
    return os.environ.keys() >= TORCHRUN_VARIABLES


# ---------------------------------------------------------------------------------------------------------------------
# Text


def printable(text: str) -> str:
    """Any name, of a class or a file, as one line to be read: line breaks, control characters and bytes that are no
    text are escaped. Bytes that were UTF-8 in a locale that could not read them are letters again.
    """
    with contextlib.suppress(UnicodeEncodeError):  # half a letter of UTF-16
        text = text.encode(errors="surrogateescape").decode(errors="surrogateescape")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its name where it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]


def numbered(c: int, class_names: Sequence[str] | None = None) -> str:
    """A class's number and name, printable; the number alone where that is its name, or where there are no names."""
    name = printable(class_names[c]) if class_names else str(c)
    return name if name == str(c) else f"{c} {name}".strip()


def counted(number: int, noun: str) -> str:
    """A number of things: 1 class, 2 classes, 1,797 images."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def duration(seconds: float) -> str:
    """A time as people say it: in seconds, minutes, hours or days, to three figures."""
    for unit, length in (("day", 24 * 60 * 60), ("hour", 60 * 60), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}s"
    return f"{seconds:.3g} seconds"


def listed(names: Sequence[str], most: int = 6) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# ---------------------------------------------------------------------------------------------------------------------
# Randomness that does not depend on accident

# Every use of a seed has a stream of its own, so that no two ever share their draws. The numbers stand for the stream,
# `...` for the counters of `rng`; they are never changed, since results would change with them.
STREAMS = {
    "z": (1, ...),  # noise of a pass in training: step, pass within the step
    "y": (2, ...),  # classes of a pass: step, pass
    "order": (3, ...),  # of the training images: epoch
    "flip": (4, ...),  # of the real images of a pass: step, pass
    "dequantise": (5, ...),  # noise on the real images of a pass: step, pass
    "sample_z": (6, ...),  # noise of a sample: its number
    "sample_y": (6, ..., 1),  # random class of a sample: its number
    "sample_turn": (6, ..., 2),  # order of the classes in a turn of samples: number of the turn
    "real_features": (7, 0),  # which real features are kept as reference
    "is_split": (7, 1),  # which split of the Inception score a real image is in
    "kid": (7, 2),  # subsets of KID
    "reference_subset": (7, 3),  # which real images are measured, with --reference_num
    "evaluated_images": (7, 20),  # which images of files are evaluated, in which order
    "classifier_split": (8, 0, ...),  # images held out of the classifier's fit: class
    "classifier_init": (8, 1),  # its initial weights
    "classifier_epoch": (8, 2, ...),  # order and shifts of its images: epoch
    "crop": (9, ...),  # of the real images of a pass: step, pass
    "standing_z": (10, ...),  # noise behind standing statistics: number of the image
    "standing_y": (10, ..., 1),  # their classes: number of the image
    "shapes": (30, ...),  # what an image of the data set of shapes shows: its number
    "augment": (40, ...),  # of what D sees: step, pass, reals or fakes, kind of number
    "consistency": (41, ...),  # how far images move for --cr and --bcr: as augment
    "near_z": (42, ...),  # z near those of a pass: as augment
    "data_fraction": (44, ...),  # which images of a class are trained on: class
    "difference": (43, ...),  # images near those of a pass, for --r1_approx: as augment
}


def rng(seed: int, stream: str, *counters: int) -> np.random.Generator:
    """A CPU random generator that is a pure function of (seed, stream, counters).

    Args: seed: int >= 0; stream: a key of STREAMS; counters: ints >= 0, where the stream has a place for them.
    Returns: numpy Generator. Streams with other seeds, names or counters are independent of it.
    """
    number, *parts = STREAMS[stream]
    place = parts.index(...) if ... in parts else len(parts)
    if counters and place == len(parts):
        raise ValueError(f"the random stream {stream} takes no counters")
    counters = (*parts[:place], *counters, *parts[place + 1 :])
    # The number of counters is in the seed because numpy pads seeds with zeros: (3,) and (3, 0) would be the same.
    return np.random.default_rng([seed, number, len(counters), *counters])


# ---------------------------------------------------------------------------------------------------------------------
# Files


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it is synced and takes the name `path`.

    On any error the temporary file is removed and whatever `path` held before is still there.
    Raises: CannotWrite, also where the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        name = {"prefix": f".{path.name[:40]}.", "suffix": path.suffix[-20:]}  # a name can be as long as is allowed
        handle, temporary = tempfile.mkstemp(**name, dir=path.parent)
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror}") from error
    os.close(handle)
    os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only their owner can read
    try:
        yield Path(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def existing_parent(path: str | Path) -> Path:
    """The path itself if there is such a file or folder, else the nearest folder above it that there is."""
    path = Path(path)
    return next(place for place in (path, *path.parents) if place.exists())


def check_writable(folder: str | Path) -> None:
    """Raise UserError unless files can be made in a folder, which need not be there yet, nor is made."""
    try:
        with tempfile.NamedTemporaryFile(prefix=".writable.", dir=existing_parent(folder)):
            pass
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from error


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save_json(obj, path: str | Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(obj, indent=1) + "\n")


def load_json(path: str | Path):
    """The content of a JSON file. Raises: UserError naming the file if it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))  # whatever the locale; Windows marks the start
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from error


def load_npz(path: str | Path, only: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an npz file, by name, all or those named, in this machine's byte order; no pickled objects.

    Raises: UserError naming the file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in (only or file.files) if key in file.files}
            return {key: array.astype(array.dtype.newbyteorder("="), copy=False) for key, array in arrays.items()}
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except MemoryError as error:
        raise UserError(f"{path} says that it holds more than fits into memory ({error}): damaged?") from error
    except (TypeError, AttributeError, *DAMAGED_NPZ) as error:  # the first two: a single array, an .npy file
        raise UserError(f"{path} is not a readable npz file (damaged or another format)") from error


def sha256(path: str | Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
