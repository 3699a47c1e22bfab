"""`train.py --dry_run`: what a command needs and costs, without training: flags, data, weights, sizes, memory, time."""

import os
import re
import sys
import time
from types import SimpleNamespace

import torch

import BigGAN
import inception_utils
import utils
from image_datasets import loading
from metrics import classifier, networks
from metrics.reference import load_reference
from selection.scores import embedding_weights, load_embedding
from training import losses, model_size, optimizers
from training.plan import check_batches, images_per_step, make_config, make_plan, run_length

MAX_SECONDS = 20  # of the passes of a batch size; the time of larger batches follows from it
DAY = 24 * 60 * 60


def add_dry_run_args(parser):
    """Add the flags of a dry run."""
    group = parser.add_argument_group("dry run")
    group.add_argument(
        "--dry_run", action="store_true", help="check flags, data and weights, print sizes and memory, and stop"
    )
    group.add_argument(
        "--dry_run_time", action="store_true", help="the same, and time the largest batch that fits on this machine"
    )


def dry_run(args, d_step, g_step):
    """Print what is missing and what the command would cost; ends with status 2 if anything is missing.

    Args: args: parsed flags of train.py; d_step, g_step: its steps, which --dry_run_time times.
    """
    problems = []
    plan = _attempt(problems, make_plan, args)
    _attempt(problems, check_batches, args, _num_processes(args))
    if args.test_every:
        _check_metrics(problems, args, plan)
    if args.retention_ratio < 100:
        _check_embedding(problems, args)
    config, num_images = (plan.config, _num_images(args, plan)) if plan else (_attempt([], assumed_config, args), None)
    for note in [*(args.legacy_notes or []), *(config.notes() if config else [])]:
        print(f"note: {note}")
    if config:
        origin = plan.dataset.path if plan else f"no data, its size assumed from the name {args.dataset}"
        print(f"{config.resolution}x{config.resolution} images, {config.n_classes} classes ({origin})")
        if num_images and args.retention_ratio < 100:
            of = f"{len(plan.dataset):,} images ({args.embedding}, {args.density_measure})"
            print(f"instance selection keeps about {num_images:,} of {of}; their scores are not computed here")
        _print_sizes(args, config, num_images)
    for problem in problems:
        print(f"train.py: error: {problem}", file=sys.stderr)
    if problems:
        sys.exit(2)
    if args.dry_run_time:
        _print_time(args, config, num_images, d_step, g_step)
    print("dry run: nothing is missing")


def _attempt(problems, function, *arguments):
    """The function's result, or None after noting the one line of its UserError."""
    try:
        return function(*arguments)
    except utils.UserError as error:
        problems.append(str(error))
        return None


def _num_processes(args):
    return max(1, torch.cuda.device_count()) if args.parallel else 1


def _check_metrics(problems, args, plan):
    """Note what evaluation lacks: the feature network, the reference statistics."""
    reference = loading.reference_name(args.dataset, args.data_root, args.crop_size)
    name, rule = args.feature_network, args.resize or networks.NETWORK_RESIZE[args.feature_network][0]
    arguments = name, args.data_root, reference, args.inception_weights, args.resize
    network = _attempt(problems, networks.load_feature_network, *arguments)
    if network and plan and name == "classifier":
        fitted = classifier.classifier_path(args.data_root, reference)
        _attempt(problems, classifier.check_fits, network, plan.reference, fitted)
    statistics = inception_utils.evaluation_reference_path(args, reference, name, rule)
    if network or not statistics.exists():
        unknown = SimpleNamespace(name=name, resize=rule, feature_dim=2048, weights_hash="unknown")
        _attempt(problems, load_reference, statistics, network or unknown)


def _check_embedding(problems, args):
    """Note what instance selection lacks: the network that embeds the images."""
    name = loading.dataset_path(args.dataset, args.data_root).stem
    arguments = args.embedding, args.data_root, name, embedding_weights(args)
    _attempt(problems, load_embedding, *arguments)


def _num_images(args, plan):
    """How many images training will see, as near as can be told without their scores."""
    return max(round(len(plan.dataset) * args.retention_ratio / 100), 1)


def assumed_config(args):
    """The config for data that is missing, where its name says its size: I128 and C10 of the reference family.

    Raises: utils.UserError for another name.
    """
    known = re.fullmatch(r"I(\d+)(_hdf5)?|C(10)(_hdf5)?", args.dataset)
    if not known:
        raise utils.UserError(f"--dataset {args.dataset}: size unknown")
    return make_config(args, args.crop_size or int(known[1] or 32), 1000 if known[1] else 10)


def _print_sizes(args, config, num_images):
    """Parameters, multiply-adds and memory of the networks and of the whole run."""
    macs = model_size.multiply_adds(config, fused=True)
    for name, network, count in zip("GD", model_size.build_on_meta(config), macs, strict=True):
        print(f"{name}: {model_size.num_parameters(network):,} parameters, {count:,} multiply-adds an image")
    D_images, G_images = images_per_step(args), _G_batch_size(args) * args.num_G_accumulations
    # A backward costs twice its forward. D's step: G forward, D on a real and a fake; G's step: both networks, of D the
    # gradients of its input only.
    step = D_images * (macs[0] + 6 * macs[1]) + G_images * (3 * macs[0] + 2 * macs[1])
    line = f"a step of G with {args.num_D_steps} of D: {D_images} real images, {step:.3g} multiply-adds"
    if num_images or args.num_iters:
        steps = _num_steps(args, num_images)
        line += f"; {steps:,} steps: {steps * step:.3g}"
    print(line)
    state, *per_image = model_size.training_bytes(config, args.ema)
    largest = max(args.batch_size * per_image[0], _G_batch_size(args) * per_image[1])
    processes = sorted({1, 2, 4, 8, _num_processes(args)})
    needs = ", ".join(f"{n}: {(state + largest / n) / 2**30:.1f}" for n in processes)
    print(
        f"memory estimate, GiB for each of so many processes: {needs}\n"
        f"  (float32: {state / 2**30:.2f} for weights, gradients, Adam and average, then what autograd keeps for the "
        "larger pass,\n  counted on the meta device; workspaces of convolutions and fragmentation come on top)"
    )


def _G_batch_size(args):
    return args.G_batch_size or args.batch_size


def _num_steps(args, num_images):
    return run_length(args, num_images) if num_images else args.num_iters


# ---------------------------------------------------------------------------------------------------------------------
# Time


def _print_time(args, config, num_images, d_step, g_step):
    device = utils.resolve_device(args.device)
    batch, d_seconds, g_seconds, reason = time_passes(args, config, device, d_step, g_step)
    D_passes = args.num_D_steps * args.num_D_accumulations * args.batch_size / batch
    G_passes = args.num_G_accumulations * _G_batch_size(args) / batch
    seconds = D_passes * d_seconds + G_passes * g_seconds
    steps = _num_steps(args, num_images)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(
        f"timed on {name}: {batch} images a pass ({reason}), {d_seconds:.3g} s a pass of D, {g_seconds:.3g} s of G\n"
        f"extrapolated from that: {seconds:.3g} s a step, {steps * seconds / DAY:.3g} days for {steps:,} steps on one "
        "such device, without evaluation and reading of data"
    )


def time_passes(args, config, device, d_step, g_step):
    """Time one step of D and of G on ever larger batches, until one does not fit or takes too long.

    Returns: images of the largest batch that was timed, seconds of a step of D and of G on it, why it was no larger.
    Raises: utils.UserError if not even one image fits.
    """
    state, *per_image = model_size.training_bytes(config, args.ema)
    time_pass = _pass_timer(args, config, device, d_step, g_step)
    batch, timed, reason = 1, None, "the whole batch"
    while timed is None or timed[0] < args.batch_size:
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
        batch = min(2 * batch, args.batch_size)
    if timed is None:
        raise utils.UserError(f"--dry_run_time: not even one image fits on {device}")
    return *timed, reason


def _pass_timer(args, config, device, d_step, g_step):
    """A function from a number of images to the seconds of a step of D and of a step of G with a pass of so many."""
    G, D = (net.to(device, memory_format=torch.channels_last) for net in BigGAN.build(config))
    opt_G, opt_D = optimizers.make_optimizers(G, D, args)
    d_loss, g_loss = losses.LOSSES[args.loss]

    def time_pass(batch):
        x = torch.rand(batch, 3, config.resolution, config.resolution, device=device) * 2 - 1
        z = torch.randn(batch, config.dim_z, device=device)
        y = torch.arange(batch, device=device) % config.n_classes
        for _ in range(2):  # the first also chooses algorithms and fills the allocator
            start = _now(device)
            d_step(G, D, D, opt_D, [(x, y, z, y)], 1, args.D_ortho, d_loss)
            middle = _now(device)
            g_step(G, D, G, opt_G, [(z, y)], 1, args.G_ortho, g_loss)
            end = _now(device)
        return middle - start, end - middle

    return time_pass


def _now(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _free_memory():
    """Bytes of memory that are free on this machine."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
