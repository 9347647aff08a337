"""
Gradient boosting with your own objective
=========================================

``logitloss.compat.boosting.Objective`` gives XGBoost and LightGBM the gradient and the Hessian of
the loss. For labels 0 and 1, ``Objective(q)`` grows the same trees as their own
``scale_pos_weight=q``. It also takes what theirs do not: here soft labels, for data in which a
few labels are wrong.

``logitloss.compat.boosting.Metric`` is the loss itself, to watch during training and to stop early.
"""

from __future__ import annotations

from typing import Any

import lightgbm
import matplotlib.pyplot as plt
import numpy as np
import xgboost
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from logitloss import weighted_cross_entropy_with_logits
from logitloss.compat.boosting import Metric, Objective

POS_WEIGHT = 10.0
ROUNDS = 50
# The share of labels that are wrong.
DOUBT = 0.05

Floats = NDArray[np.float64]


def load() -> tuple[Floats, Floats, Floats, Floats]:
    """Return features to train and to test with, then their labels (1 is malignant)."""
    features, is_benign = load_breast_cancer(return_X_y=True)
    labels = 1.0 - is_benign
    split: tuple[Floats, Floats, Floats, Floats] = train_test_split(
        features, labels, test_size=0.4, stratify=labels, random_state=0
    )
    return split


# %%
# The same trees
# --------------
# Boosting with a custom objective starts from a score of 0. The libraries' own objectives have to
# be told to start there, too.


def with_xgboost(train: Floats, labels: Floats, test: Floats, is_custom: bool) -> Floats:
    """Return the raw scores of the test rows."""
    options: dict[str, Any] = {"max_depth": 3, "learning_rate": 0.1, "base_score": 0.5}
    if is_custom:
        # With a custom objective base_score is a raw score, otherwise it is a probability.
        options |= {"disable_default_eval_metric": True, "base_score": 0.0}
    else:
        options |= {"objective": "binary:logistic", "scale_pos_weight": POS_WEIGHT}
    booster = xgboost.train(
        options,
        xgboost.DMatrix(train, labels),
        ROUNDS,
        obj=Objective(POS_WEIGHT) if is_custom else None,
    )
    scores: Floats = booster.predict(xgboost.DMatrix(test), output_margin=True)
    return scores


def with_lightgbm(train: Floats, labels: Floats, test: Floats, is_custom: bool) -> Floats:
    """Return the raw scores of the test rows."""
    options: dict[str, Any] = {"max_depth": 3, "learning_rate": 0.1, "verbosity": -1}
    if is_custom:
        options["objective"] = Objective(POS_WEIGHT)
    else:
        options |= {
            "objective": "binary",
            "scale_pos_weight": POS_WEIGHT,
            "boost_from_average": False,
        }
    booster = lightgbm.train(options, lightgbm.Dataset(train, labels), ROUNDS)
    scores = booster.predict(test, raw_score=True)
    return np.asarray(scores)


def main() -> None:
    train, test, train_labels, test_labels = load()
    soft_labels = train_labels * (1 - 2 * DOUBT) + DOUBT
    print("library   objective         mean loss  recall  precision")
    for name, fit in (("XGBoost", with_xgboost), ("LightGBM", with_lightgbm)):
        for objective, labels in (
            ("scale_pos_weight", train_labels),
            ("Objective", train_labels),
            ("soft labels", soft_labels),
        ):
            scores = fit(train, labels, test, objective != "scale_pos_weight")
            loss = weighted_cross_entropy_with_logits(
                test_labels, scores, POS_WEIGHT, reduction="mean"
            )
            flagged = scores > 0
            hits = np.count_nonzero(test_labels[flagged])
            print(
                f"{name:8}  {objective:16}  {float(loss):9.6f}"
                f"  {hits / np.count_nonzero(test_labels):6.1%}"
                f"  {hits / np.count_nonzero(flagged):9.1%}"
            )


if __name__ == "__main__":
    main()

# %%
# Stop early
# ----------
# LightGBM stops once the metric of the validation rows has not improved for 20 rounds.


def watch(pos_weight: float) -> tuple[list[float], int]:
    """Return the loss of the validation rows after each round, and the best round."""
    train, test, labels, test_labels = load()
    data = lightgbm.Dataset(train, labels)
    history: dict[str, Any] = {}
    booster = lightgbm.train(
        {"objective": Objective(pos_weight), "metric": "None", "verbosity": -1},
        data,
        num_boost_round=500,
        valid_sets=[lightgbm.Dataset(test, test_labels, reference=data)],
        valid_names=["validation"],
        feval=Metric(pos_weight),
        callbacks=[
            lightgbm.early_stopping(20, verbose=False),
            lightgbm.record_evaluation(history),
        ],
    )
    (losses,) = history["validation"].values()
    return losses, booster.best_iteration


def plot() -> None:
    axes = plt.figure(figsize=(5, 3.2)).subplots()
    for pos_weight in (1.0, POS_WEIGHT):
        losses, best = watch(pos_weight)
        (line,) = axes.plot(range(1, len(losses) + 1), losses, label=f"pos_weight {pos_weight:g}")
        axes.plot(best, losses[best - 1], "o", color=line.get_color())
    axes.set(xlabel="round", ylabel="loss", title="Validation loss and the best round")
    axes.legend()


if __name__ == "__main__":
    plot()
    plt.show()
