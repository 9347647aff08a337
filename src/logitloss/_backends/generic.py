"""The formula on any array library: cast, compute, weight, reduce, round, write."""

from __future__ import annotations

import numpy as np

from logitloss import _formula, _reductions
from logitloss._call import Call
from logitloss._formula import Array
from logitloss._libraries import placement


# Many libraries compute through NumPy, where an underflow or an infinite coefficient would warn,
# or raise under the caller's np.seterr.
@np.errstate(all="ignore")
def compute(call: Call) -> tuple[Array, ...]:
    inputs = cast(call)
    xp, weight = inputs.xp, inputs.weight
    results = _formula.derivatives(
        inputs.orders, inputs.labels, inputs.logits, inputs.pos_weight, xp
    )
    results = tuple(_reductions.masked(result, weight, xp) for result in results)
    if call.reduction != "none":
        divisor = _reductions.divisor(call.reduction, inputs.logits, weight, xp)
        results = _reductions.reduce_each(results, call.orders, divisor, weight, xp)
    if call.reduction != _reductions.TOTAL:
        results = tuple(xp.astype(result, call.dtype, copy=False) for result in results)
    return tuple(map(_deliver, results, call.outs or (None,) * len(results)))


def cast(call: Call) -> Call:
    """Make every argument an array of the dtype in which the formula is computed."""
    return call._replace(
        labels=_cast(call.labels, call),
        logits=_cast(call.logits, call),
        pos_weight=_cast(call.pos_weight, call),
        weight=None if call.weight is None else _cast(call.weight, call),
    )


def _cast(value: Array | float, call: Call) -> Array:
    """Round to the result dtype, then widen half precision, which is computed in float32."""
    xp, dtype = call.xp, call.dtype
    if isinstance(value, float):
        value = xp.asarray(value, dtype=dtype, device=placement(call.logits, xp))
    value = xp.astype(value, dtype, copy=False)
    return xp.astype(value, xp.result_type(dtype, xp.float32), copy=False)


def _deliver(result: Array, out: Array | None) -> Array:
    if out is not None:
        out[...] = result
        return out
    # NumPy's own functions return scalars for 0-d results.
    return result[()] if isinstance(result, np.ndarray) and result.ndim == 0 else result
