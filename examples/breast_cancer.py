"""Trade precision for recall with `pos_weight`, on scikit-learn's breast-cancer data.

A logistic regression is trained by scipy.optimize on the loss and gradient that
`logitloss.value_and_grad` returns. The positive class is malignant: it is the rarer one, and the
one that must not be missed. A `pos_weight` above 1 makes a missed malignant tumour dearer than a
false alarm, so recall on the held-out rows rises and precision falls; below 1 it is the reverse.

    python examples/breast_cancer.py

prints the table and writes `data/labels.npy` and `data/logits.npy`: the held-out rows, and the
logits that the unweighted model predicts for them.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from logitloss import value_and_grad

DATA = Path(__file__).parent / "data"
POS_WEIGHTS = (0.1, 1.0, 10.0, 100.0)
L2_PENALTY = 0.03

Floats = NDArray[np.float64]


class Split(NamedTuple):
    """Standardised features and labels (1 is malignant) for training and for judging."""

    train_features: Floats
    test_features: Floats
    train_labels: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]


def load() -> Split:
    features, is_benign = load_breast_cancer(return_X_y=True)
    labels = (is_benign == 0).astype(np.uint8)
    train, test, train_labels, test_labels = train_test_split(
        features, labels, test_size=0.4, stratify=labels, random_state=0
    )
    mean, scale = train.mean(axis=0), train.std(axis=0)
    return Split((train - mean) / scale, (test - mean) / scale, train_labels, test_labels)


def fit(features: Floats, labels: NDArray[np.uint8], pos_weight: float) -> Floats:
    """Return the slopes, then the intercept, that minimise the mean loss plus the penalty."""

    def objective(coefficients: Floats) -> tuple[float, Floats]:
        slopes = coefficients[:-1]
        logits = predict(features, coefficients)
        loss, by_logit = value_and_grad(labels, logits, pos_weight, reduction="mean")
        by_slope = by_logit @ features + L2_PENALTY * slopes
        return loss + L2_PENALTY / 2 * (slopes @ slopes), np.append(by_slope, by_logit.sum())

    # Tight tolerances, so that the files come out alike on every machine.
    tolerances = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 10_000}
    start = np.zeros(features.shape[1] + 1)
    result = minimize(objective, start, jac=True, method="L-BFGS-B", options=tolerances)
    return np.asarray(result.x)


def predict(features: Floats, coefficients: Floats) -> Floats:
    """Return the logits: positive where malignant is the likelier class."""
    logits: Floats = features @ coefficients[:-1] + coefficients[-1]
    return logits


def recall_and_precision(labels: NDArray[np.uint8], logits: Floats) -> tuple[float, float]:
    flagged = logits > 0
    hits = np.count_nonzero(labels[flagged])
    return hits / np.count_nonzero(labels), hits / np.count_nonzero(flagged)


def main() -> None:
    split = load()
    print("pos_weight  recall  precision")
    for pos_weight in POS_WEIGHTS:
        coefficients = fit(split.train_features, split.train_labels, pos_weight)
        logits = predict(split.test_features, coefficients)
        recall, precision = recall_and_precision(split.test_labels, logits)
        print(f"{pos_weight:10g}  {recall:6.1%}  {precision:9.1%}")
        if pos_weight == 1:
            DATA.mkdir(exist_ok=True)
            np.save(DATA / "labels.npy", split.test_labels)
            np.save(DATA / "logits.npy", logits.astype(np.float32))


if __name__ == "__main__":
    main()
