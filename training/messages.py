"""What train.py tells its user at the start of a run and at its end."""

from pathlib import Path

from image_datasets.hdf5 import HDF5Dataset
from inception_utils import summary
from training.ema import EMAOptions
from training.logs import read_log
from training.model_size import num_parameters
from training.options import TrainOptions
from training.state import TrainingState


def print_start(
    options: TrainOptions, dataset: HDF5Dataset, state: TrainingState, folder: Path, num_steps: int
) -> None:
    config = state.G.config
    notes = [*(options.legacy_notes or []), *config.notes()]
    if not options.ema.ema and options.ema != EMAOptions():
        notes.append("without --ema there is no moving average: --ema_start and --ema_decay do nothing")
    if not dataset.is_mapped:
        notes.append(f"{dataset.path} is compressed, hence slow to read image by image: --load_in_mem reads it once")
    for note in notes:
        print(f"note: {note}")
    crops = f" in random crops of {config.resolution}x{config.resolution}" if options.batches.augment else ""
    print(
        f"{dataset.name}: {len(dataset):,} images {dataset.resolution}x{dataset.resolution}{crops}, "
        f"{config.n_classes} classes; G {num_parameters(state.G):,} and D {num_parameters(state.D):,} parameters; "
        f"dim_z {config.dim_z}\n"
        f"an optimizer step of D sees {options.images_per_D_step} images; "
        f"{_steps(state.step, num_steps)} in {folder}"
    )


def _steps(start, end):
    """From where to where a run goes, as text."""
    if start >= end:
        return f"complete at step {start}" + (f", past the {end} that are asked for" if start > end else "")
    return f"{'resuming at' if start else 'from'} step {start} to {end}"


def print_end(folder: Path, step: int) -> None:
    print(f"{folder} is at step {step}: {folder}/samples, curves.png and log.jsonl; tensorboard --logdir {folder}")
    evaluations = [event for event in read_log(folder / "log.jsonl") if event["event"] == "eval"]
    if evaluations:
        print(f"step {evaluations[-1]['step']}: {summary(evaluations[-1])}")
    print(f"next: python sample.py {folder}")
