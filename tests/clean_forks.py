"""Processes that begin with the slow imports done, forked from one that has never run a backward.

A fork of a process that has cannot run one itself: autograd's threads do not survive. What such a process is to run
must be in a module of this folder, which it imports by name.
"""

import contextlib
import importlib
import multiprocessing
import os
import socket
import sys
from multiprocessing import forkserver
from unittest import mock

# What only runs import: optimizers at their first step, logs, curves.
IMPORTED_LATE = ("torch._dynamo", "torch.utils.tensorboard", "matplotlib.figure", "matplotlib.backends.backend_agg")


def context() -> multiprocessing.context.BaseContext:
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["train", *IMPORTED_LATE])
    # Until Python 3.12 the server is not told where modules are (python/cpython#117378).
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))):
        forkserver.ensure_running()
    return made


def as_rank(rank: int, environment: dict, module: str, function: str, out: str, arguments: tuple) -> None:
    """Be a rank of torchrun's, which calls a function with all that it prints in the file `out`."""
    with open(out, "w") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            getattr(importlib.import_module(module), function)(*arguments)


def run_ranks(folder, module: str, function: str, *arguments, world_size: int = 2, seconds: float = 120) -> list[str]:
    """Call a function of a module in so many ranks; what each of them has printed. An error there fails the test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    environment = address | {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size), "OMP_NUM_THREADS": "1"}
    files = [folder / f"rank_{rank}.txt" for rank in range(world_size)]
    processes = [
        context().Process(target=as_rank, args=(rank, environment, module, function, str(file), arguments))
        for rank, file in enumerate(files)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
    said = [file.read_text() for file in files]
    assert all(process.exitcode == 0 for process in processes), said
    return said
