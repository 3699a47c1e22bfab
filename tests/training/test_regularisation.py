"""Techniques in whole steps: each term directly, any number of ranks, accumulation, resuming, precision."""

import clean_forks
import pytest
import torch
from regularised_on_ranks import ADA, ALONE, BATCH, CPU, D2DCE, RUNS, options_of, pair, trained, trained_as_rank
from torch.nn import functional as F
from whole_steps import ATTENTION, networks

import utils
from torch_utils.distributed import Ranks
from training import augmentation, dry_run, losses, regularisation
from training.auxiliary import d2d_cross_entropy
from training.batches import Batches, Draw
from training.penalties import DIFFERENCE
from training.regularisation import Regularisation
from training.state import TrainingState
from training.steps import d_step, g_step


def a_pass(G, size=BATCH):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(size, 3, 16, 16, generator=generator, dtype=torch.float64) * 2 - 1
    z = torch.randn(size, G.config.dim_z, generator=generator, dtype=torch.float64)
    y = torch.arange(size) % 3
    return x, y, z, y.flip(0)


# ---------------------------------------------------------------------------------------------------------------------
# Terms


def direct_terms(options, G, D, x, y, z, y_fake, draw, memory):
    """Those of D, each from forwards of its own."""
    chosen, how = options.penalties, options.augmentation

    def seen(images, part, rows=slice(None)):
        if how.ada_target:
            u, e = draw.uniform("augment", part, 21), draw.normal("augment", part, 7)
            return augmentation.ada(images, u[rows], e[rows], memory.strength, how.ada_policy)
        u = draw.uniform("augment", part, 7)
        return augmentation.diffaugment(images, u[rows], how.diffaug) if how.diffaug != "none" else images

    fakes = G(z, y_fake).detach()
    terms = dict(losses.LOSSES[options.steps.loss][0](D(seen(x, 0), y), D(seen(fakes, 1), y_fake)))
    for name, images, classes, part in (("r1", x, y, 0), ("r2", fakes, y_fake, 1)):
        if not (gamma := getattr(chosen, f"{name}_gamma")):
            continue
        if getattr(chosen, f"{name}_approx"):
            noise = torch.stack([draw.share("difference", part, 4, (3, 16, 16))[1]]).double()[0]
            near, at = images[0::4] + DIFFERENCE * noise, images[0::4]
            logits = [D(seen(one, part, slice(0, None, 4)), classes[0::4]) for one in (near, at)]
            square = ((logits[0] - logits[1]) / DIFFERENCE).square().mean()
        else:
            images = images.clone().requires_grad_()
            logits = D(seen(images, part), classes)
            gradients = [torch.autograd.grad(logit, images, create_graph=True)[0] for logit in logits]
            square = sum(gradient.square().sum() for gradient in gradients) / len(images)
        terms[f"D_{name}"] = gamma / 2 * square
    for kind, images, classes, part in (("real", x, y, 0), ("fake", fakes, y_fake, 1)):
        strength = chosen.bcr or (chosen.cr if kind == "real" else 0)
        if strength:
            moved = augmentation.flip_and_shift(seen(images, part), draw.uniform("consistency", part, 3))
            difference = D(seen(images, part), classes) - D(moved, classes)
            terms["D_cr" if chosen.cr else f"D_bcr_{kind}"] = strength * difference.square().mean()
    if chosen.zcr:
        near = G(z + chosen.zcr_radius * draw.normal("near_z", 0, z.shape[1]).double(), y_fake).detach()
        difference = D(seen(fakes, 1), y_fake) - D(seen(near, 1), y_fake)
        terms["D_zcr"] = chosen.zcr * difference.square().mean()
    if chosen.lecam:
        real, fake = memory.averages
        above = F.relu(D(seen(x, 0), y) - fake).square().mean()
        terms["D_lecam"] = chosen.lecam * (above + F.relu(real - D(seen(fakes, 1), y_fake)).square().mean())
    if D.config.D_aux != "none":
        _, embeddings, proxies = D(seen(x, 0), y, embed=True)
        terms["D_d2dce"] = 0.5 * d2d_cross_entropy(embeddings, proxies, y, 0.98, 0.5, ALONE)
    return terms


ALL = ["--diffaug", "color_translation_cutout", "--r1_gamma", "2", "--r2_gamma", "3", "--lecam", "0.3"]
TECHNIQUES = {
    "many": [*ALL, "--r2_approx", "--cr", "10", "--zcr", "20", "--lecam_start", "1", *D2DCE],
    "relativistic": ["--loss", "relativistic", "--r1_gamma", "1", "--r2_gamma", "1"],
    "ada": [*ADA, "--r1_gamma", "1", "--r1_approx", "--bcr", "10"],
}


@pytest.mark.parametrize("name", TECHNIQUES)
def test_terms_of_D_are_those_computed_one_by_one(name):
    options = options_of(*TECHNIQUES[name])
    G, D = (network.eval() for network in pair(options, **ATTENTION))
    memory = Regularisation(options.techniques, CPU)
    memory.strength.fill_(0.7)
    memory.averages.copy_(torch.tensor([0.02, -0.03]))
    one, draw = a_pass(G), Draw(0, ALONE, 5, 1, BATCH)
    terms = memory.d_terms(G, D, losses.LOSSES[options.steps.loss][0], *one, draw)
    expected = direct_terms(options, G, D, *one, draw, memory)
    assert terms.keys() == expected.keys()
    for key, value in expected.items():
        assert terms[key].item() == pytest.approx(value.item(), rel=1e-8, abs=1e-12), key
    gradients, wanted = (torch.autograd.grad(sum(t.values()), list(D.parameters())) for t in (terms, expected))
    for ours, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8 * max(1, theirs.abs().max().item()))


def test_terms_of_G():
    options = options_of("--loss", "relativistic", "--zcr", "20", "--diffaug", "translation", *D2DCE)
    G, D = (network.eval() for network in pair(options))
    x, y, z, _ = a_pass(G)
    draw = Draw(0, ALONE, 5, 1, BATCH)
    terms = Regularisation(options.techniques, CPU).g_terms(G, D, losses.g_relativistic, z, y, x, draw)
    near = z + 0.05 * draw.normal("near_z", 0, z.shape[1]).double()
    images = [
        augmentation.diffaugment(t, draw.uniform("augment", i, 7), "translation") for i, t in ((0, x), (1, G(z, y)))
    ]
    (real, *_), (fake, embeddings, proxies) = (D(each, y, embed=True) for each in images)
    expected = {
        "G_loss": F.softplus(real - fake).mean(),
        "G_zcr": -0.5 * (G(z, y) - G(near, y)).square().mean(),
        "G_d2dce": 0.5 * d2d_cross_entropy(embeddings, proxies, y, 0.98, 0.5, ALONE),
    }
    assert {k: v.item() for k, v in terms.items()} == pytest.approx({k: v.item() for k, v in expected.items()})
    assert all(value.requires_grad for value in terms.values())


def test_a_lazy_penalty_is_as_strong_on_average_and_shown_as_it_is():
    options = options_of("--r1_gamma", "2", "--r1_every", "3", "--num_D_accumulations", "2", "--D_lr", "1e-9")
    chosen = options.techniques
    draws = [Draw(0, ALONE, step, number, BATCH) for step in (1, 2, 3) for number in range(4)]  # two updates a step
    assert [chosen.gamma("r1", draw) for draw in draws] == [6, 6, 0, 0, 0, 0, 6, 6, 0, 0, 0, 0]
    every = options_of("--r1_gamma", "2", "--num_D_accumulations", "2").techniques
    terms = []
    for techniques in (every, chosen):
        G, D = (network.eval() for network in networks())
        memory, (x, y, z, y_fake) = Regularisation(techniques, CPU), a_pass(networks()[0])
        optimizer = torch.optim.SGD(D.parameters(), lr=0.0)
        passes = [[(x, y, z, y_fake, Draw(0, ALONE, 1, n + 2 * k, BATCH)) for n in range(2)] for k in range(2)]
        terms.append([d_step(G, D, D, optimizer, each, 2, 0, regularisation=memory) for each in passes])
    assert all(
        one["D_r1"].item() == pytest.approx(terms[0][0]["D_r1"].item(), rel=1e-6) for two in terms for one in two
    )
    changed = Regularisation(every, CPU)  # --allow_change r1_every: what was last is not what is now
    changed.load_state_dict(memory.state_dict() | {"last": {"D_r1": 99.0, "D_r2": 1.0}})
    changed._note(torch.zeros(BATCH), torch.zeros(BATCH), Draw(0, ALONE, 1, 0, BATCH))
    assert changed.finish_update({"D_r1": torch.ones(())}) == {"D_r1": 1}


def test_runs_that_differ_in_techniques_have_other_names():
    flags = ["--r1_gamma", "0.5", "--lecam", "0.3", "--diffaug", "color_cutout", *D2DCE[:2]]
    assert "_r1-0.5_lecam-0.3_color-cutout_d2dce_bs" in options_of(*flags).run_name
    assert "hinge_" not in options_of().run_name and "_ssm-none_bs8_" in options_of().run_name


def test_gammas_fall_by_a_cosine():
    flags = "--r1_gamma 1 --r1_gamma_to 0.1 --lr_decay_end 4 --lr_decay_shape cosine".split()
    chosen = options_of(*flags).techniques
    gammas = [chosen.gamma("r1", Draw(0, ALONE, step, 0, BATCH)) for step in (1, 3, 5, 100)]
    assert gammas == pytest.approx([1, 0.55, 0.1, 0.1])
    assert chosen.gamma("r1", Draw(0, ALONE, 2, 0, BATCH)) == pytest.approx(1 - 0.9 * (1 - 0.5**0.5) / 2)


def test_ada_moves_its_strength_by_the_sign_every_4_updates():
    """By as many images as were seen, over ada_kimg thousands; between 0 and 1."""
    options = options_of("--ada_target", "0.5", "--ada_kimg", "0.1")
    memory = Regularisation(options.techniques, CPU)
    for update, share in enumerate([1, 1, 1, 1, 1, 1, 1, 1, 0.5, 0.75, 0.5, 0.5, 0, 0, 0, 0], 1):
        logits = torch.where(torch.arange(BATCH) < share * BATCH, 1.0, -1.0)
        memory._note(logits, logits, Draw(0, ALONE, update, 0, BATCH))
        shown = memory.finish_update({})["ada_p"].item()
        assert shown == pytest.approx({4: 0.32, 8: 0.64, 12: 0.32, 16: 0}.get(update // 4 * 4, 0))
    for loss, sign in (("relativistic", 1), ("wasserstein", 1), ("hinge", -1), ("non_saturating", -1)):
        other = Regularisation(options_of("--ada_target", "0.5", "--loss", loss).techniques, CPU)
        other._note(torch.full((BATCH,), -3.0), torch.full((BATCH,), -4.0), Draw(0, ALONE, 1, 0, BATCH))
        assert other._sums[0] == sign * BATCH  # relative losses: reals above fakes, wherever 0 is
    memory.strength.fill_(0.9)
    for update in range(4):
        memory._note(torch.ones(BATCH), -torch.ones(BATCH), Draw(0, ALONE, update, 0, BATCH))
        memory.finish_update({})
    assert memory.strength == 1


def test_lecams_averages_follow_the_logits_of_an_update():
    memory = Regularisation(options_of("--lecam", "1", "--lecam_start", "2").techniques, CPU)
    expected = None
    for step in range(1, 6):
        real, fake = torch.full((BATCH,), float(step)), torch.full((BATCH,), -2.0 * step)
        for shift in (-0.5, 0.5):  # two passes
            memory._note(real + shift, fake + shift, Draw(0, ALONE, step, 0, BATCH))
        memory.finish_update({})
        now = torch.tensor([step, -2.0 * step], dtype=torch.float64)
        expected = now if step <= 2 else 0.99 * expected + 0.01 * now
        torch.testing.assert_close(memory.averages, expected)
    memory._note(torch.full((BATCH,), torch.inf), torch.full((BATCH,), torch.nan), Draw(0, ALONE, 6, 0, BATCH))
    memory.finish_update({})  # of a step that float16's loss scale leaves out
    torch.testing.assert_close(memory.averages, expected)


def test_lecam_asked_for_on_the_way_waits_for_its_averages():
    options = options_of("--lecam", "1", "--lecam_start", "2")
    G, D = (network.eval() for network in pair(options))
    memory, values = Regularisation(options.techniques, CPU), []
    for step in (5, 6):  # of a run that has had none before
        terms = memory.d_terms(G, D, losses.d_hinge, *a_pass(G), Draw(0, ALONE, step, 0, BATCH))
        values.append(terms["D_lecam"].item())
        memory.finish_update({})
    assert values[0] == 0 < values[1]


@pytest.mark.parametrize("approx", [[], ["--r1_approx"]])
def test_penalties_are_float32_under_mixed_precision(approx):
    options = options_of("--r1_gamma", "1", *approx)
    G, D = networks(torch.float32)
    x, y, z, y_fake = (t.float() if t.is_floating_point() else t for t in a_pass(G))
    values = []
    for amp in (None, torch.bfloat16):
        D.eval().amp = amp
        memory = Regularisation(options.techniques, CPU)
        values.append(memory.d_terms(G.eval(), D, losses.d_hinge, x, y, z, y_fake, Draw(0, ALONE, 1, 0, BATCH)))
        assert D.amp == amp
    assert values[0]["D_r1"].item() == values[1]["D_r1"].item()


def test_passes_with_a_penalty_use_no_tf32_backwards_either():
    """Where the penalty is not due, TF32 is as it was."""
    options, seen, tf32 = options_of("--r1_gamma", "1", "--r1_every", "4"), [], torch.backends.cuda.matmul
    G, D = networks(torch.float32)
    x, y, z, y_fake = (t.float() if t.is_floating_point() else t for t in a_pass(G))
    next(D.parameters()).register_hook(lambda _: seen.append(tf32.allow_tf32))
    memory, optimizer = Regularisation(options.techniques, CPU), torch.optim.Adam(D.parameters())
    before = tf32.allow_tf32
    try:
        tf32.allow_tf32 = True
        for step in (1, 2):
            draw = Draw(0, ALONE, step, 0, BATCH)
            d_step(G, D, D, optimizer, [(x, y, z, y_fake, draw)], 1, 0.0, losses.d_hinge, None, memory)
    finally:
        tf32.allow_tf32 = before
    assert False in seen and seen[-1]


# ---------------------------------------------------------------------------------------------------------------------
# Ranks, accumulation, resuming


def test_two_ranks_train_as_one(tmp_path):
    processes = [clean_forks.context().Process(target=trained_as_rank, args=(rank, 2, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    alone = {name: trained(name, 2, ALONE) for name in RUNS}
    for process in processes:
        process.join(150)
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    for name, expected in alone.items():
        assert first[name].keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(first[name][key], second[name][key]), (name, key)
            tolerance = 1e-5 if "D_r" in key or "ada_p" in key else 1e-8  # what is shown of these is float32
            torch.testing.assert_close(first[name][key], value, rtol=tolerance, atol=tolerance, msg=f"{name}: {key}")
    assert alone["ada, bcr"]["strength"] not in (0, 0.5) and alone["relativistic"]["2 D_r1"] > 0


def test_accumulated_passes_are_one_large_batch():
    """Where terms are means over images, and no augmentation is drawn; pairs of the relativistic loss included."""
    flags = ["--r1_gamma", "2", "--r2_gamma", "1", "--lecam", "1", "--lecam_start", "1", "--loss", "relativistic"]
    gradients = []
    for parts in (1, 4):
        options = options_of(*flags)
        G, D = (network.eval() for network in networks())
        memory = Regularisation(options.techniques, CPU)
        memory.averages.copy_(torch.tensor([0.02, -0.03]))
        optimizer = torch.optim.SGD(D.parameters(), lr=0.0)
        one = a_pass(G)
        draws = [Draw(0, ALONE, 5, 0, BATCH // parts) for _ in range(parts)]
        passes = zip(*(t.chunk(parts) for t in one), draws, strict=True)
        terms = d_step(G, D, D, optimizer, passes, parts, 0, losses.d_relativistic, None, memory)
        gradients.append([*(p.grad for p in D.parameters()), *terms.values(), memory.averages])
    for single, several in zip(*gradients, strict=True):
        if single is not None:
            torch.testing.assert_close(single, several, rtol=1e-8, atol=1e-10)


RESUMED = [
    [*ADA, "--lecam", "0.3", "--lecam_start", "2", "--r1_gamma", "1", "--r1_every", "4"],
    ["--loss", "relativistic", "--diffaug", "color", "--r2_gamma", "1", "--r2_approx", "--r2_every", "3", "--zcr", "1"],
]


def trained_state(state, options, until):
    pixels = torch.randint(0, 256, (99, BATCH, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
    loader = ((images, torch.arange(BATCH) % 3) for images in pixels[state.step :])
    batches = Batches(options.batches, state.G.config, None, 0, ALONE, loader, 0, True, options.steps.paired)
    shown = []
    for step in range(state.step + 1, until + 1):
        terms = d_step(
            state.G, state.D, state.D, state.opt_D, batches.D_passes(step, [0]), *options.steps.of_D, *state.of_D
        )
        passes = batches.G_passes(step, [1])
        terms |= g_step(state.G, state.D, state.G, state.opt_G, passes, *options.steps.of_G, *state.of_G)
        shown.append({key: value.item() for key, value in terms.items()})
        state.finish_step(step)
    return shown


@pytest.mark.parametrize("flags", RESUMED)
def test_a_resumed_run_goes_on_bit_by_bit(flags, tmp_path):
    options = options_of(*flags, "--num_D_steps", "1")
    config = networks()[0].config

    def fresh():
        torch.manual_seed(0)
        return TrainingState(config, options, CPU)

    whole, first, second = fresh(), fresh(), fresh()
    shown = trained_state(whole, options, 7)
    trained_state(first, options, 5)  # in the midst of ADA's interval, and of a lazy penalty's
    torch.save(first.state_dict(), tmp_path / "c.pth")
    second.load_state_dict(torch.load(tmp_path / "c.pth", weights_only=True), tmp_path)
    assert trained_state(second, options, 7) == shown[5:]
    for name, part in whole.parts.items():
        if part is not None:
            torch.testing.assert_close(part.state_dict(), second.parts[name].state_dict(), rtol=0, atol=0)
    old = {name: value for name, value in first.state_dict().items() if name != "regularisation"}
    fresh().load_state_dict(old, tmp_path)  # of before, as --allow_change may have it
    with pytest.raises(utils.UserError, match="its regularisation does not fit"):
        fresh().load_state_dict(old | {"regularisation": {"strength": "?"}}, tmp_path)


def test_a_run_without_techniques_has_no_such_part():
    options = options_of()
    assert not options.techniques.on
    state = TrainingState(networks()[0].config, options, CPU)
    assert state.regularisation is None and "regularisation" not in state.state_dict()


# ---------------------------------------------------------------------------------------------------------------------
# Passes, sizes, flags


def test_pairs_have_the_reals_classes_in_both_steps():
    options = options_of("--loss", "relativistic")
    loader = ((torch.full((BATCH, 3, 16, 16), i, dtype=torch.uint8), (torch.arange(BATCH) + i) % 3) for i in range(9))
    batches = Batches(options.batches, networks()[0].config, None, 0, ALONE, loader, 0, True, True)
    for _ in range(2):  # D's steps: the last counts
        of_D = list(batches.D_passes(1, [0, 1]))
    of_G = list(batches.G_passes(1, [2, 3, 4]))
    assert all(torch.equal(y, y_fake) for _, y, _, y_fake, _ in of_D)
    for (_, y, x, _), real in zip(of_G, (of_D[0], of_D[1], of_D[0]), strict=True):
        assert torch.equal(x, real[0]) and torch.equal(y, real[1])
    assert {draw.number for *_, draw in of_G} == {2, 3, 4}


@pytest.mark.parametrize("size, world_size", [(8, 2), (6, 2), (12, 4), (4, 4), (10, 5)])
def test_draws_do_not_depend_on_the_number_of_ranks(size, world_size):
    draws = [Draw(3, Ranks(rank, world_size, CPU), 2, 1, size) for rank in range(world_size)]
    one = Draw(3, ALONE, 2, 1, size)
    assert torch.equal(torch.cat([d.uniform("augment", 0, 4) for d in draws]), one.uniform("augment", 0, 4))
    assert torch.equal(torch.cat([d.normal("near_z", 0, 4) for d in draws]), one.normal("near_z", 0, 4))
    images = torch.arange(size)
    parts = [d.share("difference", 1, 4, (2,)) for d in draws]
    rows, noise = one.share("difference", 1, 4, (2,))
    assert torch.equal(
        torch.cat([d.ranks.slice(images)[r] for d, (r, _) in zip(draws, parts, strict=True)]), images[rows]
    )
    assert torch.equal(torch.cat([part for _, part in parts]), noise) and images[rows].tolist() == list(
        range(0, size, 4)
    )
    others = [Draw(3, ALONE, 2, 0, size), Draw(3, ALONE, 1, 1, size), Draw(3, ALONE, 2, 1, size, rollbacks=1)]
    for other in others:
        assert not torch.equal(other.uniform("augment", 0, 4), one.uniform("augment", 0, 4))
    assert not torch.equal(one.uniform("augment", 1, 4), one.uniform("augment", 0, 4))


def test_dry_runs_count_what_is_more():
    macs, counted = (10, 100), {}
    both = "--r1_gamma 1 --r2_gamma 1"
    ways = "", "--r1_gamma 1", "--r1_gamma 1 --r1_every 4", "--r1_gamma 1 --r1_approx", "--bcr 10", "--zcr 20"
    for flags in (*ways, f"{both} --bcr 10"):
        counted[flags] = options_of(*flags.split(), "--num_D_steps", "1").step_multiply_adds(macs) / BATCH
    plain = counted.pop("")
    assert plain == 10 + 600 + 30 + 200
    assert [value - plain for value in counted.values()] == [600, 150, 75, 600, 10 + 300 + 30, 600 + 2400]


def test_a_dry_run_times_the_techniques(monkeypatch):
    options = options_of("--r1_gamma", "1", "--r1_every", "4", "--num_D_accumulations", "2", "--cr", "10")
    config, seen = networks()[0].config, []
    d_terms = Regularisation.d_terms

    def noted(self, *arguments):
        terms = d_terms(self, *arguments)
        seen.append("D_r1" in terms)
        return terms

    monkeypatch.setattr(regularisation.Regularisation, "d_terms", noted)
    assert all(seconds > 0 for seconds in dry_run._pass_timer(options, config, CPU)(4))
    assert seen == [True, True, False, False]


@pytest.mark.parametrize(
    "flags, line",
    [
        (
            "--loss relativistic --G_batch_size 4",
            "--loss relativistic pairs each fake with a real image: --G_batch_size 4",
        ),
        ("--r1_gamma 1 --compile", "--r1_gamma does not go with --compile.*: add --r1_approx"),
        ("--r1_gamma 1 --r1_approx --r2_gamma 1 --compile", "--r2_gamma does not go with --compile"),
        ("--r1_gamma 1 --r1_gamma_to 0.1", "--r1_gamma_to goes with --lr_decay_end"),
        ("--D_aux_temperature 0", "--D_aux_temperature 0.0: must be positive"),
        ("--D_aux_weight 1", "--D_aux_weight.* go with --D_aux d2dce"),
    ],
)
def test_what_does_not_go_together_is_one_line(flags, line):
    with pytest.raises(utils.UserError, match=line):
        options_of(*flags.split())
    assert options_of("--r1_gamma", "1", "--r1_approx", "--compile").techniques.on


def test_one_class_has_nothing_to_tell_apart():
    with pytest.raises(utils.UserError, match="--D_aux d2dce tells classes apart"):
        networks(n_classes=1, D_aux="d2dce")
