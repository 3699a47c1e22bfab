"""What the watchdog finds, and what it lets pass."""

import math

import pytest
import torch

from torch_utils.distributed import Ranks
from torch_utils.mixed_precision import LossScaler
from training.watchdog import MAX_SKIPPED, Watchdog, WatchOptions

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
OPTIONS = WatchOptions(D_floor_steps=20)


def networks():
    torch.manual_seed(0)
    G, D = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)), torch.nn.Linear(2, 1)
    D(G(torch.randn(4, 3))).sum().backward()
    return G, D


def losses(dog, step, total=1.5, sigmas=None, loss="hinge"):
    """The kinds that are found in losses and singular values."""
    means = {"D_loss_real": total, "D_loss_fake": 0.0, "G_loss": 0.3}
    return [found.kind for found in dog.examine_losses(step, means, loss, sigmas or {}, OPTIONS)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "place", ["loss", "gradient of G", "gradient of D", "weight of G", "weight of D", "statistic of G"]
)
def test_a_number_that_is_not_finite_is_found_with_its_step(place, value):
    """Marked in step 3 of 9, which are read together; weights are looked at where marks are read."""
    (G, D), dog = networks(), Watchdog(CPU)
    for step in range(1, 10):
        terms = {
            "D_loss_real": torch.tensor(0.5),
            "G_loss": torch.tensor(value if place == "loss" and step == 3 else 1.0),
        }
        gradient = {"gradient of G": G[0].weight.grad, "gradient of D": D.bias.grad}.get(place)
        before = gradient is not None and gradient.clone()
        if gradient is not None and step == 3:
            gradient.view(-1)[0] = value
        dog.mark(step, terms, [(G, None), (D, None)])
        if gradient is not None:
            gradient.copy_(before)
    tensor = {"weight of G": G[0].bias, "weight of D": D.weight, "statistic of G": G[1].running_var}.get(place)
    if tensor is not None:
        tensor.data.view(-1)[0] = value
    found = dog.read(9, (G, D), ALONE)
    assert found.kind == "not_finite" and found.fatal
    step = 3 if "gradient" in place or place == "loss" else 9
    assert f"from step {step} on" in found.text and found.healthy == step - 1
    word = place.replace("statistic", "weight").replace(" of", "s of").replace("loss", "losses")
    assert found.text.startswith(f"{word} are no longer finite")


def test_finite_numbers_pass_however_large():
    (G, D), dog = networks(), Watchdog(CPU)
    G[0].weight.data.fill_(1e15)
    dog.mark(1, {"G_loss": torch.tensor(-3e38)}, [(G, None), (D, None)])
    assert dog.read(1, (G, D), ALONE) is None


def test_marks_are_made_without_waiting_for_a_gpu():
    """Fake tensors have no numbers: whatever asked for one would raise. Float16's scaler looks at gradients itself."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        G, D = (torch.nn.Linear(3, 2, device="cuda") for _ in range(2))
        G.weight.grad = torch.empty(2, 3, device="cuda")
        dog = Watchdog(torch.device("cuda"))
        dog.mark(1, {"G_loss": torch.empty((), device="cuda")}, [(G, None), (D, None)])
        assert dog.first.device.type == "cuda"
    (G, D), dog = networks(), Watchdog(CPU)
    G[0].weight.grad.fill_(math.inf)
    dog.mark(1, {"G_loss": torch.tensor(1.0)}, [(G, object()), (D, None)])
    assert dog.read(1, (G, D), ALONE) is None


def test_steps_that_the_loss_scale_leaves_out_are_found_where_they_do_not_end():
    class Scaler:
        in_a_row = MAX_SKIPPED - 1

    dog = Watchdog(CPU)
    assert dog.skipped(50, "D", Scaler(), 1) is None
    Scaler.in_a_row = MAX_SKIPPED
    found = dog.skipped(50, "D", Scaler(), 1)
    assert found.fatal and found.healthy == 10 and "--amp bf16" in found.text
    assert dog.skipped(50, "D", Scaler(), 3).healthy == 36 and dog.skipped(5, "D", Scaler(), 1).healthy == 0


def test_updates_that_are_left_out_are_told_once():
    weight = torch.nn.Parameter(torch.ones(2))
    scaler, optimizer = LossScaler("cpu", init_scale=4.0), torch.optim.SGD([weight], lr=0.1)
    told = []
    for updates in ((math.inf, 1.0), (1.0, 1.0), (math.inf, math.inf)):  # two of D in a step
        for value in updates:
            optimizer.zero_grad()
            (scaler.scale(weight.sum()) * value).backward()
            scaler.unscale_(optimizer)
            scaler.finish_step(optimizer)
        told.append(scaler.newly_skipped())
    assert told == [1, 0, 2] and scaler.in_a_row == 2


def test_D_at_its_floor_for_long():
    dog = Watchdog(CPU)
    assert [losses(dog, step, 0.0) for step in (10, 20, 29)] == [[], [], []]  # since 10
    assert losses(dog, 30, 0.01) == ["D_loss_floor"] and losses(dog, 40, 0.0) == []  # told once
    assert losses(dog, 50) == [] and losses(dog, 60, 0.0) == []
    assert losses(dog, 80, 0.0) == ["D_loss_floor"]
    assert [losses(dog, step) for step in (90, 100)] == [[], []] and losses(dog, 110, 0.0) == losses(
        dog, 120, 0.0
    ) == []
    (found,) = dog.examine_losses(130, {"D_loss_real": 0.0}, "hinge", {}, OPTIONS)
    assert found.healthy == 100  # the last look without it: what 110 saw, a checkpoint of then has
    assert all(losses(Watchdog(CPU), step, -5.0, loss="wasserstein") == [] for step in (1, 100))  # it has no floor


def test_singular_values_that_explode():
    dog, healthy = Watchdog(CPU), Watchdog(CPU)
    for step in range(10, 310, 10):
        assert losses(dog, step, sigmas={"D/a": 3.0, "D/b": 1 + step / 100}) == []
    assert dog.memory.healthy == 300
    found = dog.examine_losses(310, {"D_loss_real": 1.0}, "hinge", {"D/a": 45.0, "D/b": 4.0}, OPTIONS)
    assert [(each.kind, each.healthy) for each in found] == [("singular_values", 300)] and "D/a" in found[0].text
    for step in range(50, 100_000, 50):  # a hundredfold, but slowly; and small ones
        assert losses(healthy, step, sigmas={"D/a": 2 * 100 ** (step / 100_000), "D/b": 0.01 * step % 7}) == []


def test_distances_and_coverage():
    dog = Watchdog(CPU)

    def found(step, **metrics):
        return [(each.kind, each.healthy) for each in dog.examine_metrics(step, metrics, 3.0)]

    assert found(100, fd=60.0, coverage=0.0) == []  # an untrained generator's
    assert found(200, fd=4.0, coverage=0.6) == [] and found(300, fd=11.0, coverage=0.4) == []
    assert found(400, fd=13.0, coverage=0.0) == [("fd", 300), ("coverage", 300)]
    assert found(500, fd=14.0, coverage=0.1) == []  # told
    assert found(600, fd=3.0, coverage=0.5) == [] and found(700, fd=math.nan) == [("fd", 600)]
    assert [each.kind for each in Watchdog(CPU).examine_metrics(1, {"is_mean": 2.0}, 3.0)] == []


def test_metrics_that_are_measured_otherwise_begin_anew():
    dog = Watchdog(CPU)
    dog.examine_metrics(100, {"fd": 0.5, "coverage": 0.8}, 3.0)
    assert [found.kind for found in dog.examine_metrics(200, {"fd": 5.0, "coverage": 0.0}, 3.0)] == ["fd", "coverage"]
    dog.memory.told.append("D_loss_floor")
    dog.forget_metrics()
    assert dog.memory.told == ["D_loss_floor"]
    assert dog.examine_metrics(300, {"fd": 30.0, "coverage": 0.0}, 3.0) == []


def test_its_memory_is_plain_and_comes_back():
    dog, other = Watchdog(CPU), Watchdog(CPU)
    losses(dog, 10, 0.0, {"D/a": 3.0})
    dog.examine_metrics(10, {"fid": 8.0, "coverage": 0.5}, 3.0)
    other.first[0] = 3
    other.load_state_dict(dog.state_dict() | {"of a later version": 1})
    assert other.memory == dog.memory and other.read(10, networks(), ALONE) is None
    assert losses(other, 30, 0.0) == ["D_loss_floor"]
    other.load_state_dict({})
    assert other.memory == Watchdog(CPU).memory
