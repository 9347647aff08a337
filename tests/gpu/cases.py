"""What the tests on GPUs have in common: values, and how results are compared with the CPU's."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from backends import Backend

import logitloss

GPUS = ("torch-cuda", "cupy", "jax-cuda")
# Those whose arrays the kernel takes.
KERNEL = ("torch-cuda", "cupy")
REDUCED = ("sum", "mean", "weighted_mean")

# What is computed, by what it is called with.
CALLS = {
    "loss": lambda *a, **options: (logitloss.weighted_cross_entropy_with_logits(*a, **options),),
    "value_and_grad": logitloss.value_and_grad,
    "grad_and_hess": logitloss.grad_and_hess,
}


def served_by_kernel(backend: Backend) -> bool:
    computed = (logitloss.show_config("dicts") or {}).get("cuda", "")
    return backend.name in ("torch", "cupy") and str(computed).startswith("kernel")


def integers(values: np.ndarray) -> np.ndarray:
    """The bits as signed integers, which are ordered as the numbers are."""
    bits = values.view(f"i{values.itemsize}").astype(np.int64)
    smallest = np.int64(-(2 ** (8 * values.itemsize - 1)))
    return np.where(bits < 0, smallest - bits, bits)


def of_any_bits(rng: np.random.Generator, size: int, dtype: str) -> np.ndarray:
    """Numbers of every exponent, among them infinite ones, subnormal ones and NaN."""
    itemsize = np.dtype(dtype).itemsize
    return rng.integers(0, 256, size * itemsize, np.uint8).view(dtype)


@functools.cache
def anything(dtype: str, size: int) -> list[np.ndarray]:
    """Labels, logits, pos_weight and weight with everything that there is."""
    rng = np.random.default_rng(0)

    def mixed(rare: float, *kinds: Any) -> np.ndarray:
        values = np.choose(rng.integers(0, len(kinds), size), kinds).astype(dtype)
        return np.where(rng.random(size) < rare, of_any_bits(rng, size, dtype), values)

    with np.errstate(over="ignore", invalid="ignore"):
        wide = 10.0 ** rng.uniform(-40, 40, size)
        return [
            mixed(0.02, 0.0, 1.0, rng.random(size), 1e-6 * rng.random(size)),
            mixed(0.5, rng.normal(0, 6, size), rng.normal(0, 60, size)),
            mixed(0.02, 1.0, rng.uniform(0, 4, size), wide),
            mixed(0.02, 0.0, 1.0, rng.uniform(0, 4, size), wide),
        ]


@functools.cache
def ordinary(dtype: str, shape: int | tuple[int, ...]) -> list[np.ndarray]:
    """Hard labels, so that nothing cancels, with logits, pos_weight and weight as they are."""
    rng = np.random.default_rng(1)
    drawn = [rng.random(shape) < 0.3, rng.normal(0, 6, shape)]
    drawn += [rng.uniform(0.5, 4, shape) for _ in range(2)]
    return [np.asarray(values).astype(dtype) for values in drawn]


def assert_as_on_cpu(backend: Backend, got: Sequence[Any], expected: Sequence[Any]) -> None:
    """The same bits by the kernel, NaN apart; elsewhere some units in the last place."""
    assert_within(0 if served_by_kernel(backend) else 8, backend, got, expected)


def assert_within(
    bound: int, backend: Backend, got: Sequence[Any], expected: Sequence[Any]
) -> None:
    for result, on_cpu in zip(got, expected, strict=True):
        on_cpu = np.atleast_1d(np.asarray(on_cpu))
        assert str(result.dtype).endswith(on_cpu.dtype.name)
        # bfloat16 may come as float32.
        result = np.atleast_1d(backend.to_numpy(result)).astype(on_cpu.dtype)
        assert result.shape == on_cpu.shape
        differs = (result != on_cpu) | (np.signbit(result) != np.signbit(on_cpu))
        differs &= ~(np.isnan(result) & np.isnan(on_cpu))
        theirs, ours = result[differs], on_cpu[differs]
        away = np.abs(integers(theirs) - integers(ours))
        worst = away.argmax() if away.size else 0
        assert (away <= bound).all(), (
            f"{np.count_nonzero(away > bound)} of {result.size} differ by more than {bound} ulp; "
            f"most {theirs[worst]!r} from {ours[worst]!r}"
        )
