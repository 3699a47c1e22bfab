"""Files from elsewhere: whatever was done to them, they are read, or refused in one line that names them."""

import copy
import json
import math
import shutil
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_models import save_checkpoint, small_config

import BigGAN
import evaluate
import utils
from image_datasets import doctor, writing
from image_datasets.hdf5 import HDF5Dataset
from metrics import classifier, tables
from metrics.reference import ReferenceProtocol, load_reference, read_reference
from reports import page
from reports.curves import PANELS
from reports.events import curve, marks
from selection import scores
from torch_utils import checkpoints
from training import finetune, logs, rollback, run_folder
from training.options import TrainOptions
from training.state import TrainingState
from training.watchdog import Memory

INSTEAD = (None, "text", -1, 3, 10**30, 2.5, math.nan, True, [], [None], {}, {"a": 1}, {1: "a"})
NETWORK = SimpleNamespace(name="classifier", resize="native", weights_hash="a" * 64, feature_dim=4)
NUM_STRUCTURES, NUM_BYTES = 45, 12  # cases of each kind: of entries, of bytes


def options_of(*flags):
    parser = utils.ArgumentParser()
    TrainOptions.add_to(parser)
    defaults, given = parser.parse_layers(["--dataset", "x", *flags])
    return TrainOptions.of(defaults | given)


def reference_about():
    protocol = ReferenceProtocol("classifier", "a" * 64, "native", dataset="d", num_images=9, seed=0, k=5, splits=10)
    numbers = {"is_mean": 1.0, "is_std": 0.1, "coverage_ceiling": None, "real_scores": {"data": {}}}
    return {**numbers, "class_counts": [4, 5], "class_names": ["a", "b"], "protocol": protocol.to_dict()}


def write_reference(about, path):
    arrays = {"mu": np.zeros(4), "sigma": np.eye(4), "real_features": np.ones((9, 4), np.float32)}
    np.savez(path, **arrays, reference=json.dumps(about))


def read_log(path):
    events = logs.read_log(path)
    logs.RunLog(path.parent, 3).close()
    marks(events)
    page.page(page.Report(path.parent, events, 10))
    return [curve(events, name) for names in PANELS.values() for name in names]


def read_full(path):
    """As a run that resumes: through its folder."""
    (path.parent / "weights").mkdir(exist_ok=True)
    shutil.copy(path, path.parent / "weights" / "ckpt_00000003.pth")
    checkpoint, _ = run_folder.newest(path.parent)
    assert checkpoint["step"] >= 0
    options = options_of("--ema")
    now = {"args": options.record(), "model_config": small_config().to_dict(), "data": {}}
    run_folder.check_same_run(checkpoint, now, options.changeable())
    state = TrainingState(small_config(), options, torch.device("cpu"))
    state.load_state_dict(checkpoint, path.parent)
    for event in rollback.events(state.watchdog, 2):
        rollback.text(2, event)
    state.watchdog.examine_losses(9, {"D_loss_real": 1.0}, "hinge", {"D/linear": 50.0}, options.watch)
    state.watchdog.examine_metrics(9, {"fd": 9.0, "coverage": 0.0}, 3.0)


def read_model(path):
    finetune.read_source(path)
    _, meta = BigGAN.load_generator(path)
    given = {"dataset": "none", "data_root": str(path.parent), "device": "cpu"}
    with pytest.raises(utils.UserError):  # at the latest for the data
        evaluate._evaluate_checkpoint(
            evaluate.parse_args([str(path)])[0], given, SimpleNamespace(path=path), None, SimpleNamespace(device="cpu")
        )
    assert meta["step"] >= 0


def full_checkpoint():
    torch.manual_seed(0)
    made = TrainingState(small_config(), options_of("--ema"), torch.device("cpu"))
    for network, optimizer in ((made.G, made.opt_G), (made.D, made.opt_D)):
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    told = {"step": 2, "noticed": 3, "kind": "fd", "text": "FD 9", "lr_factor": 0.5}
    made.watchdog.memory = Memory(3, 3, 3, 2, 1, 3.0, 0.5, {"D/linear": 2.0}, ["fd"], 0.5, [told])
    about = {"model_config": small_config().to_dict(), "class_names": list("abc"), "class_counts": [1, 2, 3]}
    best = {"step": 2, "metric": "FD", "value": 3.0}
    state = made.state_dict() | {"step": 3, "best": best, "data": {"num_images": 6}, "args": {"G_lr": 5e-5}}
    return {"format": 1, **about, **state, "metrics": {"fd": 1.0, "protocol": {"bn_mode": "running"}}}


def events():
    changes = {"event": "change", "step": 1, "flags": {"G_lr": [1, 2]}}
    metrics = {"event": "eval", "step": 2, "is_mean": 1.0, "is_std": 0.1, "fd": 3.0}
    return [{"event": "train", "step": 1, "D_loss_real": 1.0, "G_loss": 2.0}, changes, metrics]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Of each kind of file: its content, a name for it, how it is written and how read."""
    root = tmp_path_factory.mktemp("made")
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
    writing.write_hdf5(root / "d.hdf5", images, np.arange(6) % 2, ["a", "b"], "d", "none")
    dataset = HDF5Dataset(root / "d.hdf5")
    findings = doctor.full_pass(dataset) | {"key": doctor.file_key(dataset)}
    network = classifier.Classifier(8, 2)
    classifier.save_classifier(network, root / "c.pth", dataset_name="d", accuracy=0.5, seed=0, epochs=1)
    model = save_checkpoint(root / "m.pth", BigGAN.build(small_config())[0])
    key = {"version": 1, "content": "a" * 64, "density_measure": "gaussian"}
    result = {"fd": 1.0, "is_mean": 1.0, "is_std": 0.1, "protocol": {"bn_mode": "running", "truncation": 1.0}}

    def read_doctor(path):
        path.with_suffix(".png").touch()
        kept = doctor._kept(path, path.with_suffix(".png"), doctor.file_key(dataset))
        return kept and (doctor.report(kept), doctor.headline(kept), doctor.warnings(kept))

    return {
        "full": (full_checkpoint(), "f.pth", checkpoints.save, read_full),
        "model": (checkpoints.load(model), "m.pth", checkpoints.save, read_model),
        "classifier": (checkpoints.load(root / "c.pth"), "c.pth", checkpoints.save, classifier.load_classifier),
        "reference": (reference_about(), "r.npz", write_reference, lambda path: load_reference(path, NETWORK)),
        "doctor": (findings, "d_doctor.json", utils.save_json, read_doctor),
        "result": (result, "r.json", utils.save_json, lambda path: tables.rows_table(tables.read_results(path))),
        "log": (events(), "log.jsonl", lambda made, path: path.write_text("\n".join(map(json.dumps, made))), read_log),
        "scores": (key, "s.npz", lambda key, path: scores.save_scores(path, np.ones(6), key),
                   lambda path: scores.read_scores(path, key)),
    }  # fmt: skip


KINDS = ("full", "model", "classifier", "reference", "doctor", "result", "log", "scores")


def places(content, path=()):
    """The keys that lead to each entry, at any depth."""
    parts = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, part in parts:
        yield (*path, key)
        yield from places(part, (*path, key))


def changed(content, rng):
    """A copy with an entry deleted, exchanged with another or replaced by something else; shallow ones more often."""
    content, found = copy.deepcopy(content), list(places(content))
    depth = rng.integers(1, 1 + max(map(len, found)))
    found = [place for place in found if len(place) <= depth]
    *parents, key = found[rng.integers(len(found))]
    holder = content
    for parent in parents:
        holder = holder[parent]
    how = rng.integers(3)
    if how == 0:
        del holder[key]
    elif how == 1 and len(holder) > 1:
        other = list(holder if isinstance(holder, dict) else range(len(holder)))[rng.integers(len(holder))]
        holder[key], holder[other] = holder[other], holder[key]
    else:
        tensors = (torch.ones(2), torch.tensor(math.inf))
        values = (*INSTEAD, *tensors) if torch.is_tensor(holder[key]) else INSTEAD
        holder[key] = values[rng.integers(len(values))]
    return content


def is_told_in_one_line(read, path, case):
    """Reading gives something, or one line that names the file."""
    try:
        read(path)
    except utils.UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000, case
    except Exception as error:
        raise AssertionError(case) from error


@pytest.mark.parametrize("kind", KINDS)
def test_changed_entries(kind, made, tmp_path):
    content, name, write, read = made[kind]
    write(content, tmp_path / name)
    read(tmp_path / name)  # as it is
    rng = np.random.default_rng(0)
    for case in range(NUM_STRUCTURES):
        write(changed(content, rng), tmp_path / name)
        is_told_in_one_line(read, tmp_path / name, (kind, case))


@pytest.mark.parametrize("kind", KINDS)
def test_changed_bytes(kind, made, tmp_path):
    content, name, write, read = made[kind]
    write(content, tmp_path / name)
    whole, rng = (tmp_path / name).read_bytes(), np.random.default_rng(1)
    for case in range(NUM_BYTES):
        damaged = bytearray(whole[: rng.integers(len(whole))] if case % 2 else whole)
        for _ in range(rng.integers(1, 20)):
            if damaged:
                damaged[rng.integers(len(damaged))] = rng.integers(256)
        (tmp_path / name).write_bytes(damaged)
        is_told_in_one_line(read, tmp_path / name, (kind, case))


def refused(read, path, *words):
    with pytest.raises(utils.UserError) as error:
        read(path)
    text = str(error.value)
    assert str(path.name) in text and all(word in text for word in words) and "\n" not in text, text


FULL_CASES = {
    "step": ("3", None, 2.5, -1, True),
    "args": (None, [], "x"), "data": (None, 3), "best": ({}, "x", {"step": 1}), "class_names": (None, "ab", [1, 2, 3]),
    "G": (None, [], {"a": 1}), "opt_G": (None, {}, {"state": {}, "param_groups": []}), "model_config": (None, {}, 5),
}  # fmt: skip


@pytest.mark.parametrize("name", FULL_CASES)
def test_the_entries_of_a_checkpoint_are_named(name, made, tmp_path):
    content = made["full"][0]
    cases = [{key: part for key, part in content.items() if key != name}]
    for case in cases + [{**content, name: value} for value in FULL_CASES[name]]:
        checkpoints.save(case, tmp_path / "f.pth")
        with pytest.raises(utils.UserError, match=f"{name}") as error:
            read_full(tmp_path / "f.pth")
        assert "\n" not in str(error.value)
        if name in ("step", "model_config"):
            with pytest.raises(utils.UserError, match=name):
                BigGAN.load_generator(tmp_path / "f.pth")


MEMORY_CASES = {
    "looked": ("x", -1, 2.5), "floor_since": ("x", 0.5), "above_floor": ("x", -1),
    "sigmas": (None, [1.0], {"D/linear": "x"}, {"D/linear": 0.0}),
    "distance": ("x",), "told": ("fd", [3]), "lr_factor": (None, "x", 2.0, math.nan),
    "rollbacks": (None, [3], [{}], [{"step": 1}]),
}  # fmt: skip


@pytest.mark.parametrize("name", MEMORY_CASES)
def test_a_memory_of_the_watchdogs_that_cannot_be_is_named(name, made, tmp_path):
    content = made["full"][0]
    for value in MEMORY_CASES[name]:
        checkpoints.save({**content, "watchdog": {**content["watchdog"], name: value}}, tmp_path / "f.pth")
        with pytest.raises(utils.UserError, match=f"ckpt_00000003.pth: watchdog.{name}"):
            read_full(tmp_path / "f.pth")


def test_the_entries_of_statistics_are_named(made, tmp_path):
    about, path = made["reference"][0], tmp_path / "r.npz"

    def told(*words, arrays=None, protocol=None, drop=(), read=read_reference):
        changed = {**about["protocol"], **(protocol or {})}
        entries = {**about, "protocol": {name: value for name, value in changed.items() if name not in drop}}
        shapes = {"mu": np.zeros(4), "sigma": np.eye(4), "real_features": np.ones((9, 4), np.float32)}
        np.savez(path, **(shapes | (arrays or {})), reference=json.dumps(entries))
        refused(read, path, *words)

    told("sigma", arrays={"sigma": np.eye(5)})
    told("real_features", "(9, 3)", arrays={"real_features": np.ones((9, 3), np.float32)})
    told("real_features", arrays={"real_features": np.ones(9, np.float32)})
    told("sigma", "not finite", arrays={"sigma": np.full((4, 4), np.nan)})
    for k in (0, None, "5", -1, 2.5, True):
        told("protocol.k is", protocol={"k": k})
    told("protocol.weights_hash is missing", drop=["weights_hash"])
    other = SimpleNamespace(**{**vars(NETWORK), "feature_dim": 5})
    told("4 features", "5", read=lambda path: load_reference(path, other))


def test_a_header_that_promises_too_much(tmp_path):
    write_reference(reference_about(), tmp_path / "r.npz")
    content = (tmp_path / "r.npz").read_bytes()
    assert content.count(b"(9, 4), }") == 1
    np.savez(tmp_path / "r.npz", reference="{}")
    with zipfile.ZipFile(tmp_path / "r.npz", "a") as archive:
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 4), }"
        padded = header.ljust(117) + b"\n"
        archive.writestr("mu.npy", b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded)
    refused(read_reference, tmp_path / "r.npz")


def test_json_that_is_too_deep(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    refused(utils.load_json, tmp_path / "deep.json", "not valid JSON")
    refused(tables.read_results, tmp_path / "deep.json")


def test_a_folder_in_a_files_place(made, tmp_path):
    for kind in ("model", "classifier", "reference", "result"):
        (tmp_path / made[kind][1]).mkdir()
        refused(made[kind][3], tmp_path / made[kind][1])


def test_another_classifiers_weights(made, tmp_path):
    content = made["classifier"][0]
    for change in ({"num_classes": 10**12}, {"num_classes": 3}, {"resolution": 64}, {"resolution": 0}, {"extra": 1}):
        checkpoints.save({**content, "config": {**content["config"], **change}}, tmp_path / "c.pth")
        refused(classifier.load_classifier, tmp_path / "c.pth")
    checkpoints.save({key: part for key, part in content.items() if key != "weights"}, tmp_path / "c.pth")
    refused(classifier.load_classifier, tmp_path / "c.pth", "weights is missing")
