"""The plot of the command line: are the logits calibrated, and who bears the loss?

Both panels are drawn from counts in fixed bins, which take the same memory however many elements
are added. matplotlib is imported when a plot is asked for.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np

from logitloss._command_line.blocks import Array
from logitloss._command_line.inputs import Part

# One bin for each whole logit: equal steps of probability would put nearly all elements of a rare
# class into the first. What lies outside goes to the outermost bins.
_LOGIT_EDGES = np.arange(-16.0, 17.0)
_LOSS_EDGES = np.logspace(-8, 3, 45)
_COLORS = ("tab:blue", "tab:orange")


class Plot:
    """Counts of elements by logit and, for each class, by loss."""

    def __init__(self, path: Path) -> None:
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ValueError("--plot needs matplotlib: pip install 'logitloss[plot]'") from error
        self._figure = Figure(figsize=(10, 4.5), layout="constrained")
        self._format = path.suffix.lstrip(".").lower()
        bins = len(_LOGIT_EDGES) - 1
        self._weights = np.zeros(bins)
        self._squared_weights = np.zeros(bins)
        self._predicted = np.zeros(bins)
        self._observed = np.zeros(bins)
        # Of negatives, then of positives.
        self._elements = np.zeros((2, len(_LOSS_EDGES) - 1))
        self._loss = np.zeros(2)

    def add(self, part: Part, loss: Array) -> None:
        """Count elements. Those of zero weight and those with a NaN count for nothing."""
        labels, logits, weight = part.labels, part.logits, part.weight
        kept = ~np.isnan(loss)
        if weight is not None:
            kept &= weight != 0
            weight = weight[kept].astype(np.float64)
        # Only the sums are long: float32 holds 1e-8 to 1e3 well enough to find the bin.
        labels, logits, loss = labels[kept], logits[kept].astype(np.float64), loss[kept]
        labels = labels.astype(np.float64)
        self._add_logits(labels, logits, np.ones(len(loss)) if weight is None else weight)
        positive = labels >= 0.5
        for row, members in enumerate((loss[~positive], loss[positive])):
            inside = np.clip(members, _LOSS_EDGES[0], _LOSS_EDGES[-1])
            self._elements[row] += np.histogram(inside, _LOSS_EDGES)[0]
            self._loss[row] += np.sum(members, dtype=np.float64)

    def _add_logits(self, labels: Array, logits: Array, weight: Array) -> None:
        bins = len(self._weights)
        place = np.clip(np.floor(logits) - _LOGIT_EDGES[0], 0, bins - 1).astype(np.intp)
        probability = 1 / (1 + np.exp(-logits))
        for total, term in (
            (self._weights, weight),
            (self._squared_weights, weight**2),
            (self._predicted, weight * probability),
            (self._observed, weight * labels),
        ):
            total += np.bincount(place, term, bins)

    def draw(self) -> bytes:
        calibration, losses = self._figure.subplots(1, 2)
        self._draw_calibration(calibration)
        self._draw_losses(losses)
        file = io.BytesIO()
        self._figure.savefig(file, format=self._format, dpi=150)
        return file.getvalue()

    def _draw_calibration(self, axes: Any) -> None:
        with np.errstate(invalid="ignore", divide="ignore"):
            predicted = self._predicted / self._weights
            observed = self._observed / self._weights
            # As many equal weights would say as much (Kish).
            count = self._weights**2 / self._squared_weights
            error = np.sqrt(observed * (1 - observed) / count)
        # A share of 0 or 1 has no place on this axis.
        shown = (observed > 0) & (observed < 1) & (predicted > 0) & (predicted < 1)
        predicted, observed, error = predicted[shown], observed[shown], error[shown]
        axes.set(
            xscale="logit",
            yscale="logit",
            title="Calibration",
            xlabel="predicted probability, sigmoid(logit)",
            ylabel="share of positives",
        )
        ends = [*predicted, *observed, 0.1, 0.9]
        ends = [min(ends), max(ends)]
        axes.plot(ends, ends, color="gray", linestyle="--", label="calibrated")
        axes.errorbar(
            *(predicted, observed, np.minimum(error, [observed * 0.9, (1 - observed) * 0.9])),
            *(None, "o-"),
            capsize=2,
            label="elements by logit, ± standard error",
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda share, _: f"{share:g}")
            axis.set_minor_formatter(lambda share, _: "")
        axes.legend()

    def _draw_losses(self, axes: Any) -> None:
        total = np.sum(self._loss)
        for row, name in enumerate(("negatives", "positives")):
            count = np.sum(self._elements[row])
            label = f"{count:,.0f} {name}"
            if 0 < total < np.inf:
                label += f", {self._loss[row] / total:.0%} of the loss"
            shares = self._elements[row] / max(count, 1)
            axes.stairs(shares, _LOSS_EDGES, color=_COLORS[row], label=label, fill=True, alpha=0.5)
        used = np.flatnonzero(np.sum(self._elements, axis=0))
        if used.size:
            axes.set_xlim(_LOSS_EDGES[used[0]], _LOSS_EDGES[used[-1] + 1])
        axes.set(xscale="log", title="Losses", xlabel="weighted loss", ylabel="share of the class")
        axes.legend()
