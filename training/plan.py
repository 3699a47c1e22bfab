"""What a training command asks for, checked before anything is computed: its data, model and metrics."""

import dataclasses
from dataclasses import dataclass

import utils
from image_datasets.hdf5 import HDF5Dataset
from image_datasets.image_sets import ImageSet
from image_datasets.loading import open_dataset
from inception_utils import Measure, check_content, load_evaluation, metric_keys
from model_config import ModelConfig
from torch_utils.distributed import Ranks
from training import finetune, run_folder
from training.batches import CIFAR_RESOLUTION
from training.options import TrainOptions


@dataclass(frozen=True)
class Plan:
    """The data set and the model of a command.

    `dataset` is what D is shown, `reference` what metrics compare with: other than `dataset` where training crops;
    `rows`: of `finetune.class_rows`, None without --init_from.
    """

    dataset: HDF5Dataset
    reference: ImageSet
    class_names: list
    config: ModelConfig
    rows: list | None

    @property
    def class_counts(self) -> list[int]:
        """Images of each class of the model."""
        return self.dataset.class_counts if len(self.class_names) > 1 else [len(self.dataset)]


def make_plan(options: TrainOptions, source: finetune.Source | None) -> Plan:
    """The Plan of a command. Raises: utils.UserError if the data set or the options are wrong."""
    data = options.data
    dataset = open_dataset(data.dataset, data.data_root, data.load_in_mem and not options.dry_run.asked_for)
    unconditional = options.batches.unconditional
    if not unconditional:
        check_classes(dataset)
    reference = data.reference_part(dataset)
    check_augmentation(options, dataset)
    class_names = ["all"] if unconditional else dataset.class_names
    rows = None
    if source:
        finetune.check_resolution(source, reference)
        rows = finetune.class_rows(source, class_names, options.finetune.class_mapping)
    config = make_config(options, reference.resolution, len(class_names))
    return Plan(dataset, reference, class_names, config, rows)


def check_classes(dataset: ImageSet) -> None:
    """Raise utils.UserError where all images are of one class: most often that of a folder nested wrongly."""
    if dataset.labels.min() == dataset.labels.max():
        name = dataset.class_names[dataset.labels[0]]
        raise utils.UserError(
            f"{dataset.path}: all images are of one class ('{name}'). Make it again from images that lie at "
            "DIR/<class name>/<image>.png, with --images DIR: a folder for each class directly in DIR (one level too "
            "many or too few gives a single class); or train with --unconditional"
        )


def check_augmentation(options: TrainOptions, dataset: ImageSet) -> None:
    """Raise utils.UserError where --augment has nothing to crop from."""
    R = dataset.resolution
    if options.batches.augment and not options.data.crop_size and R != CIFAR_RESOLUTION:
        raise utils.UserError(
            f"--augment: {dataset.path} has images of {R}x{R}; only 32x32 (CIFAR) is padded. For a model of {R} make a "
            f"file of larger images (make_hdf5.py --resolution) and give --crop_size {R}"
        )


def make_config(options: TrainOptions, resolution: int, n_classes: int) -> ModelConfig:
    """The ModelConfig of the options; --unconditional leaves D without the class."""
    config = ModelConfig(resolution=resolution, n_classes=n_classes, **options.model)
    return dataclasses.replace(config, D_cond="none") if options.batches.unconditional else config


def load_measure(options: TrainOptions, plan: Plan, ranks: Ranks) -> Measure | None:
    """What evaluations measure with, None without evaluations.

    Raises: utils.UserError as `load_evaluation` and `check_content`.
    """
    if not options.reports.test_every:
        return None
    name, root = plan.reference.name, options.data.data_root
    network, reference = load_evaluation(options.metrics, root, name, ranks.device, plan.reference)
    check_content(options.metrics, root, name, plan.dataset, (network, reference), ranks)
    run_folder.check_which_best(options.reports.which_best, metric_keys(network, reference, plan.config.n_classes))
    holder = f"the reference statistics of {reference.protocol.dataset}"
    counts = options.classes.counts(reference.class_counts, plan.config.n_classes, holder)
    return Measure(network, reference, options.metrics, ranks, class_counts=counts)
