"""Processes that begin with the slow imports done, forked from one that has never run a backward.

A fork of a process that has cannot run one itself: autograd's threads do not survive. What such a process is to run
must be in a module of this folder, which it imports by name.
"""

import multiprocessing
import os
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
