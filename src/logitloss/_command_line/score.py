"""One pass over the inputs: what is added up, and what is written.

Each block is one library call with reduction "none". The losses are added up in float64, and the
value is reported as it is then, not rounded to the dtype of the data.
"""

import argparse
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple, Protocol

import numpy as np

import logitloss
from logitloss._command_line.blocks import Array
from logitloss._command_line.doubts import Doubts
from logitloss._command_line.files import published_together
from logitloss._command_line.inputs import Inputs, Part
from logitloss._command_line.outputs import ArrayOutput, array_output, is_table
from logitloss._command_line.plot import Plot, open_plots, require_matplotlib
from logitloss._command_line.progress import progress
from logitloss._command_line.tallies import Overall, PerClass, PerGroup
from logitloss._reductions import zeros_kept


class Pass(Protocol):
    """What looks at every part, once."""

    def add(self, part: Part, loss: Array) -> None: ...


# Sums of infinities and means of nothing are results here, as in the library.
@np.errstate(all="ignore")
def score(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Do what the options say; return the report, and doubts about the numbers."""
    if options.threads is not None:
        _set_threads(options.threads)
    with ExitStack() as open_files:
        return _score(options, open_files)


def _score(options: argparse.Namespace, open_files: ExitStack) -> tuple[dict[str, Any], list[str]]:
    if options.plot is not None:
        require_matplotlib()
    inputs = _open_inputs(options, open_files)
    loss_out = array_output(options.loss_out, "loss", inputs)
    grad_out = array_output(options.grad_out, "gradient", inputs)
    plots = [] if options.plot is None else list(open_plots(options.plot, inputs))
    tallies = _Tallies(
        Overall(inputs),
        PerClass(inputs) if options.per_class or _are_of_classes(plots) else None,
        None if inputs.groups is None else PerGroup(inputs.groups, inputs.dtype),
    )
    doubts = Doubts(inputs, vars(options))
    passes: list[Pass | None] = [*tallies, doubts, *(plot.histograms for plot in plots)]
    outputs = [loss_out, grad_out, *(plot.output for plot in plots)]
    start = time.perf_counter()
    with published_together([output for output in outputs if output is not None]):
        _refuse_doubts(options, doubts)
        with progress(inputs.size) as advance:
            for part, loss in _losses(inputs, options.reduction, loss_out, grad_out):
                for one in passes:
                    if one is not None:
                        one.add(part, loss)
                advance(loss.size)
        seconds = time.perf_counter() - start
        _refuse_doubts(options, doubts)
        _draw(plots, options, tallies)
    report = _report(options, tallies) | {"elements_per_second": inputs.size / seconds}
    return report | _tables(options, tallies), doubts.messages()


def _open_inputs(options: argparse.Namespace, open_files: ExitStack) -> Inputs:
    return Inputs(
        options.labels,
        options.logits,
        options.pos_weight,
        options.weight,
        options.by,
        open_files,
        whole_rows=is_table(options.loss_out) or is_table(options.grad_out),
    )


class _Tallies(NamedTuple):
    overall: Overall
    per_class: PerClass | None
    per_group: PerGroup | None


def _are_of_classes(plots: list[Plot]) -> bool:
    return any(plot.class_index is not None for plot in plots)


def _draw(plots: list[Plot], options: argparse.Namespace, tallies: _Tallies) -> None:
    # A plot without a value would leave open what was scored.
    reduction = "mean" if options.reduction == "none" else options.reduction
    rows = [] if tallies.per_class is None else tallies.per_class.report(reduction)
    overall = tallies.overall.report(reduction)
    for plot in plots:
        row = overall if plot.class_index is None else rows[plot.class_index]
        plot.draw(vars(options), reduction, row)


def _refuse_doubts(options: argparse.Namespace, doubts: Doubts) -> None:
    if options.strict and doubts.messages():
        raise ValueError("; ".join(doubts.messages()))


def _report(options: argparse.Namespace, tallies: _Tallies) -> dict[str, Any]:
    row = tallies.overall.report(options.reduction)
    return {"value": row["value"], "reduction": options.reduction} | row


def _tables(options: argparse.Namespace, tallies: _Tallies) -> dict[str, Any]:
    tables = {}
    if options.per_class and tallies.per_class is not None:
        tables["classes"] = tallies.per_class.report(options.reduction)
    if tallies.per_group is not None:
        tables["groups"] = tallies.per_group.report(options.reduction)
    return tables


def _set_threads(count: int) -> None:
    try:
        logitloss.set_num_threads(count)
    except ValueError as error:
        raise ValueError(str(error).replace("`n`", "--threads").rstrip(".")) from error


def _losses(
    inputs: Inputs, reduction: str, loss_out: ArrayOutput | None, grad_out: ArrayOutput | None
) -> Iterator[tuple[Part, Array]]:
    """Each part with its losses, which have been written, and so has the gradient."""
    # Gradients are divided as they pass, so the sum of weights must be known before.
    divisor = None if grad_out is None else _divisor(inputs, reduction)
    for part in inputs.parts():
        arguments = (part.labels, part.logits, part.pos_weight)
        if grad_out is None:
            loss = logitloss.weighted_cross_entropy_with_logits(*arguments, weight=part.weight)
        else:
            loss, gradient = logitloss.value_and_grad(*arguments, weight=part.weight)
            # A NumPy number, because the divisor may be beyond the range of the gradient.
            quotient = gradient / np.float64(divisor or math.nan)
            weight = None if part.weight is None else part.weight.astype(inputs.dtype)
            grad_out[part.block] = zeros_kept(quotient, weight, np)
        if loss_out is not None:
            loss_out[part.block] = loss
        yield part, loss


def _divisor(inputs: Inputs, reduction: str) -> float:
    if reduction == "weighted_mean" and inputs.weight is not None:
        return sum(
            float(np.sum(weight.astype(inputs.dtype), dtype=np.float64))
            for weight in inputs.parts_of_weight()
        )
    return float(inputs.size) if reduction.endswith("mean") else 1.0
