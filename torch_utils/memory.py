"""Memory: how this process keeps it, and whether there is enough."""

import contextlib
import ctypes
import os
import sys
from pathlib import Path

import torch

import utils

# Of mallopt (glibc's malloc.h)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_blocks() -> None:
    """Let freed memory stay with this process, on Linux with glibc; elsewhere nothing happens.

    By default glibc maps each large block afresh and gives it back when it is freed: on CPUs every feature map of every
    step is then cleared and mapped page by page once more. Kept blocks cost some memory, for fragments between them.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def total_bytes(device: torch.device) -> int:
    """The memory of a GPU, or of this machine: what a container may use where that is less."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such limit
        return machine


def check_fits(num_bytes: int, device: torch.device, flags: str, remedy: str) -> None:
    """Raise utils.UserError where at least so many bytes are needed, and the device has fewer.

    flags: what asks for them; remedy: what to do.
    """
    there = total_bytes(device)
    if num_bytes > there:
        where = "this GPU" if device.type == "cuda" else "this machine"
        raise utils.UserError(
            f"{flags}: at least {num_bytes / 2**30:,.0f} GiB of memory are needed, {where} has {there / 2**30:,.1f}; "
            f"{remedy}"
        )
