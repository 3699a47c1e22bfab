"""What changes while a run trains: networks, moving average, optimizers, step, best evaluation."""

from pathlib import Path

import torch
from torch import nn

import BigGAN
import utils
from model_config import ModelConfig
from training.ema import MovingAverage
from training.optimizers import make_optimizers
from training.options import TrainOptions


class TrainingState:
    """All that a run needs to go on.

    `parts` lists what a checkpoint holds of it besides `step` (completed steps of G) and `best` (the record of
    `run_folder.better`): saving, loading and the size estimate follow that one list.
    """

    def __init__(self, config: ModelConfig, options: TrainOptions, device: torch.device):
        """Freshly initialised; weights come from torch's global CPU seed."""
        # channels_last is the layout that convolutions are fastest in, on CPUs and on GPUs with tensor cores.
        self.G, self.D = (net.to(device, memory_format=torch.channels_last) for net in BigGAN.build(config))
        self.opt_G, self.opt_D = make_optimizers(self.G, self.D, options.optimizers)
        ema = options.ema
        self.average = MovingAverage(self.G, ema.ema_decay, ema.ema_start) if ema.ema else None
        self.step, self.best = 0, None

    @property
    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer | None]:
        """By their name in a checkpoint; None for what this run does without."""
        G_ema = self.average and self.average.module
        return {"G": self.G, "D": self.D, "G_ema": G_ema, "opt_G": self.opt_G, "opt_D": self.opt_D}

    @property
    def evaluated(self) -> nn.Module:
        """The generator that is evaluated and sampled: the moving average where there is one."""
        return self.average.module if self.average else self.G

    def finish_step(self, step: int) -> None:
        """Both networks have been updated for step `step`."""
        if self.average:
            self.average.update(step)
        self.step = step

    def state_dict(self) -> dict:
        parts = {name: part and part.state_dict() for name, part in self.parts.items()}
        return {"step": self.step, "best": self.best, **parts}

    def best_state_dict(self) -> dict:
        """The evaluated generator alone, under the name of its part."""
        return {"step": self.step, "G_ema" if self.average else "G": self.evaluated.state_dict()}

    def load_state_dict(self, checkpoint: dict, path: Path) -> None:
        """Go on from a full checkpoint of the run folder `path`. Raises: utils.UserError if it does not fit."""
        for name, part in self.parts.items():
            if part is None:
                continue
            if checkpoint.get(name) is None:
                raise utils.UserError(f"the newest checkpoint of {path} holds no {name}")
            if isinstance(part, nn.Module):
                BigGAN.load_state(part, checkpoint[name], path)
            else:
                part.load_state_dict(checkpoint[name])
        self.step, self.best = checkpoint["step"], checkpoint["best"]

    def checkpoint_bytes(self) -> tuple[int, int]:
        """Sizes of a full checkpoint and of a best one."""
        sizes = {name: _num_bytes(part) for name, part in self.parts.items() if part is not None}
        return sum(sizes.values()), sizes["G"]


def _num_bytes(part):
    if isinstance(part, nn.Module):
        return sum(t.numel() * t.element_size() for t in part.state_dict().values())
    # Adam's two moments
    return sum(2 * p.numel() * p.element_size() for group in part.param_groups for p in group["params"])
