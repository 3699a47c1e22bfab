"""The flags of batch norm over several processes."""

from dataclasses import dataclass

from torch import nn

import utils
from torch_utils.cross_replica import BatchNorm2d, Groups
from torch_utils.distributed import Ranks
from utils import Options, option


@dataclass(frozen=True)
class BatchStatistics(Options):
    """Which images share their batch-norm statistics while G trains."""

    title = "batch norm of G in training"

    cross_replica: bool = option(
        False, "statistics of the whole pass, over all processes; otherwise each process has its own", switch=True
    )
    bn_group_size: int = option(
        0,
        "with --cross_replica: statistics of each so many images of the pass, on however many processes; 0: of all",
        kind=utils.count,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.bn_group_size and not self.cross_replica:
            raise utils.UserError(f"--bn_group_size {self.bn_group_size} goes with --cross_replica")

    def check(self, compiled: bool, **batches: int) -> None:
        """Raise utils.UserError unless passes of these sizes, by flag, are whole groups, and nothing is compiled."""
        if self.cross_replica and compiled:
            raise utils.UserError("--compile does not go with --cross_replica: leave one of them out")
        for name, size in batches.items():
            if self.bn_group_size and size % self.bn_group_size:
                raise utils.UserError(
                    f"--bn_group_size {self.bn_group_size} does not divide --{name} {size}: give one that does"
                )

    def apply(self, module: nn.Module, ranks: Ranks) -> None:
        """Have the batch norms of `module` compute so when they train; its copies follow."""
        if not self.cross_replica or (ranks.world_size == 1 and not self.bn_group_size):
            return  # torch's own batch norm is that already
        groups = Groups(self.bn_group_size, ranks.rank, ranks.world_size, ranks.neighbours)
        for norm in module.modules():
            if isinstance(norm, BatchNorm2d):
                norm.groups = groups
