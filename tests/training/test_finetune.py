"""Fine-tuning: what is taken over from a checkpoint, for the same classes and for others."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import BigGAN
import layers
import train
import utils
from image_datasets import writing
from model_config import ModelConfig
from torch_utils import checkpoints
from torch_utils.mixed_precision import LossScaler
from training import ema, finetune, logs
from training.steps import d_step, g_step

SMALL = ModelConfig(
    resolution=16, n_classes=4, dim_z=12, G_ch=4, D_ch=4, G_ch_mult=(2, 1, 1), D_ch_mult=(1, 2, 2), G_attn=(), D_attn=()
)
SHARED = {"G_shared": True, "hier": True, "shared_dim": 6}
NAMES = ["cat", "dog", "fish", "7"]


def save(path, config=SMALL, parts=("G", "D", "G_ema"), names=NAMES, seed=1):
    torch.manual_seed(seed)
    nets = dict(zip("GD", BigGAN.build(config), strict=True))
    nets["G_ema"] = BigGAN.Generator(config)
    states = {name: net.state_dict() for name, net in nets.items() if name in parts}
    about = {"format": checkpoints.FORMAT, "model_config": config.to_dict(), "class_names": names, "step": 10}
    checkpoints.save({**about, **states}, path)
    return nets


def start(path, config, class_names, mapping=None):
    """New networks started from a checkpoint, and the report."""
    torch.manual_seed(2)
    G, D = BigGAN.build(config)
    average = ema.MovingAverage(G, 0.9, 0)
    source = finetune.read_source(path)
    classes = finetune.class_rows(source, class_names, mapping)
    report = finetune.start_from(source, G, D, average, classes.rows)
    return G, D, average.module, report, finetune.describe(source, report, classes)


@pytest.mark.parametrize("options", [{"ssm": "voxel"}, {**SHARED, "ssm": "voxel"}])
def test_the_same_classes_take_everything_over(tmp_path, options):
    config = dataclasses.replace(SMALL, **options)
    old = save(tmp_path / "a.pth", config)
    G, D, average, report, lines = start(tmp_path / "a.pth", config, NAMES)
    for new, name in ((G, "G"), (D, "D"), (average, "G_ema")):
        assert all(torch.equal(value, old[name].state_dict()[key]) for key, value in new.state_dict().items())
    assert not any(report[network][kind] for network in "GD" for kind in ("remade", "anew", "ignored"))
    assert lines[1] == "  classes taken over: by name, 4 of 4 found"
    assert "tensors loaded" in lines[2] and len(lines) == 4


@pytest.mark.parametrize("options", [{"ssm": "voxel"}, {**SHARED, "ssm": "voxel"}])
def test_other_classes_take_mapped_rows_or_the_mean(tmp_path, options):
    config = dataclasses.replace(SMALL, **options)
    old = save(tmp_path / "a.pth", config)
    mapping = tmp_path / "map.json"
    mapping.write_text(json.dumps({"wolf": "dog", "2": 0, "7": "7"}))
    new_names = ["lion", "wolf", "shark", "7", "eel", "asp"]
    new_config = dataclasses.replace(config, n_classes=6)
    G, D, average, report, lines = start(tmp_path / "a.pth", new_config, new_names, mapping)
    sources = [None, 1, 0, 3, None, None]
    embeddings = 0
    for new, before in ((G, old["G"]), (D, old["D"]), (average, old["G_ema"])):
        for name, layer in new.named_modules():
            if isinstance(layer, layers.Embedding):
                weight = before.get_submodule(name).weight
                expected = torch.stack([weight.mean(0) if row is None else weight[row] for row in sources])
                assert torch.equal(layer.weight, expected)
                embeddings += 1
                if layer.sn:
                    sigma = layer.u @ layer.weight @ layer.v
                    assert sigma.item() == pytest.approx(torch.linalg.svdvals(layer.weight)[0].item(), abs=1e-3)
        others = [key for key in before.state_dict() if before.state_dict()[key].shape == new.state_dict()[key].shape]
        own = {f"{n}.{leaf}" for n, m in new.named_modules() if isinstance(m, layers.Embedding) for leaf in "uv"}
        assert all(torch.equal(new.state_dict()[key], before.state_dict()[key]) for key in others if key not in own)
    assert embeddings >= 5 and "embed.weight" in report["D"]["remade"] and "embed.u" in report["D"]["remade"]
    assert "ssm.embedding.weight" in report["G"]["remade"] and not report["G"]["anew"]
    assert any("made again for 6 classes (3 rows copied, 3 the mean of the old ones)" in line for line in lines)
    images = G(torch.randn(6, new_config.dim_z), torch.arange(6))
    assert torch.isfinite(D(images, torch.arange(6))).all()


def test_another_number_of_classes_without_a_mapping_starts_from_the_mean(tmp_path):
    old = save(tmp_path / "a.pth")
    _, D, *_ = start(tmp_path / "a.pth", dataclasses.replace(SMALL, n_classes=2), ["a", "b"])
    torch.testing.assert_close(D.embed.weight, old["D"].embed.weight.mean(0).expand(2, -1))


NUMBERS = [str(i) for i in range(4)]


@pytest.mark.parametrize(
    ("old", "new", "rows", "how"),
    [
        (NAMES, NAMES, [0, 1, 2, 3], "by name, 4 of 4"),
        (NAMES, ["fish", "cat", "dog", "7"], [2, 0, 1, 3], "by name, 4 of 4"),
        (NAMES, ["dog", "eel"], [1, None], "by name, 1 of 2"),
        (NAMES, ["ant", "cat", "eel", "owl", "dog"], [None, 0, None, None, 1], "by name, 2 of 5"),
        (NAMES, ["ant", "bee", "cow", "doe"], [0, 1, 2, 3], "by number"),  # as before: names of another kind, say
        (NAMES, ["ant", "bee"], [None, None], "none; --class_mapping"),
        (NUMBERS, NAMES, [0, 1, 2, 3], "by number"),
        (NAMES, NUMBERS, [0, 1, 2, 3], "by number"),
        (NUMBERS, NUMBERS, [0, 1, 2, 3], "by number"),
        (NUMBERS, ["2", "3"], [None, None], "none"),
    ],
)
def test_classes_of_the_same_name_are_taken_over(tmp_path, old, new, rows, how):
    save(tmp_path / "a.pth", names=old)
    classes = finetune.class_rows(finetune.read_source(tmp_path / "a.pth"), new)
    assert classes.rows == rows and classes.how.startswith(how)


def test_rows_of_the_same_name_arrive(tmp_path):
    old = save(tmp_path / "a.pth")
    _, D, _, _, lines = start(tmp_path / "a.pth", dataclasses.replace(SMALL, n_classes=3), ["fish", "cat", "owl"])
    weight = old["D"].embed.weight
    assert torch.equal(D.embed.weight, torch.stack([weight[2], weight[0], weight.mean(0)]))
    assert any("made again for 3 classes (2 rows copied, 1 the mean of the old ones)" in line for line in lines)


def test_a_checkpoint_of_G_alone_starts_D_anew(tmp_path):
    old = save(tmp_path / "a.pth", parts=("G_ema",))
    G, _, average, report, lines = start(tmp_path / "a.pth", SMALL, NAMES)
    for module in (G, average):
        assert torch.equal(module.linear.weight, old["G_ema"].linear.weight)
    assert not report["D"]["loaded"] and "D: the checkpoint has none, it starts anew" in lines[-1]


def test_parts_that_only_one_side_has_are_told(tmp_path):
    save(tmp_path / "a.pth")
    *_, report, lines = start(tmp_path / "a.pth", dataclasses.replace(SMALL, ssm="voxel", D_cond="none"), NAMES)
    assert any(name.startswith("ssm.") for name in report["G"]["anew"])
    assert set(report["D"]["ignored"]) == {"embed.weight", "embed.u", "embed.v"}
    text = "\n".join(lines)
    assert "not in the checkpoint, started anew: ssm." in text and "ignored: embed." in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('["a"]', "not a JSON object"),
        ("{", "not valid JSON"),
        ('{"wolf": "dog"}', "the data set has no class 'wolf'"),
        ('{"0": "wolf"}', "a.pth has no class 'wolf'"),
        ('{"0": 4}', "has no class '4'"),
        ('{"cat": 1, "0": 2}', "class cat is there twice"),
    ],
)
def test_bad_mappings_are_one_line(tmp_path, content, words):
    save(tmp_path / "a.pth")
    (tmp_path / "map.json").write_text(content)
    source = finetune.read_source(tmp_path / "a.pth")
    with pytest.raises(utils.UserError) as error:
        finetune.class_rows(source, NAMES[:3], tmp_path / "map.json")
    assert words in str(error.value) and "map.json" in str(error.value) and "\n" not in str(error.value)


def test_a_model_of_another_shape_is_refused_with_its_flags(tmp_path):
    save(tmp_path / "a.pth")
    with pytest.raises(utils.UserError) as error:
        start(tmp_path / "a.pth", dataclasses.replace(SMALL, G_ch=8), NAMES)
    assert "--G_ch was 4 and is 8" in str(error.value) and "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# Frozen blocks

DEEP = {"model": "BigGANdeep", "D_ch_mult": (1, 2, 2), "D_attn": (8,), **SHARED}


def steps_of(D, G, forward_D, scaler=None):
    """Two steps of D with orthogonal regularisation, and between them one of G, as in training."""
    optimizers = [torch.optim.Adam(net.parameters(), lr=1e-2) for net in (G, D)]
    torch.manual_seed(3)
    x, z, y = torch.randn(4, 3, 16, 16), torch.randn(4, G.config.dim_z), torch.tensor([0, 1, 2, 0])
    d_step(G, D, forward_D, optimizers[1], [(x, y, z, y)], 1, 1e-4, scaler=scaler)
    g_step(G, D, G, optimizers[0], [(z, y)], 1, 1e-4)
    d_step(G, D, forward_D, optimizers[1], [(x, y, z, y)] * 2, 2, 1e-4, scaler=scaler)
    return optimizers[1]


@pytest.mark.parametrize("how", ["plain", "bf16", "fp16", "ranks"])
@pytest.mark.parametrize(
    ("options", "number", "stays"),
    [
        ({"D_attn": (8,)}, 1, ("blocks.0.", "blocks.1.")),  # with its attention
        ({"D_attn": (8,)}, 3, ("blocks.",)),
        (DEEP, 1, ("input_conv.", "blocks.0.")),
        (DEEP, 2, ("input_conv.", "blocks.0.", "blocks.1.", "blocks.2.")),
        ({"D_cond": "concat"}, 1, ("blocks.0.",)),
    ],
)
def test_frozen_blocks_stay_bit_for_bit(options, number, stays, how, tmp_path):
    torch.manual_seed(1)
    G, D = BigGAN.build(dataclasses.replace(SMALL, **options))
    D.freeze(number)
    before = copy.deepcopy(D.state_dict())
    D.amp = torch.bfloat16 if how == "bf16" else None
    forward = D
    if how == "ranks":
        torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", world_size=1, rank=0)
        forward = DistributedDataParallel(D)
    try:
        optimizer = steps_of(D, G, forward, LossScaler("cpu") if how == "fp16" else None)
    finally:
        if how == "ranks":
            torch.distributed.destroy_process_group()
    changed = {name for name, value in D.state_dict().items() if not torch.equal(value, before[name])}
    trained = [p for name, p in D.named_parameters() if not name.startswith(stays)]
    names = {name for name, _ in D.named_parameters() if not name.startswith(stays)}
    assert names <= changed and not any(name.startswith(stays) for name in changed)
    assert set(optimizer.state) == set(trained)  # moments of what moves alone
    D.train()
    assert not any(p.requires_grad for name, p in D.named_parameters() if name.startswith(stays))
    assert all(p.requires_grad for p in trained)


def test_none_frozen_is_as_before():
    states = []
    for number in (None, 0):
        torch.manual_seed(1)
        G, D = BigGAN.build(SMALL)
        if number is not None:
            D.freeze(number)
        steps_of(D, G, D)
        states.append(D.state_dict())
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("number", "parts", "old", "words"),
    [
        (4, ("G", "D"), SMALL, "--freeze_D 4: D has 3 blocks"),
        (1, ("G_ema",), SMALL, "holds the generator alone"),
        (1, ("G", "D"), dataclasses.replace(SMALL, D_attn=()), r"blocks.1.gamma of D is not in .*a.pth"),
    ],
)
def test_what_cannot_be_frozen_is_one_line(tmp_path, number, parts, old, words):
    save(tmp_path / "a.pth", old, parts)
    _, D = BigGAN.build(dataclasses.replace(SMALL, D_attn=(8,)))
    with pytest.raises(utils.UserError, match=words) as error:
        finetune.check_frozen(number, finetune.read_source(tmp_path / "a.pth"), D)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# As users do it


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16)).astype(np.uint8)
    writing.write_hdf5(root / "made.hdf5", images, np.arange(40) % 3, ["a", "b", "cat"], "made", "none")
    writing.write_hdf5(
        root / "large.hdf5", images.repeat(2, 2).repeat(2, 3), np.arange(40) % 3, list("abc"), "made", "none"
    )
    return root


def flags(data_root, tmp_path, *more):
    common = "--dataset made --test_every 0 --batch_size 8 --num_D_steps 1 --device cpu --ema --experiment_name run"
    where = ["--data_root", data_root, "--runs_root", tmp_path / "runs", "--init_from", tmp_path / "a.pth"]
    return [*common.split(), *map(str, [*where, *more])]


def test_the_script_takes_the_models_options_from_the_checkpoint(data_root, tmp_path, capsys):
    save(tmp_path / "a.pth", dataclasses.replace(SMALL, ssm="voxel"))
    (tmp_path / "map.json").write_text('{"cat": "cat"}')
    arguments = flags(data_root, tmp_path, "--class_mapping", tmp_path / "map.json", "--freeze_D", 2, "--num_iters")
    train.main([*arguments, "1"])
    told = capsys.readouterr().out
    assert "made again for 3 classes (1 row copied, 2 the mean" in told
    assert "note: --freeze_D 2: the first 2 blocks of D stay as loaded" in told
    train.main([*arguments, "1", "--experiment_name", "dry", "--dry_run"])
    report = [line for line in told.splitlines() if line.startswith(("start from", "  classes", "  G:", "  D:"))]
    assert len(report) >= 4 and "\n".join(report) in capsys.readouterr().out
    assert not (tmp_path / "runs" / "dry").exists()
    G, meta = BigGAN.load_generator(tmp_path / "runs" / "run")
    assert G.config == dataclasses.replace(SMALL, ssm="voxel", n_classes=3) and meta["step"] == 1
    train.main([*arguments, "2"])  # resumes: the checkpoint of the run, not the one it started from
    assert "start from" not in capsys.readouterr().out
    D, old = (BigGAN.load_discriminator(tmp_path / where)[0].state_dict() for where in ("runs/run", "a.pth"))
    same = {name[:8] for name in D if torch.equal(D[name], old[name])}
    assert same == {"blocks.0", "blocks.1", "linear.u"}  # the last of one row, hence always 1
    log = logs.read_log(tmp_path / "runs" / "run" / "log.jsonl")
    assert [event["event"] for event in log].count("init_from") == 1 and log[0]["class_rows"] == [None, None, 0]
    (tmp_path / "map.json").unlink()
    train.main([*arguments, "3", "--dry_run"])
    (tmp_path / "a.pth").unlink()
    with pytest.raises(utils.UserError, match="a.pth: no such checkpoint"):
        train.main([*arguments, "3", "--from_scratch"])
    train.main([*arguments, "3"])
    _, meta = BigGAN.load_generator(tmp_path / "runs" / "run")
    assert meta["step"] == 3


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--init_from", "nowhere"], "nowhere: no such checkpoint"),
        (["--dataset", "large"], "is of 16x16 images"),
        (["--G_ch", "8"], "--G_ch was 4 and is 8"),
        (["--class_mapping", "nowhere.json"], "cannot read nowhere.json"),
        (["--freeze_D", "4"], "--freeze_D 4: D has 3 blocks"),
    ],
)
def test_bad_input_is_one_line(data_root, tmp_path, more, words):
    save(tmp_path / "a.pth")
    with pytest.raises(utils.UserError) as error:
        train.main([*flags(data_root, tmp_path, "--num_iters", "1"), *more])
    assert words in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "runs").exists()
