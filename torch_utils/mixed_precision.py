"""The flags of precision and compilation, and what float16 needs beside them."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from torch_utils.precision import AMP
from utils import Options, UserError, option


@dataclass(frozen=True)
class PrecisionOptions(Options):
    """In which type networks compute."""

    title = "precision and compilation"

    amp: str = option(
        "off",
        "mixed precision: feature maps and products in bfloat16 or float16; weights, optimizers, moving average, "
        "spectral norm, statistics and losses stay float32",
        choices=tuple(AMP),
    )
    tf32: bool = option(True, "on GPUs that have it: float32 products by TensorFloat-32, as their vendor advises")
    cudnn_benchmark: bool = option(
        True,
        "on GPUs: have cuDNN try its algorithms first, for shapes that stay the same; not with --deterministic",
        changeable=True,
    )
    compile: bool = option(
        False,
        "compile both networks for training: minutes at the first step, faster ones after it; for GPUs",
        changeable=True,
    )

    def apply(self, *networks: nn.Module) -> None:
        """Have networks compute so, but for `compile`."""
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self.tf32
        for network in networks:
            network.amp = AMP[self.amp]

    def scaler(self, device: torch.device) -> "LossScaler | None":
        """What keeps small gradients of a network from becoming 0 in float16; the other types need none."""
        return LossScaler(device.type) if self.amp == "fp16" else None


@contextlib.contextmanager
def compilation(wanted: bool) -> Iterator[None]:
    """Raise utils.UserError where a network within cannot be compiled, if that is wanted."""
    if not wanted:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    try:
        yield
    except TorchDynamoException as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--compile cannot be had here ({reason}); train without it") from error


class LossScaler(torch.amp.GradScaler):
    """GradScaler (Micikevicius et al. 2018, section 3.2) of one optimizer, which counts the steps that it leaves out.

    Where the scaled gradients overflow, the optimizer's step is skipped and the scale halved; after many good steps it
    is doubled. `skipped`: steps left out so far, `in_a_row`: the last ones of them, `told`: what `newly_skipped` has
    told of.
    """

    skipped = in_a_row = told = 0

    def finish_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step, unless unscaled gradients (of `unscale_`) are not finite, and adapt the scale."""
        before = self.get_scale()
        self.step(optimizer)
        self.update()
        overflowed = self.get_scale() < before
        self.skipped += overflowed
        self.in_a_row = self.in_a_row + 1 if overflowed else 0

    def newly_skipped(self) -> int:
        """Steps left out since it was asked last."""
        new, self.told = self.skipped - self.told, self.skipped
        return new

    def state_dict(self) -> dict:
        return super().state_dict() | {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]
        self.told = self.skipped
