from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def breast_cancer() -> ModuleType:
    pytest.importorskip("scipy", reason="the example needs scipy")
    pytest.importorskip("sklearn", reason="the example needs scikit-learn")
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
    breast_cancer: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(breast_cancer, "DATA", tmp_path)
    breast_cancer.main()
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(breast_cancer.POS_WEIGHTS)

    kept = EXAMPLES / "data"
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), np.load(kept / "labels.npy"))
    logits, kept_logits = np.load(tmp_path / "logits.npy"), np.load(kept / "logits.npy")
    assert logits.dtype == kept_logits.dtype == np.float32
    np.testing.assert_allclose(logits, kept_logits, rtol=0, atol=1e-4)
