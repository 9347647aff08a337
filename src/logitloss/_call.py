"""Turn what the caller passed into checked arrays of one namespace, or say what is wrong with it.

What is wrong with an argument is worded here: `` `argument` must <rule>; got <value>. ``
"""

from __future__ import annotations

from itertools import combinations
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from array_api_compat import array_namespace, is_numpy_namespace, is_writeable_array
from array_api_compat import device as device_of

from logitloss._array_likes import read, refuse_mask_and_unit
from logitloss._formula import Array, Namespace
from logitloss._kernel import kernel
from logitloss._libraries import (
    as_lazy_array,
    is_array,
    library_of,
    load_backend,
    namespace_of,
    placement,
)
from logitloss._reductions import REDUCTIONS

# The operations: the orders of the derivatives by the logits that each returns.
LOSS = (0,)
VALUE_AND_GRAD = (0, 1)
GRAD_AND_HESS = (1, 2)

_COEFFICIENTS = ("pos_weight", "weight")


class Call(NamedTuple):
    """What to compute, and from what: everything checked, nothing converted.

    `labels` and `logits` are arrays of `xp` on one device, of one shape and of whatever real dtypes
    they came in, to which `pos_weight` and `weight`, arrays or floats, broadcast.
    """

    #: Orders of the wanted derivatives by the logits: 0 is the loss.
    orders: tuple[int, ...]
    xp: Namespace
    labels: Array
    logits: Array
    pos_weight: Array | float
    weight: Array | float | None
    #: The dtype of the results.
    dtype: Any
    #: How results of order 0 are reduced, which decides the divisor of those of order 1.
    #: Without a weight, "weighted_mean" is replaced by "mean".
    reduction: str = "none"
    #: Where to write each result, or None.
    outs: tuple[Array, ...] | None = None
    name: str | None = None


def check(
    orders: tuple[int, ...],
    labels: object,
    logits: object,
    pos_weight: object,
    weight: object = None,
    reduction: object = "none",
    out: object = None,
    name: object = None,
) -> Call:
    """Make a call from the arguments, or raise an error that says what is wrong with them."""
    reduction = _checked_reduction(reduction)
    if not (name is None or isinstance(name, str)):
        raise TypeError(f"`name` must be a string or None; got {_kind_of(name)}.")

    labels, logits, pos_weight, weight = map(as_lazy_array, (labels, logits, pos_weight, weight))
    given = {"labels": labels, "logits": logits, "pos_weight": pos_weight, "weight": weight}
    readable = {argument: read(argument, value) for argument, value in given.items()}
    labels, logits, pos_weight, weight = readable.values()
    arrays = {argument: value for argument, value in readable.items() if _is_array(value)}
    xp = _common_namespace(arrays)
    device = _common_device(arrays, xp)

    labels, logits = _as_arrays(labels, logits, xp, device)
    dtype = _result_dtype(labels, logits, xp)
    library = library_of(xp)
    if library.has_contexts and out is None:
        dtype = load_backend(library).result_dtype(dtype, logits)
    _check_same_shape(labels, logits)

    pos_weight = _coefficient("pos_weight", pos_weight, logits, xp, device, dtype)
    if weight is not None:
        weight = _coefficient("weight", weight, logits, xp, device, dtype)
    call = Call(orders, xp, labels, logits, pos_weight, weight, dtype)
    return finish(call, reduction, out, name)


def finish(call: Call, reduction: str, out: object, name: str | None) -> Call:
    """Complete the call with what is not an argument of the formula."""
    call = call._replace(reduction=effective(reduction, call.weight), name=name)
    return call if out is None else call._replace(outs=_checked_outs(out, call))


def effective(reduction: str, weight: object) -> str:
    """The reduction of a call, in which a weighted mean always has a weight."""
    return "mean" if reduction == "weighted_mean" and weight is None else reduction


def result_shape(call: Call, order: int) -> tuple[Any, ...]:
    is_reduced = order == 0 and call.reduction != "none"
    return () if is_reduced else tuple(call.logits.shape)


def check_dtype(argument: str, dtype: Any, xp: Namespace) -> None:
    if not (_is_floating(dtype, xp) or _is_integral(dtype, xp)):
        raise TypeError(
            f"`{argument}` must hold real floating values of at least 16 bits, integers of at "
            f"least 8, or booleans; got dtype {dtype}."
        )


def refuse_layout(argument: str, layout: str) -> None:
    raise TypeError(f"`{argument}` must be a dense tensor; got layout {layout}.")


def refuse_freed(argument: str) -> None:
    raise ValueError(f"`{argument}` must have memory; got a tensor whose storage has been freed.")


def refuse_zeros(argument: str) -> None:
    raise ValueError(
        f"`{argument}` must be writable; got a tensor of zeros without memory: pass its clone()."
    )


def refuse_shared_outs() -> None:
    raise ValueError("`out` must be two arrays with no memory in common; got overlapping ones.")


def _checked_reduction(reduction: object) -> str:
    if isinstance(reduction, str) and reduction in REDUCTIONS:
        return reduction
    *first, last = map(repr, REDUCTIONS)
    raise ValueError(f"`reduction` must be {', '.join(first)} or {last}; got {reduction!r}.")


def _is_array(value: object) -> TypeGuard[Any]:
    return is_array(value) and not isinstance(value, np.generic)


def _is_python_number(value: object) -> bool:
    return isinstance(value, (bool, int, float)) and not isinstance(value, np.generic)


def _kind_of(value: object) -> str:
    return repr(value) if _is_python_number(value) else f"an object of type {type(value).__name__}"


def _common_namespace(arrays: dict[str, Array]) -> Namespace:
    namespaces = {argument: namespace_of(value) for argument, value in arrays.items()}
    foreign = {name: xp for name, xp in namespaces.items() if not is_numpy_namespace(xp)}
    for argument, xp in foreign.items():
        _check_has_device(argument, arrays[argument], library_of(xp).name)
    if not foreign:
        return array_namespace(np.empty(0))

    chosen, xp = next(iter(foreign.items()))
    library = library_of(xp)
    for argument, other in namespaces.items():
        if other is xp:
            continue
        # Every library takes NumPy arrays as coefficients.
        if is_numpy_namespace(other) and (library.takes_numpy or argument in _COEFFICIENTS):
            continue
        raise TypeError(
            f"`{chosen}` and `{argument}` must be arrays of the same library; "
            f"got {library.name} and {library_of(other).name}."
        )
    return xp


def _check_has_device(argument: str, array: Array, library: str) -> None:
    try:
        device_of(array)
    except AttributeError:
        # MLX is the only one so far. Its `__array_namespace__` is not the standard's either.
        raise TypeError(
            f"`{argument}` must be an array that follows the array API standard; got one of "
            f"{library}, which does not: pass numpy.asarray({argument})."
        ) from None


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
    """`labels` and `logits` as arrays. A number is converted after the other, and follows it."""
    if _is_python_number(labels) and not _is_python_number(logits):
        logits = _as_array("logits", logits, xp, device)
        return _as_array("labels", labels, xp, device, like=logits), logits
    labels = _as_array("labels", labels, xp, device)
    return labels, _as_array("logits", logits, xp, device, like=labels)


def _as_array(
    argument: str, value: object, xp: Namespace, device: Any, like: Array | None = None
) -> Array:
    if _is_array(value) and not isinstance(value, np.ndarray):
        check_dtype(argument, value.dtype, xp)
        return value
    array = _as_numpy(argument, value)
    dtype = None
    if _is_python_number(value) and like is not None and _is_floating(like.dtype, xp):
        dtype = like.dtype
    elif isinstance(value, (bool, int, float, list, tuple)) and array.dtype == np.float64:
        # Python's numbers have no dtype, so they take the default of the namespace.
        dtype = _default_float(xp)
    if is_numpy_namespace(xp):
        return array if dtype is None else array.astype(dtype)
    return xp.asarray(_exportable(array), dtype=dtype, device=device)


def _as_numpy(argument: str, value: object) -> np.ndarray[Any, Any]:
    """Read anything that `np.asarray` takes. A subclass of ndarray becomes a plain array."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        # The constructor of a library's own subclass may not take a message.
        kind = TypeError if isinstance(error, TypeError) else ValueError
        reason = str(error).rstrip(".")
        raise kind(f"`{argument}` must be an array of numbers; got {reason}.") from error
    check_dtype(argument, array.dtype, np)
    return array


def _exportable(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    # Other libraries refuse byte-swapped and negative-stride arrays, and warn of read-only ones.
    if array.flags.carray and array.dtype.isnative:
        return array
    return array.astype(array.dtype.newbyteorder("="), order="C")


def _is_floating(dtype: Any, xp: Namespace) -> bool:
    if isinstance(dtype, np.dtype):
        # np.isdtype does not know bfloat16, which ml_dtypes registers with NumPy. Of its formats of
        # 8 bits, which nobody promotes, it registers one as if it were NumPy's own.
        return (dtype.kind == "f" and dtype.itemsize > 1) or dtype.name == "bfloat16"
    return _is_dtype(dtype, "real floating", xp) and getattr(dtype, "itemsize", 2) > 1


def _is_integral(dtype: Any, xp: Namespace) -> bool:
    if isinstance(dtype, np.dtype):
        return dtype.kind in "biu"
    return _is_dtype(dtype, ("integral", "bool"), xp)


def _is_dtype(dtype: Any, kind: str | tuple[str, ...], xp: Namespace) -> bool:
    try:
        return bool(xp.isdtype(dtype, kind))
    except TypeError:
        # JAX has keys for random numbers, whose dtype it does not know itself.
        return False


def _default_float(xp: Namespace) -> Any:
    return xp.asarray(0.0).dtype


def _result_dtype(labels: Array, logits: Array, xp: Namespace) -> Any:
    """The promotion of the floating dtypes. Integer logits count as the default floating dtype."""
    dtypes = [logits.dtype if _is_floating(logits.dtype, xp) else _default_float(xp)]
    if _is_floating(labels.dtype, xp):
        dtypes.append(labels.dtype)
    try:
        return xp.result_type(*dtypes)
    except (TypeError, ValueError) as error:
        # JAX may be set to promote nothing, and then calls it an error of the value.
        raise TypeError(
            "`labels` and `logits` must have floating dtypes with a common one; "
            f"got {labels.dtype} and {logits.dtype}."
        ) from error


def _check_same_shape(labels: Array, logits: Array) -> None:
    ours, theirs = _known_shape(labels), _known_shape(logits)
    if ours is None or theirs is None:
        return
    if len(ours) != len(theirs) or not all(map(_same_size, ours, theirs)):
        raise ValueError(
            f"`labels` and `logits` must have the same shape; got {ours} and {theirs}."
        )


def _known_shape(array: Array) -> tuple[Any, ...] | None:
    # A tensor in a TensorFlow graph may not even know its number of axes.
    return None if getattr(array.shape, "rank", 0) is None else tuple(array.shape)


def _same_size(first: Any, second: Any) -> bool:
    # A lazy library gives None or NaN for a size that it does not know yet.
    unknown = first is None or second is None or first != first or second != second
    return bool(unknown or first == second)


def _coefficient(
    argument: str, value: object, logits: Array, xp: Namespace, device: Any, dtype: Any
) -> Array | float:
    """A coefficient as a float, or an array of `xp` that broadcasts to the shape of `logits`."""
    if isinstance(value, (bool, int, float)):
        try:
            number = float(value)
        except OverflowError:
            raise ValueError(f"`{argument}` must fit in a float; got a larger integer.") from None
        return float(_rounded_to_odd(np.asarray(number))) if _is_half(dtype) else number

    array: Array
    if _is_array(value) and not isinstance(value, np.ndarray):
        check_dtype(argument, value.dtype, xp)
        array = value
    elif is_numpy_namespace(xp):
        array = _as_numpy(argument, value)
    else:
        array = _converted(argument, value, xp, device, dtype)
    shape, target = _known_shape(array), _known_shape(logits)
    if shape is not None and target is not None:
        _check_broadcasts(argument, shape, target)
    return array


def _converted(argument: str, value: object, xp: Namespace, device: Any, dtype: Any) -> Array:
    """A coefficient that NumPy can read, as an array of `xp`."""
    try:
        array = _as_numpy(argument, value)
    except TypeError:
        if not _holds_array(value):
            raise
        # NumPy cannot read numbers that JAX traces, or that are on another device.
        return xp.asarray(value, dtype=dtype, device=device)
    # float64 holds every NumPy dtype that other libraries refuse; `dtype` is what they have
    array = array.astype(np.float64, order="C")
    # JAX and Dask have NumPy convert.
    with np.errstate(over="ignore", under="ignore"):
        if _is_half(dtype):
            array = _rounded_to_odd(array)
        return xp.asarray(array, dtype=dtype, device=device)


def _is_half(dtype: Any) -> bool:
    # bfloat16 is one, too.
    return "float16" in str(dtype)


@np.errstate(over="ignore", under="ignore")
def _rounded_to_odd(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 numbers that round to half precision as these of float64 do.

    Libraries round to float32 first, and may so come to lie half-way between two numbers.
    """
    single = values.astype(np.float32)
    towards_zero = np.nextafter(single, np.float32(0))
    smaller = np.where(np.abs(single) > np.abs(values), towards_zero, single)
    is_exact = (single == values) | np.isnan(single)
    return np.where(is_exact, single, (smaller.view(np.int32) | 1).view(np.float32))


def _holds_array(value: object) -> bool:
    return isinstance(value, (list, tuple)) and any(
        _is_array(item) or _holds_array(item) for item in value
    )


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


def _checked_outs(out: object, call: Call) -> tuple[Array, ...]:
    """The outputs, one for each result."""
    library = library_of(call.xp)
    if not library.writable:
        raise TypeError(
            f"`out` must be None for {library.name} arrays, which cannot be written "
            "in place; got an output."
        )
    if len(call.orders) == 1:
        _check_out("out", out, call, call.orders[0])
        return (out,)
    if not isinstance(out, (tuple, list)):
        raise TypeError(f"`out` must be a pair of arrays; got {_kind_of(out)}.")
    if len(out) != len(call.orders):
        raise ValueError(f"`out` must be a pair of arrays; got {len(out)} of them.")
    for index, order in enumerate(call.orders):
        _check_out(f"out[{index}]", out[index], call, order)
    if any(one is other or share_memory(one, other) for one, other in combinations(out, 2)):
        refuse_shared_outs()
    return tuple(out)


def _check_out(argument: str, out: object, call: Call, order: int) -> None:
    refuse_mask_and_unit(argument, out)
    xp, shape = call.xp, result_shape(call, order)
    if not _is_array(out) or namespace_of(out) is not xp:
        raise TypeError(
            f"`{argument}` must be an array of {library_of(xp).name}; got {_kind_of(out)}."
        )
    if out.dtype != call.dtype:
        raise TypeError(f"`{argument}` must have dtype {call.dtype}; got {out.dtype}.")
    if tuple(out.shape) != shape:
        raise ValueError(f"`{argument}` must have shape {shape}; got {tuple(out.shape)}.")
    if device_of(out) != device_of(call.logits):
        raise ValueError(
            f"`{argument}` must be on device {device_of(call.logits)}; got {device_of(out)}."
        )
    if not is_writeable_array(out):
        raise ValueError(f"`{argument}` must be writable; got a read-only array.")
    if isinstance(out, np.ndarray) and kernel.overlaps_itself(out):
        raise ValueError(f"`{argument}` must not overlap itself; got strides {out.strides}.")


def share_memory(first: Array, second: Array) -> bool:
    # The exact question is NP-hard. Beyond this bound on work, overlap is assumed.
    return isinstance(first, np.ndarray) and np.may_share_memory(
        first,
        second,
        max_work=1000,  # type: ignore[arg-type]
    )
