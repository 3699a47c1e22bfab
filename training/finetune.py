"""Fine-tuning: G, D and the moving average of G start from a checkpoint, also for other classes than its own.

Only weights are taken over; optimizers, steps and best scores start anew. Whatever has a row per class (every
`layers.Embedding`, with its spectral-norm vectors) is made again where the classes are others: each row is the old row
that --class_mapping names, without it that of the class of the same name, or else the mean of the old rows.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import layers
import utils
from image_datasets.image_sets import ImageSet
from model_config import ModelConfig
from torch_utils import checkpoints
from training.ema import MovingAverage
from utils import Options, counted, option


@dataclass(frozen=True)
class FinetuneOptions(Options):
    """Which weights to start from."""

    title = "fine-tuning"

    init_from: str | None = option(
        None,
        "checkpoint or run folder whose weights to start from; model flags that are not given are its own",
        metavar="CKPT",
    )
    class_mapping: str | None = option(
        None,
        "JSON object {new class: old class}, each by name or number; classes it leaves out start from the mean "
        "(without it, classes of the same name are taken over)",
        metavar="FILE",
    )
    freeze_D: int = option(
        0, "first blocks of D that stay as they are (FreezeD; attention goes with its block)", kind=utils.count
    )


@dataclass(frozen=True)
class Source:
    """A checkpoint to start from; a state dict is None where it has none, but G is never (else that of G_ema)."""

    path: str
    step: int
    config: ModelConfig
    class_names: list
    G: dict
    D: dict | None
    G_ema: dict | None

    @property
    def model_options(self) -> dict:
        """As `model_options`."""
        return model_options(self.config)


def model_options(config: ModelConfig) -> dict:
    """The options of a checkpoint's model as defaults of the flags of that name."""
    options = {name: getattr(config, name) for name in config.to_dict()}
    if config.n_classes == 1:  # its D had no classes to see; that is no wish for data that has some
        del options["D_cond"]
    return {name: value for name, value in options.items() if name not in ("resolution", "n_classes")}


def read_source(path: str | Path) -> Source:
    """The Source of --init_from: a file, or the newest full checkpoint of a run folder. Raises: utils.UserError."""
    checkpoint, path = checkpoints.read_model(path, kinds=("ckpt", "best"))
    G, G_ema = checkpoint.get("G"), checkpoint.get("G_ema")
    if G is None and G_ema is None:
        raise utils.UserError(f"--init_from {path}: the checkpoint holds no generator")
    for name in ("G", "G_ema", "D"):
        checkpoints.check_finite(checkpoint.get(name) or {}, path, name)
    config = ModelConfig.from_dict(checkpoint["model_config"])
    names = checkpoint.get("class_names") or [str(i) for i in range(config.n_classes)]
    return Source(str(path), checkpoint.get("step", 0), config, names, G or G_ema, checkpoint.get("D"), G_ema)


def check_resolution(source: Source, dataset: ImageSet) -> None:
    """Raise utils.UserError unless the source's images are of the data set's size."""
    if source.config.resolution != dataset.resolution:
        raise utils.UserError(
            f"--init_from {source.path} is of {source.config.resolution}x{source.config.resolution} images, "
            f"{dataset.path} of {dataset.resolution}x{dataset.resolution}: make the data at its --resolution"
        )


def check_frozen(number: int, source: Source, D: nn.Module) -> None:
    """Raise utils.UserError unless D has so many blocks, all of them from the source.

    D: of the run's config, which is frozen in place: one on the meta device will do.
    """
    D.freeze(number)
    if number and source.D is None:
        raise utils.UserError(
            f"--freeze_D {number}: {source.path} holds the generator alone, and D's first blocks would stay random; "
            "name a full checkpoint (ckpt_*.pth)"
        )
    anew = [name for name, p in D.named_parameters() if not p.requires_grad and name not in source.D]
    if anew:
        raise utils.UserError(
            f"--freeze_D {number}: {anew[0]} of D is not in {source.path}, and would stay random; freeze fewer blocks"
        )


class ClassRows(NamedTuple):
    """Which old class each new one starts from: a list of old ids, None for the mean of all; and why these."""

    rows: list
    how: str


def class_rows(source: Source, class_names: list, mapping_path: str | None = None) -> ClassRows:
    """The rows that a mapping file names, else those of the classes of the same name.

    Where none has the same name, or the classes of one side are only numbered, as many classes are taken for the same
    ones, in their order; of another number all start from the mean.
    Raises: utils.UserError for a mapping file that is not an object of known classes.
    """
    if mapping_path is not None:
        return ClassRows(_mapped_rows(source, class_names, mapping_path), f"by {mapping_path}")
    n = len(class_names)
    if _are_names(class_names) and _are_names(source.class_names):
        rows = [source.class_names.index(name) if name in source.class_names else None for name in class_names]
        if found := n - rows.count(None):
            return ClassRows(rows, f"by name, {found:,} of {n:,} found")
    if n == source.config.n_classes:
        return ClassRows(list(range(n)), "by number, as there are as many; --class_mapping says otherwise")
    return ClassRows([None] * n, "none; --class_mapping names those to take over")


def _are_names(class_names):
    """Whether classes have names, and not only their numbers."""
    return class_names != [str(i) for i in range(len(class_names))]


def _mapped_rows(source, class_names, mapping_path):
    mapping = utils.load_json(mapping_path)
    if not isinstance(mapping, dict):
        raise utils.UserError(f"--class_mapping {mapping_path}: not a JSON object such as {{'new class': 'old class'}}")
    rows = [None] * len(class_names)
    for new, old in mapping.items():
        i = _class_id(new, class_names, f"--class_mapping {mapping_path}: the data set")
        if rows[i] is not None:
            raise utils.UserError(f"--class_mapping {mapping_path}: class {class_names[i]} is there twice")
        rows[i] = _class_id(old, source.class_names, f"--class_mapping {mapping_path}: {source.path}")
    return rows


def _class_id(value, names, owner):
    """The id of a class given by name or else by number."""
    text = str(value)
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    raise utils.UserError(
        f"{owner} has no class {text!r}; it has {counted(len(names), 'class')}: {utils.listed(names)}"
    )


def start_from(source: Source, G: nn.Module, D: nn.Module, average: MovingAverage | None, rows: list) -> dict:
    """Load what fits of a Source into G, D and the moving average of G (ema.MovingAverage or None), in place.

    Args: rows: those of `class_rows`. A network of which the source has nothing stays as it is.
    Returns: {"G": report, "D": report}, a report being a dict of the state dict's names that were `loaded`, `remade`
        (a row per class), started `anew` (not in the source) and, of the source's own, `ignored`.
    Raises: utils.UserError if a tensor of the same name has another shape, with the flags that differ.
    """
    report = {"G": _load(G, source.G, source, rows)}
    if average:
        _load(average.module, source.G_ema or source.G, source, rows)
    report["D"] = _load(D, source.D or {}, source, rows)
    return report


def _load(network, old, source, rows):
    other_classes = rows != list(range(source.config.n_classes))
    class_layers = {name for name, layer in network.named_modules() if isinstance(layer, layers.Embedding)}
    remade = {name for name in old if other_classes and name.rpartition(".")[0] in class_layers}
    new = network.state_dict()
    for name in [name for name in new if name in old]:
        if name not in remade:
            value = old[name]
        elif name.endswith(".weight"):
            value = _class_weight(old[name], rows)
        else:
            value = new[name]  # of spectral norm: see below
        if value.shape != new[name].shape:
            _refuse(network, name, value, new[name], source)
        new[name] = value
    network.load_state_dict(new)
    layers.settle(network.get_submodule(name.removesuffix(".weight")) for name in remade if name.endswith(".weight"))
    return {
        "loaded": [name for name in new if name in old and name not in remade],
        "remade": [name for name in new if name in remade],
        "anew": [name for name in new if name not in old],
        "ignored": [name for name in old if name not in new],
    }


def _class_weight(old, rows):
    """The (K',C) rows of new classes from those (K,C) of the old ones."""
    mean = old.mean(0)
    return torch.stack([mean if row is None else old[row] for row in rows])


def _refuse(network, name, old, new, source):
    here, there = network.config.to_dict(), source.config.to_dict()
    differ = [f"--{k} was {there[k]} and is {here[k]}" for k in here if here[k] != there[k] and k != "n_classes"]
    raise utils.UserError(
        f"--init_from {source.path}: {name} of its {type(network).__name__} is {tuple(old.shape)}, here it is "
        f"{tuple(new.shape)}; {'; '.join(differ) or 'its config is not that of its weights'}"
    )


def describe(source: Source, report: dict, classes: ClassRows) -> list[str]:
    """Lines for the user: what was loaded, made again, started anew and ignored."""
    rows, means = classes.rows, classes.rows.count(None)
    lines = [
        f"start from {source.path}: step {source.step}, {counted(source.config.n_classes, 'class')}",
        f"  classes taken over: {classes.how}",
    ]
    for network, parts in report.items():
        if not parts["loaded"] and not parts["remade"]:
            lines.append(f"  {network}: the checkpoint has none, it starts anew")
            continue
        lines.append(f"  {network}: {counted(len(parts['loaded']), 'tensor')} loaded")
        if parts["remade"]:
            origin = f"{counted(len(rows) - means, 'row')} copied, {means} the mean of the old ones"
            number = counted(len(rows), "class")
            lines.append(f"  {network}: made again for {number} ({origin}): {utils.listed(parts['remade'])}")
        if parts["anew"]:
            lines.append(f"  {network}: not in the checkpoint, started anew: {utils.listed(parts['anew'])}")
        if parts["ignored"]:
            lines.append(f"  {network}: in the checkpoint only, ignored: {utils.listed(parts['ignored'])}")
    return lines
