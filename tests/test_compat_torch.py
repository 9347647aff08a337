"""PyTorch's own signature, beside PyTorch's own loss and in the libraries that take a criterion."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from logitloss import weighted_cross_entropy_with_logits as weighted  # noqa: E402
from logitloss.compat.torch import (  # noqa: E402
    BCEWithLogitsLoss,
    binary_cross_entropy_with_logits,
)

OUTPUT = torch.tensor([[0.5, -2.0, 3.0], [-0.25, 1.0, -4.0]])
LABELS = torch.tensor([[1.0, 0.0, 0.25], [0.0, 1.0, 1.0]])
POS_WEIGHT = torch.tensor([3.0, 1.0, 0.5])
WEIGHT = torch.tensor([[2.0], [0.5]])
OPTIONS = [
    {},
    {"pos_weight": POS_WEIGHT},
    {"weight": WEIGHT},
    {"weight": WEIGHT, "pos_weight": POS_WEIGHT},
]


def value_and_grad(criterion, dtype=torch.float32):
    leaf = OUTPUT.to(dtype, copy=True).requires_grad_()
    loss = criterion(leaf, LABELS.to(dtype))
    loss.sum().backward()
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", OPTIONS, ids=", ".join)
def test_in_place_of_torch(options, reduction: str) -> None:
    ours = BCEWithLogitsLoss(reduction=reduction, **options)
    theirs = torch.nn.BCEWithLogitsLoss(reduction=reduction, **options)
    for got, expected in zip(value_and_grad(ours), value_and_grad(theirs), strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-6, atol=0)
    got = binary_cross_entropy_with_logits(OUTPUT, LABELS, reduction=reduction, **options)
    assert torch.equal(got, ours(OUTPUT, LABELS))


def test_values_are_those_of_the_library() -> None:
    got = binary_cross_entropy_with_logits(OUTPUT, LABELS, WEIGHT, pos_weight=POS_WEIGHT)
    expected = weighted(LABELS, OUTPUT, POS_WEIGHT, weight=WEIGHT, reduction="mean")
    assert torch.equal(got, expected)
    by_weights = BCEWithLogitsLoss(WEIGHT, "weighted_mean", POS_WEIGHT)(OUTPUT, LABELS)
    torch.testing.assert_close(by_weights, got * 6 / (3 * WEIGHT.sum()), rtol=1e-6, atol=0)


def test_names_and_order() -> None:
    ours = inspect.signature(BCEWithLogitsLoss).parameters
    theirs = inspect.signature(torch.nn.BCEWithLogitsLoss).parameters
    assert set(ours) == set(theirs)
    assert list(ours)[:3] == ["weight", "reduction", "pos_weight"]
    function = inspect.signature(binary_cross_entropy_with_logits).parameters
    assert list(function)[:3] == ["input", "target", "weight"]
    by_name = BCEWithLogitsLoss()(input=OUTPUT, target=LABELS)
    assert torch.equal(by_name, BCEWithLogitsLoss()(OUTPUT, LABELS))


@pytest.mark.parametrize("make", [BCEWithLogitsLoss, binary_cross_entropy_with_logits])
@pytest.mark.parametrize("argument", ["size_average", "reduce"])
def test_legacy_arguments_say_so(make, argument: str) -> None:
    arguments = () if make is BCEWithLogitsLoss else (OUTPUT, LABELS)
    make(*arguments, **{argument: None})
    message = f"`{argument}` must be None, because PyTorch has deprecated it: use `reduction`; got"
    with pytest.raises(TypeError, match=re.escape(message)):
        make(*arguments, **{argument: False})


def test_legacy_arguments_by_position() -> None:
    with pytest.raises(TypeError, match="`reduction` must be a string; got False"):
        BCEWithLogitsLoss(WEIGHT, False)
    with pytest.raises(TypeError, match="positional arguments"):
        binary_cross_entropy_with_logits(OUTPUT, LABELS, WEIGHT, None, None, "mean")


def test_buffers_and_state() -> None:
    ours = BCEWithLogitsLoss(WEIGHT, pos_weight=POS_WEIGHT)
    theirs = torch.nn.BCEWithLogitsLoss(WEIGHT, pos_weight=POS_WEIGHT)
    assert ours.pos_weight is POS_WEIGHT
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, torch.nn.BCEWithLogitsLoss)
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["weight", "pos_weight"]
    assert not BCEWithLogitsLoss().state_dict()
    assert ours.double().pos_weight.dtype is torch.float64
    assert ours.to("meta").pos_weight.device.type == "meta"
    other = BCEWithLogitsLoss(torch.zeros(2, 1), pos_weight=torch.zeros(3))
    other.load_state_dict(theirs.state_dict())
    assert torch.equal(other.pos_weight, POS_WEIGHT)


@pytest.mark.parametrize("value", [3.0, torch.tensor(3.0), torch.tensor(3.0).requires_grad_()])
@pytest.mark.parametrize("argument", ["weight", "pos_weight"])
def test_one_number_beside_another_device(argument: str, value) -> None:
    """As with PyTorch's own: a criterion need not be moved for it."""
    output, labels = (tensor.to("meta") for tensor in (OUTPUT, LABELS))
    criterion = BCEWithLogitsLoss(**{argument: value})
    loss = criterion(output, labels)
    assert loss.device == output.device
    assert loss.requires_grad == getattr(criterion, argument).requires_grad
    with pytest.raises(ValueError, match="must be on the same device; got meta and cpu"):
        BCEWithLogitsLoss(**{argument: POS_WEIGHT})(output, labels)


@pytest.mark.parametrize("kind", [list, np.asarray])
def test_a_number_beside_what_is_no_tensor(kind) -> None:
    """The function takes what all others do, and refuses it in the same words."""
    output, labels = kind([0.5, -2.0]), kind([1.0, 0.0])
    outcomes = []
    for function in (
        lambda: binary_cross_entropy_with_logits(output, labels, torch.tensor(2.0)),
        lambda: weighted(labels, output, 1.0, weight=torch.tensor(2.0), reduction="mean"),
    ):
        try:
            outcomes.append(float(function()))
        except TypeError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies(duplicate) -> None:
    criterion = BCEWithLogitsLoss(WEIGHT, "sum", POS_WEIGHT)
    copied = duplicate(criterion)
    assert copied.pos_weight is not criterion.pos_weight
    assert torch.equal(copied(OUTPUT, LABELS), criterion(OUTPUT, LABELS))


# Dynamo does so to every Function that it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_and_traced() -> None:
    criterion = BCEWithLogitsLoss(WEIGHT, pos_weight=POS_WEIGHT)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    for got, expected in zip(value_and_grad(compiled), value_and_grad(criterion), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    traced = torch.fx.symbolic_trace(criterion)
    assert torch.equal(traced(OUTPUT, LABELS), criterion(OUTPUT, LABELS))


@pytest.mark.parametrize(
    ("pos_weight", "dtype"),
    [
        (3, torch.float32),
        (0.1, torch.float32),
        ([3, 1, 2], torch.float32),
        ([0.1, 1.0, 2.0], torch.float32),
        (np.float64(0.1), torch.float64),
        (np.array([0.1, 1.0, 2.0]), torch.float64),
        (np.array([3, 1, 2]), torch.float32),
    ],
)
def test_plain_numbers_become_buffers(pos_weight, dtype) -> None:
    criterion = BCEWithLogitsLoss(pos_weight=pos_weight)
    assert criterion.pos_weight.dtype is dtype
    got = criterion(OUTPUT, LABELS)
    assert got.dtype is torch.float32
    assert torch.equal(got, BCEWithLogitsLoss(pos_weight=torch.tensor(pos_weight))(OUTPUT, LABELS))
    function = binary_cross_entropy_with_logits(OUTPUT, LABELS, pos_weight=pos_weight)
    assert torch.equal(got, function)


@pytest.mark.parametrize("value", ["Hello", 3 + 2j, [1.0, "a"], object(), [None]])
def test_other_buffers_are_refused(value) -> None:
    for argument in ("weight", "pos_weight"):
        with pytest.raises(TypeError, match=f"`{argument}` must hold real floating"):
            BCEWithLogitsLoss(**{argument: value})


def test_masks_are_not_lost_in_buffers() -> None:
    masked = np.ma.array([3.0, 1.0, 9e9], mask=[0, 0, 1])
    for value in (masked, [masked]):
        with pytest.raises(TypeError, match="`pos_weight` must not be a masked array"):
            BCEWithLogitsLoss(pos_weight=value)
        with pytest.raises(TypeError, match="`weight` must not be a masked array"):
            BCEWithLogitsLoss(value)


def test_tails_masks_and_small_weights() -> None:
    """What PyTorch's own loses, or turns into NaN."""
    labels, output = torch.tensor([0.0, 1.0]), torch.tensor([-30.0, float("inf")])
    loss = binary_cross_entropy_with_logits(output, labels, reduction="none")
    assert loss[0] == pytest.approx(np.exp(-30), rel=1e-6) and loss[1] == 0
    weight = torch.tensor([0.0, 1.0])
    masked = BCEWithLogitsLoss(weight)(torch.tensor([float("nan"), 0.0]), labels)
    assert masked == pytest.approx(np.log(2) / 2, rel=1e-6)
    small = BCEWithLogitsLoss(pos_weight=1e-8)(torch.tensor([0.0]), torch.tensor([1.0]))
    assert small == pytest.approx(1e-8 * np.log(2), rel=1e-6)


def fitted(criterion, dtype=torch.float32):
    """The parameters after some steps, of a model that starts at zero."""
    slopes = torch.zeros(3, 3, dtype=dtype, requires_grad=True)
    optimizer = torch.optim.SGD([slopes], lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        criterion(OUTPUT.to(dtype) @ slopes, LABELS.to(dtype)).backward()
        optimizer.step()
    return slopes.detach()


def test_trains_as_torch_does() -> None:
    got = fitted(BCEWithLogitsLoss(pos_weight=POS_WEIGHT).double(), torch.float64)
    theirs = torch.nn.BCEWithLogitsLoss(pos_weight=POS_WEIGHT).double()
    torch.testing.assert_close(got, fitted(theirs, torch.float64), rtol=1e-12, atol=0)


def linear(features: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(features, 1), torch.nn.Flatten(0))


def table():
    rng = np.random.default_rng(0)
    labels = (rng.random(200) < 0.3).astype(np.float32)
    return rng.normal(labels[:, None], 1.0, (200, 3)).astype(np.float32), labels


def test_skorch() -> None:
    skorch = pytest.importorskip("skorch")
    sklearn_base = pytest.importorskip("sklearn.base")
    features, labels = table()
    probabilities = []
    for criterion in (BCEWithLogitsLoss, torch.nn.BCEWithLogitsLoss):
        torch.manual_seed(0)
        net = skorch.NeuralNetBinaryClassifier(
            linear, criterion=criterion, criterion__pos_weight=torch.tensor(3.0), verbose=0
        )
        net = sklearn_base.clone(net).fit(features, labels)
        probabilities.append(pickle.loads(pickle.dumps(net)).predict_proba(features))
    # skorch applies a sigmoid if it takes the criterion for PyTorch's.
    assert probabilities[0].min() >= 0 and probabilities[0].max() <= 1
    np.testing.assert_allclose(*probabilities, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["int64", "bool", "float64"])
def test_skorch_with_labels_of_any_type(dtype: str) -> None:
    """PyTorch's own refuses integers and booleans."""
    skorch = pytest.importorskip("skorch")
    features, labels = table()
    losses = []
    for z in (labels, labels.astype(dtype)):
        net = skorch.NeuralNetBinaryClassifier(
            linear(), criterion=BCEWithLogitsLoss, max_epochs=1, train_split=None, verbose=0
        )
        losses.append(net.fit(features, z).history[-1]["train_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path) -> None:
    lightning = pytest.importorskip("lightning")

    class Model(lightning.LightningModule):
        def __init__(self, criterion) -> None:
            super().__init__()
            self.model, self.criterion = linear(), criterion

        def training_step(self, batch):
            features, labels = batch
            loss = self.criterion(self.model(features), labels)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = torch.utils.data.TensorDataset(*map(torch.as_tensor, table()))
    states = []
    for make in (BCEWithLogitsLoss, torch.nn.BCEWithLogitsLoss):
        model = Model(make(pos_weight=torch.tensor(3.0)))
        trainer = lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=50))
        trainer.save_checkpoint(tmp_path / "model.ckpt")
        saved = Model.load_from_checkpoint(
            tmp_path / "model.ckpt", criterion=make(pos_weight=torch.tensor(0.0))
        )
        states.append(saved.state_dict())
    assert states[0].keys() == states[1].keys()
    assert states[0]["criterion.pos_weight"] == 3
    for name, got in states[0].items():
        torch.testing.assert_close(got, states[1][name], rtol=1e-5, atol=1e-6)
