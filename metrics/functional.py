"""Metrics as pure functions of features, logits and labels: Frechet distance, Inception score, KID, accuracy.

Symbols: N images, d features, K classes of the feature network.
All statistics are float64 and stay on the device of their input.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

import utils

WAITING_ROWS = 4096  # features that wait to join running moments: 32 MiB of Inception's


class RunningMoments:
    """Mean and covariance of a stream of features, in float64; parts may be merged in any order.

    Sums of squares about the mean are kept, and joined by the pairwise update of Chan, Golub and LeVeque 1979: no
    cancellation, wherever the mean lies. Joining costs as much as the squares of some hundred rows: small batches wait
    until there are many.
    """

    def __init__(self):
        self.count, self.waiting = 0, []  # of all images; features not yet joined, each (n,d)
        self._joined, self._mean, self._scatter = 0, None, None  # how many are, and their moments

    @classmethod
    def of(cls, count: int, mu: Tensor, sigma: Tensor) -> "RunningMoments":
        """The inverse of `finalize`: moments (d,) and (d,d) of so many images."""
        moments = cls()
        moments._join(count, mu.clone(), sigma * (count - 1))
        moments.count = count
        return moments

    def update(self, features: Tensor) -> None:
        """features: (n,d), any float type; n may be 0. They are copied."""
        if not len(features):
            return
        self.count += len(features)
        for part in features.split(WAITING_ROWS):
            self.waiting.append(part.clone())
            if sum(len(part) for part in self.waiting) >= WAITING_ROWS:
                self.flush()

    def flush(self) -> None:
        """Join the features that wait: afterwards all tensors are attributes of this object."""
        if self.waiting:
            x = torch.cat([part.double() for part in self.waiting])
            self.waiting = []
            mean = x.mean(0)
            x -= mean
            self._join(len(x), mean, x.T @ x)

    def merge(self, other: "RunningMoments") -> None:
        """Add what another has seen."""
        other.flush()
        self.flush()
        if other.count:
            self._join(other.count, other._mean.clone(), other._scatter.clone())
            self.count += other.count

    def _join(self, count, mean, scatter):
        """Add the moments of so many more; takes the tensors over."""
        if self._mean is None:
            self._joined, self._mean, self._scatter = count, mean, scatter
            return
        total, shift = self._joined + count, mean.sub_(self._mean)
        self._scatter += scatter.addr_(shift, shift, alpha=self._joined * count / total)
        self._mean += shift * (count / total)
        self._joined = total

    def finalize(self) -> tuple[Tensor, Tensor]:
        """mu (d,) and sigma (d,d), unbiased as in numpy.cov, float64. Raises: UserError for under 2 images."""
        if self.count < 2:
            raise utils.UserError(f"{utils.counted(self.count, 'image')}: too few for a covariance")
        self.flush()
        return self._mean.clone(), self._scatter / (self.count - 1)


def moments_of(features: Tensor) -> RunningMoments:
    """The moments of features (N,d)."""
    moments = RunningMoments()
    moments.update(features)
    return moments


def frechet_distance(mu1: ArrayLike, sigma1: ArrayLike, mu2: ArrayLike, sigma2: ArrayLike) -> float:
    """Squared Frechet distance of two Gaussians (Dowson and Landau 1982; FID: Heusel et al. 2017, arXiv:1706.08500).

    Args: mu: (d,); sigma: (d,d) symmetric, positive semidefinite up to rounding; tensors or arrays. Of two covariances
        the one of lower rank is best passed first.
    Returns: never below 0 nor NaN. Raises: UserError where a moment is not finite.
    """
    moments = [torch.as_tensor(moment, dtype=torch.float64) for moment in (mu1, sigma1, mu2, sigma2)]
    if not all(moment.isfinite().all().item() for moment in moments):
        raise utils.UserError("the moments of the features are not finite: there is no Frechet distance")
    moments = [moment.to(moments[0].device) for moment in moments]
    return frechet_tensor(*moments, root=_cholesky(moments[1])).item()


def _cholesky(sigma):
    """The Cholesky factor of sigma (d,d), five times faster than eigenvectors, or None where its rank is in doubt."""
    root, failed = torch.linalg.cholesky_ex(sigma)
    if failed.item():
        return None
    rounding = len(sigma) * torch.finfo(sigma.dtype).eps * sigma.diagonal().max()
    return root if (root.diagonal().square().min() > rounding).item() else None


def frechet_tensor(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor, root: Tensor | None = None) -> Tensor:
    """`frechet_distance` as a 0-dimensional tensor, from float64 tensors on one device.

    root: L (d,d) with sigma1 = L L'; None: made from the eigenvectors, which serves any rank.
    """
    # The trace of (sigma1^1/2 sigma2 sigma1^1/2)^1/2 is the sum of the roots of the eigenvalues of L' sigma2 L, a
    # symmetric matrix: they are real, and rounding alone makes any of them negative.
    if root is None:
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

    def __init__(self, splits: int):
        self.splits, self.mass, self.negentropy, self.count = splits, 0, 0, 0

    def update(self, logits: Tensor, split: Tensor) -> None:
        """logits: (n,K); split: int64 (n,), which split each image belongs to, on the same device."""
        log_p = logits.double().log_softmax(1)
        p = log_p.exp()
        member = (split[:, None] == torch.arange(self.splits, device=split.device)).double()  # (n,splits)
        self.mass = self.mass + member.T @ p  # (splits,K)
        self.negentropy = self.negentropy + member.T @ (p * log_p).sum(1)  # (splits,)
        self.count = self.count + member.sum(0)  # (splits,)

    def merge(self, other: "RunningInceptionScore") -> None:
        """Add what another of the same splits has seen."""
        self.mass, self.negentropy = self.mass + other.mass, self.negentropy + other.negentropy
        self.count = self.count + other.count

    def scores(self) -> Tensor:
        """exp of the mean divergence: (splits,) float64."""
        q = self.mass / self.count[:, None]
        return (self.negentropy / self.count + torch.special.entr(q).sum(1)).exp()

    def finalize(self) -> tuple[float, float]:
        """Mean and (population) standard deviation over the splits."""
        scores = self.scores()
        return scores.mean().item(), scores.std(correction=0).item()


def imagenet_logits(logits: Tensor) -> Tensor:
    """The 1000 outputs of the TensorFlow Inception's 1008 that are classes of ImageNet: (N,1008) to (N,1000).

    Output 0 and outputs 1001 to 1007 stand for no class; the Inception score of most papers counts them all the same.
    """
    return logits[:, 1:1001]


def contiguous_splits(num_images: int, splits: int) -> Tensor:
    """The split of each image, N images being cut at i N // splits: int64 (N,). Raises: UserError if N < splits."""
    if num_images < splits:
        raise utils.UserError(f"an Inception score over {splits} splits needs as many images, not {num_images}")
    return ((torch.arange(num_images) + 1) * splits - 1) // num_images


def inception_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """Inception score over contiguous splits: logits (N,K), whose order must not follow the class, to (mean, std)."""
    score = RunningInceptionScore(splits)
    for part, split in zip(logits.split(4096), contiguous_splits(len(logits), splits).split(4096), strict=True):
        score.update(part, split.to(part.device))
    return score.finalize()


def polynomial_mmd(x: Tensor, y: Tensor, degree: int = 3, gamma: float | None = None, coef0: float = 1.0) -> Tensor:
    """Unbiased estimate of the squared maximum mean discrepancy with kernel (gamma <a,b> + coef0)^degree.

    KID's estimate (Binkowski et al. 2018, arXiv:1801.01401, section 4): pairs of an image with itself do not count, so
    the value may fall below 0. Args: x (n,d), y (m,d), at least two each; gamma: None for 1/d.
    Returns: float64, 0-dimensional, on the device of x and y.
    """
    x, y = x.double(), y.double()
    gamma = 1 / x.shape[1] if gamma is None else gamma

    def kernel_sum(a, b):
        blocks = ((rows @ b.T).mul_(gamma).add_(coef0).pow_(degree).sum() for rows in a.split(1024))
        return sum(blocks, torch.zeros((), dtype=torch.float64, device=a.device))

    def mean_of_pairs(a):
        diagonal = (gamma * a.square().sum(1) + coef0).pow(degree).sum()
        return (kernel_sum(a, a) - diagonal) / (len(a) * (len(a) - 1))

    return mean_of_pairs(x) + mean_of_pairs(y) - 2 * kernel_sum(x, y) / (len(x) * len(y))


def kernel_distance(
    x: Tensor, y: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0, draws: Iterable | None = None
) -> tuple[float, float]:
    """KID: `polynomial_mmd`, cubic, of random subsets of two sets of features (N,d) and (M,d), on one device.

    Args: subsets: how many; subset_size: images in each, drawn without replacement; seed: of the draws; draws: instead
        of them, pairs of index arrays (into x, into y).
    Returns: mean and (population) standard deviation over the subsets.
    Raises: UserError where a set has fewer images than a subset, or a subset fewer than two.
    """
    smallest = min(len(x), len(y))
    if draws is None:
        if not 2 <= subset_size <= smallest:
            raise utils.UserError(f"KID in subsets of {subset_size} of {smallest} images: 2 to {smallest} are possible")
        draws = _random_subsets(len(x), len(y), subsets, subset_size, seed)
    distances = torch.stack([polynomial_mmd(rows_at(x, one), rows_at(y, two)) for one, two in draws])
    return distances.mean().item(), distances.std(correction=0).item()


def kid_subset_size(wanted: int, smallest: int) -> int:
    """Images in each subset of KID, of sets of which the smaller has so many.

    As many as wanted where that leaves a choice; else half, as subsets that are the whole set all give one value.
    """
    return wanted if wanted < smallest else min(max(2, smallest // 2), smallest)


def _random_subsets(n, m, subsets, subset_size, seed):
    random = utils.rng(seed, "kid")
    for _ in range(subsets):
        yield tuple(random.choice(total, subset_size, replace=False) for total in (n, m))


def rows_at(features: Tensor, indices: np.ndarray) -> Tensor:
    """Rows of features (N,d) by their indices, on the features' device."""
    return features[torch.as_tensor(indices, device=features.device)]


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit (N,K) is that of their label, int64 (N,)."""
    return (logits.argmax(1) == labels.to(logits.device)).double().mean().item()


def frechet_of_features(x: Tensor, y: Tensor) -> float:
    """Frechet distance between the moments of two sets of features on one device, exact also where they are few.

    With centred features X (n,d) and Y (m,d) the trace of (S1^1/2 S2 S1^1/2)^1/2 is the sum of the singular values of
    X Y' over sqrt((n - 1)(m - 1)): where either set is smaller than d, that (n,m) matrix is the cheaper one.

    Raises: UserError where a set has under 2 images.
    """
    if min(len(x), len(y)) < 2:
        raise utils.UserError(f"a Frechet distance needs 2 images of each kind, not {len(x)} and {len(y)}")
    if min(len(x), len(y)) > x.shape[1]:
        return frechet_distance(*moments_of(x).finalize(), *moments_of(y).finalize())
    return low_rank_frechet_tensor(x, y).item()


def low_rank_frechet_tensor(x: Tensor, y: Tensor) -> Tensor:
    """The second form of `frechet_of_features`, as a 0-dimensional float64 tensor."""
    x, y = x.double(), y.double()
    mu1, mu2 = x.mean(0), y.mean(0)
    x, y = (x - mu1) / (len(x) - 1) ** 0.5, (y - mu2) / (len(y) - 1) ** 0.5
    cross = torch.linalg.svdvals(x @ y.T).sum()
    distance = (mu1 - mu2).square().sum() + x.square().sum() + y.square().sum() - 2 * cross
    return distance.clamp(min=0)
