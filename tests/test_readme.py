"""The example in README.md runs, and gives what its comments say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"


def test_example() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("jax").config.update("jax_enable_x64", True)
    code = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    *body, last = code.strip().splitlines()
    names: dict = {}
    exec("\n".join([*body, f"jax_gradient = {last}"]), names)
    loss = names["loss"](names["z"], names["x"], 3.0)
    np.testing.assert_allclose(loss, [3 * np.log(2), np.log1p(np.exp(-20))], rtol=1e-15)
    expected = [-1.5, np.exp(-20) / (1 + np.exp(-20))]
    np.testing.assert_allclose(names["t"].grad, expected, rtol=1e-6)
    np.testing.assert_allclose(names["jax_gradient"], expected, rtol=1e-15)
