"""What a training command asks for, checked before anything is computed: its data, model and metrics."""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import utils
from image_datasets.hdf5 import HDF5Dataset
from image_datasets.image_sets import ImageSet
from image_datasets.loading import open_dataset
from inception_utils import Measure, check_content, load_evaluation, metric_keys
from metrics import features
from metrics.reference import Reference
from model_config import ModelConfig
from torch_utils.distributed import Ranks
from training import finetune, model_size, rollback, run_folder
from training.batches import CIFAR_RESOLUTION
from training.options import TrainOptions

# What reference statistics depend on besides the network: evaluations with others are not to be compared.
OF_REFERENCE = ("seed", "k", "splits", "is_outputs", "num_images", "content", "moments")


@dataclass(frozen=True)
class Command:
    """What a command asks for, checked; None for what could not be had, in a dry run only.

    folder: of the run; checkpoint: the one that the run goes on from, None for a new run; passed_over: newer ones that
    cannot be resumed; notes: lines on that, for the user; measure: what evaluations measure with, None without them.
    """

    folder: Path | None
    checkpoint: dict | None
    passed_over: list[run_folder.PassedOver]
    notes: list[str]
    plan: "Plan | None"
    measure: Measure | None


def check_command(
    options: TrainOptions, source: finetune.Source | None, ranks: Ranks, attempt: Callable | None = None
) -> Command:
    """Check a command against its run folder, data and weights, before anything is computed; nothing is written.

    attempt: what calls each check, attempt(function, *arguments); a dry run's notes errors and goes on.
    Raises: utils.UserError, unless `attempt` does not.
    """
    attempt = attempt or (lambda function, *arguments: function(*arguments))
    folder = attempt(run_folder.path_of, options.run.runs_root, options.run_name)
    found = attempt(_resumed, options, folder) if folder else None
    checkpoint, passed_over, notes = found or (None, [], [])
    plan = attempt(make_plan, options, None if checkpoint else source)
    attempt(options.batches.check_ranks, ranks.world_size)
    scores = options.selection.path(options.data.data_root, options.data.path.stem)
    if not options.selection.keeps_all and not scores.exists():
        attempt(utils.check_writable, scores.parent)
    measure = attempt(load_measure, options, plan, ranks)
    return Command(folder, checkpoint, passed_over, notes, plan, measure)


def begun_model(options: TrainOptions) -> dict:
    """The model options of the run that a command goes on with, by name; {} where there is none.

    Raises: utils.UserError where its checkpoints cannot be read.
    """
    if options.run.from_scratch:
        return {}
    checkpoint, _ = run_folder.newest(run_folder.path_of(options.run.runs_root, options.run_name))
    return finetune.model_options(ModelConfig.from_dict(checkpoint["model_config"])) if checkpoint else {}


def _resumed(options, folder):
    """The checkpoint that the run in `folder` goes on from, None for a new run, newer ones, and lines for the user.

    Other flags are refused first of all: with another data set, say, everything else would be said to be missing.
    """
    run_folder.check_writable(folder)
    checkpoint, passed_over = (None, []) if options.run.from_scratch else run_folder.newest(folder)
    notes = [it.line for it in passed_over]
    if not options.run.from_scratch:
        rollback.check_not_ended(folder, options.training_key, checkpoint["step"] if checkpoint else 0)
    if checkpoint:
        options.changes_since(checkpoint, {"args": options.record(), "model_config": {}, "data": {}})
    elif options.run.allow_change:
        made = (
            ""
            if options.run.experiment_name
            else ", whose name is made from the flags: --experiment_name names another"
        )
        notes.append(f"--allow_change changes nothing: there is no run to go on with in {folder}{made}")
    return checkpoint, passed_over, notes


@dataclass(frozen=True)
class Plan:
    """The data set and the model of a command.

    `dataset` is what D is shown, `reference` what metrics compare with: other than `dataset` where training crops;
    `class_rows`: those of --init_from, None where the run does not start from it.
    """

    dataset: HDF5Dataset
    reference: ImageSet
    class_names: list
    config: ModelConfig
    class_rows: finetune.ClassRows | None

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
    class_rows = None
    if source:
        finetune.check_resolution(source, reference)
        class_rows = finetune.class_rows(source, class_names, options.finetune.class_mapping)
    config = make_config(options, reference.resolution, len(class_names))
    if source and options.finetune.freeze_D:
        finetune.check_frozen(options.finetune.freeze_D, source, model_size.build_on_meta(config)[1])
    return Plan(dataset, reference, class_names, config, class_rows)


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


def assumed_config(options: TrainOptions) -> ModelConfig:
    """The config for data that is missing, where its name says its size: I128 and C10 of the reference family.

    Raises: utils.UserError for another name.
    """
    known = re.fullmatch(r"I(\d+)(_hdf5)?|C(10)(_hdf5)?", options.data.dataset)
    if not known:
        raise utils.UserError(f"--dataset {options.data.dataset}: size unknown")
    return make_config(options, options.data.crop_size or int(known[1] or 32), 1000 if known[1] else 10)


def load_measure(options: TrainOptions, plan: Plan | None, ranks: Ranks) -> Measure | None:
    """What evaluations measure with, None without evaluations; plan: None where there are no data to compare with.

    Raises: utils.UserError as `load_evaluation` and `check_content`, and where no evaluation gives what --which_best
        names.
    """
    if not options.reports.test_every:
        return None
    name, root = options.data.reference_name, options.data.data_root
    network, reference = load_evaluation(options.metrics, root, name, ranks.device, plan and plan.reference)
    if plan:
        check_content(options.metrics, root, name, plan.dataset, (network, reference), ranks)
        keys = metric_keys(network, reference, plan.config.n_classes)
        run_folder.check_which_best(options.reports.which_best, keys)
    features.check_fits(network, options.metrics.num_inception_images, ranks, options.metrics.metric_batch_size)
    counts = plan and class_counts(options, plan, reference)
    return Measure(network, reference, options.metrics, ranks, class_counts=counts)


def class_counts(options: TrainOptions, plan: Plan, reference: Reference) -> list[int] | None:
    """How often evaluations draw each class, by --class_sampling; None: all alike."""
    holder = f"the reference statistics of {reference.protocol.dataset}"
    return options.classes.counts(reference.class_counts, plan.config.n_classes, holder)


def about_run(
    options: TrainOptions,
    plan: Plan,
    measure: Measure | None,
    num_images: int | None,
    content: str | None,
    selection: str | None,
    ranks: Ranks,
) -> dict:
    """What every checkpoint says of the run.

    Args: num_images: that D is shown; content: of the data, as the doctor has it; selection: the record of one, or
        None. A dry run, which reads no pixels, has None for what it does not know.
    """
    return {
        "model_config": plan.config.to_dict(),
        "class_names": plan.class_names,
        "class_counts": plan.class_counts,
        "data": {
            "num_images": num_images,
            "content": content,
            "metric_weights": measure and measure.network.weights_hash,
            "reference": measure and {name: getattr(measure.reference.protocol, name) for name in OF_REFERENCE},
            "selection": selection,
        },
        "args": options.record(),
        "images_per_D_step": options.images_per_D_step,
        "run": run_folder.provenance(ranks),
    }
