"""The signatures, one for each kind of array: NumPy arrays give NumPy arrays, or a scalar if
reduced, and the arrays of another library give that library's.
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, overload

import numpy as np

from logitloss._formula import Array

Reduction: TypeAlias = Literal["none", "sum", "mean", "weighted_mean"]
_ToScalar: TypeAlias = Literal["sum", "mean", "weighted_mean"]

class _HasDevice(Protocol):
    @property
    def device(self) -> Any: ...

_NumPy: TypeAlias = np.ndarray[Any, Any]
_NumPyLike: TypeAlias = np.ndarray[Any, Any] | np.generic | Sequence[Any] | float
_NumPyScalar: TypeAlias = np.floating[Any]
_Other = TypeVar("_Other", bound=_HasDevice)
_Coefficient: TypeAlias = Array | float

@overload
def weighted_cross_entropy_with_logits(
    labels: _NumPy,
    logits: _NumPy,
    pos_weight: _NumPyLike,
    name: str | None = None,
    *,
    weight: _NumPyLike | None = None,
    reduction: Literal["none"] = "none",
    out: _NumPy | None = None,
) -> _NumPy: ...
@overload
def weighted_cross_entropy_with_logits(
    labels: _NumPy,
    logits: _NumPy,
    pos_weight: _NumPyLike,
    name: str | None = None,
    *,
    weight: _NumPyLike | None = None,
    reduction: _ToScalar,
    out: None = None,
) -> _NumPyScalar: ...
@overload
def weighted_cross_entropy_with_logits(
    labels: _Other,
    logits: _Other,
    pos_weight: _Coefficient,
    name: str | None = None,
    *,
    weight: _Coefficient | None = None,
    reduction: Reduction = "none",
    out: _Other | None = None,
) -> _Other: ...
@overload
def weighted_cross_entropy_with_logits(
    labels: Array,
    logits: Array,
    pos_weight: _Coefficient,
    name: str | None = None,
    *,
    weight: _Coefficient | None = None,
    reduction: Reduction = "none",
    out: Array | None = None,
) -> Array: ...
@overload
def sigmoid_cross_entropy_with_logits(
    labels: _NumPy,
    logits: _NumPy,
    name: str | None = None,
    *,
    weight: _NumPyLike | None = None,
    reduction: Literal["none"] = "none",
    out: _NumPy | None = None,
) -> _NumPy: ...
@overload
def sigmoid_cross_entropy_with_logits(
    labels: _NumPy,
    logits: _NumPy,
    name: str | None = None,
    *,
    weight: _NumPyLike | None = None,
    reduction: _ToScalar,
    out: None = None,
) -> _NumPyScalar: ...
@overload
def sigmoid_cross_entropy_with_logits(
    labels: _Other,
    logits: _Other,
    name: str | None = None,
    *,
    weight: _Coefficient | None = None,
    reduction: Reduction = "none",
    out: _Other | None = None,
) -> _Other: ...
@overload
def sigmoid_cross_entropy_with_logits(
    labels: Array,
    logits: Array,
    name: str | None = None,
    *,
    weight: _Coefficient | None = None,
    reduction: Reduction = "none",
    out: Array | None = None,
) -> Array: ...
@overload
def value_and_grad(
    labels: _NumPy,
    logits: _NumPy,
    pos_weight: _NumPyLike = 1.0,
    *,
    weight: _NumPyLike | None = None,
    reduction: Literal["none"] = "none",
    out: tuple[_NumPy, _NumPy] | None = None,
) -> tuple[_NumPy, _NumPy]: ...
@overload
def value_and_grad(
    labels: _NumPy,
    logits: _NumPy,
    pos_weight: _NumPyLike = 1.0,
    *,
    weight: _NumPyLike | None = None,
    reduction: _ToScalar,
    out: None = None,
) -> tuple[_NumPyScalar, _NumPy]: ...
@overload
def value_and_grad(
    labels: _Other,
    logits: _Other,
    pos_weight: _Coefficient = 1.0,
    *,
    weight: _Coefficient | None = None,
    reduction: Reduction = "none",
    out: tuple[_Other, _Other] | None = None,
) -> tuple[_Other, _Other]: ...
@overload
def value_and_grad(
    labels: Array,
    logits: Array,
    pos_weight: _Coefficient = 1.0,
    *,
    weight: _Coefficient | None = None,
    reduction: Reduction = "none",
    out: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]: ...
@overload
def grad_and_hess(
    labels: _NumPy,
    logits: _NumPy,
    pos_weight: _NumPyLike = 1.0,
    *,
    weight: _NumPyLike | None = None,
    out: tuple[_NumPy, _NumPy] | None = None,
) -> tuple[_NumPy, _NumPy]: ...
@overload
def grad_and_hess(
    labels: _Other,
    logits: _Other,
    pos_weight: _Coefficient = 1.0,
    *,
    weight: _Coefficient | None = None,
    out: tuple[_Other, _Other] | None = None,
) -> tuple[_Other, _Other]: ...
@overload
def grad_and_hess(
    labels: Array,
    logits: Array,
    pos_weight: _Coefficient = 1.0,
    *,
    weight: _Coefficient | None = None,
    out: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]: ...
