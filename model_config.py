"""The options of a model: one frozen dataclass, from which flags, checkpoints and constructors follow.

To add an option, add a field here and use it in the network. Its flag is `--<field name>`, and it is stored in every
checkpoint. `resolution` and `n_classes` come from the data, so they have no flag.
"""

import argparse
import dataclasses
from dataclasses import dataclass, field

import utils

# Channel multipliers, from the 4x4 end to the image for G and from the image down for D, by k = log2(R / bottom_width):
# resolutions 32, 64, 128, 256, 512 for the usual bottom width of 4 (BigGAN-PyTorch's tables).
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


def _numbers(text):
    """'32_64' or '4-4-2-1' or '32,64' to a tuple of ints; '0' and '' to none."""
    try:
        numbers = tuple(int(word) for word in text.replace("_", "-").replace(",", "-").split("-") if word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 32_64") from None
    return () if numbers == (0,) else numbers


def _option(default, help, choices=None):
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class ModelConfig:
    """Everything that the shape and the arithmetic of G and D depend on.

    Fields are normalised at construction: empty width multipliers are filled from the tables, `shared_dim` 0 becomes
    `dim_z`, and with `hier` `dim_z` is rounded down to equal slots; building a config from a config changes nothing.
    Raises: utils.UserError for values that contradict one another.
    """

    resolution: int
    n_classes: int

    dim_z: int = _option(128, "dimension of the noise z")
    bottom_width: int = _option(4, "width of G's first feature map; resolution = bottom_width * 2^k")

    G_ch: int = _option(64, "channel multiplier of G")
    G_ch_mult: tuple = _option((), "G's widths / G_ch from the bottom to the image, as 16-16-8-4-2; empty: the table's")
    G_attn: tuple = _option((64,), "resolutions with self-attention in G, as 32_64; 0: none")
    G_param: str = _option("SN", "SN: spectral norm in G; none: plain weights", ("SN", "none"))
    G_init: str = _option("ortho", "initialisation of G", ("ortho", "xavier", "N02"))
    G_cbn: bool = _option(True, "class-conditional batch norm in G (--no-G_cbn: plain batch norm)")
    G_shared: bool = _option(False, "one class embedding shared by all of G's norms (BigGAN)")
    shared_dim: int = _option(0, "dimension of the shared embedding, and of SSM's own; 0: dim_z")
    hier: bool = _option(False, "hierarchical z: a slot of z to each block of G (BigGAN)")
    ssm: str = _option("none", "spatial self-modulation of G's stages", ("none", "voxel"))

    D_ch: int = _option(64, "channel multiplier of D")
    D_ch_mult: tuple = _option((), "D's widths / D_ch from the image down, as 1-2-4-8-16; empty: the table's")
    D_num_down: int = _option(0, "how many of D's first blocks halve the resolution; 0: all but the last (two at 32)")
    D_attn: tuple = _option((64,), "resolutions with self-attention in D, as 32_64; 0: none")
    D_param: str = _option("SN", "SN: spectral norm in D; none: plain weights", ("SN", "none"))
    D_init: str = _option("ortho", "initialisation of D", ("ortho", "xavier", "N02"))
    D_wide: bool = _option(True, "D's blocks widen in their first convolution (BigGAN), not in the second (SNGAN)")
    D_cond: str = _option("projection", "how D sees the class; none: it does not", ("projection", "none"))

    BN_eps: float = _option(1e-5, "epsilon of batch norm in G's blocks")
    SN_eps: float = _option(1e-8, "epsilon of spectral norm")

    def __post_init__(self):
        for f in dataclasses.fields(self):
            if f.type is tuple:
                object.__setattr__(self, f.name, tuple(getattr(self, f.name)))
        self._check_numbers()
        k = self._num_doublings()
        self._fill_widths(k)
        object.__setattr__(self, "shared_dim", self.shared_dim or self.dim_z)
        if self.hier:
            if self.G_cbn and not self.G_shared:
                raise utils.UserError("--hier needs --G_shared: the class embedding is joined to each slot of z")
            slot = self.dim_z // (k + 1)
            if slot == 0:
                raise utils.UserError(f"--dim_z {self.dim_z} is too small for --hier: {k + 1} slots are needed")
            object.__setattr__(self, "dim_z", slot * (k + 1))

    def _check_numbers(self):
        for name in ("dim_z", "bottom_width", "G_ch", "D_ch", "n_classes"):
            if getattr(self, name) < 1:
                raise utils.UserError(f"--{name} {getattr(self, name)}: must be at least 1")
        for name in ("BN_eps", "SN_eps"):
            if not 0 < getattr(self, name) < 1:
                raise utils.UserError(f"--{name} {getattr(self, name)}: must lie between 0 and 1")
        if self.shared_dim < 0 or min((*self.G_ch_mult, *self.D_ch_mult, 1)) < 1:
            raise utils.UserError("--shared_dim, --G_ch_mult and --D_ch_mult must be positive")

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
        if len(G_ch_mult) != k + 1:
            raise utils.UserError(f"--G_ch_mult needs {k + 1} numbers at resolution {self.resolution}, such as 4-4-2-1")
        if not D_ch_mult:
            raise utils.UserError(f"--D_ch_mult must be given at resolution {self.resolution}")
        table_of_32 = not self.D_ch_mult and k == 3
        D_num_down = self.D_num_down or (2 if table_of_32 else len(D_ch_mult) - 1)
        if not 1 <= D_num_down <= min(len(D_ch_mult), (self.resolution & -self.resolution).bit_length() - 1):
            raise utils.UserError(
                f"--D_num_down {D_num_down}: D has {len(D_ch_mult)} blocks at resolution {self.resolution}"
            )
        for name, value in (("G_ch_mult", G_ch_mult), ("D_ch_mult", D_ch_mult), ("D_num_down", D_num_down)):
            object.__setattr__(self, name, value)

    @property
    def G_widths(self):
        """Channels of G's first feature map and of each block's output."""
        return tuple(self.G_ch * m for m in self.G_ch_mult)

    @property
    def D_widths(self):
        """Channels of each of D's blocks' output."""
        return tuple(self.D_ch * m for m in self.D_ch_mult)

    def notes(self):
        """Lines about options that have no effect here, for the user to read."""
        G_ends = [self.bottom_width * 2 ** (i + 1) for i in range(len(self.G_widths) - 1)]
        D_ends = [self.resolution // 2 ** (i + 1) for i in range(self.D_num_down)]
        attention = (("G", self.G_attn, G_ends), ("D", self.D_attn, D_ends))
        unconditioned = ["--hier without conditional batch norm and SSM: G sees only the first slot of z"]
        return (unconditioned if self.hier and not self.G_cbn and self.ssm == "none" else []) + [
            f"--{network}_attn {resolution}: no attention there, as {network}'s blocks end at {ends}"
            for network, wanted, ends in attention
            for resolution in wanted
            if resolution not in ends
        ]

    def to_dict(self):
        """Plain numbers, strings and lists: fit for JSON and for `torch.load(weights_only=True)`."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values):
        """The config that `to_dict` wrote. Raises: utils.UserError if fields are unknown or missing."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise utils.UserError(f"the model's config has unknown fields {', '.join(unknown)}: is it newer?")
        if missing := sorted({"resolution", "n_classes"} - set(values)):
            raise utils.UserError(f"the model's config lacks {', '.join(missing)}")
        return cls(**values)

    @classmethod
    def from_args(cls, args, resolution, n_classes):
        """The config of parsed flags, for data of this resolution (pixels) and class count."""
        options = {f.name: getattr(args, f.name) for f in _option_fields()}
        return cls(resolution=resolution, n_classes=n_classes, **options)


def _option_fields():
    return [f for f in dataclasses.fields(ModelConfig) if "help" in f.metadata]


def add_model_args(parser):
    """Add one flag per field of ModelConfig."""
    group = parser.add_argument_group("model")
    for f in _option_fields():
        kwargs = {"default": f.default, "help": f.metadata["help"]}
        if f.type is bool:
            kwargs["action"] = argparse.BooleanOptionalAction
        elif f.type is tuple:
            kwargs |= {"type": _numbers, "metavar": "N-N"}
        else:
            kwargs |= {"type": f.type, "choices": f.metadata["choices"]}
        group.add_argument(f"--{f.name}", **kwargs)
    group.add_argument("--D_thin", dest="D_wide", action="store_false", help="the same as --no-D_wide")
