"""`train.py --dry_run`: what a command needs and costs, without training: flags, data, weights, sizes, memory, time.

What can be wrong with a command is found by the functions that `train.py` itself calls (`check_command`, `begin`).
"""

import math
import os
import sys
import time
from types import SimpleNamespace

import torch

import utils
from image_datasets import doctor
from inception_utils import evaluation_reference_path
from metrics import networks
from metrics.reference import load_reference
from model_config import ModelConfig
from reports.events import change_text
from torch_utils.distributed import Ranks, device_name, resolve_device
from training import finetune, model_size, run_folder
from training.batches import Draw
from training.messages import notes, steps_text
from training.options import TrainOptions
from training.plan import about_run, assumed_config, check_command
from training.state import TrainingState, begin
from training.steps import d_step, g_step

MAX_SECONDS = 20  # of the passes of a batch size; the time of larger batches follows from it


def dry_run(options: TrainOptions, source: finetune.Source | None) -> None:
    """Print what is missing and what the command would cost; ends with status 2 if anything is missing."""
    problems = []

    def attempt(function, *arguments):
        """The function's result, or None after noting the one line of its UserError."""
        try:
            return function(*arguments)
        except utils.UserError as error:
            problems.append(str(error))

    attempt(resolve_device, options.run.device)
    attempt(options.batches.check_ranks, _num_processes(options))
    ranks = Ranks(0, 1, torch.device("cpu"))  # nothing is computed here
    command = check_command(options, source, ranks, attempt)
    plan = command.plan
    if options.reports.test_every and not command.measure:
        _check_statistics(problems, options, attempt)
    if not options.selection.keeps_all:
        weights = options.selection.weights(options.metrics)
        attempt(options.selection.load_network, options.data.data_root, options.data.path.stem, weights)
    config = plan.config if plan else _or_none(assumed_config, options)
    num_images = _num_images(options, plan) if plan else None
    for note in [*command.notes, *(notes(options, config) if config else options.legacy_notes or [])]:
        print(f"note: {note}")
    if config:
        origin = plan.dataset.path if plan else f"no data, its size assumed from the name {options.data.dataset}"
        classes = utils.counted(config.n_classes, "class")
        print(f"{config.resolution}x{config.resolution} images, {classes} ({origin})")
        if num_images and not options.selection.keeps_all:
            how = f"{options.selection.embedding}, {options.selection.density_measure}"
            images = utils.counted(len(plan.dataset), "image")
            print(f"instance selection keeps about {num_images:,} of {images} ({how}); scores are not computed here")
        _print_sizes(options, config, num_images)
    if command.folder and config:
        attempt(_print_disk, options, command, config, num_images)
    if plan and (source or command.checkpoint):
        attempt(_try_start, options, source, command, ranks)
    for problem in problems:
        print(f"train.py: error: {problem}", file=sys.stderr)
    if problems:
        sys.exit(2)
    if options.dry_run.dry_run_time:
        _print_time(options, config, num_images)
    print("dry run: nothing is missing")


def _or_none(function, *arguments):
    try:
        return function(*arguments)
    except utils.UserError:
        return None


def _num_processes(options):
    return max(1, torch.cuda.device_count()) if options.run.parallel else 1


def _check_statistics(problems, options, attempt):
    """Note that the reference statistics are missing where the feature network was, and they were not looked at."""
    metrics = options.metrics
    name, rule = metrics.feature_network, metrics.resize or networks.NETWORK_RESIZE[metrics.feature_network][0]
    path = evaluation_reference_path(metrics, options.data.data_root, options.data.reference_name, name, rule)
    if not path.exists() and not any(str(path) in problem for problem in problems):
        attempt(load_reference, path, SimpleNamespace(name=name, resize=rule, feature_dim=2048, weights_hash="unknown"))


def _print_disk(options, command, config, num_images):
    """What the checkpoints of the run take. Raises: utils.UserError where the disk has no room for them."""
    sizes = model_size.checkpoint_bytes(config, options.ema.number)
    full, best = options.reports.copies
    total = run_folder.room((full, best), sizes)
    print(
        f"disk: {sizes[0] / 2**20:,.1f} MiB a checkpoint, {sizes[1] / 2**20:,.1f} MiB a best one; up to "
        f"{total / 2**30:.2f} GiB for {full} and {best} of them and the one that is being written"
    )
    step = command.checkpoint["step"] if command.checkpoint else 0
    end = _num_steps(options, num_images) or 0
    one = len(options.ema.ema_power) * sizes[1]
    if one:
        number = options.ema.num_stored(0, end)
        print(
            f"disk: {one / 2**20:,.1f} MiB for power-law averages each time, every {options.ema.ema_power_every} "
            f"steps: {number * one / 2**30:.2f} GiB for {utils.counted(number, 'time')} in {utils.counted(end, 'step')}"
        )
    stored = options.ema.num_stored(step, end) * one
    run_folder.check_room(command.folder, step, options.reports.copies, sizes, stored)


def _try_start(options, source, command, ranks):
    """Start as the real command does, and say from where. Raises: utils.UserError where it could not."""
    plan, checkpoint = command.plan, command.checkpoint
    # Else which images are seen is not known here.
    whole = options.selection.keeps_all and options.batches.data_fraction == 1
    known = (len(plan.dataset) if whole else None, _kept_content(plan.dataset), None)
    about = about_run(options, plan, command.measure, *known, ranks)
    state = TrainingState(plan.config, options, ranks.device)
    report, changes = begin(state, options, about, command.folder, checkpoint, source, plan.class_rows)
    if report:
        print("\n".join(finetune.describe(source, report, plan.class_rows)))
    else:
        num_steps = options.run_length(len(plan.dataset), state.step, state.images_seen)
        print(steps_text(state.step, num_steps, command.folder))
    if changes:
        print(f"changed from step {state.step} on: {change_text(changes)}")


def _kept_content(dataset):
    """The hash of a data set's content where the doctor has examined it, else None: no pixels are read here."""
    findings = _or_none(utils.load_json, doctor.paths(dataset)[0])
    same = isinstance(findings, dict) and findings.get("key") == doctor.file_key(dataset)
    return findings.get("content") if same else None


def _num_images(options, plan):
    """How many images training will see, as near as can be told without their scores."""
    share = options.selection.retention_ratio / 100 * options.batches.data_fraction
    return max(round(len(plan.dataset) * share), 1)


def _print_sizes(options, config, num_images):
    """Parameters, multiply-adds and memory of the networks and of the whole run."""
    macs = model_size.multiply_adds(config, fused=True)
    for name, network, count in zip("GD", model_size.build_on_meta(config), macs, strict=True):
        print(f"{name}: {model_size.num_parameters(network):,} parameters, {count:,} multiply-adds an image")
    D_images = options.images_per_step
    step = options.step_multiply_adds(macs)
    num_D_steps = options.steps.num_D_steps
    line = f"a step of G with {num_D_steps} of D: {utils.counted(D_images, 'real image')}, {step:.3g} multiply-adds"
    if num_images or options.length.num_iters:
        steps = _num_steps(options, num_images)
        line += f"; {utils.counted(steps, 'step')}: {steps * step:.3g}"
    print(line)
    processes = sorted({1, 2, 4, 8, _num_processes(options)})
    needs = ", ".join(f"{n}: {training_memory(options, config, n):.1f}" for n in processes)
    state, *_ = model_size.training_bytes(config, options.ema.number)
    print(
        f"memory estimate, GiB for each of so many processes: {needs}\n"
        f"  (float32: {state / 2**30:.2f} for weights, gradients, Adam and average, then what autograd keeps for the "
        "larger pass,\n  counted on the meta device; workspaces of convolutions and fragmentation come on top)"
    )


def training_memory(options: TrainOptions, config: ModelConfig, num_processes: int = 1) -> float:
    """GiB that each of so many processes needs: the state, and what autograd keeps for the larger pass."""
    state, D_image, G_image = _training_bytes(options, config)
    largest = max(options.batches.batch_size * D_image, options.batches.G_images * G_image)
    return (state + largest / num_processes) / 2**30


def _training_bytes(options, config):
    """As `model_size.training_bytes`, with all images that techniques show; a gradient keeps what its forward does."""
    state, D_image, G_image = model_size.training_bytes(config, options.ema.number)
    asked = options.techniques
    images = math.ceil(asked.D_images()) * (1 + len(asked.penalties.exact))
    return state, D_image * images // 2, G_image * (2 if asked.penalties.zcr else 1)


def _num_steps(options, num_images):
    return options.run_length(num_images) if num_images else options.length.num_iters


# ---------------------------------------------------------------------------------------------------------------------
# Time


def _print_time(options, config, num_images):
    device = resolve_device(options.run.device)
    seconds, (batch, d_seconds, g_seconds, reason) = step_seconds(options, config, device)
    steps = _num_steps(options, num_images)
    threads = f", {utils.counted(torch.get_num_threads(), 'thread')}" if device.type == "cpu" else ""
    name = device_name(device) + threads
    print(
        f"timed on {name}: {utils.counted(batch, 'image')} a pass ({reason}), {d_seconds:.3g} s a pass of D, "
        f"{g_seconds:.3g} s of G\n"
        f"extrapolated from that: {seconds:.3g} s a step, {utils.duration(steps * seconds)} for "
        f"{utils.counted(steps, 'step')} on one such device, without evaluation and reading of data"
    )


def step_seconds(options: TrainOptions, config: ModelConfig, device: torch.device) -> tuple[float, tuple]:
    """Seconds of a step of G with its steps of D, extrapolated from what `time_passes` returns, and that."""
    timed = time_passes(options, config, device)
    batch, d_seconds, g_seconds, _ = timed
    D_passes = options.images_per_step / batch
    G_passes = options.steps.num_G_accumulations * options.batches.G_images / batch
    return D_passes * d_seconds + G_passes * g_seconds, timed


def time_passes(options: TrainOptions, config: ModelConfig, device: torch.device) -> tuple[int, float, float, str]:
    """Time one step of D and of G on ever larger batches, until one does not fit or takes too long.

    Returns: images of the largest batch that was timed, seconds of a step of D and of G on it, why it was no larger.
    Raises: utils.UserError if not even one image fits.
    """
    state, *per_image = _training_bytes(options, config)
    time_pass = _pass_timer(options, config, device)
    largest = options.batches.batch_size
    batch, timed, reason = 1, None, "the whole batch"
    while timed is None or timed[0] < largest:
        if device.type == "cpu" and state + batch * max(per_image) > _free_memory():
            reason = "more would not fit, by the estimate"
            break
        if timed and sum(timed[1:]) > MAX_SECONDS / 2:
            reason = "more would take too long to time here"
            break
        try:
            timed = batch, *time_pass(batch)
        except torch.OutOfMemoryError:
            reason = "the largest power of two that fits"
            break
        batch = min(2 * batch, largest)
    if timed is None:
        raise utils.UserError(f"--dry_run_time: not even one image fits on {device}")
    return *timed, reason


def _pass_timer(options, config, device):
    """A function from a number of images to the seconds of a step of D and of a step of G with a pass of so many."""
    state = TrainingState(config, options, device)
    G, D = state.G, state.D
    _, *D_how = options.steps.of_D
    _, *G_how = options.steps.of_G

    asked = options.techniques
    lazy = [getattr(asked.penalties, f"{name}_every") for name in asked.lazy]
    share = sum(1 / every for every in lazy) / len(lazy) if lazy else 1.0  # of the updates in which penalties are due

    def time_pass(batch):
        x = torch.rand(batch, 3, config.resolution, config.resolution, device=device) * 2 - 1
        z = torch.randn(batch, config.dim_z, device=device)
        y = torch.arange(batch, device=device) % config.n_classes

        def seconds(step, *networks_and_passes, how):
            for _ in range(2):  # the first also chooses algorithms and fills the allocator
                start = _now(device)
                step(*networks_and_passes, 1, *how, None, state.regularisation)
            return _now(device) - start

        def of_D(update):
            draw = Draw(options.run.seed, Ranks(0, 1, device), 1, update * asked.passes, batch)
            one = (x, y, z, y, *([draw] if asked.on else []))
            return seconds(d_step, G, D, D, state.opt_D, [one], how=D_how)

        draw = Draw(options.run.seed, Ranks(0, 1, device), 1, 0, batch)
        one = (z, y, *([x, draw] if asked.on else []))
        D_seconds = share * of_D(0) + ((1 - share) * of_D(1) if share < 1 else 0)
        return D_seconds, seconds(g_step, G, D, G, state.opt_G, [one], how=G_how)

    return time_pass


def _now(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _free_memory():
    """Bytes of memory that are free on this machine."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
