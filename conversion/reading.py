"""Reading other codebases' checkpoint files: their weights, without running anything that a file names.

A .pth file is a pickle, which may name any class or function of anybody's code to be called while it is read. Here
only what tensors are made of is called; everything else becomes a `Stub`, which holds no more than the entries of a
dict. (Our own checkpoints hold nothing else: `checkpoints.load` refuses it.)
"""

import collections
import pickle
import tarfile
import types
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

import utils

REMEDY = "where it was made, save the weights alone: torch.save(model.state_dict(), FILE)"


class Stub(dict):
    """Stands for an object of a class, or for the result of a function, that a file names: takes all, does nothing."""

    __hash__, __eq__ = object.__hash__, object.__eq__

    def __new__(cls, *args, **kwargs):
        return dict.__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def _ignore(self, *args, **kwargs):
        return self

    __call__ = __setstate__ = append = extend = add = _ignore


# What a file may have called, by module and name.
CALLED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "UntypedStorage"): torch.UntypedStorage,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): torch._utils._rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): lambda data, *about: data,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *about: data,
    ("torch._tensor", "_rebuild_from_type_v2"): lambda function, kind, arguments, state: function(*arguments),
}


def _called(module, name):
    """What a name in a file stands for, or None for what is not called."""
    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return getattr(torch, name)
    found = CALLED.get((module, name))
    # A file can set attributes on what it names: of a function it gets a wrapper of its own.
    return (lambda *arguments: found(*arguments)) if isinstance(found, types.FunctionType) else found


def _restricted_pickle(stubs):
    """A stand-in for the module pickle, for torch.load; it adds a class to the dict `stubs` for each other name."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            full_name = f"{module}.{name}"
            return _called(module, name) or stubs.setdefault(full_name, type(full_name, (Stub,), {}))

    def load(file, **options):
        return Unpickler(file, **options).load()

    return types.SimpleNamespace(__name__="restricted pickle", Unpickler=Unpickler, load=load)


def load(path: str | Path) -> tuple[Any, list[str]]:
    """The content of a file that torch.save wrote, on the CPU, and the names of what stubs stand for in it.

    Raises: utils.UserError that names the file, and the classes that keep it from being read where these do.
    """
    path, stubs = Path(path), {}
    if path.is_dir() or not path.exists():
        raise utils.UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    try:
        if _is_program(path):
            raise utils.UserError(f"{path} is a program (a TorchScript archive, or a tar), which is not run; {REMEDY}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of stubs, whose source is not found
            restricted = _restricted_pickle(stubs)
            return torch.load(path, map_location="cpu", weights_only=False, pickle_module=restricted), sorted(stubs)
    except PermissionError as error:
        raise utils.UserError(f"cannot read {path}: {error.strerror}") from error
    except utils.UserError:
        raise
    except Exception as error:  # of damaged files torch raises RuntimeError, OSError, UnpicklingError ...
        why = "damaged, truncated, or another format"
        if stubs:
            why = f"it is damaged, or needs {utils.listed(sorted(stubs))}, of which nothing is run; {REMEDY}"
        raise utils.UserError(f"{path} is not a readable checkpoint ({why})") from error


def _is_program(path):
    """Whether torch.load would take the file for what is no plain pickle, and run it or unpack it."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            return any(name.endswith("constants.pkl") for name in file.namelist())
    return tarfile.is_tarfile(path)
