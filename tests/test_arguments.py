"""Every rule that an argument can break: the kind of error, and what its message names."""

from __future__ import annotations

import re

import backends
import numpy as np
import pytest
from backends import Backend

import logitloss
from logitloss import weighted_cross_entropy_with_logits as weighted

ONES = np.ones((2, 3))

FUNCTIONS = {
    "weighted": weighted,
    "sigmoid": lambda z, x, q, **kw: logitloss.sigmoid_cross_entropy_with_logits(z, x, **kw),
    "value_and_grad": logitloss.value_and_grad,
    "grad_and_hess": logitloss.grad_and_hess,
}


def raises(error: type[Exception], *parts: str):
    """Expect `error` whose message contains `parts` in this order."""
    return pytest.raises(error, match=".*".join(map(re.escape, parts)))


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize(
    ("labels", "logits"), [((3, 1), (3,)), ((3,), (3, 1)), ((2, 3), (3, 2)), ((1,), ()), ((0,), ())]
)
def test_shapes_must_be_equal(backend: Backend, function, labels, logits) -> None:
    z, x = backend.array(np.ones(labels), "float32"), backend.array(np.ones(logits), "float32")
    with raises(
        ValueError,
        "`labels` and `logits` must have the same shape; got ",
        str(labels),
        str(logits),
    ):
        function(z, x, 1.0)


def test_a_number_is_not_broadcast_either() -> None:
    with raises(ValueError, "must have the same shape", "()", "(2, 3)"):
        weighted(1.0, ONES, 1.0)


@pytest.mark.parametrize("argument", ["pos_weight", "weight"])
@pytest.mark.parametrize("shape", [(2,), (4,), (3, 2), (1, 2, 3), (0,), (2, 0)])
def test_coefficients_must_broadcast(backend: Backend, argument: str, shape) -> None:
    ones = backend.array(ONES, "float32")
    coefficients = {"pos_weight": 1.0, argument: backend.array(np.ones(shape), "float32")}
    with raises(ValueError, f"`{argument}` must broadcast", "`logits`, (2, 3); got", str(shape)):
        weighted(ones, ones, **coefficients)


def test_coefficients_must_not_enlarge_the_result() -> None:
    with raises(ValueError, "`pos_weight` must broadcast", "(3, 1)", "(3, 4)"):
        weighted(np.ones((3, 1)), np.ones((3, 1)), np.ones((3, 4)))
    with raises(ValueError, "`pos_weight` must broadcast", "()", "(1,)"):
        weighted(np.float64(1), np.float64(1), np.ones(1))


@pytest.mark.parametrize(
    ("shape", "size", "hint"),
    [
        ((2, 3), 2, "applies along axis 0 once reshaped to (2, 1)"),
        ((2, 3, 4), 3, "applies along axis 1 once reshaped to (3, 1)"),
        ((2, 3, 4), 2, "applies along axis 0 once reshaped to (2, 1, 1)"),
    ],
)
def test_pos_weight_for_another_axis_gets_a_hint(shape, size: int, hint: str) -> None:
    with raises(ValueError, f"got shape ({size},), which {hint}."):
        weighted(np.ones(shape), np.ones(shape), np.ones(size))


@pytest.mark.parametrize("argument", ["labels", "logits", "pos_weight", "weight"])
@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.ones(3, "complex64"), "complex64"),
        (np.ones(3, object), "object"),
        (np.array(["1", "0", "1"]), "<U1"),
        (np.array([b"1", b"0", b"1"]), "|S1"),
        (np.ones(3, "datetime64[s]"), "datetime64[s]"),
        (np.ones(3, "timedelta64[s]"), "timedelta64[s]"),
        (np.ones(3, [("field", "f8")]), "field"),
        ([1j, 2j, 3j], "complex128"),
        ("text", "<U4"),
        (1j, "complex128"),
        (object(), "object"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_must_be_real(argument: str, value, dtype: str) -> None:
    arguments = {"labels": np.ones(3), "logits": np.ones(3), "pos_weight": 1.0, argument: value}
    with raises(TypeError, f"`{argument}` must hold real floating, integer or boolean", dtype):
        weighted(**arguments)


@pytest.mark.parametrize("argument", ["labels", "logits", "pos_weight"])
def test_none_is_no_array(argument: str) -> None:
    arguments = {"labels": np.ones(3), "logits": np.ones(3), "pos_weight": 1.0, argument: None}
    with raises(TypeError, f"`{argument}` must hold real", "object"):
        weighted(**arguments)


@pytest.mark.parametrize("argument", ["labels", "logits", "pos_weight"])
def test_values_of_other_libraries_must_be_real(backend: Backend, argument: str) -> None:
    if backend.device is not None and "float64" not in backend.dtypes:
        pytest.skip("this device has no complex128")
    if backend.name == "ndonnx":
        pytest.skip("ndonnx has no complex numbers")
    one = backend.array(np.ones(3), "float32")
    arguments = {"labels": one, "logits": one, "pos_weight": 1.0}
    arguments[argument] = backend.array(np.ones(3, complex))
    with raises(TypeError, f"`{argument}` must hold real", "complex128"):
        weighted(**arguments)


def test_eight_bit_floats_are_refused() -> None:
    import ml_dtypes

    with raises(TypeError, "`labels` must hold real", "float8_e4m3fn"):
        weighted(np.ones(3, ml_dtypes.float8_e4m3fn), np.ones(3), 1.0)
    torch = pytest.importorskip("torch")
    with raises(TypeError, "`labels` must hold real", "float8_e4m3fn"):
        weighted(torch.ones(3).to(torch.float8_e4m3fn), torch.ones(3), 1.0)


def test_dtypes_without_a_common_one() -> None:
    with raises(
        TypeError, "`labels` and `logits` must have floating dtypes", "bfloat16", "float16"
    ):
        weighted(np.ones(3, "bfloat16"), np.ones(3, "float16"), 1.0)


def test_ragged_lists_are_refused() -> None:
    with raises(ValueError, "`labels` must be an array of numbers"):
        weighted([[1.0], [1.0, 0.0]], np.ones((2, 1)), 1.0)


@pytest.mark.parametrize("argument", ["labels", "logits", "pos_weight", "weight"])
def test_masked_arrays_are_refused(argument: str) -> None:
    arguments = {"labels": np.ones(3), "logits": np.ones(3), "pos_weight": 1.0}
    arguments[argument] = np.ma.array([1.0, 0.0, 1.0], mask=[0, 1, 0])
    with raises(TypeError, f"`{argument}` must not be a masked array", "weight=", "MaskedArray"):
        weighted(**arguments)


def test_pos_weight_beyond_float_is_refused() -> None:
    with raises(ValueError, "`pos_weight` must fit in a float"):
        weighted([1.0], [1.0], 10**400)


@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
def test_numpy_data_beside_another_library(library: str) -> None:
    other, mine = backends.get(library).array(np.ones(3)), np.ones(3)
    for labels, logits in ((other, mine), (mine, other)):
        with raises(TypeError, "must be arrays of the same library; got"):
            weighted(labels, logits, 1.0)
    with raises(TypeError, "`pos_weight` and `labels`", f"got {library} and numpy"):
        weighted(mine, mine, other)


def test_two_libraries_are_named() -> None:
    torch, strict = backends.get("torch"), backends.get("array_api_strict")
    ones = np.ones(3)
    with raises(TypeError, "`labels` and `logits`", "got torch and array_api_strict."):
        weighted(torch.array(ones), strict.array(ones), 1.0)
    with raises(TypeError, "`labels` and `weight`", "got torch and array_api_strict."):
        weighted(torch.array(ones), torch.array(ones), 1.0, weight=strict.array(ones))


def test_two_devices_are_named() -> None:
    here, there = backends.get("array_api_strict"), backends.get("array_api_strict-device1")
    one, other = here.array(np.ones(3)), there.array(np.ones(3))
    for arguments in ((one, other, 1.0), (one, one, other)):
        with raises(ValueError, "must be on the same device; got", "CPU_DEVICE", "device1"):
            weighted(*arguments)


def test_torch_meta_device_is_another_device() -> None:
    torch = pytest.importorskip("torch")
    with raises(ValueError, "`labels` and `logits` must be on the same device; got cpu and meta."):
        weighted(torch.ones(3), torch.ones(3, device="meta"), 1.0)


@pytest.mark.parametrize(
    "reduction", ["max", "None", "total", None, 0, 2.0, "batchmean", np.ones(2), []]
)
def test_unknown_reduction_names_the_known_ones(reduction) -> None:
    message = "`reduction` must be 'none', 'sum', 'mean' or 'weighted_mean'; got"
    for name in ("weighted", "sigmoid", "value_and_grad"):
        for one in ([1.0], np.ones(1)):
            with raises(ValueError, message):
                FUNCTIONS[name](one, one, 1.0, reduction=reduction)


def test_name_must_be_a_string() -> None:
    with raises(TypeError, "`name` must be a string or None; got an object of type list."):
        weighted([1.0], [1.0], 1.0, [1.0])
    with raises(TypeError, "`name` must be a string or None; got 2.0."):
        logitloss.sigmoid_cross_entropy_with_logits([1.0], [1.0], 2.0)
    assert weighted([1.0], [0.0], 1.0, "a name") == weighted([1.0], [0.0], 1.0)
