"""TensorFlow: eager tensors by the kernel, graphs of its own operations, derivatives of both."""

from __future__ import annotations

import functools
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import backends
import numpy as np
import pytest
import reference

import logitloss
from logitloss import compat
from logitloss import sigmoid_cross_entropy_with_logits as sigmoid_loss
from logitloss import weighted_cross_entropy_with_logits as weighted

tf = pytest.importorskip("tensorflow")

from logitloss._backends.tensorflow import _values, compute  # noqa: E402
from logitloss._call import VALUE_AND_GRAD, check  # noqa: E402

BACKEND = backends.get("tensorflow")

inf, nan = math.inf, math.nan

POS_WEIGHTS = [0.0, 1e-8, 1.0, 3.0, 1e8]
# A power of two: it adds no rounding to that of the slope which it multiplies.
WEIGHT = 0.25

# TensorFlow's own log1p errs by 3.6 ulp in float32 and by 1.9 in float64, its exp by 1.7.
GRAPH_ULP = {"bfloat16": 0.51, "float16": 0.51, "float32": 6, "float64": 4}
EAGER_ULP = {"bfloat16": 0.51, "float16": 0.51, "float32": 4, "float64": 4}

MODES: dict[str, Callable[..., Any]] = {
    "eager": lambda function: function,
    "graph": lambda function: tf.function(function, autograph=False),
    "xla": lambda function: tf.function(function, autograph=False, jit_compile=True),
}


def points(dtype: str, pos_weights: list[float] = POS_WEIGHTS) -> list[np.ndarray]:
    grid = np.array(list(itertools.product(reference.LABELS, reference.LOGITS, pos_weights))).T
    return list(grid.astype(dtype))


def tensors(*arrays: Any) -> list[Any]:
    return [tf.constant(array) for array in arrays]


def assert_close(
    got: Any, form: Any, at: list[np.ndarray], mode: str, factor: float = 1.0, bound: float = 0
) -> None:
    function, scale_function = form
    dtype = at[0].dtype.name
    bound = bound or (EAGER_ULP if mode == "eager" else GRAPH_ULP)[dtype]
    true = [factor * t for t in reference.at(function, *at)]
    scale = [factor * t for t in reference.at(scale_function or function, *at)]
    distances = reference.distances(got.numpy(), true, dtype, scale)
    # TensorFlow's operations take subnormal numbers for zero.
    smallest = 4 * reference.smallest_normal(dtype)
    for distance, size, *point in zip(distances, scale, *at, strict=True):
        assert distance <= bound or abs(size) < smallest, (float(distance), point)


def slopes(function: Callable[..., Any], arguments: list[Any], order: int = 1) -> list[Any]:
    """The gradients of the sum of `function` by all arguments, nested `order` times."""
    with tf.GradientTape(persistent=True) as tape:
        for argument in arguments:
            tape.watch(argument)
        values = function(*arguments)
        if order > 1:
            values = slopes(function, arguments, order - 1)
    if order == 1:
        return [tape.gradient(values, argument) for argument in arguments]
    return [[tape.gradient(value, argument) for argument in arguments] for value in values]


def one_loss(labels: Any, logits: Any, pos_weight: Any, weight: Any) -> Any:
    return weighted(labels, logits, pos_weight, weight=weight)


# Values


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize("form", ["loss", "gradient", "hessian"])
def test_graphs_meet_the_closed_forms(form: str, mode: str, dtype: str) -> None:
    at = points(dtype, [0.0, 1.0, 3.0])
    index = {"loss": 0, "gradient": 1, "hessian": 2}[form]

    def compute(labels: Any, logits: Any, pos_weight: Any) -> Any:
        if form == "loss":
            return weighted(labels, logits, pos_weight)
        return logitloss.grad_and_hess(labels, logits, pos_weight)[index - 1]

    function = [(reference.loss, None), reference.GRADIENT[1], (reference.hessian, None)][index]
    assert_close(MODES[mode](compute)(*tensors(*at)), function, at, mode)
    # A number that is known in advance takes a shorter way.
    for q in (0.0, 0.1, 1.0, 3.0):
        chosen = [a[at[2] == 1] for a in at]
        chosen[2] = np.full_like(chosen[2], q)
        known = MODES[mode](lambda z, x, q=q: compute(z, x, q))
        assert_close(known(*tensors(*chosen[:2])), function, chosen, mode)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_large_pos_weight_lifts_the_tail_in_graphs(dtype: str) -> None:
    logits = np.array([87.0, 90.0, 100.0, 130.0], dtype)
    at = [np.ones(4, dtype), logits, np.full(4, 1e30, dtype)]
    got = MODES["graph"](lambda z, x: weighted(z, x, 1e30))(*tensors(*at[:2]))
    assert_close(got, (reference.loss, None), at, "graph")


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("point", reference.SPECIAL, ids=str)
def test_special_values(point: tuple[float, ...], mode: str, known: bool) -> None:
    z, x, q, *expected = point
    labels, logits, pos_weight = tensors(*np.array([[z], [x], [q]], float))

    def all_three(labels: Any, logits: Any, pos_weight: Any) -> Any:
        pos_weight = float(q) if known else pos_weight
        loss = weighted(labels, logits, pos_weight)
        return loss, *logitloss.grad_and_hess(labels, logits, pos_weight)

    got = MODES[mode](all_three)(labels, logits, pos_weight)
    np.testing.assert_allclose(np.ravel(got), expected, rtol=1e-15)


def test_bits_of_numpy() -> None:
    generator = np.random.default_rng(0)
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        equals = functools.partial(BACKEND.equals, dtype=dtype)
        for shape in ((), (1,), (7, 3), (300, 5, 7)):
            logits = np.asarray(generator.normal(size=shape) * 20).astype(dtype)
            labels = np.asarray(generator.random(shape)).astype(dtype)
            for coefficient in ((), shape[-1:], shape):
                q, w = (np.asarray(generator.random(coefficient)).astype(dtype) for _ in "qw")
                for function, options in (
                    (weighted, {}),
                    (weighted, {"weight": w, "reduction": "weighted_mean"}),
                    (logitloss.value_and_grad, {"weight": w, "reduction": "mean"}),
                    (logitloss.grad_and_hess, {"weight": w}),
                ):
                    got = function(*tensors(labels, logits, q), **options)
                    expected = function(labels, logits, q, **options)
                    tf.nest.map_structure(equals, got, expected)


# Memory


def test_results_of_every_size_can_be_used() -> None:
    """TensorFlow aborts the process where memory that it was handed is not aligned."""
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        for size in range(0, 2000):
            loss = weighted(tf.ones(size, dtype), tf.zeros(size, dtype), 2.0)
            doubled = loss + loss
            if size % 97 == 0:
                expected = np.full(size, 4 * math.log(2)).astype(dtype)
                np.testing.assert_array_equal(doubled.numpy(), expected)


def test_results_live_on_after_their_inputs() -> None:
    losses = [weighted(tf.ones(size), tf.zeros(size), 2.0) for size in range(1, 300)]
    for size, loss in enumerate(losses, 1):
        np.testing.assert_array_equal(loss.numpy(), np.full(size, 2 * np.log(np.float32(2))))


def test_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, logits = tf.ones(1000), tf.zeros(1000)
    seen = []
    compute = _values.kernel.compute

    class Kernel:
        @staticmethod
        def compute(*arguments: Any) -> Any:
            seen.append(arguments)
            return compute(*arguments)

    monkeypatch.setattr(_values, "kernel", Kernel)
    loss = weighted(labels, logits, 2.0)
    ((_, z, x, _, _, _, (out,), _),) = seen
    for array, tensor in ((z, labels), (x, logits), (out, loss)):
        assert np.shares_memory(array, np.asarray(tensor))


def test_variables_keep_their_values() -> None:
    logits = tf.Variable(tf.zeros(3))
    loss = weighted(tf.ones(3), logits, 1.0)
    logits.assign(tf.fill(3, 5.0))
    np.testing.assert_array_equal(loss.numpy(), np.log(np.float32(2)))


# Arguments


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_arguments_are_mixed_as_tensorflow_mixes_them(mode: str) -> None:
    labels, logits = [1.0, 0.0, 0.25], [0.5, -2.0, 3.0]
    q, w = [1.0, 2.0, 3.0], [0.5, 1.0, 0.0]
    expected = weighted(*(np.array(a, "float32") for a in (labels, logits, q)), weight=w)
    ways = [tf.constant, tf.Variable, list, lambda v: np.array(v, "float32")]
    for chosen in itertools.product(ways, repeat=4):
        if not any(way in (tf.constant, tf.Variable) for way in chosen):
            continue
        given = [way(value) for way, value in zip(chosen, (labels, logits, q, w), strict=True)]
        got = MODES[mode](lambda given=given: one_loss(*given))()
        assert got.dtype == tf.float32
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_lists_of_tensors(mode: str) -> None:
    def mean(first: Any, second: Any) -> Any:
        return weighted([1.0, 0.0], [first, second], 3.0, reduction="mean")

    arguments = tensors(np.float32(0), np.float32(-20))
    first, _ = MODES[mode](lambda *given: slopes(mean, list(given)))(*arguments)
    assert first.numpy() == -0.75


def test_lists_take_the_dtype_of_the_tensor_beside_them() -> None:
    for dtype in ("bfloat16", "float32", "float64"):
        got = weighted([0.1, 0.9], tf.zeros(2, dtype), 1.0)
        assert got.dtype == dtype
        labels = np.array([0.1, 0.9]).astype(dtype)
        np.testing.assert_array_equal(got, weighted(labels, np.zeros(2, dtype), 1.0))


@pytest.mark.parametrize("kind", ["bool", "int8", "uint16", "int32", "int64", "uint64"])
@pytest.mark.parametrize("mode", MODES)
def test_labels_of_any_integer_type(mode: str, kind: str) -> None:
    labels, logits = np.array([1, 0, 1, 1]), tf.linspace(-3.0, 3.0, 4)
    mean = MODES[mode](lambda z, x: slopes(lambda x: weighted(z, x, 3.0, reduction="mean"), [x])[0])
    got = mean(tf.constant(labels.astype(kind)), logits)
    np.testing.assert_array_equal(got, mean(tf.constant(labels.astype("float32")), logits))


def test_integer_logits_take_the_default_dtype() -> None:
    for mode in ("eager", "graph"):
        got = MODES[mode](lambda z, x: weighted(z, x, 2.0))(*tensors([1, 0], [0, 3]))
        assert got.dtype == tf.float32
        np.testing.assert_allclose(got, weighted([1, 0], [0.0, 3.0], 2.0), rtol=1e-6)


def refused() -> dict[str, tuple[Any, str]]:
    return {
        "ragged": (tf.ragged.constant([[1.0], [0.0, 1.0]]), "dense tensor; got layout Ragged"),
        "even": (tf.ragged.constant([[1.0], [0.0]]), "dense tensor; got layout RaggedTensor"),
        "sparse": (tf.sparse.from_dense([1.0, 0.0]), "dense tensor; got layout SparseTensor"),
        "slices": (tf.IndexedSlices(tf.ones(2), tf.range(2)), "got layout IndexedSlices"),
        "string": (tf.constant(["a", "b"]), "hold real floating values of at least 16 bits"),
        "complex": (tf.constant([1j, 0]), "hold real floating values of at least 16 bits"),
    }


@pytest.mark.parametrize("kind", refused())
@pytest.mark.parametrize("argument", ["labels", "logits", "pos_weight", "weight"])
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_refused_tensors(mode: str, argument: str, kind: str) -> None:
    value, message = refused()[kind]
    given = {"labels": tf.ones(2), "logits": tf.ones(2), "pos_weight": 1.0, argument: value}
    with pytest.raises(TypeError, match=f"`{argument}` must .*{message}"):
        MODES[mode](lambda: weighted(**given))()


def test_out_is_refused() -> None:
    for out in (tf.zeros(2), np.zeros(2, "float32"), tf.Variable(tf.zeros(2))):
        with pytest.raises(TypeError, match="`out` must be None for tensorflow arrays"):
            weighted(tf.ones(2), tf.ones(2), 1.0, out=out)


def test_tensors_of_another_library_are_refused() -> None:
    strict = pytest.importorskip("array_api_strict")
    for given in ((tf.ones(2), strict.ones(2)), (strict.ones(2), tf.ones(2))):
        with pytest.raises(TypeError, match="must be arrays of the same library; got"):
            weighted(*given, 1.0)


# Shapes

SHAPES = [((3, 1), (3,)), ((3,), (3, 1)), ((2, 3), (3, 2)), ((), (1,)), ((1, 3), (2, 3))]
UNKNOWN = {
    "known": lambda shape: shape,
    "unknown sizes": lambda shape: [None] * len(shape),
    "unknown rank": lambda shape: None,
}


def with_shapes(function: Callable[..., Any], *shapes: Any, **options: Any) -> Any:
    signature = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    return tf.function(function, input_signature=signature, **options)


@pytest.mark.parametrize("unknown", UNKNOWN)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_shapes_that_differ(shapes: tuple[Any, Any], unknown: str) -> None:
    labels, logits = map(tf.ones, shapes)
    function = with_shapes(
        lambda z, x: weighted(z, x, 1.0, reduction="mean"), *map(UNKNOWN[unknown], shapes)
    )
    errors = (ValueError, tf.errors.InvalidArgumentError)
    with pytest.raises(errors, match="must have the same shape"):
        function(labels, logits)
    if unknown == "known":
        with pytest.raises(ValueError, match="must have the same shape"):
            function.get_concrete_function()
        with pytest.raises(ValueError, match="must have the same shape"):
            weighted(labels, logits, 1.0)


@pytest.mark.parametrize("unknown", UNKNOWN)
@pytest.mark.parametrize("argument", ["pos_weight", "weight"])
@pytest.mark.parametrize("shape", [(2,), (3, 3), (1, 2, 3)], ids=str)
def test_coefficients_that_do_not_broadcast(
    shape: tuple[int, ...], argument: str, unknown: str
) -> None:
    function = with_shapes(
        lambda x, c: weighted(x, x, **{"pos_weight": 1.0, argument: c}),
        *map(UNKNOWN[unknown], ((2, 3), shape)),
    )
    errors = (ValueError, tf.errors.InvalidArgumentError)
    with pytest.raises(errors, match=f"`{argument}` must broadcast to the shape of `logits`"):
        function(tf.ones((2, 3)), tf.ones(shape))


@pytest.mark.parametrize("unknown", UNKNOWN)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "weighted_mean"])
def test_unknown_shapes(reduction: str, unknown: str) -> None:
    generator = np.random.default_rng(1)
    shapes = [(4, 3), (4, 3), (3,), (4, 1)]
    arrays = [generator.random(shape).astype("float32") for shape in shapes]

    def loss(z: Any, x: Any, q: Any, w: Any) -> Any:
        return weighted(z, x, q, weight=w, reduction=reduction)

    def all_slopes(*arguments: Any) -> Any:
        return slopes(loss, list(arguments))

    for function in (loss, all_slopes):
        graph = with_shapes(function, *map(UNKNOWN[unknown], shapes))
        expected = function(*tensors(*arrays))
        got = graph(*tensors(*arrays))
        tf.nest.map_structure(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), got, expected
        )
        for given, gradient in zip(arrays, got if function is all_slopes else [], strict=False):
            assert gradient.shape == given.shape


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_a_repeated_weight_is_multiplied(unknown: str) -> None:
    """A sum of so many would be rounded many times."""

    @tf.function(input_signature=[tf.TensorSpec(UNKNOWN[unknown]((1000,)), tf.float64)])
    def gradient(logits: Any) -> Any:
        options = {"weight": 0.1, "reduction": "weighted_mean"}
        return logitloss.value_and_grad(tf.zeros_like(logits), logits, **options)[1]

    got = gradient(tf.zeros(1000, tf.float64)).numpy()
    np.testing.assert_array_max_ulp(got, np.full(1000, 0.5 / 1000), 2)


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_another_divisor(unknown: str, pair_mean: str) -> None:
    labels, logits = tensors(*np.random.default_rng(1).random((2, 4, 3), np.float32))

    def results(reduction: str, z: Any, x: Any) -> Any:
        call = check(VALUE_AND_GRAD, z, x, 3.0, None)
        return compute(call._replace(reduction=reduction))

    mean, other = (
        with_shapes(functools.partial(results, name), *[UNKNOWN[unknown]((4, 3))] * 2)
        for name in ("mean", pair_mean)
    )
    for one, two in zip(mean(labels, logits), other(labels, logits), strict=True):
        np.testing.assert_array_equal(2 * one, two)


def test_static_shapes_survive() -> None:
    for labels, logits, together in (
        ([None, 3], [4, None], [4, 3]),
        (None, [None, 3], [None, 3]),
        ([2, 3], None, [2, 3]),
        ([2, 3], [2, 3], [2, 3]),
    ):
        elementwise = with_shapes(lambda z, x: weighted(z, x, 2.0), labels, logits)
        assert elementwise.get_concrete_function().output_shapes.as_list() == together
        both = with_shapes(
            lambda z, x: logitloss.value_and_grad(z, x, 2.0, reduction="mean"), labels, logits
        )
        value, gradient = both.get_concrete_function().output_shapes
        assert value.as_list() == [] and gradient.as_list() == together


@pytest.mark.parametrize("mode", MODES)
def test_empty_tensors(mode: str) -> None:
    for reduction, expected in (("none", []), ("sum", 0), ("mean", nan), ("weighted_mean", nan)):
        loss = MODES[mode](lambda x, r=reduction: weighted(x, x, 1.0, weight=2.0, reduction=r))
        np.testing.assert_array_equal(loss(tf.ones(0)), np.array(expected))


# Derivatives


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("mode", MODES)
def test_gradient_by_every_argument(mode: str, dtype: str) -> None:
    at = points(dtype)
    weight = np.full_like(at[0], WEIGHT)
    got = MODES[mode](lambda *arguments: slopes(one_loss, list(arguments)))(*tensors(*at, weight))
    for index, (slope, form) in enumerate(zip(got, reference.GRADIENT, strict=True)):
        assert slope.dtype == dtype
        assert_close(slope, form, at, mode, 1.0 if index == 3 else WEIGHT)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mode", MODES)
def test_second_derivatives_by_every_argument(mode: str, dtype: str) -> None:
    at = points(dtype)
    weight = np.full_like(at[0], WEIGHT)
    got = MODES[mode](lambda *arguments: slopes(one_loss, list(arguments), 2))(
        *tensors(*at, weight)
    )
    for (row, column), form in reference.HESSIAN.items():
        factor = 1.0 if column == 3 else WEIGHT
        for slope in (got[row][column], got[column][row]):
            if slope is not None:
                assert_close(slope, form, at, mode, factor)
            else:
                assert form[0] is reference.zero


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_third_derivative(mode: str) -> None:
    def third(z, x, q):
        return reference.hessian(z, x, q) * (reference.sigmoid(-x) - reference.sigmoid(x))

    at = points("float64")
    labels, logits, pos_weight = tensors(*at)

    def compute(logits: Any) -> Any:
        return slopes(lambda x: weighted(labels, x, pos_weight), [logits], 3)[0][0]

    # TensorFlow's own tanh errs by 7.4 ulp.
    assert_close(MODES[mode](compute)(logits), (third, reference.hessian), at, "graph", bound=12)


def jvp(loss: Callable[..., Any], x: Any) -> Any:
    with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as accumulator:
        value = loss(x)
    return accumulator.jvp(value)


def by_tape(loss: Callable[..., Any], x: Any) -> Any:
    return slopes(loss, [x])[0]


def jacobian(loss: Callable[..., Any], x: Any, **options: Any) -> Any:
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        value = loss(x)
    return tf.linalg.diag_part(tape.jacobian(value, x, **options))


def by_variable(loss: Callable[..., Any], x: Any) -> Any:
    variable = tf.Variable(x)
    with tf.GradientTape() as tape:
        value = loss(variable)
    return tape.gradient(value, variable)


def by_persistent_tape(loss: Callable[..., Any], x: Any) -> Any:
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        value = loss(x)
        inside = tape.gradient(value, x)
    np.testing.assert_array_equal(inside, tape.gradient(value, x))
    return tape.gradient(value, x)


TRANSFORMATIONS = {
    "tape": by_tape,
    "persistent tape": by_persistent_tape,
    "variable": by_variable,
    "jvp": jvp,
    "jacobian": jacobian,
    "jacobian without pfor": lambda loss, x: jacobian(loss, x, experimental_use_pfor=False),
    "tape(function)": lambda loss, x: by_tape(tf.function(loss, autograph=False), x),
    "tape(xla)": lambda loss, x: by_tape(MODES["xla"](loss), x),
    "function(tape)": lambda loss, x: MODES["graph"](lambda x: by_tape(loss, x))(x),
    "xla(tape)": lambda loss, x: MODES["xla"](lambda x: by_tape(loss, x))(x),
    "function(jacobian)": lambda loss, x: MODES["graph"](lambda x: jacobian(loss, x))(x),
    "jvp(function)": lambda loss, x: jvp(MODES["graph"](loss), x),
    "function(jvp)": lambda loss, x: MODES["graph"](lambda x: jvp(loss, x))(x),
    "vectorized_map(tape)": lambda loss, x: tf.vectorized_map(lambda x: by_tape(loss, x), x),
    "tape(vectorized_map)": lambda loss, x: by_tape(lambda x: tf.vectorized_map(loss, x), x),
    "map_fn(tape)": lambda loss, x: tf.map_fn(lambda x: by_tape(loss, x), x),
    "recompute_grad": lambda loss, x: by_tape(tf.recompute_grad(loss), x),
}

# TensorFlow differentiates the operations of the loss here, and asks no custom gradient.
AROUND_THE_RULES = ("function(jvp)", "tape(vectorized_map)")


@pytest.mark.parametrize(
    ("label", "dtype"),
    [*((label, "float64") for label in (0.0, 1.0, 0.25)), (0.25, "float32"), (0.25, "bfloat16")],
)
@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
def test_transformations_meet_the_closed_form(
    transformation: str, label: float, dtype: str
) -> None:
    finite = np.array([0.0, -0.0, 1.0, -3.0, 40.0, -40.0, 80.0, -80.0, -700.0]).astype(dtype)
    q = 3.0
    at = [np.full_like(finite, label), finite, np.full_like(finite, q)]

    def loss(x: Any) -> Any:
        return weighted(tf.fill(tf.shape(x), tf.constant(label, dtype)), x, q)

    def slope(x: Any) -> Any:
        return logitloss.value_and_grad(tf.fill(tf.shape(x), tf.constant(label, dtype)), x, q)[1]

    logits = tf.constant(np.array([*finite, inf, -inf]).astype(dtype))
    apply = TRANSFORMATIONS[transformation]
    got = apply(loss, logits)
    assert got.dtype == dtype
    assert_close(got[:-2], reference.GRADIENT[1], at, "graph")
    if transformation not in AROUND_THE_RULES:
        np.testing.assert_array_equal(got[:2], (1 - label) / 2 - q * label / 2)
    np.testing.assert_array_equal(got[-2:], [1 - label, -q * label])
    got = apply(slope, logits)
    assert_close(got[:-2], reference.HESSIAN[1, 1], at, "graph")
    np.testing.assert_array_equal(got[-2:], 0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("reduction", ["sum", "mean", "weighted_mean"])
@pytest.mark.parametrize("outer", ["tape", "jvp", "jacobian", "function", "tape(function)"])
def test_hessian_of_a_reduced_loss(outer: str, reduction: str, dtype: str) -> None:
    """By logits alone, which one pass gives eagerly: it must not hide what it depends on."""
    at = [np.array(a).astype(dtype) for a in ([1, 0, 0.25, 1], [0, -3, 40, -80], [0.5, 3, 3, 3])]
    labels, logits, pos_weight = tensors(*at)

    def total(x: Any) -> Any:
        return weighted(labels, x, pos_weight, weight=2.0, reduction=reduction)

    compute = {
        "tape": lambda x: by_tape(lambda x: by_tape(total, x), x),
        "jvp": lambda x: jvp(lambda x: by_tape(total, x), x),
        "jacobian": lambda x: jacobian(lambda x: by_tape(total, x), x),
        "function": lambda x: MODES["graph"](lambda x: slopes(total, [x], 2)[0][0])(x),
        "tape(function)": lambda x: slopes(MODES["graph"](total), [x], 2)[0][0],
    }[outer]
    factor = {"sum": 2.0, "mean": 0.5, "weighted_mean": 0.25}[reduction]
    assert_close(compute(logits), reference.HESSIAN[1, 1], at, "graph", factor)


@pytest.mark.parametrize("argument", range(4))
@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("reduction", ["sum", "mean", "weighted_mean"])
def test_gradients_of_reductions(reduction: str, mode: str, argument: int) -> None:
    generator = np.random.default_rng(7)
    labels, logits = generator.random((4, 3)), generator.normal(size=(4, 3)) * 4
    pos_weight, weight = generator.random(3) + 0.5, generator.random((4, 1)) + 0.5

    def loss(*arguments: Any) -> Any:
        *arguments, weight = arguments
        return weighted(*arguments, weight=weight, reduction=reduction)

    arguments = [labels, logits, pos_weight, weight]
    got = MODES[mode](lambda *given: slopes(loss, list(given)))(*tensors(*arguments))[argument]
    assert got.shape == arguments[argument].shape
    differences = reference.central_differences(loss, arguments, argument)
    np.testing.assert_allclose(got, differences, rtol=1e-8, atol=1e-9)
    if argument == 1:
        *given, weight = tensors(*arguments)
        _, gradient = logitloss.value_and_grad(*given, weight=weight, reduction=reduction)
        np.testing.assert_allclose(got, gradient, rtol=1e-13)


@pytest.mark.parametrize(
    ("mode", "poison"),
    [*itertools.product(["eager", "graph"], [nan, inf, -inf, 1e300]), ("xla", nan)],
)
@pytest.mark.parametrize("place", range(3))
def test_zero_weight_masks_every_derivative(mode: str, place: int, poison: float) -> None:
    arguments = [np.ones(3), np.array([1.0, 2.0, -3.0]), np.full(3, 2.0), np.array([1.0, 0.0, 0.5])]
    arguments[place][1] = poison

    def all_slopes(*given: Any) -> Any:
        second = slopes(lambda x: one_loss(given[0], x, *given[2:]), [given[1]], 2)[0][0]
        third = slopes(lambda x: one_loss(given[0], x, *given[2:]), [given[1]], 3)[0][0]
        return *slopes(one_loss, list(given)), second, third

    *gradients, by_weight, second, third = MODES[mode](all_slopes)(*tensors(*arguments))
    for got in (*gradients, second, third):
        assert got[1] == 0
        assert np.isfinite(got).all() and (got.numpy()[::2] != 0).all()
    assert np.isfinite(by_weight).all()


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_derivative_by_a_weight_of_zero_is_the_loss(mode: str) -> None:
    # Methods that learn the weights of examples start from zero.
    labels, logits = tensors([1.0, 0.0], [-2.0, 3.0])
    by_weight = MODES[mode](lambda w: slopes(lambda w: one_loss(labels, logits, 2.0, w), [w])[0])
    np.testing.assert_allclose(by_weight(tf.zeros(2)), weighted(labels, logits, 2.0), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("reduction", ["sum", "mean", "weighted_mean"])
def test_an_eager_step_is_one_pass(
    monkeypatch: pytest.MonkeyPatch, reduction: str, dtype: str
) -> None:
    asked = []
    compute = _values.kernel.compute

    class Kernel:
        @staticmethod
        def compute(orders: Any, *arguments: Any) -> Any:
            asked.append(orders)
            return compute(orders, *arguments)

    monkeypatch.setattr(_values, "kernel", Kernel)
    labels, logits = tf.ones((2, 3), dtype), tf.zeros((2, 3), dtype)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = weighted(labels, logits, 3.0, weight=2.0, reduction=reduction)
    gradient = tape.gradient(value, logits)
    assert asked == [(0, 1)]
    monkeypatch.undo()
    found = logitloss.value_and_grad(labels, logits, 3.0, weight=2.0, reduction=reduction)
    for got, expected in zip((value, gradient), found, strict=True):
        np.testing.assert_array_equal(got.numpy(), expected.numpy())


def test_upstream_gradients_multiply() -> None:
    logits = tf.constant([0.0, 0.0])
    for reduction, expected in (("none", [-3.0, 1.0]), ("sum", [-3, 1]), ("mean", [-1.5, 0.5])):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = 2.0 * weighted([1.0, 0.0], logits, 3.0, reduction=reduction)
        np.testing.assert_array_equal(tape.gradient(value, logits), expected)


# Graphs


def operations(function: Any) -> set[str]:
    """The types of all operations in a concrete function and in those that it calls."""
    definition = function.graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    return {node.op for node in nodes}


def test_graphs_hold_operations_of_tensorflow_only() -> None:
    def step(z: Any, x: Any) -> Any:
        return slopes(lambda x: weighted(z, x, 3.0, reduction="mean"), [x])

    found = operations(with_shapes(step, [None], None).get_concrete_function())
    assert "Xlog1py" in found and not found & {"PyFunc", "EagerPyFunc", "PyFuncStateless"}


def test_graphs_have_few_operations() -> None:
    """Each is a pass over memory where XLA does not compile; TensorFlow's own loss has 14."""
    passes = {"Const", "Placeholder", "Identity", "IdentityN", "NoOp"}

    def count(pos_weight: float) -> int:
        function = with_shapes(lambda z, x: weighted(z, x, pos_weight), [9], [9])
        nodes = function.get_concrete_function().graph.as_graph_def().node
        used = [node for node in nodes if node.op not in passes]
        return sum(not node.name.endswith("/far") for node in used)

    assert count(3.0) <= 12
    assert count(100.0) <= 17


def test_name_is_a_name_scope() -> None:
    def names(function: Callable[..., Any]) -> set[str]:
        graph = with_shapes(function, [2], [2], autograph=False).get_concrete_function().graph
        kinds = ("Placeholder", "Identity", "NoOp")
        return {op.name.split("/")[0] for op in graph.get_operations() if op.type not in kinds}

    assert names(lambda z, x: weighted(z, x, 1.0)) == {"logistic_loss"}
    assert names(lambda z, x: weighted(z, x, 1.0, "mine")) == {"mine"}
    assert names(lambda z, x: sigmoid_loss(z, x, name="mine")) == {"mine"}
    v1 = compat.v1.weighted_cross_entropy_with_logits
    assert names(lambda z, x: v1(z, x, 1.0)) == {"logistic_loss"}
    assert names(lambda z, x: v1(z, x, 1.0, "mine")) == {"mine"}


def test_graphs_of_tensorflow_1() -> None:
    with tf.Graph().as_default():
        placeholders = [tf.compat.v1.placeholder(tf.float32, [None]) for _ in range(2)]
        loss = weighted(*placeholders, 3.0)
        (gradient,) = tf.compat.v1.gradients(loss, placeholders[1])
        assert loss.name.startswith("logistic_loss/")
        with tf.compat.v1.Session() as session:
            given = dict(zip(placeholders, ([1.0, 0.0], [0.0, 0.0]), strict=True))
            np.testing.assert_array_equal(session.run(gradient, given), [-1.5, 0.5])


@pytest.mark.parametrize("known", [False, True])
def test_datasets(known: bool) -> None:
    generator = np.random.default_rng(2)
    labels, logits = generator.random((10, 3)), generator.normal(size=(10, 3))
    dataset = tf.data.Dataset.from_tensor_slices((labels, logits)).batch(4, drop_remainder=known)
    mapped = dataset.map(lambda z, x: weighted(z, x, 3.0), num_parallel_calls=2)
    got = np.concatenate(list(mapped.as_numpy_iterator()))
    np.testing.assert_allclose(got, weighted(labels, logits, 3.0)[: len(got)], rtol=1e-14)


@pytest.mark.parametrize("mapped", [(True, True), (True, False), (False, True)], ids=str)
def test_vectorized_map(mapped: tuple[bool, bool]) -> None:
    generator = np.random.default_rng(3)
    arrays = [generator.random((4, *shape)) for shape in ((2, 3), (2, 3), (3,), (2, 1))]
    arrays = [a if m else a[0] for a, m in zip(arrays, (*mapped, True, False), strict=True)]
    for reduction in ("none", "mean", "weighted_mean"):

        def results(z: Any, x: Any, q: Any, w: Any, reduction: str = reduction) -> Any:
            return logitloss.value_and_grad(z, x, q, weight=w, reduction=reduction)

        def one(q_and_index: Any, results: Callable[..., Any] = results) -> Any:
            q, index = q_and_index
            z, x = (
                tf.gather(a, index) if m else tf.constant(a)
                for a, m in zip(arrays[:2], mapped, strict=True)
            )
            return results(z, x, q, tf.constant(arrays[3]))

        got = tf.vectorized_map(one, (tf.constant(arrays[2]), tf.range(4)))
        for i in range(4):
            given = [a[i] if m else a for a, m in zip(arrays[:2], mapped, strict=True)]
            expected = results(*given, arrays[2][i], arrays[3])
            for value, right in zip(got, expected, strict=True):
                np.testing.assert_allclose(value[i], right, rtol=1e-13)


# Processes of their own

SRC = str(Path(logitloss.__file__).parents[1])


def run(
    script: str,
    folder: Path,
    *,
    with_logitloss: bool = True,
    with_errors: bool = False,
    **environment: str,
) -> str:
    path = folder / "script.py"
    path.write_text(script)
    known = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if with_logitloss:
        known["PYTHONPATH"] = SRC
    result = subprocess.run(
        [sys.executable, str(path)],
        env=known | {"TF_CPP_MIN_LOG_LEVEL": "3"} | environment,
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + (result.stderr if with_errors else "")


class Model(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 3]), tf.TensorSpec([None, 3])])
    def loss(self, labels: Any, logits: Any) -> Any:
        return weighted(labels, logits, [1.0, 2.0, 3.0], reduction="mean")


LOAD = """
import sys
sys.modules["logitloss"] = None  # As if it were not installed: an import would fail.
import tensorflow as tf
model = tf.saved_model.load("model")
logits = tf.zeros((2, 3))
with tf.GradientTape() as tape:
    tape.watch(logits)
    loss = model.loss(tf.ones((2, 3)), logits)
print(*tape.gradient(loss, logits)[0].numpy())
try:
    model.loss(tf.ones((2, 3)), tf.zeros((1, 3)))
except tf.errors.InvalidArgumentError as error:
    assert "must have the same shape" in str(error)
"""


def test_saved_models_load_without_logitloss(tmp_path: Path) -> None:
    tf.saved_model.save(Model(), str(tmp_path / "model"))
    output = run(LOAD, tmp_path, with_logitloss=False)
    expected = -np.array([1.0, 2.0, 3.0], "float32") / 12
    np.testing.assert_allclose(np.array(output.split()[-3:], "float32"), expected, rtol=1e-6)


TWO_CPUS = """
import numpy as np
import tensorflow as tf
import logitloss
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    logits = tf.Variable(tf.zeros(2))

def step(labels):
    with tf.GradientTape() as tape:
        loss = logitloss.weighted_cross_entropy_with_logits(labels, logits, 3.0, reduction="mean")
    return loss, tape.gradient(loss, logits)

for run in (step, tf.function(step)):
    loss, gradient = strategy.run(run, args=(tf.constant([1.0, 0.0]),))
    for value in strategy.experimental_local_results(gradient):
        np.testing.assert_array_equal(value, [-0.75, 0.25])
    total = strategy.reduce("SUM", loss, axis=None)
    np.testing.assert_allclose(total, 4 * np.log(2), rtol=1e-6)

with tf.device("CPU:1"):
    second = tf.constant([0.0, -20.0])
assert second.device.endswith("CPU:1")
for result in logitloss.value_and_grad([1.0, 0.0], second, 3.0, reduction="mean"):
    assert result.device.endswith("CPU:1"), result.device
assert logitloss.weighted_cross_entropy_with_logits([1.0, 0.0], second, 3.0)[1] > 0
"""


def test_two_devices(tmp_path: Path) -> None:
    run(TWO_CPUS, tmp_path)


AUTOGRAPH = """
import warnings
warnings.simplefilter("error")
import tensorflow as tf
import logitloss
from logitloss.compat import v1

@tf.function
def step(labels, logits):
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = logitloss.weighted_cross_entropy_with_logits(labels, logits, 3.0, reduction="mean")
        loss += tf.reduce_sum(v1.weighted_cross_entropy_with_logits(labels, logits, 3.0))
        loss += tf.reduce_sum(logitloss.sigmoid_cross_entropy_with_logits(labels, logits))
    logitloss.value_and_grad(labels, logits)
    logitloss.grad_and_hess(labels, logits)
    return tape.gradient(loss, logits)

step(tf.ones(3), tf.zeros(3))
tf.function(logitloss.weighted_cross_entropy_with_logits)(tf.ones(3), tf.zeros(3), 3.0)
"""


def test_autograph_has_nothing_to_say(tmp_path: Path) -> None:
    output = run(AUTOGRAPH, tmp_path, with_errors=True, AUTOGRAPH_VERBOSITY="1")
    assert "AutoGraph" not in output and "autograph" not in output


def test_tensorflow_is_not_imported_before_one_of_its_tensors_is_passed(tmp_path: Path) -> None:
    script = """
import sys
import numpy, logitloss
logitloss.weighted_cross_entropy_with_logits([1.0], [0.0], 2.0)
logitloss.weighted_cross_entropy_with_logits(numpy.ones(3), numpy.zeros(3), [2.0] * 3)
assert "tensorflow" not in sys.modules and "logitloss._backends.tensorflow" not in sys.modules
import tensorflow
logitloss.weighted_cross_entropy_with_logits([1.0], [0.0], 2.0)
assert "logitloss._backends.tensorflow" not in sys.modules
assert isinstance(logitloss.weighted_cross_entropy_with_logits([1.0], [0.0], 2.0).item(), float)
"""
    run(script, tmp_path)


# What TensorFlow's own tests ask of its loss.


def test_numbers_of_tensorflows_tests() -> None:
    """weighted_cross_entropy_test.py of TensorFlow."""
    logits = tf.constant([-100.0, -2.0, -2.0, 0.0, 2.0, 2.0, 2.0, 100.0] * 2, tf.float32)
    labels = tf.constant([0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.5, 1.0] * 2, tf.float32)
    q = 2.0
    z, x = (t.numpy().astype(float) for t in (labels, logits))
    expected = q * z * np.log1p(np.exp(-x)) + (1 - z) * np.log1p(np.exp(x))
    for shape in ((16,), (4, 4), (2, 2, 4)):
        got = weighted(tf.reshape(labels, shape), tf.reshape(logits, shape), q)
        np.testing.assert_allclose(got, expected.reshape(shape), rtol=1e-6, atol=1e-44)
    got = weighted(labels, logits, [q] * 16, "loss")
    # Two of them are subnormal numbers.
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-44)


def test_gradient_checker_of_tensorflow() -> None:
    labels = tf.constant([0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.5, 0.9], tf.float64)
    logits = tf.constant([-100.0, -2.0, -2.0, 0.0, 2.0, 2.0, 2.0, 10.0], tf.float64)
    found = tf.test.compute_gradient(lambda x: weighted(labels, x, 1.5), [logits])
    np.testing.assert_allclose(*found, atol=1e-7, rtol=0)
