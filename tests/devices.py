"""The devices that tests of tests/gpu go through: the CPU, so that only the device is new on a GPU, and the GPU."""

import pytest

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# where it takes long: on the CPU not between commits
SLOW_DEVICES = [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
