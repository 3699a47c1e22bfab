"""Train a class-conditional GAN. Running the same command again resumes the run.

    python train.py --dataset digits --feature_network classifier --ssm voxel --ema --num_iters 3000
    torchrun --nproc_per_node 8 train.py ...        (or --parallel: one process per visible GPU)

Everything a run writes is in runs/<experiment_name>/: config.json, log.jsonl, tensorboard/, samples/, curves.png,
report.html and weights/. A step is one update of G; step counts are completed steps, so step 0 is the untrained
network.
"""

import itertools
import os
import sys
from collections.abc import Callable
from contextlib import closing
from itertools import islice

import torch
from tqdm import tqdm

import utils
from image_datasets import doctor
from image_datasets.image_sets import ImageSet, fraction_of
from image_datasets.loading import BatchLoader
from selection.selection import select
from torch_utils import distributed
from torch_utils.distributed import Ranks, on_ranks
from torch_utils.memory import keep_freed_blocks
from torch_utils.mixed_precision import compilation
from training import finetune, intervals, match, messages, model_size, run_folder, session
from training.batches import Batches
from training.dry_run import dry_run, step_seconds
from training.logs import Speedometer
from training.optimizers import set_learning_rates
from training.options import TrainOptions
from training.plan import Command, Plan, about_run, begun_model, check_command
from training.run_lock import locked
from training.state import Run, TrainingState, begin
from training.steps import d_step, g_step


def parse_args(argv: list[str] | None = None) -> tuple[TrainOptions, finetune.Source | None]:
    """The options of a command, and the checkpoint of --init_from, whose model options stand for flags not given.

    A run that has begun needs that checkpoint no more, which may be gone.
    """
    parser = utils.ArgumentParser(__doc__.splitlines()[0])
    TrainOptions.add_to(parser)
    defaults, given = parser.parse_layers(match.joined(sys.argv[1:] if argv is None else argv))
    if not given.get("init_from"):
        return TrainOptions.of(defaults | given), None
    try:
        source = finetune.read_source(given["init_from"])
        return TrainOptions.of(defaults | source.model_options | given), source
    except utils.UserError:
        if begun := begun_model(TrainOptions.of(defaults | given)):
            return TrainOptions.of(defaults | begun | given), None
        raise


def train(options: TrainOptions, source: finetune.Source | None, ranks: Ranks, lock: Callable[[], None]) -> None:
    """lock: of `run_lock.locked`, in which this is called."""
    # Plan: everything that can be wrong with flags and files is found here, before anything is computed.
    command = check_command(options, source, ranks)
    plan, folder, measure = command.plan, command.folder, command.measure
    largest = max(options.batches.batch_size, options.batches.G_images)
    model_size.check_fits(plan.config, largest // ranks.world_size, ranks.device)
    options.batch_norm.check_fits(plan.config, ranks.device)
    content = on_ranks(ranks, lambda: doctor.introduce(plan.dataset))["content"]
    selection = select(options.selection, options.metrics, options.data.data_root, plan.dataset, content, ranks)
    kept = selection.subset if selection else plan.dataset
    # What D sees; the metrics compare with the whole data set.
    reals = fraction_of(kept, options.batches.data_fraction, options.run.seed)
    if ranks.is_main and len(reals) < len(kept):
        print(f"--data_fraction: training on {len(reals):,} of {utils.counted(len(kept), 'image')}")
    about = about_run(options, plan, measure, len(reals), content, selection and selection.record(), ranks)

    # Build; go on from the run's newest checkpoint, or start from another run's weights.
    torch.manual_seed(options.run.seed)  # of the initial weights; everything later draws from utils.rng
    state = TrainingState(plan.config, options, ranks.device)
    options.batch_statistics.apply(state.G, ranks)
    if options.precision.compile:
        state.compile()
    beginning = begin(state, options, about, folder, command.checkpoint, source, plan.class_rows)
    num_steps = options.run_length(len(reals), state.step, state.images_seen)
    on_ranks(ranks, lambda: prepare(options, command, state, num_steps, lock))
    if ranks.is_main:
        steps = messages.steps_text(state.step, num_steps, folder)
        messages.print_start(options, plan.dataset, state.G, state.D, steps, ranks)
    signal = None
    if state.step < num_steps or state.evaluating:
        if ranks.is_main:
            utils.save_json(about, folder / "config.json")
        run = Run(options, folder, about, measure, ranks)
        started = session.Start(beginning, command.checkpoint, source, plan.class_rows)
        signal = session.to_end(
            run,
            state,
            started,
            lambda logged: loop(logged, plan, state, reals, num_steps),
            lambda logged: intervals.save(logged, state, None),
        )
    if ranks.is_main and state.step < num_steps:
        print(stopped := f"stopped at step {state.step}; the same command goes on from there")
        utils.say_last(stopped)
    elif ranks.is_main:
        messages.print_end(folder, state.step)
    if state.step < num_steps:
        sys.exit(128 + signal)


def prepare(
    options: TrainOptions, command: Command, state: TrainingState, num_steps: int, lock: Callable[[], None]
) -> None:
    """Make the run folder ready, on rank 0: from here on a command leaves traces."""
    copies, from_scratch = options.reports.copies, options.run.from_scratch
    *sizes, averages = state.checkpoint_bytes()
    stored = options.ema.num_stored(state.step, num_steps) * averages
    run_folder.check_room(command.folder, state.step, copies, sizes, stored)
    for line in command.notes:
        print(f"note: {line}")
    run_folder.prepare(command.folder, from_scratch, state.step, command.passed_over, lock)


def loop(run: Run, plan: Plan, state: TrainingState, reals: ImageSet, num_steps: int) -> int | None:
    """Train on `reals` to step num_steps, or until a signal comes, whose number is returned."""
    options, steps, ranks, G, D = run.options, run.options.steps, run.ranks, state.G, state.D
    forward_G, forward_D = (distributed.data_parallel(net, ranks) for net in (G, D))
    batches, speed = make_batches(run, plan, state, reals), Speedometer(state.step, options.images_per_step)
    shown = {"disable": not ranks.is_main, "dynamic_ncols": True, **utils.bar_interval()}
    bar = tqdm(total=num_steps, initial=state.step, **shown)
    with closing(batches.loader), bar, distributed.StopSignal() as stop, compilation(options.precision.compile):
        stopped = False
        if state.evaluating:  # what the run was at when it ended
            due = intervals.due(options.reports, state.step, state.step == num_steps, False)
            stopped = intervals.pause(run, state, due, stop, bar)
        for step in range(first := state.step + 1, num_steps + 1):
            if stopped:
                break
            set_learning_rates(state.opt_G, state.opt_D, options.optimizers, step, state.watchdog.memory.lr_factor)
            draws = itertools.count()  # a number of its own for each pass within the step
            for _ in range(steps.num_D_steps):
                passes = batches.D_passes(step, islice(draws, steps.num_D_accumulations))
                terms = d_step(G, D, forward_D, state.opt_D, passes, *steps.of_D, *state.of_D)
            passes = batches.G_passes(step, islice(draws, steps.num_G_accumulations))
            terms |= g_step(G, D, forward_G, state.opt_G, passes, *steps.of_G, *state.of_G)
            state.finish_step(step)
            bar.update()

            if options.precision.compile and step == first:
                intervals.tell_compiled(speed, bar)
            intervals.watch(run, state, terms)
            stopped = stop.requested(ranks)
            due = intervals.due(options.reports, step, step == num_steps, stopped)
            if due.log or due.pause:
                intervals.watch_numbers(run, state)
            if due.log:
                intervals.log_losses(run, state, terms, speed.at(step), bar)
            if due.singular_values:
                intervals.log_singular_values(run, state)
            if options.ema.stores_at(step, step == num_steps):
                intervals.save_averages(run, state)
            if due.pause:
                stopped = intervals.pause(run, state, due, stop, bar)
                speed.restart(step)  # it is that of training alone
    return stop.received


def make_batches(run: Run, plan: Plan, state: TrainingState, reals: ImageSet) -> Batches:
    """What the steps after the state's see; its loader is to be closed."""
    options, ranks = run.options, run.ranks
    loader = BatchLoader(
        reals,
        options.batches.batch_size,
        options.run.seed,
        start=state.images_seen // options.batches.batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        num_workers=options.data.num_workers,
        pin_memory=ranks.device.type == "cuda",
    )
    rollbacks = len(state.watchdog.memory.rollbacks)
    which = options.batches, plan.config, options.data.crop_size, options.run.seed, ranks, loader, rollbacks
    return Batches(*which, regularised=state.regularisation is not None, paired=options.steps.paired)


def make_deterministic() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.enable_mem_efficient_sdp(False)  # attention without a deterministic backward
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def main(argv: list[str] | None = None) -> None:
    options, source = parse_args(argv)
    if options.dry_run.match is not None:
        match.match(options, argv, lambda *what: step_seconds(*what)[0])
        return
    if options.dry_run.asked_for:
        dry_run(options, source)
        return
    keep_freed_blocks()
    if options.run.deterministic:
        make_deterministic()
    torch.backends.cudnn.benchmark = options.precision.cudnn_benchmark and not options.run.deterministic
    if options.run.parallel:
        distributed.launch_per_gpu()
    folder = run_folder.path_of(options.run.runs_root, options.run_name)
    group = distributed.process_group(options.run.device, options.run.rank_timeout)
    with group as ranks, utils.lasting_output(), locked(folder, ranks) as lock:
        train(options, source, ranks, lock)


if __name__ == "__main__":
    utils.run_main(main)
