"""How other codebases store, name and compute their networks, and the rewrites that make ours compute the same.

Their keys become names of one scheme, close to ours (`canonical`); each layer becomes a `Layer`; and differences in
computation become rewrites of the weights, exact up to rounding. convert.py does the rest.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

import utils
from conversion import reading
from torch_utils import checkpoints

SOURCES = {
    "ssm": "the published spatial self-modulation code",
    "ajbrock": "BigGAN-PyTorch's BigGAN and BigGANdeep (SNGAN and SAGAN among them)",
    "studiogan": "PyTorch-StudioGAN's resnet, big_resnet, big_resnet_deep_legacy and _studiogan",
    "mmgen": "mmgeneration's SNGAN, SAGAN, BigGAN and BigGANDeep",
    "huggingface": "pytorch-pretrained-BigGAN's generators",
}
# What DataParallel, torch.compile, FSDP and activation checkpointing put into the keys of what they wrap, anywhere and
# in any order; averages (torch.optim.swa_utils) also store how often they were updated, as `n_averaged`.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# What spectral norm divides by there, and what our u and v therefore are.
_PLAIN = "u'Wv of the stored vectors, which evaluation uses as they are"
_ONE_STEP = "one power iteration from the stored vector in every forward: done once, its u and v stored"
SPECTRAL_NORM = {
    "ssm": _ONE_STEP,
    "ajbrock": _ONE_STEP,
    "studiogan": "its evaluation does one more power iteration first: done, and the new u and v stored",
    "mmgen": f"torch's: {_PLAIN}; BigGAN-PyTorch's: {_ONE_STEP}",
    "huggingface": _PLAIN,
}
# Fields that neither keys nor shapes tell (D_num_down: only in part).
NOT_IN_WEIGHTS = ("BN_eps", "output_BN_eps", "SN_eps", "D_relu_shortcut", "D_num_down", "D_pool")


def defaults(source: str, is_sngan: bool) -> dict:
    """Values that these fields have in a codebase. BN_eps is the output's too where `output_BN_eps` is not among them.

    is_sngan: whether an mmgeneration model is an SNGAN or SAGAN.
    """
    if source == "studiogan":
        return {"BN_eps": 1e-4, "SN_eps": 1e-6, "D_relu_shortcut": True}
    if source == "mmgen":
        return {"BN_eps": 1e-4 if is_sngan else 1e-5, "SN_eps": 1e-12 if is_sngan else 1e-6}
    if source == "huggingface":
        return {"BN_eps": 1e-4, "SN_eps": 1e-4}
    return {"BN_eps": 1e-5, "output_BN_eps": 1e-5, "SN_eps": 1e-8}


# What truncating z means there: a kind of sampling.latents.TRUNCATION_KINDS.
TRUNCATION_KIND = {
    "ssm": "scaled_normal",
    "ajbrock": "scaled_normal",
    "studiogan": "truncated_normal",
    "mmgen": "clamped_normal",
    "huggingface": "scaled_truncated_normal",
}


def read_networks(path: str | Path, source: str) -> dict[str, dict]:
    """State dicts of a codebase's own file or folder, or of a {"G": ..., "D": ...} file: {"G" | "G_ema" | "D": dict}.

    Raises: utils.UserError if there is none, more than one of a kind in the folder, or a weight that is not finite.
    """
    path = Path(path)
    files = _files_of_folder(path, source) if path.is_dir() else {None: path}
    networks = {}
    for name, file in files.items():
        networks |= _networks_of_file(file, name, source)
    for kind, state in networks.items():
        checkpoints.check_finite(state, path, kind)
    return networks


def _files_of_folder(folder, source):
    patterns = {
        "studiogan": {"G": "model=G-*.pth", "G_ema": "model=G_ema-*.pth", "D": "model=D-*.pth"},
        "huggingface": {"G": "*.bin"},
        "mmgen": {None: "*.pth"},
    }.get(source, {"G": "G.pth", "G_ema": "G_ema.pth", "D": "D.pth"})
    files = {}
    for name, pattern in patterns.items():
        found = sorted(folder.glob(pattern))
        found = [file for file in found if "best" in file.name] or found
        if len(found) > 1:
            raise utils.UserError(f"{folder} holds {', '.join(file.name for file in found)}: name one of them")
        if found:
            files[name] = found[0]
    if not files:
        raise utils.UserError(f"{folder} holds no {' or '.join(patterns.values())}: name the file itself")
    return files


def _networks_of_file(file, name, source):
    content, unread = reading.load(file)
    if unread:
        print(f"note: of {file} only tensors are read, nothing of {utils.listed(unread)}")
    if not isinstance(content, dict):
        raise utils.UserError(f"{file} holds no state dict, but {_kind(content)}; {reading.REMEDY}")
    kinds = ("G", "G_ema", "D")
    if any(isinstance(content.get(kind), dict) for kind in kinds):
        return {kind: _state(content[kind], file) for kind in kinds if isinstance(content.get(kind), dict)}
    state = _state(content.get("state_dict", content), file)
    prefixes = {"generator.": "G", "generator_ema.": "G_ema", "discriminator.": "D"} if source == "mmgen" else {}
    networks = {}
    for prefix, kind in prefixes.items():
        if part := {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}:
            networks[kind] = part
    if networks:
        if ignored := [key for key in state if not key.startswith(tuple(prefixes))]:
            raise utils.UserError(f"{file} holds more than networks: {', '.join(ignored)}")
        return networks
    is_D = any(key.startswith(("embed.", "linear1.", "decision.", "input_conv.")) for key in state)
    return {name or ("D" if is_D else "G_ema" if "ema" in file.stem.lower() else "G"): state}


def _state(content, file):
    """The tensors of a state dict, by their keys without what wrappers of modules put into these.

    Raises: utils.UserError if there are none, or two of one key.
    """
    entries = content if isinstance(content, dict) else {}
    tensors = {key: value for key, value in entries.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        found = [f"{key} ({_kind(value)})" for key, value in entries.items()] or [_kind(content)]
        raise utils.UserError(f"{file} holds no state dict of tensors, but {utils.listed(found)}; {reading.REMEDY}")
    state = {".".join(part for part in str(key).split(".") if part not in WRAPPERS): key for key in tensors}
    if len(state) < len(tensors):
        twice = next(key for key in tensors if key not in state.values())
        raise utils.UserError(f"{file}: {twice} is there a second time, but for {' or '.join(WRAPPERS)} in its name")
    return {key: tensors[theirs] for key, theirs in state.items() if key != "n_averaged"}


def _kind(value):
    return type(value).__name__


# ---------------------------------------------------------------------------------------------------------------------
# Names. Blocks, attention among them, are numbered in the order in which they are computed: `blocks.<n>.`.

_ATTENTION_AND_FAMILY = [
    (r"\.bn\.", "."),
    (r"^output_layer\.0\.", "output_bn."),
    (r"^output_layer\.2\.", "output_conv."),
    (r"\.stored_", ".running_"),
    (r"(bn\d?)\.gain$", r"\1.weight"),  # a vector: plain batch norm
    (r"^spatial_modulation_shared\.", "ssm.embedding."),
    (r"^spatial_modulation_linear\.", "ssm.linear."),
    (r"^spatial_modulation_blocks\.(\d+)\.0\.", r"ssm.stages.\1."),
    (r"^(ssm.*\.)(?:voxelwise_a_)?modulation\.", r"\1gain."),
    (r"^(ssm.*\.)voxelwise_b_modulation\.", r"\1bias."),
    (r"^(ssm.*\.)global_a_modulation\.1\.", r"\1global_gain."),
    (r"^(ssm.*\.)global_b_modulation\.1\.", r"\1global_bias."),
]
BLOCKS = {
    **dict.fromkeys(("ssm", "ajbrock", "studiogan"), r"^blocks\.(\d+)\.(\d+)\."),
    "mmgen": r"^(?:conv_blocks\.(\d+)|from_rgb)\.",
    "huggingface": r"^generator\.layers\.(\d+)\.",
}
RENAMES = {
    "ssm": _ATTENTION_AND_FAMILY,
    "ajbrock": _ATTENTION_AND_FAMILY,
    "studiogan": [
        (r"^linear[01]\.", "linear."),
        (r"^embedding\.", "embed."),
        (r"^bn4\.", "output_bn."),
        (r"^conv2d5\.", "output_conv."),
        (r"\.conv2d0\.", ".conv_sc."),
        (r"\.conv2d(\d)\.", r".conv\1."),
        (r"\.bn\.", "."),
        (r"\.conv1x1_attn\.", ".o."),
        (r"\.conv1x1_", "."),
        (r"\.sigma$", ".gamma"),
    ],
    "mmgen": [
        (r"^noise2feat\.", "linear."),
        (r"^shared_embedding\.", "shared."),
        (r"^(?:to_rgb|output_layer)\.(bn|conv)\.", r"output_\1."),
        (r"^decision\.", "linear."),
        (r"^proj_y\.", "embed."),
        (r"\.shortcut\.", ".conv_sc."),
        (r"\.conv_(\d)\.", r".conv\1."),
        (r"\.norm_(\d)\.", r".bn\1."),
        (r"\.(?:conv|norm|bn)\.", "."),
        (r"\.weight_embedding\.", ".gain."),
        (r"\.bias_embedding\.", ".bias."),
    ],
    "huggingface": [
        (r"^embeddings\.", "shared."),
        (r"^generator\.gen_z\.", "linear."),
        (r"^generator\.bn\.", "output_bn."),
        (r"^generator\.conv_to_rgb\.", "output_conv."),
        (r"\.(bn|conv)_(\d)\.", lambda match: f".{match[1]}{int(match[2]) + 1}."),
        (r"\.scale\.", ".gain."),
        (r"\.offset\.", ".bias."),
        (r"\.running_(mean|var)s$", r".running_\1"),
        (r"\.snconv1x1_o_conv\.", ".o."),
        (r"\.snconv1x1_", "."),
    ],
}


def canonical(state: dict, source: str) -> tuple[dict, dict]:
    """Foreign keys to names: {module: {leaf: tensor}}, and {(module, leaf): their key}."""
    found = {key: re.match(BLOCKS[source], key) for key in state}
    # mmgeneration's from_rgb has no number: it comes first.
    place = {key: tuple(int(n or -1) for n in match.groups()) for key, match in found.items() if match}
    order = {position: n for n, position in enumerate(sorted(set(place.values())))}
    modules, origins = {}, {}
    for key, tensor in state.items():
        name = f"blocks.{order[place[key]]}.{key[found[key].end() :]}" if key in place else key
        for pattern, replacement in RENAMES[source]:
            name = re.sub(pattern, replacement, name)
        module, _, leaf = name.rpartition(".")
        modules.setdefault(module, {})[leaf] = tensor
        origins[module, leaf] = key
    return modules, origins


# ---------------------------------------------------------------------------------------------------------------------
# Layers


@dataclass(frozen=True)
class Layer:
    """A weight (rows, columns, ...), its spectral norm's u (rows,) and v (columns * ...,) or None, and its bias."""

    weight: torch.Tensor
    u: torch.Tensor | None = None
    v: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    @property
    def sigma(self) -> float | torch.Tensor:
        return 1.0 if self.u is None else self.u @ (self.weight.flatten(1) @ self.v)

    def iterated(self) -> "Layer":
        """After one power iteration."""
        v = F.normalize(self.weight.flatten(1).t() @ self.u, dim=0)
        return replace(self, u=F.normalize(self.weight.flatten(1) @ v, dim=0), v=v)

    def baked(self) -> "Layer":
        """Without spectral norm: the weight that it used."""
        return Layer(self.weight / self.sigma, bias=self.bias)

    def scaled_to(self, sigma: float | torch.Tensor) -> "Layer":
        """With vectors that give this sigma: v the leading one, u not of unit length (as it is not in averages)."""
        W = self.weight.flatten(1)
        v = torch.linalg.svd(W, full_matrices=False)[2][0]
        return replace(self, u=W @ v * (sigma / (W @ v).square().sum()), v=v)

    def transposed(self) -> "Layer":
        return replace(self, weight=self.weight.t(), u=self.v, v=self.u)

    def rows(self, index: slice | list | torch.Tensor) -> "Layer":
        """Rows in another order."""
        u, bias = (None if x is None else x[index] for x in (self.u, self.bias))
        return Layer(self.weight[index], u, self.v, bias)

    def columns(self, index: list | torch.Tensor) -> "Layer":
        """Input channels in another order."""
        v = None if self.v is None else self.v.view(self.weight.shape[1:])[index].flatten()
        return replace(self, weight=self.weight[:, index], v=v)


def read_layer(leaves: dict, iterate: bool) -> Layer:
    """A layer in double precision; the spectral norm's encoding is told by its keys.

    torch's: weight_orig, weight_u, weight_v, used as they are, or with `iterate` after one more power iteration.
    BigGAN-PyTorch's: weight and u0 (1,rows), after one power iteration in every forward; sv0 is a log value.
    """
    leaves = {name: tensor.double() for name, tensor in leaves.items()}
    bias = leaves.get("bias")
    if "weight_orig" in leaves:
        layer = Layer(leaves["weight_orig"], leaves["weight_u"], leaves["weight_v"], bias)
        return layer.iterated() if iterate else layer
    if "u0" in leaves:
        return Layer(leaves["weight"], leaves["u0"].flatten(), None, bias).iterated()
    return Layer(leaves["weight"], bias=bias)


class Weights:
    """A foreign network's weights by name: `layers` (Layer), and `others`, the tensors of norms and attention gains."""

    LAYER = ({"weight_orig", "weight_u", "weight_v"}, {"weight", "u0", "sv0"}, {"weight"})  # leaves of a layer

    def __init__(self, state: dict, source: str):
        modules, self.origins = canonical(state, source)
        self.is_sngan = any(key.startswith(("from_rgb.", "to_rgb.")) for key in state)  # or SAGAN, of mmgeneration
        self.layers, self.others = {}, {}
        for name, leaves in modules.items():
            weight = leaves.get("weight_orig", leaves.get("weight"))
            if weight is not None and weight.ndim > 1 and leaves.keys() - {"bias"} in self.LAYER:
                try:
                    self.layers[name] = read_layer(leaves, iterate=source == "studiogan")
                except RuntimeError as error:
                    raise utils.UserError(f"{name}: its tensors do not fit one another") from error
            else:
                self.others[name] = dict(leaves)

    def rewrite(self, pattern: str, function: Callable[[Layer], Layer]) -> None:
        """Replace each layer whose name matches `pattern` by function(layer)."""
        self.layers |= {name: function(layer) for name, layer in self.layers.items() if re.search(pattern, name)}

    def blocks(self) -> tuple[list[int], set[int]]:
        """Numbers of the residual blocks, and of those that attention follows."""
        numbers = {int(name.split(".")[1]) for name in self.layers if name.startswith("blocks.")}
        attention = {n for n in numbers if f"blocks.{n}.theta" in self.layers}
        return sorted(numbers - attention), {n - 1 for n in attention}

    @property
    def joint(self) -> bool:
        """Whether G's conditions hold z beside the shared class embedding."""
        gain, shared = (self.layers.get(name) for name in ("blocks.0.bn1.gain", "shared"))
        return None not in (gain, shared) and gain.weight.shape[1] > shared.weight.shape[1]

    def width(self, name: str, axis: int = 0) -> int:
        """Rows (axis 0) or columns of a layer. Raises: utils.UserError if it is missing."""
        if name not in self.layers:
            theirs = [key for (module, _), key in self.origins.items() if module == name] or ["no part of it is there"]
            raise utils.UserError(f"the weights of {name} are missing or incomplete: {', '.join(theirs)}")
        return self.layers[name].weight.shape[axis]


# ---------------------------------------------------------------------------------------------------------------------
# Rewrites of what is computed differently

CONDITIONAL = r"\.bn\d\.(gain|bias)$"


def rewrite_generator(weights: Weights, source: str, truncation: float, gain_offset: int | None, bgr: bool) -> None:
    """Make the weights compute with our operations what they do with their own.

    truncation: for which a table of running statistics (huggingface) is read; gain_offset: mmgeneration's gain of
    conditional batch norm is this (0 or 1) plus the embedding, None: seen from the embeddings; bgr: the images are BGR.
    """
    for other in weights.others.values():
        _choose_statistics(other, truncation)
    if source == "huggingface":
        weights.rewrite(r"^shared$", Layer.transposed)
        # Of as many outputs as inputs only the first three are the image, but all take part in the spectral norm.
        weights.rewrite(r"^output_conv$", lambda layer: layer.rows(slice(3)).scaled_to(layer.sigma))
    if source == "studiogan" and "shared" not in weights.layers:  # linear layers of one-hot labels
        weights.rewrite(CONDITIONAL, Layer.transposed)
    if source in ("huggingface", "mmgen") and "blocks.0.conv3" in weights.layers:
        _reorder_deep(weights)
    if "shared" not in weights.layers:  # our embeddings have no spectral norm
        gain_offset = _gain_offset(weights) if gain_offset is None else gain_offset
        weights.rewrite(CONDITIONAL, Layer.baked)
        if source == "mmgen" and gain_offset == 0:  # ours is 1 + embedding
            weights.rewrite(r"\.bn\d\.gain$", lambda layer: replace(layer, weight=layer.weight - 1))
    if bgr:
        weights.rewrite(r"^output_conv$", lambda layer: layer.rows([2, 1, 0]))


def _choose_statistics(norm, truncation):
    """Running statistics in place, where a norm holds sums of them, or a table by truncation."""
    if norm.get("accumulation_counter") is not None:
        count = norm.pop("accumulation_counter").item()  # sums of standing statistics, or 0
        for name in ("running_mean", "running_var") if count else ():
            norm[name] = norm[name] / count
    for name in ("running_mean", "running_var"):
        if name in norm and norm[name].ndim == 2:  # (truncations,C): 0 to 1 in equal steps
            table = norm[name]
            share, slot = math.modf(truncation / (1 / (len(table) - 1)))
            norm[name] = table[int(slot)]
            if share:  # their interpolation has the two weights swapped, and so must ours
                norm[name] = share * table[int(slot)] + (1 - share) * table[int(slot) + 1]


def _reorder_deep(weights):
    """Conditions [z, class] to [class, z], and the first feature map from (H,W,C) to (C,H,W)."""
    channels = weights.width("blocks.0.conv1", 1)
    rows, columns = weights.layers["linear"].weight.shape
    weights.rewrite(r"^linear$", lambda layer: layer.rows(torch.arange(rows).view(-1, channels).t().flatten()))
    if weights.joint:
        class_first = torch.arange(columns).roll(weights.width("shared", 1))
        for pattern in (r"^linear$", CONDITIONAL):
            weights.rewrite(pattern, lambda layer: layer.columns(class_first))


def _gain_offset(weights):
    """1 where the gain is 1 + embedding, 0 where it is the embedding: seen from where those are centred."""
    gains = [layer.weight.mean() for name, layer in weights.layers.items() if name.endswith(".gain")]
    return 0 if gains and torch.stack(gains).mean() > 0.5 else 1


def rewrite_discriminator(weights: Weights, bgr: bool) -> None:
    if bgr:
        first = r"^input_conv$" if "input_conv" in weights.layers else r"^blocks\.0\.(conv1|conv_sc)$"
        weights.rewrite(first, lambda layer: layer.columns([2, 1, 0]))
