"""What is accepted as an argument, and what comes back: library, device, dtype and shape."""

from __future__ import annotations

import math
from importlib.util import find_spec

import backends
import numpy as np
import pytest
from backends import Backend

import logitloss
from logitloss import weighted_cross_entropy_with_logits as weighted

LABELS = np.array([[1.0, 0.0, 0.25], [0.0, 1.0, 1.0]])
LOGITS = np.array([[0.5, -3.0, 2.0], [-0.25, 4.0, -1.0]])
POS_WEIGHT = np.array([0.5, 1.0, 3.0])


def expected(labels=LABELS, logits=LOGITS, pos_weight=POS_WEIGHT, weight=1.0):
    near_zero = pos_weight * labels * np.log1p(np.exp(-logits))
    return weight * (near_zero + (1 - labels) * np.log1p(np.exp(logits)))


def assert_result(backend: Backend, got, values, dtype: str = "float64") -> None:
    """The values only to a few digits, everything else exactly."""
    backend.equals(got, backend.to_numpy(got), dtype)
    np.testing.assert_allclose(
        backend.to_numpy(got).astype(float), values, rtol=1e-5 if dtype == "float32" else 1e-14
    )


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0), (6,), (1, 2, 3), (1,) * 5])
def test_any_number_of_dimensions(backend: Backend, shape: tuple[int, ...]) -> None:
    size = math.prod(shape)
    labels = np.resize(LABELS, size).reshape(shape)
    logits = np.resize(LOGITS, size).reshape(shape)
    arrays = backend.array(labels, "float32"), backend.array(logits, "float32")
    values = expected(labels, logits, 2.0)
    assert_result(backend, weighted(*arrays, 2.0), values, "float32")
    for result in (*logitloss.value_and_grad(*arrays), *logitloss.grad_and_hess(*arrays)):
        backend.equals(result, backend.to_numpy(result).reshape(shape), "float32")


@pytest.mark.parametrize(
    "coefficient",
    [2.0, 2, True, POS_WEIGHT, POS_WEIGHT[None], POS_WEIGHT[:2, None], LABELS + 1, POS_WEIGHT[:1]],
    ids=lambda c: f"{type(c).__name__}{np.shape(c)}",
)
def test_coefficients_broadcast(backend: Backend, coefficient) -> None:
    dtype = backend.dtypes[-1] if backend.dtypes[-1] == "float32" else "float64"
    labels, logits = backend.array(LABELS, dtype), backend.array(LOGITS, dtype)
    given = (
        backend.array(coefficient, dtype) if isinstance(coefficient, np.ndarray) else coefficient
    )
    assert_result(backend, weighted(labels, logits, given), expected(pos_weight=coefficient), dtype)
    assert_result(
        backend,
        weighted(labels, logits, 1.0, weight=given),
        expected(pos_weight=1.0, weight=coefficient),
        dtype,
    )


@pytest.mark.parametrize(
    "convert",
    [np.asarray, np.float64, list, tuple, np.ndarray.tolist, lambda a: a.astype(">f8")[::-1][::-1]],
    ids=["array", "float64", "list", "tuple", "numbers", "byte-swapped"],
)
def test_numpy_coefficients_follow_the_arrays(backend: Backend, convert) -> None:
    labels, logits = backend.array(LABELS, "float32"), backend.array(LOGITS, "float32")
    pos_weight = np.float64(2.0) if convert is np.float64 else POS_WEIGHT
    got = weighted(labels, logits, convert(pos_weight), weight=convert(pos_weight))
    assert_result(backend, got, expected(pos_weight=pos_weight, weight=pos_weight), "float32")


def test_coefficients_never_promote(backend: Backend) -> None:
    wide = "float64" if "float64" in backend.dtypes else "float32"
    labels, logits = backend.array(LABELS, "float32"), backend.array(LOGITS, "float32")
    reference = backend.to_numpy(weighted(labels, logits, np.float32(0.1), weight=np.float32(0.7)))
    for tenth, seven_tenths in (
        (0.1, 0.7),
        (np.float64(0.1), np.float64(0.7)),
        (np.longdouble(0.1), np.longdouble(0.7)),
        (np.full(3, 0.1), np.full((2, 1), 0.7)),
        (backend.array(0.1, wide), backend.array([0.7], wide)),
    ):
        got = weighted(labels, logits, tenth, weight=seven_tenths)
        backend.equals(got, reference, "float32")


def test_coefficients_are_rounded_to_half_precision(backend: Backend) -> None:
    if "float16" not in backend.dtypes:
        pytest.skip(f"{backend.name} has no float16")
    labels, logits = backend.array([1.0], "float16"), backend.array([-100.0], "float16")
    # 2049 lies between the float16 numbers 2048 and 2050.
    for weights in ({"pos_weight": 2049}, {"pos_weight": 1, "weight": 2049}):
        loss = logitloss.weighted_cross_entropy_with_logits(
            labels, backend.array([-1.0], "float16"), **weights
        )
        rounded = {name: min(value, 2048) for name, value in weights.items()}
        same = logitloss.weighted_cross_entropy_with_logits(
            labels, backend.array([-1.0], "float16"), **rounded
        )
        backend.equals(loss, backend.to_numpy(same), "float16")
    assert math.isinf(backend.to_numpy(weighted(labels, logits, 1e6))[0])


@pytest.mark.parametrize(
    ("labels", "logits", "result"),
    [
        ("float32", "float32", "float32"),
        ("float32", "float64", "float64"),
        ("float64", "float32", "float64"),
        ("int64", "float32", "float32"),
        ("bool", "float16", "float16"),
        ("float16", "float32", "float32"),
        ("bfloat16", "float32", "float32"),
        ("bfloat16", "float64", "float64"),
        ("float16", "longdouble", "longdouble"),
        ("int32", "int64", "default"),
        ("bool", "bool", "default"),
        ("float32", "int8", "default"),
        ("float64", "int8", "float64"),
    ],
)
def test_result_dtype(backend: Backend, labels: str, logits: str, result: str) -> None:
    unsupported = {"float16", "bfloat16", "float64", "longdouble"} - set(backend.dtypes)
    if unsupported & {labels, logits, result}:
        pytest.skip(f"{backend.name} has no {unsupported} on this device")
    if result == "default":
        result = backend.default_float()
        if result not in backend.dtypes:
            pytest.skip("the default dtype of this library is not on this device")
    ones = np.ones(3)
    got = weighted(backend.array(ones, labels), backend.array(ones, logits), 2.0)
    assert got.dtype == backend.array(ones, result).dtype


def test_lists_follow_the_arrays(backend: Backend) -> None:
    default = backend.default_float()
    if default not in backend.dtypes:
        pytest.skip("the default dtype of this library is not on this device")
    labels, logits = backend.array(LABELS, default), backend.array(LOGITS, default)
    values = expected(pos_weight=2.0)
    assert_result(backend, weighted(LABELS.tolist(), logits, 2.0), values, default)
    assert_result(backend, weighted(labels, LOGITS.tolist(), 2.0), values, default)
    # A list of integers is an integer array: it takes the dtype of the logits.
    assert_result(
        backend,
        weighted((LABELS > 0.5).tolist(), backend.array(LOGITS, "float32"), 2.0),
        expected(LABELS > 0.5, pos_weight=2.0),
        "float32",
    )


@pytest.mark.parametrize("scalar", [1.0, 1, True])
def test_python_numbers_are_weak(backend: Backend, scalar: float) -> None:
    array = backend.array(0.5, "float32")
    assert_result(backend, weighted(scalar, array, 2), expected(scalar, 0.5, 2), "float32")
    assert_result(backend, weighted(array, scalar, 2), expected(0.5, float(scalar), 2), "float32")


def test_numbers_and_lists_alone_are_numpy() -> None:
    value = weighted(1, 0, 1)
    assert type(value) is np.float64
    assert value == math.log(2)
    assert type(weighted([1], [0], 1)) is np.ndarray
    loss, gradient = logitloss.value_and_grad([1, 0], [0.0, 0.0], reduction="sum")
    assert type(loss) is np.float64
    assert type(gradient) is np.ndarray


@pytest.mark.parametrize("library", ["jax", "dask"])
def test_numpy_beside_a_library_that_takes_it(library: str) -> None:
    other = backends.get(library)
    arrays = [LABELS.astype("float32"), LOGITS.astype("float32"), POS_WEIGHT.astype("float32")]
    for position in range(3):
        mixed = list(arrays)
        mixed[position] = other.array(arrays[position], "float32")
        assert_result(other, weighted(*mixed), expected(), "float32")


@pytest.mark.parametrize("array_type", ["Series", "memmap", "matrix", "subclass", "buffer"])
def test_anything_numpy_can_read(array_type: str, tmp_path) -> None:
    labels, logits = LABELS[:1], LOGITS[:1]

    class Subclass(np.ndarray):
        pass

    def convert(array):
        match array_type:
            case "Series":
                return pytest.importorskip("pandas").Series(array[0])
            case "memmap":
                path = tmp_path / f"{array.min()}"
                mapped = np.memmap(path, array.dtype, "w+", shape=array.shape)
                mapped[...] = array
                return mapped
            case "matrix":
                return array.view(np.matrix)
            case "subclass":
                return array.view(Subclass)
            case "buffer":
                return memoryview(array)

    got = weighted(convert(labels), convert(logits), 2.0)
    assert type(got) is np.ndarray
    np.testing.assert_allclose(got.reshape(1, 3), expected(labels, logits, 2.0), rtol=1e-14)


def pandas_columns():
    pandas = pytest.importorskip("pandas")
    missing = [True, None, False]
    columns = {
        dtype: pandas.Series(missing, dtype=dtype) for dtype in ("boolean", "Int64", "Float32")
    }
    columns["category of Int64"] = columns["Int64"].astype("category")
    columns["category of boolean"] = columns["boolean"].astype("category")
    columns["array"] = columns["boolean"].array
    columns["Index"] = pandas.Index(columns["boolean"])
    columns["object"] = pandas.Series(missing, dtype=object)
    if find_spec("pyarrow"):
        columns["bool[pyarrow]"] = pandas.Series(missing, dtype="bool[pyarrow]")
    return columns


def polars_columns():
    polars = pytest.importorskip("polars")
    return {
        name: polars.Series([True, None, False]).cast(getattr(polars, name))
        for name in ("Boolean", "Int64", "Float32")
    }


def pyarrow_columns():
    pyarrow = pytest.importorskip("pyarrow")
    missing = [True, None, False]
    return {"bool": pyarrow.array(missing), "chunks": pyarrow.chunked_array([missing])}


@pytest.mark.parametrize("columns", [pandas_columns, polars_columns, pyarrow_columns])
def test_missing_values_of_columns_are_nan(columns) -> None:
    logits, mask = np.array([0.5, -3.0, 2.0]), np.array([1, 0, 1])
    for name, column in columns().items():
        expected = weighted(np.array([1.0, np.nan, 0.0]), logits, 2.0)
        assert np.isnan(expected).tolist() == [False, True, False]
        np.testing.assert_array_equal(weighted(column, logits, 2.0), expected, name)
        np.testing.assert_array_equal(weighted([column], [logits], 2.0), [expected], name)
        expected = weighted(np.array([1.0, 0.0, 0.0]), logits, 2.0, weight=mask)
        np.testing.assert_array_equal(weighted(column, logits, 2.0, weight=mask), expected, name)
        # Everywhere else, too.
        ones = np.ones(3)
        for argument in ("logits", "pos_weight", "weight"):
            arguments = {"labels": ones, "logits": logits, "pos_weight": 1.0}
            got = weighted(**{**arguments, argument: column})
            expected = weighted(**{**arguments, argument: np.array([1.0, np.nan, 0.0])})
            np.testing.assert_array_equal(got, expected, name)


def test_tables_of_mixed_columns() -> None:
    pandas, logits = pytest.importorskip("pandas"), np.array([[0.5, -3.0], [2.0, 1.0], [0.0, -1.0]])
    expected = weighted(np.array([[1.0, 1], [0, 0], [1, 0]]), logits, 2.0)
    columns = {"int": [1, 0, 1], "bool": [True, False, False]}
    np.testing.assert_array_equal(weighted(pandas.DataFrame(columns), logits, 2.0), expected)
    if find_spec("polars"):
        import polars

        np.testing.assert_array_equal(weighted(polars.DataFrame(columns), logits, 2.0), expected)
    frame = pandas.DataFrame(columns).astype({"int": "Int64", "bool": "boolean"})
    frame.loc[1] = pandas.NA
    got = weighted(frame, logits, 2.0)
    np.testing.assert_array_equal(np.isnan(got), [[False] * 2, [True] * 2, [False] * 2])
    np.testing.assert_array_equal(got[::2], expected[::2])


def test_columns_of_anything_else_are_refused() -> None:
    pandas = pytest.importorskip("pandas")
    for values in (
        ["1", "0", None],
        [1j, None, 0],
        [pandas.Timestamp(0), None, None],
        [[1], [0], []],
    ):
        column = pandas.Series(values, dtype=object)
        with pytest.raises(TypeError, match=r"`labels` must hold real .* got dtype object"):
            weighted(column, np.zeros(3), 2.0)
    with pytest.raises(TypeError, match="got dtype object"):
        weighted([1.0, None, 0.0], np.zeros(3), 2.0)


LAYOUTS = {
    "Fortran order": np.asfortranarray,
    "reversed": lambda a: np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1],
    "strided": lambda a: np.repeat(a, 3, axis=1)[:, ::3],
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "unaligned": lambda a: np.frombuffer(b"x" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "longdouble"])
def test_layout_changes_no_bit(layout: str, dtype: str) -> None:
    if layout == "byte-swapped" and dtype == "bfloat16":
        pytest.skip("ml_dtypes has no byte-swapped bfloat16")
    arrays = [a.astype(dtype) for a in (LABELS, LOGITS, LABELS + 0.5, LABELS + 0.25)]
    *plain, weight = arrays
    expected_pair = logitloss.value_and_grad(*plain, weight=weight)
    *other, weight = map(LAYOUTS[layout], arrays)
    for array in (*other, weight):
        array.setflags(write=False)
    got_pair = logitloss.value_and_grad(*other, weight=weight)
    for got, same in zip(got_pair, expected_pair, strict=True):
        assert got.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(got, same)


def test_broadcast_views() -> None:
    labels, logits = np.broadcast_to(1.0, (4, 5)), np.broadcast_to(np.arange(5.0), (4, 5))
    got = weighted(labels, logits, np.broadcast_to(2.0, 5))
    np.testing.assert_array_equal(got, weighted(labels.copy(), logits.copy(), 2.0))


def test_dtypes_that_are_more_than_a_number() -> None:
    """With metadata, and of the fields of records, which lie apart and unaligned."""
    labels, logits = np.float32([1, 0, 0.5]), np.float32([0.5, -3, 2])
    expected = weighted(labels, logits, 2.0)
    tagged = np.dtype("f4", metadata={"unit": "nat"})
    got = weighted(labels.astype(tagged), logits.astype(tagged), 2.0)
    np.testing.assert_array_equal(got, expected, strict=True)
    assert got.dtype.metadata is None
    records = np.empty(3, [("tag", "u1"), ("z", "f4"), ("x", "f4")]).view(np.recarray)
    records.z, records.x = labels, logits
    np.testing.assert_array_equal(weighted(records.z, records.x, 2.0), expected, strict=True)


def test_torch_keeps_the_graph() -> None:
    torch = pytest.importorskip("torch")
    leaves = [torch.tensor(a, requires_grad=True) for a in (LABELS, LOGITS, POS_WEIGHT, LABELS + 1)]
    labels, logits, pos_weight, weight = leaves
    for reduction in ("none", "sum", "mean", "weighted_mean"):
        loss = weighted(labels, logits, pos_weight, weight=weight, reduction=reduction)
        gradients = torch.autograd.grad(loss.sum(), leaves)
        assert all(torch.isfinite(g).all() and (g != 0).any() for g in gradients)


def test_jax_traces_without_values() -> None:
    jax = pytest.importorskip("jax")

    @jax.jit
    def run(labels, logits, pos_weight, weight):
        loss = weighted(labels, logits, pos_weight, weight=weight, reduction="weighted_mean")
        return loss, *logitloss.value_and_grad(labels, logits, pos_weight, weight=weight)

    arguments = LABELS, LOGITS, POS_WEIGHT, LABELS + 1
    value, loss, _ = run(*arguments)
    np.testing.assert_allclose(loss, expected(weight=LABELS + 1), rtol=1e-14)
    np.testing.assert_allclose(value, loss.sum() / (LABELS + 1).sum(), rtol=1e-14)


def test_jax_without_x64_neither_warns_nor_widens() -> None:
    jax = pytest.importorskip("jax")
    with jax.enable_x64(False):
        labels, logits = jax.numpy.asarray(LABELS), jax.numpy.asarray(LOGITS)
        loss, gradient = logitloss.value_and_grad(
            labels, logits, POS_WEIGHT, weight=LABELS + 1, reduction="weighted_mean"
        )
        assert str(loss.dtype) == str(gradient.dtype) == "float32"


def test_dask_computes_nothing() -> None:
    dask = backends.get("dask")
    labels, logits, weight = (dask.array(a) for a in (LABELS, LOGITS, LABELS + 1))

    def refuse(*args, **kwargs):
        raise AssertionError("the graph was computed")

    with pytest.importorskip("dask").config.set(scheduler=refuse):
        for reduction in ("none", "sum", "mean", "weighted_mean"):
            logitloss.value_and_grad(labels, logits, POS_WEIGHT, weight=weight, reduction=reduction)
        logitloss.grad_and_hess(labels, logits, POS_WEIGHT, weight=weight)


def test_dask_of_unknown_size() -> None:
    dask = backends.get("dask")
    keep = LABELS.ravel() < 2
    labels, logits = (dask.array(a.ravel())[dask.array(keep)] for a in (LABELS, LOGITS))
    mean = weighted(labels, logits, 2.0, reduction="mean")
    np.testing.assert_allclose(mean.compute(), expected(pos_weight=2.0).mean(), rtol=1e-14)


def test_array_api_strict_at_its_strictest() -> None:
    strict = pytest.importorskip("array_api_strict")
    arrays = [strict.asarray(a) for a in (LABELS, LOGITS, POS_WEIGHT, LABELS + 1)]
    *arguments, weight = arrays
    with strict.ArrayAPIStrictFlags(
        boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=()
    ):
        for reduction in ("none", "sum", "mean", "weighted_mean"):
            loss, _ = logitloss.value_and_grad(*arguments, weight=weight, reduction=reduction)
            got = weighted(*arguments, weight=weight, reduction=reduction)
            assert bool(strict.all(got == loss))
        gradient, hessian = logitloss.grad_and_hess(*arguments, weight=weight)
    assert gradient.shape == hessian.shape == LABELS.shape
