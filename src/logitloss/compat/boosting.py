"""Gradient boosting: an objective and a metric for XGBoost, LightGBM and CatBoost.

`train` of both libraries passes raw scores and a data set, which knows its labels and weights.
Their scikit-learn classes pass labels and raw scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from logitloss import _losses
from logitloss._array_likes import read

__all__ = ["Metric", "Objective"]

# Only LightGBM passes a group, which may be None.
_NOT_LIGHTGBM: Any = object()


@dataclass(eq=False)
class Objective:
    """Weighted binary cross-entropy as a custom objective.

    Pass the same object to ``xgboost.train(obj=...)``, ``XGBClassifier(objective=...)``,
    ``lightgbm.train({"objective": ...})``, ``LGBMClassifier(objective=...)`` or
    ``CatBoost(loss_function=...)``. It takes sample weights from each, and can be pickled and
    cloned. For labels 0 and 1 it grows the trees that ``scale_pos_weight`` grows.

    Parameters
    ----------
    pos_weight : array-like or float, default 1.0
        Weight of the positive term: one number, or one for each column of scores.

    See Also
    --------
    Metric : The value that it minimizes.
    logitloss.grad_and_hess : The formulas.

    Notes
    -----
    Boosting starts from a score of 0, not from the average of the labels. Pass ``base_score=0`` to
    ``xgboost.train``, and ``base_score=0.5``, the probability of a score of 0, to
    ``XGBClassifier``.

    The libraries' own metrics may mistake the raw scores for probabilities. Switch them off with
    ``disable_default_eval_metric=True`` (XGBoost) or ``metric="None"`` (LightGBM), and pass a
    `Metric`.

    CatBoost regularizes by the sum of the weights. Its ``scale_pos_weight`` changes this sum, and
    `pos_weight` does not. With ``pos_weight=1`` the trees are those of its own loss.

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
        """Return the derivatives of the negative loss, row by row, as CatBoost asks for them."""
        gradient, hessian = self(targets, approxes, weights)
        return list(zip(-gradient, -hessian, strict=True))


@dataclass(eq=False)
class Metric:
    """Weighted binary cross-entropy as an evaluation metric, for an ``Objective``.

    Pass the same object to ``xgboost.train(custom_metric=...)``,
    ``XGBClassifier(eval_metric=...)``, ``lightgbm.train(feval=...)``,
    ``LGBMClassifier().fit(eval_metric=...)`` or ``CatBoost(eval_metric=...)``. Less is better, and
    early stopping knows it.

    Parameters
    ----------
    pos_weight : array-like or float, default 1.0
        As in `Objective`.
    name : str, default "logistic_loss"
        The name of the metric in logs and results.

    See Also
    --------
    Objective : The objective that it needs. With their own objectives the libraries pass
        probabilities to a metric, and not scores.

    Notes
    -----
    The value is the sum of the weighted losses divided by the sum of the sample weights, which do
    not include `pos_weight`.

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
        # The scikit-learn classes of XGBoost call a metric by this.
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

    def evaluate(self, approxes: Any, target: Any, weight: Any) -> tuple[float, float]:
        """Return the sums of the losses and of the weights of a part of the data, for CatBoost."""
        labels, scores, weight = _arguments(target, approxes[0], weight)
        loss = _losses.weighted_cross_entropy_with_logits(
            labels, scores, self.pos_weight, weight=weight, reduction="sum"
        )
        return float(loss), float(labels.size if weight is None else weight.sum())

    def get_final_error(self, error: float, weight: float) -> float:
        """Return the metric from the sums over all parts, for CatBoost."""
        return error / weight if weight else np.nan

    def is_max_optimal(self) -> bool:
        """Return False, because less is better, for CatBoost."""
        return False


def _arguments(first: Any, second: Any, weight: Any) -> tuple[Any, Any, Any]:
    """Labels, scores and weights. A data set holds labels and weights."""
    labels, scores = first, second
    if _is_data(second):
        labels, scores, weight = second.get_label(), first, second.get_weight()
    labels, scores = _as_array("labels", labels), _as_array("scores", scores)
    if labels.size == scores.size:
        # XGBoost before 3.2 flattens labels of several columns.
        labels = labels.reshape(scores.shape)
    if weight is None:
        return labels, scores, None
    weight = _as_array("sample_weight", weight)
    if weight.ndim < scores.ndim:
        weight = weight.reshape(-1, *[1] * (scores.ndim - 1))
    # XGBoost passes an empty array if there are no weights.
    return labels, scores, weight if weight.size else None


def _is_data(value: Any) -> bool:
    return hasattr(value, "get_label")


def _as_array(argument: str, value: Any) -> Any:
    """LightGBM's data sets may hold lists and columns of tables."""
    return value if hasattr(value, "reshape") else np.asarray(read(argument, value))
