"""How many array operations the formula takes: in most libraries each is a pass over memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import logitloss
from logitloss import _formula

# Of the orders of derivatives.
OPERATIONS = {(0,): 24, (0, 1): 30, (1, 2): 29}


class Counting:
    """The namespace `xp`, which counts what is applied to its arrays."""

    def __init__(self, xp: Any) -> None:
        self.xp, self.finfo = xp, xp.finfo
        self.count = 0

    def __getattr__(self, name: str) -> Callable[..., Counted]:
        return lambda *arguments: self.apply(getattr(self.xp, name), *arguments)

    def apply(self, function: Callable[..., Any], *arguments: Any) -> Counted:
        self.count += 1
        return Counted(self, function(*(getattr(a, "values", a) for a in arguments)))


class Counted:
    """An array with operators alone, each of which counts."""

    def __init__(self, namespace: Counting, values: Any) -> None:
        self.namespace, self.values, self.dtype = namespace, values, values.dtype


def operator(name: str) -> Callable[..., Counted]:
    def apply(array: Counted, *others: Any) -> Counted:
        return array.namespace.apply(getattr(type(array.values), name), array, *others)

    return apply


for operation in ("add", "sub", "mul", "truediv", "radd", "rsub", "rmul", "rtruediv", "neg", "abs"):
    setattr(Counted, f"__{operation}__", operator(f"__{operation}__"))
for operation in ("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "invert"):
    setattr(Counted, f"__{operation}__", operator(f"__{operation}__"))


@pytest.mark.parametrize("orders", OPERATIONS)
def test_array_operations(orders: tuple[int, ...]) -> None:
    strict = pytest.importorskip("array_api_strict")
    namespace = Counting(strict)
    values = strict.asarray([0.5, 1.0]), strict.asarray([-1.0, 90.0]), strict.asarray(3.0)
    counted = (Counted(namespace, value) for value in values)
    results = _formula.derivatives(orders, *counted, namespace)
    for got, expected in zip(results, _formula.derivatives(orders, *values, strict), strict=True):
        assert strict.all(got.values == expected)
    assert namespace.count == OPERATIONS[orders]


@pytest.mark.parametrize("orders", OPERATIONS)
def test_a_call_on_tensors_is_the_formula_alone(
    orders: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    cases = pytest.importorskip("torch_cases")
    modes = pytest.importorskip("torch.utils._python_dispatch")

    class Recording(modes.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            called.append((function, *filter(torch.is_tensor, arguments)))
            return function(*arguments, **(options or {}))

    function = {
        (0,): logitloss.weighted_cross_entropy_with_logits,
        (0, 1): logitloss.value_and_grad,
        (1, 2): logitloss.grad_and_hess,
    }[orders]
    cases.have_other_tensors(monkeypatch)
    operands = torch.rand(2), torch.rand(2), torch.tensor(3.0)
    called: list[Any] = []
    with Recording():
        function(*operands)
    # Numbers become tensors and have their dtypes compared, which is no pass over memory.
    names = [function.__name__ for function, *tensors in called if tensors]
    assert len(names) == OPERATIONS[orders], names
