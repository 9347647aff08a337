"""A picture of what was counted: are the logits calibrated, and which class causes the loss?"""

import io
from typing import Any

import numpy as np

from logitloss._command_line.blocks import Array
from logitloss._command_line.histograms import LOSS_EDGES, Histograms

_COLORS = ("C0", "C1")


def draw(histograms: Histograms, title: str, suffix: str) -> bytes:
    """A picture, as the content of a file with this suffix."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    # A name may hold what would be taken for mathematics.
    figure.suptitle(title, fontsize="medium", parse_math=False)
    calibration, losses = figure.subplots(1, 2)
    draw_calibration(calibration, histograms)
    draw_losses(losses, histograms)
    file = io.BytesIO()
    figure.savefig(file, format=suffix.lstrip(".").lower(), dpi=150)
    return file.getvalue()


def draw_calibration(axes: Any, counts: Histograms) -> None:
    with np.errstate(invalid="ignore", divide="ignore"):
        predicted = counts.predicted / counts.weights
        observed = counts.observed / counts.weights
        # As many equal weights would say as much (Kish).
        count = counts.weights**2 / counts.squared_weights
        error = np.sqrt(observed * (1 - observed) / count)
    axes.set(
        xscale="logit",
        yscale="logit",
        title="Calibration",
        xlabel="predicted probability, sigmoid(logit)",
        ylabel="share of positives",
    )
    used = counts.weights != 0
    # Shares of 0 and 1 have no place on these axes, and go to their edges.
    low, high = _ends(predicted[used], observed[used])
    axes.plot([low, high], [low, high], color="gray", linestyle="--", label="calibrated")
    shown = used & (observed > 0) & (observed < 1)
    if shown.any():
        axes.errorbar(
            np.clip(predicted[shown], low, high),
            observed[shown],
            np.minimum(error, [observed * 0.9, (1 - observed) * 0.9])[:, shown],
            None,
            "o-",
            capsize=2,
            label="elements by logit, ± standard error",
        )
    for share, edge, marker in ((0, low, "v"), (1, high, "^")):
        alike = used & ((observed <= 0) if share == 0 else (observed >= 1))
        if alike.any():
            axes.plot(
                *(np.clip(predicted[alike], low, high), np.full(np.count_nonzero(alike), edge)),
                marker,
                color="C0",
                fillstyle="none",
                clip_on=False,
                label=f"elements by logit, {'all positive' if share else 'no positives'}",
            )
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(nbins=7)
        axis.set_major_formatter(lambda share, _: _share(share))
        axis.set_minor_formatter(lambda share, _: "")
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.legend()


def _share(share: float) -> str:
    return f"{share:g}" if share < 0.9999 else f"1 - {1 - share:.0e}"


def _ends(*shares: Array) -> tuple[float, float]:
    """The ends of the axes, a little beyond all shares but 0 and 1."""
    inside = np.concatenate([*(share[(share > 0) & (share < 1)] for share in shares), [0.1, 0.9]])
    return float(np.min(inside) / 2), float(1 - (1 - np.max(inside)) / 2)


def draw_losses(axes: Any, counts: Histograms) -> None:
    total = np.sum(counts.loss)
    for row, name in enumerate(("negatives", "positives")):
        count = np.sum(counts.elements[row])
        label = f"{count:,.0f} {name}"
        if 0 < total < np.inf:
            label += f", {counts.loss[row] / total:.0%} of the loss"
        shares = counts.elements[row] / max(count, 1)
        axes.stairs(shares, LOSS_EDGES, color=_COLORS[row], label=label, fill=True, alpha=0.5)
    used = np.flatnonzero(np.sum(counts.elements, axis=0))
    if used.size:
        # A little more, so that a single bin does not look like the background.
        last = len(LOSS_EDGES) - 1
        axes.set_xlim(LOSS_EDGES[max(used[0] - 2, 0)], LOSS_EDGES[min(used[-1] + 3, last)])
    axes.set(xscale="log", title="Losses", xlabel="weighted loss", ylabel="share of the class")
    axes.legend()
