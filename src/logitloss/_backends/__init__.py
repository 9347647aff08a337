"""How each array library computes the loss; `_losses` chooses one by the namespace."""

from typing import Protocol

from logitloss._arguments import Arguments
from logitloss._formula import Array


class Backend(Protocol):
    """What the module of a backend defines. `out` has been checked, and may be an input."""

    def loss(
        self, arguments: Arguments, reduction: str, out: Array | None, name: str | None
    ) -> Array: ...

    def value_and_grad(
        self, arguments: Arguments, reduction: str, out: tuple[Array, Array] | None
    ) -> tuple[Array, Array]: ...

    def grad_and_hess(
        self, arguments: Arguments, out: tuple[Array, Array] | None
    ) -> tuple[Array, Array]: ...
