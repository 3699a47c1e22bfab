"""What is computed in which type.

Networks hold float32 weights. With mixed precision their convolutions and matrix products run in bfloat16 or float16,
and so do the feature maps between them; what needs more digits or more range asks for it with `full_precision`.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from utils import Options, option

# --amp -> the type of feature maps; None: that of the weights
AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


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


class LossScaler(torch.amp.GradScaler):
    """GradScaler (Micikevicius et al. 2018, section 3.2) of one optimizer, which counts the steps that it leaves out.

    Where the scaled gradients overflow, the optimizer's step is skipped and the scale halved; after many good steps it
    is doubled. `skipped`: steps left out so far, `in_a_row`: the last ones of them.
    """

    skipped = in_a_row = 0

    def finish_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step, unless unscaled gradients (of `unscale_`) are not finite, and adapt the scale."""
        before = self.get_scale()
        self.step(optimizer)
        self.update()
        overflowed = self.get_scale() < before
        self.skipped += overflowed
        self.in_a_row = self.in_a_row + 1 if overflowed else 0

    def state_dict(self) -> dict:
        return super().state_dict() | {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]


def autocast(device_type: str, dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    """Autocast to a type of AMP; for None nothing changes."""
    return torch.autocast(device_type, dtype) if dtype else contextlib.nullcontext()


def amp_name(dtype: torch.dtype | None) -> str | None:
    """The name in AMP of a type of feature maps; None for that of the weights."""
    return next((name for name, known in AMP.items() if known and known == dtype), None)


def no_autocast(device_type: str) -> contextlib.AbstractContextManager:
    """What is computed here keeps the type of its inputs."""
    known = torch.amp.is_autocast_available(device_type)  # not that of the meta device
    return torch.autocast(device_type, enabled=False) if known else contextlib.nullcontext()


@contextlib.contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Neither autocast nor TF32, whatever training uses: both move features by 1e-3, hence distances."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        with no_autocast(device_type):
            yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def widened(x: torch.Tensor) -> torch.Tensor:
    """x as float32 if it is bfloat16 or float16, else as it is."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
