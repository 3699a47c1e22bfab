"""The model's options: tables, normalisation, flags, round trips, and what contradicts itself."""

import json

import pytest

import utils
from model_config import ModelConfig, add_model_args


def parse(*flags):
    parser = utils.ArgumentParser()
    add_model_args(parser)
    return ModelConfig.of(parser.parse_args(flags), resolution=32, n_classes=10)


@pytest.mark.parametrize(
    ("resolution", "bottom_width", "G", "D", "num_down"),
    [
        (32, 4, (4, 4, 4, 4), (4, 4, 4, 4), 2),
        (64, 4, (16, 16, 8, 4, 2), (1, 2, 4, 8, 16), 4),
        (96, 6, (16, 16, 8, 4, 2), (1, 2, 4, 8, 16), 4),
        (128, 4, (16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), 5),
        (512, 4, (16, 16, 8, 8, 4, 2, 1, 1), (1, 1, 2, 4, 8, 8, 16, 16), 7),
    ],
)
def test_width_tables(resolution, bottom_width, G, D, num_down):
    config = ModelConfig(resolution=resolution, n_classes=10, bottom_width=bottom_width)
    assert (config.G_ch_mult, config.D_ch_mult, config.D_num_down) == (G, D, num_down)
    assert config.G_widths == tuple(64 * m for m in G)


def test_flags_follow_from_fields():
    config = parse("--G_ch_mult", "4-4-2-1", "--D_ch_mult", "1-2-4-4", "--G_attn", "0", "--D_attn", "8_16", "--D_thin")
    assert config.G_ch_mult == (4, 4, 2, 1) and config.D_num_down == 3
    assert config.G_attn == () and config.D_attn == (8, 16) and not config.D_wide and config.G_cbn
    assert not parse("--no-G_cbn").G_cbn and parse("--hier", "--G_shared").hier
    assert parse() == ModelConfig(resolution=32, n_classes=10)


@pytest.mark.parametrize("hier", [True, False])
def test_round_trip_changes_nothing(hier):
    config = ModelConfig(resolution=64, n_classes=10, dim_z=128, G_shared=True, hier=hier)
    assert config.dim_z == (125 if hier else 128) and config.shared_dim == 128
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "options",
    [
        {"resolution": 48},
        {"resolution": 16},
        {"G_ch_mult": (4, 4)},
        {"dim_z": 0},
        {"hier": True},
        {"hier": True, "G_shared": True, "dim_z": 3},
        {"D_num_down": 6},
        {"G_ch": -1},
        {"D_ch_mult": (1, 0, 2)},
        {"D_cond": "concat", "D_ch_mult": (4,), "D_num_down": 1},
        {"model": "BigGANdeep", "D_cond": "concat"},
        {"model": "BigGANdeep", "G_ch_mult": (2, 4, 4, 4)},
        {"model": "BigGANdeep", "D_num_down": 4},
        {"ssm": "group_gain", "G_ch": 1, "G_ch_mult": (4, 4, 4, 2)},
        {"D_label_ch": 0},
        {"ssm": "group_gain", "G_ch": 4, "ssm_group": 3},
        {"ssm": "voxel", "ssm_width": 1.5},
        {"ssm": "voxel", "ssm_width": float("nan")},
        {"ssm": "voxel", "ssm_stages": (0, 1)},
        {"ssm": "voxel", "ssm_stages": (4,)},
        {"G_ch": float("inf")},
        {"G_ch": float("nan")},
    ],
)
def test_contradictions_are_refused(options):
    with pytest.raises(utils.UserError):
        ModelConfig(**{"resolution": 32, "n_classes": 10, **options})


def test_attention_without_a_block_is_told():
    config = ModelConfig(resolution=32, n_classes=10, G_attn=(32, 64), D_attn=(16,))
    assert len(config.notes()) == 1 and "--G_attn 64" in config.notes()[0]
    config = ModelConfig(resolution=32, n_classes=10, G_attn=(), D_attn=(4,), D_attn_after=(4, 5))
    assert ["--D_attn 4" in note or "--D_attn_after 5" in note for note in config.notes()] == [True, True]


def test_stages_say_where_attention_is():
    config = ModelConfig(32, 10, G_ch=1, D_ch=1, G_attn=(16,), G_attn_after=(3,), D_attn=(16, 8), D_attn_after=(4,))
    assert config.G_stages == [(4, 4, False), (4, 4, True), (4, 4, True)]
    assert config.D_stages == [(3, 4, True, True), (4, 4, True, True), (4, 4, False, False), (4, 4, False, True)]


def test_deep_keeps_z_whole():
    config = ModelConfig(resolution=64, n_classes=10, model="BigGANdeep", dim_z=128, G_shared=True, hier=True)
    assert config.dim_z == 128 and len(config.D_stages) == 4 and config.D_num_down == 4


def test_widths_that_are_missing_are_told_from_widths_that_do_not_fit():
    for options, line in (
        ({"resolution": 16}, "no usual widths at resolution 16: give --G_ch_mult 3 numbers, such as 4-2-1"),
        ({"resolution": 16, "G_ch_mult": (4, 2, 1)}, "give --D_ch_mult numbers, such as 1-2-4"),
        ({"resolution": 32, "G_ch_mult": (4, 4)}, "--G_ch_mult 4-4: 4 numbers are needed at resolution 32"),
    ):
        with pytest.raises(utils.UserError, match=line):
            ModelConfig(n_classes=2, **options)


def test_fractions_of_the_widths_are_rounded():
    assert ModelConfig(resolution=64, n_classes=2, G_ch=10.3).G_widths == (165, 165, 82, 41, 21)
    assert ModelConfig(resolution=64, n_classes=2, G_ch=10.3, ssm="group_gain").G_widths == (164, 164, 84, 40, 20)
    assert ModelConfig(resolution=64, n_classes=2, G_ch=10).G_widths == (160, 160, 80, 40, 20)


def test_flags_of_ssm(capsys):
    assert parse("--ssm_stages", "2_1").ssm_modulated == (1, 2)
    assert parse("--ssm_stages", "all").ssm_modulated == parse().ssm_modulated == (1, 2, 3)
    assert parse("--G_ch", "8.0").G_ch == 8 and type(parse("--G_ch", "8.0").G_ch) is int
    assert "--ssm_width does nothing with --ssm none" in parse("--ssm_width", "0.5").notes()
    for bad in (["--ssm_stages", "0"], ["--ssm_stages", "none"], ["--ssm_width", "half"], ["--G_ch", "wide"]):
        with pytest.raises(SystemExit):
            parse(*bad)
        assert bad[0] in capsys.readouterr().err
    for bad in ("none", "", "0", "-1", "1.5", "last"):
        with pytest.raises(SystemExit):
            parse("--ssm_stages=" + bad)
        assert "name stages, counted from 1, as 1_2_3, or all" in capsys.readouterr().err
