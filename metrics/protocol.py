"""How numbers are made: the options of the metrics, and the protocols that are stored beside every number."""

import dataclasses
from dataclasses import dataclass

from metrics.distances import MEMORY_MB
from metrics.functional import kid_subset_size
from metrics.networks import FeatureOptions
from utils import option, positive_int

# What may differ between two results that are compared: it describes the generator and its latents, not the measure.
OF_THE_GENERATOR = ("ema", "amp", "truncation", "truncation_kind", "seed", "ema_power")


@dataclass(frozen=True)
class MetricOptions(FeatureOptions):
    """What is measured with a feature network; None stands for the protocol of the reference statistics."""

    num_inception_images: int | None = option(
        50_000,
        "images per evaluation (evaluate.py: as many as in the checkpoint's training; all images of files)",
        kind=positive_int,
    )
    is_splits: int | None = option(
        None,
        "splits of the Inception score; if not given, those of the reference statistics, mostly 10",
        kind=positive_int,
    )
    is_outputs: str | None = option(
        None,
        "outputs the Inception score counts: all, 1008 of inception_tf (the older formula, of most papers), or only "
        "its 1000 classes; if not given, as for the reference statistics, mostly all",
        choices=("all", "1000"),
    )
    prdc_k: int | None = option(
        None, "neighbours of PRDC's radii; if not given, as for the reference statistics, mostly 5", kind=positive_int
    )
    prdc_memory_mb: int = option(MEMORY_MB, "working memory of PRDC, in MiB", kind=positive_int, changeable=True)
    kid_subsets: int = option(100, "random subsets that KID averages", kind=positive_int)
    kid_subset_size: int = option(1000, "images in each; where there are no more, half of these", kind=positive_int)
    reference_file: str | None = option(
        None, "reference statistics: an npz of ours, of the family or of pytorch-fid", metavar="FILE"
    )
    reference_num: int | None = option(
        None, "compare with statistics of that many random real images", kind=positive_int
    )

    def resolved(self, splits: int, k: int, is_outputs: str) -> "MetricOptions":
        """These options with the given values where they have none."""
        values = {"is_splits": splits, "prdc_k": k, "is_outputs": is_outputs}
        return dataclasses.replace(self, **{name: getattr(self, name) or value for name, value in values.items()})


@dataclass(frozen=True)
class Protocol:
    """How the metrics of generated images were made: what is stored beside them, in this order.

    ema: whether G was the moving average; bn_mode: `running`, `batch` or `standing`; truncation: threshold or None,
    truncation_kind: its meaning; seed: of the latents; fake_num: generated images. Of images in files, ema, bn_mode and
    truncation are None. Those with defaults are stored only where they mean something: class_sampling, how often fakes
    are of each class; reference_content, the sha256 of the real images' pixels and labels; amp, the type of G's maps;
    ema_power, the relative width of a power-law average.
    """

    network: str
    weights_hash: str
    resize: str
    precision: str
    reference: str
    reference_split: str
    reference_num: int | None
    reference_seed: int | None
    reference_assumed: bool
    fake_num: int
    prdc_num: int
    k: int
    kid_real_num: int
    kid_subsets: int
    kid_subset_size: int
    splits: int
    is_outputs: int
    ema: bool | None
    bn_mode: str | None
    truncation: float | None
    truncation_kind: str | None
    seed: int
    bn_batch_size: int | None = None
    num_standing_accumulations: int | None = None
    order: str | None = None
    reference_moments: str | None = None
    class_sampling: str | None = None
    reference_content: str | None = None
    amp: str | None = None
    ema_power: float | None = None

    @classmethod
    def of(
        cls,
        network,
        reference,
        options: MetricOptions,
        *,
        fake_num: int,
        seed: int,
        ema,
        truncation,
        bn_mode,
        **further,
    ) -> "Protocol":
        """That of `inception_utils.compute_metrics`.

        Args: reference: metrics.reference.Reference; options: as they were given; truncation: a Truncation or None;
            further: other fields by name.
        """
        real = reference.protocol
        options = options.resolved(real.splits, real.k, real.is_outputs)
        num_real_features = 0 if reference.real_features is None else len(reference.real_features)
        return cls(
            network=network.name,
            weights_hash=network.weights_hash,
            resize=network.resize,
            precision="float32 features, float64 statistics",
            reference=real.dataset,
            reference_split="random subset" if real.reference_num else "whole",
            reference_num=real.num_images,
            reference_seed=real.seed if real.reference_num else None,
            reference_assumed=real.assumed,
            fake_num=fake_num,
            prdc_num=min(num_real_features, fake_num),
            k=options.prdc_k,
            kid_real_num=num_real_features,
            kid_subsets=options.kid_subsets,
            kid_subset_size=kid_subset_size(options.kid_subset_size, min(num_real_features, fake_num)),
            splits=options.is_splits,
            is_outputs=1000 if options.is_outputs == "1000" else network.num_classes,
            ema=ema,
            bn_mode=bn_mode,
            truncation=truncation and truncation.limit,
            truncation_kind=truncation and truncation.kind,
            seed=seed,
            reference_moments=real.moments,
            reference_content=real.content,
            **further,
        )

    def to_dict(self) -> dict:
        """Plain values; a field with a default is left out where it has it."""
        optional = {field.name for field in dataclasses.fields(self) if field.default is None}
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None or k not in optional}


def compare_protocols(one: dict, other: dict) -> list[str]:
    """What makes the numbers of two protocols incomparable: a line each, none where they are measured alike.

    Everything counts that two protocols say, whoever wrote it into them, but what describes the generator rather than
    the measure: moving average, truncation and seed of the latents (a truncation sweep compares just those).
    """
    keys = [key for key in {**one, **other} if key not in OF_THE_GENERATOR]
    values = ((key, one.get(key, "not recorded"), other.get(key, "not recorded")) for key in keys)
    return [f"{key}: {a} against {b}" for key, a, b in values if a != b]
