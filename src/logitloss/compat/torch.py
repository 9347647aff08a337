"""PyTorch: its loss with logits under its own names and in its own order, scores first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from logitloss import _losses
from logitloss._array_likes import read
from logitloss._call import check_dtype

if TYPE_CHECKING:
    from logitloss._losses import Reduction

__all__ = ["BCEWithLogitsLoss", "binary_cross_entropy_with_logits"]


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """Binary cross-entropy from logits as a module, to replace ``torch.nn.BCEWithLogitsLoss``.

    The class is a subclass of the original, because some libraries ask which criterion they were
    given: skorch applies a sigmoid to predictions only if it is this one.

    Parameters
    ----------
    weight : Tensor, array-like or float, optional
        Weight of each element, which broadcasts to the input. An element of weight zero contributes
        exactly zero, even if it is NaN.
    reduction : {"mean", "sum", "none", "weighted_mean"}
        As in `logitloss.weighted_cross_entropy_with_logits`. As in PyTorch, ``"mean"`` divides by
        the number of elements, whatever their weights.
    pos_weight : Tensor, array-like or float, optional
        Weight of the positive term, one number or one for each class, which broadcasts to the
        input.
    size_average, reduce : None
        Deprecated by PyTorch. Anything except None is a TypeError.

    Attributes
    ----------
    weight, pos_weight : Tensor or None
        Buffers, as in PyTorch: they move with the module, and ``state_dict`` includes them.

    See Also
    --------
    binary_cross_entropy_with_logits : The same loss as a function.
    logitloss.weighted_cross_entropy_with_logits : The formula, the accuracy and the special values.

    Examples
    --------
    >>> import torch
    >>> from logitloss.compat.torch import BCEWithLogitsLoss
    >>> criterion = BCEWithLogitsLoss(pos_weight=torch.tensor([3.0]))
    >>> output = torch.tensor([[0.5], [-2.0]], requires_grad=True)
    >>> loss = criterion(output, torch.tensor([[1.0], [0.0]]))
    >>> loss.backward()
    >>> round(loss.item(), 4)
    0.7746
    """

    def __init__(
        self,
        weight: Any = None,
        reduction: str = "mean",
        pos_weight: Any = None,
        *,
        size_average: None = None,
        reduce: None = None,
    ) -> None:
        _refuse_legacy(reduction, size_average=size_average, reduce=reduce)
        super().__init__(
            weight=_buffer("weight", weight),
            reduction=reduction,
            pos_weight=_buffer("pos_weight", pos_weight),
        )

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of the logits `input` for the labels `target`."""
        return binary_cross_entropy_with_logits(
            input, target, self.weight, reduction=self.reduction, pos_weight=self.pos_weight
        )


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | float | None = None,
    *,
    reduction: str = "mean",
    pos_weight: Tensor | float | None = None,
    size_average: None = None,
    reduce: None = None,
) -> Tensor:
    """Binary cross-entropy from logits, with the signature of PyTorch's function.

    Parameters
    ----------
    input, target : Tensor
        Logits and labels, of the same shape. In all other functions of logitloss labels come first.
    weight, reduction, pos_weight, size_average, reduce
        As in `BCEWithLogitsLoss`.

    Returns
    -------
    Tensor
        The loss, reduced to its mean by default.

    Raises
    ------
    TypeError, ValueError
        As in `logitloss.weighted_cross_entropy_with_logits`.

    See Also
    --------
    BCEWithLogitsLoss : The same loss as a module.

    Examples
    --------
    >>> import torch
    >>> from logitloss.compat.torch import binary_cross_entropy_with_logits
    >>> output, labels = torch.tensor([0.5, -2.0]), torch.tensor([1.0, 0.0])
    >>> binary_cross_entropy_with_logits(output, labels, reduction="none")
    tensor([0.4741, 0.1269])
    """
    _refuse_legacy(reduction, size_average=size_average, reduce=reduce)
    if pos_weight is None:
        pos_weight = 1.0
    loss: Tensor = _losses.weighted_cross_entropy_with_logits(
        target,
        input,
        _beside(input, pos_weight),
        weight=_beside(input, weight),
        reduction=cast("Reduction", reduction),
    )
    return loss


def _beside(input: Any, value: Any) -> Any:
    """`value` where `input` is: PyTorch takes a CPU tensor without axes on every device."""
    tensors = isinstance(input, Tensor) and isinstance(value, Tensor)
    if not tensors or value.ndim or not value.is_cpu or value.device == input.device:
        return value
    return value.to(input.device, non_blocking=True)


def _refuse_legacy(reduction: object, **legacy: object) -> None:
    for argument, value in legacy.items():
        if value is not None:
            raise TypeError(
                f"`{argument}` must be None, because PyTorch has deprecated it: use `reduction`; "
                f"got {value!r}."
            )
    if isinstance(reduction, bool):
        # The second argument of PyTorch's module is `size_average`.
        raise TypeError(f"`reduction` must be a string; got {reduction!r}.")


def _buffer(argument: str, value: Any) -> Tensor | None:
    if value is None or isinstance(value, Tensor):
        return value
    array = np.asarray(read(argument, value))
    check_dtype(argument, array.dtype, np)
    # Python's numbers take PyTorch's default dtype. So do integers, because a buffer of integers
    # would round what `load_state_dict` copies into it.
    keeps_dtype = isinstance(value, (np.ndarray, np.generic)) and array.dtype.kind == "f"
    return torch.tensor(array, dtype=None if keeps_dtype else torch.get_default_dtype())
