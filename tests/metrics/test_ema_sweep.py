"""Averages of other lengths from stored ones, and the sweep that chooses between them."""

import json

import pytest
import torch
from evaluation_fixtures import evaluated
from small_models import NAMES, small_generator

import evaluate
import layers
import sample
import utils
from metrics import ema_sweep
from sampling.averages import StoredAverages
from torch_utils import checkpoints
from training.ema import PowerAverages

STEPS, EVERY = 40, 4


@pytest.fixture(scope="module")
def path_of_weights():
    """A generator's weights drift from step to step: those of each step."""
    G = small_generator()
    torch.manual_seed(0)
    drift = {name: torch.randn_like(p) * 0.02 for name, p in G.named_parameters()}
    return [{name: p + step * drift[name] for name, p in G.state_dict().items() if name in drift} for step in range(40)]


@pytest.fixture(scope="module")
def run(tmp_path_factory, path_of_weights, data_root):
    """A run folder with averages of that path, stored as train.py stores them."""
    folder, G = tmp_path_factory.mktemp("runs") / "run", small_generator()
    flags = {"dataset": "small_hdf5", "data_root": str(data_root), "feature_network": "classifier", "seed": 9}
    flags |= {"num_inception_images": 140, "kid_subsets": 5, "bn_batch_size": 16, "num_standing_accumulations": 2}
    averages = PowerAverages(G, (0.05, 0.1))
    for step, weights in enumerate(path_of_weights, 1):
        G.load_state_dict(weights, strict=False)
        averages.update(step)
        if step % EVERY == 0:
            buffers = {name: tensor for name, tensor in G.state_dict().items() if name not in weights}
            entries = {"format": 1, "step": step, "model_config": G.config.to_dict(), "class_names": NAMES}
            entries |= {"args": flags, "averages": averages.state_dict(), "buffers": buffers}
            checkpoints.save(entries, folder / "averages" / f"average_{step:08d}.pth")
    (folder / "weights").mkdir()
    return folder


def direct(path_of_weights, width):
    averages = PowerAverages(small_generator(), (width,))
    source = averages.source
    for step, weights in enumerate(path_of_weights, 1):
        for name, tensor in source.items():
            tensor.copy_(weights[name])
        averages.update(step)
    return averages.state_dict()[str(width)]


def test_sums_are_the_averages_of_a_direct_run(run, path_of_weights):
    widths, stored = [0.05, 0.08, 0.1, 0.15], StoredAverages.of_run(run)
    newest = stored.newest["averages"]
    for width, (G, missing) in zip(widths, stored.solved(widths), strict=True):
        found, expected = dict(G.named_parameters()), direct(path_of_weights, width)
        exact = str(width) in newest
        assert missing < (1e-5 if exact else 0.05)
        for name, tensor in expected.items():
            bound = 1e-6 if exact else 2e-3
            torch.testing.assert_close(found[name], tensor, rtol=bound, atol=bound)
        if exact:
            torch.testing.assert_close(expected[name], newest[str(width)][name], rtol=1e-6, atol=1e-6)
        assert not G.training
    for layer in G.modules():
        if isinstance(layer, layers.SpectralNorm) and layer.sn:
            sigma = layer.u @ layer.weight.flatten(1) @ layer.v
            torch.testing.assert_close(sigma, torch.linalg.svdvals(layer.weight.flatten(1))[0], rtol=1e-4, atol=1e-4)


def test_a_sweep_is_a_table_and_its_best_a_checkpoint(run, tmp_path, capsys):
    best = tmp_path / "best.pth"
    flags = ["--ema_sweep", "0.1", "0.05_0.2", "--ema_out", str(best), "--out", str(tmp_path)]
    result = evaluated(capsys, run, *flags)
    points = result["ema_sweep"]
    assert [point["protocol"]["ema_power"] for point in points] == [0.05, 0.1, 0.2] and result["step"] == STEPS
    assert all(point["protocol"]["bn_mode"] == "standing" and point["fit_error"] < 0.2 for point in points)
    chosen = min(points, key=lambda point: point["fd"])
    again = evaluated(capsys, best)
    assert again["fd"] == pytest.approx(chosen["fd"], rel=1e-5) and again["protocol"]["bn_mode"] == "running"
    sample.main([str(best), "--out", str(tmp_path / "samples"), "--device", "cpu", "--num_samples", "2"])
    numbers = tmp_path / "ema_sweep_average_00000040_standing_16_2.json"
    assert json.loads(numbers.read_text()) == result and numbers.with_suffix(".png").exists()
    capsys.readouterr()
    evaluate.main(["--compare", str(numbers)])
    assert len(capsys.readouterr().out.splitlines()) == 4
    evaluate.print_results(result, [], False)
    out = capsys.readouterr().out
    assert f"best: relative width {chosen['protocol']['ema_power']:g}, FD" in out and "fit_error" in out


def test_the_widths_of_a_sweep():
    assert ema_sweep.chosen_widths([]) == list(ema_sweep.WIDTHS)
    assert ema_sweep.chosen_widths([(0.2,), (0.05, 0.1)]) == [0.05, 0.1, 0.2]
    points = [
        {"fd": fd, "fit_error": 0.01, "protocol": {"ema_power": width}}
        for width, fd in ((0.05, 2.0), (0.1, 1.0), (0.2, 3.0))
    ]
    assert ema_sweep.verdict(points) == "best: relative width 0.1, FD 1.0000"
    assert "others beyond may be better" in ema_sweep.verdict(points[:2])
    points[1]["fit_error"] = 0.3
    assert "fit_error 0.30" in ema_sweep.verdict(points)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--ema_sweep", "--truncation_sweep", "1", "1", "1"], "--truncation_sweep does not go with --ema_sweep"),
        (["--ema_sweep", "--no-ema"], "--ema does not go with"),
        (["--ema_sweep", "--bn_mode", "running"], "--bn_mode running"),
        (["--ema_out", "x.pth"], "--ema_out goes with --ema_sweep"),
        (["--ema_sweep", "--ema_out", "."], "is a folder; name a file"),
    ],
)
def test_flags_that_contradict_are_one_line(run, flags, words):
    with pytest.raises(utils.UserError, match=words) as error:
        evaluate.main([str(run), *flags, "--device", "cpu"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("folder", [".", "weights", "averages"])
def test_a_folder_within_the_run_means_the_run(run, folder):
    with pytest.raises(utils.UserError, match="--bn_mode running: an average"):  # which is found out after its averages
        evaluate.main([str(run / folder), "--ema_sweep", "--bn_mode", "running", "--device", "cpu"])


def test_a_file_of_averages_is_no_checkpoint(run):
    path = checkpoints.averages_of(run)[-1]
    for script in (evaluate, sample):
        with pytest.raises(utils.UserError, match="holds power-law averages; evaluate.py .*run --ema_sweep --ema_out"):
            script.main([str(path), "--device", "cpu"])


def test_what_cannot_be_summed_is_named(run, tmp_path):
    for folder, words in ((tmp_path, "averages holds none"), (run / "averages" / "x.pth", "averages holds none")):
        with pytest.raises(utils.UserError, match=words):
            StoredAverages.of_run(folder)
    copy = tmp_path / "averages"
    copy.mkdir()
    for path in checkpoints.averages_of(run)[-3:]:
        (copy / path.name).write_bytes(path.read_bytes())
    one, other, last = checkpoints.averages_of(tmp_path)
    content = checkpoints.load(one)
    for change, words in (
        ({"averages": {"0.2": content["averages"]["0.1"]}}, "is of another run"),
        ({"averages": {key: {"x": torch.zeros(1)} for key in content["averages"]}}, "is not of the generator"),
        ({"averages": 1}, "holds no averages as train.py writes them"),
        ({"averages": {}}, "holds no averages as train.py writes them: relative widths"),
        ({"averages": {"wide": content["averages"]["0.1"]}}, "relative widths wide"),
        ({"averages": {"0.9": content["averages"]["0.1"]}}, "relative widths 0.9"),
        ({"averages": {"0.05": {"x": torch.tensor(torch.nan)}}}, "0.05.x holds values that are not finite"),
        ({"step": 7}, "holds averages of step 7, not of its name's: move it away"),
    ):
        checkpoints.save(content | change, one)
        with pytest.raises(utils.UserError, match=words) as error:
            next(StoredAverages.of_run(tmp_path).solved([0.07]))
        assert one.name in str(error.value) and "\n" not in str(error.value)
    one.write_bytes(one.read_bytes()[:-100])
    with pytest.raises(utils.UserError, match=r"is not a readable checkpoint.*move it away"):
        next(StoredAverages.of_run(tmp_path).solved([0.07]))
    one.unlink()
    assert next(StoredAverages.of_run(tmp_path).solved([0.1]))[1] < 1e-5 and other.exists() and last.exists()
