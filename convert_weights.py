"""Checkpoints of other codebases to ours.

    python convert_weights.py --from ajbrock weights/BigGAN_I128/ biggan128.pth
    python convert_weights.py --from huggingface biggan-deep-128/ deep128.pth --truncation 0.4
    python sample.py biggan128.pth

conversion/peers.py knows the other codebases' names, and conversion/convert.py reads the architecture off the weights.
"""

import argparse
from pathlib import Path

import utils
from conversion import peers
from conversion.convert import convert, parse_field
from torch_utils import checkpoints


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = utils.ArgumentParser("Convert a checkpoint of another codebase to one of ours.", "IN OUT")
    about = "; ".join(f"{name}: {text}" for name, text in peers.SOURCES.items())
    parser.add_argument("--from", dest="source", required=True, choices=peers.SOURCES, help=about)
    parser.add_argument("path", metavar="IN", help='its file or folder, or a file {"G": ..., "G_ema": ..., "D": ...}')
    parser.add_argument("out", metavar="OUT", help="the .pth file to write, for sample.py, evaluate.py and train.py")
    group = parser.add_argument_group("what weights do not tell")
    group.add_argument(
        "--set", dest="overrides", action="append", metavar="FIELD=VALUE",
        help="a field of ModelConfig (a model flag of train.py without its dashes); may be repeated. Of mmgeneration: "
        "D_relu_shortcut=true where act_cfg has inplace=True, BN_eps where norm_eps is given",
    )  # fmt: skip
    group.add_argument(
        "--truncation", type=_truncation, default=1.0, metavar="T",
        help="huggingface: whose batch-norm statistics; 0 < T <= 1",
    )  # fmt: skip
    group.add_argument("--bgr", action="store_true", help="its images are BGR, as in mmgeneration's own training")
    group.add_argument(
        "--gain_offset", type=int, choices=(0, 1), default=None,
        help="mmgen: the gain of batch norm is this plus the embedding; None: seen from the embeddings' mean",
    )  # fmt: skip
    return parser.parse_args(argv)


def _truncation(text):
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 1]")
    return value


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.truncation != 1 and args.source != "huggingface":
        raise utils.UserError("--truncation: only huggingface's batch-norm statistics depend on it")
    overrides = {}
    for setting in args.overrides or ():
        name, equals, text = setting.partition("=")
        if not equals:
            raise utils.UserError(f"--set {setting}: not of the form FIELD=VALUE")
        overrides[name] = parse_field(name, text)
    utils.check_writable(Path(args.out).parent)
    networks = peers.read_networks(args.path, args.source)
    checkpoint = convert(networks, args.source, overrides, args.truncation, args.gain_offset, args.bgr)
    checkpoints.save(checkpoint, args.out)
    config = checkpoint["model_config"]
    print(
        f"{args.out}: {', '.join(networks)} of a {config['model']} at {config['resolution']}x{config['resolution']} "
        f"with {utils.counted(config['n_classes'], 'class')}"
    )
    shown = {name: value for name, value in config.items() if name in overrides or name in peers.NOT_IN_WEIGHTS}
    print("not determined by the weights: " + ", ".join(f"{name}={value}" for name, value in shown.items()))
    if args.source == "mmgen" and not args.bgr:
        print("note: mmgeneration trains on BGR images, except where a file is named *_cvt_*_rgb; --bgr if this is so")


if __name__ == "__main__":
    utils.run_main(main)
