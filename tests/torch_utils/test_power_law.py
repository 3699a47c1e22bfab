"""Power-law averages and their least squares, against sums that are written out in float64."""

import argparse

import numpy as np
import pytest
from scipy import integrate

from torch_utils import power_law

STEPS, EVERY = 2000, 100
STORED = [(step, width) for step in range(EVERY, STEPS + 1, EVERY) for width in (0.05, 0.1)]


def profile(step, width):
    """How much each of STEPS steps counts in an average: what the decays of its steps make of it."""
    gamma, weights = power_law.exponent(width), np.zeros(STEPS)
    for t in range(1, step + 1):
        beta = power_law.decay(gamma, t)
        weights *= beta
        weights[t - 1] += 1 - beta
    return weights


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.10, 6.94)])  # the paper's two
def test_the_exponent_gives_the_relative_width(width, gamma):
    found = power_law.exponent(width)
    assert found == pytest.approx(gamma, abs=0.005)
    first, second = (integrate.quad(lambda x, n=n: (found + 1) * x ** (found + n), 0, 1)[0] for n in (1, 2))
    assert np.sqrt(second - first**2) == pytest.approx(width, rel=1e-8)


def test_the_decays_make_the_power_law():
    gamma = power_law.exponent(0.1)
    s = np.arange(STEPS + 1.0)
    direct = np.diff((s / STEPS) ** (gamma + 1))  # its integral over each step
    np.testing.assert_allclose(profile(STEPS, 0.1), direct, rtol=1e-9, atol=1e-15)
    assert power_law.decay(gamma, 1) == 0  # what it starts from does not count


def test_products_are_integrals():
    for one, other in [((700, 0.05), (1000, 0.1)), ((1000, 0.1), (700, 0.05)), ((1000, 0.05), (1000, 0.2))]:
        (t, g), (u, h) = ((step, power_law.exponent(width)) for step, width in (one, other))

        def product(s, t=t, g=g, u=u, h=h):
            return (g + 1) / t * (s / t) ** g * (h + 1) / u * (s / u) ** h

        direct = integrate.quad(product, 0, min(t, u), epsabs=1e-13)[0]
        assert power_law.products([one], [other])[0, 0] == pytest.approx(direct, rel=1e-8)


def test_a_stored_average_is_itself_and_others_come_close():
    wanted = [STORED[21], (STEPS, 0.05), (STEPS, 0.07), (STEPS, 0.15), (STEPS, 0.02), (1500, 0.08)]
    x, missing = power_law.coefficients(STORED, wanted)
    np.testing.assert_allclose(x.sum(0), 1)
    for i, k in ((0, 21), (1, len(STORED) - 2)):
        np.testing.assert_allclose(x[:, i], np.eye(len(STORED))[k], atol=1e-9)
    assert missing[:2].max() < 1e-6 and missing[2] < 0.01 and missing[3] < 0.01 and missing[5] < 0.01 < missing[4]
    profiles = np.stack([profile(*key) for key in STORED], axis=1)
    for i, key in enumerate(wanted):
        direct = profile(*key)
        told = np.linalg.norm(profiles @ x[:, i] - direct) / np.linalg.norm(direct)
        assert told == pytest.approx(missing[i], rel=0.02, abs=1e-4)


def test_widths_of_a_flag():
    assert power_law.widths("0.10_0.05") == power_law.widths("0.05,0.1,0.10") == (0.05, 0.1)
    for text in ("", "_", "a", "0.05_b", "0.05-0.1"):
        with pytest.raises(argparse.ArgumentTypeError, match="list of relative widths"):
            power_law.widths(text)
    for text in ("0", "-0.1", "0.3", "1", "nan", "inf", "1e-9"):
        with pytest.raises(argparse.ArgumentTypeError, match="lies between"):
            power_law.widths(text)
