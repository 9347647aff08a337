"""Gradient boosting: an objective and a metric for XGBoost and LightGBM, by any of their doors.

`train` of both libraries passes raw scores and its data set, their scikit-learn classes pass labels
and raw scores; the data set knows its labels and weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from logitloss import _losses
from logitloss._array_likes import read

__all__ = ["Metric", "Objective"]

# Only LightGBM passes a group, if only None.
_NOT_LIGHTGBM: Any = object()


@dataclass(eq=False)
class Objective:
    """Weighted binary cross-entropy as a custom objective.

    The same object goes to ``xgboost.train(obj=...)``, ``XGBClassifier(objective=...)``,
    ``lightgbm.train({"objective": ...})``, ``LGBMClassifier(objective=...)`` and
    ``CatBoost(loss_function=...)``. It takes sample weights from each, can be pickled and cloned,
    and for labels 0 and 1 grows the trees that ``scale_pos_weight`` grows.

    Parameters
    ----------
    pos_weight : array-like or float, default 1.0
        Weight of the positive term: one number or, where scores have several columns, one for each.

    See Also
    --------
    Metric : What it minimizes.
    logitloss.grad_and_hess : Has the formulas.

    Notes
    -----
    Boosting starts from a score of 0, and not from the average of the labels:
    ``xgboost.train`` has to be told so, with ``base_score=0``, and ``XGBClassifier`` with
    ``base_score=0.5``, which is the probability of a score of 0.

    The libraries' own metrics may take the raw scores for probabilities. Turn them off, with
    ``disable_default_eval_metric=True`` (XGBoost) or ``metric="None"`` (LightGBM), and pass a
    `Metric`.

    CatBoost regularizes by the sum of the weights, which its ``scale_pos_weight`` changes and
    `pos_weight` does not; with ``pos_weight=1`` the trees are those of its own loss.

    Examples
    --------
    >>> import numpy as np
    >>> from logitloss.compat.boosting import Objective
    >>> objective = Objective(pos_weight=3.0)
    >>> objective
    Objective(pos_weight=3.0)
    >>> gradient, hessian = objective(np.array([1.0, 0.0]), np.array([0.0, 0.0]))
    >>> gradient, hessian
    (array([-1.5,  0.5]), array([0.75, 0.25]))
    """

    pos_weight: Any = 1.0

    def __call__(self, first: Any, second: Any, sample_weight: Any = None) -> tuple[Any, Any]:
        """Return gradient and Hessian for labels and scores, or for scores and a data set."""
        labels, scores, weight = _arguments(first, second, sample_weight)
        return _losses.grad_and_hess(labels, scores, self.pos_weight, weight=weight)

    def calc_ders_range(self, approxes: Any, targets: Any, weights: Any) -> list[tuple[Any, Any]]:
        """Return what CatBoost asks for: the derivatives of the negative loss, row by row."""
        gradient, hessian = self(targets, approxes, weights)
        return list(zip(-gradient, -hessian, strict=True))


@dataclass(eq=False)
class Metric:
    """Weighted binary cross-entropy as an evaluation metric, beside an ``Objective``.

    The same object goes to ``xgboost.train(custom_metric=...)``,
    ``XGBClassifier(eval_metric=...)``, ``lightgbm.train(feval=...)`` and
    ``LGBMClassifier().fit(eval_metric=...)``. Less is better, and early stopping knows it.

    Parameters
    ----------
    pos_weight : array-like or float, default 1.0
        As in `Objective`.
    name : str, default "logistic_loss"
        What the metric is called in logs and results.

    See Also
    --------
    Objective : What has to be the objective, because behind their own the libraries pass
        probabilities to a metric, and not scores.

    Notes
    -----
    The value is the sum of the weighted losses over the sum of the sample weights; ``pos_weight``
    is not among these.

    Examples
    --------
    >>> import numpy as np
    >>> from logitloss.compat.boosting import Metric
    >>> metric = Metric(pos_weight=3.0)
    >>> round(metric(np.array([1.0, 0.0]), np.array([0.0, 0.0])), 4)
    1.3863
    """

    pos_weight: Any = 1.0
    name: str = "logistic_loss"

    @property
    def __name__(self) -> str:
        # By which XGBoost's scikit-learn classes call a metric.
        return self.name

    def __call__(
        self, first: Any, second: Any, sample_weight: Any = None, group: Any = _NOT_LIGHTGBM
    ) -> Any:
        """Return the value in the form that the caller expects.

        This is the value alone for XGBoost's scikit-learn classes, ``(name, value)`` for its
        ``train``, and ``(name, value, is_higher_better)`` for LightGBM.
        """
        labels, scores, weight = _arguments(first, second, sample_weight)
        value = float(
            _losses.weighted_cross_entropy_with_logits(
                labels, scores, self.pos_weight, weight=weight, reduction="weighted_mean"
            )
        )
        if group is not _NOT_LIGHTGBM or hasattr(second, "get_init_score"):
            return self.name, value, False
        return (self.name, value) if _is_data(second) else value


def _arguments(first: Any, second: Any, weight: Any) -> tuple[Any, Any, Any]:
    """Labels, scores and weights, of which a data set has the first and the last."""
    labels, scores = first, second
    if _is_data(second):
        labels, scores, weight = second.get_label(), first, second.get_weight()
    labels, scores = _as_array("labels", labels), _as_array("scores", scores)
    if labels.size == scores.size:
        # XGBoost before 3.2 has labels of several columns in one.
        labels = labels.reshape(scores.shape)
    if weight is None:
        return labels, scores, None
    weight = _as_array("sample_weight", weight)
    if weight.ndim < scores.ndim:
        weight = weight.reshape(-1, *[1] * (scores.ndim - 1))
    # XGBoost has an empty array of weights for none.
    return labels, scores, weight if weight.size else None


def _is_data(value: Any) -> bool:
    return hasattr(value, "get_label")


def _as_array(argument: str, value: Any) -> Any:
    """LightGBM's data sets may hold lists and columns of tables."""
    return value if hasattr(value, "reshape") else np.asarray(read(argument, value))
