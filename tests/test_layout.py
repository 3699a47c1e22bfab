"""The layout of the project: who may import whom. A file's imports are read, not run."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = {
    "train", "sample", "evaluate", "make_hdf5", "calculate_inception_moments", "instance_selection", "dataset_doctor",
    "convert_weights", "explain", "plot_runs",
}  # fmt: skip
# From the bottom up: what a layer is made of, and what each part of it may import of the layers below.
LAYERS = [
    {"utils": ()},
    {"torch_utils": ("utils",)},
    {"model": ("utils", "torch_utils"), "image_datasets": ("utils", "torch_utils")},
    {"sampling": ("utils", "torch_utils", "model"), "conversion": ("utils", "torch_utils", "model")},
    {"metrics": ("utils", "torch_utils", "model", "image_datasets", "sampling")},
    {"measures": ("utils", "torch_utils", "model", "image_datasets", "sampling", "metrics")},
    {
        "selection": ("utils", "torch_utils", "model", "image_datasets", "sampling", "metrics", "measures"),
        "reports": ("utils", "torch_utils", "model", "image_datasets", "sampling", "metrics", "measures"),
    },
    {
        "training": (
            *("utils", "torch_utils", "model", "image_datasets", "sampling", "metrics", "measures", "selection"),
            "reports",
        )
    },
    {"scripts": ()},  # everything but one another: see `may_import`
]
PARTS_OF_FILES = {
    **dict.fromkeys(("BigGAN", "BigGANdeep", "layers", "sssm", "model_config"), "model"),
    **dict.fromkeys(("inception_utils", "prdc"), "measures"),
    **dict.fromkeys(SCRIPTS, "scripts"),
    "utils": "utils",
}
ALLOWED = {part: allowed for layer in LAYERS for part, allowed in layer.items()}


def modules():
    """The project's modules by dotted name: those of the top level and of the packages."""
    paths = [*ROOT.glob("*.py"), *(path for part in ALLOWED for path in (ROOT / part).glob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


def part_of(module):
    return PARTS_OF_FILES.get(module, module.partition(".")[0])


def imported(source, names):
    """Which of the modules `names` a source text imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & names


def may_import(importer, module):
    one, other = part_of(importer), part_of(module)
    if one == "scripts":
        return other != "scripts"
    return one == other or other in ALLOWED[one]


@pytest.fixture(scope="module")
def graph():
    found = modules()
    return {name: imported(path.read_text(), set(found)) for name, path in found.items()}


def test_every_file_is_of_a_layer():
    assert {part_of(name) for name in modules()} <= ALLOWED.keys() and len(list(ROOT.glob("*.py"))) <= 18
    assert len(LAYERS) <= 9


def test_nobody_imports_what_is_not_below(graph):
    assert [f"{a} imports {b}" for a in graph for b in sorted(graph[a]) if not may_import(a, b)] == []


def test_there_is_no_cycle_and_at_most_9_levels(graph):
    order = graphlib.TopologicalSorter(graph).static_order()  # raises CycleError
    level = {}
    for name in order:
        level[name] = 1 + max((level[other] for other in graph[name]), default=0)
    assert max(level.values()) <= 9


def test_packages_say_what_they_are_for_and_hold_no_code():
    for path in ROOT.glob("*/__init__.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree) and len(tree.body) == 1, path


@pytest.mark.parametrize(
    "importer, source",
    [
        ("sample", "import train"),
        ("layers", "from image_datasets import loading"),
        ("metrics.features", "def f():\n    import inception_utils"),
        ("training.logs", "from evaluate import main"),
        ("utils", "from torch_utils.images import to_uint8"),
    ],
)
def test_a_forbidden_import_would_be_found(importer, source):
    (module,) = imported(source, set(modules())) - {"image_datasets", "torch_utils"}
    assert not may_import(importer, module)
