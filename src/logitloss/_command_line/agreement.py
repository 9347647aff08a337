"""Whether the sources fit together, in the terms of the command line."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from logitloss._command_line.sources import Source


class Given(NamedTuple):
    """An argument of the library, what the user gave for it, and what that was opened as."""

    name: str
    source: Source | float | None
    value: Any


def check_shapes(given: Sequence[Given]) -> None:
    labels, logits, *coefficients = given
    if labels.value.shape != logits.value.shape:
        raise ValueError(
            f"labels and logits must have the same shape; got {_shape(labels)} and "
            f"{_shape(logits)}{_hint_of_columns(labels, logits)}"
        )
    for coefficient in coefficients:
        if not _broadcasts(coefficient.value.shape, logits.value.shape):
            raise ValueError(
                f"--{coefficient.name.replace('_', '-')} must broadcast to the shape of the "
                f"logits; got {_shape(coefficient)} and {_shape(logits)}"
                f"{_hint_of_rows(coefficient, logits)}"
            )


def check_order(given: Sequence[Given]) -> None:
    """Refuse columns of the same names in different orders."""
    for one, other in itertools.combinations(given, 2):
        if one.value.names != other.value.names and set(one.value.names) == set(other.value.names):
            raise ValueError(
                f"the columns of {one.source} and of {other.source} have the same names in "
                "different orders"
            )


def check_groups(by: Source, shape: Sequence[int], logits: Sequence[int]) -> None:
    if len(shape) != 1 or shape != logits[:1]:
        raise ValueError(
            f"--by must hold one value for each row of the logits; got shape {shape} in {by}, and "
            f"logits of shape {logits}"
        )


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    trailing = target[len(target) - len(shape) :]
    return len(shape) <= len(target) and all(
        size in (1, goal) for size, goal in zip(shape, trailing, strict=True)
    )


def _shape(given: Given) -> str:
    shape = given.value.shape
    rows = f"{shape[0]} row{'s' * (shape[0] != 1)}, shape {shape}," if shape else "shape ()"
    return f"{rows} in {given.source}"


def _hint_of_columns(labels: Given, logits: Given) -> str:
    """How a column gets the second axis that the other side has."""
    flat, deep = sorted((labels, logits), key=lambda given: len(given.value.shape))
    if deep.value.shape != (*flat.value.shape, 1):
        return ""
    if _has_columns(flat):
        return f"; {flat.source}, with a comma at the end has shape {deep.value.shape}"
    if _has_columns(deep):
        source = str(deep.source).removesuffix(",")
        return f"; {source} without a comma at the end has shape {flat.value.shape}"
    return "; reshape one of the files"


def _hint_of_rows(coefficient: Given, logits: Given) -> str:
    """How a coefficient of each row is told from one of each class."""
    shape = coefficient.value.shape
    if len(shape) != 1 or shape[0] not in logits.value.shape[:1]:
        return ""
    if _has_columns(coefficient) and len(logits.value.shape) == 2:
        return f"; {coefficient.source}, with a comma at the end is one value for each row"
    column = (*shape, *(1 for _ in logits.value.shape[1:]))
    return f"; one value for each row has shape {column}"


def _has_columns(given: Given) -> bool:
    return isinstance(given.source, Source) and given.source.columns is not None
