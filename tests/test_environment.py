"""What importing and calling the library must leave as it found it."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Prints what has changed; `step` is run between two looks at the process.
STATE = """
import ctypes, locale, os, random, signal, sys, threading, warnings
import numpy as np

libm = ctypes.CDLL(None)

def floating_point_control():
    environment = (ctypes.c_uint8 * 64)()
    libm.fegetenv(environment)
    control = bytes(environment[:2])
    # The upper bits of MXCSR: masks, rounding, flush-to-zero; below are the sticky flags.
    mxcsr = int.from_bytes(bytes(environment[28:32]), "little") & ~0x3F
    return libm.fegetround(), control, mxcsr

def in_another_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results

def state():
    return {
        "floating point": floating_point_control() if sys.platform == "linux" else None,
        "floating point of new threads":
            in_another_thread(floating_point_control) if sys.platform == "linux" else None,
        "subnormals": float(np.float32(1e-40) * np.ones(1, np.float32)[0]),
        "locale": locale.setlocale(locale.LC_ALL),
        "warnings": list(warnings.filters),
        "signals": {s: signal.getsignal(s) for s in signal.valid_signals()},
        "wakeup": signal.set_wakeup_fd(-1),
        "environment": dict(os.environ),
        "path": list(sys.path),
        "errors": np.geterr(),
        "print": np.get_printoptions(),
        "random": (random.getstate(), str(np.random.get_state())),
        "recursion": sys.getrecursionlimit(),
        "switch": sys.getswitchinterval(),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook),
        "trace": (sys.gettrace(), sys.getprofile()),
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, []) if sys.platform != "win32" else None,
        "directory": os.getcwd(),
    }

def changes(before):
    after = state()
    return {key: (before[key], after[key]) for key in before if before[key] != after[key]}

before = state()
import logitloss
imported = changes(before)
"""

CALLS = """
x = np.linspace(-800, 800, 200_000)
x[:3] = np.inf, -np.inf, np.nan
for dtype in ("float16", "float32", "float64", "longdouble"):
    for reduction in ("none", "weighted_mean"):
        logitloss.value_and_grad(
            x > 0, x.astype(dtype), 1e30, weight=np.abs(x), reduction=reduction
        )
    logitloss.grad_and_hess(x > 0, x.astype(dtype))
logitloss.set_num_threads(3)
logitloss.weighted_cross_entropy_with_logits(x > 0, x, 2.0, reduction="sum")
try:
    logitloss.weighted_cross_entropy_with_logits([1], [[2]], 2.0)
except ValueError:
    pass
called = changes(before)
"""


def fresh(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="looks through the C library's environment")
def test_neither_import_nor_calls_change_the_process() -> None:
    assert fresh(STATE + CALLS + "print(imported, called)") == "{} {}\n"


def test_import_starts_no_thread_and_warns_of_nothing() -> None:
    code = (
        "import warnings, threading, sys, os; warnings.simplefilter('error'); import numpy\n"
        "count = lambda: len(os.listdir('/proc/self/task')) if os.path.isdir('/proc') else 1\n"
        "before = count(); import logitloss; print(threading.active_count(), count() - before)"
    )
    assert fresh(code) == "1 0\n"


def test_numpy_warnings_and_errors_stay_as_the_caller_set_them() -> None:
    """np.seterr(all="raise") must neither break a call nor be undone by it."""
    code = """
import numpy as np, logitloss
np.seterr(all="raise")
x = np.array([-1e4, -800.0, 0, 800, np.inf, -np.inf, 1e-310])
for dtype in ("float16", "float32", "float64", "longdouble"):
    with np.errstate(all="ignore"):
        z, logits = (x > 0).astype(dtype), x.astype(dtype)
    for reduction in ("none", "sum", "mean", "weighted_mean"):
        logitloss.value_and_grad(z, logits, 1e-30, weight=1e-10, reduction=reduction)
        logitloss.value_and_grad(z, logits, 1e30, weight=[1e30] * 7, reduction=reduction)
    logitloss.grad_and_hess(z, logits, 1e30)
print(np.geterr())
"""
    assert fresh(code) == str(dict.fromkeys(("divide", "over", "under", "invalid"), "raise")) + "\n"


# The first to come brings the OpenMP runtime that the others find. Of the 24 orders these are four
# in which each library comes once at each place, and once right after each of the others.
ORDERS = [
    ("logitloss", "torch", "numba", "sklearn"),
    ("torch", "sklearn", "logitloss", "numba"),
    ("sklearn", "numba", "torch", "logitloss"),
    ("numba", "logitloss", "sklearn", "torch"),
]

TOGETHER = """
import sys
import numpy as np
def use_logitloss():
    import logitloss
    x = np.linspace(-5, 5, 300_000)
    return float(logitloss.weighted_cross_entropy_with_logits(x > 0, x, 2.0, reduction="sum"))
def use_torch():
    import torch
    a = torch.ones(300, 300)
    assert float((a @ a).sum()) == 300 ** 3
    assert float(torch.ones(1_000_000).exp().log().sum().round()) == 1_000_000
def use_sklearn():
    from sklearn.metrics import pairwise_distances_argmin
    x = np.random.default_rng(0).random((3000, 5))
    pairwise_distances_argmin(x, x[:300])
def use_numba():
    import numba
    @numba.njit(parallel=True)
    def total(x):
        s = 0.0
        for i in numba.prange(x.size):
            s += x[i]
        return s
    assert total(np.ones(100_000)) == 100_000
order = sys.argv[1:]
for name in order:
    globals()["use_" + name]()
results = set()
for name in order:
    results.add(use_logitloss())
    globals()["use_" + name]()
assert len(results) == 1
print("well")
"""


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_beside_other_libraries_with_threads_of_their_own(order: tuple[str, ...]) -> None:
    """Two OpenMP runtimes in one process have hung and crashed, depending on who came first."""
    from importlib.util import find_spec

    for name in order:
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    result = subprocess.run(
        [sys.executable, "-c", TOGETHER, *order], capture_output=True, text=True, timeout=300
    )
    assert result.stdout == "well\n", result.stderr
