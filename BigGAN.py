"""Generator and discriminator of SNGAN, SAGAN, BigGAN and BigGAN-deep; building them, loading them from a checkpoint.

    G, meta = BigGAN.load_generator("runs/quickstart", device="cpu")
    images = G(z, y)          # z float32 (N, G.config.dim_z), y int64 (N,): (N,3,R,R) in [-1,1]

Symbols in shape comments: N batch, C channels, R resolution, K classes, S dimension of the shared class embedding.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import BigGANdeep
import layers
import utils
from model_config import ModelConfig
from sssm import SpatialSelfModulation
from torch_utils import checkpoints, precision


class Generator(nn.Module):
    """Noise and class to images (Zhang et al. 2019; Brock et al. 2019, appendix B), with or without SSM.

    z goes through a linear layer to the first feature map; stages, of one block or in BigGAN-deep of several, with
    attention where the config asks for it, grow it to the image. All conditional norms see one class embedding through
    linear layers with `G_shared`; without it each has an embedding of its own. With `hier` z is a condition too: split,
    its first slot for the linear layer and one for each block; or in BigGAN-deep whole, for every block, while the
    linear layer sees the class as well.
    """

    amp: torch.dtype | None = None  # of its feature maps (torch_utils.precision.AMP); None: that of the weights

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        sn = {"sn": config.G_param == "SN", "eps": config.SN_eps}
        widths = config.G_widths
        shared = config.G_shared and config.G_cbn
        self.shared = layers.Embedding(config.n_classes, config.shared_dim) if shared else None
        self.joint = bool(self.shared and config.hier and config.deep)
        self.slots = len(widths) if config.hier and not config.deep else 1
        slot_dim = config.dim_z // self.slots
        first_dim = slot_dim + (config.shared_dim if self.joint else 0)
        self.linear = layers.Linear(first_dim, widths[0] * config.bottom_width**2, **sn)
        condition_dim = config.shared_dim + (slot_dim if config.hier else 0) if self.shared else None

        def norm(channels, eps=config.BN_eps, conditional=config.G_cbn):
            if not conditional:
                return layers.BatchNorm2d(channels, eps=eps)
            norm_sn = sn if self.shared or config.G_embed_SN else {}
            return layers.ConditionalBatchNorm2d(channels, condition_dim, config.n_classes, norm_sn, eps)

        self.stages = nn.ModuleList()
        for in_channels, out_channels, attention in config.G_stages:
            if config.deep:
                stage = BigGANdeep.generator_blocks(in_channels, out_channels, norm, sn, config)
            else:
                stage = [layers.GBlock(in_channels, out_channels, norm, sn)]
            self.stages.append(nn.ModuleList(stage + ([layers.SelfAttention(out_channels, sn)] if attention else [])))
        self.ssm = SpatialSelfModulation(config, sn) if config.ssm != "none" else None
        self.output_bn = norm(widths[-1], config.output_BN_eps, config.G_out_cbn and config.G_cbn)
        self.output_conv = layers.Conv2d(widths[-1], 3, **sn)
        layers.init_weights(self, config.G_init)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:  # z (N,dim_z) float, y (N,) int64
        with precision.autocast(z.device.type, self.amp):
            h = self._last_map(z, y)
        return torch.tanh(h.to(z.dtype))  # (N,3,R,R)

    def _last_map(self, z, y):
        first, conditions = self._split(z, y)
        h = self.linear(first).view(len(z), -1, self.config.bottom_width, self.config.bottom_width)
        s = self.ssm.start(z, y) if self.ssm else None
        for i, (stage, condition) in enumerate(zip(self.stages, conditions, strict=True)):
            for layer in stage:
                h = layer(h, condition)  # (N,C,H,W), at last (N,C',2H,2W)
            if self.ssm and i < len(self.ssm.stages):
                s, h = self.ssm.stages[i](s, h)
        return self.output_conv(F.relu(self.output_bn(h, conditions[-1])))

    def _split(self, z, y):
        """What the linear layer sees (N,S'), and the condition of each stage: y (N,) or a vector (N,S")."""
        first, *rest = z.chunk(self.slots, dim=1)
        y_emb = self.shared(y) if self.shared else y  # (N,S) or (N,)
        if self.joint:
            first = torch.cat([y_emb, z], dim=1)
            return first, [first] * len(self.stages)
        if not rest:
            return first, [y_emb] * len(self.stages)
        if not self.shared:  # plain batch norm: no stage is conditioned, and only SSM sees the other slots
            return first, [None] * len(self.stages)
        return first, [torch.cat([y_emb, chunk], dim=1) for chunk in rest]


class Discriminator(nn.Module):
    """Images and class to a logit each (Miyato et al. 2018; Miyato & Koyama 2018; Brock et al. 2019, appendix B).

    The class comes in by projection, or as an embedded label joined to the first stage's features, or not at all. With
    `D_aux` a head maps the last features to an embedding, beside which each class has one of its own.
    """

    amp: torch.dtype | None = None  # as Generator.amp
    frozen: tuple[nn.Module, ...] = ()  # parts that stay as they are

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        sn = {"sn": config.D_param == "SN", "eps": config.SN_eps}
        self.input_conv = layers.Conv2d(3, config.D_widths[0], **sn) if config.deep else None
        self.blocks = nn.Sequential()
        for i, (in_channels, out_channels, down, attention) in enumerate(config.D_stages):
            if config.deep:
                self.blocks.extend(BigGANdeep.discriminator_blocks(in_channels, out_channels, down, sn, config))
            else:
                options = {"wide": config.D_wide, "relu_shortcut": config.D_relu_shortcut}
                self.blocks.append(layers.DBlock(in_channels, out_channels, sn, down, first=i == 0, **options))
            if attention:
                self.blocks.append(layers.SelfAttention(out_channels, sn))
            if i == 0:
                self.num_first = len(self.blocks)  # those of the first stage
        features = config.D_widths[-1]
        self.linear = layers.Linear(features, 1, **sn)
        self.embed = self.label_embedding = None
        if config.D_cond == "projection":
            self.embed = layers.Embedding(config.n_classes, features, **sn)
        elif config.D_cond == "concat":
            self.label_embedding = layers.Embedding(config.n_classes, config.D_label_dim)
            self.label_linear = layers.Linear(config.D_label_dim, config.D_label_ch, **sn)
        self.to_embedding = self.proxies = None
        if config.D_aux != "none":
            self.to_embedding = layers.Linear(features, config.D_embed_dim, **sn)
            self.proxies = layers.Embedding(config.n_classes, config.D_embed_dim)
        layers.init_weights(self, config.D_init)

    def freeze(self, number: int) -> None:
        """Have the first blocks, and what comes before them, stay as they are (Mo et al. 2020, FreezeD), bit for bit.

        They get no gradients, and are in eval mode for good: their spectral norm takes no power iterations. Attention
        belongs to the block before it. Raises: utils.UserError where D has fewer blocks.
        """
        ends = [i for i, block in enumerate(self.blocks) if not isinstance(block, layers.SelfAttention)]
        if number > len(ends):
            raise utils.UserError(f"--freeze_D {number}: D has {utils.counted(len(ends), 'block')}")
        parts = self.blocks[: [*ends, None][number]] if number else []
        self.frozen = tuple(part for part in (self.input_conv if number else None, *parts) if part is not None)
        self.requires_grad_(True).train(self.training)

    def requires_grad_(self, requires_grad: bool = True) -> "Discriminator":
        super().requires_grad_(requires_grad)
        for part in self.frozen:
            part.requires_grad_(False)
        return self

    def train(self, mode: bool = True) -> "Discriminator":
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def forward(self, x: Tensor, y: Tensor, embed: bool = False) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """x (N,3,R,R) in [-1,1] and y (N,) int64 to logits (N,); with `embed`, of a D with an auxiliary classifier, the
        embeddings (N,E) of the images and those of their classes too.
        """
        with precision.autocast(x.device.type, self.amp):
            h = F.relu(self._last_map(x, y)).to(x.dtype)  # (N,C,h,w)
        h = h.mean(dim=(2, 3)) if self.config.D_pool == "mean" else h.sum(dim=(2, 3))  # (N,C)
        logits = self.linear(h).squeeze(1)  # (N,)
        if self.embed:
            logits = logits + (self.embed(y) * h).sum(dim=1)
        return (logits, self.to_embedding(h), self.proxies(y)) if embed else logits

    def _last_map(self, x, y):
        h = self.input_conv(x) if self.input_conv else x
        h = self.blocks[: self.num_first](h)
        if self.label_embedding:
            label = self.label_linear(self.label_embedding(y))  # (N,label channels)
            h = torch.cat([h, label[:, :, None, None].expand(-1, -1, *h.shape[2:])], dim=1)
        return self.blocks[self.num_first :](h)


def build(config: ModelConfig) -> tuple[Generator, Discriminator]:
    """Freshly initialised networks; weights come from torch's global CPU seed."""
    return Generator(config), Discriminator(config)


def load_generator(path: str | Path, device: str | torch.device = "cpu", ema: bool = True) -> tuple[Generator, dict]:
    """The generator of a checkpoint, in eval mode and without gradients.

    Args: path: a checkpoint or a run folder (checkpoints.find_checkpoint); ema: its moving average where it has one.
    Returns: the generator and its meta: the checkpoint's other plain entries (step, args, metrics ...), its path and
        whether `ema` weights were taken.
    Raises: utils.UserError if the file is missing, damaged, or holds no generator of its config.
    """
    checkpoint, meta = _read(path, ("best", "ckpt"))
    ema = ema and checkpoint.get("G_ema") is not None
    state = checkpoint.get("G_ema" if ema else "G")
    if state is None:
        raise utils.UserError(f"{meta['path']} holds only the moving average of G")
    return restore(Generator, state, device, meta), {**meta, "ema": ema}


def load_discriminator(path: str | Path, device: str | torch.device = "cpu") -> tuple[Discriminator, dict]:
    """The discriminator of a checkpoint, in eval mode and without gradients; as `load_generator`.

    Of a run folder the newest full checkpoint is taken: best_*.pth hold the generator alone.
    """
    checkpoint, meta = _read(path, ("ckpt",))
    if checkpoint.get("D") is None:
        raise utils.UserError(f"{meta['path']} holds no discriminator; use a full checkpoint of the run's weights/")
    return restore(Discriminator, checkpoint["D"], device, meta), meta


def _read(path, kinds):
    checkpoint, path = checkpoints.read_model(path, kinds)
    tensors = {"G", "D", "G_ema", "G_power", "opt_G", "opt_D"}
    return checkpoint, {**{k: v for k, v in checkpoint.items() if k not in tensors}, "path": str(path)}


def restore(network: type, state: dict, device: str | torch.device, meta: dict) -> nn.Module:
    """A Generator or Discriminator with the weights of a state dict, in eval mode and without gradients.

    meta: of its checkpoint: `model_config`, and `path` for error messages. Raises: utils.UserError.
    """
    config = ModelConfig.from_dict(meta["model_config"])
    module = _without_weights(network, config, state, meta["path"]).to_empty(device="cpu")
    load_state(module, state, meta["path"])
    return module.to(device).eval().requires_grad_(False)


def _without_weights(network, config, state, path):
    """The network on the meta device, so that neither memory nor time is spent on weights that are overwritten.

    Raises: utils.UserError where the config asks for far more of them than there are.
    """
    try:
        with torch.device("meta"):
            module = network(config)
        wanted = sum(parameter.numel() for parameter in module.parameters())
    except (RuntimeError, TypeError, OverflowError):  # more than can be counted
        wanted = math.inf
    if wanted > 10**7 + 2 * sum(tensor.numel() for tensor in state.values()):
        raise utils.UserError(f"{path} does not fit the {network.__name__} of its config: it has far fewer weights")
    return module


def load_state(module: nn.Module, state: dict, path: str | Path) -> None:
    """Load a state dict; another architecture's, or a diverged one's, is one clear line. Raises: utils.UserError."""
    checkpoints.check_finite(state, path, type(module).__name__)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        first = first if len(first) <= 200 else f"{first[:199]}…"  # it can name every tensor
        raise utils.UserError(f"{path} does not fit the {type(module).__name__} of its config: {first}") from error
