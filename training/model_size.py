"""Size and cost of G and D from their config alone: parameters, multiply-adds, memory in training.

The networks are built on the meta device, whose tensors have shapes but no content: nothing is computed or allocated.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable

import torch
from torch import nn

import BigGAN
import layers
import utils
from model_config import ModelConfig
from torch_utils import memory

LOWER_WIDTHS = "lower --G_ch, --D_ch, --G_ch_mult, --D_ch_mult, --dim_z or --shared_dim"


def build_on_meta(config: ModelConfig) -> tuple[BigGAN.Generator, BigGAN.Discriminator]:
    """(Generator, Discriminator) of a ModelConfig, without storage.

    They lack spectral norm, which has no parameters and costs the same for any batch, but takes long to trace.
    Raises: utils.UserError where a layer has more weights than can be counted.
    """
    try:
        with torch.device("meta"):
            return BigGAN.build(dataclasses.replace(config, G_param="none", D_param="none"))
    except (RuntimeError, TypeError, OverflowError) as error:
        raise utils.UserError(f"no machine holds a model of these widths: {LOWER_WIDTHS}") from error


def check_fits(config: ModelConfig, batch_size: int, device: torch.device) -> None:
    """Raise utils.UserError where a device cannot hold the weights, or the images of a pass, before these are made.

    A lower bound: what training needs for certain. batch_size: images of a pass on this process.
    """
    weights = 4 * 4 * sum(map(num_parameters, build_on_meta(config)))  # weights, gradients, Adam's two moments
    memory.check_fits(weights, device, "the model", LOWER_WIDTHS)
    image = 3 * config.resolution**2 + config.dim_z
    remedy = "lower it, and raise --num_D_accumulations and --num_G_accumulations instead"
    memory.check_fits(weights + 4 * batch_size * image, device, f"--batch_size of {batch_size:,} a process", remedy)


def set_fused(networks: Iterable[nn.Module], fused: bool) -> None:
    """Compute resampling convolutions in their fused form, or as the plain composition (see layers.py)."""
    for module in itertools.chain.from_iterable(network.modules() for network in networks):
        if isinstance(module, (layers.UpConv2d, layers.DownConv2d)):
            module.fused = fused


def num_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _inputs(config, n):
    """z (n,dim_z), x (n,3,R,R) and y (n,) on the meta device."""
    x = torch.empty(n, 3, config.resolution, config.resolution, device="meta")
    return torch.empty(n, config.dim_z, device="meta"), x, torch.empty(n, dtype=torch.int64, device="meta")


@functools.cache
@torch.no_grad()
def multiply_adds(config: ModelConfig, *, fused: bool) -> tuple[int, int]:
    """Multiply-adds of convolutions, linear layers and attention for one image: (of G, of D).

    Counted by PyTorch for a forward in evaluation; `fused` as in `set_fused`. What grows with the number of elements
    only (norms, ReLU) and what is done once a batch (spectral norm) is left out.
    """
    from torch.utils.flop_counter import FlopCounterMode  # takes long to import, which --help need not wait for

    G, D = build_on_meta(config)
    z, x, y = _inputs(config, 1)
    set_fused((G, D), fused)
    counts = []
    for network, inputs in ((G.eval(), (z, y)), (D.eval(), (x, y))):
        with FlopCounterMode(display=False) as counter:
            network(*inputs)
        counts.append(counter.get_total_flops() // 2)
    return tuple(counts)


@functools.cache
def training_bytes(config: ModelConfig, averages: int) -> tuple[int, int, int]:
    """Memory of training in float32, as (bytes of the state, bytes of a D pass per image, of a G pass per image).

    The state is weights and buffers, their normalised copy, gradients, Adam's two moments, and G's moving averages. A
    pass keeps what autograd saves for its backward, measured by hooks on a forward of the networks on the meta device;
    D's pass per image is that of a real and a fake. What is needed for a moment only, and the workspaces of
    convolutions, come on top.
    """
    G, D = build_on_meta(config)
    sizes = [sum(t.numel() * t.element_size() for t in network.state_dict().values()) for network in (G, D)]
    state = 5 * sum(sizes) + averages * sizes[0]

    def d_pass(z, x, y):
        D(torch.cat([x, x]), torch.cat([y, y]))

    def g_pass(z, x, y):
        D.requires_grad_(False)
        D(G(z, y), y)

    return state, *(_saved_bytes(forward, config) for forward in (d_pass, g_pass))


@functools.cache
def checkpoint_bytes(config: ModelConfig, averages: int) -> tuple[int, int]:
    """Sizes of a full checkpoint (G, D, Adam's two moments of both, G's averages) and of a best one: (bytes, bytes).

    Spectral norm's vectors and names, which come on top, are small.
    """
    G, D = (
        sum(t.numel() * t.element_size() for t in network.state_dict().values()) for network in build_on_meta(config)
    )
    return 3 * (G + D) + averages * G, G


def _saved_bytes(forward, config):
    """Bytes per image that autograd keeps between the forward and the backward of a pass."""
    n = 1009  # a prime, unlike any number of channels: a tensor that begins with it (or twice it) grows with the batch
    kept = {}  # by storage: several operations may save one; holding it here keeps its address from being used again

    def pack(tensor):
        if tensor.shape[:1] in ((n,), (2 * n,)):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward(*_inputs(config, n))
    return sum(storage.nbytes() for storage in kept.values()) // n
