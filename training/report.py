"""What the page of a run is made from: its log, its options, and where it runs."""

import platform
from pathlib import Path

import torch

from reports.events import curve
from reports.page import Report
from training.options import TrainOptions


def make_report(folder: Path, events: list[dict], options: TrainOptions, about: dict, real: dict[str, float]) -> Report:
    """Args: events: of the run's log; about: what its checkpoints say of it; real: what real images score."""
    step, images_seen = next(reversed(curve(events, "images_seen")), (0, 0))
    end = options.run_length(about["data"]["num_images"], step, images_seen)
    return Report(folder, events, end, differing(options), environment(about), real)


def differing(options: TrainOptions) -> dict[str, tuple]:
    """The flags that are not at their defaults, by name: (value, default)."""
    defaults = options.defaults()
    return {
        name: (value, defaults.get(name)) for name, value in options.record().items() if value != defaults.get(name)
    }


def environment(about: dict) -> dict[str, str]:
    """Where and with what the run is made, and on which data, by name."""
    data = {f"data's {name.replace('_', ' ')}": value for name, value in about["data"].items() if value is not None}
    threads = {"threads of PyTorch": torch.get_num_threads()}
    return {**about["run"], "Python": platform.python_version(), "machine": platform.platform(), **threads, **data}
