"""How this process keeps memory."""

import contextlib
import ctypes
import sys

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
