"""Give XGBoost and LightGBM a custom objective, and compare it with their own.

`logitloss.compat.boosting.Objective` returns what gradient boosting asks of an objective: the
gradient and the Hessian of the loss by raw score. For labels 0 and 1 a scalar `pos_weight` means
what both libraries call `scale_pos_weight`, so that the same trees have to come out. The custom
objective takes soft labels as well, here labels that are a little doubted.

    python examples/boosting.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from logitloss import weighted_cross_entropy_with_logits
from logitloss.compat.boosting import Objective

POS_WEIGHT = 10.0
ROUNDS = 50
# How likely a label is to be wrong.
DOUBT = 0.05

Floats = NDArray[np.float64]


def load() -> tuple[Floats, Floats, Floats, Floats]:
    """Return features for training and for judging, then labels (1 is malignant)."""
    features, is_benign = load_breast_cancer(return_X_y=True)
    labels = 1.0 - is_benign
    split: tuple[Floats, Floats, Floats, Floats] = train_test_split(
        features, labels, test_size=0.4, stratify=labels, random_state=0
    )
    return split


def with_xgboost(train: Floats, labels: Floats, test: Floats, is_custom: bool) -> Floats:
    """Return the raw scores of the test rows."""
    import xgboost

    options: dict[str, Any] = {"max_depth": 3, "learning_rate": 0.1, "base_score": 0.5}
    if is_custom:
        # The score to start from; XGBoost's own objective would take base_score for a probability.
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
    import lightgbm

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
    print("library   objective         mean loss  recall  precision")
    for name, fit in (("XGBoost", with_xgboost), ("LightGBM", with_lightgbm)):
        soft_labels = train_labels * (1 - 2 * DOUBT) + DOUBT
        for objective, labels in (
            ("scale_pos_weight", train_labels),
            ("Objective", train_labels),
            ("soft labels", soft_labels),
        ):
            try:
                scores = fit(train, labels, test, objective != "scale_pos_weight")
            except ImportError as error:
                print(f"{name:8}  skipped: {error}")
                break
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
