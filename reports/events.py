"""What the lines of a run's log say: curves of a number, and events in words.

An event is a line of log.jsonl, a dict (docs/architecture.md).
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch_utils import schema

NUMBERS = ("train", "eval", "singular_values")  # events that are curves, and no news
ALARMS = ("collapse", "rollback")
MOST_MARKS = 10  # of one kind: what happens more often is no news either, but for the newest alarms


class Mark(NamedTuple):
    """What is marked at a step of the curves, in a few words."""

    step: int
    text: str
    alarm: bool = False


def curve(events: Sequence[dict], name: str) -> list[tuple[int, float]]:
    """The steps and values of a number by its name; without what no picture can show, such as 10^400."""
    return [(event["step"], event[name]) for event in events if schema.problem(event.get(name), float) is None]


def marks(events: Sequence[dict], most: int = 60) -> list[Mark]:
    """Events that are no numbers; what each says in up to `most` letters."""
    left, told = Counter(event["event"] for event in events), []
    often = {kind for kind, number in left.items() if number > MOST_MARKS and kind not in ALARMS}
    for event in events:
        kind = event["event"]
        if kind not in NUMBERS and kind not in often and left[kind] <= MOST_MARKS:
            text = event_text(event)
            text = text if len(text) <= most else f"{text[: most - 3]}..."
            told.append(Mark(event["step"], text, kind in ALARMS))
        left[kind] -= 1
    return told


def event_text(event: dict) -> str:
    """An event in a line."""
    if event["event"] == "change":
        return change_text(event["flags"])
    if event["event"] == "init_from":
        return f"started from {event['checkpoint']}"
    if event["event"] == "collapse":
        return f"{event['action']}: {event['text']}"
    if event["event"] == "rollback":
        return f"rollback {event['number']} from step {event['noticed']}"
    about = {key: value for key, value in event.items() if key not in ("event", "step", "time")}
    parts = [f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}" for key, value in about.items()]
    return ": ".join([event["event"].replace("_", " "), *([", ".join(parts)] if parts else [])])


def change_text(changes: dict[str, list]) -> str:
    """What changed, of {flag: [before, now]}."""
    return ", ".join(f"{name} {shown(before)} \u2192 {shown(now)}" for name, (before, now) in changes.items())


def shown(value: Any) -> Any:
    """A value of a flag or of the data as it is told: a SHA-256 by its first digits."""
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else value


def training_seconds(events: Sequence[dict]) -> list[tuple[int, float, int]]:
    """Step, seconds of training up to it, and images that D has seen by then, at each logged step, from step 0 on.

    The seconds are those of training alone, by the logged speed: without evaluations, sheets, and the time between two
    commands.
    """
    about = ("images_seen", "images_per_s")
    logged = [event for event in events if all(schema.problem(event.get(name), float) is None for name in about)]
    logged = [event for event in logged if 0 < event["images_per_s"] < math.inf]
    seconds, points = 0.0, [(0, 0.0, 0)]
    for before, event in itertools.pairwise([{"images_seen": 0}, *logged]):
        seconds += max(0, event["images_seen"] - before["images_seen"]) / event["images_per_s"]
        points.append((event["step"], seconds, event["images_seen"]))
    return points
