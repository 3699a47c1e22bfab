"""One torch thread per test process: two on two cores, with other processes beside them, are slower."""

import random

import numpy as np
import pytest
import torch
from evaluation_fixtures import G, data_root, files, measure, run, samples  # noqa: F401  (fixtures)
from family_files import random_images, write
from PIL import Image
from striped_data import fitted  # noqa: F401
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order():
    """Of random numbers that a test does not seed itself."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


def pytest_collection_modifyitems(config, items):
    if "rehearsal" not in config.option.markexpr:
        rehearsals = [item for item in items if item.get_closest_marker("rehearsal")]
        config.hook.pytest_deselected(items=rehearsals)
        items[:] = [item for item in items if item not in rehearsals]
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):  # not a keyword: a folder of that name would be one
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


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
    """A file like pytorch-fid's and torch-fidelity's, with random weights: its path.

    Images share most of their random features; turned away from the common part, the logits tell images apart.
    """
    from metrics import resizing
    from metrics.inception_tf import build_trunk

    torch.manual_seed(0)
    trunk = randomise(build_trunk()).eval()
    linear, trunk.fc = trunk.fc, nn.Identity()
    with torch.no_grad():
        images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
        common = F.normalize(trunk(resizing.tf1(images)).mean(0), dim=0)
        linear.weight -= torch.outer(linear.weight @ common, common)
        linear.weight *= 10
    trunk.fc = linear
    path = tmp_path_factory.mktemp("inception_tf") / "pt_inception.pth"
    torch.save(trunk.state_dict(), path)
    return path


@pytest.fixture
def family_file(tmp_path):
    return write(tmp_path / "made.hdf5", *random_images())


@pytest.fixture
def photos(tmp_path):
    """Two classes of three plain images each; class c, image i has grey level 50c + 10i everywhere."""
    root = tmp_path / "photos"
    for c, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (12, 10), (50 * c + 10 * i,) * 3).save(root / name / f"{i}.png")
    return root
