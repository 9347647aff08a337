"""The loss as a scorer in scikit-learn's model selection."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn")

from sklearn.calibration import CalibratedClassifierCV  # noqa: E402
from sklearn.ensemble import (  # noqa: E402
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LinearRegression, LogisticRegression  # noqa: E402
from sklearn.metrics import get_scorer, log_loss  # noqa: E402
from sklearn.model_selection import (  # noqa: E402
    GridSearchCV,
    StratifiedKFold,
    cross_val_score,
)
from sklearn.multiclass import OneVsRestClassifier  # noqa: E402
from sklearn.naive_bayes import GaussianNB  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.svm import SVC, LinearSVC  # noqa: E402

from logitloss import weighted_cross_entropy_with_logits as weighted  # noqa: E402
from logitloss.compat.sklearn import make_scorer  # noqa: E402

rng = np.random.default_rng(0)
LABELS = (rng.random(300) < 0.3).astype(int)
FEATURES = rng.normal(LABELS[:, None], 1.0, (300, 3))
WEIGHTS = rng.random(300)

CLASSIFIERS = [
    LogisticRegression(),
    make_pipeline(StandardScaler(), LogisticRegression()),
    GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}),
    HistGradientBoostingClassifier(max_iter=5),
    GradientBoostingClassifier(n_estimators=5, random_state=0),
    GaussianNB(),
    KNeighborsClassifier(30),
    RandomForestClassifier(n_estimators=5, max_depth=3, random_state=0),
    CalibratedClassifierCV(LinearSVC()),
]
classifiers = pytest.mark.parametrize("model", CLASSIFIERS, ids=lambda m: type(m).__name__)


def mean(labels, logits, pos_weight=3.0, weight=None) -> float:
    return float(weighted(labels, logits, pos_weight, weight=weight, reduction="weighted_mean"))


@classifiers
@pytest.mark.parametrize("weight", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_log_loss_where_the_sigmoid_has_not_saturated(model, weight) -> None:
    model = sklearn.base.clone(model).fit(FEATURES, LABELS)
    expected = log_loss(LABELS, model.predict_proba(FEATURES), sample_weight=weight)
    got = make_scorer()(model, FEATURES, LABELS, sample_weight=weight)
    assert got == pytest.approx(-expected, rel=1e-12)
    # And with a weight on positives, from the probabilities' own odds.
    with np.errstate(divide="ignore"):
        odds = np.log(model.predict_proba(FEATURES)).dot([-1, 1])
    got = make_scorer(3.0)(model, FEATURES, LABELS, weight)
    assert got == pytest.approx(-mean(LABELS, odds, weight=weight), rel=1e-12)


@pytest.mark.parametrize("classes", [["no", "yes"], [-1, 1], [False, True], [5, 7]])
@pytest.mark.parametrize("model", [LogisticRegression(), GaussianNB()])
def test_the_second_class_is_the_positive_one(model, classes) -> None:
    named = np.array(classes)[LABELS]
    expected = make_scorer(3.0)(model.fit(FEATURES, LABELS), FEATURES, LABELS)
    assert make_scorer(3.0)(model.fit(FEATURES, named), FEATURES, named) == expected
    pandas = pytest.importorskip("pandas")
    assert make_scorer(3.0)(model, FEATURES, pandas.Series(named)) == expected


def test_tails_of_probabilities() -> None:
    """Naive Bayes is sure by e**-1000 and more; log_loss clips that to e**-36."""
    model = GaussianNB().fit(FEATURES, LABELS)
    far = np.array([[600.0] * 3, [-600.0] * 3])
    logits = model.predict_log_proba(far).dot([-1, 1])
    assert np.abs(logits).min() > 800 and model.predict_proba(far).min() == 0
    assert make_scorer(3.0)(model, far, np.array([0, 1])) == -mean([0, 1], logits)
    # Both columns of probabilities hold out for longer than the difference of one from 1.
    near = np.array([[20.0] * 3, [-20.0] * 3])
    probabilities = model.predict_proba(near)
    assert (probabilities.max(axis=1) == 1).any() and probabilities.min() > 0
    scorer = make_scorer(3.0, response_method="predict_proba")
    logits = model.predict_log_proba(near).dot([-1, 1])
    assert scorer(model, near, np.array([0, 1])) == pytest.approx(-mean([0, 1], logits), rel=1e-12)


def test_certain_probabilities_are_infinite_logits() -> None:
    model = RandomForestClassifier(n_estimators=2, random_state=0).fit(FEATURES, LABELS)
    sure = model.predict_proba(FEATURES).max(axis=1) == 1
    features, predicted = FEATURES[sure], model.predict(FEATURES[sure])
    assert make_scorer()(model, features, predicted) == 0
    assert make_scorer()(model, features, 1 - predicted) == -np.inf


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_cross_val_score(n_jobs) -> None:
    model, folds = LogisticRegression(), StratifiedKFold(3)
    got = cross_val_score(
        model, FEATURES, LABELS, scoring=make_scorer(3.0), cv=folds, n_jobs=n_jobs
    )
    expected = [
        -mean(LABELS[test], model.fit(FEATURES[train], LABELS[train]).decision_function(x))
        for train, test in folds.split(FEATURES, LABELS)
        for x in [FEATURES[test]]
    ]
    np.testing.assert_array_equal(got, expected)


def test_grid_search_of_one_scorer_and_of_several() -> None:
    grid = {"C": [1e-4, 1.0]}
    one = GridSearchCV(LogisticRegression(), grid, scoring=make_scorer(3.0))
    assert one.fit(FEATURES, LABELS).best_params_ == {"C": 1.0}
    several = GridSearchCV(
        LogisticRegression(),
        grid,
        scoring={"loss": make_scorer(3.0), "accuracy": "accuracy"},
        refit="loss",
    ).fit(FEATURES, LABELS)
    np.testing.assert_array_equal(
        several.cv_results_["mean_test_loss"], one.cv_results_["mean_test_score"]
    )


def test_weights_are_routed() -> None:
    folds = StratifiedKFold(3)
    with sklearn.config_context(enable_metadata_routing=True):
        model = LogisticRegression().set_fit_request(sample_weight=True)

        def scores(scorer, **params):
            return cross_val_score(model, FEATURES, LABELS, scoring=scorer, cv=folds, params=params)

        got = scores(make_scorer(3.0).set_score_request(sample_weight=True), sample_weight=WEIGHTS)
        expected = []
        for train, test in folds.split(FEATURES, LABELS):
            model.fit(FEATURES[train], LABELS[train], sample_weight=WEIGHTS[train])
            logits = model.decision_function(FEATURES[test])
            expected.append(-mean(LABELS[test], logits, weight=WEIGHTS[test]))
        np.testing.assert_array_equal(got, expected)

        renamed = make_scorer(3.0).set_score_request(sample_weight="mine")
        np.testing.assert_array_equal(
            scores(renamed, sample_weight=WEIGHTS, mine=WEIGHTS), expected
        )
        without = make_scorer(3.0).set_score_request(sample_weight=False)
        assert (scores(without, sample_weight=WEIGHTS) != expected).all()
        # What nobody has decided is an error of scikit-learn's.
        with pytest.raises(ValueError, match="explicitly set as requested or not requested"):
            scores(make_scorer(3.0), sample_weight=WEIGHTS)

        search = GridSearchCV(
            model,
            {"C": [1.0]},
            cv=folds,
            refit=False,
            scoring={
                "loss": make_scorer(3.0).set_score_request(sample_weight=True),
                "accuracy": get_scorer("accuracy").set_score_request(sample_weight=False),
            },
        ).fit(FEATURES, LABELS, sample_weight=WEIGHTS)
        assert search.cv_results_["mean_test_loss"] == pytest.approx(np.mean(expected), rel=1e-14)


def test_a_request_needs_routing_to_be_enabled() -> None:
    with pytest.raises(RuntimeError, match="only available when metadata routing is enabled"):
        make_scorer().set_score_request(sample_weight=True)
    with pytest.raises(RuntimeError, match="enabled"):
        get_scorer("neg_log_loss").set_score_request(sample_weight=True)


@pytest.mark.parametrize(
    "model",
    [
        RandomForestClassifier(n_estimators=5, max_depth=3, random_state=0),
        KNeighborsClassifier(30),
        OneVsRestClassifier(LogisticRegression()),
        OneVsRestClassifier(GaussianNB()),
    ],
    ids=["pairs", "pairs of neighbors", "logits", "probabilities of 1"],
)
def test_multilabel(model) -> None:
    several = np.stack([LABELS, 1 - LABELS, FEATURES[:, 0] > 1], axis=1).astype(int)
    model.fit(FEATURES, several)
    p = model.predict_proba(FEATURES)
    p = np.stack([pair[:, 1] for pair in p], axis=1) if isinstance(p, list) else p
    with np.errstate(divide="ignore"):
        logits = np.log(p / (1 - p))
    pos_weight = [1.0, 2.0, 3.0]
    for weight in (None, WEIGHTS):
        got = make_scorer(pos_weight)(model, FEATURES, several, weight)
        column = None if weight is None else weight[:, None]
        assert got == pytest.approx(-mean(several, logits, pos_weight, column), rel=1e-9)


def test_logits_from_a_function() -> None:
    """Probabilities of float32 are 1 from a score of 17 on; XGBoost's own scores are not lost."""
    xgboost = pytest.importorskip("xgboost")
    model = xgboost.XGBClassifier(n_estimators=300, learning_rate=1.0, reg_lambda=0.0)
    model.fit(FEATURES, LABELS)
    scores = model.predict(FEATURES, output_margin=True)

    def margins(model, features):
        return model.predict(features, output_margin=True)

    scorer = make_scorer(3.0, response_method=margins)
    assert scorer(model, FEATURES, LABELS) == -mean(LABELS, scores)
    # A regressor has no classes: labels are taken as they come.
    regressor = LinearRegression().fit(FEATURES, LABELS)
    scorer = make_scorer(3.0, response_method=lambda model, X: model.predict(X))
    assert scorer(regressor, FEATURES, LABELS / 2) == -mean(LABELS / 2, regressor.predict(FEATURES))


def test_a_distance_is_no_logit() -> None:
    model = CalibratedClassifierCV(SVC(), ensemble=False).fit(FEATURES, LABELS)
    probabilities = model.predict_proba(FEATURES)
    got = make_scorer(response_method="predict_proba")(model, FEATURES, LABELS)
    assert got == pytest.approx(-log_loss(LABELS, probabilities), rel=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    binary = GaussianNB().fit(FEATURES, LABELS)
    with pytest.raises(TypeError, match="`estimator` must have one of the methods decision_func"):
        make_scorer()(LinearRegression().fit(FEATURES, LABELS), FEATURES, LABELS)
    for unknown in (np.where(LABELS == 1, np.nan, 0.0), LABELS / 2, LABELS + 1):
        with pytest.raises(ValueError, match="`y` must hold the classes"):
            make_scorer()(binary, FEATURES, unknown)
    with pytest.raises(TypeError, match="`y` must not be a masked array"):
        make_scorer()(binary, FEATURES, np.ma.array(LABELS, mask=LABELS))
    three = np.arange(300) % 3
    with pytest.raises(ValueError, match=r"two classes; got an array of shape \(300, 3\)"):
        make_scorer()(GaussianNB().fit(FEATURES, three), FEATURES, three)
    with pytest.raises(ValueError, match="must have the same shape"):
        make_scorer()(LogisticRegression().fit(FEATURES, three), FEATURES, three)


def test_copies_and_repr() -> None:
    model = LogisticRegression().fit(FEATURES, LABELS)
    scorer = make_scorer([3.0])
    assert repr(scorer) == "make_scorer([3.0])"
    copied = pickle.loads(pickle.dumps(scorer))
    assert copied(model, FEATURES, LABELS) == scorer(model, FEATURES, LABELS)
