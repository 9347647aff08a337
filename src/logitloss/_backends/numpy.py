"""NumPy arrays, computed by the compiled kernel as they lie in memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from logitloss import _reductions
from logitloss._backends import generic
from logitloss._call import Call
from logitloss._kernel import kernel


def compute(call: Call) -> tuple[Any, ...]:
    outs = call.outs
    reduction = _reductions.for_kernel(call.reduction, call.logits, call.weight, call.xp)
    results = kernel.compute(
        call.orders,
        call.labels,
        call.logits,
        call.pos_weight,
        call.weight,
        reduction,
        # The kernel takes no subclasses.
        None if outs is None else tuple(map(np.asarray, outs)),
        is_checked=True,
    )
    if results is None:
        # There is no kernel for long double.
        return generic.compute(call)
    return results if outs is None else outs
