"""Whether training goes well: what is looked at, what counts as a collapse, what is done then (--on_collapse).

Each step leaves a mark on the device where a number is not finite; marks are read where training waits for the device
anyway: where losses are logged, and before anything is saved or evaluated. The rest is numbers that are logged.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

import utils
from torch_utils import schema
from torch_utils.distributed import Ranks
from torch_utils.mixed_precision import LossScaler
from torch_utils.schema import COUNT
from training.losses import WITH_FLOOR
from utils import Check, Options, option

FLOOR = 0.05  # D's loss on real and generated images together that is as good as none
GROWTH, OVER = 10, 100  # a singular value that grows so many times within about so many steps explodes ...
SMALL_SIGMA = 10.0  # ... unless it is a small one all the same
COVERED = 0.05  # coverage that was worth losing
MAX_SKIPPED = 40  # updates in a row that float16's loss scale may leave out: by then it is a millionth of a millionth

MARKS = ("losses", "gradients of G", "gradients of D", "weights of G", "weights of D")
NEVER = 2**62  # the step of a mark that there is not
OF_LOSSES, OF_METRICS = ("D_loss_floor", "singular_values"), ("fid", "fd", "coverage")  # kinds of findings


@dataclass(frozen=True)
class WatchOptions(Options):
    """What counts as a collapse of training, and what is done then."""

    title = "watchdog"

    on_collapse: str = option(
        "warn",
        "where training collapses (D's loss at its floor, exploding singular values, a distance far above its best, "
        "coverage 0): say so and go on, end the run, or go back to the last good checkpoint with fresh noise and lower "
        "learning rates. What is not finite ends the run, or goes back",
        choices=("warn", "stop", "rollback"),
        changeable=True,
    )
    rollback_lr: float = option(
        0.5,
        "both learning rates are multiplied by it at each rollback",
        check=Check(lambda x: 0 < x <= 1, "lie in (0, 1]"),
        changeable=True,
    )
    max_rollbacks: int = option(5, "rollbacks before the run ends", kind=utils.count, changeable=True)
    collapse_factor: float = option(
        3.0,
        "a collapse is FID or FD worse than so many times its best",
        check=Check(lambda x: 1 < x < math.inf, "be above 1"),
        changeable=True,
    )
    D_floor_steps: int = option(
        500, f"or D's loss below {FLOOR:g} for so many steps", kind=utils.positive_int, changeable=True
    )


class Finding(NamedTuple):
    """What is wrong: a name for the log, a line for people, the last step known to be without it."""

    kind: str
    text: str
    healthy: int
    fatal: bool = False  # whether there is no going on


class Collapse(Exception):
    """Training is to go back to before a Finding."""

    def __init__(self, finding: Finding):
        super().__init__(finding.text)
        self.finding = finding


@dataclass
class Memory:
    """What a checkpoint holds of the watchdog: plain numbers and strings.

    looked: the last step at which losses were looked at; healthy, evaluated: at which nothing was found in losses, and
    in metrics; floor_since: from which step on D's loss is at its floor; above_floor: the last look at which it was
    not, None before there is one; distance, coverage: the best so far; sigmas: what each singular value was of
    late; told: kinds of what is known already; lr_factor: of both learning rates; rollbacks: so far, each with `step`
    (gone back to), `noticed` (at which step), `kind`, `text` and `lr_factor`.
    """

    looked: int = 0
    healthy: int = 0
    evaluated: int = 0
    floor_since: int | None = None
    above_floor: int | None = None
    distance: float | None = None
    coverage: float | None = None
    sigmas: dict[str, float] = dataclasses.field(default_factory=dict)
    told: list[str] = dataclasses.field(default_factory=list)
    lr_factor: float = 1.0
    rollbacks: list[dict] = dataclasses.field(default_factory=list)


SIGMA = Check(lambda x: type(x) is float and 0 < x < math.inf, "be a positive number")
FACTOR = Check(lambda x: type(x) in (int, float) and 0 <= x <= 1, "be a number from 0 to 1")
# The same as a schema (torch_utils/schema.py), of what a checkpoint holds.
MEMORY = {
    **schema.of_dataclass(Memory),
    **dict.fromkeys(("looked?", "healthy?", "evaluated?"), COUNT),
    **dict.fromkeys(("floor_since?", "above_floor?"), (None, COUNT)),
    "sigmas?": {str: SIGMA},
    "lr_factor?": FACTOR,
    "rollbacks?": [{"step": COUNT, "noticed": COUNT, "kind": str, "text": str, "lr_factor": FACTOR}],
}


class Watchdog:
    """`memory`: what it knows; `first`: int64 (5,) on the device, the first step of each of MARKS, else NEVER."""

    def __init__(self, device: torch.device):
        self.memory = Memory()
        self.first = torch.full((len(MARKS),), NEVER, device=device)

    def state_dict(self) -> dict:
        return dataclasses.asdict(self.memory)

    def load_state_dict(self, state: dict) -> None:
        """Of a checkpoint, of before there was a watchdog where it is empty; marks begin anew."""
        known = {field.name for field in dataclasses.fields(Memory)}
        self.memory = Memory(**{name: value for name, value in state.items() if name in known})
        self.first.fill_(NEVER)

    def begin(self, step: int, sigmas: dict[str, float]) -> None:
        """Take what a run without a memory has got to for healthy."""
        self.memory = Memory(looked=step, healthy=step, evaluated=step, sigmas=_positive(sigmas))

    def forget_metrics(self) -> None:
        """From now on they are measured otherwise: what they were so far is not to be compared with."""
        memory = self.memory
        memory.distance = memory.coverage = None
        memory.told = [kind for kind in memory.told if kind not in OF_METRICS]

    def mark(
        self, step: int, terms: dict[str, Tensor], networks: Sequence[tuple[nn.Module, LossScaler | None]]
    ) -> None:
        """Note what is not finite after a step, without waiting for the device.

        Args: terms: 0-dim losses that count; networks: G and D, each with its scaler, which looks at gradients itself.
        """
        gradients = [
            [] if scaler else [p.grad for p in net.parameters() if p.grad is not None] for net, scaler in networks
        ]
        self._mark(step, [list(terms.values()), *gradients, [], []])

    def read(self, step: int, networks: Sequence[nn.Module], ranks: Ranks) -> Finding | None:
        """What has not been finite on any rank so far, weights and batch-norm statistics as they are now included.

        A number that is not finite in a weight stays so: there is no need to look at each step.
        """
        weights = [[t for t in (*net.parameters(), *net.buffers()) if t.is_floating_point()] for net in networks]
        self._mark(step, [[], [], [], *weights])
        if ranks.world_size > 1:
            torch.distributed.all_reduce(self.first, torch.distributed.ReduceOp.MIN)
        found = {name: first for name, first in zip(MARKS, self.first.tolist(), strict=True) if first != NEVER}
        if not found:
            return None
        first = min(found.values())
        text = f"{' and '.join(found)} are no longer finite (NaN or infinite), from step {first} on"
        return Finding("not_finite", text, first - 1, fatal=True)

    def _mark(self, step, groups):
        bad = torch.stack([_not_finite(tensors, self.first.device) for tensors in groups])
        self.first = torch.where(bad, self.first.clamp(max=step), self.first)

    def skipped(self, step: int, name: str, scaler: LossScaler, updates: int) -> Finding | None:
        """Whether gradients have overflowed float16 too often to be the loss scale's doing.

        updates: of the network in a step.
        """
        if scaler.in_a_row < MAX_SKIPPED:
            return None
        text = f"gradients of {name} overflow float16, whatever they are scaled by (--amp bf16 has no such limit)"
        return Finding("overflow", text, max(0, step - math.ceil(scaler.in_a_row / updates)), fatal=True)

    def examine_losses(self, step: int, means: dict, loss: str, sigmas: dict, options: WatchOptions) -> list[Finding]:
        """What is new and wrong with D's loss and the singular values.

        Args: means: of the losses; loss: --loss; sigmas: by layer (`layers.singular_values`).
        """
        memory = self.memory
        found = [
            self._floor(step, means, loss, options.D_floor_steps),
            self._explosion(step, sigmas, step - memory.looked),
        ]
        memory.looked = step
        return self._new(OF_LOSSES, found, memory.healthy, "healthy", step)

    def _floor(self, step, means, loss, patience):
        D_loss = [value for name, value in means.items() if name.startswith("D_loss")]
        if loss not in WITH_FLOOR or not D_loss or sum(D_loss) >= FLOOR:
            self.memory.floor_since, self.memory.above_floor = None, step
            return None
        self.memory.floor_since = since = self.memory.floor_since or step
        if step - since < patience:
            return None
        text = f"D's loss is at its floor (below {FLOOR:g} since step {since}): it tells real from generated at ease"
        above = self.memory.above_floor
        return Finding("D_loss_floor", text, since - 1 if above is None else above)

    def _explosion(self, step, sigmas, steps):
        """Each is compared with a geometric moving average of itself, which forgets within about OVER steps."""
        before, kept = self.memory.sigmas, math.exp(-max(0, steps) / OVER)
        growth = {name: now / before[name] for name, now in sigmas.items() if name in before and now > SMALL_SIGMA}
        self.memory.sigmas = {
            name: before.get(name, now) ** kept * now ** (1 - kept) for name, now in _positive(sigmas).items()
        }
        if not growth or max(growth.values()) < GROWTH:
            return None
        name = max(growth, key=growth.get)
        text = f"the largest singular value of {name} explodes: {before[name]:.3g} of late, {sigmas[name]:.3g} now"
        return Finding("singular_values", text, step)

    def examine_metrics(self, step: int, metrics: dict, factor: float) -> list[Finding]:
        """What is new and wrong with an evaluation; factor: --collapse_factor."""
        memory = self.memory
        healthy = memory.evaluated
        key = next((key for key in ("fid", "fd") if key in metrics), None)
        found = []
        if key:
            now, best = metrics[key], memory.distance
            if best is not None and not now <= factor * best:
                text = f"{key.upper()} {now:.4g} is more than {factor:g} times its best, {best:.4g}"
                found.append(Finding(key, text, healthy))
            if math.isfinite(now):
                memory.distance = now if best is None else min(best, now)
        if "coverage" in metrics:
            now, best = metrics["coverage"], memory.coverage or 0.0
            if now == 0 and best >= COVERED:
                found.append(Finding("coverage", f"coverage is 0, after {best:.3g} at its best", healthy))
            memory.coverage = max(best, now)
        return self._new(OF_METRICS, found, healthy, "evaluated", step)

    def _new(self, kinds, found, healthy, name, step):
        """Those of `found` that have not been told yet; without any the memory's `name` is this step."""
        found = [finding._replace(healthy=min(finding.healthy, healthy)) for finding in found if finding]
        memory = self.memory
        new = [finding for finding in found if finding.kind not in memory.told]
        others = [kind for kind in memory.told if kind not in kinds]
        memory.told = others + [finding.kind for finding in found]
        if not found:
            setattr(memory, name, step)
        return new


def _positive(sigmas):
    """Those that can be compared: not those of layers of zeros."""
    return {name: sigma for name, sigma in sigmas.items() if 0 < sigma < math.inf}


def _not_finite(tensors, device):
    """Whether any number of some tensors is not finite: bool (), on their device."""
    if not tensors:
        return torch.zeros((), dtype=torch.bool, device=device)
    with torch.no_grad():  # the cheapest way to look at all; what overflows a sum of squares overflows Adam's as well
        return ~torch.stack(torch._foreach_norm(tensors)).isfinite().all()
