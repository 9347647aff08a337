"""What is known about each array library: one row each, and nowhere else.

A library without a row is computed by the formula, which asks for nothing beyond the array API.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeVar

from array_api_compat import array_namespace, is_array_api_obj
from array_api_compat import device as device_of

from logitloss._formula import Array, Namespace


class Library(NamedTuple):
    """An array library."""

    name: str
    #: Module of `logitloss._backends` that computes its calls.
    backend: str = "generic"
    #: Whether a result can be written into the caller's array.
    writable: bool = True
    #: Whether NumPy arrays may stand beside its own as labels or logits.
    takes_numpy: bool = False
    #: Whether a new array must be created on the device of the others. Other libraries place it
    #: themselves; in JAX it must stay free to follow a sharded one.
    has_devices: bool = True
    #: Whether contexts of the caller's decide the dtype of results: the `result_dtype` of the
    #: backend says which it is.
    has_contexts: bool = False


_ROWS = (
    Library("numpy", backend="numpy", has_devices=False),
    Library("torch", backend="torch", has_contexts=True),
    Library("cupy", backend="cupy"),
    Library("jax", backend="jax", writable=False, takes_numpy=True, has_devices=False),
    Library("dask", backend="dask", writable=False, takes_numpy=True, has_devices=False),
    # TensorFlow places its tensors itself.
    Library(
        "tensorflow", backend="tensorflow", writable=False, takes_numpy=True, has_devices=False
    ),
    Library("sparse", writable=False),
)
_BY_NAME = {row.name: row for row in _ROWS}


@cache
def library_of(xp: Namespace) -> Library:
    """The library of a namespace: the library's own, array-api-compat's or ours."""
    name = xp.__name__.removeprefix("array_api_compat.").removeprefix("logitloss._backends.")
    name = name.partition(".")[0]
    return _BY_NAME.get(name) or Library(name)


def load_backend(library: Library) -> Any:
    """The module that computes this library's calls, imported at the first call."""
    return importlib.import_module(f"logitloss._backends.{library.backend}")


def placement(array: Array, xp: Namespace) -> Any:
    """The device on which to make new arrays beside `array`, or None."""
    return device_of(array) if library_of(xp).has_devices else None


def as_lazy_array(value: Any) -> Any:
    """A column, table or number of Dask as an array of Dask; anything else as it is.

    `np.asarray` would compute it at once.
    """
    if not hasattr(type(value), "to_dask_array"):
        return value
    if value.ndim:
        return value.to_dask_array()
    return value.to_series().to_dask_array(lengths=(1,)).reshape(())


def is_tensor(value: object) -> bool:
    """Whether `value` looks like a tensor of PyTorch.

    Asked without `sys.modules`, for Dynamo would compile anew whenever anything has been imported.
    """
    return hasattr(type(value), "__torch_function__")


def is_masked_tensor(value: object) -> bool:
    """Whether `value` is a MaskedTensor of PyTorch, a kind of tensor that hides some elements."""
    return hasattr(type(value), "get_mask") and is_tensor(value)


def taken_over(function: Callable[..., Any], *arguments: Any) -> Any:
    """What becomes of a call whose arguments take PyTorch's functions over; None if none does.

    `torch.fx` traces with such objects. To it the function is one step, like those of PyTorch.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    found = [
        argument
        for argument in arguments
        if not isinstance(argument, torch.Tensor) and hasattr(type(argument), "__torch_function__")
    ]
    return torch.overrides.handle_torch_function(function, found, *arguments) if found else None


_Function = TypeVar("_Function")


def hidden_from_autograph(function: _Function) -> _Function:
    """Mark a function that TensorFlow's AutoGraph is to call as it is.

    It would rewrite the function and all that this calls, and warn of what it has no source of.
    """
    # `tf.autograph.experimental.do_not_convert` does the same, but TensorFlow is not imported yet.
    vars(function)["autograph_info__"] = None
    return function


def is_of_tensorflow(value: object) -> bool:
    """Whether `value` is a tensor of TensorFlow, or a variable or a list that holds some."""
    tf = sys.modules.get("tensorflow")
    if tf is None:
        return False
    if isinstance(value, (list, tuple)):
        return any(map(is_of_tensorflow, value))
    # A variable of Keras is not of a TensorFlow class.
    return hasattr(type(value), "__tf_tensor__") or isinstance(
        value, (tf.Variable, tf.RaggedTensor, tf.SparseTensor, tf.IndexedSlices)
    )


def is_array(value: object) -> bool:
    return bool(is_array_api_obj(value)) or is_of_tensorflow(value)


def namespace_of(array: Array) -> Namespace:
    if is_of_tensorflow(array):
        return importlib.import_module("logitloss._backends.tensorflow.namespace")
    return array_namespace(array)
