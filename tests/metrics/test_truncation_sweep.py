"""Sweeps of truncation: tables, plots, numbers, and what an interrupted one leaves."""

import itertools
import json

import pytest
from evaluation_fixtures import ONE, evaluated
from PIL import Image

import evaluate
import utils
from inception_utils import evaluate_generator
from metrics import sweeps, truncation_sweep
from sampling.latents import Truncation


@pytest.mark.slow
def test_a_sweep_is_a_table_a_plot_and_numbers(run, tmp_path, capsys):
    flags = ["--truncation_sweep", "0.2", "0.6", "0.4", "--out", str(tmp_path), "--bn_mode", "standing"]
    result = evaluated(capsys, run, *flags, "--bn_batch_size", 16, "--num_standing_accumulations", 2)
    sweep = result["truncation_sweep"]
    assert [point["protocol"]["truncation"] for point in sweep] == [0.2, 0.6]
    assert len({point["protocol"]["seed"] for point in sweep}) == 1 and len({point["fd"] for point in sweep}) == 2
    numbers = tmp_path / "truncation_sweep_best_00000007_truncated_normal_standing_16_2.json"
    assert json.loads(numbers.read_text()) == result
    with Image.open(result["plot"]) as picture:
        assert picture.format == "PNG" and len(picture.convert("RGB").getcolors(1 << 24)) > 50
    evaluate.main(["--compare", str(numbers)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and len({line.rindex(".") for line in lines[1:]}) == 1


def test_sweeps_of_other_modes_kinds_and_flags_are_other_files(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "run", lambda points, about, path, *how: names.append(path.name) or about)
    monkeypatch.setattr(evaluate, "print_results", lambda *results: None)
    names = []
    kinds = [["--truncation_kind", kind] for kind in ("scaled_normal", "clamped_normal")]
    modes = [["--bn_mode", "running"], ["--bn_mode", "batch"], ["--bn_mode", "batch", "--bn_batch_size", "8"]]
    others = [["--ema"], ["--class_sampling", "uniform"], ["--seed", "3"], ["--num_inception_images", "140"]]
    for flags in [[], *kinds, *modes, *others]:
        evaluate.main([str(run), "--truncation_sweep", "0.5", "0.5", "1", "--device", "cpu", *flags])
    assert len(set(names)) == len(names) == 10
    assert names[0] == "truncation_sweep_best_00000007_truncated_normal_standing_64_16.png"


def test_an_interrupted_sweep_keeps_its_points(G, measure, tmp_path):
    def points():
        yield evaluate_generator(G, measure(), 130, 0, Truncation(0.5), ema=True)
        raise KeyboardInterrupt

    how = ONE, truncation_sweep.KEY, truncation_sweep.plot
    with pytest.raises(KeyboardInterrupt):
        sweeps.run(points(), {"step": 7}, tmp_path / "new" / "sweep.png", *how)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sweep.partial.json"]
    assert len(json.loads((tmp_path / "new" / "sweep.partial.json").read_text())["truncation_sweep"]) == 1
    result = sweeps.run(itertools.islice(points(), 1), {"step": 7}, tmp_path / "new" / "sweep.png", *how)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["sweep.json", "sweep.png"]
    assert json.loads((tmp_path / "new" / "sweep.json").read_text()) == result


def test_a_folder_that_cannot_be_written_to_is_found_before_any_evaluation(run, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    points = iter([{"never": "evaluated"}])
    with pytest.raises(utils.UserError, match="cannot write"):
        sweeps.run(points, {}, tmp_path / "file" / "sweep.png", ONE, truncation_sweep.KEY, truncation_sweep.plot)
    assert list(points)
    monkeypatch.setattr(evaluate, "_load_measure", lambda *arguments: pytest.fail("expensive"))
    with pytest.raises(utils.UserError, match="cannot write"):
        folder = ["--out", str(tmp_path / "file" / "sweep"), "--device", "cpu"]
        evaluate.main([str(run), "--truncation_sweep", "1", "1", "1", *folder])


def test_truncations_of_a_sweep():
    assert truncation_sweep.limits(0.2, 1.0, 0.1) == [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert truncation_sweep.limits(0.5, 0.5, 1) == [0.5] and truncation_sweep.limits(0.2, 1.0, 0.3) == [0.2, 0.5, 0.8]
    for wrong in ((1, 0.2, 0.1), (0.001, 10, 0.001)):
        with pytest.raises(utils.UserError, match="--truncation_sweep"):
            truncation_sweep.limits(*wrong)
