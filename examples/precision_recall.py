"""Plot precision and recall against pos_weight.

A logistic regression is fitted to a synthetic problem with 2 % positives, for one `pos_weight`
after the other. A larger one buys recall with precision. The right panel compares that with moving
the threshold of the unweighted model: the weighted ones do a little better, because they were
fitted where they are used.

    python examples/precision_recall.py [FILE.png]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from breast_cancer import Floats, Split, fit, predict, recall_and_precision
from matplotlib.figure import Figure
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


def plot(split: Split, path: Path) -> None:
    recall, precision = trade(split)
    unweighted = predict(split.test_features, fit(split.train_features, split.train_labels, 1))
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.semilogx(POS_WEIGHTS, recall, "o-", label="recall")
    left.semilogx(POS_WEIGHTS, precision, "s-", label="precision")
    left.set(xlabel="pos_weight", ylim=(0, 1.02), title="At threshold 0")
    left.legend()
    curve_precision, curve_recall, _ = precision_recall_curve(split.test_labels, unweighted)
    right.plot(curve_recall, curve_precision, color="gray", label="pos_weight 1, every threshold")
    points = right.scatter(
        *(recall, precision), c=np.log10(POS_WEIGHTS), zorder=2, label="threshold 0"
    )
    right.set(xlabel="recall", ylabel="precision", title="Precision and recall")
    right.legend()
    figure.colorbar(points, ax=right, label="log10 of pos_weight")
    figure.savefig(path, dpi=150)


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "precision_recall.png")
    plot(load(), path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
