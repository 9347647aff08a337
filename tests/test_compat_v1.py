"""The TensorFlow 1.x signature."""

from __future__ import annotations

import inspect
import re
import warnings

import numpy as np
import pytest

import logitloss
from logitloss.compat.v1 import weighted_cross_entropy_with_logits

LABELS = np.array([1.0, 0.0, 0.5])
LOGITS = np.array([1.5, -0.1, -10.0])
EXPECTED = logitloss.weighted_cross_entropy_with_logits(LABELS, LOGITS, 2.0)


def test_signature() -> None:
    signature = inspect.signature(weighted_cross_entropy_with_logits)
    assert list(signature.parameters) == ["labels", "logits", "pos_weight", "name", "targets"]
    assert all(parameter.default is None for parameter in signature.parameters.values())


def test_labels() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_position = weighted_cross_entropy_with_logits(LABELS, LOGITS, 2.0, "name")
        by_name = weighted_cross_entropy_with_logits(labels=LABELS, logits=LOGITS, pos_weight=2.0)
    np.testing.assert_array_equal(by_position, EXPECTED)
    np.testing.assert_array_equal(by_name, EXPECTED)


def test_targets_warn_at_the_line_of_the_caller() -> None:
    with pytest.warns(DeprecationWarning, match="`targets` is deprecated") as record:
        loss = weighted_cross_entropy_with_logits(logits=LOGITS, pos_weight=2.0, targets=LABELS)
    np.testing.assert_array_equal(loss, EXPECTED)
    assert [warning.filename for warning in record] == [__file__]


def test_labels_and_targets() -> None:
    with pytest.raises(ValueError, match=r"Cannot specify both 'targets' and 'labels'"):
        weighted_cross_entropy_with_logits(LABELS, LOGITS, 2.0, targets=LABELS)


@pytest.mark.parametrize("missing", ["labels", "logits", "pos_weight"])
def test_missing_arguments(missing: str) -> None:
    arguments = {"labels": LABELS, "logits": LOGITS, "pos_weight": 2.0}
    del arguments[missing]
    with pytest.raises(ValueError, match=re.escape(f"`{missing}` must be given; got None.")):
        weighted_cross_entropy_with_logits(**arguments)
