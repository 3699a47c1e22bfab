"""D2D-CE against its formula, image by image."""

import math

import pytest
import torch

import BigGAN
from torch_utils.distributed import Ranks
from training.auxiliary import d2d_cross_entropy

ALONE = Ranks(0, 1, torch.device("cpu"))


def direct(f, v, y, margin, temperature):
    """Kang et al. 2021, with loops."""
    f, v = ([t / t.norm() for t in each] for each in (f, v))
    total = 0
    for i in range(len(y)):
        near = math.exp(min((f[i] @ v[i]).item() - margin, 0) / temperature)
        far = [max((f[i] @ f[j]).item() - (1 - margin), 0) for j in range(len(y)) if y[j] != y[i]]
        total -= math.log(near / (near + sum(math.exp(s / temperature) for s in far)))
    return total / len(y)


@pytest.mark.parametrize("margin, temperature", [(0.98, 0.5), (0.5, 0.1), (0.2, 2.0)])
def test_it_is_the_formula(margin, temperature):
    torch.manual_seed(0)
    f, v = torch.randn(2, 9, 5, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, 0, 1, 3, 2, 0])
    value = d2d_cross_entropy(f, v, y, margin, temperature, ALONE).item()
    assert value == pytest.approx(direct(f, v, y, margin, temperature), rel=1e-10)
    assert torch.autograd.gradcheck(
        lambda f, v: d2d_cross_entropy(f, v, y, margin, temperature, ALONE), (f.requires_grad_(), v.requires_grad_())
    )


def test_one_class_alone_has_nothing_to_be_told_from():
    f, v = torch.randn(2, 4, 5)
    assert d2d_cross_entropy(f, v, torch.zeros(4, dtype=torch.int64), 0.98, 0.5, ALONE).item() == 0


def test_a_D_without_the_head_is_as_before():
    from small_models import small_config

    torch.manual_seed(0)
    _, plain = BigGAN.build(small_config())
    torch.manual_seed(0)
    _, D = BigGAN.build(small_config(D_aux="d2dce", D_embed_dim=8))
    added = D.state_dict().keys() - plain.state_dict().keys()
    assert {name.partition(".")[0] for name in added} == {"to_embedding", "proxies"}
    assert plain.config.to_dict()["D_aux"] == "none" and not plain.state_dict().keys() - D.state_dict().keys()
    x, y = torch.randn(3, 3, 16, 16), torch.tensor([0, 2, 1])
    logits, embeddings, proxies = D.eval()(x, y, embed=True)
    assert torch.equal(logits, D(x, y)) and embeddings.shape == proxies.shape == (3, 8)
    assert torch.equal(proxies, D.proxies.weight[y])
