"""All options of train.py: a field for each concern, whose class stands beside the code that uses it."""

import difflib
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import utils
from image_datasets.loading import DataOptions
from metrics.protocol import MetricOptions
from model_config import ModelConfig, add_model_args
from sampling.batch_norm import BatchNormMode
from sampling.class_sampling import ClassSampling
from selection.scores import SelectionOptions
from torch_utils.distributed import TIMEOUT_MINUTES, device_option
from torch_utils.mixed_precision import PrecisionOptions
from training import run_folder
from training.augmentation import AugmentationOptions
from training.auxiliary import AuxiliaryOptions
from training.batch_statistics import BatchStatistics
from training.batches import BatchOptions
from training.ema import EMAOptions
from training.finetune import FinetuneOptions
from training.legacy_flags import add_legacy_args
from training.optimizers import OptimizerOptions
from training.penalties import PenaltyOptions
from training.regularisation import Techniques
from training.steps import StepOptions
from training.wandb_run import check_wandb
from training.watchdog import WatchOptions
from utils import POSITIVE, Check, Options, option


@dataclass(frozen=True)
class RunOptions(Options):
    """Where a run is, and on what machine."""

    title = "run"

    experiment_name: str = option("", "name of the run folder; empty: made from the flags", changeable=True)
    name_suffix: str = option("", "added to the name of the run folder", changeable=True)
    runs_root: str = option("runs", "where run folders are", changeable=True)
    from_scratch: bool = option(
        False, "move an earlier run of that name aside and start anew", switch=True, changeable=True
    )
    seed: int = option(
        0,
        "of the weights, noise, classes and order of images",
        kind=utils.count,
        check=Check(lambda x: x < 2**63, "be below 2^63"),
    )
    deterministic: bool = option(False, "bit-equal results on CUDA too, slower", switch=True)
    allow_change: tuple[str, ...] = option(
        (),
        "flags that may be others than before when the run is resumed: learning rates, batches, steps, regularisation, "
        "evaluation; not the model's and the data's",
        kind=lambda name: name.removeprefix("--"),
        metavar="FLAG",
        changeable=True,
    )
    parallel: bool = option(False, "one process per visible GPU", switch=True, changeable=True)
    device: str = device_option()
    rank_timeout: float = option(
        TIMEOUT_MINUTES, "minutes that a process waits for another", check=POSITIVE, changeable=True
    )


COSTS = ("multiply_adds", "parameters", "seconds")  # --by


@dataclass(frozen=True)
class DryRunOptions(Options):
    """What is done instead of training."""

    title = "dry run"

    dry_run: bool = option(
        False, "make all checks, print sizes, memory and disk, and stop", switch=True, changeable=True
    )
    dry_run_time: bool = option(
        False, "the same, and time the largest batch that fits on this machine", switch=True, changeable=True
    )

    match: str | None = option(
        None,
        "print the --G_ch at which this configuration costs, in a whole iteration, what another does: a run folder, a "
        "checkpoint, or in quotes the flags in which it differs from this command; and stop",
        metavar="RUN_OR_FLAGS",
        changeable=True,
    )
    by: str | None = option(None, "what --match compares (multiply_adds if not given)", choices=COSTS, changeable=True)

    def __post_init__(self):
        super().__post_init__()
        if self.by and not self.match:
            raise utils.UserError("--by goes with --match")

    @property
    def asked_for(self) -> bool:
        return self.dry_run or self.dry_run_time or self.match is not None


@dataclass(frozen=True)
class LengthOptions(Options):
    """When a run ends."""

    title = "length (the first that is reached ends the run)"

    num_iters: int | None = option(None, "steps of G", kind=utils.positive_int, changeable=True)
    num_epochs: int | None = option(
        None, "passes of D over the data; 100 if neither is given", kind=utils.positive_int, changeable=True
    )


@dataclass(frozen=True)
class ReportOptions(Options):
    """What is reported and kept, and how often."""

    title = "reports"

    test_every: int = option(5000, "steps between evaluations; 0: none at all", kind=utils.count, changeable=True)
    which_best: str = option("IS", "metric of the best checkpoint", kind=str.upper, choices=tuple(run_folder.BEST))
    save_every: int = option(
        2000, "steps between checkpoints; each evaluation has one too", kind=utils.positive_int, changeable=True
    )
    max_save_failures: int = option(
        3,
        "checkpoints in a row that cannot be written (a full disk) before training ends",
        kind=utils.positive_int,
        changeable=True,
    )
    num_save_copies: int = option(2, "newest checkpoints to keep", kind=utils.positive_int, changeable=True)
    num_best_copies: int = option(2, "newest best ones to keep", kind=utils.positive_int, changeable=True)
    sample_every: int = option(2000, "steps between sheets; 0: only the last", kind=utils.count, changeable=True)
    log_every: int = option(50, "steps between logged losses", kind=utils.positive_int, changeable=True)
    sv_log_interval: int = option(
        0,
        "steps between logs of the largest singular value of each layer with spectral norm; 0: none",
        kind=utils.count,
        changeable=True,
    )

    wandb: bool = option(
        False,
        "also log to Weights & Biases (optional package wandb); WANDB_MODE=offline in the environment: into the "
        "run folder alone",
        switch=True,
        changeable=True,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.wandb:
            check_wandb()

    @property
    def copies(self) -> tuple[int, int]:
        """How many full and best checkpoints are kept."""
        return self.num_save_copies, self.num_best_copies


# The concerns whose options may change where --allow_change names them, but for those that decide what the state is.
EVALUATION = (MetricOptions, BatchNormMode)
OF_TRAINING = (BatchOptions, BatchStatistics, StepOptions, EMAOptions, OptimizerOptions, PrecisionOptions)
OF_REGULARISATION = (PenaltyOptions, AugmentationOptions, AuxiliaryOptions)
CHANGEABLE_BY_NAME = (*OF_TRAINING, *OF_REGULARISATION, ReportOptions, *EVALUATION)
NEVER_CHANGEABLE = {"unconditional", "data_fraction", "ema", "ema_power"}


@dataclass(frozen=True)
class TrainOptions:
    """`model` holds the flags of ModelConfig by name, since only the data make a ModelConfig of them; `legacy_notes`
    what flags of other codebases would have done."""

    run: RunOptions
    data: DataOptions
    batches: BatchOptions
    finetune: FinetuneOptions
    dry_run: DryRunOptions
    length: LengthOptions
    steps: StepOptions
    penalties: PenaltyOptions
    augmentation: AugmentationOptions
    auxiliary: AuxiliaryOptions
    ema: EMAOptions
    optimizers: OptimizerOptions
    selection: SelectionOptions
    metrics: MetricOptions
    classes: ClassSampling
    batch_norm: BatchNormMode
    reports: ReportOptions
    batch_statistics: BatchStatistics

    watch: WatchOptions
    precision: PrecisionOptions
    model: dict[str, Any]
    legacy_notes: list[str] | None

    @classmethod
    def concerns(cls) -> dict[str, type[Options]]:
        """The fields that are Options, with their classes, in the order of --help."""
        return {name: kind for name, kind in cls.__annotations__.items() if name not in ("model", "legacy_notes")}

    @classmethod
    def add_to(cls, parser: utils.ArgumentParser) -> None:
        """Add all flags."""
        for name, kind in cls.concerns().items():
            kind.add_to(parser)
            if name == "batches":
                add_model_args(parser)
        add_legacy_args(parser)

    @classmethod
    def of(cls, values: dict[str, Any]) -> "TrainOptions":
        """From values of all flags by name. Raises: utils.UserError for a value that cannot be."""
        model = {field.name: values[field.name] for field in ModelConfig.fields()}
        concerns = {name: kind.of(values) for name, kind in cls.concerns().items()}
        return cls(**concerns, model=model, legacy_notes=values["legacy_notes"])

    def __post_init__(self):
        self.data.check_named()
        if self.finetune.class_mapping and not self.finetune.init_from:
            raise utils.UserError("--class_mapping goes with --init_from")
        if self.finetune.freeze_D and not self.finetune.init_from:
            raise utils.UserError("--freeze_D goes with --init_from: what stays would be random")
        if self.data.crop_size and not self.batches.augment:
            raise utils.UserError("--crop_size goes with --augment: training crops at random, statistics at the centre")
        batches = {"batch_size": self.batches.batch_size, "G_batch_size": self.batches.G_images}
        self.batch_statistics.check(self.precision.compile, **batches)
        self._check_regularisation()
        self._check_allowed()

    def _check_regularisation(self):
        """Raise utils.UserError for what of it does not go with the rest."""
        if self.steps.paired and self.batches.G_images != self.batches.batch_size:
            raise utils.UserError(
                f"--loss {self.steps.loss} pairs each fake with a real image: --G_batch_size "
                f"{self.batches.G_batch_size} must be --batch_size {self.batches.batch_size}"
            )
        if self.model["D_aux"] == "none" and self.auxiliary != AuxiliaryOptions():
            raise utils.UserError("--D_aux_weight, --D_aux_margin and --D_aux_temperature go with --D_aux d2dce")
        for name in self.penalties.exact:
            if self.precision.compile:
                raise utils.UserError(
                    f"--{name}_gamma does not go with --compile, which has no second derivatives: add --{name}_approx"
                )
        for name in ("r1_gamma_to", "r2_gamma_to"):
            if getattr(self.penalties, name) is not None and not self.optimizers.lr_decay_end:
                raise utils.UserError(f"--{name} goes with --lr_decay_end, the step from which it holds")

    @property
    def techniques(self) -> Techniques:
        """What is asked for beyond the plain adversarial loss."""
        auxiliary = self.auxiliary if self.model["D_aux"] != "none" else None
        steps, schedule = self.steps, self.optimizers
        of_loss, passes = (steps.paired, steps.relative), (steps.num_D_accumulations, steps.num_D_steps)
        return Techniques(self.penalties, self.augmentation, auxiliary, *of_loss, schedule, *passes)

    def _check_allowed(self):
        """Raise utils.UserError where --allow_change names what is no flag, or one that cannot change."""
        for name in self.run.allow_change:
            if name not in self.record():
                close = difflib.get_close_matches(name, self.record(), n=1)
                guess = f"; did you mean {close[0]}?" if close else ""
                raise utils.UserError(f"--allow_change {name}: there is no flag --{name}{guess}")
            if name not in self.changeable() | self.changeable_by_name():
                raise utils.UserError(
                    f"--allow_change {name}: --{name} cannot change within a run, as the model, the data and what it "
                    "starts from cannot; use another --experiment_name"
                )

    @classmethod
    def changeable(cls) -> set[str]:
        """Names of what may be another when a run is resumed."""
        return {"legacy_notes"}.union(*(kind.changeable() for kind in cls.concerns().values()))

    @classmethod
    def changeable_by_name(cls) -> set[str]:
        """Names of what may be another when a run is resumed where --allow_change names it."""
        names = {field.name for kind in CHANGEABLE_BY_NAME for field in kind.fields()}
        return names - NEVER_CHANGEABLE - cls.changeable()

    def changes_since(self, checkpoint: dict, about: dict) -> dict[str, list]:
        """Flags that differ from the run's checkpoint and may, by --allow_change: see `run_folder.check_same_run`.

        A flag that there was not yet when it was made had its default in effect.
        """
        which = self.changeable(), self.changeable_by_name(), self.run.allow_change
        made = {**checkpoint, "args": self.defaults() | checkpoint["args"]}
        return run_folder.check_same_run(made, about, *which)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The defaults of all flags by name, as `record` has them."""
        kinds = (ModelConfig, *cls.concerns().values())
        return utils.plain({field.name: field.default for kind in kinds for field in kind.fields()})

    def record(self) -> dict[str, Any]:
        """All values by name, for checkpoints and config.json."""
        values = utils.plain(self.model) | {"legacy_notes": self.legacy_notes}
        for name in self.concerns():
            values |= getattr(self, name).record()
        return values

    @property
    def training_key(self) -> str:
        """The same for two commands where training is the same, and what is done in a collapse."""
        names = {field.name for field in WatchOptions.fields()}
        told = {name: value for name, value in self.record().items() if name in names or name not in self.changeable()}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def images_per_D_step(self) -> int:
        """Real images that an optimizer step of D sees."""
        return self.batches.batch_size * self.steps.num_D_accumulations

    @property
    def images_per_step(self) -> int:
        """Real images that D sees for each step of G."""
        return self.batches.batch_size * self.steps.D_passes

    def step_multiply_adds(self, macs: tuple[int, int]) -> int:
        """Multiply-adds of a step of G with its steps of D; macs: of a forward (of G, of D) for one image.

        A backward costs twice its forward. D's step: G forward, D on a real and a fake; G's step: both networks, of D
        the gradients of its input only. Techniques show them more images, and want second derivatives.
        """
        G_images, asked = self.batches.G_images * self.steps.num_G_accumulations, self.techniques
        fakes = 2 if asked.penalties.zcr else 1
        D_step = fakes * macs[0] + 3 * (asked.D_images() + asked.derivatives()) * macs[1]
        G_step = 3 * fakes * macs[0] + (2 + asked.paired) * macs[1]
        return round(self.images_per_step * D_step + G_images * G_step)

    def run_length(self, num_images: int, step: int = 0, images_seen: int = 0) -> int:
        """The step at which the run ends, on so many images: the first of --num_iters and --num_epochs.

        step, images_seen: where the run is, since steps may have been of other sizes so far.
        """
        num_iters = self.length.num_iters or math.inf
        num_epochs = self.length.num_epochs or (math.inf if self.length.num_iters else 100)
        return int(min(num_iters, step - (images_seen - num_epochs * num_images) // self.images_per_step))

    def _regularisation_parts(self):
        strengths = ("r1_gamma", "r2_gamma", "lecam", "cr", "bcr", "zcr")
        values = {name: getattr(self.penalties, name) for name in strengths}
        values |= {"ada": self.augmentation.ada_target}
        named = [f"{name.removesuffix('_gamma')}-{value:g}" for name, value in values.items() if value]
        others = self.augmentation.diffaug.replace("_", "-"), self.model["D_aux"]
        return [*named, *(name for name in others if name != "none")]

    @property
    def run_name(self) -> str:
        """--experiment_name, or a name that tells the runs of a study apart."""
        model, ratio = self.model, self.selection.retention_ratio
        parts = [
            Path(self.data.dataset).stem,
            f"G{model['G_ch']}D{model['D_ch']}",
            *([model["model"]] if model["model"] != "BigGAN" else []),
            f"ssm-{model['ssm']}",
            *([f"w{model['ssm_width']:g}"] if model["ssm_width"] != 1 else []),
            *(["stages" + "-".join(map(str, model["ssm_stages"]))] if model["ssm_stages"] else []),
            *([f"group{model['ssm_group']}"] if model["ssm_group"] != 4 else []),
            *(["shared"] if model["G_shared"] else []),
            *(["hier"] if model["hier"] else []),
            *([self.steps.loss] if self.steps.loss != "hinge" else []),
            *self._regularisation_parts(),
            *([f"rr{ratio:g}"] if ratio < 100 else []),
            *([f"data{self.batches.data_fraction:g}"] if self.batches.data_fraction < 1 else []),
            f"bs{self.images_per_D_step}",
            f"Dsteps{self.steps.num_D_steps}",
            f"lr{self.optimizers.G_lr:g}-{self.optimizers.D_lr:g}",
            f"seed{self.run.seed}",
        ]
        suffix = f"_{self.run.name_suffix}" if self.run.name_suffix else ""
        return (self.run.experiment_name or "_".join(parts)) + suffix
