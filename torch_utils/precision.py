"""What is computed in which type."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Neither autocast nor TF32, whatever training uses: both move features by 1e-3, hence distances."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed
