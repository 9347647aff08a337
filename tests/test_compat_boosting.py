"""One objective and one metric at every door of XGBoost, LightGBM and CatBoost."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest

from logitloss import grad_and_hess
from logitloss import weighted_cross_entropy_with_logits as weighted
from logitloss.compat.boosting import Metric, Objective

Q = 9.0
ROUNDS = 20
QUIET = {"verbosity": -1, "deterministic": True, "num_threads": 1}

rng = np.random.default_rng(0)
labels = (rng.random(1000) < 0.1).astype(float)
features = rng.normal(labels[:, None], 1.0, (1000, 3))
sample_weight = rng.random(1000) + 0.1
TRAIN, TEST = slice(300, None), slice(300)

is_weighted = pytest.mark.parametrize("is_weighted", [False, True])


def part(rows: slice, is_weighted: bool) -> tuple[Any, Any, Any]:
    return features[rows], labels[rows], sample_weight[rows] if is_weighted else None


def mean(scores, rows: slice, is_weighted: bool) -> float:
    _, z, w = part(rows, is_weighted)
    return float(weighted(z, scores.astype(float), Q, weight=w, reduction="weighted_mean"))


def assert_margins(got, expected, tolerance: float) -> None:
    assert np.ptp(expected) > 3
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


@is_weighted
def test_xgboost_train(is_weighted: bool) -> None:
    xgboost = pytest.importorskip("xgboost")
    train, test = (
        xgboost.DMatrix(x, z, weight=w)
        for x, z, w in (part(TRAIN, is_weighted), part(TEST, is_weighted))
    )
    own = xgboost.train(
        {"objective": "binary:logistic", "scale_pos_weight": Q, "base_score": 0.5}, train, ROUNDS
    )
    history: dict[str, Any] = {}
    custom = xgboost.train(
        {"base_score": 0.0, "disable_default_eval_metric": True},
        train,
        ROUNDS,
        obj=Objective(Q),
        custom_metric=Metric(Q),
        evals=[(test, "test")],
        evals_result=history,
        verbose_eval=False,
    )
    assert_margins(custom.predict(test), own.predict(test, output_margin=True), 5e-6)
    last = history["test"]["logistic_loss"][-1]
    assert last == pytest.approx(mean(custom.predict(test), TEST, is_weighted), rel=1e-5)


@is_weighted
def test_xgboost_classifier(is_weighted: bool) -> None:
    xgboost = pytest.importorskip("xgboost")
    pytest.importorskip("sklearn")
    x, z, w = part(TRAIN, is_weighted)
    test_x, test_z, test_w = part(TEST, is_weighted)
    own = xgboost.XGBClassifier(n_estimators=ROUNDS, scale_pos_weight=Q, base_score=0.5)
    custom = xgboost.XGBClassifier(
        n_estimators=ROUNDS, objective=Objective(Q), eval_metric=Metric(Q), base_score=0.5
    )
    own.fit(x, z, sample_weight=w)
    custom.fit(
        x,
        z,
        sample_weight=w,
        eval_set=[(test_x, test_z)],
        sample_weight_eval_set=[test_w] if is_weighted else None,
        verbose=False,
    )
    scores = custom.predict(test_x, output_margin=True)
    assert_margins(scores, own.predict(test_x, output_margin=True), 5e-6)
    np.testing.assert_allclose(
        custom.predict_proba(test_x), own.predict_proba(test_x), rtol=0, atol=2e-6
    )
    last = custom.evals_result()["validation_0"]["logistic_loss"][-1]
    assert last == pytest.approx(mean(scores, TEST, is_weighted), rel=1e-5)


@pytest.mark.parametrize("strategy", ["one_output_per_tree", "multi_output_tree"])
def test_xgboost_multilabel(strategy: str) -> None:
    """Weights come one for each row."""
    xgboost = pytest.importorskip("xgboost")
    several = np.stack([labels, 1 - labels, np.arange(1000) % 3 == 0], axis=1).astype(float)
    data = xgboost.DMatrix(features, several, weight=sample_weight)
    common = {"multi_strategy": strategy, "disable_default_eval_metric": True}
    own = xgboost.train({"objective": "binary:logistic", "base_score": 0.5, **common}, data, 5)
    history: dict[str, Any] = {}
    custom = xgboost.train(
        {"base_score": 0.0, **common},
        data,
        5,
        obj=Objective([1.0, 1.0, 1.0]),
        custom_metric=Metric([1.0, 2.0, 3.0]),
        evals=[(data, "train")],
        evals_result=history,
        verbose_eval=False,
    )
    scores = custom.predict(data)
    np.testing.assert_allclose(scores, own.predict(data, output_margin=True), rtol=0, atol=5e-6)
    expected = weighted(
        several, scores, [1.0, 2.0, 3.0], weight=sample_weight[:, None], reduction="weighted_mean"
    )
    assert history["train"]["logistic_loss"][-1] == pytest.approx(float(expected), rel=1e-5)


@is_weighted
def test_lightgbm_train(is_weighted: bool) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    x, z, w = part(TRAIN, is_weighted)
    test_x, test_z, test_w = part(TEST, is_weighted)
    own = lightgbm.train(
        {"objective": "binary", "scale_pos_weight": Q, "boost_from_average": False, **QUIET},
        lightgbm.Dataset(x, z, weight=w),
        ROUNDS,
    )
    train = lightgbm.Dataset(x, z, weight=w)
    history: dict[str, Any] = {}
    custom = lightgbm.train(
        {"objective": Objective(Q), "metric": "None", **QUIET},
        train,
        ROUNDS,
        valid_sets=[lightgbm.Dataset(test_x, test_z, weight=test_w, reference=train)],
        feval=Metric(Q),
        callbacks=[lightgbm.record_evaluation(history)],
    )
    scores = custom.predict(test_x)
    assert_margins(scores, own.predict(test_x, raw_score=True), 1e-6)
    assert list(history["valid_0"]) == ["logistic_loss"]
    last = history["valid_0"]["logistic_loss"][-1]
    # LightGBM holds weights and labels as float32.
    assert last == pytest.approx(mean(scores, TEST, is_weighted), rel=1e-6)


# Its other name for it is younger than the versions in use.
@pytest.mark.filterwarnings("ignore:The argument 'eval_set' is deprecated")
@is_weighted
def test_lightgbm_classifier(is_weighted: bool) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    pytest.importorskip("sklearn")
    x, z, w = part(TRAIN, is_weighted)
    test_x, test_z, test_w = part(TEST, is_weighted)
    own = lightgbm.LGBMClassifier(
        n_estimators=ROUNDS, scale_pos_weight=Q, boost_from_average=False, **QUIET
    )
    custom = lightgbm.LGBMClassifier(
        n_estimators=ROUNDS, objective=Objective(Q), metric="None", **QUIET
    )
    own.fit(x, z, sample_weight=w)
    custom.fit(
        x,
        z,
        sample_weight=w,
        eval_set=[(test_x, test_z)],
        eval_sample_weight=[test_w] if is_weighted else None,
        eval_metric=Metric(Q),
    )
    scores = custom.predict(test_x, raw_score=True)
    assert_margins(scores, own.predict(test_x, raw_score=True), 1e-6)
    (last,) = custom.best_score_["valid_0"].values()
    assert last == pytest.approx(mean(scores, TEST, is_weighted), rel=1e-6)


@pytest.mark.parametrize("container", [list, "Series"])
def test_lightgbm_holds_what_it_was_given(container) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    if container == "Series":
        container = pytest.importorskip("pandas").Series
    params = {"objective": Objective(Q), **QUIET}
    x, z, w = part(TRAIN, True)
    got = lightgbm.train(params, lightgbm.Dataset(x, container(z), weight=container(w)), 3)
    expected = lightgbm.train(params, lightgbm.Dataset(x, z, weight=w), 3)
    np.testing.assert_array_equal(got.predict(x), expected.predict(x))


def test_lightgbm_from_the_average() -> None:
    """What its own objective starts from, a custom one is told as `init_score`."""
    lightgbm = pytest.importorskip("lightgbm")
    x, z, _ = part(TRAIN, False)
    average = np.log(z.mean() / (1 - z.mean()))
    start = np.full(z.shape, average)
    own = lightgbm.train({"objective": "binary", **QUIET}, lightgbm.Dataset(x, z), ROUNDS)
    custom = lightgbm.train(
        {"objective": Objective(), **QUIET}, lightgbm.Dataset(x, z, init_score=start), ROUNDS
    )
    assert_margins(average + custom.predict(x), own.predict(x, raw_score=True), 1e-6)


def test_early_stopping_takes_the_least() -> None:
    xgboost, lightgbm = pytest.importorskip("xgboost"), pytest.importorskip("lightgbm")
    x, z, _ = part(TRAIN, False)
    test_x, test_z, _ = part(TEST, False)
    history: dict[str, Any] = {}
    booster = xgboost.train(
        {"base_score": 0.0, "disable_default_eval_metric": True},
        xgboost.DMatrix(x, z),
        100,
        obj=Objective(Q),
        custom_metric=Metric(Q),
        evals=[(xgboost.DMatrix(test_x, test_z), "test")],
        evals_result=history,
        early_stopping_rounds=5,
        verbose_eval=False,
    )
    losses = history["test"]["logistic_loss"]
    assert 0 < booster.best_iteration == np.argmin(losses) and len(losses) < 100
    train = lightgbm.Dataset(x, z)
    booster = lightgbm.train(
        {"objective": Objective(Q), "metric": "None", **QUIET},
        train,
        200,
        valid_sets=[lightgbm.Dataset(test_x, test_z, reference=train)],
        feval=Metric(Q),
        callbacks=[
            lightgbm.record_evaluation(history),
            lightgbm.early_stopping(5, verbose=False),
        ],
    )
    losses = history["valid_0"]["logistic_loss"]
    assert 1 < booster.best_iteration == np.argmin(losses) + 1 and len(losses) < 200


def test_cross_validation_of_both() -> None:
    xgboost, lightgbm = pytest.importorskip("xgboost"), pytest.importorskip("lightgbm")
    pytest.importorskip("sklearn")
    params = {"objective": Objective(Q), "metric": "None", **QUIET}
    table = lightgbm.cv(params, lightgbm.Dataset(features, labels), 3, feval=Metric(Q, "mine"))
    assert table["valid mine-mean"][-1] < table["valid mine-mean"][0]
    table = xgboost.cv(
        {"base_score": 0.0, "disable_default_eval_metric": True},
        xgboost.DMatrix(features, labels),
        3,
        obj=Objective(Q),
        custom_metric=Metric(Q, "mine"),
        as_pandas=False,
    )
    assert table["test-mine-mean"][-1] < table["test-mine-mean"][0]


@is_weighted
def test_catboost(is_weighted: bool) -> None:
    catboost = pytest.importorskip("catboost")
    options = {
        "iterations": ROUNDS,
        "eval_metric": "Logloss",
        "verbose": 0,
        "allow_writing_files": False,
        "leaf_estimation_method": "Newton",
        "leaf_estimation_iterations": 1,
        "boost_from_average": False,
        "boosting_type": "Plain",
        "bootstrap_type": "No",
        "random_strength": 0,
        "learning_rate": 0.5,
        "thread_count": 1,
    }
    x, z, w = part(TRAIN, is_weighted)
    own = catboost.CatBoostClassifier(loss_function="Logloss", **options)
    custom = catboost.CatBoostClassifier(loss_function=Objective(), **options)
    got, expected = (
        model.fit(x, z, sample_weight=w).predict(x, prediction_type="RawFormulaVal")
        for model in (custom, own)
    )
    assert_margins(got, expected, 1e-9)
    # Its scale_pos_weight changes the regularization as well, so that only a difference shows.
    weighted_model = catboost.CatBoostClassifier(loss_function=Objective(Q), **options)
    raised = weighted_model.fit(x, z, sample_weight=w).predict(x, prediction_type="RawFormulaVal")
    assert raised.mean() > got.mean() + 0.5


def test_catboost_signs_and_weights() -> None:
    z, x, w = labels[:5], features[:5, 0], sample_weight[:5]
    pairs = np.array(Objective(Q).calc_ders_range(list(x), list(z), list(w)))
    np.testing.assert_array_equal(pairs.T, np.negative(grad_and_hess(z, x, Q, weight=w)))
    unweighted = np.array(Objective(Q).calc_ders_range(list(x), list(z), None))
    np.testing.assert_array_equal(unweighted.T, np.negative(grad_and_hess(z, x, Q)))


@pytest.mark.parametrize("is_weighted", [False, True])
def test_catboost_metric(is_weighted: bool) -> None:
    catboost = pytest.importorskip("catboost")
    (x, z, w), (held_x, held_z, held_w) = part(TRAIN, is_weighted), part(TEST, is_weighted)
    model = catboost.CatBoostClassifier(
        loss_function=Objective(Q),
        eval_metric=Metric(Q),
        iterations=200,
        learning_rate=0.9,
        early_stopping_rounds=3,
        verbose=0,
        allow_writing_files=False,
        thread_count=2,
    )
    model.fit(x, z, sample_weight=w, eval_set=catboost.Pool(held_x, held_z, weight=held_w))
    values = model.get_evals_result()["validation"]["Metric"]
    assert len(values) < 200 and model.get_best_iteration() == np.argmin(values)
    scores = model.predict(held_x, prediction_type="RawFormulaVal")
    expected = weighted(held_z, scores, Q, weight=held_w, reduction="weighted_mean")
    # CatBoost keeps weights in float32.
    np.testing.assert_allclose(min(values), expected, rtol=2**-24)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies(duplicate) -> None:
    z, x = labels[:5], features[:5, 0]
    for original in (Objective(Q), Metric(Q, "mine"), Objective([Q]), Metric()):
        copied = duplicate(original)
        assert copied is not original and repr(copied) == repr(original)
        np.testing.assert_array_equal(copied(z, x), original(z, x))
    assert repr(Objective(3.0)) == "Objective(pos_weight=3.0)"


@pytest.mark.filterwarnings("ignore:Cannot compute class probabilities")
@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_estimators_clone_search_and_store(library: str) -> None:
    module = pytest.importorskip(library)
    base = pytest.importorskip("sklearn.base")
    search = pytest.importorskip("sklearn.model_selection")
    joblib = pytest.importorskip("joblib")
    if library == "xgboost":
        model = module.XGBClassifier(
            n_estimators=3, objective=Objective(Q), eval_metric=Metric(Q), base_score=0.5
        )
    else:
        model = module.LGBMClassifier(
            n_estimators=3, objective=Objective(Q), metric="None", **QUIET
        )
    model = base.clone(model).fit(features, labels)
    stored = io.BytesIO()
    joblib.dump(model, stored)
    stored.seek(0)
    loaded = joblib.load(stored)
    assert repr(loaded.get_params()["objective"]) == "Objective(pos_weight=9.0)"
    np.testing.assert_array_equal(loaded.predict(features), model.predict(features))
    found = search.GridSearchCV(
        model, {"objective": [Objective(1.0), Objective(Q)]}, scoring="roc_auc", cv=2
    ).fit(features, labels)
    assert len(found.cv_results_["mean_test_score"]) == 2


def test_saved_models_and_continued_training(tmp_path) -> None:
    xgboost = pytest.importorskip("xgboost")
    options = {"base_score": 0.0, "disable_default_eval_metric": True}
    data = xgboost.DMatrix(features, labels)
    half = xgboost.train(options, data, 5, obj=Objective(Q))
    half.save_model(tmp_path / "half.json")
    saved = xgboost.Booster(model_file=tmp_path / "half.json")
    np.testing.assert_array_equal(saved.predict(data), half.predict(data))
    continued = xgboost.train(options, data, 5, obj=Objective(Q), xgb_model=saved)
    whole = xgboost.train(options, data, 10, obj=Objective(Q))
    np.testing.assert_array_equal(continued.predict(data), whole.predict(data))


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_regressors_take_soft_labels(library: str) -> None:
    """And a weight of 0 leaves a label out."""
    module = pytest.importorskip(library)
    pytest.importorskip("sklearn")
    options = {"n_estimators": 5, "objective": Objective(Q)}
    if library == "xgboost":
        model = module.XGBRegressor(base_score=0.0, **options)
    else:
        model = module.LGBMRegressor(metric="None", **options, **QUIET)
    soft, weight = 0.9 * labels + 0.05, (np.arange(1000) % 3 > 0).astype(float)
    scores = model.fit(features, soft, sample_weight=weight).predict(features)
    other = np.where(weight == 0, 1 - soft, soft)
    again = model.fit(features, other, sample_weight=weight).predict(features)
    np.testing.assert_array_equal(scores, again)
    assert (model.fit(features, soft).predict(features) != scores).any()


class Data:
    """The part of a data set that is asked for; XGBoost's has no weights as an empty array."""

    def __init__(self, weight, label=labels) -> None:
        self.weight, self.label = weight, label

    def get_label(self):
        return self.label

    def get_weight(self):
        return self.weight


def test_no_weights_as_an_empty_array() -> None:
    scores = features[:, 0]
    expected = grad_and_hess(labels, scores, Q)
    for none in (np.empty(0, np.float32), None):
        for got, same in zip(Objective(Q)(scores, Data(none)), expected, strict=True):
            np.testing.assert_array_equal(got, same)
        name, value = Metric(Q)(scores, Data(none))
        assert (name, value) == ("logistic_loss", weighted(labels, scores, Q, reduction="mean"))
    # Elsewhere it remains an error.
    with pytest.raises(ValueError, match="`weight` must broadcast"):
        grad_and_hess(labels, scores, Q, weight=np.empty(0))


def test_labels_of_several_columns_that_come_flat() -> None:
    """From XGBoost before 3.2."""
    several, scores = np.stack([labels, 1 - labels], axis=1), features[:, :2]
    got = Objective(Q)(scores, Data(sample_weight, several.ravel()))
    expected = grad_and_hess(several, scores, Q, weight=sample_weight[:, None])
    np.testing.assert_array_equal(got, expected)


def test_shapes_and_masks_are_not_guessed() -> None:
    with pytest.raises(ValueError, match="must have the same shape"):
        Objective()(labels, np.zeros(999))
    with pytest.raises(ValueError, match="`weight` must broadcast"):
        Objective()(labels, features[:, 0], np.ones(999))
    with pytest.raises(TypeError, match="`labels` must not be a masked array"):
        Metric()(np.ma.array(labels, mask=labels > 0), features[:, 0])
