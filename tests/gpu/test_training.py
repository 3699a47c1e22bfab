"""Training on a device as on the CPU: loading, mixed precision over many steps, resume, processes, metrics."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import step_on_ranks
import torch
from devices import DEVICES, LONG_DEVICES
from made_references import made_reference, small_network
from whole_steps import assert_near

import BigGAN
import calculate_inception_moments
import inception_utils
import make_hdf5
import prdc
import train
from image_datasets.hdf5 import HDF5Dataset
from image_datasets.loading import BatchLoader
from metrics import functional, networks
from metrics.protocol import MetricOptions
from model_config import ModelConfig
from torch_utils.distributed import Ranks
from torch_utils.mixed_precision import PrecisionOptions
from torch_utils.precision import AMP
from training import logs
from training.batches import Batches, BatchOptions

ROOT = Path(__file__).parents[2]
MODEL = "--G_ch 4 --G_ch_mult 4-4-2-1 --D_ch 4 --D_ch_mult 1-2-4-4 --D_num_down 3 --G_attn 16 --D_attn 16".split()
STEPS = "--ssm voxel --dim_z 16 --batch_size 32 --num_D_steps 1 --G_lr 4e-4 --D_lr 8e-4 --ema --flip".split()
FLAGS = ["--dataset", "digits", "--feature_network", "classifier", *MODEL, *STEPS, "--log_every", "1"]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """The digits, 32x32."""
    root = tmp_path_factory.mktemp("digits")
    make_hdf5.main(["--dataset", "digits", "--out", str(root / "digits.hdf5")])
    return root


@pytest.mark.parametrize("device", DEVICES)
def test_batches_are_those_of_the_cpu(device, data_root):
    """By way of pinned memory on a GPU; flips, crops and dequantisation included."""
    config = ModelConfig(resolution=32, n_classes=10, dim_z=8, G_ch=8, D_ch=8)
    options = BatchOptions(batch_size=16, augment=True, dequantise=True)
    seen = []
    for where in ("cpu", device):
        ranks, pinned = Ranks(0, 1, torch.device(where)), where == "cuda"
        with BatchLoader(
            HDF5Dataset(data_root / "digits.hdf5"), 16, seed=0, num_workers=2, pin_memory=pinned
        ) as loader:
            batches = Batches(options, config, None, 0, ranks, loader)
            passes = [p for step in (1, 2, 3) for p in batches.D_passes(step, range(2))]
            assert next(loader)[0].is_pinned() == pinned
        assert all(t.device.type == where for p in passes for t in p)
        seen.append([t.cpu() for p in passes for t in p])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def gradients(run, amp, device):
    """Of a trained G through its D, and of D by what it makes: two vectors."""
    G, _ = BigGAN.load_generator(run, device, ema=False)
    D, _ = BigGAN.load_discriminator(run, device)
    PrecisionOptions(amp=amp, tf32=False).apply(G, D)
    z = torch.randn(64, G.config.dim_z, generator=torch.Generator().manual_seed(0)).to(device)
    y = torch.arange(64, device=device) % 10
    parameters = [[*network.train().requires_grad_(True).parameters()] for network in (G, D)]
    loss = torch.nn.functional.softplus(-D(G(z, y), y)).mean()
    of_both = ([*torch.autograd.grad(loss, of_one, retain_graph=True)] for of_one in parameters)
    return [torch.cat([t.flatten() for t in of_one]) for of_one in of_both]


@pytest.mark.parametrize("device", LONG_DEVICES)
def test_mixed_precision_trains_as_float32_does(device, data_root, tmp_path):
    """Runs of 100 digits' steps (20 on a CPU) stay finite and leave out few updates; gradients, at weights that have
    been trained, are those of float32. Losses of the runs are not compared: they drift apart as those of two seeds do.
    """
    count = 100 if device == "cuda" else 20
    flags = [*FLAGS, "--data_root", str(data_root), "--runs_root", str(tmp_path), "--num_iters", str(count)]
    flags += ["--test_every", "0", "--sample_every", "0", "--device", device, "--no-cudnn_benchmark"]
    for amp in AMP:
        train.main([*flags, "--experiment_name", amp, "--amp", amp])
        events = logs.read_log(tmp_path / amp / "log.jsonl")
        losses = [v for e in events if e["event"] == "train" for k, v in e.items() if "loss" in k]
        assert len(losses) >= 2 * count and np.isfinite(losses).all()
        skipped = sum(e["event"] == "skipped_step" for e in events)
        assert skipped <= (16 if amp == "fp16" else 0)  # of two networks whose scale begins at 2^16
    expected = gradients(tmp_path / "off", "off", device)
    for amp, least in (("bf16", 0.85), ("fp16", 0.97)):
        for found, plain in zip(gradients(tmp_path / "off", amp, device), expected, strict=True):
            assert torch.nn.functional.cosine_similarity(found, plain, dim=0) > least, amp


@pytest.mark.parametrize("device", LONG_DEVICES)
def test_a_deterministic_run_resumes_bit_for_bit(device, data_root, tmp_path):
    """Evaluations on the way included: of each end, too, as a run's last step is always evaluated."""
    statistics = ["--dataset", "digits", "--data_root", str(data_root), "--feature_network", "classifier"]
    calculate_inception_moments.main([*statistics, "--device", device, "--classifier_epochs", "1"])
    flags = [*FLAGS, "--data_root", data_root, "--runs_root", tmp_path, "--device", device, "--deterministic"]
    flags += "--test_every 2 --sample_every 0 --save_every 1 --which_best FD --num_inception_images 300".split()
    for name, num_iters in (("whole", 6), ("parts", 4), ("parts", 6)):
        run = [*flags, "--experiment_name", name, "--num_iters", num_iters]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # a process of its own: cuBLAS is told when it starts
        command = [sys.executable, ROOT / "train.py", *run]
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    whole, parts = (
        torch.load(tmp_path / name / "weights" / "ckpt_00000006.pth", weights_only=True) for name in ("whole", "parts")
    )
    for part in ("G", "D", "G_ema"):
        for name, value in whole[part].items():
            assert torch.equal(value, parts[part][name]), (part, name)
    assert whole["metrics"] == parts["metrics"] and whole["best"] == parts["best"]


@pytest.mark.parametrize("device", LONG_DEVICES)
def test_processes_step_as_one(device, tmp_path):
    """gloo with two processes on a CPU, nccl with as many as there are GPUs: of 6 images each sees as many."""
    count = max(n for n in (1, 2, 3, 6) if n <= torch.cuda.device_count()) if device == "cuda" else 2
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    command = [sys.executable, *launcher, str(ROOT / "tests" / "step_on_ranks.py"), device, str(tmp_path / "step.pth")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    several, one = torch.load(tmp_path / "step.pth"), step_on_ranks.step(Ranks(0, 1, torch.device("cpu")))
    assert several.keys() == one.keys()
    floating = [name for name in one if one[name].is_floating_point()]
    assert_near([several[name] for name in floating], [one[name] for name in floating], 1e-7)


@pytest.mark.parametrize("device", DEVICES)
def test_metrics_are_those_of_the_cpu(device):
    network = small_network()
    reference = made_reference(network)
    g = torch.Generator().manual_seed(2)
    features = reference.real_features + 0.3 * torch.randn(reference.real_features.shape, generator=g)
    labels = torch.arange(200) % 3
    logits = 3 * torch.nn.functional.one_hot(labels, 3) + torch.randn(200, 3, generator=g)
    options = MetricOptions(kid_subsets=7, kid_subset_size=20)
    of_cpu, of_device = (
        inception_utils.compute_metrics(*(t.to(where) for t in (features, logits, labels)), network, reference, options)
        for where in ("cpu", device)
    )
    assert of_device == pytest.approx(of_cpu, rel=1e-4, abs=1e-6)
    real, fake = (t.to(device) for t in (reference.real_features, features))
    assert prdc.prdc(real=real, fake=fake) == prdc.prdc(real=real.cpu(), fake=fake.cpu())
    moments = functional.RunningMoments()
    moments.update(fake[:70]), moments.update(fake[70:])
    assert_near([t.cpu() for t in moments.finalize()], [features.double().mean(0), features.double().T.cov()], 1e-6)


@pytest.mark.parametrize("device", LONG_DEVICES)
@pytest.mark.parametrize("name", ["inception", "inception_tf", "resnet50", "classifier"])
def test_feature_networks_are_those_of_the_cpu(name, device):
    """Features and logits of random weights, whatever TF32 training uses."""
    from metrics import classifier
    from metrics.inception_tf import InceptionTF

    builders = {"inception": networks.InceptionV3, "inception_tf": InceptionTF, "resnet50": networks.ResNet50}
    torch.manual_seed(0)
    net = builders[name]().eval() if name in builders else classifier.Classifier(32, 10).eval()
    images = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for rule in networks.NETWORK_RESIZE[name]:
        network = networks.FeatureNetwork(net, name=name, resize=rule, weights_hash="", resolution=32)
        expected = network(images)
        torch.backends.cudnn.allow_tf32 = True
        found = network.to(device)(images.to(device))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=0, atol=1e-3 * b.abs().max().item())
        network.cpu()
