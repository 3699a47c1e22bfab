"""Fill in the sizes of every published configuration in docs/models.md and README.md: parameters, operations, memory.

    python tools/count_models.py

The configurations are those of the launch scripts, read from the scripts themselves. Nothing is computed: the networks
are built on the meta device. A table row that begins with a script's name has its last cells filled in (`PAGES`); all
else in these pages is written by hand.
"""

import functools
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
import utils
from training import dry_run, model_size, plan

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted([*(ROOT / "scripts").glob("launch_*.sh"), *(ROOT / "scripts").glob("convert_*.sh")])
STUDIOGAN = sorted(set((ROOT / "scripts" / "studiogan").glob("*.sh")) - {ROOT / "scripts" / "studiogan" / "rows.sh"})


@dataclass(frozen=True)
class Sizes:
    """Of one script: pairs (of G, of D), multiply-adds being those of one image; memory in GiB, None: no training."""

    parameters: tuple
    fused: tuple
    plain: tuple
    memory: float | None


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


@functools.cache
def sizes(script):
    """The Sizes of a script's configuration."""
    options, _ = train.parse_args(script_flags(script, "--dry_run"))
    config = plan.assumed_config(options)
    parameters = tuple(map(model_size.num_parameters, model_size.build_on_meta(config)))
    fused, plain = (model_size.multiply_adds(config, fused=fused) for fused in (True, False))
    memory = dry_run.training_memory(options, config) if script.name.startswith("launch_") else None
    return Sizes(parameters, fused, plain, memory)


# ---------------------------------------------------------------------------------------------------------------------
# Cells


def all_cells(size):
    """The nine of docs/models.md."""
    cells = [f"{count:,}" for count in size.parameters]
    for fused, plain in zip(size.fused, size.plain, strict=True):
        cells += [f"{fused / 1e6:,.1f} M", f"{plain / 1e6:,.1f} M", f"{plain / fused:.2f}"]
    return [*cells, _memory(size)]


def few_cells(size):
    """The three of README.md: of G + D, in millions and in thousands of millions, and the memory."""
    parameters = " + ".join(f"{count / 1e6:.1f}" for count in size.parameters)
    return [parameters, " + ".join(f"{count / 1e9:.2f}" for count in size.fused), _memory(size)]


def _memory(size):
    return "-" if size.memory is None else f"{size.memory:.1f}"


PAGES = {ROOT / "docs" / "models.md": all_cells, ROOT / "README.md": few_cells}


def filled(text, cells_of):
    """A page's text with the last cells of its rows of scripts filled in."""
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if named := re.match(r"\| `((launch|convert)_\w+\.sh)`", line):
            cells = cells_of(sizes(ROOT / "scripts" / named[1]))
            lines[i] = " | ".join([*line.split(" | ")[: -len(cells)], *cells]) + " |"
    return "\n".join(lines) + "\n"


def main():
    for path, cells_of in PAGES.items():
        text = filled(path.read_text(), cells_of)
        with utils.atomic_path(path) as temporary:
            temporary.write_text(text)
        print(f"wrote {path}")


if __name__ == "__main__":
    utils.run_main(main)
