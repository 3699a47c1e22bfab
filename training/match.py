"""`train.py --match`: the G_ch at which a configuration costs what another does.

A cost is that of a whole training iteration, of G and D: what a user pays. D stays as it is; where both have the same D
and batches, G's cost alone is about the same too. Widths are whole numbers: where these are too coarse for any G_ch,
single ones are moved by a few channels, and told as G_ch_mult of G_ch 1.
"""

import contextlib
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import utils
from model_config import ModelConfig
from torch_utils import checkpoints
from torch_utils.distributed import resolve_device
from training import model_size
from training.options import COSTS, TrainOptions
from training.plan import assumed_config, make_plan

TOLERANCE = 0.01  # of the cost
LARGEST = 2**14  # G_ch
PARTS = 100  # of 1, in which G_ch is told
TIMINGS = 4  # of guesses, each of both configurations


@dataclass(frozen=True)
class Configuration:
    """A command, or a run, and its model."""

    options: TrainOptions
    config: ModelConfig

    def wide(self, G_ch: float, G_ch_mult: tuple | None = None) -> "Configuration":
        """Itself with other widths. Raises: utils.UserError where the model cannot have them."""
        return replace(self, config=replace(self.config, G_ch=G_ch, G_ch_mult=G_ch_mult or self.config.G_ch_mult))

    @property
    def multiply_adds(self) -> int:
        """Of a step of G with its steps of D, all images."""
        return self.options.step_multiply_adds(model_size.multiply_adds(self.config, fused=True))

    @property
    def parameters(self) -> int:
        """Of G and D."""
        return sum(map(model_size.num_parameters, model_size.build_on_meta(self.config)))

    def __str__(self) -> str:
        widths = "-".join(map(str, self.config.G_widths))
        G, D = model_size.multiply_adds(self.config, fused=True)
        of_G, of_D = map(model_size.num_parameters, model_size.build_on_meta(self.config))
        return (
            f"G_ch {self.config.G_ch} (widths {widths}), ssm {self.config.ssm}; G and D: {of_G:,} and {of_D:,} "
            f"parameters, {G:,} and {D:,} multiply-adds an image; {self.multiply_adds:.5g} an iteration"
        )


def configuration(options: TrainOptions) -> Configuration:
    """That of a command, also without its data where their name says their size. Raises: utils.UserError."""
    options = replace(options, data=replace(options.data, load_in_mem=False))  # only their size is looked at
    try:
        return Configuration(options, make_plan(options, None).config)
    except utils.UserError as error:
        try:
            return Configuration(options, assumed_config(options))
        except utils.UserError:
            raise error from None


class Match(NamedTuple):
    """What was found, and by how much it costs more than the target, as a share of that."""

    found: Configuration
    excess: float


def match(options: TrainOptions, argv: list[str] | None, time_step: Callable[..., float]) -> None:
    """Print what costs the same as --match, and the command that trains it.

    Args: argv: of train.py; time_step: from TrainOptions, ModelConfig and device to the seconds of a step.
    Raises: utils.UserError where it cannot be had.
    """
    if options.finetune.init_from:
        raise utils.UserError("--match chooses other widths than --init_from has: leave one of them out")
    by = options.dry_run.by or COSTS[0]
    argv = sys.argv[1:] if argv is None else argv
    to_find = replace(options, model=options.model | {"G_ch": 1.5})  # what is given need not fit this model
    own, target = configuration(to_find), find_target(options, argv)
    print(f"target, {utils.printable(options.dry_run.match)}\n  {target}")
    found, excess = match_seconds(own, target, time_step) if by == "seconds" else match_count(own, target, by)
    unit = by.replace("_", "-")
    print(f"as many {unit}\n  {found}")
    alone = "" if by == "seconds" else f"; of G alone {_G_cost(found, by) / _G_cost(target, by) - 1:+.2%}"
    print(
        f"difference in {unit} {'of G and D' if by == 'parameters' else 'of a whole iteration'}: {excess:+.2%}{alone}"
    )
    if abs(excess) > TOLERANCE:
        print("warning: not within 1 %: times of this machine vary; --by multiply_adds does not", file=sys.stderr)
    print(f"python train.py {shlex.join([*without(argv), *width_flags(found.config, own.config)])}")


def width_flags(config: ModelConfig, before: ModelConfig) -> list[str]:
    """The flags that turn the widths of the model `before` into those of `config`."""
    flags = ["--G_ch", str(config.G_ch)]
    if config.G_ch_mult != before.G_ch_mult:
        flags += ["--G_ch_mult", "-".join(map(str, config.G_ch_mult))]
    return flags


def _G_cost(configuration, by):
    if by == "parameters":
        return model_size.num_parameters(model_size.build_on_meta(configuration.config)[0])
    return model_size.multiply_adds(configuration.config, fused=True)[0]


# ---------------------------------------------------------------------------------------------------------------------
# What is to be matched


def find_target(options: TrainOptions, argv: list[str]) -> Configuration:
    """The Configuration of --match: of a run, or of this command (argv) with the flags that it names.

    Raises: utils.UserError where it is neither.
    """
    text = options.dry_run.match
    if text.lstrip().startswith("-") or "train.py" in text:
        return _of_flags(text, argv)
    if not text or not Path(text).exists():
        raise utils.UserError(
            f"--match {text}: there is no such run folder or checkpoint; flags begin with --, in one pair of quotes"
        )
    return _of_run(text, options.data.dataset)


def _of_flags(text, argv):
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise utils.UserError(f"--match {text}: not flags as a shell reads them ({error})") from error
    for i, word in enumerate(words):
        if Path(word).name == "train.py":  # a whole launch line
            words = words[i + 1 :]
            break
    given = _parsed(words, defaults=False)
    for name in ("match", "by"):
        if given.get(name) is not None:
            raise utils.UserError(f"--match {text}: --{name} belongs outside of the quotes")
    if begun := given.get("init_from"):
        raise utils.UserError(f"--match {text}: the model is that of --init_from; name it itself, --match {begun}")
    return configuration(TrainOptions.of(_parsed(without(argv, keep_G_ch=True)) | given))


def _of_run(path, dataset):
    """dataset: where it names none."""
    saved = Path(path) / "config.json"
    about = utils.load_json(saved) if saved.exists() else checkpoints.read_model(path, ("ckpt", "best"))[0]
    try:
        config, args = ModelConfig.from_dict(about["model_config"]), about.get("args") or {}
        if "batch_size" not in args:
            raise utils.UserError(f"--match {path}: it does not say with which batches it was trained; give its flags")
        defaults = _parsed([]) | {"dataset": dataset}
        known = {name: value for name, value in args.items() if name in defaults}
        return Configuration(TrainOptions.of(defaults | known | {"allow_change": (), "init_from": None}), config)
    except (KeyError, TypeError, AttributeError) as error:
        raise utils.UserError(f"--match {path}: it does not say its flags as train.py writes them") from error


def _parsed(words, defaults=True):
    """Values of flags by name: all of them, or without the defaults those that are given."""
    parser = utils.ArgumentParser()
    parser.prog = "train.py: --match"
    TrainOptions.add_to(parser)
    all_of_them, given = parser.parse_layers(words)
    return all_of_them | given if defaults else given


# ---------------------------------------------------------------------------------------------------------------------
# The search


def match_count(own: Configuration, target: Configuration, by: str) -> Match:
    """The nearest to target's `multiply_adds` or `parameters`, which grow with G_ch.

    Raises: utils.UserError where none is within TOLERANCE.
    """
    wanted = getattr(target, by)
    cost = _Cost(lambda configuration: getattr(configuration, by), own)
    if cost(PARTS) > wanted * (1 + TOLERANCE):
        raise utils.UserError(
            f"--match: with --G_ch 1 this configuration has {cost(PARTS):,} {by} already, the target has {wanted:,}; "
            "D and the batches stay as they are: lower --D_ch or --batch_size"
        )
    found = cost.configuration(cost.nearest(wanted))
    while abs(getattr(found, by) / wanted - 1) > TOLERANCE:
        better = min(_neighbours(found), key=lambda it: abs(getattr(it, by) - wanted), default=found)
        if abs(getattr(better, by) - wanted) >= abs(getattr(found, by) - wanted):
            raise utils.UserError(
                f"--match: widths are whole numbers, and none come within 1 % of the target's {wanted:,} {by}; the "
                f"nearest are {'-'.join(map(str, found.config.G_widths))}, {getattr(found, by) / wanted - 1:+.1%}"
            )
        found = better
    return Match(found, getattr(found, by) / wanted - 1)


def _neighbours(configuration):
    """Configurations of which one width is a little smaller or larger, by whole groups of `group_gain`."""
    config = configuration.config
    unit = config.ssm_group if config.ssm == "group_gain" else 1
    for i, width in enumerate(config.G_widths):
        for step in (-2 * unit, -unit, unit, 2 * unit):
            widths = (*config.G_widths[:i], width + step, *config.G_widths[i + 1 :])
            with contextlib.suppress(utils.UserError):  # BigGAN-deep only narrows
                yield configuration.wide(1, widths)


class _Cost:
    """What a configuration costs by G_ch in PARTS."""

    def __init__(self, measure: Callable, own: Configuration):
        self.measure, self.own, self.known = measure, own, {}

    def configuration(self, parts: int) -> Configuration:
        try:
            return self.own.wide(utils.number(str(parts / PARTS)))
        except utils.UserError:  # groups do not fit whole numbers; widths of fractions are rounded to groups
            return self.own.wide((parts + 1) / PARTS)

    def __call__(self, parts: int) -> int:
        configuration = self.configuration(parts)
        widths = configuration.config.G_widths
        if widths not in self.known:
            self.known[widths] = self.measure(configuration)
        return self.known[widths]

    def nearest(self, wanted: float) -> int:
        """The G_ch, in PARTS, whose cost is nearest. Raises: utils.UserError where none is large enough."""
        low, high = PARTS, 2 * PARTS
        while self(high) < wanted:
            low, high = high, 2 * high
            if high > LARGEST * PARTS:
                raise utils.UserError(f"--match: no --G_ch up to {LARGEST} costs as much as the target")
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self(middle) >= wanted else (middle, high)
        parts = min((low, high), key=lambda parts: abs(self(parts) - wanted))
        whole = PARTS * max(round(parts / PARTS), 1)  # of all that make the same widths
        same = self.configuration(whole).config.G_widths == self.configuration(parts).config.G_widths
        return whole if same else parts


def match_seconds(own: Configuration, target: Configuration, time_step: Callable[..., float]) -> Match:
    """The nearest to target's seconds a step on this machine that was found in a few timings of both.

    A guess's multiply-adds are corrected by what it took; both are timed in turn, as machines do not keep their speed.
    """
    wanted, best, device = target.multiply_adds, None, resolve_device(own.options.run.device)
    for _ in range(TIMINGS):
        cost = _Cost(lambda configuration: configuration.multiply_adds, own)
        guess = cost.configuration(cost.nearest(wanted))
        taken, allowed = (min(time_step(it.options, it.config, device) for _ in range(2)) for it in (guess, target))
        excess = taken / allowed - 1
        best = min(best or Match(guess, excess), Match(guess, excess), key=lambda it: abs(it.excess))
        if abs(excess) <= TOLERANCE:
            break
        wanted = guess.multiply_adds / (1 + excess)
    if best.excess > TOLERANCE and best.found.multiply_adds <= cost(PARTS):
        raise utils.UserError(
            f"--match: with --G_ch 1 a step of this configuration takes {1 + best.excess:.3g} times as long as one of "
            "the target; D and the batches stay as they are: lower --D_ch or --batch_size"
        )
    return best


# ---------------------------------------------------------------------------------------------------------------------
# Command lines


def joined(argv: list[str]) -> list[str]:
    """argv with the value of --match in one word with it: argparse would take what begins with a dash for a flag."""
    words, rest = [], list(argv)
    while rest:
        word = rest.pop(0)
        words.append(f"{word}={rest.pop(0)}" if word == "--match" and rest and rest[0].startswith("-") else word)
    return words


def without(argv: list[str], keep_G_ch: bool = False) -> list[str]:
    """argv less what --match stands for: itself, --by, the dry run, and G_ch."""
    valued = {"--match", "--by"} | (set() if keep_G_ch else {"--G_ch"})
    words, rest = [], list(argv)
    while rest:
        word = rest.pop(0)
        if word in valued:
            rest = rest[1:]
        elif word.partition("=")[0] not in valued | {"--dry_run", "--dry_run_time"}:
            words.append(word)
    return words
