"""
Fewer missed tumours
====================

This script fits a logistic regression to scikit-learn's breast-cancer data. SciPy minimizes the
loss, and ``logitloss.value_and_grad`` returns the loss and its gradient in one pass.

The positive class is *malignant*. It is the rarer class, and the one that must not be missed. A
``pos_weight`` above 1 makes a missed tumour cost more than a false alarm, so recall rises and
precision falls. A ``pos_weight`` below 1 does the opposite.

Run ``python examples/breast_cancer.py``. With the name of a folder, the script also saves two files
there, ``labels.npy`` and ``logits.npy``: the labels that were held out, and the logits that the
unweighted model predicts for them. The files in ``examples/data`` were made in this way.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from logitloss import value_and_grad

POS_WEIGHTS = (0.1, 1.0, 10.0, 100.0)
L2_PENALTY = 0.03

Floats = NDArray[np.float64]

# %%
# The data
# --------
# Forty per cent of the rows are held out. Features are standardized with the mean and the standard
# deviation of the training rows.


class Split(NamedTuple):
    train_features: Floats
    test_features: Floats
    train_labels: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]


def load() -> Split:
    """Return standardized features, and labels that are 1 where the tumour is malignant."""
    features, is_benign = load_breast_cancer(return_X_y=True)
    labels = (is_benign == 0).astype(np.uint8)
    train, test, train_labels, test_labels = train_test_split(
        features, labels, test_size=0.4, stratify=labels, random_state=0
    )
    mean, scale = train.mean(axis=0), train.std(axis=0)
    return Split((train - mean) / scale, (test - mean) / scale, train_labels, test_labels)


# %%
# The model
# ---------
# The gradient with respect to the coefficients follows from the gradient with respect to the logits
# by the chain rule.


def fit(features: Floats, labels: NDArray[np.uint8], pos_weight: float) -> Floats:
    """Return the slopes, then the intercept, that minimize the mean loss plus the penalty."""

    def objective(coefficients: Floats) -> tuple[float, Floats]:
        slopes = coefficients[:-1]
        logits = predict(features, coefficients)
        loss, by_logit = value_and_grad(labels, logits, pos_weight, reduction="mean")
        by_slope = by_logit @ features + L2_PENALTY * slopes
        return loss + L2_PENALTY / 2 * (slopes @ slopes), np.append(by_slope, by_logit.sum())

    # Tight tolerances give the same files on every machine.
    tolerances = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 10_000}
    start = np.zeros(features.shape[1] + 1)
    result = minimize(objective, start, jac=True, method="L-BFGS-B", options=tolerances)
    return np.asarray(result.x)


def predict(features: Floats, coefficients: Floats) -> Floats:
    """Return the logits, which are positive where malignant is the likelier class."""
    logits: Floats = features @ coefficients[:-1] + coefficients[-1]
    return logits


def recall_and_precision(labels: NDArray[np.uint8], logits: Floats) -> tuple[float, float]:
    flagged = logits > 0
    hits = np.count_nonzero(labels[flagged])
    return hits / np.count_nonzero(labels), hits / np.count_nonzero(flagged)


# %%
# The result
# ----------


def main(folder: Path | None = None) -> list[tuple[float, float]]:
    split = load()
    shares = []
    print("pos_weight  recall  precision")
    for pos_weight in POS_WEIGHTS:
        coefficients = fit(split.train_features, split.train_labels, pos_weight)
        logits = predict(split.test_features, coefficients)
        recall, precision = recall_and_precision(split.test_labels, logits)
        print(f"{pos_weight:10g}  {recall:6.1%}  {precision:9.1%}")
        shares.append((recall, precision))
        if pos_weight == 1 and folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / "labels.npy", split.test_labels)
            np.save(folder / "logits.npy", logits.astype(np.float32))
    return shares


def plot(shares: list[tuple[float, float]]) -> None:
    axes = plt.figure(figsize=(5, 3.2)).subplots()
    axes.semilogx(POS_WEIGHTS, shares, "o-", label=["recall", "precision"])
    axes.set(xlabel="pos_weight", ylim=(0.75, 1.01), title="Tumours in the held-out rows")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.legend()


if __name__ == "__main__":
    plot(main(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
    plt.show()
