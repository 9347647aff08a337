"""Read what is not an array yet, and lose nothing on the way.

`np.asarray` silently drops masks and units, and the numbers under a mask would count in the loss.
It turns columns with missing values into objects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from logitloss._libraries import is_array, is_masked_tensor

_SCALARS = (bool, int, float, complex, str, bytes, np.generic, type(None))
_REAL = (bool, int, float, np.bool_, np.integer, np.floating)
# Compared by name, so that neither pandas nor polars is imported.
_MISSING = {"NoneType", "NAType"}


def read(argument: str, value: Any) -> Any:
    """`value` in a form that NumPy reads correctly; TypeError if a mask or unit would be lost.

    Arrays are left alone, whatever their library.
    """
    kind = type(value)
    if kind is np.ndarray or issubclass(kind, _SCALARS):
        return value
    refuse_mask_and_unit(argument, value)
    if is_array(value):
        return value
    if hasattr(kind, "__array__"):
        return _read_object(argument, value)
    if _is_sequence(kind):
        return _read_items(argument, value)
    return value


def refuse_mask_and_unit(argument: str, value: Any) -> None:
    if _is_masked(value):
        raise TypeError(
            f"`{argument}` must not be a masked array: pass its data, and the mask as "
            f"weight=~mask; got {type(value).__name__}."
        )
    if is_masked_tensor(value):
        raise TypeError(
            f"`{argument}` must not be a masked array: pass its get_data(), and its get_mask() as "
            f"weight; got {type(value).__name__}."
        )
    unit = _unit_of(value)
    if unit:
        raise TypeError(
            f"`{argument}` must not have a unit: pass its value as a plain number or array; "
            f"got unit {unit}."
        )


def _is_masked(value: Any) -> bool:
    # The empty sample of a Dask array shows what its chunks are.
    for array in (value, getattr(value, "_meta", None)):
        # Only a subclass of ndarray can be masked. For others importing np.ma would be wasted.
        if isinstance(array, np.ndarray) and type(array) is not np.ndarray:
            if isinstance(array, np.ma.MaskedArray):
                return True
    mask = _attribute(value, "mask")
    # In netCDF4 `mask` says whether a variable is masked at all.
    return mask is not None and not isinstance(mask, (bool, np.bool_))


def _unit_of(value: Any) -> str:
    """The unit as astropy, pint and unyt spell it; nothing where there is none."""
    for name in ("unit", "units"):
        unit = _attribute(value, name)
        if unit is not None and str(unit) != "dimensionless":
            return str(unit)
    return ""


def _attribute(value: Any, name: str) -> Any:
    """An attribute of an array, unless it is a method, or a table's column of that name."""
    is_plain = isinstance(value, np.ndarray) and value.dtype.names is None
    found = getattr(value, name, None) if is_plain or hasattr(type(value), name) else None
    return None if callable(found) else found


def _read_object(argument: str, value: Any) -> Any:
    # `__array__` may drop a mask that a slice, or the array inside an xarray object, still shows.
    refuse_mask_and_unit(argument, _nothing_of(value))
    if hasattr(type(value), "dims"):
        refuse_mask_and_unit(argument, _attribute(value, "data"))
    try:
        array = np.asanyarray(value)
    except (TypeError, ValueError):
        # The next reader gets the same error, and can explain it better.
        return value
    refuse_mask_and_unit(argument, array)
    return _numbers(array) if array.dtype == object else np.asarray(array)


def _nothing_of(value: Any) -> Any:
    """A slice without elements."""
    try:
        return value[:0]
    except Exception:
        # It has no dimensions or cannot be sliced. Each library raises its own error.
        return None


def _numbers(column: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A column or table of objects as numbers, missing ones NaN; as it is if it has any others."""
    kinds = set(map(type, column.flat))
    missing = {kind for kind in kinds if kind.__name__ in _MISSING}
    if not all(issubclass(kind, _REAL) for kind in kinds - missing):
        return column
    numbers = [math.nan if type(item) in missing else item for item in column.flat]
    return np.array(numbers, np.float64).reshape(column.shape)


def _is_sequence(kind: type) -> bool:
    """Whether NumPy reads an object item by item."""
    has_items = hasattr(kind, "__len__") and hasattr(kind, "__getitem__")
    return has_items and not issubclass(kind, (Mapping, memoryview))


def _read_items(argument: str, value: Any) -> Any:
    """A list or another sequence; with all items read if they are not plain numbers."""
    if all(issubclass(kind, _SCALARS) for kind in set(map(type, value))):
        return value
    return [read(argument, item) for item in value]
