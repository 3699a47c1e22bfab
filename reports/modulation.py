"""What spatial self-modulation does: its maps, and images with parts of it taken out or exchanged.

Symbols: N samples, C channels and H the side of a stage, K classes of the model.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from reports.pictures import coloured, enlarged, interleaved, with_scale
from sampling.sheets import render
from sssm import SpatialSelfModulation, Stage
from torch_utils.images import image_grid

EXCHANGES = ("z", "class")  # what the second stream can have of another sample


class StageMaps(NamedTuple):
    """Gain (beyond 1) and bias of a stage, (N,C,H,H) each; gain's C may be less (group_gain), bias None (gain).

    side: of the main stream's maps there; H itself is 1 of a second stream without space.
    """

    side: int
    gain: Tensor
    bias: Tensor | None

    @property
    def named(self) -> dict[str, Tensor]:
        return {"gain": self.gain} | ({} if self.bias is None else {"bias": self.bias})


@torch.no_grad()
def modulation_maps(G: nn.Module, z: Tensor, y: Tensor) -> list[StageMaps]:
    """The maps of every stage of a generator that SSM modulates, in one forward of z (N,dim_z) and y (N,), on the CPU.

    Of `global_voxel` those of every position: what it does to whole channels before is not among them.
    """
    found = []

    def look(stage, args, outputs):
        s, h = outputs
        gain, bias = (
            stage.scaled(head(s)).float().cpu() if head else None for head in (stage.gain, getattr(stage, "bias", None))
        )
        found.append(StageMaps(h.shape[-1], gain, bias))

    device = next(G.parameters()).device
    with contextlib.ExitStack() as stack:
        for stage in G.ssm.modulating.values():
            stack.enter_context(stage.register_forward_hook(look))
        G(z.to(device), y.to(device))
    return found


@contextlib.contextmanager
def unmodulated(*stages: Stage) -> Iterator[None]:
    """Within the block the stages' gains are 1 and their biases 0. The normalisation, where there is one, stays:
    without it the stages behind would see maps of another size than they ever saw."""
    with contextlib.ExitStack() as stack:
        for stage in stages:
            for name in ("gain", "bias", "global_gain", "global_bias"):
                if head := getattr(stage, name, None):
                    hook = head.register_forward_hook(lambda head, args, maps: torch.zeros_like(maps))
                    stack.enter_context(hook)
        yield


@contextlib.contextmanager
def second_stream_of(ssm: SpatialSelfModulation, z: Tensor | None = None, y: Tensor | None = None) -> Iterator[None]:
    """Within the block the second stream sees this z (N,dim_z), or these classes y (N,), instead of the main one's."""
    with contextlib.ExitStack() as stack:
        if y is not None:
            stack.enter_context(ssm.embedding.register_forward_pre_hook(lambda layer, args: (y,)))
        if z is not None:
            hook = ssm.linear.register_forward_pre_hook(
                lambda layer, args: (torch.cat([args[0][:, : -z.shape[1]], z.to(args[0])], dim=1),)
            )
            stack.enter_context(hook)
        yield


def without_stages(G: nn.Module, z: Tensor, y: Tensor) -> list[Tensor]:
    """The images of z and y, uint8 (N,3,R,R), with each stage that modulates taken out in turn, and at last all."""
    stages = list(G.ssm.modulating.values())
    images = []
    for chosen in [*([stage] for stage in stages), stages]:
        with unmodulated(*chosen):
            images.append(render(G, z, y))
    return images


def exchanged(G: nn.Module, z: Tensor, y: Tensor, what: str) -> Tensor:
    """Each sample's main stream with the second stream of each other: uint8 (N*N,3,R,R), row by main stream.

    what: `z` or `class`: what the second stream has of the other sample, the rest being the main stream's.
    On the diagonal are the samples themselves.
    """
    images, device = [], next(G.parameters()).device
    for i in range(len(z)):
        main_z, main_y = z[i].expand_as(z), y[i].expand_as(y)
        for part in torch.arange(len(z)).split(4):  # as many at a time as any machine takes
            other = {"z": z[part].to(device)} if what == "z" else {"y": y[part].to(device)}
            with second_stream_of(G.ssm, **other):
                images.append(render(G, main_z[part], main_y[part]))
    return torch.cat(images)


# ---------------------------------------------------------------------------------------------------------------------
# Sheets


def overview_sheet(images: Tensor, stages: Sequence[StageMaps], rows: Sequence[str]) -> Image.Image:
    """A row per sample: the image, then for each stage the magnitudes of gain and bias, means over the channels.

    A column goes from 0 to its largest value, which stands above it.
    """
    tiles = enlarged(images)
    columns, names = [tiles], ["image"]
    for maps in stages:
        for kind, values in maps.named.items():
            magnitude = values.abs().mean(dim=1)  # (N,H,H)
            top = magnitude.max().item()
            columns.append(coloured(magnitude, 0, top, tiles.shape[-1]))
            names.append(f"{maps.side}x{maps.side}: |{kind}| to {top:.3g}")
    sheet = image_grid(interleaved(columns), len(names), names, scale=1, left=rows)
    return with_scale(sheet, "magnitude 0", "the largest of the column")


def channels_sheet(images: Tensor, maps: StageMaps, rows: Sequence[str], number: int) -> Image.Image:
    """A row per sample: the image, then of gain and of bias the `number` channels that vary most over the positions.

    A column goes from its lowest value to its highest, which stand above it.
    """
    tiles = enlarged(images)
    columns, names = [tiles], ["image"]
    for kind, values in maps.named.items():
        for channel in most_varied(values, number):
            chosen = values[:, channel]
            low, high = chosen.min().item(), chosen.max().item()
            columns.append(coloured(chosen, low, high, tiles.shape[-1]))
            names.append(f"{kind} {channel}: {low:.2g} to {high:.2g}")
    sheet = image_grid(interleaved(columns), len(names), names, scale=1, left=rows)
    return with_scale(sheet, "the lowest of the column", "the highest")


def most_varied(values: Tensor, number: int) -> list[int]:
    """Channels of (N,C,H,H) whose standard deviation over the positions, averaged over the samples, is largest."""
    spread = values.flatten(2).std(dim=2, correction=0).mean(dim=0)
    return spread.topk(min(number, len(spread))).indices.tolist()


def without_sheet(images: Tensor, without: Sequence[Tensor], sides: Sequence[int], rows: Sequence[str]) -> Image.Image:
    """A row per sample: the image, then without the modulation of each stage, then without any.

    Above each column stands by how many grey levels its images differ from the samples, on average.
    """
    what = [f"without {side}x{side}" for side in sides] + ["without any"]
    change = [(other.float() - images.float()).abs().mean().item() for other in without]
    names = ["image", *(f"{name}: {levels:.3g} of 255" for name, levels in zip(what, change, strict=True))]
    tiles = [enlarged(pictures) for pictures in (images, *without)]
    return image_grid(interleaved(tiles), len(names), names, scale=1, left=rows)


def exchange_sheet(images: Tensor, names: Sequence[str], what: str) -> Image.Image:
    """The grid of `exchanged`: images (N*N,3,R,R), names of the samples."""
    columns = [f"modulation's {what} of {name}" for name in names]
    return image_grid(enlarged(images), len(names), columns, scale=1, left=[f"main stream of {name}" for name in names])
