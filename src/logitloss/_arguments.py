"""Turn what the caller passed into checked arrays of one namespace, or say what is wrong with it.

Every error message of the library is worded here: `` `argument` must <rule>; got <value>. ``
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard

import numpy as np
from array_api_compat import (
    array_namespace,
    is_array_api_obj,
    is_dask_namespace,
    is_jax_namespace,
    is_numpy_namespace,
    is_pydata_sparse_namespace,
    is_writeable_array,
)
from array_api_compat import device as device_of

from logitloss._formula import Array, Namespace

REDUCTIONS = ("none", "sum", "mean", "weighted_mean")

_COEFFICIENTS = ("pos_weight", "weight")


class Arguments(NamedTuple):
    """Checked arguments: arrays of `xp` on one device, of whatever real dtype they came in.

    `labels` and `logits` have the same shape, to which `pos_weight` and `weight`, arrays or
    floats, broadcast. Nothing has been converted to `dtype`, the dtype of the result.
    """

    xp: Namespace
    labels: Array
    logits: Array
    pos_weight: Array | float
    weight: Array | float | None
    dtype: Any


def parse(
    labels: object,
    logits: object,
    pos_weight: object,
    weight: object = None,
    name: object = None,
) -> Arguments:
    if not (name is None or isinstance(name, str)):
        raise TypeError(f"`name` must be a string or None; got {_kind_of(name)}.")

    given = {"labels": labels, "logits": logits, "pos_weight": pos_weight, "weight": weight}
    for argument, value in given.items():
        _refuse_masked(argument, value)
    arrays = {argument: value for argument, value in given.items() if _is_array(value)}
    xp = _common_namespace(arrays)
    device = _common_device(arrays, xp)

    labels, logits = _as_arrays(labels, logits, xp, device)
    dtype = _result_dtype(labels, logits, xp)
    _check_same_shape(labels, logits)

    pos_weight = _coefficient("pos_weight", pos_weight, logits, xp, device, dtype)
    if weight is not None:
        weight = _coefficient("weight", weight, logits, xp, device, dtype)
    return Arguments(xp, labels, logits, pos_weight, weight, dtype)


def check_reduction(reduction: object) -> None:
    if not (isinstance(reduction, str) and reduction in REDUCTIONS):
        *first, last = map(repr, REDUCTIONS)
        raise ValueError(f"`reduction` must be {', '.join(first)} or {last}; got {reduction!r}.")


def check_out(out: object, arguments: Arguments, reduction: str) -> None:
    if out is not None:
        _check_writable_in_place(arguments)
        _check_out("out", out, arguments, _result_shape(arguments, reduction))


def check_out_pair(out: object, arguments: Arguments, reduction: str) -> None:
    """Check `out` of two results, the first of which is reduced."""
    if out is None:
        return
    _check_writable_in_place(arguments)
    if not isinstance(out, (tuple, list)):
        raise TypeError(f"`out` must be a pair of arrays; got {_kind_of(out)}.")
    if len(out) != 2:
        raise ValueError(f"`out` must be a pair of arrays; got {len(out)} of them.")
    first, second = out
    _check_out("out[0]", first, arguments, _result_shape(arguments, reduction))
    _check_out("out[1]", second, arguments, _result_shape(arguments, "none"))
    if first is second or _share_memory(first, second):
        raise ValueError("`out` must be two arrays with no memory in common; got overlapping ones.")


def placement(array: Array, xp: Namespace) -> Any:
    """The device to make new arrays on beside `array`; None where the library decides itself.

    JAX is among the latter: a new array has to stay free to follow a sharded one.
    """
    if is_numpy_namespace(xp) or is_jax_namespace(xp) or is_dask_namespace(xp):
        return None
    return device_of(array)


def refuse_layout(argument: str, layout: str) -> None:
    raise TypeError(f"`{argument}` must be a dense tensor; got layout {layout}.")


def resolve_targets(labels: object, targets: object) -> object:
    """The labels of the TF 1.x call, which may come under either name."""
    if targets is None:
        return labels
    if labels is not None:
        raise ValueError("Cannot specify both 'targets' and 'labels'")
    return targets


def require(**given: object) -> None:
    for argument, value in given.items():
        if value is None:
            raise ValueError(f"`{argument}` must be given; got None.")


def _is_array(value: object) -> TypeGuard[Any]:
    return is_array_api_obj(value) and not isinstance(value, np.generic)


def _is_python_number(value: object) -> bool:
    return isinstance(value, (bool, int, float)) and not isinstance(value, np.generic)


def _kind_of(value: object) -> str:
    return repr(value) if _is_python_number(value) else f"an object of type {type(value).__name__}"


def _library(xp: Namespace) -> str:
    name: str = xp.__name__.removeprefix("array_api_compat.")
    return name.partition(".")[0]


def _refuse_masked(argument: str, value: object) -> None:
    # np.ma is imported on first use: only a subclass of ndarray can be worth it.
    if not isinstance(value, np.ndarray) or type(value) is np.ndarray:
        return
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"`{argument}` must not be a masked array: pass its data, and the mask as "
            f"weight=~mask; got {type(value).__name__}."
        )


def _common_namespace(arrays: dict[str, Array]) -> Namespace:
    namespaces = {argument: array_namespace(value) for argument, value in arrays.items()}
    foreign = {name: xp for name, xp in namespaces.items() if not is_numpy_namespace(xp)}
    if not foreign:
        return array_namespace(np.empty(0))

    chosen, xp = next(iter(foreign.items()))
    # JAX and Dask take NumPy arrays for their own; any other library takes them as coefficients.
    takes_numpy = is_jax_namespace(xp) or is_dask_namespace(xp)
    for argument, other in namespaces.items():
        if other is xp:
            continue
        if is_numpy_namespace(other) and (takes_numpy or argument in _COEFFICIENTS):
            continue
        raise TypeError(
            f"`{chosen}` and `{argument}` must be arrays of the same library; "
            f"got {_library(xp)} and {_library(other)}."
        )
    return xp


def _common_device(arrays: dict[str, Array], xp: Namespace) -> Any:
    devices = {
        argument: placement(array, xp)
        for argument, array in arrays.items()
        if not isinstance(array, np.ndarray)
    }
    chosen, device = next(iter(devices.items()), ("", None))
    for argument, other in devices.items():
        if other != device:
            raise ValueError(
                f"`{chosen}` and `{argument}` must be on the same device; got {device} and {other}."
            )
    return device


def _as_arrays(labels: object, logits: object, xp: Namespace, device: Any) -> tuple[Array, Array]:
    """`labels` and `logits` as arrays; a number among them follows the other, which goes first."""
    if _is_python_number(labels) and not _is_python_number(logits):
        logits = _as_array("logits", logits, xp, device)
        return _as_array("labels", labels, xp, device, like=logits), logits
    labels = _as_array("labels", labels, xp, device)
    return labels, _as_array("logits", logits, xp, device, like=labels)


def _as_array(
    argument: str, value: object, xp: Namespace, device: Any, like: Array | None = None
) -> Array:
    if _is_array(value) and not isinstance(value, np.ndarray):
        _check_dtype(argument, value.dtype, xp)
        return value
    array = _as_numpy(argument, value)
    dtype = None
    if _is_python_number(value) and like is not None and _is_floating(like.dtype, xp):
        dtype = like.dtype
    elif isinstance(value, (bool, int, float, list, tuple)) and array.dtype == np.float64:
        # Python's numbers have no dtype of their own, so they take the default of the namespace.
        dtype = _default_float(xp)
    if is_numpy_namespace(xp):
        return array if dtype is None else array.astype(dtype)
    return xp.asarray(_exportable(array), dtype=dtype, device=device)


def _as_numpy(argument: str, value: object) -> np.ndarray[Any, Any]:
    """Anything `np.asarray` takes; a subclass of ndarray is read as the plain array it holds."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"`{argument}` must be an array of numbers; got {error}.") from error
    _check_dtype(argument, array.dtype, np)
    return array


def _exportable(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    # Other libraries refuse byte-swapped and negative-stride arrays, and warn of read-only ones.
    if array.flags.carray and array.dtype.isnative:
        return array
    return array.astype(array.dtype.newbyteorder("="), order="C")


def _check_dtype(argument: str, dtype: Any, xp: Namespace) -> None:
    if not (_is_floating(dtype, xp) or _is_integral(dtype, xp)):
        raise TypeError(
            f"`{argument}` must hold real floating, integer or boolean values; got dtype {dtype}."
        )


def _is_floating(dtype: Any, xp: Namespace) -> bool:
    if isinstance(dtype, np.dtype):
        # np.isdtype knows nothing of bfloat16, which ml_dtypes registers with NumPy.
        return dtype.kind == "f" or dtype.name == "bfloat16"
    # No library promotes the 8-bit formats.
    return xp.isdtype(dtype, "real floating") and "float8" not in str(dtype)


def _is_integral(dtype: Any, xp: Namespace) -> bool:
    if isinstance(dtype, np.dtype):
        return dtype.kind in "biu"
    return bool(xp.isdtype(dtype, ("integral", "bool")))


def _default_float(xp: Namespace) -> Any:
    return xp.asarray(0.0).dtype


def _result_dtype(labels: Array, logits: Array, xp: Namespace) -> Any:
    """The promotion of the floating dtypes, where integer logits count as the default one."""
    dtypes = [logits.dtype if _is_floating(logits.dtype, xp) else _default_float(xp)]
    if _is_floating(labels.dtype, xp):
        dtypes.append(labels.dtype)
    try:
        return xp.result_type(*dtypes)
    except TypeError as error:
        raise TypeError(
            "`labels` and `logits` must have floating dtypes with a common one; "
            f"got {labels.dtype} and {logits.dtype}."
        ) from error


def _check_same_shape(labels: Array, logits: Array) -> None:
    ours, theirs = tuple(labels.shape), tuple(logits.shape)
    if len(ours) != len(theirs) or not all(map(_same_size, ours, theirs)):
        raise ValueError(
            f"`labels` and `logits` must have the same shape; got {ours} and {theirs}."
        )


def _same_size(first: Any, second: Any) -> bool:
    # A lazy library gives None or NaN for a size it does not know yet.
    unknown = first is None or second is None or first != first or second != second
    return bool(unknown or first == second)


def _coefficient(
    argument: str, value: object, logits: Array, xp: Namespace, device: Any, dtype: Any
) -> Array | float:
    """A coefficient as a float, or an array of `xp` that broadcasts to the shape of `logits`."""
    if isinstance(value, (bool, int, float)):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"`{argument}` must fit in a float; got a larger integer.") from None

    array: Array
    if _is_array(value) and not isinstance(value, np.ndarray):
        _check_dtype(argument, value.dtype, xp)
        array = value
    else:
        array = _as_numpy(argument, value)
        if not is_numpy_namespace(xp):
            # float64 holds every NumPy dtype that other libraries refuse; `dtype` is what they have
            array = xp.asarray(array.astype(np.float64, order="C"), dtype=dtype, device=device)
    _check_broadcasts(argument, tuple(array.shape), tuple(logits.shape))
    return array


def _check_broadcasts(argument: str, shape: tuple[Any, ...], target: tuple[Any, ...]) -> None:
    trailing = target[len(target) - len(shape) :]
    if len(shape) <= len(target) and all(
        size == 1 or _same_size(size, goal) for size, goal in zip(shape, trailing, strict=True)
    ):
        return
    hint = ""
    if len(shape) == 1 and shape[0] in target:
        axis = target.index(shape[0])
        column = (shape[0],) + (1,) * (len(target) - axis - 1)
        hint = f", which applies along axis {axis} once reshaped to {column}"
    raise ValueError(
        f"`{argument}` must broadcast to the shape of `logits`, {target}; got shape {shape}{hint}."
    )


def _result_shape(arguments: Arguments, reduction: str) -> tuple[Any, ...]:
    return tuple(arguments.logits.shape) if reduction == "none" else ()


def _check_writable_in_place(arguments: Arguments) -> None:
    xp = arguments.xp
    if is_jax_namespace(xp) or is_dask_namespace(xp) or is_pydata_sparse_namespace(xp):
        raise TypeError(
            f"`out` must be None for {_library(xp)} arrays, which cannot be written "
            "in place; got an output."
        )


def _check_out(argument: str, out: object, arguments: Arguments, shape: tuple[Any, ...]) -> None:
    _refuse_masked(argument, out)
    xp = arguments.xp
    if not _is_array(out) or array_namespace(out) is not xp:
        raise TypeError(f"`{argument}` must be an array of {_library(xp)}; got {_kind_of(out)}.")
    if out.dtype != arguments.dtype:
        raise TypeError(f"`{argument}` must have dtype {arguments.dtype}; got {out.dtype}.")
    if tuple(out.shape) != shape:
        raise ValueError(f"`{argument}` must have shape {shape}; got {tuple(out.shape)}.")
    if device_of(out) != device_of(arguments.logits):
        raise ValueError(
            f"`{argument}` must be on device {device_of(arguments.logits)}; got {device_of(out)}."
        )
    if not is_writeable_array(out):
        raise ValueError(f"`{argument}` must be writable; got a read-only array.")
    if isinstance(out, np.ndarray) and not out.flags.forc and _overlaps_itself(out):
        raise ValueError(f"`{argument}` must not overlap itself; got strides {out.strides}.")


def _overlaps_itself(array: np.ndarray[Any, Any]) -> bool:
    """Whether some step along an axis does not get past what the axes with smaller steps span."""
    span = array.itemsize
    for step, size in sorted(zip(map(abs, array.strides), array.shape, strict=True)):
        if size > 1:
            if step < span:
                return True
            span += step * (size - 1)
    return False


def _share_memory(first: Array, second: Array) -> bool:
    # The exact question is NP-hard: past the bound on work, overlap is presumed.
    return isinstance(first, np.ndarray) and np.may_share_memory(
        first,
        second,
        max_work=1000,  # type: ignore[arg-type]
    )
