"""Everything that this package asks of TensorFlow under a private name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

try:
    from tensorflow.python.pywrap_tfe import TFE_Py_TapeSetPossibleGradientTypes as _gradient_types
except ImportError:  # pragma: no cover - a TensorFlow that has moved it
    _gradient_types = None


def is_recorded(tensors: Sequence[Any]) -> bool:
    """Whether a tape or a forward accumulator follows one of these eager tensors.

    Where TensorFlow does not say, what can be differentiated counts as followed: all the results
    are the same, and some take longer.
    """
    return _gradient_types is None or _gradient_types(tensors) != 0
