"""Train a class-conditional GAN. Running the same command again resumes the run.

    python train.py --dataset digits --feature_network classifier --ssm voxel --ema --num_iters 3000
    torchrun --nproc_per_node 8 train.py ...        (or --parallel: one process per visible GPU)

Everything a run writes is in runs/<experiment_name>/: config.json, log.jsonl, tensorboard/, samples/, curves.png and
weights/. A step is one update of G; step counts are completed steps, so step 0 is the untrained network.
"""

import argparse
import itertools
import math
import os
import sys
import time
from contextlib import closing, nullcontext

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import BigGAN
import dataset_doctor
import evaluate
import inception_utils
import instance_selection
import sample
import utils
from image_datasets import loading
from metrics.features import make_measure
from model_config import add_model_args
from sampling import batch_norm
from selection.scores import add_selection_args
from torch_utils.images import save_image
from training import batches, dry_run, ema, finetune, legacy_flags, logs, losses, optimizers, run_folder
from training.messages import print_end, print_start
from training.plan import check_batches, images_per_step, make_plan, run_length


def parse_args(argv=None):
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.init_from:  # the model's options are those of its checkpoint, unless they are given
        parser.set_defaults(**finetune.read_source(args.init_from).model_options)
        args = parser.parse_args(argv)
    if args.dataset is None:
        parser.error("--dataset is required: the name of a data set made by make_hdf5.py")
    if args.class_mapping and not args.init_from:
        parser.error("--class_mapping goes with --init_from")
    if args.crop_size and not args.augment:
        parser.error("--crop_size goes with --augment: training crops at random, statistics at the centre")
    optimizers.check_optimizer_args(parser, args)
    if args.seed >= 2**63:
        parser.error(f"--seed {args.seed} must be below 2^63")
    for name in ("G_ortho", "D_ortho"):
        if not 0 <= getattr(args, name) < math.inf:
            parser.error(f"--{name} {getattr(args, name)} must be 0 or positive")
    if not 0 <= args.ema_decay < 1:
        parser.error(f"--ema_decay {args.ema_decay} must lie in [0, 1)")
    return args


def make_parser():
    parser = utils.ArgumentParser(__doc__.splitlines()[0])
    run = parser.add_argument_group("run")
    run.add_argument("--experiment_name", default="", help="name of the run folder; empty: made from the flags")
    run.add_argument("--name_suffix", default="", help="added to the name of the run folder")
    run.add_argument("--runs_root", default="runs", help="where run folders are")
    run.add_argument(
        "--from_scratch", action="store_true", help="move an earlier run of that name aside and start anew"
    )
    run.add_argument("--seed", type=utils.count, default=0, help="of the weights, noise, classes and order of images")
    run.add_argument("--deterministic", action="store_true", help="bit-equal results on CUDA too, slower")
    run.add_argument("--parallel", action="store_true", help="one process per visible GPU")
    utils.add_device_args(run)

    loading.add_crop_arg(loading.add_data_args(parser))
    batches.add_batch_args(parser)
    add_model_args(parser)
    finetune.add_finetune_args(parser)
    dry_run.add_dry_run_args(parser)

    length = parser.add_argument_group("length (the first that is reached ends the run)")
    length.add_argument("--num_iters", type=utils.positive_int, default=None, help="steps of G")
    length.add_argument(
        "--num_epochs", type=utils.positive_int, default=None, help="passes of D over the data; 100 if neither is given"
    )

    step = parser.add_argument_group("steps")
    step.add_argument("--loss", choices=tuple(losses.LOSSES), default="hinge", help="adversarial loss")
    step.add_argument("--num_D_steps", type=utils.positive_int, default=2, help="steps of D per step of G")
    step.add_argument("--num_G_accumulations", type=utils.positive_int, default=1, help="passes per step of G")
    step.add_argument("--num_D_accumulations", type=utils.positive_int, default=1, help="passes per step of D")
    for network in ("G", "D"):
        step.add_argument(f"--{network}_ortho", type=float, default=0.0, help="orthogonal regularisation; BigGAN: 1e-4")
    step.add_argument("--ema", action=argparse.BooleanOptionalAction, default=False, help="keep a moving average of G")
    step.add_argument("--ema_decay", type=float, default=0.9999, help="decay of the moving average")
    step.add_argument("--ema_start", type=utils.count, default=0, help="step until which the average is a plain copy")
    optimizers.add_optimizer_args(parser)

    add_selection_args(parser)
    inception_utils.add_metric_args(parser)
    batch_norm.add_bn_args(parser)
    report = parser.add_argument_group("reports")
    report.add_argument(
        "--test_every", type=utils.count, default=5000, help="steps between evaluations; 0: none at all"
    )
    report.add_argument(
        "--which_best", type=str.upper, default="IS", choices=run_folder.BEST, help="metric of the best checkpoint"
    )
    report.add_argument("--save_every", type=utils.positive_int, default=2000, help="steps between checkpoints")
    report.add_argument("--num_save_copies", type=utils.positive_int, default=2, help="newest checkpoints to keep")
    report.add_argument("--num_best_copies", type=utils.positive_int, default=2, help="newest best ones to keep")
    report.add_argument("--sample_every", type=utils.count, default=2000, help="steps between sheets; 0: only the last")
    report.add_argument("--log_every", type=utils.positive_int, default=50, help="steps between logged losses")
    report.add_argument(
        "--sv_log_interval",
        type=utils.count,
        default=0,
        help="steps between logs of the largest singular value of each layer with spectral norm; 0: none",
    )
    legacy_flags.add_legacy_args(parser)
    return parser


# ---------------------------------------------------------------------------------------------------------------------
# One step. `forward` is the network itself, or its DistributedDataParallel wrapper, which averages gradients.


def d_step(G, D, forward_D, optimizer, passes, num_passes, ortho, loss=losses.d_hinge):
    """One optimizer step of D over accumulated passes; returns the mean of each loss term (0-dim tensors).

    passes: iterator of (x (N,3,R,R) in [-1,1], y (N,), z (N,dim_z), fake y (N,)). Real and fake images share a forward,
    so that DistributedDataParallel and spectral norm see one per pass.
    """
    D.requires_grad_(True)
    optimizer.zero_grad(set_to_none=True)
    means = {}
    for i, (x, y, z, y_fake) in enumerate(passes):
        with torch.no_grad():
            fakes = G(z, y_fake)
        with _reduction(forward_D, i == num_passes - 1):
            logits = forward_D(torch.cat([x, fakes]), torch.cat([y, y_fake]))
            _backward(loss(*logits.split([len(x), len(fakes)])), num_passes, means)
    _add_orthogonal_gradient(D.parameters(), ortho)
    optimizer.step()
    return means


def g_step(G, D, forward_G, optimizer, passes, num_passes, ortho, loss=losses.g_hinge):
    """One optimizer step of G over accumulated passes of (z (N,dim_z), y (N,)); returns as `d_step`."""
    D.requires_grad_(False)
    optimizer.zero_grad(set_to_none=True)
    means = {}
    for i, (z, y) in enumerate(passes):
        with _reduction(forward_G, i == num_passes - 1):
            _backward(loss(D(forward_G(z, y), y)), num_passes, means)
    # As in BigGAN-PyTorch, the shared class embedding is not regularised.
    _add_orthogonal_gradient((p for name, p in G.named_parameters() if not name.startswith("shared.")), ortho)
    optimizer.step()
    return means


def _reduction(forward, last):
    """While gradients accumulate, they are not averaged over ranks: the last pass does it for all."""
    return nullcontext() if last or not isinstance(forward, DistributedDataParallel) else forward.no_sync()


def _backward(terms, num_passes, means):
    (sum(terms.values()) / num_passes).backward()
    for name, value in terms.items():
        means[name] = means.get(name, 0) + value.detach() / num_passes


def _add_orthogonal_gradient(parameters, strength):
    """Added after the passes: the penalty depends on the weights alone, so it is the same on all ranks."""
    weights = [p for p in parameters if p.ndim >= 2] if strength else []
    if weights:
        gradients = torch.autograd.grad(losses.orthogonal_penalty(weights, strength), weights)
        torch._foreach_add_([p.grad for p in weights], gradients)


# ---------------------------------------------------------------------------------------------------------------------


def train(args, ranks):
    # Everything that can be wrong with flags and files is found here, before anything is computed.
    plan = make_plan(args)
    dataset, config, source = plan.dataset, plan.config, plan.source
    check_batches(args, ranks.world_size)
    feature_network = measure = None
    if args.test_every:
        feature_network, reference = inception_utils.load_evaluation(
            args, plan.reference.name, ranks.device, plan.reference
        )
        run_folder.check_which_best(
            args.which_best, inception_utils.metric_keys(feature_network, reference, config.n_classes)
        )
        measure = make_measure(args, feature_network, reference, ranks)
    folder = run_folder.run_folder(args)
    findings = utils.on_main(ranks, lambda: dataset_doctor.introduce(dataset))
    selection = instance_selection.select(args, dataset, findings["content"], ranks)
    reals = selection.subset if selection else dataset  # what D sees; the metrics compare with the whole data set
    num_steps = run_length(args, len(reals))
    images_in_step = images_per_step(args)

    # Build.
    torch.manual_seed(args.seed)  # of the initial weights; everything later draws from utils.rng
    # channels_last is the layout that convolutions are fastest in, on CPUs and on GPUs with tensor cores.
    G, D = (net.to(ranks.device, memory_format=torch.channels_last) for net in BigGAN.build(config))
    opt_G, opt_D = optimizers.make_optimizers(G, D, args)
    d_loss, g_loss = losses.LOSSES[args.loss]
    average = ema.MovingAverage(G, args.ema_decay, args.ema_start) if args.ema else None
    evaluated = average.module if args.ema else G
    bn_mode = batch_norm.chosen_mode(args)

    # Resume, or start from another run's weights.
    about = {  # what every checkpoint says of itself, besides its step and metrics
        "model_config": config.to_dict(),
        "class_names": plan.class_names,
        "data": {
            "num_images": len(reals),
            "content": findings["content"],
            "metric_weights": feature_network and feature_network.weights_hash,
            "selection": selection and selection.record(),
        },
        "args": run_folder.plain(args),
        "images_per_D_step": args.batch_size * args.num_D_accumulations,
        "run": run_folder.provenance(ranks),
    }
    utils.on_main(ranks, lambda: run_folder.prepare_folder(folder, args, G, D))
    start, best = resume(folder, about, G, D, average, opt_G, opt_D)
    report = finetune.start_from(source, G, D, average, plan.rows) if source and not start else None
    if ranks.is_main:
        print_start(args, config, G, D, dataset, folder, start, num_steps)
    if start >= num_steps:
        if ranks.is_main:
            print_end(folder, start)
        return
    log = None
    if ranks.is_main:
        utils.save_json(about, folder / "config.json")
        log = logs.RunLog(folder, start or None)
        if report:
            log.write("init_from", 0, {"checkpoint": source.path, "class_rows": plan.rows, **report})
            print("\n".join(finetune.describe(source, report, plan.rows)))
    forward_G, forward_D = (utils.data_parallel(net, ranks) for net in (G, D))
    loader = loading.BatchLoader(
        reals,
        args.batch_size,
        args.seed,
        start=start * args.num_D_steps * args.num_D_accumulations,
        rank=ranks.rank,
        world_size=ranks.world_size,
        num_workers=args.num_workers,
        pin_memory=ranks.device.type == "cuda",
    )

    # The loop.
    metrics = None
    bar = tqdm(total=num_steps, initial=start, disable=not ranks.is_main, dynamic_ncols=True, **utils.bar_interval())
    with closing(loader), closing(log) if log else nullcontext(), bar, utils.StopSignal() as stop:
        clock, clock_step = time.perf_counter(), start
        for step in range(start + 1, num_steps + 1):
            for optimizer, lr in zip((opt_G, opt_D), optimizers.learning_rates(args, step), strict=True):
                optimizers.set_learning_rate(optimizer, lr)
            draws = itertools.count()  # a number of its own for each pass within the step
            for _ in range(args.num_D_steps):
                numbers = itertools.islice(draws, args.num_D_accumulations)
                passes = batches.D_passes(args, config, ranks, loader, step, numbers)
                terms = d_step(G, D, forward_D, opt_D, passes, args.num_D_accumulations, args.D_ortho, d_loss)
            passes = batches.G_passes(args, config, ranks, step, itertools.islice(draws, args.num_G_accumulations))
            terms |= g_step(G, D, forward_G, opt_G, passes, args.num_G_accumulations, args.G_ortho, g_loss)
            if average:
                average.update(step)
            bar.update()

            last = step == num_steps
            stopped = stop.requested(ranks)
            intervals = (args.log_every, args.test_every, args.sample_every or num_steps, args.save_every)
            write, test, sheet, save = (interval and (step % interval == 0 or last) for interval in intervals)
            save = save or stopped
            state = {"step": step, "images_seen": step * images_in_step, **about}
            if write or save:
                terms = utils.mean_over_ranks(terms, ranks)
                check_finite(terms, step, folder)
            if write and log:
                speed = (step - clock_step) * images_in_step / (time.perf_counter() - clock)
                rates = {"G_lr": opt_G.param_groups[0]["lr"], "D_lr": opt_D.param_groups[0]["lr"]}
                resources = {"images_per_s": round(speed, 1), "memory_mb": logs.peak_memory_mb(ranks.device)}
                log.write("train", step, {**terms, **rates, "images_seen": state["images_seen"], **resources})
                numbers = {**{k: f"{v:.3f}" for k, v in terms.items()}, "images/s": f"{speed:.0f}"}
                bar.set_postfix(numbers, refresh=False)
            if args.sv_log_interval and step % args.sv_log_interval == 0 and log:
                log.write("singular_values", step, logs.singular_values(G=G, D=D))
            if test or sheet or save:  # what leaves this process is rank 0's: its batch-norm statistics too
                utils.broadcast_buffers([G, evaluated], ranks)
            if test:
                metrics = evaluate.evaluate_generator(
                    evaluated,
                    measure,
                    args.num_inception_images,
                    args.seed,
                    ema=args.ema,
                    mode=bn_mode,
                )
                best = run_folder.better(args.which_best, step, metrics, best)
                if log:
                    if best and best["step"] == step:
                        weights = {"G_ema" if average else "G": evaluated.state_dict()}
                        run_folder.save({**state, "metrics": metrics, **weights}, folder, "best", args.num_best_copies)
                    log.write("eval", step, metrics)
                    bar.write(f"step {step}: {inception_utils.summary(metrics)}")
            if sheet and log:
                with batch_norm.prepared(evaluated, bn_mode, args.seed) as prepared:
                    picture = sample.class_sheet(prepared, 10, args.seed, class_names=plan.class_names)
                save_image(picture, folder / "samples" / f"step_{step:08d}.png")
                log.image("samples", step, picture)
            if save and log:
                state |= {"metrics": metrics if test else None, "best": best, "scaler": None}
                state |= {"G": G.state_dict(), "D": D.state_dict(), "G_ema": average and average.module.state_dict()}
                state |= {"opt_G": opt_G.state_dict(), "opt_D": opt_D.state_dict()}
                run_folder.save(state, folder, "ckpt", args.num_save_copies)
            if (test or save) and log:
                logs.plot_curves(folder / "log.jsonl", folder / "curves.png")
            if test or sheet or save:
                clock, clock_step = time.perf_counter(), step  # the speed is of training alone
            if stopped:
                break
    if stop.received and not last:
        if ranks.is_main:
            print(f"stopped at step {step}; the same command goes on from there")
        sys.exit(128 + stop.received)
    if ranks.is_main:
        print_end(folder, num_steps)


def resume(folder, about, G, D, average, opt_G, opt_D):
    """Load the newest checkpoint of the run folder, if any: its step, or 0, and its record of the best evaluation."""
    checkpoint = run_folder.newest(folder)
    if checkpoint is None:
        return 0, None
    run_folder.check_same_run(checkpoint, about)
    BigGAN.load_state(G, checkpoint["G"], folder)
    BigGAN.load_state(D, checkpoint["D"], folder)
    if average:
        BigGAN.load_state(average.module, checkpoint["G_ema"], folder)
    opt_G.load_state_dict(checkpoint["opt_G"])
    opt_D.load_state_dict(checkpoint["opt_D"])
    return checkpoint["step"], checkpoint["best"]


def check_finite(terms, step, folder):
    if not all(math.isfinite(value) for value in terms.values()):
        raise utils.UserError(
            f"the losses are no longer finite at step {step} ({terms}); {folder} keeps the checkpoints of before. "
            "A lower --G_lr and --D_lr, or --D_param SN, usually helps"
        )


def main(argv=None):
    args = parse_args(argv)
    if args.dry_run or args.dry_run_time:
        dry_run.dry_run(args, d_step, g_step)
        return
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts
        torch.use_deterministic_algorithms(True)
        torch.backends.cuda.enable_mem_efficient_sdp(False)  # attention without a deterministic backward
        torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cudnn.benchmark = not args.deterministic
    if args.parallel:
        utils.launch_per_gpu()
    with utils.process_group(args.device) as ranks:
        train(args, ranks)


if __name__ == "__main__":
    utils.run_main(main)
