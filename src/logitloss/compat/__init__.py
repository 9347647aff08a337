"""Signatures of other versions of TensorFlow."""

from logitloss.compat import v1

__all__ = ["v1"]
