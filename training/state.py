"""What a run is: what stays the same while it trains, and what changes, and how that begins.

That is networks, moving average, optimizers, step and best evaluation.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import BigGAN
import layers
import utils
from inception_utils import Measure
from model_config import ModelConfig
from torch_utils.distributed import Ranks
from torch_utils.mixed_precision import LossScaler
from training import finetune
from training.ema import MovingAverage, PowerAverages
from training.logs import RunLog
from training.optimizers import make_optimizers
from training.options import EVALUATION, TrainOptions
from training.regularisation import Regularisation
from training.watchdog import Watchdog

# Of an optimizer, what the command says and not the checkpoint, which may be older, or of before --allow_change.
OF_THE_COMMAND = ("betas", "eps", "fused")
# Parts that a checkpoint has no entry for where a run does without them.
ONLY_WHERE_USED = ("scaler_G", "scaler_D", "regularisation", "G_power")
SMALL = ("scaler_G", "scaler_D", "regularisation")  # of few numbers: --allow_change can ask for them on the way


@dataclass(frozen=True)
class Run:
    """What stays the same while a run trains. `about`: what every checkpoint says of it; `log`: None but on rank 0."""

    options: TrainOptions
    folder: Path
    about: dict
    measure: Measure | None
    ranks: Ranks
    log: RunLog | None = None


class TrainingState:
    """All that a run needs to go on.

    `parts` lists what a checkpoint holds of it besides `step` (completed steps of G), `images_seen` (real images, by D)
    `best` (the record of `run_folder.better`), `watchdog` (what it remembers) and `evaluating`: saving, loading and the
    size estimate follow that one list. `evaluating`: whether the evaluation of this step is still to come.
    """

    def __init__(self, config: ModelConfig, options: TrainOptions, device: torch.device):
        """Freshly initialised; weights come from torch's global CPU seed."""
        # channels_last is the layout that convolutions are fastest in, on CPUs and on GPUs with tensor cores.
        self.G, self.D = (net.to(device, memory_format=torch.channels_last) for net in BigGAN.build(config))
        self.D.freeze(options.finetune.freeze_D)
        options.precision.apply(self.G, self.D)
        self.opt_G, self.opt_D = make_optimizers(self.G, self.D, options.optimizers)
        techniques = options.techniques
        self._fresh = dict.fromkeys(("scaler_G", "scaler_D"), lambda: options.precision.scaler(device))
        self._fresh["regularisation"] = lambda: Regularisation(techniques, device) if techniques.on else None
        self.scaler_G, self.scaler_D, self.regularisation = (self._fresh[name]() for name in SMALL)
        ema = options.ema
        self.average = MovingAverage(self.G, ema.ema_decay, ema.ema_start, ema.ema_ramp) if ema.ema else None
        self.power = PowerAverages(self.G, ema.ema_power) if ema.ema_power else None
        self.images_per_step = options.images_per_step
        self.watchdog, self.evaluating = Watchdog(device), False
        self.step, self.images_seen, self.best = 0, 0, None
        self.save_failures = 0  # full checkpoints in a row that could not be written; not part of one

    def compile(self) -> None:
        """Have both networks compiled at their next forward; the moving average, which is evaluated, stays as it is.

        In place: state dicts keep their keys. Raises at that forward, in `mixed_precision.compilation`, where a part
        cannot be compiled.
        """
        for network in (self.G, self.D):
            network.compile(fullgraph=True)

    @property
    def parts(self) -> dict[str, Any]:
        """Networks, optimizers and what else has a state dict, by its name in a checkpoint; None: not in this run."""
        G_ema = self.average and self.average.module
        networks = {"G": self.G, "D": self.D, "G_ema": G_ema, "opt_G": self.opt_G, "opt_D": self.opt_D}
        others = {name: getattr(self, name) for name in SMALL}
        return {**networks, **others, "G_power": self.power}

    @property
    def of_D(self) -> tuple:
        """The last arguments of `d_step`."""
        return self.scaler_D, self.regularisation

    @property
    def of_G(self) -> tuple:
        """The last arguments of `g_step`."""
        return self.scaler_G, self.regularisation

    @property
    def scalers(self) -> dict[str, LossScaler]:
        """By network; empty but in float16."""
        return {name: scaler for name in "GD" if (scaler := self.parts[f"scaler_{name}"])}

    @property
    def evaluated(self) -> nn.Module:
        """The generator that is evaluated and sampled: the moving average where there is one."""
        return self.average.module if self.average else self.G

    def finish_step(self, step: int) -> None:
        """Both networks have been updated for step `step`."""
        if self.average:
            self.average.update(step, self.images_seen, self.images_per_step)
        if self.power:
            self.power.update(step)
        self.step = step
        self.images_seen += self.images_per_step

    def state_dict(self) -> dict:
        parts = {name: None if part is None else part.state_dict() for name, part in self.parts.items()}
        parts = {name: state for name, state in parts.items() if state is not None or name not in ONLY_WHERE_USED}
        about = {"watchdog": self.watchdog.state_dict(), "evaluating": self.evaluating}
        return {"step": self.step, "images_seen": self.images_seen, "best": self.best, **about, **parts}

    def best_state_dict(self) -> dict:
        """The evaluated generator alone, under the name of its part."""
        generator = {"G_ema" if self.average else "G": self.evaluated.state_dict()}
        return {"step": self.step, "images_seen": self.images_seen, **generator}

    def power_state_dict(self) -> dict:
        """The power-law averages as they stand, and what else a generator of them needs: G's buffers."""
        parameters = dict(self.G.named_parameters())
        buffers = {name: tensor for name, tensor in self.G.state_dict().items() if name not in parameters}
        about = {"step": self.step, "images_seen": self.images_seen}
        return {**about, "averages": self.power.state_dict(), "buffers": buffers}

    def load_state_dict(self, checkpoint: dict, path: Path) -> None:
        """Go on from a full checkpoint of the run folder `path`. Raises: utils.UserError if it does not fit."""
        for name in set(SMALL) - checkpoint.keys():  # asked for later: where a run goes back to before that, anew
            setattr(self, name, self._fresh[name]())
        for name, part in self.parts.items():
            if part is None or (name in SMALL and name not in checkpoint):
                continue
            if checkpoint.get(name) is None:
                raise utils.UserError(f"the newest checkpoint of {path} holds no {name}")
            if isinstance(part, nn.Module):
                BigGAN.load_state(part, checkpoint[name], path)
                continue
            try:
                _load_others(part, checkpoint[name])
            except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
                raise utils.UserError(
                    f"the newest checkpoint of {path}: its {name} does not fit this model ({utils.first_line(error)})"
                ) from error
        self.D.requires_grad_(True)  # which a step of G takes away: DistributedDataParallel counts at its start
        self.step, self.images_seen, self.best = (checkpoint[name] for name in ("step", "images_seen", "best"))
        self.watchdog.load_state_dict(checkpoint.get("watchdog", {}))
        if "watchdog" not in checkpoint:  # of before there was one
            self.watchdog.begin(self.step, layers.singular_values(G=self.G, D=self.D))
        self.evaluating = checkpoint.get("evaluating", False)

    def checkpoint_bytes(self) -> tuple[int, int, int]:
        """Sizes of a full checkpoint, of a best one, and of stored power-law averages."""
        sizes = {name: _num_bytes(part) for name, part in self.parts.items() if part is not None}
        return sum(sizes.values()), sizes["G"], sizes.get("G_power", 0)


class Beginning(NamedTuple):
    """report: of `finetune.start_from`, or None; changes: of flags that --allow_change names, {flag: [before, now]}."""

    report: dict | None
    changes: dict[str, list]


def begin(
    state: TrainingState,
    options: TrainOptions,
    about: dict,
    folder: Path,
    checkpoint: dict | None,
    source: finetune.Source | None,
    class_rows: finetune.ClassRows | None,
) -> Beginning:
    """Give a fresh state what it starts from, in place; nothing is written.

    Args: about: see `run_folder.check_same_run`; checkpoint: the one that the run in `folder` goes on from, or None;
        source, class_rows: of --init_from, which counts where there is no such checkpoint.
    Raises: utils.UserError where one of them does not fit the command.
    """
    if checkpoint:
        changes = options.changes_since(checkpoint, about)
        state.load_state_dict(checkpoint, folder)
        measure = {"metric_weights"}.union(*({field.name for field in kind.fields()} for kind in EVALUATION))
        if changes.keys() & measure or any(name.startswith("reference_") for name in changes):
            # The best so far is of other numbers.
            state.best = None
            state.watchdog.forget_metrics()
        if checkpoint["args"].get("on_collapse", "warn") == "warn" != options.watch.on_collapse:
            state.watchdog.memory.told.clear()  # what was but told of can now be acted on
        return Beginning(None, changes)
    if source:
        return Beginning(finetune.start_from(source, state.G, state.D, state.average, class_rows.rows), {})
    return Beginning(None, {})


def _load_others(part, state):
    """Load the state dict of an optimizer or of another part. Raises: what these do, ValueError for other shapes."""
    if not isinstance(part, torch.optim.Optimizer):
        part.load_state_dict(state)
        return
    own = [{key: group[key] for key in OF_THE_COMMAND} for group in part.param_groups]
    part.load_state_dict(state)
    for group, options in zip(part.param_groups, own, strict=True):
        group.update(options)
    for parameter, moments in part.state.items():
        shapes = {name: tuple(tensor.shape) for name, tensor in moments.items() if torch.is_tensor(tensor)}
        if any(shape not in ((), tuple(parameter.shape)) for shape in shapes.values()):
            raise ValueError(f"shapes {shapes} of a parameter of {tuple(parameter.shape)}")


def _num_bytes(part):
    if isinstance(part, nn.Module):
        return sum(t.numel() * t.element_size() for t in part.state_dict().values())
    if isinstance(part, PowerAverages):
        return sum(t.numel() * t.element_size() for average in part.averages.values() for t in average.values())
    if not isinstance(part, torch.optim.Optimizer):
        return 0
    # Adam's two moments
    return sum(2 * p.numel() * p.element_size() for group in part.param_groups for p in group["params"])
