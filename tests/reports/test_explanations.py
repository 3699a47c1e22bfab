"""What explain.py shows is what the network does: maps, streams taken out and exchanged, directions."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import CLASSES, DIM_Z, NAMES, RESOLUTION, save_checkpoint, small_config, small_generator

import BigGAN
import explain
import utils
from layers import SelfAttention
from reports import attention, directions, modulation, pictures
from sampling.generate import make_images
from sssm import STAGES


def inputs(n=3):
    torch.manual_seed(1)
    return torch.randn(n, DIM_Z), torch.arange(n) % CLASSES


@pytest.mark.parametrize("side", [4, 8])
def test_attention_maps_are_the_softmax_of_the_point(side):
    G = small_generator(G_attn=(8,))
    (layer,) = attention.attention_layers(G)
    z, y = inputs()
    seen = []
    with layer.register_forward_pre_hook(lambda layer, args: seen.append(args[0])):
        G(z, y)
    x = seen[0]
    query, key = layer.theta(x), torch.nn.functional.max_pool2d(layer.phi(x), 2)
    points = [(0, 0), (15, 9), (3, 12)]
    (maps,) = attention.attention_maps(G, (z, y), points, RESOLUTION)
    assert maps.side == 8 and maps.weights.shape == (3, 3, 4, 4) and maps.gamma == pytest.approx(layer.gamma.item())
    for p, (px, py) in enumerate(points):
        scores = torch.einsum("nc,nchw->nhw", query[:, :, py // 2, px // 2], key)
        expected = scores.flatten(1).softmax(1).unflatten(1, (4, 4))
        torch.testing.assert_close(maps.weights[:, p], expected)


def test_attention_of_layer_weights_reproduces_its_forward():
    torch.manual_seed(0)
    layer = SelfAttention(16, {})
    layer.gamma.data.fill_(0.7)
    x = torch.randn(2, 16, 6, 6)
    weights = layer.weights(x, torch.arange(36)).flatten(2)  # (N,HW,HW/4)
    value = torch.nn.functional.max_pool2d(layer.g(x), 2).flatten(2)
    attended = (value @ weights.transpose(1, 2)).unflatten(2, (6, 6))
    torch.testing.assert_close(layer(x), x + 0.7 * layer.o(attended))


def test_points_are_spread_over_the_image_or_given():
    assert attention.spread_points(1, 32) == [(16, 16)]
    assert attention.spread_points(4, 32) == [(8, 8), (24, 8), (8, 24), (24, 24)]
    for number in range(1, 40):
        points = attention.spread_points(number, 32)
        assert len(set(points)) == number and all(0 <= c < 32 for point in points for c in point)
    assert attention.parse_points(["0,31", "5, 6"], 32) == [(0, 31), (5, 6)]


@pytest.mark.parametrize(
    ("text", "said"),
    [("32,0", "outside of the 32x32 image"), ("-1,4", "outside"), ("4", "X,Y"), ("--1,4", "X,Y"), ("1.5,b", "X,Y")],
)
def test_a_point_that_is_none_is_one_line(text, said):
    with pytest.raises(utils.UserError, match=f"--points {text}.*{said}"):
        attention.parse_points([text], 32)


# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", sorted(STAGES))
def test_modulation_maps_are_those_that_the_stage_uses(variant):
    G = small_generator(ssm=variant, ssm_zero_init=True)
    z, y = inputs()
    s = G.ssm.start(z, y)
    for stage, maps in zip(G.ssm.stages, modulation.modulation_maps(G, z, y), strict=True):
        s = stage.conv2(torch.relu(stage.conv1(torch.relu(s))))
        torch.testing.assert_close(maps.gain, stage.scale * stage.gain(s))
        assert (maps.bias is None) == (variant in ("gain", "group_gain"))
        if maps.bias is not None:
            torch.testing.assert_close(maps.bias, stage.scale * stage.bias(s))


@pytest.mark.parametrize("variant", sorted(STAGES))
def test_without_modulation_gain_is_1_and_bias_0(variant):
    G = small_generator(ssm=variant)
    z, y = inputs()
    before = make_images(G, z, y)
    stage = G.ssm.stages[1]
    h = torch.randn(3, G.config.G_widths[2], 16, 16)
    s = torch.randn(3, G.config.G_widths[1], 8, 8)
    with modulation.unmodulated(stage):
        _, out = stage(s, h)
    expected = h
    if "voxel" in variant:
        dims = (2, 3) if variant == "global_voxel" else (1, 2, 3)
        expected = (h - h.mean(dims, keepdim=True)) / h.std(dims, keepdim=True)
        expected = (expected - expected.mean((1, 2, 3), keepdim=True)) / expected.std((1, 2, 3), keepdim=True)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
    *each, whole = modulation.without_stages(G, z, y)
    assert len(each) == 2 and all((images != before).any() for images in [*each, whole])
    assert torch.equal(make_images(G, z, y), before)  # nothing of it stays


@pytest.mark.parametrize("what", modulation.EXCHANGES)
def test_exchange_gives_the_second_stream_another_sample(what):
    G = small_generator(ssm="voxel")
    z, y = inputs()
    grid = modulation.exchanged(G, z, y, what).unflatten(0, (3, 3))
    assert torch.equal(grid[range(3), range(3)], make_images(G, z, y))
    start = G.ssm.start
    for i in range(3):
        for j in range(3):
            other = (z[j : j + 1], y[i : i + 1]) if what == "z" else (z[i : i + 1], y[j : j + 1])
            G.ssm.start = lambda z, y, other=other: start(*other)
            expected = make_images(G, z[i : i + 1], y[i : i + 1])[0]
            assert (grid[i, j].int() - expected.int()).abs().max() <= 1
    del G.ssm.start


def test_channels_that_vary_most_come_first():
    values = torch.zeros(2, 4, 4, 4)
    values[:, 2, :2], values[:, 0, :2], values[:, 3] = 5, 1, 100  # the last is high, but the same everywhere
    assert modulation.most_varied(values, 2) == [2, 0] and len(modulation.most_varied(values, 9)) == 4


@pytest.mark.parametrize("options", [{}, {"hier": True, "G_shared": True}, {"G_param": "none"}])
def test_directions_are_those_that_the_first_layer_stretches_most(options):
    G = small_generator(**options)
    slot = G.config.dim_z // G.slots
    values, vectors = directions.singular_directions(G, slot)
    assert (vectors[:, slot:] == 0).all()
    weight = G.linear.normalized_weight()
    torch.testing.assert_close((weight @ vectors[:, :slot].T).norm(dim=0), values)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(slot), atol=1e-5, rtol=0)
    assert (values.diff() <= 0).all() and values[0] == pytest.approx(torch.linalg.svdvals(weight)[0].item(), rel=1e-5)
    with pytest.raises(utils.UserError, match="--directions"):
        directions.check_number(G, slot + 1)


# ---------------------------------------------------------------------------------------------------------------------


def test_colours_stand_for_the_values():
    values = torch.tensor([[[0.0, 1.0], [0.25, 9.0]]])
    picture = pictures.coloured(values, 0, 1, 8)
    palette = pictures.palette()
    for (y, x), place in {(0, 0): 0, (0, 7): 255, (7, 0): 64, (7, 7): 255}.items():
        assert torch.equal(picture[0, :, y, x], palette[place])
    grey = palette.float() @ torch.tensor([0.299, 0.587, 0.114])
    assert (grey.diff() > -0.5).all() and grey[-1] - grey[0] > 150  # readable without colours


def explained(tmp_path, capsys, *flags, **options):
    G = small_generator(**options)
    path = save_checkpoint(tmp_path / "run" / "weights" / "best_00000007.pth", G)
    explain.main([str(path), "--device", "cpu", *flags])
    return tmp_path / "run" / "samples" / "explain", capsys.readouterr().out


def test_all_pictures_of_a_model_that_has_everything(tmp_path, capsys):
    folder, out = explained(tmp_path, capsys, "--directions", "2", ssm="voxel", G_attn=(8,))
    names = {"attention_G_8x8", "ssm", "ssm_8x8", "ssm_16x16", "ssm_without", "directions"}
    names |= {f"ssm_exchange_{what}" for what in modulation.EXCHANGES}
    assert {path.name for path in folder.iterdir()} == {f"{name}.png" for name in names}
    for path in folder.iterdir():
        assert min(Image.open(path).size) > 200 and f"wrote {path}" in out


@pytest.mark.parametrize("width", [0, 0.5])
def test_pictures_of_a_narrow_stream_that_modulates_one_stage(tmp_path, capsys, width):
    """Without space (0) the maps are points, which the names of the stages do not follow."""
    flags = ["--num_samples", "2", "--only", "ssm", "identity", "exchange"]
    folder, _ = explained(tmp_path, capsys, *flags, ssm="voxel", ssm_width=width, ssm_stages=(2,))
    names = {"ssm", "ssm_16x16", "ssm_without", *(f"ssm_exchange_{what}" for what in modulation.EXCHANGES)}
    assert {path.stem for path in folder.iterdir()} == names


def test_what_a_model_lacks_is_told(tmp_path, capsys):
    folder, out = explained(tmp_path, capsys, "--directions", "2", "--format", "pdf")
    assert [path.name for path in folder.iterdir()] == ["directions.pdf"]
    assert "no attention" in out and "no spatial self-modulation" in out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--only ssm", "has no spatial self-modulation; it has directions"),
        ("--only directions attention", "has no attention"),
        ("--points 3,4", "--points: .* has no attention"),
        ("--classes 7", "no such class"),
        ("--truncation 0", "--truncation 0.0: must be positive"),
        ("--directions 99", "--directions 99"),
        ("--reach 0", "--reach 0"),
        ("--reach 1e39", "--reach 1e.39: must be above 0, and at most 1000"),
        ("--held_out digits", "--held_out: .*--only memorisation"),
        ("--points -3,4", "--points: .* has no attention"),  # a value, no flag
        ("--bn_mode batch --directions 2", "--bn_mode batch"),
        ("--num_points 1000", "--num_points 1000: at most 50"),
        ("--num_samples 51", "--num_samples 51: at most 50"),
        ("--only directions --steps 1000000", "--steps 1000000"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(tmp_path, capsys, flags, said):
    with pytest.raises(utils.UserError, match=said):
        explained(tmp_path, capsys, *flags.split())
    assert not (tmp_path / "run" / "samples").exists()


def test_the_discriminator_of_a_full_checkpoint_is_explained_too(tmp_path, capsys):
    torch.manual_seed(0)
    config = small_config(D_attn=(8,))
    G, D = BigGAN.build(config)
    path = save_checkpoint(tmp_path / "ckpt_00000007.pth", G, NAMES)
    content = torch.load(path) | {"D": D.state_dict()}
    torch.save(content, path)
    explain.main([str(path), "--device", "cpu", "--only", "directions", "--directions", "2", "--out", str(tmp_path)])
    assert explain.discriminator_of(str(path), torch.device("cpu")) is not None
    explain.main([str(path), "--device", "cpu", "--only", "attention", "--out", str(tmp_path)])
    assert (tmp_path / "attention_D_8x8.png").exists()


def test_a_pdf_holds_the_exact_pixels(tmp_path):
    import zlib

    from torch_utils.images import save_image

    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    save_image(Image.fromarray(pixels), tmp_path / "x.pdf")
    content = (tmp_path / "x.pdf").read_bytes()
    stream = content[content.index(b"stream\n", content.index(b"/FlateDecode")) + 7 :]
    assert zlib.decompressobj().decompress(stream) == pixels.tobytes()
    start = int(content.rsplit(b"startxref\n", 1)[1].split()[0])
    assert content[start : start + 4] == b"xref" and b"/MediaBox [0 0 7 5]" in content
