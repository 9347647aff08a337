"""Dask: nothing is computed before it is asked for, and then each chunk once."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import backends
import numpy as np
import pytest

import logitloss
from logitloss import weighted_cross_entropy_with_logits as weighted
from logitloss._kernel import kernel

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
BACKEND = backends.get("dask")

REDUCTIONS = ("none", "sum", "mean", "weighted_mean")
SHAPE = (6, 10)


def data(dtype: str = "float64") -> dict[str, np.ndarray]:
    generator = np.random.default_rng(3)
    return {
        "labels": generator.integers(0, 2, SHAPE).astype(dtype),
        "logits": (generator.normal(size=SHAPE) * 8).astype(dtype),
        "pos_weight": (generator.random(SHAPE[1]) + 0.5).astype(dtype),
        "weight": (generator.random((SHAPE[0], 1)) + 0.5).astype(dtype),
    }


def lazy(arrays: dict[str, np.ndarray], chunks=(2, 5)) -> dict:
    return {
        name: da.from_array(a, chunks=tuple(map(min, chunks[2 - a.ndim :], a.shape)))
        for name, a in arrays.items()
    }


def everything(labels, logits, pos_weight=1.0, weight=None):
    """Every result that the library has, by a name of its own."""
    results = {}
    for reduction in REDUCTIONS:
        options = {"weight": weight, "reduction": reduction}
        results[f"loss {reduction}"] = weighted(labels, logits, pos_weight, **options)
        pair = logitloss.value_and_grad(labels, logits, pos_weight, **options)
        results[f"value {reduction}"], results[f"gradient {reduction}"] = pair
    pair = logitloss.grad_and_hess(labels, logits, pos_weight, weight=weight)
    results["gradient"], results["hessian"] = pair
    return results


def compute(*arrays):
    return dask.compute(*arrays, scheduler="synchronous")


def refuse(*args, **kwargs):
    raise AssertionError("the graph was computed")


@pytest.mark.parametrize("known", [True, False], ids=["known sizes", "unknown sizes"])
def test_building_the_graph_computes_nothing(known: bool) -> None:
    arrays = lazy(data())
    if not known:
        rows = arrays["labels"].sum(axis=1) >= 0
        arrays |= {name: arrays[name][rows] for name in ("labels", "logits")}
        arrays["weight"] = 0.5
    with dask.config.set(scheduler=refuse):
        results = everything(**arrays)
    expected = everything(**data() | ({} if known else {"weight": 0.5}))
    for name, got in zip(results, compute(*results.values()), strict=True):
        np.testing.assert_allclose(got, expected[name], rtol=1e-14, err_msg=name)


@pytest.mark.parametrize("dtype", backends.DTYPES["dask"])
def test_chunks_and_meta_are_kept(dtype: str) -> None:
    arrays = lazy(data(dtype))
    results = everything(**arrays)
    computed = compute(*results.values())
    for (name, result), value in zip(results.items(), computed, strict=True):
        whole = not name.endswith(("sum", "mean")) or name.startswith("gradient")
        assert result.chunks == (arrays["logits"].chunks if whole else ())
        assert result.shape == value.shape == (SHAPE if whole else ())
        assert result.dtype == value.dtype == np.dtype(dtype)
        assert type(result._meta) is np.ndarray


def test_chunks_of_another_library() -> None:
    jnp = pytest.importorskip("jax.numpy")
    logits = da.from_array(jnp.ones((2, 2), "float32"), chunks=2, asarray=False)
    results = everything(logits, logits, pos_weight=[1.0, 2.0], weight=[[0.5], [2.0]])
    for result, value in zip(results.values(), compute(*results.values()), strict=True):
        assert isinstance(result._meta, type(jnp.ones(1)))
        # Dask does not know how to gather the sums of chunks in JAX.
        assert isinstance(value, type(jnp.ones(1)) if value.ndim else np.generic)
        assert result.dtype == value.dtype == "float32"


def test_chunks_of_sparse_arrays() -> None:
    sparse = pytest.importorskip("sparse")
    arrays = data("float32")
    mask = arrays["labels"]
    labels, logits, weight = (
        da.from_array(sparse.COO.from_numpy(a), chunks=(2, 5))
        for a in (arrays["labels"], arrays["logits"] * mask, mask)
    )
    results = everything(labels, logits, 2.0, weight)
    expected = everything(arrays["labels"], arrays["logits"] * mask, 2.0, mask)
    for (name, result), value in zip(results.items(), compute(*results.values()), strict=True):
        assert value.dtype == result.dtype == "float32"
        # Dask takes a number of sparse arrays for one of NumPy.
        assert isinstance(result._meta, sparse.COO if result.ndim else np.ndarray)
        assert isinstance(value, sparse.COO if result.ndim else np.float32)
        dense = value.todense() if result.ndim else value
        np.testing.assert_array_max_ulp(dense, np.asarray(expected[name]), 4)


def test_columns_of_dask_stay_lazy() -> None:
    pandas = pytest.importorskip("pandas")
    frames = pytest.importorskip("dask.dataframe")
    table = pandas.DataFrame(
        {
            "labels": [0, 1, 1, 0, 1],
            "logits": [0.5, -1.0, 2.0, 0.0, 30.0],
            "pos_weight": [2.0, 3.0, 0.5, 1.0, 0.0],
            "weight": [1.0, 0.0, 2.0, 0.25, 1.0],
        }
    )
    columns = dict(frames.from_pandas(table, npartitions=2).items())
    frame = frames.from_pandas(table, npartitions=2)
    labels = columns["labels"]
    balanced = (1 - labels).sum() / labels.sum()
    with dask.config.set(scheduler=refuse):
        results = everything(**columns)
        of_number = everything(labels, columns["logits"], balanced)
        of_table = everything(frame[["labels"]], frame[["logits"]])
    pair = [table[name].to_numpy() for name in ("labels", "logits")]
    for got, expected in (
        (results, everything(**{name: table[name].to_numpy() for name in table})),
        (of_number, everything(*pair, 2 / 3)),
        (of_table, everything(*(column[:, None] for column in pair))),
    ):
        for name, value in zip(got, compute(*got.values()), strict=True):
            assert isinstance(got[name], da.Array)
            np.testing.assert_allclose(value, expected[name], rtol=1e-14, err_msg=name)


def test_different_chunks_are_aligned() -> None:
    arrays = data()
    expected = everything(**arrays)
    given = {
        "labels": da.from_array(arrays["labels"], chunks=(4, 3)),
        "logits": da.from_array(arrays["logits"], chunks=(3, 10)),
        "pos_weight": da.from_array(arrays["pos_weight"], chunks=4),
        "weight": da.from_array(arrays["weight"], chunks=(5, 1)),
    }
    results = everything(**given)
    for name, got in zip(results, compute(*results.values()), strict=True):
        np.testing.assert_allclose(got, expected[name], rtol=1e-14, err_msg=name)


@pytest.mark.parametrize("argument", ["pos_weight", "weight"])
@pytest.mark.parametrize("kind", ["dask", "0-d dask", "numpy", "list", "float", "numpy scalar"])
def test_coefficients_of_any_kind(kind: str, argument: str) -> None:
    arrays = data()
    value = {
        "dask": arrays["pos_weight"],
        "0-d dask": np.array(1.5),
        "numpy": arrays["pos_weight"],
        "list": arrays["pos_weight"].tolist(),
        "float": 1.5,
        "numpy scalar": np.float32(1.5),
    }[kind]
    pair = {name: arrays[name] for name in ("labels", "logits")}
    expected = everything(**pair, **{argument: value})
    given = da.asarray(value) if "dask" in kind else value
    results = everything(**lazy(pair), **{argument: given})
    for name, got in zip(results, compute(*results.values()), strict=True):
        np.testing.assert_allclose(got, expected[name], rtol=1e-14, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(3000,), (40, 70)], ids=str)
def test_reductions_are_those_of_numpy_whatever_the_chunks(
    shape: tuple[int, ...], dtype: str
) -> None:
    generator = np.random.default_rng(11)
    labels = generator.random(shape).astype(dtype)
    logits = (generator.normal(size=shape) * 6).astype(dtype)
    weight = generator.random(shape[-1:]).astype(dtype)
    for reduction in REDUCTIONS[1:]:
        options = {"weight": weight, "reduction": reduction}
        expected, slopes = logitloss.value_and_grad(labels, logits, 2.5, **options)
        for chunks in (7, 33, 1000, 3000):
            arrays = [da.from_array(a, chunks=chunks) for a in (labels, logits)]
            value, gradient = logitloss.value_and_grad(*arrays, 2.5, **options)
            alone = weighted(*arrays, 2.5, **options)
            value, gradient, alone = compute(value, gradient, alone)
            assert value == alone
            np.testing.assert_array_max_ulp(value, expected, 2)
            np.testing.assert_array_max_ulp(gradient, slopes, 2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_only_the_last_step_rounds(dtype: str) -> None:
    generator = np.random.default_rng(5)
    labels, weight = (generator.random(2000).astype(dtype) for _ in range(2))
    logits = (generator.normal(size=2000) * 6).astype(dtype)
    for reduction in REDUCTIONS[1:]:
        options = {"weight": weight, "reduction": reduction}
        expected = logitloss.value_and_grad(labels, logits, 2.5, **options)
        for chunks in (7, 600):
            arrays = [da.from_array(a, chunks=chunks) for a in (labels, logits)]
            got = compute(*logitloss.value_and_grad(*arrays, 2.5, **options))
            alone = compute(weighted(*arrays, 2.5, **options))
            np.testing.assert_array_equal(alone[0], expected[0])
            for mine, theirs in zip(got, expected, strict=True):
                np.testing.assert_array_equal(mine, theirs)


def test_half_precision_sums_of_chunks_do_not_overflow() -> None:
    logits = da.full(4000, 600.0, chunks=1000, dtype="float16")
    labels = da.zeros(4000, chunks=1000, dtype="float16")
    for reduction in ("mean", "weighted_mean"):
        loss = weighted(labels, logits, 1.0, reduction=reduction)
        assert compute(loss) == (np.float16(600),)


def test_float32_sums_of_chunks_are_not_rounded() -> None:
    # Losses of 2^24 and twice 0.9. Rounded to float32 the first chunk's sum would be 2^24.
    logits = np.float32([2**24, 0.378, 0.378, -50])
    arrays = [da.from_array(a, chunks=2) for a in (np.zeros(4, "float32"), logits)]
    for value in (
        weighted(*arrays, 1.0, reduction="sum"),
        logitloss.value_and_grad(*arrays, reduction="sum")[0],
    ):
        assert compute(value) == (np.float32(2**24 + 2),)


@pytest.mark.parametrize("chunks", [1, 3])
def test_empty_and_infinite_sums(chunks: int) -> None:
    def reductions(logits):
        labels = da.zeros_like(logits)
        return compute(*(weighted(labels, logits, 1.0, reduction=r) for r in REDUCTIONS[1:]))

    empty = da.zeros((0, 3), chunks=chunks)
    np.testing.assert_array_equal(reductions(empty), [0, math.nan, math.nan])
    infinite = da.from_array(np.array([math.inf, 1.0, -math.inf]), chunks=chunks)
    np.testing.assert_array_equal(reductions(infinite), [math.inf] * 3)
    for dtype in ("float32", "float64"):
        largest = np.finfo(dtype).max
        huge = da.from_array(np.array([largest, largest, 1.0], dtype), chunks=chunks)
        assert reductions(huge)[0] == math.inf


def test_sums_of_chunks_are_added_up_exactly() -> None:
    # One number so large that the others vanish if they are added to it one by one.
    logits = np.append(2.0**60, np.full(99, 100.0))
    for chunks in (1, 3):
        lazy_logits = da.from_array(logits, chunks=chunks)
        loss = weighted(da.zeros(100, chunks=chunks), lazy_logits, 1.0, reduction="sum")
        assert compute(loss) == (math.fsum(logits),)

    weight = np.append(2.0**24, np.ones(1999)).astype("float32")
    labels, logits = np.zeros(2000, "float32"), np.append(0, np.full(1999, 1e4)).astype("float32")
    options = {"weight": weight, "reduction": "weighted_mean"}
    got = weighted(*(da.from_array(a, chunks=1000) for a in (labels, logits)), 1.0, **options)
    np.testing.assert_array_max_ulp(compute(got)[0], weighted(labels, logits, 1.0, **options), 2)


def test_weighted_mean_of_unknown_size_broadcasts_the_weight() -> None:
    arrays = data()
    keep = arrays["labels"][:, 0] >= 0
    rows = da.from_array(keep, chunks=2)
    pair = [da.from_array(arrays[n], chunks=(2, 10))[rows] for n in ("labels", "logits")]
    weight = arrays["pos_weight"]
    got = weighted(*pair, 2.0, weight=weight, reduction="weighted_mean")
    expected = weighted(
        arrays["labels"], arrays["logits"], 2.0, weight=weight, reduction="weighted_mean"
    )
    np.testing.assert_allclose(compute(got)[0], expected, rtol=1e-14)


@pytest.mark.parametrize("reduction", [*REDUCTIONS, "grad_and_hess"])
def test_two_results_cost_one_pass(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, calls = lazy(data()), []
    function = kernel.compute

    def counted(orders, *args, **options):
        calls.append((orders, args[4]))
        return function(orders, *args, **options)

    monkeypatch.setattr(kernel, "compute", counted)
    if reduction == "grad_and_hess":
        pair = logitloss.grad_and_hess(**arrays)
    else:
        pair = logitloss.value_and_grad(**arrays, reduction=reduction)
    compute(*pair)
    whole = {"none": ((0, 1), "none"), "grad_and_hess": ((1, 2), "none")}
    assert calls == [whole.get(reduction, ((0, 1), "total"))] * 6


@pytest.mark.parametrize("name", [None, "cost_of_clicks"])
def test_name_is_that_of_the_layer(name: str | None) -> None:
    arrays = data()
    for reduction in REDUCTIONS:
        first, second = (weighted(**lazy(arrays), name=name, reduction=reduction) for _ in range(2))
        assert first.name.startswith((name or "logistic_loss") + "-")
        assert first.name == second.name
    other = weighted(**lazy(arrays | {"weight": arrays["weight"] + 1}), name=name)
    assert other.name != weighted(**lazy(arrays), name=name).name


def test_out_is_refused() -> None:
    array = da.ones(2)
    with pytest.raises(TypeError, match="`out` must be None for dask arrays"):
        logitloss.sigmoid_cross_entropy_with_logits(array, array, out=array)


def read(path: str, block_info=None) -> np.ndarray:
    """A chunk of an .npy file, mapped by the process that computes it."""
    (start, stop), *_ = block_info[None]["array-location"]
    return np.load(path, mmap_mode="r")[start:stop]


def test_more_data_than_memory_over_two_processes(tmp_path) -> None:
    distributed = pytest.importorskip("distributed")
    size, chunk, limit = 2**27, 2**22, 400 * 2**20
    special = np.array([0, 1, chunk - 1, chunk, size // 2, size - 2, size - 1])
    labels = np.array([1, 0, 1, 0, 1, 0, 1], dtype="float32")
    logits = np.array([-3, 2, 50, -20, 0.5, 80, -1], dtype="float32")
    arrays = []
    for name, values in (("labels", labels), ("logits", logits)):
        path = tmp_path / f"{name}.npy"
        # A sparse file: zeros, except for the values that are written.
        np.lib.format.open_memmap(path, "w+", "float32", (size,))[special] = values
        arrays.append(
            da.map_blocks(read, path, chunks=((chunk,) * (size // chunk),), dtype="float32")
        )
    assert sum(a.nbytes for a in arrays) > 2 * limit

    loss = weighted(*arrays, 2.0)
    mean = weighted(*arrays, 2.0, reduction="mean")
    # Labels 0, logits 0.
    half = np.float32(np.log(2))
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit=limit, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        got = client.compute([mean, loss[special], (loss == half).sum()])
        got_mean, got_loss, got_half = client.gather(got)
    expected = weighted(labels, logits, 2.0)
    np.testing.assert_array_equal(got_loss, expected)
    assert got_half == size - len(special)
    exact = (float(half) * (size - len(special)) + expected.sum(dtype="float64")) / size
    np.testing.assert_array_max_ulp(got_mean, np.float32(exact), 2)


def test_tasks_use_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask runs as many tasks as there are processors."""
    threads: list[int] = []

    def spy(orders, labels, logits, *args, **options):
        threads.append(logitloss.get_num_threads())
        return (logits,)

    logits = da.zeros(8, chunks=4)
    loss = weighted(logits, logits, 2.0)
    monkeypatch.setattr(kernel, "compute", spy)
    logitloss.set_num_threads(3)
    try:
        loss.compute()
    finally:
        kernel.set_threads(0)
    assert threads == [1, 1]


PAGE = Path(__file__).parents[1] / "docs" / "scale_out.md"
PROGRAMS = re.findall(r"(?<!-->\n)```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
NEEDS = {"dask.distributed": "distributed", "dask.dataframe": "pyarrow", "zarr": "zarr"}


@pytest.mark.parametrize("program", PROGRAMS, ids=["cluster", "parquet", "zarr"])
def test_documented_programs(program: str, tmp_path: Path) -> None:
    for word, package in NEEDS.items():
        if word in program:
            pytest.importorskip(package)
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == re.findall(r"print\(.*\)  # (.*)", program)
