"""Values that no machine can serve: one line before memory is taken."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_models import save_checkpoint, small_config, small_generator

import BigGAN
import sample
import utils
from metrics import features
from model_config import ModelConfig
from torch_utils import checkpoints, distributed, memory
from torch_utils.distributed import Ranks
from training import model_size


def refused(words, function, *arguments):
    with pytest.raises(utils.UserError, match=words) as error:
        function(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"dim_z": 10**7}, {"G_ch": 10**6}, {"D_ch": 10**6}, {"G_ch": 10**30}])
def test_a_model_that_no_machine_holds(options):
    config = ModelConfig(resolution=32, n_classes=10, **options)
    refused("--G_ch", model_size.check_fits, config, 8, torch.device("cpu"))


def test_a_batch_that_no_machine_holds():
    refused("--batch_size", model_size.check_fits, small_config(), 10**9, torch.device("cpu"))
    model_size.check_fits(small_config(), 64, torch.device("cpu"))


def test_a_checkpoint_whose_config_promises_more_than_it_holds(tmp_path):
    save_checkpoint(tmp_path / "c.pth", small_generator())
    checkpoint = checkpoints.load(tmp_path / "c.pth")
    for width in (10**6, 10**18):
        changed = checkpoint["model_config"] | {"G_ch": width}
        checkpoints.save({**checkpoint, "model_config": changed}, tmp_path / "c.pth")
        refused("does not fit the Generator of its config", BigGAN.load_generator, tmp_path / "c.pth")


def test_sheets_that_no_machine_holds(tmp_path):
    save_checkpoint(tmp_path / "c.pth", small_generator())
    refused("--rows 1000000000: at least", sample.main, [str(tmp_path / "c.pth"), "--rows", "1000000000"])


def test_batches_of_samples_that_no_machine_holds(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "c.pth", small_generator())
    command = [str(tmp_path / "c.pth"), "--no-sheets", "--device", "cpu", "--out", str(tmp_path), "--num_samples"]
    standing = "--num_standing_accumulations"
    for flag, mode in (("--bn_batch_size", "batch"), ("--bn_batch_size", "standing"), (standing, "standing")):
        huge = ["3", "--bn_mode", mode, flag, f"{10**10}"]
        refused(f"{flag} 10,000,000,000: at least", sample.main, [*command, *huge])
    sample.main([*command, "3", "--batch_size", "1000000000"])  # three at a time
    monkeypatch.setattr(memory, "total_bytes", lambda device: 10**5)
    refused("--batch_size 1,000: at least", sample.main, [*command, "2000", "--batch_size", "1000"])


def test_batches_of_a_metric_that_no_machine_holds():
    network = SimpleNamespace(resolution=None)
    for ranks in (Ranks(0, 1, torch.device("cpu")), Ranks(0, 8, torch.device("cpu"))):
        refused("--metric_batch_size 1,000,000,000: at least", features.check_fits, network, 10**10, ranks, 10**9)
        features.check_fits(network, 100, ranks, 10**9)


@pytest.mark.parametrize("name", ["meta", "mps", "xpu", "privateuseone", "nonsense", "cuda:x"])
def test_devices_that_are_none(name):
    refused(f"--device {name}: no such device here", distributed.resolve_device, name)


def test_memory_is_compared_with_the_machine():
    there = memory.total_bytes(torch.device("cpu"))
    assert there > 2**28
    memory.check_fits(there, torch.device("cpu"), "--x", "lower it")
    refused("--x: at least .* GiB .*; lower it", memory.check_fits, there + 1, torch.device("cpu"), "--x", "lower it")


def allocate_with_torch():
    torch.empty(2**60)


def allocate_with_numpy():
    np.ones(2**60, np.uint8)


def allocate_on_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore lines.")


@pytest.mark.parametrize("main", [allocate_with_torch, allocate_with_numpy, allocate_on_a_gpu])
def test_out_of_memory_is_one_line(main, capsys):
    with pytest.raises(SystemExit) as stop:
        utils.run_main(main)
    err = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "out of memory" in err and "--batch_size" in err and "\n" not in err
