"""The numbers of docs/scaling.md."""

import dataclasses
import re

import pytest

from tools import count_scaling
from tools.count_scaling import Counts, Machine

COUNTS = Counts(
    parameters=(10, 20), flops=8e12, forwards=(4, 4), images=8, passes=(2, 2), gradients=4 * 30, norms=3 * 6,
    channels=50, evaluation=0.0, checkpoint=0, disk=0, data=0,
)  # fmt: skip


def test_a_step_on_one_gpu_computes_and_moves_weights():
    machine = Machine(flops=1e12, memory=1.0)
    # 5 x 4 bytes of each weight in each of 4 forwards, 7 x 4 of each for Adam
    assert COUNTS.step_seconds(1, machine=machine) == pytest.approx(8 + 5 * 4 * 30 * 4 + 7 * 4 * 30)


def test_more_gpus_share_the_operations_and_send_gradients():
    machine = Machine(flops=1e12, memory=1e30, bandwidth_inside=1.0, latency_inside=0.5)
    own, over_all = (COUNTS.step_seconds(4, cross_replica, machine) for cross_replica in (False, True))
    assert own == pytest.approx(8 / 4 + 2 * 3 / 4 * 120 + 0.5)
    # 3 layers, each with a forward in 4 passes and a backward in 2 of them: 2 float32 numbers a channel
    assert over_all - own == pytest.approx(2 * 3 / 4 * 6 * 8 * 50 + 18 * 0.5)


def test_passes_are_taken_together_where_one_has_fewer_images_than_gpus():
    machine = Machine(flops=1e12, memory=1e30, bandwidth_between=1e30, latency_between=1.0)
    assert COUNTS.step_seconds(16, True, machine) == pytest.approx(8 / 16 + 1 + 9)
    assert COUNTS.step_seconds(32) is None and COUNTS.efficiency(32) is None
    assert dataclasses.replace(COUNTS, passes=(4, 4)).efficiency(32) < 1


def test_the_page_has_a_row_of_each_imagenet_configuration_in_each_table():
    page = count_scaling.PAGE.read_text()
    scripts = (count_scaling.ROOT / "scripts").glob("launch_*.sh")
    for script in scripts:
        imagenet = "cifar" not in script.stem
        assert len(re.findall(rf"^\| `{script.stem}` \|", page, re.M)) == (3 if imagenet else 0), script.stem


@pytest.mark.slow
def test_the_page_is_current():
    text = count_scaling.PAGE.read_text()
    assert text == count_scaling.filled(text), "python tools/count_scaling.py"
