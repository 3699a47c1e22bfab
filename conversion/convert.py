"""A checkpoint of another codebase to one of ours.

The architecture is read off the names and shapes of the weights (`infer_generator`, `infer_discriminator`), which
peers.py has brought into one scheme; then each layer of our networks takes its weights (`fill`).
"""

import argparse
import dataclasses
import math

import torch
from torch import nn

import BigGAN
import layers
import utils
from conversion import peers
from model_config import D_MULTIPLIERS, G_MULTIPLIERS, ModelConfig
from torch_utils import checkpoints


def infer_generator(weights: peers.Weights, fields: dict) -> dict:
    """Fields of ModelConfig that a generator's weights determine, given those set by hand."""
    blocks, attention = weights.blocks()
    deep = "blocks.0.conv3" in weights.layers
    outputs = [weights.width(f"blocks.{n}.{'conv4' if deep else 'conv2'}") for n in blocks]
    inputs = [weights.width(f"blocks.{n}.conv1", 1) for n in blocks]
    depth = (fields.get("G_depth") or _depth_of_generator(inputs, outputs)) if deep else 1
    if len(blocks) % depth:
        raise utils.UserError(f"G_depth={depth} does not divide G's {len(blocks)} blocks")
    ends = blocks[depth - 1 :: depth]  # the last block of each stage
    if not attention <= set(ends):
        raise utils.UserError("attention between two blocks of a resolution has no place here; is G_depth right?")
    widths = (inputs[0], *outputs[depth - 1 :: depth])
    bottom_width = math.isqrt(weights.width("linear") // widths[0])
    ch, mult = _multipliers(widths, G_MULTIPLIERS.get(len(ends)))
    found = {
        "model": "BigGANdeep" if deep else "BigGAN",
        "bottom_width": bottom_width,
        "resolution": bottom_width * 2 ** len(ends),
        "G_ch": ch,
        "G_ch_mult": mult,
        "G_attn": tuple(bottom_width * 2 ** (i + 1) for i, n in enumerate(ends) if n in attention),
        "G_param": "none" if weights.layers["blocks.0.conv1"].u is None else "SN",
        **_infer_condition(weights, len(ends), deep),
    }
    if deep:
        style = "studiogan" if "blocks.0.conv_sc" in weights.layers else "biggan"
        found |= {"G_depth": depth, "deep_style": style}
    if "ssm.embedding" in weights.layers:
        n_classes, shared_dim = weights.layers["ssm.embedding"].weight.shape
        found |= {**_infer_ssm(weights), "shared_dim": shared_dim, "n_classes": n_classes}
    return found


def _infer_condition(weights, num_stages, deep):
    """Where z and the class enter."""
    dim = weights.width("linear", 1)
    gain = weights.layers.get("blocks.0.bn1.gain")
    if gain is None:
        return {"dim_z": dim, "G_cbn": False}
    if "shared" not in weights.layers:
        return {"dim_z": dim, "n_classes": gain.weight.shape[0]}
    n_classes, shared_dim = weights.layers["shared"].weight.shape
    if weights.joint:
        dim = dim - shared_dim if deep else dim * (num_stages + 1)
    return {"dim_z": dim, "n_classes": n_classes, "G_shared": True, "shared_dim": shared_dim, "hier": weights.joint}


def _infer_ssm(weights):
    stage = "ssm.stages.0."
    if stage + "global_gain" in weights.layers:
        return {"ssm": "global_voxel"}
    if stage + "bias" in weights.layers:
        return {"ssm": "voxel"}
    group = weights.width(stage + "conv2") // weights.width(stage + "gain")
    return {"ssm": "group_gain", "ssm_group": group} if group > 1 else {"ssm": "gain"}


def _depth_of_generator(inputs, outputs):
    """Blocks per stage: only a stage's last block changes the width, and the stages should have a known width table."""
    changes = [i for i, (a, b) in enumerate(zip(inputs, outputs, strict=True)) if a != b]
    fits = [d for d in range(1, len(inputs) + 1) if len(inputs) % d == 0 and all((i + 1) % d == 0 for i in changes)]
    known = []
    for depth in fits:
        table = G_MULTIPLIERS.get(len(inputs) // depth)
        widths = (inputs[0], *outputs[depth - 1 :: depth])
        if table and _multipliers(widths, table)[1] == table:
            known.append(depth)
    return max(known or [d for d in fits if len(inputs) // d >= 3] or fits)


def infer_discriminator(weights: peers.Weights, fields: dict, source: str) -> dict:
    """Fields of ModelConfig that a discriminator's weights determine, given those known from G and set by hand."""
    blocks, attention = weights.blocks()
    deep = "input_conv" in weights.layers
    outputs = [weights.width(f"blocks.{n}.{'conv4' if deep else 'conv2'}") for n in blocks]
    k = (fields["resolution"] // fields["bottom_width"]).bit_length() - 1 if "resolution" in fields else None
    depth = (fields.get("D_depth") or (len(blocks) // k if k and len(blocks) % k == 0 else 2)) if deep else 1
    stages = [blocks[i : i + depth] for i in range(0, len(blocks), depth)]
    ends = [stage[-1] for stage in stages]
    widths = tuple(outputs[depth - 1 :: depth])
    if deep:
        widths = (weights.width("input_conv"), *widths)
    # Without a G the resolution follows from the usual number of stages.
    resolution = fields.get("resolution") or 4 * 2 ** (len(stages) - (0 if deep else 1))
    ch, mult = _multipliers(widths, D_MULTIPLIERS.get(len(widths) - 1))
    num_down = fields.get("D_num_down") or _num_down(weights, stages, widths, deep, source)
    after = [i for i, n in enumerate(ends) if n in attention]
    found = {
        "model": "BigGANdeep" if deep else "BigGAN",
        "resolution": resolution,
        "D_ch": ch,
        "D_ch_mult": mult,
        "D_num_down": num_down,
        "D_attn": tuple(resolution // 2 ** (i + 1) for i in after if i < num_down),
        "D_attn_after": tuple(i + 1 for i in after if i >= num_down),
        "D_param": "none" if weights.layers["blocks.0.conv1"].u is None else "SN",
        "D_cond": "projection" if "embed" in weights.layers else "none",
    }
    if not attention <= set(ends):
        raise utils.UserError("attention between two blocks of a resolution has no place here; is D_depth right?")
    if "embed" in weights.layers:
        found["n_classes"] = weights.width("embed")
    if deep:
        found |= {"D_depth": depth, "deep_style": "studiogan" if _full_shortcuts(weights) else "biggan"}
    else:
        found["D_wide"] = weights.width("blocks.0.conv1") != 3
    return found


def _full_shortcuts(weights):
    """Whether deep blocks' shortcut convolutions give all of the channels, as StudioGAN's do."""
    names = [name for name in weights.layers if name.endswith(".conv_sc")]
    return any(weights.width(name) == weights.width(name.replace("conv_sc", "conv4")) for name in names)


def _num_down(weights, stages, widths, deep, source):
    """How many stages halve the size: a stage that has no shortcut convolution keeps it, save in BigGAN-deep."""
    if deep and not _full_shortcuts(weights):  # pooling leaves no trace
        return 2 if len(stages) == 3 else len(stages)
    shortcuts = [f"blocks.{stage[0]}.conv_sc" in weights.layers for stage in stages]
    count = (shortcuts + [False]).index(False)
    # A last block that changes the width has one too: it keeps the size, but for mmgeneration's SNGAN at 64.
    last_keeps = not deep and not (source == "mmgen" and weights.is_sngan)
    return count - 1 if count == len(stages) and last_keeps else count


def _multipliers(widths, table):
    """(channel multiplier, multiples), those of the usual table if the widths have its proportions."""
    if table and widths == tuple(widths[0] // table[0] * multiple for multiple in table):
        return widths[0] // table[0], tuple(table)
    ch = math.gcd(*widths)
    return ch, tuple(w // ch for w in widths)


def fill(network: nn.Module, weights: peers.Weights) -> dict:
    """The state dict of one of our networks (it may be on the meta device) with a foreign network's weights, float32.

    Raises: utils.UserError that lists the weights that are missing, of another shape, or left over.
    """
    state, problems = {}, []
    left = dict(weights.layers)
    left_others = {name: dict(tensors) for name, tensors in weights.others.items()}
    numbers = _block_numbers(network)
    for ours, module in network.named_modules():
        block = next((block for block in numbers if f"{ours}.".startswith(f"{block}.")), "")
        name = ours.replace(block, numbers[block], 1) if block else ours
        if isinstance(module, layers.SpectralNorm):
            tensors = _tensors_of(left.pop(name, None), module)
        elif isinstance(module, nn.BatchNorm2d | layers.SelfAttention):
            # Our conditional batch norm keeps its statistics in a part of its own.
            tensors = left_others.pop(name.removesuffix(".bn"), {})
            tensors.setdefault("num_batches_tracked", torch.zeros(()))
        else:
            continue
        for leaf, like in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            tensor = tensors.pop(leaf, None)
            if tensor is None:
                problems.append(f"{ours}.{leaf} is missing")
            elif tensor.shape != like.shape and not tensor.numel() == like.numel() == 1:
                problems.append(f"{ours}.{leaf} has the shape {tuple(tensor.shape)}, not {tuple(like.shape)}")
            else:
                state[f"{ours}.{leaf}"] = tensor.reshape(like.shape).to(like.dtype, copy=True).contiguous()
        problems += [f"{ours}.{leaf} is not used" for leaf in tensors if leaf != "num_batches_tracked"]
    unused = [key for (module, _), key in weights.origins.items() if module in left or module in left_others]
    problems += [f"{key} is not used" for key in unused]
    if problems:
        raise utils.UserError(f"these weights do not fit the {type(network).__name__}: {'; '.join(problems)}")
    return state


def _tensors_of(layer, module):
    """The tensors of a Layer for one of our layers, which may differ from it in having spectral norm."""
    if layer is None:
        return {}
    if not module.sn:
        layer = layer.baked()
    elif layer.u is None:
        layer = layer.scaled_to(1.0)
    return {name: tensor for name, tensor in vars(layer).items() if tensor is not None}


def _block_numbers(network):
    """Our names of blocks, to those of `peers.canonical` where these differ."""
    if not isinstance(network, BigGAN.Generator):
        return {}
    ours = [f"stages.{s}.{i}" for s, stage in enumerate(network.stages) for i in range(len(stage))]
    return {name: f"blocks.{n}" for n, name in enumerate(ours)}


def convert(
    networks: dict,
    source: str,
    overrides: dict,
    truncation: float = 1,
    gain_offset: int | None = None,
    bgr: bool = False,
) -> dict:
    """A checkpoint of ours.

    Args: networks: as from `peers.read_networks`; source: a key of peers.SOURCES; overrides: values of
        fields of ModelConfig; truncation: for which huggingface's batch-norm statistics are taken; gain_offset: see
        `peers.rewrite_generator`; bgr: whether the images there are BGR.
    Raises: utils.UserError if the weights do not fit a model of ours.
    """
    weights = {}
    for kind, state in networks.items():
        weights[kind] = peers.Weights(state, source)
        if "blocks.0.conv1" not in weights[kind].layers or "linear" not in weights[kind].layers:
            raise utils.UserError(f"{kind} is not a network of {peers.SOURCES[source]}")
        if kind == "D":
            peers.rewrite_discriminator(weights[kind], bgr)
        else:
            peers.rewrite_generator(weights[kind], source, truncation, gain_offset, bgr)
    fields = {}
    for kind, part in weights.items():
        known = fields | overrides
        found = infer_discriminator(part, known, source) if kind == "D" else infer_generator(part, known)
        for name in found.keys() & fields.keys() - overrides.keys():
            if found[name] != fields[name]:
                raise utils.UserError(f"the networks disagree: {name} is {fields[name]}, and in {kind} {found[name]}")
        fields |= found
    defaults = peers.defaults(source, any(w.is_sngan for w in weights.values()))
    fields = {"n_classes": 1, **defaults, **fields, **overrides}
    if source not in ("ssm", "ajbrock"):  # there BN_eps is not for the output's batch norm, which has 1e-5
        fields.setdefault("output_BN_eps", fields["BN_eps"])
    config = ModelConfig(**fields)
    with torch.device("meta"):
        G, D = BigGAN.build(config)
    states = {kind: fill(D if kind == "D" else G, part) for kind, part in weights.items()}
    return {
        "format": checkpoints.FORMAT,
        "step": 0,
        "images_seen": 0,
        "model_config": config.to_dict(),
        "class_names": [str(i) for i in range(config.n_classes)],
        "args": {},
        "best": None,
        "convention": {
            "source": source,
            "channel_order": "RGB",
            "channel_order_there": "BGR" if bgr else "RGB",
            "truncation_kind": peers.TRUNCATION_KIND[source],
            "truncation": truncation if source == "huggingface" else None,
            "spectral_norm": peers.SPECTRAL_NORM[source],
        },
        **{kind: states.get(kind) for kind in ("G", "G_ema", "D")},
    }


def parse_field(name: str, text: str):
    """The value of a field of ModelConfig from text, as its flag reads it; booleans are true or false.

    Raises: utils.UserError.
    """
    fields = {field.name: field for field in dataclasses.fields(ModelConfig)}
    if name not in fields:
        raise utils.UserError(f"{name} is not a field of ModelConfig; those are {', '.join(fields)}")
    kind, choices, reads = fields[name].type, *(fields[name].metadata.get(key) for key in ("choices", "kind"))
    try:
        if kind is bool:
            value = {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        else:
            value = (reads or (utils.number_list if kind is tuple else kind))(text)
    except (KeyError, ValueError, argparse.ArgumentTypeError) as error:
        raise utils.UserError(f"{name}={text}: not a value of this field") from error
    if choices and value not in choices:
        raise utils.UserError(f"{name}={text}: choose from {', '.join(choices)}")
    return value
