"""TensorFlow 1.x, where the labels were called `targets`."""

from __future__ import annotations

import warnings

from logitloss import _losses
from logitloss._formula import Array
from logitloss._libraries import hidden_from_autograph

__all__ = ["weighted_cross_entropy_with_logits"]


@hidden_from_autograph
def weighted_cross_entropy_with_logits(
    labels: Array | None = None,
    logits: Array | None = None,
    pos_weight: Array | float | None = None,
    name: str | None = None,
    targets: Array | None = None,
) -> Array:
    """Weighted binary cross-entropy, with the signature of TensorFlow 1.x.

    Parameters
    ----------
    labels, logits, pos_weight, name
        As in `logitloss.weighted_cross_entropy_with_logits`; the first three are required.
    targets : array or array-like, optional
        Deprecated name of `labels`.

    Returns
    -------
    array
        The loss of each element.

    Raises
    ------
    TypeError
        As in `logitloss.weighted_cross_entropy_with_logits`.
    ValueError
        As there. Also if both `labels` and `targets` are given, or a required argument is missing.

    Examples
    --------
    >>> import numpy as np
    >>> from logitloss.compat import v1
    >>> v1.weighted_cross_entropy_with_logits(np.array([1.0]), np.array([0.0]), 2.0)
    array([1.38629436])
    """
    if targets is not None and labels is None:
        warnings.warn(
            "`targets` is deprecated; pass `labels` instead.", DeprecationWarning, stacklevel=2
        )
    labels = _resolve_targets(labels, targets)
    _require(labels=labels, logits=logits, pos_weight=pos_weight)
    return _losses.weighted_cross_entropy_with_logits(labels, logits, pos_weight, name)


def _resolve_targets(labels: object, targets: object) -> object:
    """The labels of a TensorFlow 1 call, which may have either name."""
    if targets is None:
        return labels
    if labels is not None:
        raise ValueError("Cannot specify both 'targets' and 'labels'")
    return targets


def _require(**given: object) -> None:
    for argument, value in given.items():
        if value is None:
            raise ValueError(f"`{argument}` must be given; got None.")
