"""Short runs that go back once and may be killed at a chosen moment, each in a process of its own: see soak.py."""

import os
import signal
import threading

import torch
from tqdm import tqdm

import train
from torch_utils import checkpoints
from training import intervals, logs, rollback

# Where a process may be killed: within some milliseconds after a call of this function has begun.
MOMENTS = {
    "saving": (checkpoints, "save"),
    "evaluating": (intervals, "evaluate_generator"),
    "logging": (logs.RunLog, "write"),
    "drawing": (intervals, "plot_curves"),
    "going back": (rollback, "_gone_back"),
}


def at_call(owner, name, number, action):
    """Have the call `number` of a function, counted from 1, begin with an action."""
    function, calls = getattr(owner, name), []

    def counted(*arguments, **keywords):
        calls.append(1)
        if len(calls) == number:
            action()
        return function(*arguments, **keywords)

    setattr(owner, name, counted)


def collapse_at_7():
    """The weights of D become infinite in step 7, unless the run has gone back already."""
    set_learning_rates, d_step, poisoned = train.set_learning_rates, train.d_step, []

    def look(opt_G, opt_D, options, step, factor):
        poisoned[:] = [step] if step == 7 and factor == 1 else []
        set_learning_rates(opt_G, opt_D, options, step, factor)

    def step_of_D(G, D, *arguments):
        terms = d_step(G, D, *arguments)
        if poisoned:
            D.linear.weight.data.fill_(torch.inf)
        return terms

    train.set_learning_rates, train.d_step = look, step_of_D


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def run(flags, moment=None, number=0, delay=0.0):
    """Train, quietly; where a moment is named, until `delay` seconds after its call `number` has begun."""
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1), os.dup2(nowhere.fileno(), 2)
    tqdm.set_lock(threading.RLock())  # by default one of all forks, which a killed one may hold for ever
    collapse_at_7()
    if moment:
        at_call(*MOMENTS[moment], number, threading.Timer(delay, kill).start)
    train.main(flags)
