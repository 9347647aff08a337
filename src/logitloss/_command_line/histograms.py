"""What a plot is drawn from: counts in fixed bins, however many elements are added."""

import numpy as np

from logitloss._command_line.blocks import Array
from logitloss._command_line.inputs import Part

# One bin for each whole logit: equal steps of probability would put nearly all elements of a rare
# class into the first. What lies outside goes to the outermost bins.
_LOGIT_EDGES = np.arange(-16, 17)
_LOGIT_BINS = len(_LOGIT_EDGES) - 1
# One bin for each power of two, which is what float32 has for an exponent.
_LOSS_EXPONENTS = np.arange(-27, 11)
LOSS_EDGES = 2.0**_LOSS_EXPONENTS
_LOSS_BINS = len(LOSS_EDGES) - 1

# What is counted at a time. Its intermediate arrays stay in the processor's cache, which makes
# counting five times faster.
_CHUNK = 2**15


class Histograms:
    """Counts of elements by logit and, for each class, by loss."""

    def __init__(self) -> None:
        # By logit.
        self.weights = np.zeros(_LOGIT_BINS)
        self.squared_weights = np.zeros(_LOGIT_BINS)
        self.predicted = np.zeros(_LOGIT_BINS)
        self.observed = np.zeros(_LOGIT_BINS)
        # By loss, of negatives, then of positives.
        self.elements = np.zeros((2, _LOSS_BINS))
        self.loss = np.zeros(2)

    def add(self, part: Part, loss: Array) -> None:
        """Count elements. Those of zero weight and those with a NaN count for nothing."""
        columns = [part.labels, part.logits, loss]
        if part.weight is not None:
            columns.append(part.weight)
        # All in C order, whatever the order of the files.
        columns = [column.reshape(-1) for column in columns]
        for start in range(0, loss.size, _CHUNK):
            self._add_chunk(*(column[start : start + _CHUNK] for column in columns))

    def _add_chunk(
        self, labels: Array, logits: Array, loss: Array, weight: Array | None = None
    ) -> None:
        kept = ~np.isnan(loss)
        if weight is not None:
            kept &= weight != 0
        if not kept.all():
            labels, logits, loss = labels[kept], logits[kept], loss[kept]
            weight = None if weight is None else weight[kept]
        positive = labels >= 0.5
        self._count_losses(positive, loss)
        place = np.clip(np.floor(logits) - _LOGIT_EDGES[0], 0, _LOGIT_BINS - 1).astype(np.intp)
        if weight is None and np.array_equal(labels, positive):
            self._count_logits(place, positive)
        else:
            self._weigh_logits(place, labels, weight)
        # In float32 all probabilities from a logit of 17 on would be 1.
        probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
        if weight is not None:
            probability = probability * weight
        self.predicted += np.bincount(place, probability, _LOGIT_BINS)

    def _count_losses(self, positive: Array, loss: Array) -> None:
        # The exponent is in the bits above the 23 of the fraction. A sign, as of a loss with a
        # negative weight, makes the number negative, and an infinity has the largest exponent.
        exponent = (loss.astype(np.float32).view(np.int32) >> 23) - 127
        place = np.clip(exponent - _LOSS_EXPONENTS[0], 0, _LOSS_BINS - 1)
        place += np.int32(_LOSS_BINS) * positive
        self.elements += np.bincount(place, minlength=2 * _LOSS_BINS).reshape(2, _LOSS_BINS)
        self.loss += _sums(loss, positive)

    def _count_logits(self, place: Array, positive: Array) -> None:
        counts = np.bincount(place + _LOGIT_BINS * positive, minlength=2 * _LOGIT_BINS)
        negatives, positives = counts.reshape(2, _LOGIT_BINS)
        self.weights += negatives + positives
        self.squared_weights += negatives + positives
        self.observed += positives

    def _weigh_logits(self, place: Array, labels: Array, weight: Array | None) -> None:
        weight = np.ones(len(labels)) if weight is None else weight.astype(np.float64)
        self.weights += np.bincount(place, weight, _LOGIT_BINS)
        self.squared_weights += np.bincount(place, weight**2, _LOGIT_BINS)
        self.observed += np.bincount(place, weight * labels, _LOGIT_BINS)


def _sums(loss: Array, positive: Array) -> tuple[float, float]:
    """The loss of negatives, and that of positives."""
    total = np.sum(loss, dtype=np.float64)
    if np.isfinite(total):
        # Ten times faster than `where`.
        of_positives = np.sum(loss * positive, dtype=np.float64)
        return float(total - of_positives), float(of_positives)
    negatives = np.sum(loss, dtype=np.float64, where=~positive)
    return float(negatives), float(np.sum(loss, dtype=np.float64, where=positive))


class HistogramsOfClass(Histograms):
    """The same of one index of the last axis."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self._index = index

    def add(self, part: Part, loss: Array) -> None:
        classes = part.block[-1]
        if not classes.start <= self._index < classes.stop:
            return
        here = (..., self._index - classes.start)
        part = part._replace(
            labels=part.labels[here],
            logits=part.logits[here],
            weight=None if part.weight is None else part.weight[here],
        )
        super().add(part, loss[here])
