"""What a training command asks for, checked before anything is computed: its data, networks, batches and length."""

import dataclasses
import math
from dataclasses import dataclass

import utils
from image_datasets import loading
from model_config import ModelConfig
from training import batches, finetune


@dataclass(frozen=True)
class Plan:
    """The data set and the model of a command; `source` and `rows` (of finetune) are None without --init_from.

    `dataset` is what D is shown, `reference` what metrics compare with: other than `dataset` where training crops.
    """

    dataset: loading.HDF5Dataset
    reference: loading.HDF5Dataset | loading.CentreCrop
    class_names: list
    config: ModelConfig
    source: finetune.Source | None
    rows: list | None


def make_plan(args):
    """The Plan of parsed flags. Raises: utils.UserError if the data set or the flags are wrong."""
    load_in_mem = args.load_in_mem and not (args.dry_run or args.dry_run_time)
    dataset = loading.open_dataset(args.dataset, args.data_root, load_in_mem)
    if not args.unconditional:
        check_classes(dataset)
    reference = loading.CentreCrop(dataset, args.crop_size) if args.crop_size else dataset
    if args.augment and not args.crop_size and dataset.resolution != batches.CIFAR_RESOLUTION:
        raise utils.UserError(
            f"--augment: {dataset.path} has images of {dataset.resolution}x{dataset.resolution}; only 32x32 (CIFAR) is "
            f"padded. For a model of {dataset.resolution} make a file of larger images (make_hdf5.py --resolution) and "
            f"give --crop_size {dataset.resolution}"
        )
    class_names = ["all"] if args.unconditional else dataset.class_names
    source = rows = None
    if args.init_from:
        source = finetune.read_source(args.init_from)
        finetune.check_resolution(source, reference)
        rows = finetune.class_rows(source, class_names, args.class_mapping)
    config = make_config(args, reference.resolution, len(class_names))
    return Plan(dataset, reference, class_names, config, source, rows)


def check_classes(dataset):
    """Raise utils.UserError where all images are of one class: most often that of a folder nested wrongly."""
    if dataset.labels.min() == dataset.labels.max():
        name = dataset.class_names[dataset.labels[0]]
        raise utils.UserError(
            f"{dataset.path}: all images are of one class ('{name}'). Make it again from images that lie at "
            "DIR/<class name>/<image>.png, with --images DIR: a folder for each class directly in DIR (one level too "
            "many or too few gives a single class); or train with --unconditional"
        )


def make_config(args, resolution, n_classes):
    """The ModelConfig of the flags; --unconditional leaves D without the class."""
    if not args.unconditional:
        return ModelConfig.from_args(args, resolution, n_classes)
    return dataclasses.replace(ModelConfig.from_args(args, resolution, n_classes), D_cond="none")


def check_batches(args, world_size):
    """Raise utils.UserError unless the batches can be split evenly over the processes."""
    for flag in ("batch_size", "G_batch_size"):
        if getattr(args, flag) % world_size:
            raise utils.UserError(f"--{flag} {getattr(args, flag)} cannot be split evenly over {world_size} processes")


def images_per_step(args):
    """Real images that D sees for each step of G."""
    return args.batch_size * args.num_D_steps * args.num_D_accumulations


def run_length(args, num_images):
    """The step at which the run ends: the first of --num_iters and --num_epochs."""
    num_epochs = args.num_epochs or (math.inf if args.num_iters else 100)
    return int(min(args.num_iters or math.inf, -(-num_epochs * num_images // images_per_step(args))))
