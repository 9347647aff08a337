"""
Move the weight or the threshold?
=================================

A classifier that misses too many positives can be trained with a larger ``pos_weight``, or its
threshold can be lowered. This script compares both on a synthetic problem with 2 % positives.

The lower panel shows the result: the weighted models lie on or above the curve of the unweighted
model. They do a little better because each was fitted for the place where it is used.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from breast_cancer import Floats, Split, fit, predict, recall_and_precision
from sklearn.datasets import make_classification
from sklearn.metrics import precision_recall_curve
from sklearn.model_selection import train_test_split

POS_WEIGHTS = np.logspace(0, 2, 9)


def load() -> Split:
    features, labels = make_classification(
        *(20_000, 10),
        n_informative=5,
        n_redundant=0,
        n_clusters_per_class=1,
        weights=[0.98],
        flip_y=0,
        random_state=2,
    )
    train, test, train_labels, test_labels = train_test_split(
        features, labels.astype(np.uint8), test_size=0.5, stratify=labels, random_state=0
    )
    return Split(train, test, train_labels, test_labels)


# %%
# ``fit``, ``predict`` and ``recall_and_precision`` are those of the script ``breast_cancer.py``.


def trade(split: Split) -> tuple[Floats, Floats]:
    """Return recall and precision on the test rows, for each pos_weight."""
    pairs = [
        recall_and_precision(
            split.test_labels,
            predict(split.test_features, fit(split.train_features, split.train_labels, weight)),
        )
        for weight in POS_WEIGHTS
    ]
    recall, precision = np.transpose(pairs)
    return recall, precision


# %%
# The upper panel shows recall and precision at a threshold of 0. The colour in the lower panel is
# the ``pos_weight``.


def plot(split: Split) -> None:
    recall, precision = trade(split)
    unweighted = predict(split.test_features, fit(split.train_features, split.train_labels, 1))
    figure = plt.figure(figsize=(5, 7), layout="constrained")
    upper, lower = figure.subplots(2, 1)
    upper.semilogx(POS_WEIGHTS, recall, "o-", label="recall")
    upper.semilogx(POS_WEIGHTS, precision, "s-", label="precision")
    upper.set(xlabel="pos_weight", ylim=(0, 1.02), title="Threshold 0")
    upper.legend()
    curve_precision, curve_recall, _ = precision_recall_curve(split.test_labels, unweighted)
    lower.plot(curve_recall, curve_precision, color="gray", label="pos_weight 1, every threshold")
    points = lower.scatter(
        recall, precision, c=np.log10(POS_WEIGHTS), cmap="cool", zorder=2, label="threshold 0"
    )
    lower.set(xlabel="recall", ylabel="precision", title="Precision and recall")
    lower.legend(fontsize="small")
    figure.colorbar(points, ax=lower, label="log10 of pos_weight")


if __name__ == "__main__":
    plot(load())
    plt.show()
