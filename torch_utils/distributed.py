"""Processes that train or evaluate together: which one this is, what all of them agree on, signals.

Under torchrun each process is a rank of one group; alone it is rank 0 of 1, and nothing is communicated.
"""

import argparse
import contextlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from utils import UserError, counted, is_main_process, is_rank, option


@dataclass(frozen=True)
class Ranks:
    """This process among the run's: `rank` 0 to world_size - 1, and the device it computes on."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def slice(self, batch: Sequence) -> Sequence:
        """This rank's contiguous part of something drawn for the whole batch."""
        local = len(batch) // self.world_size
        return batch[self.rank * local : (self.rank + 1) * local]


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
    """Replace this process by one process per visible GPU, all running the same command, if there are several."""
    gpus = torch.cuda.device_count()
    if gpus > 1 and not is_rank():
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={gpus}"]
        os.execv(sys.executable, [*launcher, *sys.argv])


@contextlib.contextmanager
def process_group(device_name: str) -> Iterator[Ranks]:
    """Yield the Ranks of this process, joined to the others if torchrun started it: nccl on GPUs, gloo on the CPU."""
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
    # gloo beside nccl lets the ranks agree on small things without waiting for their GPUs
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    yield Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)
    torch.distributed.destroy_process_group()  # not after an error: nccl's ranks can only do it together


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
    if ranks.world_size > 1 and torch.distributed.is_initialized():  # a dry run only counts them
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

    def requested(self, ranks: Ranks) -> bool:
        """Whether any rank has received a signal: the same answer on all of them."""
        if ranks.world_size > 1:
            flag = torch.tensor([self.received or 0])
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            self.received = flag.item() or None
        return self.received is not None
