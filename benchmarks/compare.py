"""Measure logitloss against the speed of memory and against its peers, side by side in one run.

    python benchmarks/compare.py --json docs/figures/benchmark.json \
        --plots docs/figures --page docs/performance.md docs/targets.md

Every case is run a few times for warmth, then in rounds, each in a new random order, so that a
noisy moment of the machine falls on all alike; medians are reported. The first call of a turn wakes
the library's threads and is not counted. Outputs that are passed in have been touched; peers that
allocate their result do so in every call. Peers that are not installed are left out. TensorFlow may
live in an environment of its own, whose Python --tensorflow-python names. The machine should do
nothing else meanwhile. --from draws and writes again what an earlier run saved.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import importlib.metadata
import importlib.util
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import operations
import peers
import report
from peers import POS_WEIGHT, Cases, arrays

import logitloss
from logitloss._kernel import kernel

HERE = Path(__file__).parent
Makers = tuple[Callable[..., dict[str, Cases]], ...]
PEERS: Makers = (
    peers.numpy,
    peers.numexpr,
    peers.numba,
    peers.scikit_learn,
    peers.torch,
    peers.jax,
)
# Those shown over all sizes; torch.compile would compile for each of them.
PEERS_OVER_SIZES: Makers = (peers.numpy, peers.torch, peers.jax)
PACKAGES = ("numpy", "numexpr", "numba", "scikit-learn", "torch", "jax")


@functools.cache
def compile_bounds() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "bounds.so"
        compiler = os.environ.get("CC", "cc")
        objects = []
        # A division stays one; a sum may be taken apart.
        for source, flag in (("bounds.c", "-ffast-math"), ("rates.c", "-ffp-contract=fast")):
            objects.append(library.with_name(source).with_suffix(".o"))
            flags = ["-O3", "-march=native", flag, "-fopenmp", "-fPIC", "-c"]
            subprocess.run([compiler, *flags, HERE / source, "-o", objects[-1]], check=True)
        # Linked without -ffast-math, which would flush subnormals in the whole process.
        subprocess.run([compiler, "-shared", "-fopenmp", *objects, "-o", library], check=True)
        return ctypes.CDLL(str(library))


def memory(z: np.ndarray, x: np.ndarray, w: np.ndarray, out: np.ndarray, threads: int) -> Cases:
    """What reading and writing the same arrays costs, without the mathematics."""
    library = compile_bounds()
    z_data, x_data, w_data, out_data = (ctypes.c_void_p(a.ctypes.data) for a in (z, x, w, out))
    rest = ctypes.c_ssize_t(x.size), ctypes.c_int(threads)
    triad = getattr(library, f"triad_{x.dtype}")
    weighted = getattr(library, f"weighted_triad_{x.dtype}")
    sweep = getattr(library, f"sweep_{x.dtype}")
    return {
        "triad": lambda: triad(z_data, x_data, out_data, *rest),
        "weighted triad": lambda: weighted(z_data, x_data, w_data, out_data, *rest),
        "sweep": lambda: sweep(z_data, x_data, *rest),
    }


# Of rates.c, in its order: how many operations a round has.
RATES = {"fused": 12, "fused and added": 24, "divided": 12, "fused beside a division": 12}
ROUNDS = 100_000


def arithmetic(dtype: str, threads: int) -> Cases:
    """Rounds of independent operations on vectors of the width that the kernel uses."""
    width = operations.WIDTHS.get(logitloss.show_config("dicts")["cpu"])
    rate = getattr(compile_bounds(), f"rate_{dtype}_{width}", None)
    if rate is None:
        return {}
    rounds = ctypes.c_ssize_t(ROUNDS)
    return {name: lambda kind=kind: rate(kind, rounds, threads) for kind, name in enumerate(RATES)}


def bounds_by_arithmetic(seconds: dict[str, float], dtype: str, size: int) -> dict[str, float]:
    """What the operations of each case take at these rates, on vectors of so many elements."""
    target, threads = logitloss.show_config("dicts")["cpu"], logitloss.get_num_threads()
    each = {name: seconds[name] / (ROUNDS * RATES[name] * threads) for name in seconds}
    vectors = size * operations.ITEMSIZES[dtype] / operations.WIDTHS[target]
    found = {}
    for case in operations.CASES:
        counted = operations.operations(dtype, target, case)
        # What a division takes of the time of the units for fused operations.
        beside = "fused beside a division"
        held_up = max(0, RATES[beside] * (each[beside] - each["fused"]))
        # Whichever of the processor's units has most to do.
        slowest = max(
            counted.fused * each["fused"] + counted.divided * held_up,
            sum(counted) * each["fused and added"],
            counted.divided * each["divided"],
        )
        found[case] = vectors * slowest
    return found


def ours(z: np.ndarray, x: np.ndarray, w: np.ndarray, out: np.ndarray) -> Cases:
    loss, both = logitloss.weighted_cross_entropy_with_logits, logitloss.value_and_grad
    value, gradient = np.zeros((), x.dtype), np.ones_like(x)

    def by_class(classes: int) -> Callable[[], Any]:
        end = x.size // classes * classes
        z2, x2, out2 = (a[:end].reshape(-1, classes) for a in (z, x, out))
        q = np.full(classes, POS_WEIGHT, x.dtype)
        return lambda: loss(z2, x2, q, out=out2)

    def spread(a: np.ndarray) -> np.ndarray:
        double = np.ones(2 * a.size, a.dtype)
        double[::2] = a
        return double[::2]

    end = x.size // 1000 * 1000
    z_f, x_f, out_f = (a[:end].reshape(-1, 1000, order="F") for a in (z, x, out))
    z_2, x_2 = spread(z), spread(x)
    z_bool = z.astype(bool)
    z_int8 = z_bool.view(np.int8)
    return {
        "loss": lambda: loss(z, x, POS_WEIGHT, out=out),
        "mean": lambda: loss(z, x, POS_WEIGHT, reduction="mean"),
        "mean + gradient": lambda: both(z, x, POS_WEIGHT, reduction="mean", out=(value, gradient)),
        "loss without out": lambda: loss(z, x, POS_WEIGHT),
        "mean + gradient without out": lambda: both(z, x, POS_WEIGHT, reduction="mean"),
        "loss, pos_weight of 8 classes": by_class(8),
        "loss, pos_weight of 100 classes": by_class(100),
        "loss, pos_weight of 1000 classes": by_class(1000),
        "loss, weight": lambda: loss(z, x, POS_WEIGHT, weight=w, out=out),
        "loss, Fortran order": lambda: loss(z_f, x_f, POS_WEIGHT, out=out_f),
        "loss, every second element": lambda: loss(z_2, x_2, POS_WEIGHT, out=out),
        "loss, bool labels": lambda: loss(z_bool, x, POS_WEIGHT, out=out),
        "loss, int8 labels": lambda: loss(z_int8, x, POS_WEIGHT, out=out),
    }


def timed(call: Callable[[], Any]) -> Callable[[], float]:
    """A function that returns the seconds of one call, short calls as the average of many."""
    call()
    start = time.perf_counter()
    call()
    repeats = max(1, min(5000, int(0.003 / (time.perf_counter() - start))))

    def run() -> float:
        # The threads have gone to sleep while others had their turn. Waking them up takes up to
        # some milliseconds, the same for all who use OpenMP, and is left out here.
        call()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats

    return run


def measure(timers: dict[Any, Callable[[], float]], rounds: int) -> dict[Any, float]:
    """Median seconds of each case over rounds in which every case has its turn."""
    for timer in timers.values():
        timer()
    seconds: dict[Any, list[float]] = {name: [] for name in timers}
    names = list(timers)
    order = random.Random(0)
    gc.collect()
    gc.disable()
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            # The threads of the case before go on looking for work for some milliseconds.
            time.sleep(0.005)
            seconds[name].append(timers[name]())
    gc.enable()
    return {name: median(series) for name, series in seconds.items()}


def compare(
    size: int, rounds: int, dtype: str, makers: Makers, tensorflow: peers.TensorFlow | None
) -> dict[str, dict[str, float]]:
    """Seconds of each library's cases on one large array."""
    threads = logitloss.get_num_threads()
    z, x = arrays(size, dtype)
    w, out = np.random.default_rng(1).random(size).astype(dtype), np.ones_like(x)
    cases = {
        "memory": memory(z, x, w, out, threads),
        "arithmetic": arithmetic(dtype, threads),
        "logitloss": ours(z, x, w, out),
    }
    for make in makers:
        try:
            cases |= make(z, x, out, threads)
        except ImportError as error:
            print(f"left out: {error}")
    timers = {
        (library, case): timed(call)
        for library, calls in cases.items()
        for case, call in calls.items()
    }
    if tensorflow is not None:
        for library, calls in tensorflow.cases(size, dtype).items():
            timers |= {(library, case): call for case, call in calls.items()}
    results: dict[str, dict[str, float]] = {}
    for (library, case), seconds in measure(timers, rounds).items():
        results.setdefault(library, {})[case] = seconds
    if rates := results.pop("arithmetic", None):
        results["arithmetic"] = bounds_by_arithmetic(rates, dtype, size)
    return results


def over_sizes(
    dtype: str, largest: int, rounds: int, makers: Makers
) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds of a few cases by library, case and number of elements, from 1 element up."""
    loss, both, add = (
        logitloss.weighted_cross_entropy_with_logits,
        logitloss.value_and_grad,
        np.add,
    )
    threads = logitloss.get_num_threads()
    results: dict[str, dict[str, dict[str, float]]] = {}
    # Eight to a decade where the curve must be smooth, else four; the peers have two.
    steps = [k for k in range(100) if k % 2 == 0 or 16 < k < 48]
    for step in steps:
        size = round(10 ** (step / 8))
        if size > largest:
            break
        z, x = arrays(size, dtype)
        out, gradient, value = np.ones_like(x), np.ones_like(x), np.zeros((), dtype)

        def own(z=z, x=x, out=out, gradient=gradient, value=value) -> Cases:
            return {
                "loss": lambda: loss(z, x, POS_WEIGHT),
                "loss into out": lambda: loss(z, x, POS_WEIGHT, out=out),
                "mean": lambda: loss(z, x, POS_WEIGHT, reduction="mean"),
                "mean + gradient": lambda: both(
                    z, x, POS_WEIGHT, reduction="mean", out=(value, gradient)
                ),
            }

        cases: dict[str, Cases] = {"logitloss": own()}
        if step % 4 == 0:
            for make in makers:
                try:
                    found = make(z, x, out, threads)
                except ImportError:
                    continue
                cases |= {
                    library: {"loss": calls["loss"]}
                    for library, calls in found.items()
                    if library != "torch.compile"
                }
        cases["NumPy"] = cases.get("NumPy", {}) | {"np.add": lambda z=z, x=x: add(z, x)}
        timers = {
            (library, case): timed(call)
            for library, calls in cases.items()
            for case, call in calls.items()
        }
        enough = rounds if size <= 1_000_000 else max(1, rounds // 4)
        for (library, case), seconds in measure(timers, enough).items():
            results.setdefault(library, {}).setdefault(case, {})[str(size)] = seconds
    return results


def environment(tensorflow: peers.TensorFlow | None) -> dict[str, Any]:
    def run(*command: str) -> str:
        try:
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()
        except OSError:
            return ""

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    versions = {package: version(package) for package in PACKAGES}
    if tensorflow is not None:
        versions["tensorflow"] = tensorflow.version
    # The compiler leaves its name in what it has compiled.
    names = re.findall(
        rb"(?:GCC: \([^)]*\)|clang version) [\w.]+", Path(kernel.__file__).read_bytes()
    )
    cpu = re.search(r"^Model name:\s*(.*)", run("lscpu"), re.MULTILINE)
    return {
        "logitloss": logitloss.show_config("dicts"),
        "commit": run("git", "-C", str(HERE), "describe", "--match=", "--always", "--dirty"),
        "compiler": names[-1].decode() if names else "unknown",
        "processor": cpu[1] if cpu else platform.processor(),
        "processors": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: text for name, text in versions.items() if text is not None},
    }


def start_tensorflow(python: str | None, threads: int) -> peers.TensorFlow | None:
    if not python:
        if importlib.util.find_spec("tensorflow") is None:
            print("left out: TensorFlow, unless --tensorflow-python says where it is")
            return None
        python = sys.executable
    return peers.TensorFlow(python, threads)


def run(options: argparse.Namespace) -> dict[str, Any]:
    with_peers = not options.no_peers
    tensorflow = None
    if with_peers:
        tensorflow = start_tensorflow(options.tensorflow_python, logitloss.get_num_threads())
    results: dict[str, Any] = {
        "environment": environment(tensorflow),
        "size": options.size,
        "large": {},
        "sizes": {},
    }
    for dtype in ("float32", "float64"):
        results["large"][dtype] = compare(
            options.size, options.rounds, dtype, PEERS if with_peers else (), tensorflow
        )
    if tensorflow is not None:
        tensorflow.close()
    if not options.no_sizes:
        for dtype in ("float32", "float64"):
            results["sizes"][dtype] = over_sizes(
                dtype, options.largest, options.rounds, PEERS_OVER_SIZES if with_peers else ()
            )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    number = {"type": lambda text: int(float(text)), "metavar": "N"}
    parser.add_argument("--size", default=10_000_000, **number)
    parser.add_argument("--largest", default=100_000_000, help="of the sizes walked", **number)
    parser.add_argument("--rounds", default=21, **number)
    parser.add_argument("--no-sizes", action="store_true", help="one size only")
    parser.add_argument("--no-peers", action="store_true", help="logitloss and memory only")
    parser.add_argument("--tensorflow-python", metavar="PYTHON")
    report.add_options(parser)
    options = parser.parse_args()

    results = report.saved_or(lambda: run(options), options)
    tables = report.tables(results)
    print("", *tables.values(), sep="\n\n")
    for page in options.page:
        report.renew(page, tables)
    if options.plots:
        report.draw(results, options.plots)


if __name__ == "__main__":
    main()
