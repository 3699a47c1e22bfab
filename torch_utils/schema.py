"""What files hold, written down as plain values, and one function that finds what differs from it.

A schema is a type (int takes no bool, float takes int too), None, a tuple of schemas of which one holds, a list of one
schema for its items, a Check, or a dict: of fields by name, those that end in "?" may be missing, and others that
are not named may be there; or, with a type as its only key, of any such keys to one schema.

    {"step": COUNT, "class_names?": [str], "best": (None, {"value": float})}
"""

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Check(NamedTuple):
    """As utils.Check, which is one here too: this module imports nothing of the project."""

    holds: Callable
    text: str


COUNT = Check(lambda x: type(x) is int and 0 <= x < 2**63, "be a whole number of at least 0")
POSITIVE = Check(lambda x: type(x) is int and 0 < x < 2**63, "be a whole number of at least 1")
STATE = {str: torch.Tensor}  # a state dict

NAMES = {
    dict: "an object of named fields",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    torch.Tensor: "a tensor",
}


def problem(value: Any, schema: Any, name: str = "") -> str | None:
    """What is wrong with a value, naming its place by keys joined by dots, or None. name: of the value itself."""
    if hasattr(schema, "holds"):  # a tuple too
        return None if schema.holds(value) else f"{_place(name)} is {_shown(value)}, and must {schema.text}"
    if isinstance(schema, dict):
        return _problem_of_dict(value, schema, name)
    if isinstance(schema, list):
        return _wrong(value, list, name) or _first(problem(v, schema[0], f"{name}.{i}") for i, v in enumerate(value))
    if isinstance(schema, tuple):
        return _problem_of_choice(value, schema, name)
    return _wrong(value, schema, name)


def of_dataclass(kind: type) -> dict:
    """The schema of a dataclass's fields, as `dataclasses.asdict` or JSON have them: a tuple is a list there."""
    fields = dataclasses.fields(kind)
    optional = {
        field.name
        for field in fields
        if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    }
    hints = typing.get_type_hints(kind)
    return {f"{field.name}?" if field.name in optional else field.name: _of_type(hints[field.name]) for field in fields}


def _of_type(hint):
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return tuple(None if part is types.NoneType else _of_type(part) for part in arguments)
    if hint is tuple or origin in (tuple, list):
        return [_of_type(arguments[0]) if arguments else int]
    return origin or hint


def _problem_of_dict(value, schema, name):
    if wrong := _wrong(value, dict, name):
        return wrong
    prefix = f"{name}." if name else ""
    if isinstance(kind := next(iter(schema), None), type):
        odd = next((key for key in value if type(key) is not kind), None)
        if odd is not None:
            return f"{_place(name)} has the name {_shown(odd)}, not {NAMES[kind]}"
        return _first(problem(part, schema[kind], f"{prefix}{key}") for key, part in value.items())
    fields = {key.removesuffix("?"): (key.endswith("?"), part) for key, part in schema.items()}
    missing = next((key for key, (optional, _) in fields.items() if not optional and key not in value), None)
    if missing:
        return f"{prefix}{missing} is missing"
    return _first(problem(value[key], part, f"{prefix}{key}") for key, (_, part) in fields.items() if key in value)


def _problem_of_choice(value, schema, name):
    problems = [problem(value, part, name) for part in schema]
    if None in problems:
        return None
    return problems[-1] if len(schema) == 2 and schema[0] is None else problems[0]


def _wrong(value, kind, name):
    """What is wrong with a value's type."""
    if kind is object or (kind is None and value is None):
        return None
    if kind is float and type(value) is int and abs(value) < 2**1000:
        return None
    if kind is not None and isinstance(value, kind) and not (isinstance(value, bool) and kind in (int, float)):
        return None
    return f"{_place(name)} is {_shown(value)}, not {NAMES.get(kind, getattr(kind, '__name__', kind))}"


def _place(name):
    return name or "the content"


def _shown(value):
    """A value in a few letters, or its type."""
    if value is None:
        return "missing (None)"
    if isinstance(value, (bool, int, float, str)) and len(text := repr(value)[:40]) < 40:
        return text
    return NAMES.get(type(value), type(value).__name__)


def _first(problems):
    return next((text for text in problems if text), None)
