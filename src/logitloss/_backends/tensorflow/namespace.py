"""TensorFlow's operations under the names that the array API has for them.

TensorFlow is no array-API library. These are the few functions that this package asks of one.
"""

from __future__ import annotations

import types
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

Tensor: TypeAlias = Any
DType: TypeAlias = Any

float32 = tf.float32
float64 = tf.float64
abs = tf.abs
exp = tf.exp
isfinite = tf.math.is_finite
log1p = tf.math.log1p
ones_like = tf.ones_like
tanh = tf.tanh
zeros_like = tf.zeros_like

FLOATING = (tf.float16, tf.bfloat16, tf.float32, tf.float64)
INTEGRAL = (
    tf.bool,
    *(tf.int8, tf.int16, tf.int32, tf.int64),
    *(tf.uint8, tf.uint16, tf.uint32, tf.uint64),
)
_KINDS = {
    "real floating": FLOATING,
    "integral": INTEGRAL[1:],
    "bool": INTEGRAL[:1],
}


def isdtype(dtype: DType, kind: str | tuple[str, ...]) -> bool:
    kinds = (kind,) if isinstance(kind, str) else kind
    return dtype in [known for name in kinds for known in _KINDS[name]]


def result_type(*dtypes: DType) -> DType:
    return tf.as_dtype(np.result_type(*(dtype.as_numpy_dtype for dtype in dtypes)))


def finfo(dtype: DType) -> Any:
    return types.SimpleNamespace(bits=8 * dtype.size)


def asarray(value: Any, dtype: DType = None, device: None = None) -> Tensor:
    if isinstance(value, float):
        # By way of NumPy, which makes infinity of what is too large.
        return tf.constant(np.float64(value).astype((dtype or float32).as_numpy_dtype))
    tensor = tf.convert_to_tensor(value)
    return tensor if dtype is None else tf.cast(tensor, dtype)


def astype(tensor: Tensor, dtype: DType, *, copy: bool = True) -> Tensor:
    return tf.cast(tensor, dtype)


def where(condition: Tensor, first: Any, second: Any) -> Tensor:
    """TensorFlow does not convert a number to the dtype of the other branch."""
    dtype = getattr(first, "dtype", None) or second.dtype
    return tf.where(condition, *(tf.convert_to_tensor(value, dtype) for value in (first, second)))


def any(values: Tensor) -> Tensor:
    return tf.reduce_any(values)


def sum(values: Tensor, dtype: DType) -> Tensor:
    return tf.reduce_sum(tf.cast(values, dtype))


def full_like(tensor: Tensor, value: float) -> Tensor:
    return tf.fill(tf.shape(tensor), tf.constant(value, tensor.dtype))


def __array_namespace_info__() -> Any:
    floating = {dtype.name: dtype for dtype in FLOATING}
    return types.SimpleNamespace(dtypes=lambda *, device, kind: floating)
