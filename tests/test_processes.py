"""Forks, pools, threads, signals, and thousands of calls."""

from __future__ import annotations

import concurrent.futures
import functools
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest

import logitloss
from logitloss._kernel import kernel

SIZE = 200_000


@pytest.fixture(autouse=True)
def four_threads():
    logitloss.set_num_threads(4)
    yield
    kernel.set_threads(0)


def total(seed: int = 0) -> float:
    """Large enough for several threads."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=SIZE)
    labels = rng.random(SIZE) < 0.3
    value, gradient = logitloss.value_and_grad(labels, logits, 3.0, reduction="mean")
    return float(value) + float(gradient[seed])


def run(script: str, *arguments: str) -> None:
    """A script of its own, because a hang must not take the suite with it."""
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=os.path.dirname(__file__),
    )
    assert result.returncode == 0, result.stdout + result.stderr


POOL = """
import concurrent.futures, multiprocessing, sys
import test_processes as tests
if __name__ == "__main__":
    method, executor = sys.argv[1:]
    tests.logitloss.set_num_threads(4)
    expected = [tests.total(seed) for seed in range(6)]
    context = multiprocessing.get_context(method)
    if executor == "Pool":
        with context.Pool(2) as pool:
            got = pool.map(tests.total, range(6))
    else:
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            got = list(pool.map(tests.total, range(6)))
    assert got == expected, (got, expected)
"""


@pytest.mark.parametrize("executor", ["Pool", "ProcessPoolExecutor"])
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_pools_of_processes_after_use(tmp_path, method: str, executor: str) -> None:
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    }
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), method, executor],
        capture_output=True,
        text=True,
        timeout=180,
        env=environment,
    )
    assert result.returncode == 0, result.stderr


FORKS = """
import os, sys, threading
import test_processes as tests
tests.logitloss.set_num_threads(4)
expected = tests.total()
def child(depth):
    assert tests.total() == expected
    if depth:
        fork(depth - 1)
def fork(depth):
    pid = os.fork()
    if pid == 0:
        try:
            child(depth)
        except BaseException:
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert tests.total() == expected
fork(2)  # a child's child, too
stop = threading.Event()
busy = threading.Thread(target=lambda: [tests.total() for _ in iter(stop.is_set, True)])
busy.start()
for _ in range(10):  # while a call is in progress
    fork(0)
stop.set()
busy.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forks_of_forks_and_during_calls() -> None:
    run("import warnings; warnings.simplefilter('ignore')\n" + FORKS)


def test_threads_of_an_executor() -> None:
    expected = [total(seed) for seed in range(20)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(total, range(20))) == expected


JOBLIB = """
import joblib
import test_processes as tests
tests.logitloss.set_num_threads(4)
expected = [tests.total(seed) for seed in range(4)]
for backend in ("loky", "threading", "multiprocessing"):
    work = joblib.Parallel(2, backend=backend)
    assert work(joblib.delayed(tests.total)(seed) for seed in range(4)) == expected, backend
"""


def test_inside_joblib() -> None:
    pytest.importorskip("joblib")
    run("import warnings; warnings.simplefilter('ignore')\n" + JOBLIB)


LOADER = """
import torch
import test_processes as tests
class Scores(torch.utils.data.Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, index):
        logits = torch.linspace(-5, 5, 200_000, dtype=torch.float64)
        loss = tests.logitloss.weighted_cross_entropy_with_logits(
            (logits > 1).double(), logits, 3.0 + index, reduction="mean")
        return float(loss) + tests.total(index)
tests.logitloss.set_num_threads(4)
expected = [Scores()[i] for i in range(6)]
loader = torch.utils.data.DataLoader(Scores(), batch_size=2, num_workers=2)
got = torch.cat(list(loader)).tolist()
assert got == expected
"""


def test_inside_the_workers_of_a_torch_data_loader() -> None:
    pytest.importorskip("torch")
    run("import warnings; warnings.simplefilter('ignore')\n" + LOADER)


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_inside_dask_tasks(scheduler: str) -> None:
    dask = pytest.importorskip("dask")
    tasks = [dask.delayed(total)(seed) for seed in range(4)]
    if scheduler == "processes":
        run(
            "import warnings; warnings.simplefilter('ignore')\n"
            "import dask, test_processes as tests\n"
            "if __name__ == '__main__':\n"
            "    tasks = [dask.delayed(tests.total)(seed) for seed in range(4)]\n"
            "    got = dask.compute(*tasks, scheduler='processes', num_workers=2)\n"
            "    assert got == tuple(tests.total(seed) for seed in range(4))\n"
        )
    else:
        got = dask.compute(*tasks, scheduler=scheduler, num_workers=4)
        assert got == tuple(total(seed) for seed in range(4))


# More elements than memory could hold: a call of seconds, without output.
def long_call(size: int = 2**29) -> float:
    ones = np.broadcast_to(np.float32(1), size)
    value = logitloss.weighted_cross_entropy_with_logits(ones, ones, 1.0, reduction="mean")
    return float(value)


X = np.ones(2**19)


@pytest.mark.parametrize(
    "function",
    [
        # Each of the ways into the kernel.
        logitloss.weighted_cross_entropy_with_logits,
        logitloss.value_and_grad,
        functools.partial(logitloss.value_and_grad, reduction="mean"),
        functools.partial(logitloss.grad_and_hess, weight=X),
    ],
)
def test_other_threads_run_during_a_call(function) -> None:
    """With the GIL held, only what fits into its switching interval gets done meanwhile."""
    logitloss.set_num_threads(1)
    started, done = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        # Products that underflow are computed one at a time: some tenths of a second.
        function(X, X, 1e-310)
        done.set()

    thread = threading.Thread(target=work)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.001)
    try:
        thread.start()
        started.wait()
        naps = 0
        while not done.is_set():
            time.sleep(0.001)
            naps += 1
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert naps >= 10


def test_two_long_calls_run_at_once() -> None:
    """Each of two threads finishes a short call of its own while the other's is under way."""
    logitloss.set_num_threads(1)
    under_way = [threading.Event(), threading.Event()]
    met = []

    def work(mine: int) -> None:
        under_way[mine].set()
        under_way[1 - mine].wait()
        for _ in range(1000):
            long_call(2**20)
            if not under_way[1 - mine].is_set():
                return
            met.append(mine)
            if len(set(met)) == 2:
                break
        under_way[mine].clear()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(met) == {0, 1}


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_signals_during_a_call_wait_until_it_is_over() -> None:
    seen = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        values = {long_call(2**24) for _ in range(10)}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen
    assert len(values) == 1


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_a_handler_that_raises_leaves_the_library_usable() -> None:
    class Stop(Exception):
        pass

    def stop(number, frame):
        raise Stop

    before = signal.signal(signal.SIGALRM, stop)
    try:
        for delay in (0.001, 0.01, 0.05):
            with pytest.raises(Stop):
                signal.setitimer(signal.ITIMER_REAL, delay)
                while True:
                    long_call(2**22)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert total() == total()


def test_arrays_dropped_during_a_call_live_until_it_ends() -> None:
    """The caller's only references go away while another thread computes with the arrays."""
    size = 1_000_000
    expected = float(
        logitloss.weighted_cross_entropy_with_logits(
            np.ones(size), np.ones(size), 1.0, weight=np.ones(size), reduction="sum"
        )
    )
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for _ in range(4):
            arrays = [np.ones(size) for _ in range(3)]
            alive = [weakref.ref(array) for array in arrays]
            task = pool.submit(
                logitloss.weighted_cross_entropy_with_logits,
                *arrays[:2],
                1.0,
                weight=arrays[2],
                reduction="sum",
            )
            del arrays
            gc.collect()
            # Into freed memory, if it were.
            garbage = [np.full(size, np.nan) for _ in range(3)]
            assert float(task.result()) == expected
            del task, garbage
            gc.collect()
            assert [reference() for reference in alive] == [None] * 3


MANY = """
import gc, os, sys
import numpy as np, logitloss
x = np.linspace(-5, 5, 3000, dtype=np.float32)
z, q = (x > 0).astype(np.float32), np.linspace(1, 2, 3000)
large = np.linspace(-5, 5, 60_000)
out = np.empty_like(x)
def calls(count):
    for i in range(count):
        logitloss.weighted_cross_entropy_with_logits(z, x, 2.0)
        logitloss.weighted_cross_entropy_with_logits(z, x, q, weight=z, reduction="weighted_mean")
        logitloss.weighted_cross_entropy_with_logits(z > 0, x.astype("f2"), 2.0, out=None)
        logitloss.weighted_cross_entropy_with_logits(z, x, 2.0, out=out)
        logitloss.value_and_grad(z.tolist()[:50], x.tolist()[:50], [2.0])
        logitloss.grad_and_hess(z[::2], x[::-2], q[1::2])
        if i % 50 == 0:
            logitloss.value_and_grad(large > 0, large, 2.0, reduction="mean")
        for wrong in ((z, x[:-1]), (z, "x"), (None, x)):
            try:
                logitloss.weighted_cross_entropy_with_logits(*wrong, 2.0)
            except (TypeError, ValueError):
                pass
def size():
    gc.collect()
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE")
    return memory, len(os.listdir("/proc/self/task")), len(gc.get_objects())
calls(200)
memory, threads, objects = size()
references = [sys.getrefcount(value) for value in (None, x, z, q, out, np.dtype("f4"))]
calls(1100)
more_memory, more_threads, more_objects = size()
assert more_threads == threads, (threads, more_threads)
assert more_memory - memory < 2_000_000, more_memory - memory
assert more_objects - objects < 100, more_objects - objects
again = [sys.getrefcount(value) for value in (None, x, z, q, out, np.dtype("f4"))]
# Caches come and go with some references to None, of which one in each round would make 1100.
bounds = [500, 50, 50, 50, 50, 50]
assert all(abs(a - b) < c for a, b, c in zip(again, references, bounds)), (references, again)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no /proc")
def test_ten_thousand_calls_grow_nothing() -> None:
    run(MANY)
