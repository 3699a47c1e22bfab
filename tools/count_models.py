"""Write docs/models.md: parameters and multiply-adds of G and D of every published configuration.

    python tools/count_models.py

The configurations are those of the launch scripts, read from the scripts themselves. Nothing is computed: the networks
are built on the meta device.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
import utils
from training import dry_run, model_size

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted([*(ROOT / "scripts").glob("launch_*.sh"), *(ROOT / "scripts").glob("convert_*.sh")])
PAGE = """# Sizes of the published configurations

Parameters, and multiply-adds for one image (forward pass, evaluation; convolutions, linear layers and attention).
"Fused" is what this code computes, "plain" the composition of upsampling or pooling and convolution that it is equal to
(`layers.py`, `UpConv2d` and `DownConv2d`). M is a million multiply-adds.

Made by `python tools/count_models.py` from the scripts' own flags; a test checks that it is current.

| script in `scripts/` | parameters of G | of D | G fused | G plain | ratio | D fused | D plain | ratio |
|---|--:|--:|--:|--:|--:|--:|--:|--:|
{rows}

BigGAN-deep pools between a ReLU and a 1x1 convolution, where nothing can be fused. Its generators upsample in a quarter
of the channels, so there is less to save. The discriminators beside the converted generators are BigGAN-deep's own, for
fine-tuning; their weights were never released.
"""


def script_flags(script, *arguments):
    """The flags that a launch script gives to train.py, as a list, with `arguments` passed on to the script."""
    with tempfile.TemporaryDirectory() as folder:
        stub = Path(folder) / "python"  # instead of Python: prints what it is called with
        stub.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
        stub.chmod(0o755)
        environment = {**os.environ, "PYTHON": str(stub), "WEIGHTS": folder}
        command = ["bash", str(script), *map(str, arguments)]
        called = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    program, *flags = called.split("\0")[:-1]
    assert program == "train.py", program
    return flags


def row(script):
    """One line of the table."""
    config = dry_run.assumed_config(train.parse_args(script_flags(script, "--dry_run"))[0])
    parameters = map(model_size.num_parameters, model_size.build_on_meta(config))
    cells = [f"`{script.name}`", *(f"{count:,}" for count in parameters)]
    for fused, plain in zip(*(model_size.multiply_adds(config, fused=fused) for fused in (True, False)), strict=True):
        cells += [f"{fused / 1e6:,.1f} M", f"{plain / 1e6:,.1f} M", f"{plain / fused:.2f}"]
    return f"| {' | '.join(cells)} |"


def page():
    """The content of docs/models.md."""
    return PAGE.format(rows="\n".join(map(row, SCRIPTS)))


def main():
    path = ROOT / "docs" / "models.md"
    with utils.atomic_path(path) as temporary:
        temporary.write_text(page())
    print(f"wrote {path}")


if __name__ == "__main__":
    utils.run_main(main)
