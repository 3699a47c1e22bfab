"""One torch thread per test process: two on two cores, with other processes beside them, are slower."""

import pytest
import torch
from torch import nn

torch.set_num_threads(1)


def randomise(net):
    """Weights under which features and logits depend on the image: He et al. 2015, and norms that do something."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.1)
            nn.init.normal_(module.bias)
    return net


@pytest.fixture(scope="session")
def inception_tf_weights(tmp_path_factory):
    """A file like pytorch-fid's and torch-fidelity's, with random weights: its path."""
    from inception_tf import build_trunk

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception_tf") / "pt_inception.pth"
    torch.save(randomise(build_trunk()).state_dict(), path)
    return path
