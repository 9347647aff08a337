"""Threads, and what was built and chosen."""

from __future__ import annotations

import json
import math
import operator
import os
from pathlib import Path
from typing import Any, Literal, overload

from logitloss._kernel import kernel


def set_num_threads(n: int) -> None:
    """Set how many threads the compiled kernel may use in this process.

    It overrides ``LOGITLOSS_NUM_THREADS``, ``OMP_NUM_THREADS``, threadpoolctl and the defaults
    of the machine. Results do not depend on it, bit for bit.

    Parameters
    ----------
    n : int
        At least 1. Arrays too small to gain from threads are always computed by one.

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

    That is the number given to `set_num_threads`; without it ``LOGITLOSS_NUM_THREADS`` or
    ``OMP_NUM_THREADS``; without them the processors that this process may run on, and no more
    than its container's quota pays for. A limit set by threadpoolctl lowers the latter two. It
    is 1 in a process forked from one that had imported logitloss, because OpenMP runtimes do
    not survive a fork, and 1 where the extension was built without OpenMP.

    Returns
    -------
    int

    See Also
    --------
    set_num_threads
    """
    return kernel.get_threads()


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
        ``version``; ``cpu``, the instruction set in use (``LOGITLOSS_CPU`` forces one);
        ``cpu_available``, those that run here; ``openmp``, whether the extension was built with
        it; ``threads``, as `get_num_threads` returns.

    Raises
    ------
    ValueError
        If `mode` is neither of the two.
    """
    from logitloss import __version__

    configuration = {
        "version": __version__,
        "cpu": kernel.TARGET,
        "cpu_available": list(kernel.AVAILABLE_TARGETS),
        "openmp": bool(kernel.OPENMP),
        "threads": get_num_threads(),
    }
    if mode == "dicts":
        return configuration
    if mode == "stdout":
        print(json.dumps(configuration, indent=2))
        return None
    raise ValueError(f'`mode` must be "stdout" or "dicts"; got {mode!r}.')


_MOST_THREADS = 1024


def _threads_from_environment(name: str) -> int | None:
    """The number of threads that a variable asks for, or None if it is not set."""
    value = os.environ.get(name, "").strip()
    if not value:
        return None
    # OpenMP takes a list, one number for each level of nesting.
    first = value.split(",")[0].strip() if name.startswith("OMP_") else value
    if not (first.isascii() and first.isdigit() and 1 <= int(first) <= _MOST_THREADS):
        raise ImportError(
            f"`{name}` must be an integer between 1 and {_MOST_THREADS}; got {value!r}."
        )
    return int(first)


def _threads_of_machine() -> int:
    """The processors this process may use, and no more than its control group pays for."""
    if hasattr(os, "sched_getaffinity"):
        processors = len(os.sched_getaffinity(0))
    else:
        processors = os.cpu_count() or 1
    quota = _control_group_quota()
    return processors if quota is None else max(1, min(processors, math.ceil(quota)))


def _control_group_quota(root: Path = Path("/")) -> float | None:
    """How many processors' time the control group may use: the least of it and its parents."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # A container sees its own group as the root of the hierarchy, whatever the path says.
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            quota = _quota_v1(folder) if controllers else _quota_v2(folder)
            if quota is not None:
                quotas.append(quota)
            if folder == mount:
                break
    return min(quotas, default=None)


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _initialise() -> None:
    openmp = _threads_from_environment("OMP_NUM_THREADS")
    default = _threads_from_environment("LOGITLOSS_NUM_THREADS") or openmp
    kernel.set_default_threads(default or _threads_of_machine(), openmp or 0)


_initialise()
