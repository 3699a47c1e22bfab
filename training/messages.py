"""What train.py tells its user at the start of a run and at its end."""

from pathlib import Path

from BigGAN import Discriminator, Generator
from image_datasets.hdf5 import HDF5Dataset
from inception_utils import summary
from model_config import ModelConfig
from torch_utils.distributed import Ranks, device_name
from training.ema import EMAOptions
from training.logs import read_log
from training.model_size import num_parameters
from training.options import TrainOptions
from utils import counted


def notes(options: TrainOptions, config: ModelConfig) -> list[str]:
    """Lines on flags that do nothing here, or something else than they say."""
    lines = [*(options.legacy_notes or []), *config.notes()]
    if options.model["dim_z"] != config.dim_z:
        lines.append(f"--dim_z {options.model['dim_z']} is {config.dim_z} here: --hier splits z into equal parts")
    if number := options.finetune.freeze_D:
        which = "block of D stays" if number == 1 else f"{number} blocks of D stay"
        lines.append(f"--freeze_D {number}: the first {which} as loaded, spectral norm's vectors included")
    ema, default = options.ema, EMAOptions()
    if not ema.ema and (ema.ema_start, ema.ema_decay) != (default.ema_start, default.ema_decay):
        lines.append("without --ema there is no moving average: --ema_start and --ema_decay do nothing")
    return lines


def print_start(
    options: TrainOptions, dataset: HDF5Dataset, G: Generator, D: Discriminator, steps: str, ranks: Ranks
) -> None:
    """steps: from where to where the run goes."""
    config = G.config
    lines = notes(options, config)
    if not dataset.is_mapped:
        lines.append(f"{dataset.path} is compressed, hence slow to read image by image: --load_in_mem reads it once")
    for line in lines:
        print(f"note: {line}")
    crops = f" in random crops of {config.resolution}x{config.resolution}" if options.batches.augment else ""
    images, classes = counted(len(dataset), "image"), counted(config.n_classes, "class")
    each = counted(options.batches.batch_size // ranks.world_size, "image")
    print(
        f"{dataset.name}: {images} {dataset.resolution}x{dataset.resolution}{crops}, "
        f"{classes}; G {num_parameters(G):,} and D {num_parameters(D):,} parameters; "
        f"dim_z {config.dim_z}\n"
        f"on {device_name(ranks.device)}, {counted(ranks.world_size, 'process')}: {each} of a pass on each; "
        f"an optimizer step of D sees {counted(options.images_per_D_step, 'image')}; {steps}"
    )


def steps_text(start: int, end: int, folder: Path) -> str:
    """From which step to which a run goes, and where it is."""
    if start >= end:
        past = f", past the {end} that are asked for" if start > end else ""
        return f"complete at step {start} in {folder}{past}"
    return f"{'resuming at' if start else 'from'} step {start} to {end} in {folder}"


def print_end(folder: Path, step: int) -> None:
    print(f"{folder} is at step {step}: open {folder}/report.html; also samples/, curves.png and log.jsonl")
    evaluations = [
        event for event in read_log(folder / "log.jsonl") if event["event"] == "eval" and event.keys() & {"fid", "fd"}
    ]
    if evaluations:
        print(f"step {evaluations[-1]['step']}: {summary(evaluations[-1])}")
    print(f"next: python sample.py {folder}")
