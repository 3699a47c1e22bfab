"""Power-law averages of a path of weights, and those of any other length as sums of stored ones (Karras et al. 2024).

"Analyzing and Improving the Training Dynamics of Diffusion Models" (arXiv:2312.02696, EDM2), section 3 and appendix C.
The average at step t weighs step s by s^gamma: its length grows with the run, of which its deviation is always the same
share, sigma_rel. Lengths are named by that share; time is counted in steps, as only ratios matter.
"""

import argparse
import math
from collections.abc import Sequence

import numpy as np

# What sigma_rel can be: 1/sqrt(12), that of gamma 0, is the mean of all steps.
SHORTEST, LONGEST = 0.001, 1 / math.sqrt(12)


def widths(text: str) -> tuple[float, ...]:
    """argparse type: '0.05_0.10' or '0.05,0.1' to a tuple of sigma_rel, from the shortest average on."""
    try:
        values = [float(word) for word in text.replace(",", "_").split("_") if word.strip()]
    except ValueError:
        values = []
    if not values:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of relative widths such as 0.05_0.10")
    for value in values:
        if not is_width(value):
            raise argparse.ArgumentTypeError(
                f"{value:g}: a power-law average's relative width lies between {SHORTEST:g} and {LONGEST:.3f}"
            )
    return tuple(sorted(set(values)))


def is_width(value: float) -> bool:
    """Whether a power-law average can have this relative width."""
    return SHORTEST <= value < LONGEST


def exponent(sigma_rel: float) -> float:
    """gamma of an average of relative width sigma_rel = sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2).

    Equation 123 there, solved as in equation 126: a cubic whose largest root is gamma.
    """
    t = sigma_rel**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def decay(gamma: float, step: int) -> float:
    """beta = (1 - 1/t)^(gamma + 1) of step t = 1, 2, ... (equation 127): the first step's average is its weights."""
    return (1 - 1 / step) ** (gamma + 1)


def coefficients(
    stored: Sequence[tuple[int, float]], wanted: Sequence[tuple[int, float]]
) -> tuple[np.ndarray, np.ndarray]:
    """How much of each stored average makes each wanted one: least squares of their profiles over time (algorithm 3).

    Args: stored, wanted: (step, sigma_rel) of n and m averages.
    Returns: float64 (n,m), whose columns sum to 1, and (m,): the norm of what is missing of a wanted profile, as a
        share of that profile's: 0 is exact.
    """
    A, b, c = (products(one, other) for one, other in ((stored, stored), (stored, wanted), (wanted, wanted)))
    scale = 1 / np.sqrt(np.diag(A))  # profiles of length 1: they differ by orders of magnitude over a run
    x = scale[:, None] * np.linalg.lstsq(scale[:, None] * A * scale, scale[:, None] * b, rcond=1e-14)[0]
    x /= x.sum(axis=0)
    norms = np.diag(c)
    missing = norms - 2 * (x * b).sum(axis=0) + (x * (A @ x)).sum(axis=0)
    return x, np.sqrt(np.clip(missing, 0, None) / norms)


def products(one: Sequence[tuple[int, float]], other: Sequence[tuple[int, float]]) -> np.ndarray:
    """Inner products (n,m) of the profiles of n and of m averages, (step, sigma_rel) each (equation 151)."""
    step, width = np.array(one, dtype=np.float64).T[:, :, None]
    other_step, other_width = np.array(other, dtype=np.float64).T[:, None, :]
    gamma, other_gamma = (np.vectorize(exponent)(widths) for widths in (width, other_width))
    # of the profiles (gamma + 1) s^gamma / t^(gamma + 1), s up to t, the integral up to the earlier of both ends
    late = np.where(step < other_step, other_gamma, gamma)
    ratio = np.minimum(step, other_step) / np.maximum(step, other_step)
    return (gamma + 1) * (other_gamma + 1) * ratio**late / ((gamma + other_gamma + 1) * np.maximum(step, other_step))
