"""Results of evaluate.py side by side, with warnings where they are not to be compared."""

import json

import pytest
from evaluation_fixtures import evaluated

import evaluate
import utils
from torch_utils import checkpoints


def test_results_of_unlike_protocol_are_compared_with_a_warning(run, samples, files, tmp_path, capsys):
    def printed(*arguments):
        evaluate.main([*map(str, arguments), "--device", "cpu"])
        return capsys.readouterr()

    results = {"like": ["--seed", 1], "fewer": ["--num_inception_images", 130], "batch": ["--bn_mode", "batch"]}
    for name, flags in results.items():
        (tmp_path / name).write_text(json.dumps(evaluated(capsys, run, *flags)))
    alike = printed(run, "--compare", tmp_path / "like")
    assert "warning" not in alike.err and len(alike.out.splitlines()) == 4  # what is evaluated, a header and two rows
    unlike = printed("--compare", *(tmp_path / name for name in results))
    warnings = [line for line in unlike.err.splitlines() if "warning" in line]
    assert any("fewer" in line and "fake_num: 150 against 130" in line for line in warnings)
    assert any("batch" in line and "bn_mode: running against batch" in line for line in warnings)
    assert unlike.out.splitlines()[0].split()[:2] == ["fd", "is_mean"] and len(unlike.out.splitlines()) == 4
    of_files = printed(samples / "samples.npz", *files, "--compare", tmp_path / "like")
    assert "warning" not in of_files.err  # how the files were made, nobody knows
    (tmp_path / "other").write_text('{"fd": 1.0}')
    (tmp_path / "started").write_text('{"checkpoint": "a.pth", "plot": "a.png", "truncation_sweep": []}')
    (tmp_path / "bare").write_text('{"fd": 1.0, "is_mean": 1.0, "protocol": {}}')
    for name in ("other", "nowhere", "started", "bare"):
        with pytest.raises(utils.UserError, match=name):
            evaluate.main(["--compare", str(tmp_path / name)])


def test_numbers_unlike_those_of_training_warn(run, G, tmp_path, capsys):
    protocol = evaluated(capsys, run)["protocol"]
    checkpoint = checkpoints.load(run / "weights" / "best_00000007.pth")
    checkpoints.save({**checkpoint, "metrics": {"protocol": protocol}}, tmp_path / "best.pth")
    for flags, warns in (([], False), (["--bn_mode", "batch"], True)):
        evaluate.main([str(tmp_path / "best.pth"), "--device", "cpu", *flags])
        assert ("evaluations of training: bn_mode" in capsys.readouterr().err) is warns
