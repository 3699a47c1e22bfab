"""Processes that train or evaluate together: which one this is, what all of them agree on, signals.

Under torchrun each process is a rank of one group; alone it is rank 0 of 1, and nothing is communicated.
"""

import argparse
import contextlib
import ctypes
import logging
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from utils import LostProcess, UserError, counted, is_main_process, is_rank, option

TIMEOUT_MINUTES = 30  # rank 0 alone hashes data, measures and draws while the others wait
PR_SET_PDEATHSIG = 1  # of prctl (Linux's prctl.h)


@dataclass(frozen=True)
class Ranks:
    """This process among the run's: `rank` 0 to world_size - 1, and the device it computes on."""

    rank: int
    world_size: int
    device: torch.device
    timeout: timedelta = timedelta(minutes=TIMEOUT_MINUTES)  # of waiting for another

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def slice(self, batch: Sequence) -> Sequence:
        """This rank's contiguous part of something drawn for the whole batch."""
        local = len(batch) // self.world_size
        return batch[self.rank * local : (self.rank + 1) * local]

    def neighbours(self, number: int) -> torch.distributed.ProcessGroup | None:
        """The process group of those `number` consecutive ranks that this one is among; None for itself alone.

        All ranks call it, with a number that divides theirs.
        """
        if number == 1:
            return None
        if number == self.world_size:
            return torch.distributed.group.WORLD
        return torch.distributed.new_subgroups(number, timeout=self.timeout)[0]


DEVICE_HELP = "auto (the GPU if there is one), cpu, cuda or cuda:N"


def device_option() -> Any:
    """The field `device` of an Options class."""
    return option("auto", DEVICE_HELP, changeable=True)


def add_device_arg(parser: argparse.ArgumentParser) -> None:
    """--device of a script that has no Options for it."""
    parser.add_argument("--device", default="auto", help=DEVICE_HELP)


def resolve_device(name: str) -> torch.device:
    """The torch device of a `--device` value; `auto` is the GPU if there is one. Raises: UserError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: no such device here; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: this PyTorch sees no GPU; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {counted(torch.cuda.device_count(), 'GPU')}")
    return device


def device_name(device: torch.device) -> str:
    """The GPU's name, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def launch_per_gpu() -> None:
    """Have one process per visible GPU run this command, if there are several, and end with their status."""
    gpus = torch.cuda.device_count()
    if gpus > 1 and not is_rank():
        sys.exit(launch(gpus, sys.argv))


def launch(processes: int, command: Sequence[str]) -> int:
    """Run a script with its flags in so many processes, as torchrun does, but silently: the first failure's status.

    What a process ends with it says itself (`utils.run_main`).
    """
    from torch.distributed import run  # what starts processes need not be imported to compute
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run.main(["--standalone", f"--nproc_per_node={processes}", *command])
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        return status if status >= 0 else 128 - status
    except SignalException as error:
        return 128 + error.sigval
    return 0


def end_with_parent() -> None:
    """Have SIGTERM sent to this process when torchrun ends, however it does; on Linux."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def process_group(device_name: str, minutes: float = TIMEOUT_MINUTES) -> Iterator[Ranks]:
    """Yield the Ranks of this process, joined to the others if torchrun started it: nccl on GPUs, gloo on the CPU.

    minutes: that a rank waits for another. Raises: utils.LostProcess where another has ended, or waited for too long.
    """
    device = resolve_device(device_name)
    if not is_rank():
        yield Ranks(0, 1, device)
        return
    if device.type == "cuda":
        gpus, needed = torch.cuda.device_count(), int(os.environ["LOCAL_WORLD_SIZE"])
        if needed > gpus:
            raise UserError(f"--nproc_per_node {needed}: this machine has {counted(gpus, 'GPU')}")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    end_with_parent()
    timeout = timedelta(minutes=minutes)
    try:
        # gloo beside nccl lets the ranks agree on small things without waiting for their GPUs
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, timeout=timeout)
        yield Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), device, timeout)
    except RuntimeError as error:
        if loss := _lost(str(error), minutes, isinstance(error, torch.distributed.DistError)):
            raise LostProcess(loss) from error
        raise
    torch.distributed.destroy_process_group()  # not after an error: nccl's ranks can only do it together


def _lost(text, minutes, of_distributed):
    """What an error of communication says of another rank, None for another error."""
    if re.search("[Tt]imed out|[Tt]imeout", text) and (of_distributed or "gloo" in text):
        return f"another process has not answered for {minutes:g} minutes (--rank_timeout): it hangs, or works alone"
    if of_distributed or "gloo" in text:
        reason = re.sub(r"^\[.*?\] ", "", text.splitlines()[0]).split(". ")[0]  # without the place in gloo's code
        return f"another process has ended, without a word to this one ({reason})"
    return None


def on_ranks(ranks: Ranks, function: Callable, every: bool = False) -> Any:
    """`function()` on rank 0, or on every rank, with one outcome for all of them.

    A UserError of any rank is raised on all: that of the first such rank. Otherwise all return what rank 0 got, small
    and picklable; with `every` each returns its own. Within `function` no rank may wait for another.
    """
    result = problem = None
    if every or ranks.is_main:
        try:
            result = function()
        except UserError as error:
            problem = str(error)
    if ranks.world_size > 1:
        outcomes = [None] * ranks.world_size
        torch.distributed.all_gather_object(outcomes, (problem, None if every else result))
        problem = next((text for text, _ in outcomes if text is not None), None)
        result = result if every else outcomes[0][1]
    if problem is not None:
        raise UserError(problem)
    return result


def data_parallel(module: torch.nn.Module, ranks: Ranks) -> torch.nn.Module:
    """`module`, wrapped so that a backward averages its gradients over the ranks; buffers stay each rank's own."""
    if ranks.world_size == 1:
        return module
    device_ids = [ranks.device.index] if ranks.device.type == "cuda" else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`?broadcast_buffers", FutureWarning)  # deprecated only in the newest PyTorch
        return torch.nn.parallel.DistributedDataParallel(module, device_ids=device_ids, broadcast_buffers=False)


def mean_over_ranks(terms: dict[str, torch.Tensor], ranks: Ranks) -> dict[str, float]:
    """0-dim tensors as floats, each the mean over all ranks."""
    values = torch.stack(list(terms.values()))
    if ranks.world_size > 1:
        torch.distributed.all_reduce(values)
    return dict(zip(terms, (values / ranks.world_size).tolist(), strict=True))


def broadcast_buffers(modules: Iterable[torch.nn.Module], ranks: Ranks) -> None:
    """Give rank 0's buffers (batch-norm statistics, spectral-norm vectors) to all ranks."""
    if ranks.world_size > 1:
        for module in modules:
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, 0)


class StopSignal:
    """Signals that ask a process to end, as a flag that the loop asks for, so that a run ends between two steps.

    Ctrl-C (SIGINT), SIGTERM, a closed terminal (SIGHUP), and what schedulers send before they kill: SIGUSR1, SIGUSR2,
    SIGXCPU. A second one ends the process at once.
    """

    NUMBERS = tuple(getattr(signal, f"SIG{name}") for name in ("INT", "TERM", "HUP", "USR1", "USR2", "XCPU"))

    def __enter__(self):
        self.received = None
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # by nohup
        numbers = [number for number in self.NUMBERS if not (number == signal.SIGHUP and ignored)]
        self.previous = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def _receive(self, number, frame):
        if self.received is None:
            self.received, self.since = number, time.monotonic()
            if is_main_process():
                print("\nstopping after this step, with a checkpoint; once more stops at once", file=sys.stderr)
        elif not is_rank() or time.monotonic() - self.since > 2:  # torchrun passes on what a terminal has sent us too
            signal.signal(number, signal.SIG_DFL)  # nothing of Python's is run any more, nor printed
            signal.raise_signal(number)

    def __exit__(self, *error):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def requested(self, ranks: Ranks) -> bool:
        """Whether any rank has received a signal: the same answer on all of them."""
        if ranks.world_size > 1:
            flag = torch.tensor([self.received or 0])
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            self.received = flag.item() or None
        return self.received is not None
