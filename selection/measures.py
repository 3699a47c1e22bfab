"""How densely the images of a class lie around each of them in feature space: what instance selection ranks them by.

DeVries, Drozdzal, Taylor 2020, "Instance Selection for GANs", arXiv:2007.15255, section 4.2: the log-likelihood under
one Gaussian, that under probabilistic PCA, and minus the distance to a near neighbour. Higher is denser.

Symbols: n images of one class, d features, c rows of a chunk, k principal components.
Statistics are float64 on the device of the features; nothing larger than the features themselves is held but a (d,d)
or (n,n) matrix, whichever is smaller.
"""

import math

import torch
from torch import Tensor

import prdc
from torch_utils.precision import values_alone

REGULARISATION = 1e-5  # added to the variances of the Gaussian, as published
EXPLAINED = 0.95  # share of the variance below which the principal components stay, as published
NEIGHBOUR = 5  # the neighbour that the distance is measured to, as published
CHUNK = 4096  # rows that are held in float64 at once, where n is above d


def gaussian_scores(features: Tensor) -> Tensor:
    """Log-likelihood of each image under the Gaussian fitted to all of them, its variances raised by 1e-5.

    Equals scikit-learn's GaussianMixture(1, reg_covar=1e-5).score_samples, in float64.
    Args: features: (n,d), any float type, n >= 1. Returns: (n,) float64.
    Raises: torch.linalg.LinAlgError where the features are not finite, or so large that 1e-5 vanishes beside them.
    """
    n, d = features.shape
    mean = _mean(features)
    if n > d:
        factor = torch.linalg.cholesky(_regularised(_covariance(features, mean)))  # (d,d)
        log_det = 2 * factor.diagonal().log().sum()
        whitened = (torch.linalg.solve_triangular(factor, x.T, upper=False) for x in _centred(features, mean))  # (d,c)
        mahalanobis = torch.cat([x.square().sum(0) for x in whitened])  # (n,)
    else:
        # X (X'X/n + r)^-1 X' = n (1 - r (XX'/n + r)^-1) for rows X: a matrix of n instead of d rows, and differences
        # between images that lie in d - n + 1 empty directions alike do not drown in rounding.
        factor = torch.linalg.cholesky(_regularised(_gram(features, mean) / n))  # (n,n)
        log_det = 2 * factor.diagonal().log().sum() + (d - n) * math.log(REGULARISATION)
        mahalanobis = n * (1 - REGULARISATION * torch.cholesky_inverse(factor).diagonal())  # (n,)
    return _log_likelihood(d, log_det, mahalanobis)


@values_alone()
def ppca_scores(features: Tensor) -> Tensor:
    """Log-likelihood of each image under probabilistic PCA (Tipping and Bishop 1999) of all of them.

    As many components as have a cumulative share of the variance below 95 %, and their mean of the rest in all other
    directions: scikit-learn's PCA(n_components).score_samples, in float64.
    Args: features: (n,d), any float type, n >= 1. Returns: (n,) float64; zeros where all images are alike.
    """
    n, d = features.shape
    mean = _mean(features)
    if n > d:
        variances, directions = torch.linalg.eigh(_covariance(features, mean) * (n / (n - 1)))  # (d,), (d,d)
    else:
        variances, directions = torch.linalg.eigh(_gram(features, mean) / max(n - 1, 1))  # (n,), (n,n)
    variances, directions = variances.flip(0).clamp(min=0), directions.flip(1)
    if variances[0] == 0:
        return torch.zeros(n, dtype=torch.float64, device=features.device)
    k = int((variances.cumsum(0) / variances.sum() < EXPLAINED).sum())
    noise = variances[k:].mean()
    variances, directions = variances[:k], directions[:, :k]
    if n <= d:  # of XX' = V S^2 V', X = V S U' gives U
        directions = torch.cat(list(_centred(features, mean))).T @ directions / (variances * (n - 1)).sqrt()  # (d,k)
    log_det = variances.log().sum() + (d - k) * noise.log()
    mahalanobis = []
    for x in _centred(features, mean):
        along = x @ directions  # (c,k)
        across = x - along @ directions.T  # (c,d)
        mahalanobis.append((along.square() / variances).sum(1) + across.square().sum(1) / noise)
    return _log_likelihood(d, log_det, torch.cat(mahalanobis))


def nn_dist_scores(features: Tensor) -> Tensor:
    """Minus the exact distance of each image to its 5th nearest neighbour, itself not counted.

    Args: features: (n,d), any float type, n >= 1; of 5 images or fewer, the farthest other one is measured to.
    Returns: (n,) float64; zero for a single image.
    """
    if len(features) == 1:
        return torch.zeros(1, dtype=torch.float64, device=features.device)
    return -prdc.radii(features.double(), min(NEIGHBOUR, len(features) - 1)).sqrt()


DENSITY_MEASURES = {"gaussian": gaussian_scores, "ppca": ppca_scores, "nn_dist": nn_dist_scores}


def _mean(features):
    """Mean (d,) float64, taken about the first row: equal features have exactly that mean."""
    origin = features[0].double()
    return origin + sum((part.double() - origin).sum(0) for part in features.split(CHUNK)) / len(features)


def _centred(features, mean):
    """The features less their mean, float64, in chunks (c,d)."""
    return (part.double() - mean for part in features.split(CHUNK))


def _covariance(features, mean):
    """(d,d), divided by n."""
    return sum(x.T @ x for x in _centred(features, mean)) / len(features)


def _gram(features, mean):
    """Inner products (n,n) of the centred features."""
    x = torch.cat(list(_centred(features, mean)))
    return x @ x.T


def _regularised(matrix):
    return matrix + REGULARISATION * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def _log_likelihood(d, log_det, mahalanobis):
    return -(d * math.log(2 * math.pi) + log_det + mahalanobis) / 2
