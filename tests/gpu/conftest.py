"""Float32 that is float32, and settings of the process that end with each test."""

import pytest
import torch

from torch_utils.precision import full_precision


@pytest.fixture(autouse=True)
def _float32():
    benchmark = torch.backends.cudnn.benchmark
    with full_precision("cpu"):  # no TF32; autocast is of the CPU's alone
        yield
    torch.backends.cudnn.benchmark = benchmark
