"""What train.py tells its user at the start of a run and at its end."""

import inception_utils
from image_datasets.hdf5 import UnmappedImages
from training import logs, model_size


def print_start(args, config, G, D, dataset, folder, start, num_steps):
    notes = [*(args.legacy_notes or []), *config.notes()]
    if not args.ema and (args.ema_start or args.ema_decay != 0.9999):
        notes.append("without --ema there is no moving average: --ema_start and --ema_decay do nothing")
    if isinstance(dataset.images, UnmappedImages):
        notes.append(f"{dataset.path} is compressed, hence slow to read image by image: --load_in_mem reads it once")
    for note in notes:
        print(f"note: {note}")
    sizes = {name: model_size.num_parameters(net) for name, net in (("G", G), ("D", D))}
    crops = f" in random crops of {config.resolution}x{config.resolution}" if args.augment else ""
    print(
        f"{dataset.name}: {len(dataset):,} images {dataset.resolution}x{dataset.resolution}{crops}, "
        f"{config.n_classes} classes; "
        f"G {sizes['G']:,} and D {sizes['D']:,} parameters; dim_z {config.dim_z}\n"
        f"an optimizer step of D sees {args.batch_size * args.num_D_accumulations} images; "
        f"{'resuming at' if start else 'from'} step {start} to {num_steps} in {folder}"
    )


def print_end(folder, step):
    print(f"{folder} is at step {step}: {folder}/samples, curves.png and log.jsonl; tensorboard --logdir {folder}")
    evaluations = [event for event in logs.read_log(folder / "log.jsonl") if event["event"] == "eval"]
    if evaluations:
        print(f"step {evaluations[-1]['step']}: {inception_utils.summary(evaluations[-1])}")
    print(f"next: python sample.py {folder}")
