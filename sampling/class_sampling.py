"""How often fakes are of each class: evenly, or as often as the images of the data set.

Metrics compare fakes with the data as they are: where most images are of one class, real images that are drawn evenly
over the classes score as badly as a poor generator.
Symbols: K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import utils
from utils import Options, option

# Share of the images that would have to be of another class for all classes to have as many. Up to here (ImageNet:
# 1.3 %, MNIST: 1.9 %) drawing evenly, as the field does, moves the features' mean too little to be seen in a distance.
BALANCED = 0.025


@dataclass(frozen=True)
class ClassSampling(Options):
    """How often fakes are of each class."""

    title = "classes of fakes"

    class_sampling: str | None = option(
        None,
        "how often fakes that are scored or saved are of each class: uniform, in turns; data, as often as in the data "
        "set; None: data where it is unbalanced (over 2.5 %% of its images would have to be of another class)",
        choices=("uniform", "data"),
    )

    def counts(self, known: Sequence[int] | None, n_classes: int, holder: str | None) -> list[int] | None:
        """The class counts (K,) that classes are drawn by, None for evenly. What was not asked for is said in a line.

        Args: known: images of each class in the data, None where that is not known; n_classes: K of the generator;
            holder: of the counts, for messages; None: that it knows none is not worth a line.
        Raises: utils.UserError where counts are asked for and there are none of so many classes.
        """
        if n_classes == 1 or self.class_sampling == "uniform":
            return None
        if known is None or len(known) != n_classes:
            found = f"{holder or 'the checkpoint'}: how many images each class of the data has is not recorded"
            if known is not None:
                found = f"{holder}: {utils.counted(len(known), 'class')}, but the generator has {n_classes}"
            if self.class_sampling == "data":
                raise utils.UserError(f"--class_sampling data: {found}")
            if known is None and holder:
                _say(f"{found}, so fakes are drawn evenly over the classes")
            return None
        if len(set(known)) == 1 or (self.class_sampling is None and is_balanced(known)):
            return None
        if self.class_sampling is None:
            _say(
                f"unbalanced classes ({min(known):,} to {max(known):,} images): fakes are of each as often as in the "
                "data; --class_sampling uniform draws them evenly"
            )
        return list(known)


def is_balanced(counts: Sequence[int]) -> bool:
    """Whether classes of so many images (K,) count as balanced."""
    shares = np.asarray(counts) / np.sum(counts)
    return bool(np.abs(shares - 1 / len(shares)).sum() / 2 <= BALANCED)


def _say(text):
    if utils.is_main_process():
        print(text)
