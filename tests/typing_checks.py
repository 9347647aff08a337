"""What a type checker is told; mypy reads this file, and nothing runs it."""

from typing import Any, assert_type

import numpy as np
import torch
from numpy.typing import NDArray

from logitloss import (
    grad_and_hess,
    sigmoid_cross_entropy_with_logits,
    value_and_grad,
    weighted_cross_entropy_with_logits,
)

Array = np.ndarray[Any, Any]
Scalar = np.floating[Any]


def numpy_arrays(z: NDArray[np.int64], x: NDArray[np.float32]) -> None:
    assert_type(weighted_cross_entropy_with_logits(z, x, 2.0), Array)
    assert_type(weighted_cross_entropy_with_logits(z, x, [1.0, 2.0], reduction="none"), Array)
    assert_type(weighted_cross_entropy_with_logits(z, x, 2, reduction="mean"), Scalar)
    assert_type(weighted_cross_entropy_with_logits(x, x, x, weight=x, reduction="sum"), Scalar)
    assert_type(sigmoid_cross_entropy_with_logits(z, x), Array)
    assert_type(sigmoid_cross_entropy_with_logits(z, x, reduction="weighted_mean"), Scalar)
    assert_type(value_and_grad(z, x), tuple[Array, Array])
    assert_type(value_and_grad(z, x, reduction="mean"), tuple[Scalar, Array])
    assert_type(grad_and_hess(z, x, 2.0, weight=x), tuple[Array, Array])


def tensors(z: torch.Tensor, x: torch.Tensor) -> None:
    assert_type(weighted_cross_entropy_with_logits(z, x, 2.0), torch.Tensor)
    assert_type(weighted_cross_entropy_with_logits(z, x, z, reduction="mean"), torch.Tensor)
    assert_type(value_and_grad(z, x, reduction="mean"), tuple[torch.Tensor, torch.Tensor])
    assert_type(grad_and_hess(z, x), tuple[torch.Tensor, torch.Tensor])


def anything_else(z: list[int], x: Any) -> None:
    assert_type(weighted_cross_entropy_with_logits(z, [0.5, 1.5], 2.0), Any)
    assert_type(grad_and_hess(z, [0.5, 1.5]), tuple[Any, Any])
    assert_type(value_and_grad(z, x, reduction="mean"), tuple[Any, Any])


def wrong(x: NDArray[np.float64]) -> None:
    weighted_cross_entropy_with_logits(x, x)  # type: ignore[call-overload]
    weighted_cross_entropy_with_logits(x, x, 2.0, reduction="men")  # type: ignore[call-overload]
    grad_and_hess(x, x, reduction="mean")  # type: ignore[call-overload]
