"""Weighted binary cross-entropy from logits, for any array library."""

from typing import TYPE_CHECKING

from logitloss import compat
from logitloss._losses import (
    grad_and_hess,
    sigmoid_cross_entropy_with_logits,
    value_and_grad,
    weighted_cross_entropy_with_logits,
)
from logitloss._threads import get_num_threads, set_num_threads, show_config

__all__ = [
    "compat",
    "get_num_threads",
    "grad_and_hess",
    "set_num_threads",
    "show_config",
    "sigmoid_cross_entropy_with_logits",
    "value_and_grad",
    "weighted_cross_entropy_with_logits",
]

__version__: str

if not TYPE_CHECKING:

    def __getattr__(name):
        # importlib.metadata takes longer to import than the rest of the package.
        if name == "__version__":
            from importlib.metadata import version

            return version("logitloss")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
