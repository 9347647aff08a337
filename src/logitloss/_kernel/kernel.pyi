from typing import Any, TypeAlias

import numpy as np
from typing_extensions import disjoint_base

_Array: TypeAlias = np.ndarray[Any, Any]

BLOCK: int
MAX_AXES: int
OPENMP: int
HAS_THREADS: bool
CLANG_OPENMP: bool
REDUCTIONS: tuple[str, ...]
TARGET: str
TARGET_IS_FUSED: bool
AVAILABLE_TARGETS: tuple[str, ...]

TYPES: dict[str, int]
GRID_THREADS: int
CONSTANTS: tuple[str, ...]

class BFloat16Bits(np.ndarray[Any, Any]): ...

def set_threads(requested: int) -> None: ...
def set_default_threads(default: int, unlimited_openmp: int, can_ask_openmp: bool) -> None: ...
def set_thresholds(parallel: int, nogil: int) -> tuple[int, int]: ...
def limit_threads(limit: int) -> int: ...
def get_threads() -> int: ...
def view(
    memory: tuple[int, int, tuple[int, ...], tuple[int, ...], int, object],
) -> _Array | None: ...
def overlaps_itself(array: _Array) -> bool: ...
def loss(
    labels: object,
    logits: object,
    pos_weight: object,
    weight: object,
    reduction: object,
    out: object,
    name: object,
) -> Any: ...
def compute(
    orders: tuple[int, ...],
    labels: object,
    logits: object,
    pos_weight: object,
    weight: object,
    reduction: object,
    outs: object,
    is_checked: bool = False,
    are_multiplied: bool = False,
    scale: object = None,
) -> tuple[Any, ...] | None: ...

@disjoint_base
class Launches:
    count: int
    scratch: int
    counts_blocks: bool
    is_empty: bool
    def __init__(
        self,
        type: int,
        inputs: tuple[Any, ...],
        reduction: object,
        results: tuple[Any, ...],
        orders: tuple[int, ...],
    ) -> None: ...
    def place(self, scratch: int) -> None: ...
    def __getitem__(self, index: int) -> tuple[bytes, int, int]: ...

def xla_handler() -> object | None: ...
