"""PyTorch: eager calls, and the customs of its users."""

from __future__ import annotations

import itertools
import math
import weakref

import numpy as np
import pytest
from torch_cases import (
    FUNCTIONS,
    MARKS,
    REDUCTIONS,
    by_backward,
    compiled,
    inf,
    nan,
    reduced,
    small_operands,
    tensors,
    torch,
)

import logitloss
from logitloss import _call, _losses
from logitloss import weighted_cross_entropy_with_logits as weighted
from logitloss._backends import torch as backend
from logitloss._backends.torch import _values
from logitloss._kernel import kernel

torch_loss = torch.nn.functional.binary_cross_entropy_with_logits

pytestmark = MARKS


@pytest.mark.parametrize("name", FUNCTIONS)
def test_requiring_grad_changes_no_value(name: str) -> None:
    got = FUNCTIONS[name](*small_operands(requires_grad=True))
    torch.testing.assert_close(got, FUNCTIONS[name](*small_operands()), rtol=1e-15, atol=0)


@pytest.mark.parametrize("reduction", ["sum", "mean", "weighted_mean"])
def test_backward_scales_accumulates_and_repeats(reduction: str) -> None:
    labels, logits, pos_weight, weight = small_operands()
    _, expected = logitloss.value_and_grad(
        labels, logits, pos_weight, weight=weight, reduction=reduction
    )
    logits.requires_grad_()
    value = weighted(labels, logits, pos_weight, weight=weight, reduction=reduction)
    value.backward(retain_graph=True)
    np.testing.assert_array_equal(logits.grad, expected)
    # What the caller does to the gradient must not reach the next backward pass.
    logits.grad.zero_()
    value.backward(retain_graph=True)
    np.testing.assert_array_equal(logits.grad, expected)
    (4 * value).backward()
    np.testing.assert_array_equal(logits.grad, 5 * expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_kernel_works_in_the_memory_of_the_tensors(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    class Spy:
        REDUCTIONS = kernel.REDUCTIONS

        @staticmethod
        def compute(orders, *arguments, **options):
            results = kernel.compute(orders, *arguments, **options)
            written = [array.ctypes.data for array in results if isinstance(array, np.ndarray)]
            read.append([address for address, *_ in arguments[:3]] + written)
            return results

    monkeypatch.setattr(_values, "kernel", Spy)
    labels, logits = tensors([[1.0, 0.0, 0.5], [0.5, -2.0, 3.0]], dtype)
    pos_weight = torch.full_like(logits, 2.0)
    logits.requires_grad_()
    for reduction in REDUCTIONS:
        read.clear()
        weighted(labels, logits, pos_weight, reduction=reduction).sum().backward()
        # The gradient comes from the forward pass, and is given away as it is.
        ((*operands, gradient),) = read
        assert operands[:3] == [t.data_ptr() for t in (labels, logits, pos_weight)]
        assert gradient == logits.grad.data_ptr()
        logits.grad = None

    read.clear()
    factors = tensors([[1.0, 2.0, 3.0]], dtype)[0]
    (factors * weighted(labels, logits, pos_weight)).sum().backward()
    # One that is to be multiplied by several numbers is computed anew, in the same memory.
    forward, backward = read
    assert forward[-1] == backward[-1] == logits.grad.data_ptr()
    expected = factors * logitloss.value_and_grad(labels, logits.detach(), pos_weight)[1]
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "weight", [None, 0.5, torch.tensor([1.0, 0.0])], ids=["none", "0.5", "mask"]
)
def test_a_step_takes_one_node_of_the_graph(reduction: str, weight) -> None:
    logits = torch.zeros(2, requires_grad=True)
    value = weighted(torch.ones(2), logits, 2.0, weight=weight, reduction=reduction)
    ((node, _), *_) = value.grad_fn.next_functions
    assert node.variable is logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("is_compiled", [False, True])
def test_what_is_multiplied_by_zero_is_masked(
    dtype: torch.dtype, reduction: str, is_compiled: bool
) -> None:
    labels, weight = torch.ones(2, dtype=dtype), torch.tensor([2.0, 1.0], dtype=dtype)
    function = compiled(reduced(reduction)) if is_compiled else reduced(reduction)
    for factor, by in itertools.product((torch.tensor(0.0), torch.zeros(2)), (None, weight)):
        logits = torch.tensor([nan, -inf], dtype=dtype, requires_grad=True)
        (factor * function(labels, logits, 2.0, by).sum()).sum().backward()
        np.testing.assert_array_equal(logits.grad.float(), 0)


def test_the_same_tensor_as_labels_and_logits() -> None:
    both = torch.tensor([0.25, 0.75], dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.grad(weighted(both, both, 2.0, reduction="sum"), both)
    apart = [both.detach().clone().requires_grad_() for _ in range(2)]
    total = weighted(*apart, 2.0, reduction="sum")
    torch.testing.assert_close(got, sum(torch.autograd.grad(total, apart)), rtol=1e-15, atol=0)


def test_the_graph_keeps_nothing_that_was_given_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is kept, as for a log, does not keep the gradient of all elements with it."""
    arrays, from_numpy = [], torch.from_numpy

    def remember(array):
        arrays.append(weakref.ref(array))
        return from_numpy(array)

    monkeypatch.setattr(_values, "from_numpy", remember)
    labels, logits = torch.ones(3), torch.zeros(3, requires_grad=True)
    value = weighted(labels, logits, 2.0, reduction="mean")
    value.backward()
    assert [array() is None for array in arrays] == [False, False]
    logits.grad = None
    assert [array() is None for array in arrays] == [False, True]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_0d_tensors(reduction: str, requires_grad: bool) -> None:
    results = []
    for shape in ((), (1,)):
        labels, logits = torch.full(shape, 0.25), torch.full(shape, -1.5)
        value = weighted(labels, logits.requires_grad_(requires_grad), 3.0, reduction=reduction)
        assert value.shape == (shape if reduction == "none" else ())
        results.append([value.detach().reshape(())])
        if requires_grad:
            value.sum().backward()
            assert logits.grad.shape == shape
            results[-1].append(logits.grad.reshape(()))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_sum_beyond_float32_is_infinite_without_a_warning(requires_grad: bool) -> None:
    labels, logits = torch.zeros(4), torch.full((4,), 3e38, requires_grad=requires_grad)
    assert weighted(labels, logits, 2.0, reduction="sum") == inf


@pytest.mark.parametrize("weight", [np.full((2, 3), 0.5, "float32"), np.float64(0.5), True, 2])
def test_numbers_and_arrays_of_numpy_as_coefficients(weight) -> None:
    labels, logits = torch.ones(2, 3), torch.zeros(2, 3, requires_grad=True)
    value = weighted(labels, logits, weight, weight=weight, reduction="mean")
    (gradient,) = torch.autograd.grad(value, logits, create_graph=True)
    number = float(np.mean(weight))
    torch.testing.assert_close(value.item(), number**2 * math.log(2))
    torch.testing.assert_close(gradient.detach(), torch.full((2, 3), -(number**2) / 12))
    (hessian,) = torch.autograd.grad(gradient.sum(), logits)
    torch.testing.assert_close(hessian, torch.full((2, 3), number**2 / 24))


def test_an_operand_changed_since_is_an_error() -> None:
    for reduction in REDUCTIONS:
        labels, logits = torch.rand(3), torch.rand(3, requires_grad=True)
        value = weighted(labels, logits, 2.0, reduction=reduction).sum()
        # Written by the kernel, behind autograd's back.
        weighted(torch.ones(3), torch.zeros(3), 2.0, out=labels)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("autocast", ["float16", "bfloat16"])
def test_autocast_does_what_it_does_to_the_loss_of_torch(dtype: str, autocast: str) -> None:
    labels, logits = tensors([[1.0, 0.0], [0.3, -2.0]], dtype)
    logits.requires_grad_()
    with torch.autocast("cpu", dtype=getattr(torch, autocast)):
        for reduction in ("none", "mean"):
            value = weighted(labels, logits, 2.0, reduction=reduction)
            theirs = torch_loss(logits, labels, reduction=reduction)
            assert value.dtype == theirs.dtype
            assert torch.autograd.grad(value.sum(), logits)[0].dtype == logits.dtype
        out = torch.empty_like(labels)
        assert weighted(labels, logits.detach(), 2.0, out=out) is out


@pytest.mark.parametrize(
    ("are_lists", "is_compiled"), [(False, False), (True, False), (False, True)]
)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["list", "array", "number"])
def test_coefficients_under_autocast_are_not_rounded_to_half_precision(
    are_lists: bool, is_compiled: bool, reduction: str, kind: str
) -> None:
    """They are those of a float32 loss, whatever holds them."""
    logits = torch.tensor([0.3, -2.0], dtype=torch.bfloat16)
    labels = [1, 0] if are_lists else torch.tensor([1.0, 0.0], dtype=torch.bfloat16)
    numbers = [1.2, 3.1415926]
    given = {"list": numbers, "array": np.array(numbers), "number": numbers[0]}[kind]

    def results(coefficient) -> torch.Tensor:
        def function():
            # Not the function that the suite wraps, which looks at every array.
            return _losses.weighted_cross_entropy_with_logits(
                labels, logits, coefficient, weight=coefficient, reduction=reduction
            )

        return (compiled(function) if is_compiled else function)()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, expected = map(results, (given, torch.tensor(given, dtype=torch.float64)))
        assert got.dtype is torch.float32
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
        # Outputs of half precision are those of a call without.
        out = torch.empty_like(results(1.0), dtype=torch.bfloat16)
        weighted(labels, logits, given, weight=given, reduction=reduction, out=out)
    torch.testing.assert_close(out, results(given), rtol=0, atol=0)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes_do_what_they_do_to_the_loss_of_torch(mode, requires_grad: bool) -> None:
    labels, logits = torch.rand(3), torch.rand(3, requires_grad=requires_grad)
    with mode():
        for reduction in ("none", "mean"):
            value = weighted(labels, logits, 2.0, reduction=reduction)
            theirs = torch_loss(logits, labels, reduction=reduction)
            assert value.requires_grad == theirs.requires_grad
            assert value.is_inference() == theirs.is_inference()


VIEWS = {
    "transposed": lambda t: t.T.contiguous().T,
    "strided": lambda t: t.repeat_interleave(3, dim=1)[:, ::3],
    "negated": lambda t: torch.complex(torch.zeros_like(t), -t).conj().imag,
    "real part": lambda t: torch.complex(t, t).conj().real,
    "parameter": torch.nn.Parameter,
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_views(view: str, reduction: str) -> None:
    operands = small_operands()
    *viewed, pos_weight = (VIEWS[view](operands[i]) for i in (0, 1, 3))
    viewed = [*viewed, operands[2], pos_weight]
    copies = [operand.detach().clone() for operand in viewed]
    value, gradient = logitloss.value_and_grad(
        *(t.detach() for t in viewed[:3]), weight=viewed[3].detach(), reduction=reduction
    )
    expected = logitloss.value_and_grad(*operands[:3], weight=operands[3], reduction=reduction)
    torch.testing.assert_close((value, gradient), expected, rtol=1e-15, atol=0)
    got = by_backward(reduced(reduction), viewed)
    torch.testing.assert_close(got, by_backward(reduced(reduction), operands), rtol=1e-14, atol=0)
    torch.testing.assert_close([t.detach() for t in viewed], copies, rtol=0, atol=0)


@pytest.mark.parametrize("view", [*VIEWS, "expanded"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_incoming_gradient_of_any_layout(view: str, dtype: str) -> None:
    """Of more elements than a block of the kernel has, into memory that is there, and not."""
    labels, logits, weight, scale = torch.rand((4, 30, 70), dtype=getattr(torch, dtype)) - 0.25
    scale = scale[:, :1].expand(30, 70) if view == "expanded" else VIEWS[view](scale)
    for given, by in ((logits, None), (logits.T.contiguous().T, weight[:1])):
        leaf = given.clone().requires_grad_()
        value = weighted(labels, leaf, 2.0, weight=by)
        _, gradient = logitloss.value_and_grad(labels, given, 2.0, weight=by)
        for _ in range(2):
            (got,) = torch.autograd.grad(value, leaf, scale.detach(), retain_graph=True)
            torch.testing.assert_close(got, gradient * scale.detach(), rtol=0, atol=0)


def test_results_have_the_layout_of_the_logits() -> None:
    logits = torch.rand(4, 3, 2).permute(2, 0, 1)
    labels = torch.ones(2, 4, 3)
    results = *logitloss.value_and_grad(labels, logits), *logitloss.grad_and_hess(labels, logits)
    for result in (weighted(labels, logits, 2.0), *results):
        assert result.stride() == logits.stride()


def test_expanded_operands() -> None:
    labels, logits = torch.ones(()).expand(4, 5), torch.arange(5.0).expand(4, 5)
    expected = weighted(labels.clone(), logits.clone(), 2.0)
    torch.testing.assert_close(weighted(labels, logits, 2.0), expected, rtol=0, atol=0)


@pytest.mark.parametrize("position", range(5))
def test_out_and_autograd(position: int) -> None:
    given = [*small_operands(), torch.empty(3, 4, dtype=torch.float64)]
    given[position].requires_grad_()
    labels, logits, pos_weight, weight, out = given
    with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
        weighted(labels, logits, pos_weight, weight=weight, out=out)
    with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
        logitloss.grad_and_hess(
            labels, logits, pos_weight, weight=weight, out=(torch.empty_like(out).detach(), out)
        )
    with torch.no_grad():
        assert weighted(labels, logits, pos_weight, weight=weight, out=out) is out
        expected = weighted(labels, logits, pos_weight, weight=weight)
    torch.testing.assert_close(out.detach(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("view", ["transposed", "strided", "negated"])
@pytest.mark.parametrize("rows", [3, 1])
def test_out_of_any_layout(view: str, rows: int) -> None:
    labels, logits, pos_weight, weight = small_operands()
    if rows == 1:
        labels, logits, pos_weight, weight = labels[:1, :1], logits[:1, :1], pos_weight[:1], 1.0
    first, second = (VIEWS[view](torch.zeros_like(logits)) for _ in range(2))
    got = logitloss.value_and_grad(labels, logits, pos_weight, weight=weight, out=(first, second))
    assert got[0] is first
    assert got[1] is second
    expected = logitloss.value_and_grad(labels, logits, pos_weight, weight=weight)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_out_that_overlaps_itself_is_refused_as_torch_does() -> None:
    out = torch.zeros(()).expand(3)
    with pytest.raises(RuntimeError, match="single memory location"):
        weighted(torch.ones(3), torch.ones(3), 2.0, out=out)


def test_out_that_overlaps_an_operand() -> None:
    memory = torch.linspace(-3, 3, 8)
    labels, logits = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.5, 0.5]), memory[:6]
    expected = weighted(labels, logits.clone(), 2.0)
    torch.testing.assert_close(weighted(labels, logits, 2.0, out=memory[1:7]), expected)


@pytest.mark.parametrize("name", [None, "validation"])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_name_in_the_profiler(name: str | None, requires_grad: bool) -> None:
    labels, logits = torch.rand(3), torch.rand(3, requires_grad=requires_grad)
    with torch.autograd.profiler.profile() as profile:
        weighted(labels, logits, 2.0, name)
    assert (name or "logistic_loss") in {event.name for event in profile.function_events}


def test_subclass_comes_back() -> None:
    class Tagged(torch.Tensor):
        pass

    labels, logits = torch.rand(3).as_subclass(Tagged), torch.rand(3).as_subclass(Tagged)
    got = weighted(labels, logits, 2.0)
    assert type(got) is Tagged
    expected = weighted(labels.as_subclass(torch.Tensor), logits.as_subclass(torch.Tensor), 2.0)
    torch.testing.assert_close(got.as_subclass(torch.Tensor), expected)


LAYOUTS = {
    "sparse_coo": torch.Tensor.to_sparse,
    "sparse_csr": torch.Tensor.to_sparse_csr,
    "_mkldnn": torch.Tensor.to_mkldnn,
    "nested": lambda t: torch.nested.nested_tensor([t, t]),
    "nested jagged": lambda t: torch.nested.nested_tensor([t, t], layout=torch.jagged),
}


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("argument", ["labels", "logits", "pos_weight", "weight"])
def test_other_layouts_are_refused(layout: str, argument: str) -> None:
    given = {"labels": torch.eye(3), "logits": torch.eye(3), "pos_weight": 2.0}
    given[argument] = LAYOUTS[layout](torch.eye(3))
    message = f"`{argument}` must be a dense tensor; got layout .*{layout.split()[0]}"
    for call in (
        lambda: weighted(**given),
        lambda: weighted(**given, reduction="mean"),
        lambda: logitloss.grad_and_hess(**given),
    ):
        with pytest.raises(TypeError, match=message):
            call()


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors")
@pytest.mark.parametrize("in_a_list", [False, True])
@pytest.mark.parametrize("argument", ["labels", "logits", "pos_weight", "weight"])
def test_masked_tensors_are_refused(argument: str, in_a_list: bool) -> None:
    masked = torch.masked.masked_tensor(torch.ones(3), torch.tensor([True, True, False]))
    given = {"labels": torch.ones(3), "logits": torch.ones(3), "pos_weight": 2.0}
    given[argument] = [masked] if in_a_list else masked
    for call in (
        lambda: weighted(**given),
        lambda: weighted(**given, reduction="mean", out=torch.zeros(())),
        lambda: logitloss.grad_and_hess(**given),
    ):
        with pytest.raises(TypeError, match=f"`{argument}` must not be a masked array"):
            call()


@pytest.fixture
def mesh(tmp_path):
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("torch was built without torch.distributed")
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield distributed.device_mesh.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_distributed_tensors_beside_what_every_process_holds(mesh, reduction: str) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    labels, logits, *_ = small_operands()
    whole = logits.clone().requires_grad_()
    spread = [distribute_tensor(tensor, mesh, [Shard(0)]) for tensor in (labels, logits)]
    spread[1].requires_grad_()
    for pos_weight in (2.0, [1.0, 2.0, 3.0, 0.5], np.array([1.0, 2.0, 3.0, 0.5])):
        got, expected = (
            weighted(*pair, pos_weight, weight=pos_weight, reduction=reduction)
            for pair in (spread, (labels, whole))
        )
        torch.testing.assert_close(got.full_tensor(), expected, rtol=1e-14, atol=0)
        got, expected = (
            torch.autograd.grad(value.sum(), leaf)[0]
            for value, leaf in ((got, spread[1]), (expected, whole))
        )
        torch.testing.assert_close(got.full_tensor(), expected, rtol=1e-13, atol=0)


def test_other_devices_keep_their_own() -> None:
    labels, logits = torch.rand(3, 2, device="meta"), torch.rand(3, 2, device="meta")
    value, gradient = logitloss.value_and_grad(labels, logits, 2.0, reduction="mean")
    assert (value.device.type, value.shape) == ("meta", ())
    assert (gradient.device.type, gradient.shape) == ("meta", (3, 2))


def test_plain_call_looks_at_a_scalar_pos_weight() -> None:
    labels, logits, pos_weight = torch.ones(2), torch.zeros(2), torch.tensor(2.0)
    expected = weighted(labels, logits, 2.0)
    torch.testing.assert_close(weighted(labels, logits, pos_weight), expected, rtol=0, atol=0)
    assert weighted(labels, logits, pos_weight.requires_grad_()).requires_grad
    with pytest.raises(ValueError, match="must be on the same device"):
        weighted(labels, logits, torch.tensor(2.0, device="meta"))


PARSED = list(
    itertools.product(
        [torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(2, 3).bool(),
         torch.ones(2, 3, dtype=torch.complex64), torch.ones(3), [[1.0] * 3] * 2],
        [torch.ones(2, 3), torch.ones(2, 3).half(), torch.ones(2, 3).int()],
        [1.0, 2, torch.ones(3), torch.ones(3).double(), torch.ones(2), torch.ones(1, 2, 3), "1",
         torch.ones(3, device="meta"), 2**60, 10**400],
        [None, 1.0, torch.ones(2, 1).int(), np.ones(3)],
        ["mean", "median"],
        [None, "name", 1],
    )
)  # fmt: skip


def test_short_cut_agrees_with_the_parser() -> None:
    taken = 0
    for *given, reduction, name in PARSED:
        call = backend.describe(_call.LOSS, *given, reduction, None, name)
        if call is not None:
            taken += 1
            checked = _call.check(_call.LOSS, *given, reduction, None, name)
            for got, expected in zip(call, checked, strict=True):
                assert got is expected or got == expected
    assert taken > 30


def test_two_half_precisions_meet_in_float32() -> None:
    labels, logits = torch.tensor([0.0, 1.0]).half(), torch.tensor([1.0, -2.0]).bfloat16()
    expected = weighted(labels.float(), logits.float(), 2.0)
    for z, x in ((labels, logits), (labels.bfloat16(), logits.half())):
        got = weighted(z, x, 2.0)
        assert got.dtype is torch.float32
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    leaf = logits.clone().requires_grad_()
    weighted(labels, leaf, 2.0, reduction="mean").backward()
    assert leaf.grad.dtype is torch.bfloat16


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_negated_views_are_read(dtype: str) -> None:
    logits = torch.tensor([1.0, -2.0, 0.5]).to(getattr(torch, dtype))
    labels = torch.tensor([1.0, 0.0, 1.0]).to(logits.dtype)
    got = weighted(labels, torch._neg_view(logits), 2.0)
    torch.testing.assert_close(got, weighted(labels, -logits, 2.0), rtol=0, atol=0)


def test_zeros_without_memory_are_read() -> None:
    labels, logits, zeros = torch.ones(3), torch.zeros(3), torch._efficientzerotensor(3)
    torch.testing.assert_close(weighted(labels, logits, 2.0, weight=zeros), torch.zeros(3))


@pytest.mark.parametrize("is_contiguous", [True, False])
@pytest.mark.parametrize("library", ["logitloss", "torch"])
def test_zeros_without_memory_are_not_written(library: str, is_contiguous: bool) -> None:
    ones = torch.ones(3, 2)
    zeros = torch._efficientzerotensor(3, 2)
    if not is_contiguous:
        zeros = torch._efficientzerotensor(2, 3).T
    if library == "torch":
        with pytest.raises(RuntimeError, match="ZeroTensors are immutable"):
            torch.add(ones, ones, out=zeros)
        return
    with pytest.raises(ValueError, match="`out` must be writable; got a tensor of zeros"):
        weighted(ones, ones, 2.0, out=zeros)
    untouched = torch.zeros(3, 2)
    for outs, position in (((zeros, untouched), 0), ((untouched, zeros), 1)):
        with pytest.raises(
            ValueError, match=rf"`out\[{position}\]` must be writable; got a tensor"
        ):
            logitloss.value_and_grad(ones, ones, 2.0, out=outs)
    assert not untouched.any()


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
@pytest.mark.parametrize("shape", [(), (3, 2)])
@pytest.mark.parametrize("position", range(4))
def test_freed_memory_is_refused(
    position: int, shape: tuple[int, ...], dtype: str, requires_grad: bool
) -> None:
    """PyTorch's own functions end the process."""
    operands = [torch.ones(shape) for _ in range(4)]
    operands[position] = torch.ones(shape, dtype=getattr(torch, dtype))
    if requires_grad:
        operands = [o.requires_grad_() if o.is_floating_point() else o for o in operands]
    operands[position].untyped_storage().resize_(0)
    argument = ("labels", "logits", "pos_weight", "weight")[position]
    for function in FUNCTIONS.values():
        with pytest.raises(ValueError, match=f"`{argument}` must have memory; got a tensor whose"):
            function(*operands)


@pytest.mark.parametrize("is_contiguous", [True, False])
def test_freed_memory_is_not_written(is_contiguous: bool) -> None:
    ones, untouched, freed = torch.ones(3, 2), torch.zeros(3, 2), torch.ones(3, 2)
    if not is_contiguous:
        freed = torch.ones(2, 3).T
    freed.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="`out` must have memory; got a tensor whose storage"):
        weighted(ones, ones, 2.0, out=freed)
    for outs, position in (((freed, untouched), 0), ((untouched, freed), 1)):
        with pytest.raises(ValueError, match=rf"`out\[{position}\]` must have memory; got"):
            logitloss.value_and_grad(ones, ones, 2.0, out=outs)
    assert not untouched.any()


# PyTorch's own reductions of such tensors fail, which limits derivatives by anything but logits.
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("sizes", [(2, 3), (0, 3)])
def test_more_axes_than_arrays_have(sizes: tuple[int, ...], reduction: str, dtype: str) -> None:
    labels, logits, pos_weight, weight = (
        torch.rand(shape).to(getattr(torch, dtype))
        for shape in (sizes, sizes, sizes[1:], (sizes[0], 1))
    )
    options = {"reduction": reduction}
    expected = logitloss.value_and_grad(labels, logits, pos_weight, weight=weight, **options)
    shape = (sizes[0], *[1] * 70, sizes[1])
    labels, leaf = labels.reshape(shape), logits.reshape(shape).requires_grad_()
    options["weight"] = weight.reshape(*shape[:-1], 1)
    value = weighted(labels, leaf, pos_weight, **options)
    value.backward(torch.ones_like(value))
    logits = leaf.detach()
    outs = torch.empty_like(value), torch.empty_like(leaf)
    logitloss.value_and_grad(labels, logits, pos_weight, **options, out=outs)
    results = logitloss.value_and_grad(labels, logits, pos_weight, **options)
    for pair in (results, outs, (value, leaf.grad)):
        assert [result.shape for result in pair] == [value.shape, shape]
        for got, true in zip(pair, expected, strict=True):
            torch.testing.assert_close(
                got.detach().reshape(true.shape), true, rtol=0, atol=0, equal_nan=True
            )


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_outs_with_memory_in_common(dtype: str) -> None:
    memory = torch.zeros(5, dtype=getattr(torch, dtype))
    labels, logits = torch.zeros(4, dtype=memory.dtype), torch.ones(4, dtype=memory.dtype)
    for function in (logitloss.value_and_grad, logitloss.grad_and_hess):
        # Lists are not read where tensors are.
        for given, pos_weight in ((labels, 1.0), ([0] * 4, 1.0), (labels, [2.0] * 4)):
            with pytest.raises(
                ValueError, match="`out` must be two arrays with no memory in common"
            ):
                function(given, logits, pos_weight, out=(memory[:4], memory[1:]))
    assert (memory == 0).all()
    apart = torch.zeros(8, dtype=memory.dtype)
    outs = apart[::2], apart[1::2]
    for out, expected in zip(outs, logitloss.value_and_grad(labels, logits), strict=True):
        logitloss.value_and_grad(labels, logits, out=outs)
        torch.testing.assert_close(out, expected, rtol=0, atol=0)


def test_out_beside_a_tangent() -> None:
    labels, out = torch.zeros(2), torch.empty(2)
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level():
        logits = forward_ad.make_dual(torch.ones(2), torch.ones(2))
        with pytest.raises(RuntimeError, match="`out` must be None"):
            weighted(labels, logits, 2.0, out=out)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [None, (), (3,), (2, 3)])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_coefficients_are_rounded_to_half_precision_once(
    dtype: torch.dtype, reduction: str, shape, is_compiled: bool
) -> None:
    """PyTorch itself rounds float64 to float32 before."""
    eps = torch.finfo(dtype).eps
    function = compiled(reduced(reduction)) if is_compiled else reduced(reduction)

    def results(value: float) -> list:
        if shape is not None:
            value = torch.full(shape, value, dtype=torch.float64)
        found = []
        for coefficients in ((value, None), (1.5, value)):
            leaf = torch.tensor([[-40.0, 0.5, -3.0]] * 2, dtype=dtype, requires_grad=True)
            labels = torch.ones_like(leaf)
            found.append(function(labels, leaf.detach(), *coefficients))
            loss = function(labels, leaf, *coefficients)
            for scale in (1.0, 3.0, torch.arange(1.0, 4.0)):
                scales = torch.ones_like(loss) * scale if loss.dim() else torch.tensor(3.0)
                scales = scales.to(dtype)
                found += torch.autograd.grad(loss, leaf, scales, retain_graph=True)
        return found

    # A bit above the middle of two numbers, of which the even one is 1.
    got, nearest, even = map(results, (1 + eps / 2 + 2.0**-40, 1 + eps, 1.0))
    for result, expected in zip(got, nearest, strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=0)
    assert not torch.equal(got[0], even[0]) or reduction == "weighted_mean"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_numbers_at_the_end_of_the_range(dtype: torch.dtype, requires_grad: bool) -> None:
    """They are rounded, to infinity too, which PyTorch refuses on a GPU."""
    labels, logits = torch.ones(1, dtype=dtype), torch.full((1,), -1.0, dtype=dtype)
    # Its gradient does not go through the kernel.
    labels.requires_grad_(requires_grad)
    largest = torch.finfo(dtype).max
    middle = largest + torch.finfo(dtype).eps / 4 * 2.0 ** np.ceil(np.log2(largest))
    for size in (largest, middle * (1 - 1e-6), middle, 2 * largest, 1e300, np.inf, np.nan):
        value = weighted(labels, logits, 1.0, weight=torch.tensor(size).to(dtype))
        for number in (float(size), torch.tensor(size, dtype=torch.float64)):
            got = weighted(labels, logits, 1.0, weight=number)
            torch.testing.assert_close(got, value, rtol=0, atol=0, equal_nan=True)


def test_a_weight_too_small_for_the_result_masks_its_gradient() -> None:
    logits = torch.tensor([math.nan], requires_grad=True)
    weight = torch.tensor([1e-46], dtype=torch.float64)
    loss = logitloss.weighted_cross_entropy_with_logits(torch.ones(1), logits, 1.0, weight=weight)
    (loss * 1e10).sum().backward()
    assert loss.item() == logits.grad.item() == 0
