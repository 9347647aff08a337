"""One pass over the inputs: what is added up, and what is written.

Each block is one library call with reduction "none". The losses are added up in float64, and the
value is reported as it is then, not rounded to the dtype of the data.
"""

import argparse
import math
import time
from contextlib import ExitStack
from typing import Any

import numpy as np

import logitloss
from logitloss._command_line.classes import PerClass
from logitloss._command_line.files import published_together
from logitloss._command_line.inputs import Inputs
from logitloss._command_line.outputs import ArrayOutput, array_output, is_table, plot_output
from logitloss._command_line.plot import Plot
from logitloss._command_line.progress import Advance, progress


# Sums of infinities and means of nothing are results here, as they are in the library.
@np.errstate(all="ignore")
def score(options: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as open_files:
        return _score(options, open_files)


def _score(options: argparse.Namespace, open_files: ExitStack) -> dict[str, Any]:
    if options.threads is not None:
        _set_threads(options.threads)
    reduction = options.reduction
    plot = None if options.plot is None else Plot(options.plot)
    inputs = Inputs(
        options.labels,
        options.logits,
        options.pos_weight,
        options.weight,
        open_files,
        whole_rows=is_table(options.loss_out) or is_table(options.grad_out),
    )
    per_class = PerClass(inputs) if options.per_class else None
    loss_out = array_output(options.loss_out, "loss", inputs)
    grad_out = array_output(options.grad_out, "gradient", inputs)
    plot_out = plot_output(options.plot, inputs)
    outputs = [output for output in (loss_out, grad_out, plot_out) if output is not None]
    start = time.perf_counter()
    with published_together(outputs):
        with progress(inputs.size) as advance:
            value, positives = _stream(
                inputs, reduction, loss_out, grad_out, per_class, plot, advance
            )
        seconds = time.perf_counter() - start
        if plot is not None and plot_out is not None:
            plot_out.write(plot.draw())
    report = {
        "value": None if reduction == "none" else value,
        "reduction": reduction,
        "elements": inputs.size,
        "share_of_positives": positives,
        "elements_per_second": inputs.size / seconds,
    }
    if per_class is not None:
        report["classes"] = per_class.report(reduction)
    return report


def _set_threads(count: int) -> None:
    try:
        logitloss.set_num_threads(count)
    except ValueError as error:
        raise ValueError(str(error).replace("`n`", "--threads")) from error


def _divisor(inputs: Inputs, reduction: str) -> float:
    if reduction == "weighted_mean" and inputs.weight is not None:
        return sum(
            float(np.sum(weights.astype(inputs.dtype), dtype=np.float64))
            for block in inputs.blocks()
            if (weights := inputs.weights(block)) is not None
        )
    return float(inputs.size) if reduction.endswith("mean") else 1.0


def _stream(
    inputs: Inputs,
    reduction: str,
    loss_out: ArrayOutput | None,
    grad_out: ArrayOutput | None,
    per_class: PerClass | None,
    plot: Plot | None,
    advance: Advance,
) -> tuple[float, float]:
    """Write the outputs; return the reduced loss and the share of positives."""
    # Gradients are divided as they pass, so the sum of weights has to be known before.
    divisor = _divisor(inputs, reduction)
    total = positives = counted = 0.0
    for block in inputs.blocks():
        labels, logits, pos_weight, weight = inputs.part(block)
        if grad_out is None:
            loss = logitloss.weighted_cross_entropy_with_logits(
                labels, logits, pos_weight, weight=weight
            )
        else:
            loss, gradient = logitloss.value_and_grad(labels, logits, pos_weight, weight=weight)
            # NumPy's number, because the divisor may be beyond the range of the gradient.
            quotient = gradient / np.float64(divisor or math.nan)
            if weight is not None:
                # Zero stays zero where other weights are NaN or cancel.
                quotient = np.where(weight.astype(inputs.dtype) == 0, 0, quotient)
            grad_out[block] = quotient
        if loss_out is not None:
            loss_out[block] = loss
        if per_class is not None:
            per_class.add(block, labels, weight, loss)
        if plot is not None:
            plot.add(labels, logits, weight, loss)
        total += float(np.sum(loss, dtype=np.float64))
        kept = True if weight is None else weight != 0
        positives += float(np.sum(labels, dtype=np.float64, where=kept))
        counted += labels.size if weight is None else np.count_nonzero(kept)
        advance(labels.size)
    return (
        total / divisor if divisor else math.nan,
        positives / counted if counted else math.nan,
    )
