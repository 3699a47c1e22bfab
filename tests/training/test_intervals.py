"""When what happens at an interval is due."""

import pytest

from training.intervals import due
from training.options import ReportOptions

REPORTS = ReportOptions(test_every=6, save_every=4, sample_every=3, log_every=2, sv_log_interval=5)


def names(reports, step, last=False, stopped=False):
    found = due(reports, step, last, stopped)
    return {name for name, value in found._asdict().items() if value}


@pytest.mark.parametrize(
    "step, expected",
    [(1, ""), (2, "log"), (3, "sheet"), (4, "log save"), (5, "singular_values"), (12, "log test sheet save")],
)
def test_each_has_its_interval(step, expected):
    assert names(REPORTS, step) == set(expected.split())


def test_the_last_step_has_all_but_singular_values_and_a_signal_saves():
    assert names(REPORTS, 1, last=True) == {"log", "test", "sheet", "save", "ends"}
    assert names(REPORTS, 1, stopped=True) == {"save", "ends"}
    never = ReportOptions(test_every=0, sample_every=0)
    assert names(never, 1, last=True) == {"log", "sheet", "save", "ends"} and names(never, 7) == set()
    assert due(REPORTS, 4, False, False).pause and not due(REPORTS, 2, False, False).pause
