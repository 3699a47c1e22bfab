"""Generator and discriminator of SNGAN, SAGAN and BigGAN, and how to build them or load them from a checkpoint.

    G, meta = BigGAN.load_generator("runs/quickstart", device="cpu")
    images = G(z, y)          # z float32 (N, G.config.dim_z), y int64 (N,): (N,3,R,R) in [-1,1]

Symbols in shape comments: N batch, C channels, R resolution, K classes, S dimension of the shared class embedding.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

import checkpoints
import layers
import utils
from model_config import ModelConfig
from sssm import SpatialSelfModulation


class Generator(nn.Module):
    """Noise and class to images (Zhang et al. 2019; Brock et al. 2019, appendix B), with or without SSM.

    z goes through a linear layer to the first feature map; stages of one upsampling block, and attention where the
    config asks for it, grow it to the image. With `hier`, z is split: its first slot goes to the linear layer, the
    others, joined to the class embedding, are the condition of one block each. With `G_shared` all conditional norms
    see one class embedding through linear layers; without it each has an embedding of its own.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        sn = {"sn": config.G_param == "SN", "eps": config.SN_eps}
        widths = config.G_widths
        self.slots = len(widths) if config.hier else 1
        slot_dim = config.dim_z // self.slots
        shared = config.G_shared and config.G_cbn
        self.shared = layers.Embedding(config.n_classes, config.shared_dim) if shared else None
        self.linear = layers.Linear(slot_dim, widths[0] * config.bottom_width**2, **sn)
        norm = _conditional_norm(config, slot_dim, sn)
        self.stages = nn.ModuleList()
        for i, (in_channels, out_channels) in enumerate(pairwise(widths)):
            stage = [layers.GBlock(in_channels, out_channels, norm, sn)]
            if config.bottom_width * 2 ** (i + 1) in config.G_attn:
                stage.append(layers.SelfAttention(out_channels, sn))
            self.stages.append(nn.ModuleList(stage))
        self.ssm = SpatialSelfModulation(config, sn) if config.ssm != "none" else None
        self.output_bn = layers.BatchNorm2d(widths[-1])
        self.output_conv = layers.Conv2d(widths[-1], 3, **sn)
        layers.init_weights(self, config.G_init)

    def forward(self, z, y):  # z (N,dim_z) float, y (N,) int64
        first, conditions = self._split(z, y)
        h = self.linear(first).view(len(z), -1, self.config.bottom_width, self.config.bottom_width)
        s = self.ssm.start(z, y) if self.ssm else None
        for i, (stage, condition) in enumerate(zip(self.stages, conditions, strict=True)):
            for layer in stage:
                h = layer(h, condition)  # (N,C,H,W) to (N,C',2H,2W)
            if self.ssm:
                s, h = self.ssm.stages[i](s, h)
        return torch.tanh(self.output_conv(F.relu(self.output_bn(h))))  # (N,3,R,R)

    def _split(self, z, y):
        """What the linear layer sees (N,dim_z / slots), and the condition of each stage: y (N,) or a vector (N,S')."""
        first, *rest = z.chunk(self.slots, dim=1)
        y_emb = self.shared(y) if self.shared else y  # (N,S) or (N,)
        if not rest:
            return first, [y_emb] * len(self.stages)
        if not self.shared:  # plain batch norm: no stage is conditioned, and only SSM sees the other slots
            return first, [None] * len(self.stages)
        return first, [torch.cat([y_emb, chunk], dim=1) for chunk in rest]


def _conditional_norm(config, slot_dim, sn):
    """A function from channels to the normalisation layer of G's blocks."""
    if not config.G_cbn:
        return lambda channels: layers.BatchNorm2d(channels, eps=config.BN_eps)
    condition_dim = config.shared_dim + (slot_dim if config.hier else 0) if config.G_shared else None
    return lambda channels: layers.ConditionalBatchNorm2d(channels, condition_dim, config.n_classes, sn, config.BN_eps)


class Discriminator(nn.Module):
    """Images and class to a logit each, with projection (Miyato & Koyama 2018) or without the class."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        sn = {"sn": config.D_param == "SN", "eps": config.SN_eps}
        widths = config.D_widths
        self.blocks = nn.Sequential()
        resolution = config.resolution
        for i, (in_channels, out_channels) in enumerate(zip((3, *widths[:-1]), widths, strict=True)):
            down = i < config.D_num_down
            resolution //= 2 if down else 1
            self.blocks.append(layers.DBlock(in_channels, out_channels, sn, down, first=i == 0, wide=config.D_wide))
            if down and resolution in config.D_attn:
                self.blocks.append(layers.SelfAttention(out_channels, sn))
        self.linear = layers.Linear(widths[-1], 1, **sn)
        projection = config.D_cond == "projection"
        self.embed = layers.Embedding(config.n_classes, widths[-1], **sn) if projection else None
        layers.init_weights(self, config.D_init)

    def forward(self, x, y):  # x (N,3,R,R) in [-1,1], y (N,) int64
        h = F.relu(self.blocks(x)).sum(dim=(2, 3))  # (N,C)
        logits = self.linear(h).squeeze(1)  # (N,)
        if self.embed:
            logits = logits + (self.embed(y) * h).sum(dim=1)
        return logits


def build(config):
    """Freshly initialised (Generator, Discriminator) of a ModelConfig; weights come from torch's global CPU seed."""
    return Generator(config), Discriminator(config)


def load_generator(path, device="cpu", ema=True):
    """The generator of a checkpoint, in eval mode and without gradients.

    Args: path: a checkpoint or a run folder (checkpoints.find_checkpoint); ema: its moving average where it has one.
    Returns: (Generator, meta), meta being a dict of the checkpoint's other plain entries (step, args, metrics ...), its
        path and whether `ema` weights were taken.
    Raises: utils.UserError if the file is missing, damaged, or holds no generator of its config.
    """
    checkpoint, meta = _read(path, ("best", "ckpt"))
    ema = ema and checkpoint.get("G_ema") is not None
    state = checkpoint.get("G_ema" if ema else "G")
    if state is None:
        raise utils.UserError(f"{meta['path']} holds only the moving average of G")
    return _restore(Generator, state, device, meta), {**meta, "ema": ema}


def load_discriminator(path, device="cpu"):
    """The discriminator of a checkpoint, in eval mode and without gradients; as `load_generator`.

    Of a run folder the newest full checkpoint is taken: best_*.pth hold the generator alone.
    """
    checkpoint, meta = _read(path, ("ckpt",))
    if checkpoint.get("D") is None:
        raise utils.UserError(f"{meta['path']} holds no discriminator; use a full checkpoint of the run's weights/")
    return _restore(Discriminator, checkpoint["D"], device, meta), meta


def _read(path, kinds):
    path = checkpoints.find_checkpoint(path, kinds)
    checkpoint = utils.load_torch(path)
    if not isinstance(checkpoint, dict) or "model_config" not in checkpoint:
        raise utils.UserError(f"{path} is not a checkpoint of this project (it has no model_config)")
    tensors = {"G", "D", "G_ema", "opt_G", "opt_D", "scaler"}
    return checkpoint, {**{k: v for k, v in checkpoint.items() if k not in tensors}, "path": str(path)}


def _restore(network, state, device, meta):
    config = ModelConfig.from_dict(meta["model_config"])
    with torch.random.fork_rng(devices=[]):  # the weights it draws are overwritten: leave the caller's seed alone
        module = network(config)
    load_state(module, state, meta["path"])
    return module.to(device).eval().requires_grad_(False)


def load_state(module, state, path):
    """Load a state dict; another architecture's is one clear line. Raises: utils.UserError."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise utils.UserError(f"{path} does not fit the {type(module).__name__} of its config: {first}") from error
