"""Threads, and what was built and chosen."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, overload

from logitloss._kernel import kernel


def set_num_threads(n: int) -> None:
    """Set how many threads the compiled kernel may use in this process.

    The number overrides ``LOGITLOSS_NUM_THREADS``, ``OMP_NUM_THREADS``, threadpoolctl and the
    defaults of the machine. It does not change a bit of any result.

    Parameters
    ----------
    n : int
        At least 1. One thread always computes arrays that are too small to gain from more.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is less than 1.

    See Also
    --------
    get_num_threads

    Examples
    --------
    >>> import logitloss
    >>> logitloss.set_num_threads(1)
    >>> logitloss.get_num_threads()
    1
    """
    if isinstance(n, bool):
        raise TypeError(f"`n` must be an integer; got {n!r}.")
    try:
        threads = operator.index(n)
    except TypeError:
        raise TypeError(f"`n` must be an integer; got {n!r}.") from None
    if not 1 <= threads <= _MOST_THREADS:
        raise ValueError(f"`n` must be between 1 and {_MOST_THREADS}; got {threads}.")
    kernel.set_threads(threads)


def get_num_threads() -> int:
    """Return how many threads a large call would use now, from the calling thread.

    The number is the first of these that is set:

    - what `set_num_threads` was given;
    - the environment variable ``LOGITLOSS_NUM_THREADS``;
    - the environment variable ``OMP_NUM_THREADS``;
    - the number of processors that this process may run on, within its container's quota.

    A limit set by threadpoolctl lowers the last two. The number is 1 if the extension was built
    without threads, and in a process forked from one that had imported logitloss, because pools of
    threads do not survive a fork. An ``OMP_NUM_THREADS`` that is not a number is ignored. With the
    OpenMP runtime of Clang, which may abort the process in this case, the number is then 1.

    Returns
    -------
    int

    See Also
    --------
    set_num_threads
    """
    return kernel.get_threads()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on the calling thread alone, because it is one of many workers."""
    limit = kernel.limit_threads(1)
    try:
        yield
    finally:
        kernel.limit_threads(limit)


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...


@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...


def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Show which code the compiled kernel runs, and on how many threads.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Whether to print the configuration as JSON, or to return it as a dictionary.

    Returns
    -------
    dict or None
        Six entries. ``version`` is that of logitloss. ``cpu`` is the instruction set in use, such
        as "avx2", "sse2" or "neon"; the environment variable ``LOGITLOSS_CPU`` chooses another.
        ``cpu_available`` lists those that run here. ``openmp`` says whether the extension was built
        with OpenMP. ``threads`` is what `get_num_threads` returns. ``cuda`` says what computes
        arrays on a GPU from NVIDIA: the kernel, or the formula and why.

    Raises
    ------
    ValueError
        If `mode` is neither of the two.
    """
    from logitloss import __version__
    from logitloss._backends.cuda import describe_launcher

    configuration = {
        "version": __version__,
        "cpu": kernel.TARGET,
        "cpu_available": list(kernel.AVAILABLE_TARGETS),
        "openmp": bool(kernel.OPENMP),
        "threads": get_num_threads(),
        "cuda": describe_launcher(),
    }
    if mode == "dicts":
        return configuration
    if mode == "stdout":
        # A module that importing logitloss should not wait for.
        import json

        print(json.dumps(configuration, indent=2))
        return None
    raise ValueError(f'`mode` must be "stdout" or "dicts"; got {mode!r}.')


_MOST_THREADS = 1024


def _threads_from_environment() -> int | None:
    """What ``LOGITLOSS_NUM_THREADS`` asks for, or None if it is not set."""
    value = os.environ.get("LOGITLOSS_NUM_THREADS", "").strip()
    if not value:
        return None
    if not (_is_count(value) and int(value) <= _MOST_THREADS):
        raise ImportError(
            f"`LOGITLOSS_NUM_THREADS` must be an integer between 1 and {_MOST_THREADS}; "
            f"got {value!r}."
        )
    return int(value)


# More than Clang's OpenMP runtime can allocate.
_MOST_OPENMP_THREADS = 32768


def _threads_from_openmp() -> tuple[int | None, bool]:
    """What ``OMP_NUM_THREADS`` asks for, None for nothing, and whether it makes sense."""
    value = os.environ.get("OMP_NUM_THREADS")
    if value is None:
        return None, True
    # One number for each level of nesting.
    levels = [level.strip() for level in value.split(",")]
    if not all(_is_count(level) and int(level) <= _MOST_OPENMP_THREADS for level in levels):
        return None, False
    return min(int(levels[0]), _MOST_THREADS), True


def _is_count(value: str) -> bool:
    # Longer than any number of threads, and int() refuses to read thousands of digits.
    return value.isascii() and value.isdigit() and len(value) < 20 and int(value) > 0


def _threads_of_machine() -> int:
    """The processors this process may use, and no more than its control group pays for."""
    if hasattr(os, "sched_getaffinity"):
        processors = len(os.sched_getaffinity(0))
    else:
        processors = os.cpu_count() or 1
    quota = _control_group_quota()
    return processors if quota is None else max(1, min(processors, math.ceil(quota)))


def _control_group_quota(root: str = "/") -> float | None:
    """How many processors' time the control group may use: the least of it and its parents."""
    quotas = []
    for line in _read(root, "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = "sys/fs/cgroup" + ("/cpu" if controllers else "")
        # A container sees its own group as the root of the hierarchy, whatever the path says.
        parts = path.strip("/").split("/")
        for length in range(len(parts) + 1):
            folder = os.path.join(root, mount, *parts[:length])
            quota = _quota_v1(folder) if controllers else _quota_v2(folder)
            if quota is not None:
                quotas.append(quota)
    return min(quotas, default=None)


def _quota_v2(folder: str) -> float | None:
    try:
        quota, period = _read(folder, "cpu.max").split()
        return None if quota == "max" else int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: str) -> float | None:
    try:
        quota = int(_read(folder, "cpu.cfs_quota_us"))
        period = int(_read(folder, "cpu.cfs_period_us"))
        return quota / period if quota > 0 else None
    except (ValueError, ZeroDivisionError):
        return None


def _read(folder: str, name: str) -> str:
    """The text of a file, or nothing if it cannot be read."""
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return ""


def _initialise() -> None:
    openmp, can_ask_openmp = _threads_from_openmp()
    default = _threads_from_environment() or openmp
    kernel.set_default_threads(default or _threads_of_machine(), openmp or 0, can_ask_openmp)


_initialise()
