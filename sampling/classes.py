"""Classes by number and by name: which ones are meant, which are shown, how they are written.

Symbols: K classes of the model.
"""

import collections
import difflib
import itertools
import unicodedata
import warnings
from collections.abc import Sequence

import utils
from utils import numbered

ALL = "all"  # of --classes: every class
SHOWN = 10  # classes of a sheet
MAX_NAME = 40  # letters of a name in a line of text


def listed(classes: Sequence[int], class_names: Sequence[str]) -> str:
    """Classes in a line of text, names of any length."""
    names = (numbered(c, class_names) for c in classes)
    return ", ".join(name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…" for name in names)


def spread_classes(num_classes: int) -> list[int]:
    """Up to 10 class ids, evenly spread over all."""
    columns = min(SHOWN, num_classes)
    return [i * num_classes // columns for i in range(columns)]


def pages(classes: Sequence[int]) -> list[list[int]]:
    """Classes in as few pages of up to 10 as there can be, all of about the same size: none has just one of many."""
    number = -(-len(classes) // SHOWN)
    bounds = [i * len(classes) // number for i in range(number + 1)]
    return [list(classes[start:end]) for start, end in itertools.pairwise(bounds)]


def class_ids(given: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """The ids of classes given by number or name, in their order, each once; `all`, unless it is a name, is every one.

    A number below K is an id, with a warning where another class has it as its name. Names are found as they are
    printed, and in other case. Raises: utils.UserError for an unknown one, with those that may be meant.
    """
    if ALL in given and ALL not in class_names:
        return list(range(len(class_names)))
    tables = []  # from the most exact to the least: what a name becomes, and the ids of those that become it
    for simplified in (utils.printable, _normal, _caseless):
        ids = collections.defaultdict(list)
        for c, name in enumerate(class_names):
            ids[simplified(name)].append(c)
        tables.append((simplified, ids))
    return list(dict.fromkeys(_class_id(text, tables, class_names) for text in given))


def _class_id(text, tables, class_names):
    found = next((ids[key] for simplified, ids in tables if (key := simplified(text)) in ids), [])
    if text.isdecimal() and len(text) < 10 and int(text) < len(class_names):
        if found and int(text) not in found:
            named = f"{text} is number {text}, named {class_names[int(text)]}"
            warnings.warn(f"--classes {named}; the class named {text} is number {found[0]}", stacklevel=2)
        return int(text)
    if len(found) > 1:
        numbers = " or ".join(map(str, found[:5]))
        raise utils.UserError(f"--classes {text}: {len(found)} classes have this name; give a number, {numbers}")
    if not found:
        raise utils.UserError(f"--classes {text}: this model has no such class; {_near(text, class_names)}")
    return found[0]


def _normal(name):
    """The same for one letter with an accent (Linux) and for a letter and an accent (macOS)."""
    return unicodedata.normalize("NFC", utils.printable(name))


def _caseless(name):
    return _normal(name).casefold()


def _near(text, class_names):
    """What an unknown name may be meant to be: similar names, or those that it is a part of, or what there is."""
    text, names = _caseless(text), [_caseless(name) for name in class_names]
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 1 and all(part in names or part.isdecimal() for part in parts):
        return f"several are given with spaces between them: --classes {' '.join(parts)}"
    near = [names.index(name) for name in difflib.get_close_matches(text, names, n=3)]
    near = near or [c for c, name in enumerate(names) if text and text in name][:3]
    if near:
        return f"near it are: {listed(near, class_names)}"
    last = len(class_names) - 1
    few = listed(range(len(class_names)), class_names) if last < SHOWN else listed(range(SHOWN), class_names) + ", ..."
    return f"it has the classes 0 to {last}: {few}"
