"""One torch thread per test process: two on two cores, with other processes beside them, are slower."""

import torch

torch.set_num_threads(1)
