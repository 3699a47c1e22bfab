"""What is computed in which type.

Networks hold float32 weights. With mixed precision their convolutions and matrix products run in bfloat16 or float16,
and so do the feature maps between them; what needs more digits or range asks for it with `no_autocast` or `widened`.
"""

import contextlib
from collections.abc import Iterator

import torch

# --amp -> the type of feature maps; None: that of the weights
AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device_type: str, dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    """Autocast to a type of AMP; for None nothing changes.

    Without autocast's cache of cast weights: it is emptied where the outermost autocast ends, `no_autocast` included,
    and would hand out the weights of steps before as long as one encloses the training. No weight is used twice here.
    """
    return torch.autocast(device_type, dtype, cache_enabled=False) if dtype else contextlib.nullcontext()


def amp_name(dtype: torch.dtype | None) -> str | None:
    """The name in AMP of a type of feature maps; None for that of the weights."""
    return next((name for name, known in AMP.items() if known and known == dtype), None)


def no_autocast(device_type: str) -> contextlib.AbstractContextManager:
    """What is computed here keeps the type of its inputs."""
    # By name: asking PyTorch whether a device has autocast is what older compilers cannot trace.
    return contextlib.nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)


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


@contextlib.contextmanager
def values_alone() -> Iterator[None]:
    """Of what runs here only values are used, not the indices beside them.

    With deterministic algorithms PyTorch refuses some operations on GPUs for their indices alone, among equal elements
    (kthvalue, median), and cumsum for its rounding: --deterministic is of training, whose metrics may use them.
    """
    asked = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(asked, warn_only=warn_only)
