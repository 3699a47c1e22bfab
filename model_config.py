"""The options of a model: one frozen dataclass, from which flags, checkpoints and constructors follow.

To add an option, add a field here and use it in the network. Its flag is `--<field name>`, and it is stored in every
checkpoint. `resolution` and `n_classes` come from the data, so they have no flag.
"""

import argparse
import dataclasses
import math
from dataclasses import dataclass

import utils
from torch_utils import schema
from utils import AT_LEAST_1, NOT_NEGATIVE, SHARE, Check, Options, option

# Channel multipliers, from the 4x4 end to the image for G and from the image down for D, by k = log2(R / bottom_width):
# resolutions 32, 64, 128, 256, 512 for the usual bottom width of 4 (BigGAN-PyTorch's tables). D's are those of its
# blocks' outputs; in BigGAN-deep the first is that of the convolution before its stages.
G_MULTIPLIERS = {
    3: (4, 4, 4, 4),
    4: (16, 16, 8, 4, 2),
    5: (16, 16, 8, 4, 2, 1),
    6: (16, 16, 8, 8, 4, 2, 1),
    7: (16, 16, 8, 8, 4, 2, 1, 1),
}
D_MULTIPLIERS = {
    3: (4, 4, 4, 4),
    4: (1, 2, 4, 8, 16),
    5: (1, 2, 4, 8, 16, 16),
    6: (1, 2, 4, 8, 8, 16, 16),
    7: (1, 1, 2, 4, 8, 8, 16, 16),
}


EPSILON = Check(lambda x: 0 < x < 1, "lie between 0 and 1")
ALL_POSITIVE = Check(lambda numbers: min(numbers, default=1) >= 1, "be positive numbers")
SSM_VARIANTS = ("none", "voxel", "gain", "group_gain", "global_voxel")


def _stages(text):
    """argparse type: '1_2_3' to numbers, 'all' to (), which stands for all of them."""
    if text == "all":
        return ()
    wrong = argparse.ArgumentTypeError(
        f"{text!r}: name stages, counted from 1, as 1_2_3, or all; --ssm none modulates none"
    )
    try:
        numbers = utils.number_list(text)
    except argparse.ArgumentTypeError:
        raise wrong from None
    if not numbers or text.lstrip().startswith("-"):  # -1: not the last, nor the first
        raise wrong
    return numbers


@dataclass(frozen=True)
class ModelConfig(Options):
    """Everything that the shape and the arithmetic of G and D depend on.

    Fields are normalised at construction: empty width multipliers are filled from the tables, `shared_dim` 0 becomes
    `dim_z`, and with `hier` `dim_z` is rounded down to equal slots; building a config from a config changes nothing.
    Raises: utils.UserError for values that contradict one another.
    """

    title = "model"

    resolution: int
    n_classes: int

    model: str = option(
        "BigGAN", "BigGAN: also SNGAN and SAGAN; BigGANdeep: bottlenecks", choices=("BigGAN", "BigGANdeep")
    )
    dim_z: int = option(128, "dimension of the noise z", check=AT_LEAST_1)
    bottom_width: int = option(4, "width of G's first feature map; resolution = bottom_width * 2^k", check=AT_LEAST_1)
    deep_style: str = option(
        "biggan", "BigGANdeep: shortcuts without weights, or StudioGAN's with", choices=("biggan", "studiogan")
    )

    G_ch: float = option(
        64,
        "channel multiplier of G; a fraction makes widths that are rounded, as --match finds them",
        kind=utils.number,
        metavar="X",
        check=Check(lambda x: 1 <= x < math.inf, "be a finite number of at least 1"),
    )
    G_ch_mult: tuple = option(
        (), "G's widths / G_ch from the bottom to the image, as 16-16-8-4-2; empty: the table's", check=ALL_POSITIVE
    )
    G_depth: int = option(2, "BigGANdeep: blocks per resolution in G", check=AT_LEAST_1)
    G_attn: tuple = option((64,), "resolutions with self-attention in G, as 32_64; 0: none")
    G_attn_after: tuple = option((), "stages of G, counted from 1, that self-attention follows too, as 2_3")
    G_param: str = option("SN", "SN: spectral norm in G; none: plain weights", choices=("SN", "none"))
    G_init: str = option("ortho", "initialisation of G", choices=("ortho", "xavier", "N02"))
    G_cbn: bool = option(True, "class-conditional batch norm in G (--no-G_cbn: plain batch norm)")
    G_out_cbn: bool = option(False, "class-conditional batch norm before G's last convolution too")
    G_embed_SN: bool = option(False, "spectral norm on the norms' own class embeddings too (mmgeneration's SAGAN)")
    G_shared: bool = option(False, "one class embedding shared by all of G's norms (BigGAN)")
    shared_dim: int = option(0, "dimension of the shared embedding, and of SSM's own; 0: dim_z", check=NOT_NEGATIVE)
    hier: bool = option(False, "hierarchical z: a slot of z to each block of G (BigGAN), or all of it (BigGANdeep)")
    ssm: str = option("none", "spatial self-modulation of G's stages", choices=SSM_VARIANTS)
    ssm_zero_init: bool = option(False, "start SSM's gains and biases at 0, by a learned scale per stage")
    ssm_width: float = option(
        1.0,
        "widths of SSM's stream / G's, from 0 to 1, the published form; 0: a stream without space, for gains and "
        "biases that are the same at all positions",
        check=SHARE,
    )
    ssm_stages: tuple = option(
        (), "stages of G that SSM modulates, counted from 1, as 1_2_3; all of them by default", kind=_stages
    )
    ssm_group: int = option(4, "group_gain: channels that share a map", check=AT_LEAST_1)

    D_ch: int = option(64, "channel multiplier of D", check=AT_LEAST_1)
    D_ch_mult: tuple = option(
        (), "D's widths / D_ch from the image down, as 1-2-4-8-16; empty: the table's", check=ALL_POSITIVE
    )
    D_depth: int = option(2, "BigGANdeep: blocks per resolution in D", check=AT_LEAST_1)
    D_num_down: int = option(0, "how many of D's first stages halve the resolution; 0: the table's (2 at 32)")
    D_attn: tuple = option((64,), "resolutions with self-attention in D, as 32_64; 0: none")
    D_attn_after: tuple = option((), "stages of D, counted from 1, that self-attention follows too, as 1_2")
    D_param: str = option("SN", "SN: spectral norm in D; none: plain weights", choices=("SN", "none"))
    D_init: str = option("ortho", "initialisation of D", choices=("ortho", "xavier", "N02"))
    D_wide: bool = option(True, "D's blocks widen in their first convolution (BigGAN), not in the second (SNGAN)")
    D_cond: str = option(
        "projection",
        "how D sees the class: inner product with the last features, label joined to the first ones, or not at all",
        choices=("projection", "concat", "none"),
    )
    D_label_dim: int = option(300, "D_cond concat: dimension of the label's embedding", check=AT_LEAST_1)
    D_label_ch: int = option(
        128, "D_cond concat: channels that it is mapped to, joined to the first stage's", check=AT_LEAST_1
    )
    D_pool: str = option("sum", "how D's last features become a vector", choices=("sum", "mean"))
    D_aux: str = option(
        "none", "d2dce: an embedding head, taught by ReACGAN's data-to-data cross-entropy", choices=("none", "d2dce")
    )
    D_embed_dim: int = option(512, "D_aux: dimension of the embedding", check=AT_LEAST_1)
    D_relu_shortcut: bool = option(False, "shortcuts of D's blocks see relu(x), not x (in-place ReLU of other code)")

    BN_eps: float = option(1e-5, "epsilon of batch norm in G's blocks", check=EPSILON)
    output_BN_eps: float = option(1e-5, "epsilon of batch norm before G's last convolution", check=EPSILON)
    SN_eps: float = option(1e-8, "epsilon of spectral norm", check=EPSILON)

    def __post_init__(self):
        for f in dataclasses.fields(self):
            if f.type is tuple:
                object.__setattr__(self, f.name, tuple(getattr(self, f.name)))
        if self.n_classes < 1:
            raise utils.UserError(f"n_classes {self.n_classes}: must be at least 1")
        super().__post_init__()
        k = self._num_doublings()
        self._fill_widths(k)
        object.__setattr__(self, "shared_dim", self.shared_dim or self.dim_z)
        self._check_blocks()
        if self.hier and self.G_cbn and not self.G_shared:
            raise utils.UserError("--hier needs --G_shared: the class embedding is joined to each slot of z")
        if self.hier and not self.deep:
            slot = self.dim_z // (k + 1)
            if slot == 0:
                raise utils.UserError(f"--dim_z {self.dim_z} is too small for --hier: {k + 1} slots are needed")
            object.__setattr__(self, "dim_z", slot * (k + 1))

    def _num_doublings(self):
        k = (self.resolution // self.bottom_width).bit_length() - 1
        if k < 1 or self.bottom_width * 2**k != self.resolution:
            raise utils.UserError(
                f"resolution {self.resolution} is not bottom_width {self.bottom_width} times a power of two; "
                "choose --bottom_width, or make the data at another --resolution"
            )
        return k

    def _fill_widths(self, k):
        G_ch_mult = self.G_ch_mult or G_MULTIPLIERS.get(k, ())
        D_ch_mult = self.D_ch_mult or D_MULTIPLIERS.get(k, ())
        where = f"at resolution {self.resolution}"
        for name, mult, wanted in (("G_ch_mult", G_ch_mult, f"{k + 1} numbers"), ("D_ch_mult", D_ch_mult, "numbers")):
            if not mult:  # none given, and none in the tables
                example = "-".join(str(2 ** max(k - i, 0)) for i in range(k + 1))
                example = example if name[0] == "G" else "-".join(reversed(example.split("-")))
                raise utils.UserError(f"there are no usual widths {where}: give --{name} {wanted}, such as {example}")
        if len(G_ch_mult) != k + 1:
            given = "-".join(map(str, G_ch_mult))
            raise utils.UserError(f"--G_ch_mult {given}: {k + 1} numbers are needed {where}")
        table_of_32 = not self.D_ch_mult and k == 3
        D_num_down = self.D_num_down or (2 if table_of_32 else len(D_ch_mult) - 1)
        stages = len(D_ch_mult) - (1 if self.deep else 0)
        if not 1 <= D_num_down <= min(stages, (self.resolution & -self.resolution).bit_length() - 1):
            raise utils.UserError(f"--D_num_down {D_num_down}: D has {stages} stages at resolution {self.resolution}")
        for name, value in (("G_ch_mult", G_ch_mult), ("D_ch_mult", D_ch_mult), ("D_num_down", D_num_down)):
            object.__setattr__(self, name, value)

    def _check_blocks(self):
        self._check_ssm()
        if self.D_cond == "concat" and len(self.D_stages) < 2:
            raise utils.UserError("--D_cond concat needs a second stage in D; see --D_ch_mult")
        if self.D_aux != "none" and self.n_classes == 1:
            raise utils.UserError(f"--D_aux {self.D_aux} tells classes apart, and the data have one class")
        if self.deep and self.deep_style == "biggan":
            if sorted(self.G_widths, reverse=True) != list(self.G_widths):
                raise utils.UserError("--G_ch_mult: BigGANdeep's shortcuts can only narrow towards the image")
            if any(i > o for i, o, *_ in self.D_stages):
                raise utils.UserError("--D_ch_mult, --D_cond concat: shortcuts of BigGANdeep's D cannot narrow")

    def _check_ssm(self):
        number = len(self.G_widths) - 1
        if any(not 1 <= i <= number for i in self.ssm_stages):
            raise utils.UserError(
                f"--ssm_stages {'_'.join(map(str, self.ssm_stages))}: G has the stages 1 to {number} at resolution "
                f"{self.resolution}"
            )
        widths = [self.G_widths[i] for i in self.ssm_modulated]
        if self.ssm == "group_gain" and any(width % self.ssm_group for width in widths):
            raise utils.UserError(
                f"--ssm group_gain needs widths that divide by {self.ssm_group} (--ssm_group), not G's {tuple(widths)}"
            )

    @property
    def deep(self) -> bool:
        """Whether the blocks are BigGAN-deep's bottlenecks."""
        return self.model == "BigGANdeep"

    @property
    def G_widths(self) -> tuple[int, ...]:
        """Channels of G's first feature map and of each block's output.

        Where `G_ch` is a fraction they are rounded; those of `group_gain` to whole groups.
        """
        if self.ssm == "group_gain" and self.G_ch % 1:
            return tuple(max(round(self.G_ch * m / self.ssm_group), 1) * self.ssm_group for m in self.G_ch_mult)
        return tuple(round(self.G_ch * m) for m in self.G_ch_mult)

    @property
    def ssm_modulated(self) -> tuple[int, ...]:
        """The stages of G that SSM modulates, counted from 1, ascending."""
        return tuple(sorted(set(self.ssm_stages))) or tuple(range(1, len(self.G_ch_mult)))

    @property
    def ssm_widths(self) -> tuple[int, ...]:
        """Channels of the first map of SSM's stream, and of each of its stages, up to the last that modulates."""
        widths = self.G_widths[: self.ssm_modulated[-1] + 1]
        return tuple(max(round(width * self.ssm_width), 1) for width in widths) if self.ssm_width else widths

    @property
    def D_widths(self) -> tuple[int, ...]:
        """Channels of each of D's blocks' output; in BigGAN-deep, of the first convolution's and each stage's."""
        return tuple(self.D_ch * m for m in self.D_ch_mult)

    @property
    def G_stages(self) -> list[tuple]:
        """(input channels, output channels, whether attention follows) of each of G's stages, which double the size."""
        widths = self.G_widths
        return [(widths[i], widths[i + 1], self._attention("G", i)) for i in range(len(widths) - 1)]

    @property
    def D_stages(self) -> list[tuple]:
        """(input channels, output channels, whether it halves the size, whether attention follows) of D's stages."""
        widths = self.D_widths if self.deep else (3, *self.D_widths)
        inputs = [w + (self.D_label_ch if self.D_cond == "concat" and i == 1 else 0) for i, w in enumerate(widths)]
        return [
            (inputs[i], widths[i + 1], i < self.D_num_down, self._attention("D", i)) for i in range(len(widths) - 1)
        ]

    def stage_resolutions(self, network: str) -> list[int | None]:
        """The resolution at which each stage of 'G' or 'D' ends; None for a stage of D that keeps the size."""
        if network == "G":
            return [self.bottom_width * 2 ** (i + 1) for i in range(len(self.G_widths) - 1)]
        num_stages = len(self.D_widths) - (1 if self.deep else 0)
        return [self.resolution // 2 ** (i + 1) if i < self.D_num_down else None for i in range(num_stages)]

    def _attention(self, network, i):
        wanted, after = getattr(self, f"{network}_attn"), getattr(self, f"{network}_attn_after")
        return self.stage_resolutions(network)[i] in wanted or i + 1 in after

    def notes(self) -> list[str]:
        """Lines about options that have no effect here, for the user to read."""
        lines = []
        if self.hier and not self.deep and not self.G_cbn and self.ssm == "none":
            lines.append("--hier without conditional batch norm and SSM: G sees only the first slot of z")
        idle = [name for name in ("ssm_width", "ssm_stages", "ssm_zero_init") if self.ssm == "none"]
        idle += ["ssm_group"] if self.ssm != "group_gain" else []
        defaults = {f.name: f.default for f in self.fields()}
        lines += [
            f"--{name} does nothing with --ssm {self.ssm}" for name in idle if getattr(self, name) != defaults[name]
        ]
        for network in "GD":
            resolutions = self.stage_resolutions(network)
            ends = [r for r in resolutions if r]
            wanted, after = getattr(self, f"{network}_attn"), getattr(self, f"{network}_attn_after")
            lines += [
                f"--{network}_attn {r}: no attention there, as {network}'s blocks end at {ends}"
                for r in wanted
                if r not in ends
            ]
            lines += [
                f"--{network}_attn_after {n}: no attention there, as {network} has {len(resolutions)} stages"
                for n in after
                if not 1 <= n <= len(resolutions)
            ]
        return lines

    def to_dict(self) -> dict:
        """Plain numbers, strings and lists: fit for JSON and for `torch.load(weights_only=True)`."""
        return utils.plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: dict) -> "ModelConfig":
        """The config that `to_dict` wrote. Raises: utils.UserError if fields are unknown or missing."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise utils.UserError(f"the model's config has unknown fields {', '.join(unknown)}: is it newer?")
        if wrong := schema.problem(values, schema.of_dataclass(cls)):
            raise utils.UserError(f"the model's config: {wrong}")
        return cls(**values)


def add_model_args(parser: utils.ArgumentParser) -> argparse._ArgumentGroup:
    """Add one flag per field of ModelConfig; returns their group."""
    group = ModelConfig.add_to(parser)
    group.add_argument("--D_thin", dest="D_wide", action="store_false", help="the same as --no-D_wide")
    return group
