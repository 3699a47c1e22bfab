"""The benchmark of a step, on networks of a few channels: both sides, what is counted, and what is written."""

import json

import pytest
import torch

import utils
from benchmarks import bench_side, bench_step, plain_twins
from benchmarks.bench_side import How, Side
from training import model_size

CPU = How("cpu")
SEEN = {"seconds": [2.0, 4.0], "images_per_s": 4.0, "multiply_adds": 10**9, "memory_mb": 50}


def side(name="SAGAN-64-SSM", plain=False, how=CPU):
    return Side(bench_step.make_case(name, False, 2, 2), how, plain)


def test_both_sides_train_the_same_networks_and_the_plain_one_plainly():
    ours, plain = side(), side(plain=True)
    for one, other in zip(ours.state.G.parameters(), plain.state.G.parameters(), strict=True):
        assert torch.equal(one, other)
    types = {type(module) for module in plain.state.G.modules()} | {type(m) for m in plain.sampled.modules()}
    assert plain_twins.UpConv2d in types and not types & set(plain_twins.TWINS)
    assert isinstance(plain.state.opt_D, plain_twins.PlainAdam) and not plain.state.opt_D.param_groups[0]["fused"]
    assert ours.state.opt_G.param_groups[0]["fused"] and type(ours.state.average) is not type(plain.state.average)
    before = [one.detach().clone() for one in (ours.state.G.linear.weight, plain.state.G.linear.weight)]
    for one in (ours, plain):
        one.train(), one.sample()
        assert one.state.step == 1
    after = [ours.state.G.linear.weight, plain.state.G.linear.weight]
    assert not torch.equal(before[0], after[0])
    torch.testing.assert_close(after[0], after[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_precision_is_of_ours_alone(amp):
    how = How("cpu", amp=amp)
    ours, plain = side(how=how), side(plain=True, how=how)
    assert ours.state.G.amp is ours.sampled.amp is not None and plain.state.G.amp is plain.sampled.amp is None
    assert (ours.state.scaler_D is not None) == (amp == "fp16") and plain.state.scaler_D is None
    ours.train()


def test_multiply_adds_are_those_of_the_model():
    for plain in (False, True):
        one = side("BigGAN-64", plain)
        counted = one.prepare("sample")["multiply_adds"]
        # spectral norm comes on top, once a batch
        assert counted == pytest.approx(model_size.multiply_adds(one.state.G.config, fused=not plain)[0], rel=0.05)


def test_a_side_times_and_profiles():
    one = side("SAGAN-64")
    one.repeats = 1
    assert one.timed("sample") > 0
    profile = one.profile("sample")
    assert sum(entry["share"] for entry in profile) <= 1.001 and any("conv" in entry["name"] for entry in profile)
    assert profile == sorted(profile, key=lambda entry: -entry["seconds"])


def test_all_cases_at_published_widths_are_models():
    sizes = {"SAGAN-64": (32, 128), "BigGAN-128": (96, 64), "BigGAN-deep-128": (128, 64)}
    for name in bench_step.MODELS:
        case = bench_step.make_case(name, True, None, None)
        config = bench_side.make_config(bench_side._options(case.flags), case.resolution, 1000)
        assert name not in sizes or (config.G_ch, case.batch_size) == sizes[name]
        assert config.deep == ("deep" in name) and (config.ssm != "none") == ("SSM" in name)


def test_ratios_and_the_table():
    plain = SEEN | {"seconds": [5.0, 9.0], "images_per_s": 1.6, "memory_mb": 100}
    record = {"model": "SAGAN-64", "batch_size": 8, "task": "train", "ours": dict(SEEN), "plain": plain}
    record |= bench_step.ratios(record["ours"], plain)
    assert record["faster"] == 2.5 and record["spread"] == [2.25, 2.5] and record["memory"] == 0.5
    bench_step.add_shares([record], {"float32": 8e9, "bfloat16": 16e9}, "bf16")
    assert record["ours"]["share_of_peak"] == 0.25 and record["plain"]["share_of_peak"] == 0.2
    assert "| 4 | 1.6 | 2.50x (2.25-2.50) | 1.00 | 1.00 | 50 | 100 | 25% | 20% |" in bench_step.row(record)
    assert bench_step.row(record).count("|") == bench_step.HEAD.count("|")
    failed = {"model": "SAGAN-64", "batch_size": 8, "task": "train", "error": "out of memory"}
    assert bench_step.row(failed) == "| SAGAN-64 | 8 | train | out of memory |"


class Ears:
    """A connection that brings some requests and keeps the answers."""

    def __init__(self, *requests):
        self.requests, self.answers = list(requests), []

    def recv(self):
        if not self.requests:
            raise EOFError
        return self.requests.pop(0)

    def send(self, answer):
        self.answers.append(answer)


def test_what_fails_in_a_side_is_one_line(monkeypatch):
    def full(self):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Side, "train", full)
    ears = Ears(("prepare", ("train",)), ("memory_mb", ()))
    with pytest.raises(SystemExit):
        bench_side.serve(ears, bench_step.make_case("SAGAN-64", False, 2, 2), CPU, True)
    assert ears.answers[0] == ("failed", "out of memory") and ears.answers[1][0] == "done"
    ears = Ears(("machine", ()))
    with pytest.raises(SystemExit):
        bench_side.serve(ears, None, How("cuda:77"), True)
    assert ears.answers[0][0] == "failed" and "--device cuda:77" in ears.answers[0][1]


def test_a_file_that_cannot_be_written_shows_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_step, "Child", None)
    with pytest.raises(utils.UserError, match="cannot write"):
        bench_step.main(["--json", str(tmp_path)])


@pytest.mark.slow
def test_the_whole_benchmark(tmp_path, capfd):
    flags = "--models SAGAN-64 --ch 2 --batch_size 2 --repeats 1 --device cpu --profile --json".split()
    bench_step.main([*flags, str(tmp_path / "step.json")])
    report = json.loads((tmp_path / "step.json").read_text())
    assert [record["task"] for record in report["records"]] == ["sample", "train"]
    for record in report["records"]:
        assert record["faster"] > 0 and record["plain"]["multiply_adds"] > record["ours"]["multiply_adds"]
        assert 0 < record["ours"]["share_of_peak"] < 1 and record["ours"]["memory_mb"] >= 0
    assert report["machine"]["peak_multiply_adds_per_s"].keys() == {"float32", "bfloat16"}
    out = capfd.readouterr().out
    assert "| SAGAN-64 | 2 | train |" in out and "SAGAN-64, train:" in out
