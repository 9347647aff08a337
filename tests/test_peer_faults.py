"""One test for each fault that users of other libraries have met with this loss."""

from __future__ import annotations

import os
import subprocess
import sys

import backends
import numpy as np
import pytest
import reference
from backends import Backend

import logitloss
from logitloss import _threads
from logitloss import weighted_cross_entropy_with_logits as weighted


def arrays(backend: Backend, dtype: str, *values: object) -> list[object]:
    return [backend.array(np.asarray(value, float), dtype) for value in values]


def gradient(backend: Backend, dtype: str, *values: object) -> np.ndarray:
    return backend.to_numpy(logitloss.value_and_grad(*arrays(backend, dtype, *values))[1])


def automatic_gradient(library: str, labels: list[float], logits: list[float], q: float):
    if library == "torch":
        torch = pytest.importorskip("torch")
        leaf = torch.tensor(logits, requires_grad=True)
        weighted(torch.tensor(labels), leaf, q, reduction="sum").backward()
        return leaf.grad.numpy()
    jax = pytest.importorskip("jax")
    labels, logits = np.float32(labels), np.float32(logits)
    return np.asarray(jax.grad(lambda x: weighted(labels, x, q, reduction="sum"))(logits))


def test_gradient_at_logit_zero_has_both_halves(backend: Backend) -> None:
    """tensorflow: the derivative of abs and relu at 0 left positives without a gradient."""
    got = gradient(backend, "float32", [1, 0, 1, 0.25], [0, 0, -0.0, 0], 3.0)
    np.testing.assert_array_equal(got, np.float32([-1.5, 0.5, -1.5, 0]))


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_automatic_gradient_at_logit_zero_has_both_halves(library: str) -> None:
    got = automatic_gradient(library, [1.0, 0.0, 1.0], [0.0, -0.0, -0.0], 3.0)
    np.testing.assert_array_equal(got, np.float32([-1.5, 0.5, -1.5]))


def test_loss_of_confident_negatives_is_not_zero(backend: Backend) -> None:
    """tensorflow, torch: exactly 0 in float32 from about x = -15."""
    x = np.float32([-15, -17, -30, -80])
    got = backend.to_numpy(weighted(*arrays(backend, "float32", np.zeros(4), x), 3.0))
    true = reference.at(reference.loss, np.zeros(4, "f4"), x, np.full(4, 3, "f4"))
    assert max(reference.distances(got, true, "float32")) <= 4


@pytest.mark.parametrize("sign", [1, -1])
def test_gradient_of_confident_elements_is_not_zero(backend: Backend, sign: int) -> None:
    """torch 195529, 195677: exactly 0 for confident positives in float32 at x = 20."""
    x, z = np.float32([20, 40, 80]) * sign, np.full(3, sign > 0, np.float32)
    got = gradient(backend, "float32", z, x, 3.0)
    true = reference.at(reference.gradient, z, x, np.full(3, 3, "f4"))
    assert max(reference.distances(got, true, "float32")) <= 4


def test_infinite_logits_with_the_matching_label_cost_nothing(backend: Backend) -> None:
    """tensorflow 75256, torch 49844, 102894, 135359, optax: NaN."""
    z, x = arrays(backend, "float32", [0, 1, 0, 1], [-np.inf, np.inf, np.inf, -np.inf])
    loss, slope = logitloss.value_and_grad(z, x, 3.0)
    backend.equals(loss, [0, 0, np.inf, np.inf], "float32")
    backend.equals(slope, [0, 0, 1, -3], "float32")


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_infinite_logits_do_not_poison_automatic_gradients(library: str) -> None:
    got = automatic_gradient(library, [0.0, 1.0, 1.0], [-np.inf, np.inf, 0.0], 3.0)
    np.testing.assert_array_equal(got, [0, 0, -1.5])


@pytest.mark.parametrize("q", [1e-7, 1e-8, 1e-20, 1e-30, 1e-37])
def test_small_pos_weight_is_not_rounded_away(backend: Backend, q: float) -> None:
    """tensorflow, torch, mxnet form 1 + (q - 1) z: 19 % off at 1e-7, zero at 1e-8."""
    x, z, qs = (np.float32(v) for v in ([2, -2], [1, 1], [q, q]))
    got = backend.to_numpy(weighted(*arrays(backend, "float32", z, x), float(qs[0])))
    true = reference.at(reference.loss, z, x, qs)
    flushed = backend.flushes_subnormals and q < 1e-30
    if not flushed:
        assert max(reference.distances(got, true, "float32")) <= 4


def test_subnormal_tail_is_not_flushed(backend: Backend) -> None:
    """jax on the CPU: XLA flushes what torch, NumPy and the rest keep."""
    if backend.flushes_subnormals:
        pytest.skip(f"{backend.name} has no subnormal numbers on this device")
    x = np.float32([-90, -95, -103])
    z = np.zeros(3, "f4")
    got = backend.to_numpy(weighted(*arrays(backend, "float32", z, x), 2.0))
    true = reference.at(reference.loss, z, x, np.full(3, 2, "f4"))
    assert (got > 0).all()
    assert max(reference.distances(got, true, "float32")) <= 4


@pytest.mark.parametrize("library", ["torch", "jax"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 1e38])
def test_what_is_masked_poisons_no_gradient(library: str, poison: float) -> None:
    """jax 1538, torch 31829: the derivative of `where` multiplies the dropped NaN by zero."""
    backend = backends.get(library)
    z, x, w = arrays(backend, "float32", [1, 0, 1], [poison, poison, 0.0], [0, 0, 1])
    if library == "torch":
        x.requires_grad_()
        weighted(z, x, 3.0, weight=w, reduction="weighted_mean").backward()
        got = x.grad
    else:
        jax = pytest.importorskip("jax")
        got = jax.grad(lambda x: weighted(z, x, 3.0, weight=w, reduction="weighted_mean"))(x)
    np.testing.assert_array_equal(backend.to_numpy(got), [0, 0, -1.5])


@pytest.mark.parametrize("shapes", [((4, 1), (4,)), ((4,), (4, 1)), ((1, 4), (4,)), ((), (4,))])
def test_labels_never_broadcast(backend: Backend, shapes) -> None:
    """tensorflow 30040, keras 17388: (N, 1) against (N,) gives a plausible loss of (N, N)."""
    z, x = arrays(backend, "float32", *map(np.zeros, shapes))
    with pytest.raises(ValueError, match="must have the same shape"):
        weighted(z, x, 1.0)


def test_both_weighted_means_by_name(backend: Backend) -> None:
    """torch 54843, 2180: dividing by N where the sum of the weights was meant."""
    z, x, w = arrays(backend, "float32", [0, 0, 0, 0], [0, 0, 0, 0], [3, 1, 0, 0])
    one = np.float32(np.log(2))
    for reduction, value in (("weighted_mean", one), ("mean", one), ("sum", 4 * one)):
        backend.equals(weighted(z, x, 1.0, weight=w, reduction=reduction), value, "float32")
    half = backend.array(np.array([1.0, 1, 0, 0]), "float32")
    got = weighted(z, x, 1.0, weight=half, reduction="mean")
    backend.equals(got, one / 2, "float32")
    got = weighted(z, x, 1.0, weight=half, reduction="weighted_mean")
    backend.equals(got, one, "float32")


@pytest.mark.parametrize("labels", ["int64", "bool", "int8"])
def test_integer_labels_and_double_weights_neither_fail_nor_promote(
    backend: Backend, labels: str
) -> None:
    """torch 2220, gae-pytorch 4: refused, or float32 turned into float64."""
    z, x = backend.array(np.array([1, 0]), labels), backend.array([0.5, 0.5], "float32")
    floats = backend.array(np.array([1.0, 0.0]), "float32")
    expected = backend.to_numpy(weighted(floats, x, 3.0))
    for q in (3, np.float64(3), np.array(3.0), np.array([3.0, 3.0])):
        backend.equals(weighted(z, x, q), expected, "float32")


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax", "dask"], indirect=True)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounded_once(backend: Backend, dtype: str) -> None:
    """torch 85791, optax 1020, mlx 4520: the mean overflows, the last subtraction quantises."""
    size = 1000
    z, x = arrays(backend, dtype, np.zeros(size), np.full(size, 600.0))
    backend.equals(weighted(z, x, 1.0, reduction="mean"), 600, dtype)
    x = np.linspace(-8, 8, 50).astype(dtype)
    z = np.full(50, 0.25).astype(dtype)
    got = backend.to_numpy(weighted(*arrays(backend, dtype, z, x), 2.0))
    true = reference.at(reference.loss, z, x, np.full(50, 2).astype(dtype))
    assert max(reference.distances(got, true, dtype)) <= 0.501


def test_an_array_of_the_library_keeps_its_graph() -> None:
    """torch 170819, scipy 24186: torch.asarray drops requires_grad."""
    torch = pytest.importorskip("torch")
    leaves = [torch.full((3,), v, requires_grad=True) for v in (0.25, 0.5, 2.0, 1.5)]
    for reduction in ("none", "sum", "mean", "weighted_mean"):
        z, x, q, w = leaves
        loss = weighted(z, x, q, weight=w, reduction=reduction)
        assert all(g is not None for g in torch.autograd.grad(loss.sum(), leaves))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_forward_over_reverse_is_the_hessian() -> None:
    """torch 79609: silently wrong."""
    torch = pytest.importorskip("torch")
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    z, q = torch.full_like(x, 0.25), 3.0

    def loss(v):
        return weighted(z, v, q, reduction="sum")

    _, hessian = logitloss.grad_and_hess(z, x, q)
    forward = torch.func.jacfwd(torch.func.grad(loss))(x)
    backward = torch.func.jacrev(torch.func.grad(loss))(x)
    for got in (forward, backward):
        torch.testing.assert_close(got, torch.diag(hessian), rtol=1e-14, atol=0)


def test_building_a_dask_graph_computes_nothing() -> None:
    """dask 1988: implicit compute."""
    dask = pytest.importorskip("dask")
    backend = backends.get("dask")
    z, x = arrays(backend, "float32", np.ones((4, 4)), np.zeros((4, 4)))

    def refuse(*args, **kwargs):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        for reduction in ("none", "mean", "weighted_mean"):
            logitloss.value_and_grad(z, x, z, weight=x + 1, reduction=reduction)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_does_not_hang() -> None:
    """scikit-learn 7650, loky 248: libgomp waits for the threads that the fork left behind."""
    code = """
import os, numpy as np, logitloss
logitloss.set_num_threads(4)
x = np.zeros(300_000)
logitloss.sigmoid_cross_entropy_with_logits(x, x)
pid = os.fork()
if pid == 0:
    logitloss.sigmoid_cross_entropy_with_logits(x, x)
    os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_the_quota_of_a_container_counts(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """xgboost 7653, scikit-learn 35017: as many threads as processors, 90 times slower."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("120000 100000\n")
    quota = _threads._control_group_quota(str(tmp_path))
    assert quota == 1.2
    monkeypatch.setattr(_threads, "_control_group_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert _threads._threads_of_machine() == 2


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no /proc")
def test_small_arrays_start_no_threads() -> None:
    """scikit-learn 30662, numexpr 36: threads on small arrays, 15 times slower."""
    code = """
import os, numpy as np, logitloss
logitloss.set_num_threads(4)
before = len(os.listdir("/proc/self/task"))
x = np.zeros(30_000)
logitloss.value_and_grad(x, x, reduction="mean")
print(len(os.listdir("/proc/self/task")) - before)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == "0\n"


def test_subnormals_of_the_process_survive() -> None:
    """CTranslate2 1018, NumKong 328: -ffast-math flushes them to zero for everybody."""
    code = (
        "import numpy as np, logitloss\n"
        "x = np.zeros(300_000); logitloss.sigmoid_cross_entropy_with_logits(x, x)\n"
        "print(float(np.float32(1e-40) * np.ones(1, np.float32)[0]) > 0, 5e-324 * 1.0 > 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == "True True\n"


@pytest.mark.parametrize("order", [("torch", "logitloss"), ("logitloss", "torch")])
def test_two_openmp_runtimes_in_one_process(order: tuple[str, str]) -> None:
    """LightGBM 6595, torch 191933: a crash or a hang, depending on who is imported first."""
    pytest.importorskip("torch")
    code = f"""
import {order[0]}, {order[1]}, numpy as np
x = np.zeros(300_000)
for _ in range(3):
    logitloss.sigmoid_cross_entropy_with_logits(x, x)
    assert float(torch.ones(1_000_000).sum()) == 1_000_000
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_looking_at_a_type_imports_no_library() -> None:
    """anndata 1950: importing torch to look at a type costs seconds."""
    code = (
        "import sys, numpy as np, logitloss\n"
        "for wrong in (object(), 'x', [np.ones(2)], 1j):\n"
        "    try: logitloss.value_and_grad(wrong, wrong)\n"
        "    except TypeError: pass\n"
        "heavy = {'torch', 'jax', 'cupy', 'dask', 'scipy', 'pandas'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == "[]\n"
