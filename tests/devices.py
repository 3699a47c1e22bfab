"""The devices that tests of tests/gpu go through: the CPU, so that only the device is new on a GPU, and the GPU."""

import pytest

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
DEVICES = ["cpu", GPU]
# where it takes long: on the CPU only with `pytest -m rehearsal`
LONG_DEVICES = [pytest.param("cpu", marks=pytest.mark.rehearsal), GPU]
