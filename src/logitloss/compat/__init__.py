"""Other libraries' own signatures, each in a module that is imported at its first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from logitloss.compat import v1

if TYPE_CHECKING:
    from logitloss.compat import boosting as boosting
    from logitloss.compat import keras as keras
    from logitloss.compat import sklearn as sklearn
    from logitloss.compat import torch as torch

__all__ = ["v1"]

_ON_DEMAND = {"boosting", "keras", "sklearn", "torch"}

if not TYPE_CHECKING:

    def __getattr__(name):
        if name in _ON_DEMAND:
            return import_module(f"logitloss.compat.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
