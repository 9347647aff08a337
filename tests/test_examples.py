from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import logitloss

EXAMPLES = Path(__file__).parent.parent / "examples"


def load_example(name: str) -> ModuleType:
    script = (EXAMPLES / f"{name}.py").read_text("utf-8")
    for library in re.findall(r"^(?:from|import) (\w+)", script, flags=re.MULTILINE):
        pytest.importorskip(library, reason=f"the example needs {library}")
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def breast_cancer() -> ModuleType:
    return load_example("breast_cancer")


def test_pos_weight_trades_precision_for_recall(breast_cancer: ModuleType) -> None:
    split = breast_cancer.load()
    assert list(breast_cancer.POS_WEIGHTS) == sorted(breast_cancer.POS_WEIGHTS)
    recalls, precisions = [], []
    for pos_weight in breast_cancer.POS_WEIGHTS:
        coefficients = breast_cancer.fit(split.train_features, split.train_labels, pos_weight)
        logits = breast_cancer.predict(split.test_features, coefficients)
        recall, precision = breast_cancer.recall_and_precision(split.test_labels, logits)
        recalls.append(recall)
        precisions.append(precision)
    assert np.all(np.diff(recalls) >= 0)
    assert np.all(np.diff(precisions) <= 0)
    assert recalls[0] < recalls[-1]
    assert precisions[0] > precisions[-1]


@pytest.mark.parametrize("pos_weight", [0.1, 10])
def test_the_fit_is_a_minimum(breast_cancer: ModuleType, pos_weight: float) -> None:
    """Compare with scikit-learn's own solver, for which pos_weight is a class weight."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    split = breast_cancer.load()
    count = len(split.train_labels)
    model = linear_model.LogisticRegression(
        C=1 / (count * breast_cancer.L2_PENALTY), class_weight={1: pos_weight}, tol=1e-10
    ).fit(split.train_features, split.train_labels)
    got = breast_cancer.fit(split.train_features, split.train_labels, pos_weight)
    np.testing.assert_allclose(got[:-1], model.coef_[0], atol=1e-5)
    np.testing.assert_allclose(got[-1], model.intercept_[0], atol=1e-5)


def test_the_positive_class_is_malignant(breast_cancer: ModuleType) -> None:
    split = breast_cancer.load()
    labels = np.concatenate([split.train_labels, split.test_labels])
    # The data set's description counts 212 malignant and 357 benign tumours.
    assert np.count_nonzero(labels) == 212
    assert labels.size == 212 + 357


def test_the_files_are_what_the_script_writes(
    breast_cancer: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    breast_cancer.main(tmp_path)
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(breast_cancer.POS_WEIGHTS)

    kept = EXAMPLES / "data"
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), np.load(kept / "labels.npy"))
    logits, kept_logits = np.load(tmp_path / "logits.npy"), np.load(kept / "logits.npy")
    assert logits.dtype == kept_logits.dtype == np.float32
    np.testing.assert_allclose(logits, kept_logits, rtol=0, atol=1e-4)


def test_no_file_is_written_unasked(
    breast_cancer: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object, *_: object) -> None:
        raise AssertionError(path)

    monkeypatch.setattr(np, "save", refuse)
    breast_cancer.main()


def printed_table(text: str) -> list[list[str]]:
    """The rows below the head of a table whose columns are two spaces or more apart."""
    return [re.split(r" {2,}", line.strip()) for line in text.splitlines()[1:]]


def share(text: str) -> float:
    assert text.endswith("%")
    return float(text[:-1]) / 100


@pytest.mark.parametrize(
    ("fit", "tolerance"),
    [
        # Its scores are float32.
        ("with_xgboost", 1e-5),
        ("with_lightgbm", 1e-9),
    ],
)
def test_boosting_equals_scale_pos_weight(fit: str, tolerance: float) -> None:
    boosting = load_example("boosting")
    train, test, train_labels, _ = boosting.load()
    own = getattr(boosting, fit)(train, train_labels, test, False)
    custom = getattr(boosting, fit)(train, train_labels, test, True)
    assert np.ptp(own) > 5
    np.testing.assert_allclose(custom, own, rtol=0, atol=tolerance)


def test_boosting_prints_equal_rows(capsys: pytest.CaptureFixture[str]) -> None:
    load_example("boosting").main()
    rows = printed_table(capsys.readouterr().out)
    assert [row[0] for row in rows] == ["XGBoost"] * 3 + ["LightGBM"] * 3
    for own, custom, soft in (rows[:3], rows[3:]):
        assert own[1] == "scale_pos_weight" and custom[1] == "Objective"
        assert own[2:] == custom[2:]
        assert soft[1] == "soft labels" and float(soft[2]) != float(own[2])


def test_boosting_stops_at_the_least_loss() -> None:
    losses, best = load_example("boosting").watch(10.0)
    assert best == np.argmin(losses) + 1 == len(losses) - 20


def test_torch_multilabel(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("torch_multilabel")
    example.main()
    rows = printed_table(capsys.readouterr().out)
    assert [row[0] for row in rows] == list(example.CLASSES)
    # One that had met a NaN would find nothing.
    assert all(share(recall) > 0.8 for _, _, recall in rows)
    assert min(share(positives) for _, positives, _ in rows) < 0.11


def test_jax_training(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("jax_training")
    example.main()
    rows = printed_table(capsys.readouterr().out)
    assert [float(row[0]) for row in rows] == list(example.POS_WEIGHTS)
    recalls, precisions = [[share(row[column]) for row in rows] for column in (2, 3)]
    assert recalls == sorted(recalls) and recalls[0] + 0.1 < recalls[-1]
    assert precisions == sorted(precisions, reverse=True) and precisions[0] > precisions[-1]


def test_jax_training_starts_with_a_gradient_for_positives() -> None:
    example = load_example("jax_training")
    jax = example.jax
    model = example.Model(jax.numpy.zeros(2), jax.numpy.zeros(()))
    features, labels = jax.numpy.asarray([[1.0, 2.0]]), jax.numpy.asarray([True])
    after, value = example.step(model, features, labels, jax.numpy.asarray(1.0))
    assert float(value) == pytest.approx(np.log(2))
    np.testing.assert_allclose(after.slopes, [0.15, 0.3], rtol=1e-6)
    np.testing.assert_allclose(after.intercept, 0.15, rtol=1e-6)


def test_larger_than_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("resource", reason="the example asks Unix for the memory used")
    example = load_example("larger_than_memory")
    monkeypatch.setenv("PYTHONPATH", str(Path(logitloss.__file__).parents[1]))
    # What this process holds is not counted.
    ballast = np.ones(80 * example.MIB)
    sizes = example.main()
    assert sizes["labels.npy"] == pytest.approx(64, abs=1)
    assert sizes["memory"] < sizes["logits.parquet"] < ballast.nbytes / example.MIB
    # Of a normal distribution about -4.
    value = re.search(r"^value \(mean\) +(.+)$", capsys.readouterr().out, re.MULTILINE)
    assert value is not None and float(value[1]) == pytest.approx(1.1874, abs=0.002)


def test_precision_recall(breast_cancer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    example = load_example("precision_recall")
    recall, precision = example.trade(example.load())
    assert np.all(np.diff(recall) >= 0)
    assert np.all(np.diff(precision) <= 0)
    assert recall[0] < 0.1 and recall[-1] > 0.9
    assert precision[0] > 0.9 and precision[-1] < 0.3


def test_keras_finds_more_positives(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorflow", reason="the example needs tensorflow")
    load_example("keras_imbalanced").main()
    _, *lines = capsys.readouterr().out.splitlines()
    _, recalls, precisions = zip(*(line.replace("%", "").split() for line in lines), strict=True)
    assert list(map(float, recalls)) == sorted(map(float, recalls))
    assert list(map(float, precisions)) == sorted(map(float, precisions), reverse=True)
    assert float(recalls[-1]) > 2 * float(recalls[0])
