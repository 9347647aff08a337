"""Threads: who decides their number, and what becomes of them in forked children."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import logitloss
from logitloss import _threads
from logitloss._kernel import kernel


@pytest.fixture(autouse=True)
def default_threads():
    yield
    kernel.set_threads(0)


def run(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process whose environment says nothing else about threads."""
    cleared = {"LOGITLOSS_NUM_THREADS", "OMP_NUM_THREADS"}
    environment = {k: v for k, v in os.environ.items() if k not in cleared}
    return subprocess.run(
        [sys.executable, "-c", script],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


PRINT_THREADS = "import logitloss; print(logitloss.get_num_threads())"
USE_THREADS = """
import numpy as np
x = np.ones(300_000)
logitloss.sigmoid_cross_entropy_with_logits(x, x)
"""


def test_show_config(capsys: pytest.CaptureFixture[str]) -> None:
    configuration = logitloss.show_config("dicts")
    names = ["version", "cpu", "cpu_available", "openmp", "threads", "cuda"]
    assert list(configuration) == names
    assert configuration["version"] == logitloss.__version__
    assert configuration["cpu"] in configuration["cpu_available"]
    logitloss.show_config()
    assert json.loads(capsys.readouterr().out) == configuration
    with pytest.raises(ValueError, match='`mode` must be "stdout" or "dicts"; got \'yaml\''):
        logitloss.show_config("yaml")


needs_openmp = pytest.mark.skipif(not kernel.OPENMP, reason="built without OpenMP")
needs_threads = pytest.mark.skipif(not kernel.HAS_THREADS, reason="built without threads")


@needs_threads
def test_set_num_threads() -> None:
    for threads in (1, 3, np.int64(5)):
        logitloss.set_num_threads(threads)
        assert logitloss.get_num_threads() == threads


@pytest.mark.parametrize(
    ("n", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (10**30, ValueError),
        (1.0, TypeError),
        ("2", TypeError),
        (True, TypeError),
        (None, TypeError),
    ],
)
def test_bad_number_of_threads(n, error: type[Exception]) -> None:
    before = logitloss.get_num_threads()
    with pytest.raises(error, match=rf"`n` must be .*; got {n!r}"):
        logitloss.set_num_threads(n)
    assert logitloss.get_num_threads() == before


@needs_threads
@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({"LOGITLOSS_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"LOGITLOSS_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, 3),
        ({"LOGITLOSS_NUM_THREADS": "7", "OMP_NUM_THREADS": "1"}, 7),
        ({"LOGITLOSS_NUM_THREADS": ""}, None),
        ({"OMP_NUM_THREADS": " 2 "}, 2),
        ({"OMP_NUM_THREADS": "5000"}, 1024),
    ],
)
def test_environment(variables: dict[str, str], threads: int | None) -> None:
    result = run(PRINT_THREADS, **variables)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == (threads or _threads._threads_of_machine())


@needs_threads
@pytest.mark.parametrize(
    "value", ["", " ", "0", "-3", "many", "2.5", "4,x", ",", "0x4", "99999999", "9" * 5000]
)
@pytest.mark.parametrize("own", [None, "3"])
def test_nonsense_for_openmp(value: str, own: str | None) -> None:
    """It is ignored; and Clang's runtime, which would abort the process, is not started."""
    variables = {"LOGITLOSS_NUM_THREADS": own} if own else {}
    result = run(PRINT_THREADS + USE_THREADS, OMP_NUM_THREADS=value, **variables)
    assert result.returncode == 0, result.stderr
    expected = int(own) if own else _threads._threads_of_machine()
    assert int(result.stdout) == (1 if kernel.CLANG_OPENMP else expected)


@pytest.mark.parametrize(
    "value", ["0", "-1", "2.5", "many", "1e3", "99999999", "9" * 5000, "\u0663", "3,2"]
)
def test_nonsense_in_the_environment(value: str) -> None:
    result = run(PRINT_THREADS, LOGITLOSS_NUM_THREADS=value)
    assert result.returncode == 1
    assert "ImportError: `LOGITLOSS_NUM_THREADS` must be an integer between 1" in result.stderr
    assert repr(value) in result.stderr


@needs_threads
def test_an_explicit_call_overrides_the_environment() -> None:
    script = "import logitloss; logitloss.set_num_threads(5); print(logitloss.get_num_threads())"
    result = run(script, LOGITLOSS_NUM_THREADS="3", OMP_NUM_THREADS="2")
    assert int(result.stdout) == 5


COUNT_THREADS = """
import os, sys
import numpy as np, logitloss
before = len(os.listdir("/proc/self/task"))
x = np.ones(1_000_000, np.float32)
logitloss.weighted_cross_entropy_with_logits(x, x, 2.0, reduction="mean")
print(len(os.listdir("/proc/self/task")) - before)
"""


@needs_threads
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no list of threads")
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_no_more_and_no_fewer_threads_are_started(threads: int) -> None:
    result = run(COUNT_THREADS, LOGITLOSS_NUM_THREADS=str(threads))
    assert result.returncode == 0, result.stderr
    # The calling thread is one of them.
    assert int(result.stdout) == threads - 1


@needs_threads
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no processor affinity")
def test_affinity() -> None:
    processors = os.sched_getaffinity(0)
    if len(processors) < 2:
        pytest.skip("one processor")
    pin = f"import os; os.sched_setaffinity(0, {{{min(processors)}}}); {PRINT_THREADS}"
    assert int(run(pin).stdout) == 1
    assert int(run(pin, LOGITLOSS_NUM_THREADS="2").stdout) == 2


@pytest.mark.parametrize(
    ("quota", "threads"), [(None, 4), (0.5, 1), (1.0, 1), (1.5, 2), (3.0, 3), (64.0, 4)]
)
def test_threads_of_the_machine(monkeypatch, quota: float | None, threads: int) -> None:
    """No more than the processors, and than the quota pays for, rounded up."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 3, 5, 7}, raising=False)
    monkeypatch.setattr(_threads, "_control_group_quota", lambda: quota)
    assert _threads._threads_of_machine() == threads


@needs_openmp
def test_threadpoolctl() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    if _threads._threads_of_machine() < 2:
        pytest.skip("one processor")
    with threadpoolctl.threadpool_limits(1):
        assert logitloss.get_num_threads() == 1
        logitloss.set_num_threads(2)
        assert logitloss.get_num_threads() == 2


@needs_openmp
@pytest.mark.parametrize(
    "variables",
    [
        {"LOGITLOSS_NUM_THREADS": "4"},
        {"OMP_NUM_THREADS": "4"},
        {"LOGITLOSS_NUM_THREADS": "4", "OMP_NUM_THREADS": "16"},
    ],
)
def test_threadpoolctl_lowers_the_environment_and_never_raises_it(
    variables: dict[str, str],
) -> None:
    pytest.importorskip("threadpoolctl")
    if "OMP_NUM_THREADS" not in variables and _threads._threads_of_machine() < 2:
        pytest.skip("a limit of one is nothing new to OpenMP on one processor")
    script = """
import logitloss, threadpoolctl
for limit in (1, 7):
    with threadpoolctl.threadpool_limits(limit):
        print(logitloss.get_num_threads())
print(logitloss.get_num_threads())
"""
    result = run(script, **variables)
    assert result.stdout.split() == ["1", "4", "4"]


@needs_threads
def test_one_thread_limits_the_calling_thread_only() -> None:
    logitloss.set_num_threads(3)
    others: list[int] = []
    with _threads.one_thread():
        assert logitloss.get_num_threads() == 1
        worker = threading.Thread(target=lambda: others.append(logitloss.get_num_threads()))
        worker.start()
        worker.join()
    assert others == [3]
    assert logitloss.get_num_threads() == 3


V1 = "4:cpu,cpuacct:/app\n3:memory:/app\n0::/ignored\n"


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 0.5),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000", "cpu.max": "300000 100000"}, 3.0),
        (V1, {"cpu/app/cpu.cfs_quota_us": "-1", "cpu/app/cpu.cfs_period_us": "100000"}, None),
        (V1, {"cpu/app/cpu.cfs_quota_us": "250000", "cpu/app/cpu.cfs_period_us": "100000"}, 2.5),
        (V1, {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        (V1, {"cpu/app/cpu.cfs_quota_us": "garbage"}, None),
        (None, {}, None),
    ],
)
def test_quota_of_the_control_group(
    tmp_path: Path, groups: str | None, files: dict[str, str], quota: float | None
) -> None:
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert _threads._control_group_quota(str(tmp_path)) == quota


SIZE = 300_000


def mean(seed: int = 0) -> np.float32:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=SIZE).astype(np.float32)
    labels = (rng.random(SIZE) < 0.2).astype(np.float32)
    return logitloss.weighted_cross_entropy_with_logits(labels, logits, 3.0, reduction="mean")


FORK = """
import os, sys
import numpy as np, logitloss
logitloss.set_num_threads(4)
x = np.linspace(-5, 5, 300_000, dtype=np.float32)
z = (x > 1).astype(np.float32)
parent = logitloss.weighted_cross_entropy_with_logits(z, x, 3.0, reduction="mean")
pid = os.fork()
if pid == 0:
    child = logitloss.weighted_cross_entropy_with_logits(z, x, 3.0, reduction="mean")
    logitloss.set_num_threads(2)
    again = logitloss.value_and_grad(z, x, 3.0, reduction="mean")[0]
    ok = child.tobytes() == again.tobytes() == parent.tobytes()
    ok = ok and logitloss.get_num_threads() == 1
    os._exit(0 if ok else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_child() -> None:
    """libgomp's children wait for ever for threads that the fork did not copy."""
    result = subprocess.run([sys.executable, "-c", FORK], timeout=60)
    assert result.returncode == 0


def test_concurrent_calls() -> None:
    expected = mean()
    results: list[np.float32] = []
    workers = [
        threading.Thread(target=lambda: results.extend(mean() for _ in range(5))) for _ in range(8)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 40
    assert {result.tobytes() for result in results} == {expected.tobytes()}
