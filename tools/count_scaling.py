"""Fill in the tables of docs/scaling.md: what the ImageNet configurations compute, send, keep and would gain from GPUs.

    python tools/count_scaling.py

Counts are of the networks that the launch scripts' own flags build, on the meta device: nothing is computed. Times and
efficiencies follow from them by the assumptions of `Machine`, which stand on the page: nothing is timed.
"""

import functools
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

import train
import utils
from tools.count_models import ROOT, script_flags
from training import model_size, plan, run_folder

PAGE = ROOT / "docs" / "scaling.md"
GPUS = (8, 64, 256)
IMAGENET = 1_281_167  # training images
EVALUATED = 50_000  # images of an evaluation


@dataclass(frozen=True)
class Machine:
    """What is assumed of GPUs and of what joins them; none of it has been measured here."""

    flops: float = 40e12  # that a GPU computes a second: a quarter of an A100's TF32 peak
    memory: float = 1.5e12  # bytes a second to and from its memory
    per_node: int = 8
    bandwidth_inside: float = 200e9  # bytes a second and GPU, within a node
    bandwidth_between: float = 20e9  # between nodes
    latency_inside: float = 30e-6  # seconds of a small message over all GPUs
    latency_between: float = 80e-6

    def reduce_seconds(self, num_bytes: float, messages: int, gpus: int) -> float:
        """Of so many all-reduces of so many bytes together, by rings: each GPU sends 2 (n-1)/n of them."""
        inside = gpus <= self.per_node
        bandwidth = self.bandwidth_inside if inside else self.bandwidth_between
        latency = self.latency_inside if inside else self.latency_between
        return 2 * (gpus - 1) / gpus * num_bytes / bandwidth + messages * latency


MACHINE = Machine()


@dataclass(frozen=True)
class Counts:
    """Of one step of G with its steps of D, and of what is kept. Pairs are (of G, of D); sizes in bytes."""

    parameters: tuple[int, int]
    flops: float
    forwards: tuple[int, int]  # of each network, in all passes
    images: int  # of a pass
    passes: tuple[int, int]  # accumulated in a step
    gradients: int  # reduced over all GPUs
    norms: int  # messages of cross-replica batch norm
    channels: int  # of all batch norms together
    evaluation: float  # operations of G for EVALUATED images
    checkpoint: int
    disk: int
    data: int  # bytes of the images

    def step_seconds(self, gpus: int, cross_replica: bool = False, machine: Machine = MACHINE) -> float | None:
        """A step's time, nothing overlapping; None where there are fewer images than GPUs."""
        folded = 1
        while self.images * folded % gpus and folded < min(self.passes):  # one pass instead of several: the same step
            folded *= 2
        if self.images * folded % gpus:
            return None
        weights = [4 * number for number in self.parameters]
        # What each GPU does alike, whatever its part of the batch: spectral norm reads the weights four times a forward
        # and writes them once; Adam reads and writes seven numbers a weight.
        forwards = [number / folded for number in self.forwards]
        alike = sum(5 * w * f for w, f in zip(weights, forwards, strict=True)) + 7 * (weights[0] + self._D_gradients)
        seconds = self.flops / gpus / machine.flops + alike / machine.memory
        if gpus > 1:
            seconds += machine.reduce_seconds(self.gradients, 1 + self.gradients // 2**20 // 25, gpus)
            if cross_replica:
                norms = self.norms / folded
                seconds += machine.reduce_seconds(norms / self.num_norms * 2 * 4 * self.channels, norms, gpus)
        return seconds

    @property
    def _D_gradients(self) -> int:
        return self.gradients - 4 * self.parameters[0]

    @property
    def num_norms(self) -> int:
        """Of layers of batch norm."""
        return self.norms // (self.forwards[0] + self.passes[0])

    def efficiency(self, gpus: int, cross_replica: bool = False) -> float | None:
        """Of one GPU's time, divided by all that `gpus` of them take; None as `step_seconds`."""
        seconds = self.step_seconds(gpus, cross_replica)
        return seconds and self.step_seconds(1) / (gpus * seconds)


@functools.cache
def counts(script: Path) -> Counts:
    """The Counts of a launch script's configuration."""
    options, _ = train.parse_args(script_flags(script, "--dry_run"))
    config, steps = plan.assumed_config(options), options.steps
    networks = model_size.build_on_meta(config)
    macs = model_size.multiply_adds(config, fused=True)
    parameters = tuple(map(model_size.num_parameters, networks))
    norms = [layer for layer in networks[0].modules() if isinstance(layer, nn.BatchNorm2d)]
    D_passes, G_passes = steps.D_passes, steps.num_G_accumulations
    sizes = model_size.checkpoint_bytes(config, options.ema.number)
    return Counts(
        parameters=parameters,
        flops=2 * options.step_multiply_adds(macs),
        forwards=(D_passes + G_passes, D_passes + G_passes),
        images=options.batches.batch_size,
        passes=(G_passes, steps.num_D_accumulations),
        gradients=4 * (parameters[0] + steps.num_D_steps * parameters[1]),
        norms=len(norms) * (D_passes + 2 * G_passes),  # a backward has one too
        channels=sum(norm.num_features for norm in norms),
        evaluation=2 * EVALUATED * macs[0],
        checkpoint=sizes[0],
        disk=run_folder.room(options.reports.copies, sizes),
        data=IMAGENET * 3 * config.resolution**2,
    )


@functools.cache
@torch.no_grad()
def inception_flops() -> int:
    """Operations of torchvision's Inception-v3 for one image of 299x299."""
    from torch.utils.flop_counter import FlopCounterMode
    from torchvision.models import inception_v3

    with torch.device("meta"):
        network = inception_v3(weights=None, init_weights=False, aux_logits=False, transform_input=False).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, 299, 299))
    return counter.get_total_flops()


# ---------------------------------------------------------------------------------------------------------------------
# Cells: of the table whose heading names them


def sent(c: Counts) -> list[str]:
    """Operations, gradients and batch norm of a step."""
    volume = 2 * 4 * c.channels * c.norms / c.num_norms
    return [
        f"{c.images * c.passes[1]:,}",
        f"{c.flops / 1e12:,.1f}",
        f"{c.gradients / 1e6:,.0f}",
        f"{c.norms:,}",
        f"{volume / 1e6:,.2f}",
        f"{c.flops / c.gradients:,.0f}",
    ]


def gained(c: Counts) -> list[str]:
    """A step's milliseconds on one GPU, and efficiencies: own batch norm, and over all."""
    cells = [f"{1e3 * c.step_seconds(1):,.0f}"]
    for gpus in GPUS:
        shares = [c.efficiency(gpus, cross_replica) for cross_replica in (False, True)]
        cells.append("-" if None in shares else " / ".join(f"{100 * share:.0f} %" for share in shares))
    return cells


def kept(c: Counts) -> list[str]:
    """Evaluation, disk and memory."""
    evaluation = c.evaluation + EVALUATED * inception_flops()
    return [
        f"{evaluation / 1e15:,.2f}",
        f"{evaluation / MACHINE.flops:,.0f}",
        f"{c.checkpoint / 2**20:,.0f}",
        f"{c.disk / 2**30:,.1f}",
        f"{c.data / 1e9:,.1f}",
    ]


TABLES = {"Sent": sent, "Gained": gained, "Kept": kept}


def filled(text: str) -> str:
    """The page with the cells of its rows of scripts filled in, by the heading that they stand under."""
    lines, cells_of = text.splitlines(), None
    for i, line in enumerate(lines):
        if line.startswith("## "):
            cells_of = TABLES.get(line[3:].split(":")[0])
        if cells_of and (named := re.match(r"\| `(launch_\w+)`", line)):
            lines[i] = f"| `{named[1]}` | " + " | ".join(cells_of(counts(ROOT / "scripts" / f"{named[1]}.sh"))) + " |"
    return "\n".join(lines) + "\n"


def main():
    text = filled(PAGE.read_text())
    with utils.atomic_path(PAGE) as temporary:
        temporary.write_text(text)
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    utils.run_main(main)
