"""One side of bench_step.py: networks in a process of their own, ours or the plain twins, that do as they are told."""

import contextlib
import copy
import itertools
import math
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
from torch.utils.flop_counter import FlopCounterMode

import utils
from benchmarks import plain_twins
from sampling.generate import make_images
from torch_utils.distributed import device_name, resolve_device
from torch_utils.memory import keep_freed_blocks
from torch_utils.mixed_precision import PrecisionOptions, compilation
from torch_utils.precision import AMP
from training.logs import peak_memory_mb
from training.options import TrainOptions
from training.plan import make_config
from training.state import TrainingState
from training.steps import d_step, g_step

SHORTEST = 0.3  # seconds: what is faster is timed several times in a row
NUM_CLASSES = 1000  # as ImageNet
ROWS = 15  # of a profile


@dataclass(frozen=True)
class Case:
    """A model, by the flags of train.py that make it, and the images of a batch."""

    name: str
    resolution: int
    flags: tuple[str, ...]
    batch_size: int


@dataclass(frozen=True)
class How:
    """How both sides compute; the plain one neither compiles nor leaves float32."""

    device: str = "auto"
    amp: str = "off"
    tf32: bool = True
    compile: bool = False

    @property
    def precision(self) -> PrecisionOptions:
        return PrecisionOptions(amp=self.amp, tf32=self.tf32, compile=self.compile)


class Side:
    """Networks, optimizers and the moving average of a Case, and one batch that every step sees."""

    def __init__(self, case: Case, how: How, plain: bool):
        self.device = resolve_device(how.device)
        how = How(how.device, tf32=how.tf32) if plain else how
        self.batch_size, self.compile = case.batch_size, how.compile
        self.before_mb = peak_memory_mb(self.device)  # on a CPU: modules, mostly
        options = _options(case.flags)
        torch.manual_seed(0)
        self.state = TrainingState(make_config(options, case.resolution, NUM_CLASSES), options, self.device)
        if plain:
            _make_plain(self.state, options)
        how.precision.apply(self.state.G, self.state.D, self.state.average.module)
        self.state.scaler_G, self.state.scaler_D = (how.precision.scaler(self.device) for _ in range(2))
        config = self.state.G.config
        g = torch.Generator().manual_seed(1)
        x = torch.rand(case.batch_size, 3, case.resolution, case.resolution, generator=g) * 2 - 1
        z = torch.randn(case.batch_size, config.dim_z, generator=g)
        self.x, self.z, self.y = (t.to(self.device) for t in (x, z, torch.arange(case.batch_size) % NUM_CLASSES))
        # as BigGAN.load_generator, which sample.py calls
        self.sampled = copy.deepcopy(self.state.average.module).to(memory_format=torch.contiguous_format)
        self.sampled.eval().requires_grad_(False)
        self.steps = itertools.count(1)

    def train(self) -> None:
        """One iteration: a step of D, one of G, the moving average."""
        state = self.state
        d_step(state.G, state.D, state.D, state.opt_D, [(self.x, self.y, self.z, self.y)], 1, 0, scaler=state.scaler_D)
        g_step(state.G, state.D, state.G, state.opt_G, [(self.z, self.y)], 1, 0, scaler=state.scaler_G)
        state.finish_step(next(self.steps))

    def sample(self) -> None:
        """A batch of images, in evaluation, as uint8."""
        make_images(self.sampled, self.z, self.y)

    def prepare(self, task: str) -> dict:
        """Count a task's multiply-adds for each image; be warm, and compiled where that is wanted."""
        function = getattr(self, task)
        with FlopCounterMode(display=False) as counter:
            function()
        prepared = {"multiply_adds": counter.get_total_flops() // 2 // self.batch_size, "first_seconds": None}
        if self.compile and task == "train":
            self.state.compile()
            with compilation(True):
                prepared["first_seconds"] = self._seconds(function)
        seconds = min(self._seconds(function) for _ in range(2))
        self.repeats = max(1, math.ceil(SHORTEST / seconds))
        return prepared

    def timed(self, task: str) -> float:
        """Seconds of a task."""
        function = getattr(self, task)

        def repeated():
            for _ in range(self.repeats):
                function()

        return self._seconds(repeated) / self.repeats

    def _seconds(self, function):
        self._wait()
        start = time.perf_counter()
        function()
        self._wait()
        return time.perf_counter() - start

    def _wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def memory_mb(self) -> int:
        """Peak so far in MiB, less what the process held before the networks; on a GPU since it was last asked for."""
        peak = peak_memory_mb(self.device) - self.before_mb
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        return peak

    def profile(self, task: str) -> list[dict]:
        """Where a task's time goes: operations with the most time of their own, their calls, seconds and shares."""
        from torch.profiler import ProfilerActivity, profile

        on_gpu = self.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with profile(activities=activities) as profiler:
            getattr(self, task)()
            self._wait()
        own = {
            e.key: (e.count, (e.self_device_time_total if on_gpu else e.self_cpu_time_total) / 1e6)
            for e in profiler.key_averages()
        }
        total = sum(seconds for _, seconds in own.values()) or 1
        top = sorted(own.items(), key=lambda item: -item[1][1])[:ROWS]
        return [{"name": n, "calls": c, "seconds": s, "share": s / total} for n, (c, s) in top if s > 0]


def machine(how: How) -> dict:
    """What it runs on, and the most multiply-adds a second that it does in products of square matrices, by type."""
    device = resolve_device(how.device)
    how.precision.apply()
    size = 8192 if device.type == "cuda" else 2048
    peaks = {str(dtype).removeprefix("torch."): _product_peak(device, dtype, size) for dtype in _types(how)}
    name, version = device_name(device), torch.__version__
    return {"device": name, "threads": torch.get_num_threads(), "torch": version, "peak_multiply_adds_per_s": peaks}


def _types(how):
    return dict.fromkeys((torch.float32, torch.bfloat16, AMP[how.amp] or torch.float32))


def _product_peak(device, dtype, size):
    a, b = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        c = a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
        del c
    return size**3 / min(seconds[1:])


def _options(flags):
    parser = utils.ArgumentParser("")
    TrainOptions.add_to(parser)
    return TrainOptions.of(vars(parser.parse_args(["--dataset", "none", "--ema", *flags])))


def _make_plain(state, options):
    """Plain layers in PyTorch's own memory format, optimizers and average that go from tensor to tensor."""
    plain_twins.make_plain(state.G, state.D)
    rates = options.optimizers
    for network in (state.G, state.D):
        network.to(memory_format=torch.contiguous_format)
    state.opt_G = plain_twins.PlainAdam(state.G.parameters(), lr=rates.G_lr, betas=(rates.G_B1, rates.G_B2))
    state.opt_D = plain_twins.PlainAdam(state.D.parameters(), lr=rates.D_lr, betas=(rates.D_B1, rates.D_B2))
    state.average = plain_twins.PlainAverage(state.G, options.ema.ema_decay, options.ema.ema_start)


def serve(connection: Connection, case: Case | None, how: How, plain: bool) -> None:
    """Do what comes through a connection, (method, arguments), until it ends; without a Case: `machine` alone.

    Answers are ("done", result), or ("failed", one line) for what bench_step.py can go on after.
    """
    torch.backends.cudnn.benchmark = True
    if not plain:
        keep_freed_blocks()
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        side = None
        while True:
            method, arguments = connection.recv()
            try:
                if case and side is None:
                    side = Side(case, how, plain)
                result = getattr(side, method)(*arguments) if case else machine(how)
                connection.send(("done", result))
            except torch.OutOfMemoryError:
                connection.send(("failed", "out of memory"))
            except utils.UserError as error:
                connection.send(("failed", str(error)))
    sys.exit(0)
