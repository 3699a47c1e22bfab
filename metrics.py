"""Metrics as pure functions of features and logits: moments, Frechet distance, Inception score.

Symbols: N images, d features, K classes of the feature network.
All statistics are float64 and stay on the device of their input.
"""

import torch

import utils


class RunningMoments:
    """Mean and covariance of a stream of features, in float64; parts may be merged in any order.

    Sums of squares about the mean are kept, and joined by the pairwise update of Chan, Golub and LeVeque 1979: no
    cancellation, wherever the mean lies.
    """

    def __init__(self):
        self.count, self.mean, self.scatter = 0, None, None

    def update(self, features):
        """features: (n,d), any float type; n may be 0."""
        if not len(features):
            return
        part, x = RunningMoments(), features.double()
        part.count, part.mean = len(x), x.mean(0)
        part.scatter = (x - part.mean).T @ (x - part.mean)
        self.merge(part)

    def merge(self, other):
        """Add what another RunningMoments has seen."""
        if not other.count:
            return
        if not self.count:
            self.count, self.mean, self.scatter = other.count, other.mean.clone(), other.scatter.clone()
            return
        total, shift = self.count + other.count, other.mean - self.mean
        self.scatter += other.scatter + torch.outer(shift, shift) * (self.count * other.count / total)
        self.mean += shift * (other.count / total)
        self.count = total

    def finalize(self):
        """Returns: mu (d,), sigma (d,d) unbiased as in numpy.cov, float64. Raises: UserError for under 2 images."""
        if self.count < 2:
            raise utils.UserError(f"{self.count} image(s) are too few for a covariance")
        return self.mean, self.scatter / (self.count - 1)


def frechet_distance(mu1, sigma1, mu2, sigma2):
    """Squared Frechet distance of two Gaussians (Dowson and Landau 1982; FID: Heusel et al. 2017, arXiv:1706.08500).

    Args: mu: (d,); sigma: (d,d) symmetric, positive semidefinite up to rounding; tensors or arrays. Of two covariances
        the one of lower rank is best passed first.
    Returns: float, never below 0 nor NaN. Raises: UserError where a moment is not finite.
    """
    moments = [torch.as_tensor(moment, dtype=torch.float64) for moment in (mu1, sigma1, mu2, sigma2)]
    if not all(moment.isfinite().all().item() for moment in moments):
        raise utils.UserError("the moments of the features are not finite: there is no Frechet distance")
    return frechet_tensor(*(moment.to(moments[0].device) for moment in moments)).item()


def frechet_tensor(mu1, sigma1, mu2, sigma2):
    """`frechet_distance` as a 0-dimensional tensor, from float64 tensors on one device."""
    # sigma1 = V diag(w) V' = L L'. The trace of (sigma1^1/2 sigma2 sigma1^1/2)^1/2 is the sum of the roots of the
    # eigenvalues of L' sigma2 L, a symmetric matrix: they are real, and rounding alone makes any of them negative.
    w, v = torch.linalg.eigh(sigma1)
    # The roots of eigenvalues that are nothing but rounding would be as large as 1e-8.
    w = torch.where(w > len(w) * torch.finfo(w.dtype).eps * w[-1], w, 0)
    root = v * w.sqrt()
    product = root.T @ sigma2 @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * cross
    return distance.clamp(min=0)


class RunningInceptionScore:
    """Inception score (Salimans et al. 2016, arXiv:1606.03498) of a stream of logits, a score for each split.

    KL(p || q) averaged over a split's images, q their mean, is the mean of sum p log p plus the entropy of q: sums over
    images suffice, and no logits need be kept.
    """

    def __init__(self, splits):
        self.splits, self.mass, self.negentropy, self.count = splits, 0, 0, 0

    def update(self, logits, split):
        """logits: (n,K); split: int64 (n,), which split each image belongs to, on the same device."""
        log_p = logits.double().log_softmax(1)
        p = log_p.exp()
        member = (split[:, None] == torch.arange(self.splits, device=split.device)).double()  # (n,splits)
        self.mass = self.mass + member.T @ p  # (splits,K)
        self.negentropy = self.negentropy + member.T @ (p * log_p).sum(1)  # (splits,)
        self.count = self.count + member.sum(0)  # (splits,)

    def scores(self):
        """exp of the mean divergence: (splits,) float64."""
        q = self.mass / self.count[:, None]
        return (self.negentropy / self.count + torch.special.entr(q).sum(1)).exp()

    def finalize(self):
        """Returns: mean and (population) standard deviation over the splits, floats."""
        scores = self.scores()
        return scores.mean().item(), scores.std(correction=0).item()


def contiguous_splits(num_images, splits):
    """The split of each image, N images being cut at i N // splits: int64 (N,). Raises: UserError if N < splits."""
    if num_images < splits:
        raise utils.UserError(f"an Inception score over {splits} splits needs as many images, not {num_images}")
    return ((torch.arange(num_images) + 1) * splits - 1) // num_images


def inception_score(logits, splits=10):
    """Inception score over contiguous splits: logits (N,K), whose order must not follow the class, to (mean, std)."""
    score = RunningInceptionScore(splits)
    for part, split in zip(logits.split(4096), contiguous_splits(len(logits), splits).split(4096), strict=True):
        score.update(part, split.to(part.device))
    return score.finalize()
