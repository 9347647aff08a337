"""scikit-learn: the loss as a scorer, for model selection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from logitloss import _losses
from logitloss._array_likes import read

__all__ = ["make_scorer"]

_RESPONSE_METHODS = ("decision_function", "predict_log_proba", "predict_proba")


def make_scorer(
    pos_weight: Any = 1.0,
    *,
    response_method: str | Sequence[str] | Callable[[Any, Any], Any] = _RESPONSE_METHODS,
) -> _Scorer:
    """Make a scorer of the negative weighted cross-entropy, so that greater is better.

    Parameters
    ----------
    pos_weight : array-like or float, default 1.0
        Weight of the positive term: one number, or one for each label of a multilabel problem.
    response_method : str, sequence of str or callable
        The source of the logits. Of several methods, the first that the estimator has is called. A
        function is called with the estimator and the features, and returns logits.

    Returns
    -------
    callable
        A function ``scorer(estimator, X, y, sample_weight=None)``. Pass it as ``scoring`` to
        ``cross_val_score``, ``GridSearchCV`` and the like. If metadata routing is enabled,
        ``scorer.set_score_request(sample_weight=True)`` asks for the weights.

    See Also
    --------
    logitloss.weighted_cross_entropy_with_logits : The formula.

    Notes
    -----
    The score is minus the sum of the weighted losses, divided by the sum of the sample weights or,
    without them, by the number of elements. The positive class is the second of the estimator's
    ``classes_``, whatever its name.

    ``decision_function`` must return log-odds, as it does for logistic regression and gradient
    boosting. For a support vector machine it returns a distance: pass ``"predict_proba"`` instead.

    Probabilities are used in pairs. The logit is ``log p1 - log p0`` and not
    ``log(p1 / (1 - p1))``, which loses a small ``p0`` as soon as ``p1`` rounds to 1. The scorer
    prefers ``predict_log_proba`` to ``predict_proba``, because naive Bayes and others know
    logarithms far below the smallest probability.

    A probability of exactly 0 is an infinite logit, and if it is wrong the score is minus infinity.
    If an estimator can return its raw scores, pass a function that asks for them, such as
    ``lambda model, X: model.predict(X, output_margin=True)`` for XGBoost.

    Examples
    --------
    >>> import numpy as np
    >>> from logitloss.compat.sklearn import make_scorer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import cross_val_score
    >>> X = np.linspace(-1.0, 1.0, 40)[:, None]
    >>> y = np.sin(20 * X[:, 0]) + X[:, 0] > 0
    >>> scores = cross_val_score(LogisticRegression(), X, y, scoring=make_scorer(pos_weight=3.0))
    >>> (scores < 0).all()
    np.True_
    """
    return _Scorer(pos_weight, response_method)


class _Scorer:
    """What `make_scorer` returns. scikit-learn asks the methods of this class what to pass."""

    def __init__(self, pos_weight: Any, response_method: Any) -> None:
        self.pos_weight = pos_weight
        self.response_method = response_method
        self._sample_weight_request: bool | str | None = None

    def __repr__(self) -> str:
        return f"make_scorer({self.pos_weight!r})"

    def __call__(self, estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
        labels = np.asarray(read("y", y))
        logits = _logits(estimator, X, self.response_method, is_multilabel=labels.ndim > 1)
        if labels.ndim == 1 and hasattr(estimator, "classes_"):
            labels = _is_positive(labels, estimator.classes_)
        if sample_weight is not None:
            sample_weight = np.asarray(read("sample_weight", sample_weight))
            sample_weight = sample_weight.reshape(-1, *[1] * (labels.ndim - 1))
        loss = _losses.weighted_cross_entropy_with_logits(
            labels, logits, self.pos_weight, weight=sample_weight, reduction="weighted_mean"
        )
        return -float(loss)

    def set_score_request(self, *, sample_weight: bool | str | None) -> _Scorer:
        """Ask for sample weights, or for weights that are passed under another name."""
        import sklearn

        if not sklearn.get_config()["enable_metadata_routing"]:
            # scikit-learn would drop the weights silently. Its own scorers raise the same error.
            raise RuntimeError(
                "This method is only available when metadata routing is enabled: "
                "sklearn.set_config(enable_metadata_routing=True)."
            )
        self._sample_weight_request = sample_weight
        return self

    def get_metadata_routing(self) -> Any:
        from sklearn.utils.metadata_routing import MetadataRequest

        request = MetadataRequest(owner=self)
        request.score.add_request(param="sample_weight", alias=self._sample_weight_request)
        return request


def _is_positive(labels: Any, classes: Any) -> Any:
    if not np.isin(labels, classes).all():
        raise ValueError(
            f"`y` must hold the classes that the estimator was fitted with, {list(classes)}; "
            f"got {list(np.unique(labels))}."
        )
    return labels == classes[-1]


def _logits(estimator: Any, X: Any, response_method: Any, is_multilabel: bool) -> Any:
    if callable(response_method):
        return np.asarray(response_method(estimator, X))
    methods = [response_method] if isinstance(response_method, str) else list(response_method)
    method = next((name for name in methods if hasattr(estimator, name)), None)
    if method is None:
        raise TypeError(
            f"`estimator` must have one of the methods {', '.join(methods)}; "
            f"got an object of type {type(estimator).__name__}."
        )
    # The logarithm of a probability of 0 is intended, here and in the estimator.
    with np.errstate(divide="ignore"):
        response = getattr(estimator, method)(X)
        if method == "decision_function":
            return np.asarray(response)
        take_log = np.log if method == "predict_proba" else np.asarray
        if isinstance(response, list):
            # There is a pair of columns for each label.
            return np.stack([_difference(take_log(pair)) for pair in response], axis=1)
        log_probabilities = take_log(response)
        if not is_multilabel:
            return _difference(log_probabilities)
        # Only the probability of label 1 is known.
        return log_probabilities - np.log(-np.expm1(log_probabilities))


def _difference(log_probabilities: Any) -> Any:
    """Log-odds from a column for each class, of which there must be two."""
    if log_probabilities.shape[1:] != (2,):
        raise ValueError(
            "`estimator` must give probabilities of two classes; "
            f"got an array of shape {log_probabilities.shape}."
        )
    return log_probabilities[:, 1] - log_probabilities[:, 0]
