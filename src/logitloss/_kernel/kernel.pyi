from typing import Any, TypeAlias

import numpy as np

_Array: TypeAlias = np.ndarray[Any, Any]
_Coefficient: TypeAlias = float | tuple[_Array, int, int]

LOSS: int
VALUE_AND_GRAD: int
GRAD_AND_HESS: int
BLOCK: int
OPENMP: int
TARGET: str
AVAILABLE_TARGETS: tuple[str, ...]

def set_threads(requested: int) -> None: ...
def set_default_threads(default: int, unlimited_openmp: int) -> None: ...
def set_thresholds(parallel: int, nogil: int) -> tuple[int, int]: ...
def limit_threads(limit: int) -> int: ...
def get_threads() -> int: ...
def plain_loss(
    labels: object, logits: object, pos_weight: object, weight: object = None
) -> Any: ...
def plain_run(
    operation: int,
    labels: object,
    logits: object,
    pos_weight: object,
    weight: object,
    first: object,
    second: object,
    gradient_divisor: float,
    reduce: bool,
) -> float | None: ...
def run(
    operation: int,
    labels: _Array,
    logits: _Array,
    pos_weight: _Coefficient,
    weight: _Coefficient,
    first: _Array | None,
    second: _Array | None,
    gradient_divisor: float,
    in_place: bool,
    reduce: bool,
    is_float32: bool,
) -> tuple[float, float]: ...
def add(sum: tuple[float, float], term: tuple[float, float]) -> tuple[float, float]: ...
def xla_handler() -> object | None: ...
