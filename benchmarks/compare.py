"""Measure logitloss against the speed of memory and against its peers, side by side in one run.

    python benchmarks/compare.py --json results.json --plots docs/figures

Every case is run once for warmth, then in rounds, one call of each case after another, so that a
noisy moment of the machine falls on all alike; medians are reported, as ratios. Peers that are not
installed are left out. Outputs are touched beforehand. The machine should do nothing else.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import logitloss

HERE = Path(__file__).parent
POS_WEIGHT = 2.5
LOSS = logitloss.weighted_cross_entropy_with_logits
Cases = dict[str, Callable[[], Any]]


def compile_bounds() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "bounds.so"
        flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC", "-c"]
        compiler = os.environ.get("CC", "cc")
        obj = library.with_suffix(".o")
        subprocess.run([compiler, *flags, HERE / "bounds.c", "-o", obj], check=True)
        # Linked without -ffast-math, which would flush subnormals in the whole process.
        subprocess.run([compiler, "-shared", "-fopenmp", obj, "-o", library], check=True)
        return ctypes.CDLL(str(library))


def bounds(z: np.ndarray, x: np.ndarray, w: np.ndarray, out: np.ndarray) -> Cases:
    library = compile_bounds()
    name = x.dtype.name
    threads = ctypes.c_int(logitloss.get_num_threads())
    pointers = {
        key: ctypes.c_void_p(a.ctypes.data) for key, a in dict(z=z, x=x, w=w, o=out).items()
    }
    size = ctypes.c_ssize_t(x.size)
    triad = getattr(library, f"triad_{name}")
    weighted = getattr(library, f"weighted_triad_{name}")
    sweep = getattr(library, f"sweep_{name}")
    return {
        "triad": lambda: triad(pointers["z"], pointers["x"], pointers["o"], size, threads),
        "weighted triad": lambda: weighted(
            pointers["z"], pointers["x"], pointers["w"], pointers["o"], size, threads
        ),
        "sweep": lambda: sweep(pointers["z"], pointers["x"], size, threads),
    }


def ours(z: np.ndarray, x: np.ndarray, w: np.ndarray, out: np.ndarray) -> Cases:
    loss, dtype = LOSS, x.dtype
    gradient = np.zeros_like(x)
    value = np.zeros((), dtype)
    columns = {c: x.size // c for c in (8, 100, 1000)}
    per_class = {
        c: [a[: rows * c].reshape(rows, c) for a in (z, x, out)] for c, rows in columns.items()
    }
    pos_weights = {c: np.full(c, POS_WEIGHT, dtype) for c in columns}
    fortran = [a[: a.size // 1000 * 1000].reshape(-1, 1000, order="F") for a in (z, x, out)]
    double = np.zeros(2 * x.size, dtype)
    double[::2] = x
    strided_x = double[::2]
    double_z = np.zeros(2 * x.size, dtype)
    double_z[::2] = z
    strided_z = double_z[::2]
    hard = z.astype(bool)
    cases: Cases = {
        "loss": lambda: loss(z, x, POS_WEIGHT, out=out),
        "mean": lambda: loss(z, x, POS_WEIGHT, reduction="mean"),
        "mean + gradient": lambda: logitloss.value_and_grad(
            z, x, POS_WEIGHT, reduction="mean", out=(value, gradient)
        ),
        "loss without out": lambda: loss(z, x, POS_WEIGHT),
        "loss, weight": lambda: loss(z, x, POS_WEIGHT, weight=w, out=out),
        "loss, Fortran order": lambda: loss(fortran[0], fortran[1], POS_WEIGHT, out=fortran[2]),
        "loss, stride 2": lambda: loss(strided_z, strided_x, POS_WEIGHT, out=out),
        "loss, bool labels": lambda: loss(hard, x, POS_WEIGHT, out=out),
        "loss, int8 labels": lambda: loss(hard.view(np.int8), x, POS_WEIGHT, out=out),
    }
    for c, (z2, x2, o2) in per_class.items():
        q = pos_weights[c]
        cases[f"loss, {c} classes"] = lambda z2=z2, x2=x2, q=q, o2=o2: loss(z2, x2, q, out=o2)
    return cases


def peers(z: np.ndarray, x: np.ndarray, out: np.ndarray) -> dict[str, Cases]:
    found = {}
    for make in (numpy_expression, numexpr, numba, scikit_learn, torch, jax):
        try:
            found.update(make(z, x, out))
        except ImportError as error:
            print(f"left out: {error}")
    return found


def textbook(xp: Any, z: Any, x: Any) -> Any:
    return (1 - z) * x + (1 + (POS_WEIGHT - 1) * z) * (
        xp.log1p(xp.exp(-xp.abs(x))) + xp.maximum(-x, xp.zeros_like(x))
    )


def numpy_expression(z: np.ndarray, x: np.ndarray, out: np.ndarray) -> dict[str, Cases]:
    return {"NumPy": {"loss": lambda: textbook(np, z, x)}}


def numexpr(z: np.ndarray, x: np.ndarray, out: np.ndarray) -> dict[str, Cases]:
    evaluate = importlib.import_module("numexpr").evaluate
    q = x.dtype.type(POS_WEIGHT)
    one = x.dtype.type(1)
    expression = (
        "(one - z) * x + (one + (q - one) * z) * (log1p(exp(-abs(x))) + where(x < 0, -x, 0 * x))"
    )
    names = {"z": z, "x": x, "q": q, "one": one}
    return {"numexpr": {"loss": lambda: evaluate(expression, names, out=out)}}


def numba(z: np.ndarray, x: np.ndarray, out: np.ndarray) -> dict[str, Cases]:
    nb = importlib.import_module("numba")

    @nb.njit(parallel=True)
    def run(z, x, q, out):
        for i in nb.prange(x.size):
            v = x[i]
            out[i] = (1 - z[i]) * v + (1 + (q - 1) * z[i]) * (
                np.log1p(np.exp(-abs(v))) + max(-v, q * 0)
            )

    q = x.dtype.type(POS_WEIGHT)
    return {"numba": {"loss": lambda: run(z, x, q, out)}}


def scikit_learn(z: np.ndarray, x: np.ndarray, out: np.ndarray) -> dict[str, Cases]:
    half_binomial = importlib.import_module("sklearn._loss").HalfBinomialLoss()
    gradient = np.zeros_like(x)
    threads = logitloss.get_num_threads()
    return {
        "scikit-learn": {
            "loss": lambda: half_binomial.loss(z, x, loss_out=out, n_threads=threads),
            "mean + gradient": lambda: half_binomial.loss_gradient(
                z, x, loss_out=out, gradient_out=gradient, n_threads=threads
            ),
        }
    }


def torch(z: np.ndarray, x: np.ndarray, out: np.ndarray) -> dict[str, Cases]:
    pt = importlib.import_module("torch")
    pt.set_num_threads(logitloss.get_num_threads())
    labels, logits = pt.from_numpy(z), pt.from_numpy(x)
    leaf = logits.clone().requires_grad_()
    q = pt.tensor(POS_WEIGHT, dtype=logits.dtype)
    eager = pt.nn.functional.binary_cross_entropy_with_logits

    def loss(x: Any, z: Any, reduction: str) -> Any:
        return eager(x, z, pos_weight=q, reduction=reduction)

    def gradient(function: Callable[..., Any]) -> Any:
        leaf.grad = None
        function(leaf, labels, "mean").backward()

    compiled = pt.compile(loss)
    return {
        name: {
            "loss": lambda f=function: f(logits, labels, "none"),
            "mean": lambda f=function: f(logits, labels, "mean"),
            "mean + gradient": lambda f=function: gradient(f),
        }
        for name, function in {"torch eager": loss, "torch.compile": compiled}.items()
    }


def jax(z: np.ndarray, x: np.ndarray, out: np.ndarray) -> dict[str, Cases]:
    library = importlib.import_module("jax")
    library.config.update("jax_enable_x64", True)
    jnp = library.numpy
    labels, logits = jnp.asarray(z), jnp.asarray(x)
    loss = library.jit(lambda z, x: textbook(jnp, z, x))
    mean = library.jit(lambda z, x: textbook(jnp, z, x).mean())
    both = library.jit(library.value_and_grad(lambda x, z: textbook(jnp, z, x).mean()))
    return {
        "JAX jit": {
            "loss": lambda: loss(labels, logits).block_until_ready(),
            "mean": lambda: mean(labels, logits).block_until_ready(),
            "mean + gradient": lambda: library.block_until_ready(both(logits, labels)),
        }
    }


def measure(cases: Cases, rounds: int) -> dict[str, float]:
    """Median seconds of each case over interleaved rounds."""
    for case in cases.values():
        case()
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            times[name].append(time.perf_counter() - start)
    return {name: median(series) for name, series in times.items()}


def arrays(size: int, dtype: str) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, size).astype(dtype)
    labels = (rng.random(size) < 0.2).astype(dtype)
    weight = rng.random(size).astype(dtype)
    return labels, logits, weight, np.zeros(size, dtype)


# What is compared with what, and the ratio aimed at for float32 and float64.
TARGETS = [
    ("loss", "triad", 1.15, 1.5),
    ("mean + gradient", "triad", 1.2, 1.7),
    ("mean", "sweep", 1.7, 2.4),
    ("loss without out", "loss", 1.5, 1.5),
    ("loss, 8 classes", "loss", 1.2, 1.2),
    ("loss, 100 classes", "loss", 1.2, 1.2),
    ("loss, 1000 classes", "loss", 1.2, 1.2),
    ("loss, weight", "weighted triad", 1.2, 1.5),
    ("loss, Fortran order", "loss", 1.1, 1.1),
    ("loss, stride 2", "loss", 2.5, 2.5),
    ("loss, bool labels", "loss", 1.1, 1.1),
    ("loss, int8 labels", "loss", 1.1, 1.1),
]


def compare(size: int, rounds: int, dtype: str) -> dict[str, float]:
    z, x, w, out = arrays(size, dtype)
    cases = {**bounds(z, x, w, out), **ours(z, x, w, out)}
    for peer, functions in peers(z, x, out).items():
        cases |= {f"{name} ({peer})": function for name, function in functions.items()}
    medians = measure(cases, rounds)
    print(f"\n{dtype}, {size:,} elements, {logitloss.get_num_threads()} threads")
    for name, seconds in medians.items():
        print(f"  {name:35s} {seconds / size * 1e9:8.3f} ns per element")
    print("  ratios, and what they should be")
    for name, bound, *limits in TARGETS:
        limit = limits[dtype == "float64"]
        print(f"  {name:20s} / {bound:15s} {medians[name] / medians[bound]:6.2f}  <= {limit}")
    for name, seconds in medians.items():
        if name.endswith(")"):
            mine = name.partition(" (")[0]
            print(f"  {name:35s} {seconds / medians[mine]:6.1f} times slower")
    return medians


def over_sizes(dtype: str, largest: int) -> dict[int, dict[str, float]]:
    """Seconds per call from 1 element up, beside np.add on the same arrays."""
    results = {}
    sizes = [1, 10]
    while sizes[-1] < largest:
        sizes += [round(sizes[-1] * factor) for factor in (1.78, 3.16, 5.62, 10)]
    for size in sizes:
        z, x, *_ = arrays(size, dtype)
        repeats = max(1, 200_000 // (size + 200))

        def repeated(call: Callable[[], Any], repeats: int = repeats) -> Callable[[], Any]:
            def run() -> None:
                for _ in range(repeats):
                    call()

            return run

        medians = measure(
            {
                "loss": repeated(lambda z=z, x=x: LOSS(z, x, POS_WEIGHT)),
                "np.add": repeated(lambda z=z, x=x: np.add(z, x)),
            },
            15,
        )
        results[size] = {name: seconds / repeats for name, seconds in medians.items()}
        per_element = results[size]["loss"] / size * 1e9
        print(
            f"  {size:>11,}: {results[size]['loss'] * 1e6:10.2f} us, {per_element:8.3f} ns per "
            f"element, np.add {results[size]['np.add'] * 1e6:10.2f} us"
        )
    return results


def environment() -> dict[str, Any]:
    def run(*command: str) -> str:
        try:
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()
        except OSError:
            return ""

    versions = {}
    for package in ("numpy", "numexpr", "numba", "scikit-learn", "torch", "jax"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    cpu = [line for line in run("lscpu").splitlines() if line.startswith("Model name")]
    return {
        "configuration": logitloss.show_config("dicts"),
        "processor": cpu[0].partition(":")[2].strip() if cpu else platform.processor(),
        "compiler": run(os.environ.get("CC", "cc"), "--version").partition("\n")[0],
        "python": platform.python_version(),
        "versions": versions,
        "commit": run("git", "-C", str(HERE), "rev-parse", "HEAD"),
    }


def draw(results: dict[str, Any], folder: Path) -> None:
    plt = importlib.import_module("matplotlib.pyplot")
    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots()
    for dtype, sizes in results["sizes"].items():
        axes.loglog(
            list(sizes),
            [n / s["loss"] / 1e9 for n, s in sizes.items()],
            label=f"{dtype}",
            marker=".",
        )
    axes.set(xlabel="elements", ylabel="10⁹ elements per second", title="Loss, NumPy arrays")
    axes.legend()
    figure.savefig(folder / "throughput.svg")

    figure, axes = plt.subplots(figsize=(8, 6))
    names = [
        n for n in results["float32"] if n.endswith(")") or n in ("loss", "mean", "mean + gradient")
    ]
    names.sort(key=lambda n: (n.partition(" (")[0], results["float32"][n]))
    for offset, dtype in ((-0.2, "float32"), (0.2, "float64")):
        widths = [results[dtype][name] / results["size"] * 1e9 for name in names]
        axes.barh([i + offset for i in range(len(names))], widths, 0.4, label=dtype)
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel="ns per element", xscale="log")
    axes.invert_yaxis()
    axes.legend()
    figure.tight_layout()
    figure.savefig(folder / "peers.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=lambda text: int(float(text)), default=10_000_000)
    parser.add_argument("--largest", type=lambda text: int(float(text)), default=100_000_000)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--no-sizes", action="store_true", help="one size only")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plots", type=Path)
    options = parser.parse_args()

    results: dict[str, Any] = {"environment": environment(), "size": options.size, "sizes": {}}
    for dtype in ("float32", "float64"):
        results[dtype] = compare(options.size, options.rounds, dtype)
        if not options.no_sizes:
            results["sizes"][dtype] = over_sizes(dtype, options.largest)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    if options.plots:
        draw(results, options.plots)


if __name__ == "__main__":
    main()
