"""Every rule that an argument can break: the kind of error, and what its message names."""

from __future__ import annotations

import itertools
import re
import uuid
from importlib.util import find_spec

import backends
import numpy as np
import pytest
from backends import Backend

import logitloss
from logitloss import weighted_cross_entropy_with_logits as weighted

ONES = np.ones((2, 3))

FUNCTIONS = {
    "weighted": weighted,
    "sigmoid": lambda labels, logits, pos_weight, **options: (
        logitloss.sigmoid_cross_entropy_with_logits(labels, logits, **options)
    ),
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


# Which numbers are taken, as the errors say it.
REAL = "floating values of at least 16 bits, integers of at least 8, or booleans; got dtype"


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
    with raises(TypeError, f"`{argument}` must hold real", REAL, dtype):
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


def of_dtype(library: str, dtype: str):
    """Three values of a dtype that looks like one of those that are taken."""
    if dtype == "key<fry>":
        return pytest.importorskip("jax").random.key(0)
    module = pytest.importorskip({"numpy": "ml_dtypes", "jax": "jax.numpy"}.get(library, library))
    if dtype == "quint8":
        return module.quantize_per_tensor(module.ones(3), 1.0, 0, module.quint8)
    if not hasattr(module, dtype):
        pytest.skip(f"this {module.__name__} has no {dtype}")
    if library == "torch" and dtype.startswith("float4"):
        # It converts nothing to it.
        return module.ones(3, dtype=module.uint8).view(getattr(module, dtype))
    if library == "torch":
        return module.ones(3).to(getattr(module, dtype))
    return (np if library == "numpy" else module).ones(3).astype(getattr(module, dtype))


# PyTorch warns of quantized tensors.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("argument", ["labels", "logits", "pos_weight", "weight"])
@pytest.mark.parametrize(
    ("library", "dtype"),
    [
        *itertools.product(
            ["numpy", "torch", "jax"], ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"]
        ),
        ("numpy", "float4_e2m1fn"),
        ("numpy", "int4"),
        ("jax", "int4"),
        ("jax", "key<fry>"),
        ("torch", "float4_e2m1fn_x2"),
        ("torch", "quint8"),
        ("torch", "complex32"),
    ],
)
def test_dtypes_that_look_like_numbers_are_refused(library: str, argument: str, dtype: str) -> None:
    value = of_dtype(library, dtype)
    ones = backends.get(library).array(np.ones(3), "float32")
    arguments = {"labels": ones, "logits": ones, "pos_weight": 1.0, argument: value}
    with raises(TypeError, f"`{argument}` must hold real", REAL, dtype):
        weighted(**arguments)


def test_dtypes_without_a_common_one() -> None:
    pytest.importorskip("ml_dtypes")
    with raises(
        TypeError, "`labels` and `logits` must have floating dtypes", "bfloat16", "float16"
    ):
        weighted(np.ones(3, "bfloat16"), np.ones(3, "float16"), 1.0)


def test_dtypes_without_a_common_one_in_strict_jax() -> None:
    jax = pytest.importorskip("jax")
    ones = jax.numpy.ones(3, "bfloat16")
    with (
        jax.numpy_dtype_promotion("strict"),
        raises(TypeError, "`labels` and `logits` must have floating dtypes", "bfloat16", "float32"),
    ):
        weighted(ones, ones.astype("float32"), 1.0)


def test_lists_of_more_axes_than_arrays_have() -> None:
    nested: object = 1.0
    for _ in range(65):
        nested = [nested]
    # NumPy's own words end with a full stop.
    with raises(ValueError, "`labels` must be an array of numbers; got ") as caught:
        weighted(nested, [1.0], 1.0)
    assert str(caught.value).endswith(" 64.")


def test_ragged_lists_are_refused() -> None:
    with raises(ValueError, "`labels` must be an array of numbers"):
        weighted([[1.0], [1.0, 0.0]], np.ones((2, 1)), 1.0)


DATA = np.array([0.5, -1.0, 9e9])
MASKED = np.ma.array(DATA, mask=[0, 0, 1])


class ByArray:
    """Gives what it holds to `np.asarray`."""

    def __init__(self, held) -> None:
        self.held = held

    def __array__(self, dtype=None, copy=None):
        return self.held


class BySlice(ByArray):
    """Loses the mask in `__array__`, but not in slices."""

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.held)

    def __getitem__(self, key):
        return self.held[key]


class ByItem:
    """A sequence, which NumPy reads item by item."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index):
        return MASKED[index]


def of_netcdf4():
    pytest.importorskip("netCDF4")
    import netCDF4

    # No file is written, but two open ones must not have the same name.
    dataset = netCDF4.Dataset(f"{uuid.uuid4()}.nc", "w", diskless=True)
    dataset.createDimension("n", 3)
    variable = dataset.createVariable("a", "f8", ("n",), fill_value=9e9)
    variable[:] = MASKED
    return variable


def of_astropy(kind: str):
    pytest.importorskip("astropy")
    from astropy import units
    from astropy.nddata import CCDData, NDDataArray
    from astropy.table import MaskedColumn
    from astropy.utils.masked import Masked

    mask = [False, False, True]
    return {
        "Masked": lambda: Masked(DATA, mask=mask),
        "Masked with unit": lambda: Masked(DATA * units.percent, mask=mask),
        "NDDataArray": lambda: NDDataArray(DATA, mask=mask),
        "CCDData": lambda: CCDData(DATA, mask=mask, unit=""),
        "MaskedColumn": lambda: MaskedColumn(DATA, mask=mask),
    }[kind]()


def of_xarray():
    """xarray makes NaN of NumPy's masks, but knows no other."""
    return pytest.importorskip("xarray").DataArray(of_astropy("Masked"))


MASKS = {
    "array": lambda: MASKED,
    "without a masked element": lambda: np.ma.array(DATA),
    "constant in a list": lambda: [0.5, -1.0, np.ma.masked],
    "in a list": lambda: [MASKED],
    "in a tuple": lambda: (MASKED,),
    "nested": lambda: [[DATA], [MASKED]],
    "in a list of objects": lambda: [ByArray(DATA), ByArray(MASKED)],
    "from __array__": lambda: ByArray(MASKED),
    "from slices": lambda: BySlice(MASKED),
    "from items": ByItem,
    "netCDF4": of_netcdf4,
    "netCDF4 in a list": lambda: [of_netcdf4()],
    "xarray": of_xarray,
    **{
        f"astropy {kind}": lambda kind=kind: of_astropy(kind)
        for kind in ("Masked", "Masked with unit", "NDDataArray", "CCDData", "MaskedColumn")
    },
    "astropy in a list": lambda: [of_astropy("Masked")],
}


@pytest.mark.parametrize("argument", ["labels", "logits", "pos_weight", "weight"])
@pytest.mark.parametrize("make", MASKS.values(), ids=MASKS)
def test_masks_are_not_lost(argument: str, make) -> None:
    arguments = {"labels": np.ones(3), "logits": np.ones(3), "pos_weight": 1.0, argument: make()}
    functions = dict(FUNCTIONS)
    if argument != "weight":
        functions["v1"] = logitloss.compat.v1.weighted_cross_entropy_with_logits
    if argument == "pos_weight":
        del functions["sigmoid"]
    for function in functions.values():
        with raises(TypeError, f"`{argument}` must not be a masked array", "weight=~mask"):
            function(**arguments)


@pytest.mark.parametrize("library", ["torch", "jax", "array_api_strict"])
def test_masks_beside_other_libraries_are_not_lost(library: str) -> None:
    ones = backends.get(library).array(np.ones(3), "float32")
    for masked in (MASKED, [MASKED], ByArray(MASKED), [ByArray(MASKED)]):
        for argument in ("pos_weight", "weight"):
            arguments = {"pos_weight": 1.0, argument: masked}
            with raises(TypeError, f"`{argument}` must not be a masked array"):
                weighted(ones, ones, **arguments)


def test_masks_in_chunks_of_dask_are_not_lost() -> None:
    da = pytest.importorskip("dask.array")
    masked = da.ma.masked_equal(da.from_array(DATA, chunks=2), 9e9)
    for argument in ("labels", "logits", "pos_weight", "weight"):
        arguments = {"labels": np.ones(3), "logits": np.ones(3), "pos_weight": 1.0}
        with raises(TypeError, f"`{argument}` must not be a masked array"):
            weighted(**{**arguments, argument: masked})


def test_masked_outputs_are_refused() -> None:
    out = np.ma.array(np.zeros(3), mask=[0, 0, 1])
    with raises(TypeError, "`out` must not be a masked array"):
        weighted(np.ones(3), np.ones(3), 1.0, out=out)
    with raises(TypeError, "`out[1]` must not be a masked array"):
        logitloss.value_and_grad(np.ones(3), np.ones(3), out=(np.zeros(3), out))


def test_what_has_no_mask_is_read() -> None:
    pytest.importorskip("astropy")
    from astropy.nddata import NDDataArray
    from astropy.table import Column

    variable = of_netcdf4()
    variable.set_auto_mask(False)
    expected = weighted(np.ones(3), DATA, 2.0)
    for value in (variable, NDDataArray(DATA), Column(DATA), ByArray(DATA), BySlice(DATA)):
        np.testing.assert_array_equal(weighted(np.ones(3), value, 2.0), expected)


def with_unit(library: str, unit: str):
    module = pytest.importorskip(library)
    if library == "astropy":
        from astropy import units

        return DATA * units.Unit(unit)
    if library == "pint":
        return module.UnitRegistry().Quantity(DATA, unit)
    return module.unyt_array(DATA, unit)


UNITS = pytest.mark.parametrize("library", ["astropy", "pint", "unyt"])


@UNITS
@pytest.mark.parametrize("argument", ["labels", "logits", "pos_weight", "weight"])
def test_units_are_not_lost(library: str, argument: str) -> None:
    for unit in ("percent", "m"):
        quantity = with_unit(library, unit)
        values = [quantity, [quantity], list(quantity), quantity[0]]
        # xarray makes a plain array of those of unyt.
        if library != "unyt" and find_spec("xarray"):
            import xarray

            values.append(xarray.DataArray(quantity))
        for value in values:
            arguments = {"labels": np.ones(3), "logits": np.ones(3), "pos_weight": 1.0}
            with raises(TypeError, f"`{argument}` must not have a unit", "got unit"):
                weighted(**{**arguments, argument: value})


# pint warns of every quantity that is read as an array.
@pytest.mark.filterwarnings("ignore:The unit of the quantity is stripped")
@UNITS
def test_numbers_without_unit_are_read(library: str) -> None:
    plain = with_unit(library, "" if library == "astropy" else "dimensionless")
    np.testing.assert_array_equal(
        weighted(np.ones(3), np.ones(3), plain), weighted(np.ones(3), np.ones(3), DATA)
    )


@pytest.mark.parametrize("library", ["astropy", "unyt"])
def test_outputs_with_a_unit_are_refused(library: str) -> None:
    with raises(TypeError, "`out` must not have a unit", "got unit m."):
        weighted(np.ones(3), np.ones(3), 1.0, out=with_unit(library, "m"))


@pytest.mark.parametrize("argument", ["labels", "logits", "pos_weight", "weight"])
def test_arrays_of_mlx_are_named(argument: str) -> None:
    mlx = pytest.importorskip("mlx.core", exc_type=ImportError)
    ones = np.ones(3)
    for other in (ones, mlx.array([1.0, 1.0, 1.0])):
        arguments = {"labels": other, "logits": other, "pos_weight": 1.0}
        arguments[argument] = mlx.array([1.0, 0.0, 1.0])
        with raises(TypeError, "must be an array that follows the array API", "mlx", "numpy.as"):
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


@pytest.mark.parametrize(
    "value", [np.timedelta64(1, "D"), np.timedelta64(5, "s"), np.datetime64(0, "s")]
)
@pytest.mark.parametrize("argument", ["pos_weight", "weight"])
def test_times_are_no_coefficients(argument: str, value) -> None:
    coefficients = {"pos_weight": 1.0, argument: value}
    with raises(TypeError, f"`{argument}` must hold real floating values of at least 16 bits"):
        weighted(np.zeros(2), np.zeros(2), **coefficients)


def test_name_must_be_a_string() -> None:
    with raises(TypeError, "`name` must be a string or None; got an object of type list."):
        weighted([1.0], [1.0], 1.0, [1.0])
    with raises(TypeError, "`name` must be a string or None; got 2.0."):
        logitloss.sigmoid_cross_entropy_with_logits([1.0], [1.0], 2.0)
    assert weighted([1.0], [0.0], 1.0, "a name") == weighted([1.0], [0.0], 1.0)
