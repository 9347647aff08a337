"""Numbers that can be computed with, but are surely mistakes: labels of 7, a weight of NaN."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from logitloss._command_line.blocks import Array, Block
from logitloss._command_line.inputs import Inputs, Part


class _Rule(NamedTuple):
    # NaN satisfies no rule.
    holds: Callable[[Any], Any]
    noun: str
    # What numbers are that break it.
    doubt: str


_RULES = {
    "labels": _Rule(lambda x: (x >= 0) & (x <= 1), "label", "not between 0 and 1"),
    "logits": _Rule(lambda x: x == x, "logit", "NaN"),
    "pos_weight": _Rule(lambda x: (x >= 0) & (x < math.inf), "weight", "negative or not finite"),
    "weight": _Rule(lambda x: (x >= 0) & (x < math.inf), "weight", "negative or not finite"),
}


class Doubts:
    """What was seen in a pass. Elements of weight 0 are left out, as they are everywhere.

    `sources` are what the user gave for the arguments of the library.
    """

    def __init__(self, inputs: Inputs, sources: Mapping[str, object]) -> None:
        self._sources = sources
        self._found: dict[str, _Found] = {}
        self._known: list[str] = []
        if not inputs.size:
            self._known.append(f"{sources['logits']}: no elements, its shape is {inputs.shape}")
        pos_weight = inputs.pos_weight
        if isinstance(pos_weight, float) and not _RULES["pos_weight"].holds(pos_weight):
            self._known.append(f"--pos-weight {pos_weight:g} is negative or not finite")

    def add(self, part: Part, loss: Array) -> None:
        self._look_at("labels", part.labels, part)
        # This sum is NaN if a logit is, and quicker than a look at each of them.
        if math.isnan(np.sum(loss)):
            self._look_at("logits", part.logits, part)
        if isinstance(part.pos_weight, np.ndarray):
            self._look_at("pos_weight", part.pos_weight, part)
        if part.weight is not None:
            self._look_at("weight", part.weight, part)

    def _look_at(self, name: str, values: Array, part: Part) -> None:
        holds = _RULES[name].holds
        # The least number is NaN if any is.
        once = _without_repeats(values)
        if holds(once.min()) and holds(once.max()):
            return
        values = np.broadcast_to(values, part.logits.shape)
        broken = ~holds(values)
        if part.weight is not None:
            broken &= part.weight != 0
        if not broken.any():
            return
        if name not in self._found:
            self._found[name] = _Found(name, values, broken, part)
        self._found[name].count += int(np.count_nonzero(broken))

    def messages(self) -> list[str]:
        found = [f"{self._sources[name]}: {found}" for name, found in self._found.items()]
        return self._known + found


class _Found:
    """Numbers of one source that break its rule, described by the first of them."""

    def __init__(self, name: str, values: Array, broken: Array, part: Part) -> None:
        index = tuple(np.argwhere(broken)[0])
        self.count = 0
        self._rule = _RULES[name]
        self._first = f"{values[index]}{_place(part.block, index)}"
        self._hint = _hint(part) if name == "labels" else ""

    def __str__(self) -> str:
        are = f"{self._rule.noun} is" if self.count == 1 else f"{self._rule.noun}s are"
        return f"{self.count:,} {are} {self._rule.doubt}, the first is {self._first}{self._hint}"


def _without_repeats(values: Array) -> Array:
    return values[tuple(slice(1 if step == 0 else None) for step in values.strides)]


def _place(block: Block, index: tuple[Any, ...]) -> str:
    place = [int(axis.start + step) for axis, step in zip(block, index, strict=True)]
    if len(place) == 1:
        return f" in row {place[0]} (from 0)"
    return f" at index {place}" if place else ""


def _hint(part: Part) -> str:
    kept = np.broadcast_to(True if part.weight is None else part.weight != 0, part.labels.shape)
    labels, logits = part.labels[kept], part.logits[kept]
    if np.all((logits == 0) | (logits == 1)):
        return "; are labels and logits swapped?"
    if np.all(np.abs(labels) == 1):
        return "; for labels of -1 and 1, take (labels + 1) / 2"
    return ""
