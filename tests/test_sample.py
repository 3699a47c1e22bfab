"""sample.py: what an image depends on, the geometry of sheets, the written files, and the script's errors."""

import copy
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from small_models import CLASSES, DIM_Z, NAMES, RESOLUTION, save_checkpoint, small_config, small_generator

import sample
import utils
from metrics.images import GeneratedImages
from sampling import batch_norm, sheets
from sampling.files import npz_writer, png_writer
from sampling.generate import SamplingOptions, generate
from sampling.latents import Truncation, balanced_labels, latents, random_labels
from torch_utils import checkpoints, text
from torch_utils.images import to_uint8
from training import finetune


@pytest.fixture(scope="module")
def G():
    return small_generator()


@pytest.fixture
def run(tmp_path, G):
    save_checkpoint(tmp_path / "run" / "weights" / "best_00000007.pth", G)
    return tmp_path / "run"


def tiles(sheet, rows, columns, header=0, left=(), right=(), blocks=1):
    """The images of a sheet: uint8 (rows, columns, R, R, 3). header: lines above the columns; left, right: of a row;
    blocks: of columns, with a white gap between them."""
    scale, pad = 64 // RESOLUTION, 2
    cell = RESOLUTION * scale + pad
    top = 3 + 13 * header if header else 0
    before, after = (max((text.fit(name, 150, 5).width + 8 for name in side), default=0) for side in (left, right))
    gap, width = 10, columns // blocks * cell
    assert sheet.size == (before + columns * cell + pad + after + (blocks - 1) * gap, rows * cell + pad + top)
    pixels = np.asarray(sheet)[top + pad :, before + pad :]
    starts = [block * (width + gap) for block in range(blocks)]
    assert all((pixels[:, start - pad - gap : start] == 255).all() for start in starts[1:])
    pixels = np.concatenate([pixels[:, start : start + width] for start in starts], axis=1)
    cells = pixels.reshape(rows, cell, columns, cell, 3).swapaxes(1, 2)
    return cells[:, :, : scale * RESOLUTION : scale, : scale * RESOLUTION : scale]


# ---------------------------------------------------------------------------------------------------------------------


def test_latents_depend_on_seed_and_index_only():
    z = latents(3, range(20), DIM_Z)
    assert z.dtype == torch.float32 and z.shape == (20, DIM_Z)
    assert torch.equal(z[[7, 2]], latents(3, [7, 2], DIM_Z))
    assert not torch.isclose(z, latents(4, range(20), DIM_Z)).any()
    assert len(z.unique()) == z.numel()


@pytest.mark.parametrize("limit", [None, 0.02, 0.5, 2.0])
def test_latents_follow_the_truncated_normal(limit):
    z = latents(0, range(400), 10, limit and Truncation(limit)).flatten().double().numpy()
    bound = limit or np.inf
    assert np.abs(z).max() <= bound * (1 + 1e-6)
    assert stats.kstest(z, stats.truncnorm(-bound, bound).cdf).pvalue > 0.01


def test_other_kinds_of_truncation():
    def z(kind, limit=0.4):
        return latents(0, range(400), 10, Truncation(limit, kind))

    whole = latents(0, range(400), 10)
    assert torch.equal(z("clamped_normal"), whole.clamp(-0.4, 0.4))
    torch.testing.assert_close(z("scaled_normal"), whole * 0.4)
    torch.testing.assert_close(z("scaled_truncated_normal"), 0.4 * z("truncated_normal", 2))


def test_truncation_is_that_of_the_convention_unless_flags_say_otherwise():
    convention = {"convention": {"truncation": 0.4, "truncation_kind": "scaled_truncated_normal"}}
    for flags, meta, expected in (
        ((), {}, None),
        (("--truncation", "0.5"), {}, (0.5, "truncated_normal")),
        ((), convention, (0.4, "scaled_truncated_normal")),
        (("--truncation", "0.5"), convention, (0.5, "scaled_truncated_normal")),
        (("--truncation_kind", "clamped_normal"), convention, (0.4, "clamped_normal")),
    ):
        chosen = SamplingOptions.of(sample.parse_args(["x", *flags])).chosen_truncation(meta)
        assert chosen == (expected and Truncation(*expected))


def test_truncation_moves_every_image_towards_the_mean():
    whole, less = latents(0, range(50), 10), latents(0, range(50), 10, Truncation(0.5))
    assert torch.equal(whole.sign(), less.sign()) and (less.abs() < whole.abs()).all()
    assert torch.allclose(whole, latents(0, range(50), 10, Truncation(30.0)))


def test_images_do_not_depend_on_batch_size_or_start(G):
    y = balanced_labels(11, range(CLASSES))
    whole = torch.cat(list(generate(G, y, seed=1, batch_size=11)))
    assert whole.dtype == torch.uint8 and whole.shape == (11, 3, RESOLUTION, RESOLUTION)
    assert whole.float().std() > 5
    for batch_size in (1, 4):
        parts = torch.cat(list(generate(G, y, seed=1, batch_size=batch_size)))
        assert (parts.int() - whole.int()).abs().max() <= 1
    tail = torch.cat(list(generate(G, y[8:], seed=1, batch_size=2, start=8)))
    assert (tail.int() - whole[8:].int()).abs().max() <= 1


def test_labels():
    assert balanced_labels(5, [4, 9]).tolist() == [4, 9, 4, 9, 4]
    y = random_labels(0, 300, [4, 9])
    assert torch.equal(y[:10], random_labels(0, 10, [4, 9])) and 100 < (y == 4).sum() < 200


def test_class_sheet_has_a_class_per_column_and_a_z_per_row(G):
    sheet = tiles(sheets.class_sheet(G, rows=4, seed=5, classes=[2, 0]), rows=4, columns=2, header=1)
    z = latents(5, range(4), DIM_Z)
    for column, c in enumerate((2, 0)):
        expected = to_uint8(G(z, torch.full((4,), c))).permute(0, 2, 3, 1).numpy()
        assert np.abs(sheet[:, column].astype(int) - expected).max() <= 1


def test_one_class_makes_a_random_sheet(G):
    sheet = tiles(sheets.class_sheet(G, rows=2, seed=5, classes=[1]), rows=2, columns=10)
    assert len(np.unique(sheet.reshape(20, -1), axis=0)) == 20


def test_interpolations_start_and_end_at_the_images(G):
    z = latents(5, range(4), DIM_Z)
    about = {"rows": 2, "seed": 5, "classes": [2, 0], "class_names": NAMES}
    sheet = tiles(sheets.z_interpolation_sheet(G, **about), 2, 10, left=["0 cat"])
    expected = to_uint8(G(z, torch.tensor([2, 2, 0, 0]))).permute(0, 2, 3, 1).numpy()
    assert np.abs(sheet[:, [0, 9]].reshape(expected.shape).astype(int) - expected).max() <= 1

    sheet = tiles(sheets.class_interpolation_sheet(G, **about), 2, 10, left=["0 cat"], right=["0 cat"])
    expected = to_uint8(G(z[[0, 0, 1, 1]], torch.tensor([2, 0, 0, 2]))).permute(0, 2, 3, 1).numpy()
    assert np.abs(sheet[:, [0, 9]].reshape(expected.shape).astype(int) - expected).max() <= 1
    assert len(np.unique(sheet.reshape(20, -1), axis=0)) == 20


@pytest.mark.parametrize(
    "options",
    [
        {"ssm": "voxel"},
        {"ssm": "voxel", "G_shared": True, "hier": True},
        {"G_cbn": False, "ssm": "voxel"},
        {"G_cbn": False},
    ],
)
def test_one_hot_weights_are_the_class_itself(options):
    G = small_generator(**options)
    z, y = torch.randn(5, G.config.dim_z), torch.tensor([0, 2, 1, 1, 0])
    assert torch.allclose(G(z, y), G(z, torch.nn.functional.one_hot(y, CLASSES).float()), atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------


def test_the_script_writes_sheets_into_the_run(run, capsys):
    sample.main([str(run), "--rows", "2", "--device", "cpu"])
    names = [
        "class_sheet.png",
        "interpolation_both.png",
        "interpolation_class.png",
        "interpolation_z.png",
        "random_sheet.png",
    ]
    assert sorted(path.name for path in (run / "samples").iterdir()) == names
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and "after 7 iterations" in lines[0]
    assert sum(str(run / "samples" / name) in line for name in names for line in lines) == 5
    tiles(Image.open(run / "samples" / "class_sheet.png"), rows=2, columns=CLASSES, header=1)


def test_many_classes_are_drawn_on_pages(tmp_path, capsys):
    names = [f"class {'x' * 30} {c}" for c in range(23)]
    G = small_generator(n_classes=23)
    checkpoint = save_checkpoint(tmp_path / "G.pth", G, names)
    flags = [str(checkpoint), "--rows", "2", "--device", "cpu", "--out"]
    sample.main([*flags, str(tmp_path / "some")])
    lines = capsys.readouterr().out.splitlines()
    assert "class_sheet.png (10 of 23 classes, --classes all draws each; columns: 0 class x" in lines[1]
    sample.main([*flags, str(tmp_path / "every"), "--classes", "all"])
    lines = capsys.readouterr().out.splitlines()
    pages = [f"class_sheet_{i}_of_3.png" for i in (1, 2, 3)]
    assert sorted(path.name for path in (tmp_path / "every").glob("class_*")) == pages
    assert [line.count(": 7 class") + line.count(", 8 class") for line in lines[1:4]] == [0, 2, 0]
    page = tiles(Image.open(tmp_path / "every" / pages[1]), rows=2, columns=8, header=4)
    for column, c in enumerate(range(7, 15)):
        expected = to_uint8(G(latents(0, range(2), DIM_Z), torch.full((2,), c))).permute(0, 2, 3, 1).numpy()
        assert np.abs(page[:, column].astype(int) - expected).max() <= 1
    some, every = (Image.open(tmp_path / folder / "interpolation_z.png") for folder in ("some", "every"))
    assert np.array_equal(some, every)


def test_classes_are_asked_for_by_name(run, tmp_path, capsys):
    flags = [
        str(run),
        "--out",
        str(tmp_path),
        "--rows",
        "1",
        "--device",
        "cpu",
        "--num_samples",
        "4",
        "--format",
        "npz",
    ]
    sample.main([*flags, "--classes", "dog/wolf", "0"])
    out = capsys.readouterr().out
    assert "(columns: 1 dog/wolf, 0 cat)" in out and "(random z and classes of: 1 dog/wolf, 0 cat)" in out
    assert np.load(tmp_path / "samples.npz")["arr_1"].tolist() == [1, 0, 1, 0]
    with pytest.raises(utils.UserError, match="--classes dog: this model has no such class; near it are: 1 dog/wolf"):
        sample.main([*flags, "--classes", "dog"])


@pytest.mark.slow
def test_any_class_name_works_in_any_locale(tmp_path):
    """Names as long as a file system allows, or of bytes that are no text, under a strict locale of ASCII alone."""
    names = ["\u732b" * 85, "caf\udce9", "../up\n\x1b[1m"]
    checkpoint = save_checkpoint(tmp_path / "G.pth", small_generator(), names)
    flags = f"{checkpoint} --device cpu --rows 1 --num_samples 3 --out {tmp_path / 'out'} --classes".split()
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii:strict"}
    command = [os.fsencode(word) for word in [sys.executable, "sample.py", *flags, *names]]
    done = subprocess.run(command, cwd=utils.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert r"1 caf\udce9, 2 ../up\n\x1b[1m)" in done.stdout and done.stdout.isascii()
    folders = sorted(path.name for path in (tmp_path / "out" / "images").iterdir())
    assert folders == ["0_" + "\u732b" * 33, r"1_caf_udce9", "2_.._up_n_x1b_1m"]


def test_a_model_of_one_class_has_no_class_sheets(tmp_path):
    checkpoint = save_checkpoint(tmp_path / "G.pth", small_generator(n_classes=1), ["thing"])
    sample.main([str(checkpoint), "--rows", "1", "--device", "cpu"])
    written = sorted(path.name for path in (tmp_path / "G_samples").iterdir())
    assert written == ["interpolation_z.png", "random_sheet.png"]


def test_npz_and_png_hold_the_same_balanced_images(run, tmp_path, G):
    out = tmp_path / "out"
    flags = ["--no-sheets", "--num_samples", "7", "--batch_size", "3", "--seed", "2", "--truncation", "0.8"]
    flags += ["--bn_mode", "running"]
    sample.main([str(run), "--out", str(out), "--format", "both", "--device", "cpu", *flags])
    assert sorted(path.name for path in out.iterdir()) == ["images", "samples.npz"]

    with np.load(out / "samples.npz", allow_pickle=False) as file:
        images, y = file["arr_0"], file["arr_1"]
    assert images.dtype == np.uint8 and images.shape == (7, RESOLUTION, RESOLUTION, 3)
    assert y.dtype == np.int64 and y.tolist() == [0, 1, 2, 0, 1, 2, 0]
    expected = torch.cat(list(generate(G, torch.from_numpy(y), 2, 3, truncation=Truncation(0.8))))
    assert np.array_equal(images, expected.permute(0, 2, 3, 1).numpy())

    files = sorted(path.relative_to(out / "images").as_posix() for path in out.glob("images/*/*"))
    assert files == sorted(f"{('0_cat', '1_dog_wolf', '2')[c]}/{i:06d}.png" for i, c in enumerate(y))
    for name in files:
        assert np.array_equal(np.asarray(Image.open(out / "images" / name)), images[int(Path(name).stem)])

    with pytest.raises(utils.UserError, match="already holds images"):
        sample.main([str(run), "--out", str(out), *flags])


def test_classes_restrict_everything(run, tmp_path):
    flags = ["--classes", "2", "--num_samples", "3", "--format", "npz", "--rows", "1", "--out", str(tmp_path)]
    sample.main([str(run), "--device", "cpu", *flags])
    assert np.load(tmp_path / "samples.npz")["arr_1"].tolist() == [2, 2, 2]
    assert not (tmp_path / "class_sheet.png").exists()


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    y = torch.tensor([0, 1])
    for writer in (npz_writer(tmp_path / "a.npz", y, 4), png_writer(tmp_path / "b", y, ["x", "y"])):
        with pytest.raises(KeyboardInterrupt), writer as write:
            write(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_bad_input_is_one_line(run, tmp_path, G, capsys):
    checkpoint = next((run / "weights").iterdir())
    (tmp_path / "cut.pth").write_bytes(checkpoint.read_bytes()[:2000])
    other = {**torch.load(checkpoint), "model_config": small_config(G_ch=8).to_dict()}
    checkpoints.save(other, tmp_path / "other.pth")
    (tmp_path / "file").touch()
    for arguments, words in (
        ([tmp_path / "nowhere"], "nowhere"),
        ([tmp_path / "cut.pth"], "cut.pth"),
        ([tmp_path / "other.pth"], "other.pth does not fit"),
        ([run, "--classes", "0", "3"], "--classes 3"),
        ([run, "--out", tmp_path / "file" / "out"], "--out"),
        ([run, "--no-ema"], "moving average"),
        ([run, "--num_samples", "9" * 15], "free"),
    ):
        with pytest.raises(utils.UserError, match=words) as caught:
            sample.main([*map(str, arguments), "--device", "cpu"])
        assert "\n" not in str(caught.value)
    with pytest.raises(utils.UserError, match="--no-sheets without --num_samples N"):
        sample.main([str(run), "--no-sheets"])
    for value in ("0", "nan"):
        with pytest.raises(utils.UserError, match=f"--truncation {float(value)}: must be positive"):
            sample.main([str(run), "--truncation", value])
    for flags in ("--truncation x", "--rows 0", "--classes", "--trunc 1"):
        with pytest.raises(SystemExit) as caught:
            sample.main([str(run), *flags.split()])
        assert caught.value.code == 2 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_the_command_exits_with_2():
    command = [sys.executable, "sample.py", "nowhere.pth"]
    done = subprocess.run(command, cwd=Path(sample.__file__).parent, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nowhere.pth" in done.stderr


@pytest.mark.parametrize("mode", ["batch", "standing"])
def test_samples_under_a_batch_norm_mode_are_the_images_that_evaluation_sees(run, G, tmp_path, mode):
    made = []
    for name, flags in {"few": "--num_samples 40", "more": "--num_samples 50 --batch_size 7"}.items():
        flags = f"{run} --out {tmp_path / name} --format npz --no-sheets --device cpu --bn_mode {mode} {flags}"
        sample.main([*flags.split(), "--bn_batch_size", "16", "--num_standing_accumulations", "2"])
        with np.load(tmp_path / name / "samples.npz") as file:
            made.append((file["arr_0"].transpose(0, 3, 1, 2).astype(int), file["arr_1"]))
        with zipfile.ZipFile(tmp_path / name / "samples.npz") as archive:  # no more pixels than its header tells of
            assert archive.getinfo("arr_0.npy").file_size - made[-1][0].size in range(1, 256)
    bn_mode = batch_norm.BatchNormMode(mode, 16, 2)
    with batch_norm.prepared(G, bn_mode, seed=0) as network:
        images = GeneratedImages(network, 40, 0, bn_mode)
        made.append((images.read(np.arange(40)).numpy().astype(int), images.labels))
    running = torch.cat(list(generate(G, torch.from_numpy(images.labels), 0, 40))).numpy().astype(int)
    for pixels, y in made:
        assert np.abs(pixels[:40] - made[0][0]).max() <= 1 and np.array_equal(y[:40], made[0][1])
        assert np.abs(pixels[:40] - running).max() > 5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(G, run, tmp_path, value):
    path = run / "weights" / "best_00000007.pth"
    checkpoint = checkpoints.load(path)
    checkpoint["G_ema"]["stages.1.0.conv1.weight"][0, 0, 0, 0] = value
    checkpoints.save(checkpoint, path)
    with pytest.raises(utils.UserError, match=r"best_00000007.*stages\.1\.0\.conv1\.weight of Generator .* not finite"):
        sample.main([str(run), "--out", str(tmp_path / "out"), "--device", "cpu"])
    with pytest.raises(utils.UserError, match=r"stages\.1\.0\.conv1\.weight of G_ema"):
        finetune.read_source(path)


def test_images_that_are_not_finite_do_not_become_black_ones(G):
    broken = copy.deepcopy(G)
    broken.output_conv.bias += float("nan")
    with pytest.raises(utils.UserError, match="images are not finite"):
        next(generate(broken, torch.tensor([0, 1]), seed=0, batch_size=2))


# ---------------------------------------------------------------------------------------------------------------------


def test_paths_of_interpolations():
    start, end = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    straight = sheets.SheetOptions("linear").between(start, end, "spherical")
    assert straight.shape == (1, 10, 2) and torch.allclose(straight[0, 3], torch.tensor([2 / 3, 2 / 3]))
    round_about = sheets.SheetOptions("spherical").between(start, end, "linear")
    assert torch.allclose(round_about[0, :, 0] ** 2 + (round_about[0, :, 1] / 2) ** 2, torch.ones(10))
    for path in ("linear", "spherical"):
        assert torch.equal(
            sheets.SheetOptions().between(start, end, path), sheets.SheetOptions(path).between(start, end, "")
        )
        ends = sheets.SheetOptions(path).between(start, end, "")[0, [0, -1]]
        torch.testing.assert_close(ends, torch.cat([start, end]), atol=1e-6, rtol=0)


def test_large_images_are_made_few_at_a_time(G, monkeypatch):
    seen, z, y = [], latents(3, range(6), DIM_Z), torch.zeros(6, dtype=torch.int64)
    wanted = sheets.render(G, z, y)
    make = sheets.make_images
    monkeypatch.setattr(sheets, "make_images", lambda G, z, y: seen.append(len(z)) or make(G, z, y))
    monkeypatch.setattr(sheets, "SHEET_PIXELS", 2 * G.config.resolution**2)
    assert (sheets.render(G, z, y).int() - wanted.int()).abs().max() <= 1 and seen == [2, 2, 2]


def test_z_and_class_move_together(G):
    sheet = sheets.class_interpolation_sheet(G, 2, 3, None, [0, 2], NAMES, with_z=True)
    found = tiles(sheet, 2, 10, left=["0 cat"], right=["0 cat"])
    z = latents(3, range(4), DIM_Z)
    ends = sheets.render(G, z, torch.tensor([0, 2, 2, 0])).permute(0, 2, 3, 1).numpy()
    for row in range(2):
        for column, expected in ((0, ends[2 * row]), (9, ends[2 * row + 1])):
            assert np.abs(found[row, column].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("flag", ["fix_z", "fix_y"])
def test_fixed_z_or_class_is_the_same_in_all_rows(G, flag, monkeypatch):
    seen = []
    render = sheets.render
    monkeypatch.setattr(sheets, "render", lambda G, z, y: seen.append((z, y)) or render(G, z, y))
    options = sheets.SheetOptions(**{flag: True})
    sheets.random_sheet(G, 2, 0, None, None, options)
    sheets.z_interpolation_sheet(G, 3, 0, None, None, None, options)
    sheets.class_interpolation_sheet(G, 3, 0, None, None, None, options)
    fixed, free = (0, 1) if flag == "fix_z" else (1, 0)
    random, *rows = seen
    assert len(random[fixed].unique(dim=0)) == 1 and len(random[free].unique(dim=0)) > 2
    for row in rows:
        parts = [part.unflatten(0, (3, 10)) for part in row]
        assert all(torch.equal(parts[fixed][0], parts[fixed][i]) for i in (1, 2))
        assert not torch.equal(parts[free][0], parts[free][1])


def test_truncations_side_by_side_share_their_z(run, tmp_path, G):
    points = ["0.3", "none", "1.5"]
    flags = [str(run), "--device", "cpu", "--rows", "2", "--bn_mode", "running", "--out"]
    sample.main([*flags, str(tmp_path / "a"), "--truncations", *points])
    sheet = Image.open(tmp_path / "a" / "truncation_sheet.png")
    found = tiles(sheet, 2, 12, header=1, left=["1 dog/wolf"], blocks=3)
    for block, limit in enumerate((0.3, None, 1.5)):
        z = latents(0, range(4), DIM_Z, limit and Truncation(limit))
        for row in range(2):
            expected = sheets.render(G, z, torch.full((4,), row)).permute(0, 2, 3, 1).numpy().astype(int)
            assert np.abs(found[row, 4 * block : 4 * block + 4] - expected).max() <= 1
    sample.main([*flags, str(tmp_path / "b"), "--format", "pdf"])
    assert {path.suffix for path in (tmp_path / "b").iterdir()} == {".pdf"}
    same = [path for path in (tmp_path / "a").iterdir() if path.name != "truncation_sheet.png"]
    assert {path.stem for path in same} == {path.stem for path in (tmp_path / "b").iterdir()}


@pytest.mark.parametrize("flag", ["--fix_z", "--fix_y", "--interpolation linear", "--truncations 0.5"])
def test_flags_of_sheets_without_sheets_are_one_line(run, flag):
    with pytest.raises(utils.UserError, match=f"{flag.split()[0]} is of sheets alone"):
        sample.main([str(run), "--no-sheets", "--num_samples", "2", *flag.split()])
    assert not (run / "samples").exists()


@pytest.mark.parametrize("value", ["0", "-1", "nan", "x"])
def test_a_truncation_that_is_none_is_one_line(run, value, capsys):
    with pytest.raises(SystemExit):
        sample.main([str(run), f"--truncations={value}"])
    assert capsys.readouterr().err.count("\n") == 1
