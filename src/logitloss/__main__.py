"""The command line: weighted cross-entropy over files of any size.

`.npy` files are memory-mapped, columns of tables are read row by row. Both are taken block by
block, each in one library call with reduction "none". The losses are added up in float64, and the
value is printed as it is then, not rounded to the dtype of the data.
"""

import argparse
import importlib.util
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np

import logitloss
from logitloss._call import LOSS, check
from logitloss._npy_files import Array, Block, Input, NpyOutput, Output, published_together
from logitloss._plot import Plot
from logitloss._table_files import Columns, ColumnsOf, Table, is_table, path_or_columns

# Large enough that every thread has work, small enough that labels, logits, loss and gradient of
# a block take some MiB together.
BLOCK_ELEMENTS = 2**20

EPILOG = """\
A SOURCE is a .npy file, or FILE:COLUMN: a column of a .parquet, .csv or .csv.gz file, read by
pyarrow. FILE:A,B,C is an array with a column for each name; a comma at the end, FILE:A, makes a
single column two-dimensional. Sources of all kinds may be mixed.

Labels and logits have the same shape. Weights have that shape too or broadcast to it: (C,) beside
(N, C) is one weight per class. The value is summed and printed in float64; output files have the
dtype of the library's result and appear complete or not at all. The share of positives is the
mean label of the elements whose weight is not 0.

exit status: 0 success, 2 bad input or output (one line on stderr), 130 interrupted

examples:
  logitloss labels.npy logits.npy --pos-weight 10
  logitloss scores.parquet:label scores.parquet:logit --weight scores.parquet:weight \\
      --reduction weighted_mean --plot scores.png
  logitloss tags.npy tags.csv:cat,dog --pos-weight per_class.npy --per-class --json
  logitloss labels.npy logits.npy --reduction none --loss-out loss.npy
"""

Value: TypeAlias = Input | Columns | Array


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _complain(message)
        self.exit(2)


class _PrintAndExit(argparse.Action):
    """An option that needs no files beside it; `const` gives the text."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(nargs=0, **settings)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        _print(self.const())
        parser.exit()


def _number_or_source(text: str) -> float | Path | ColumnsOf:
    try:
        return float(text)
    except ValueError:
        return path_or_columns(text)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="logitloss",
        description="Weighted binary cross-entropy of logits in .npy, Parquet and CSV files, "
        "in constant memory however large the files.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # argparse's own --help passes over an output that cannot be written.
        add_help=False,
    )
    add = parser.add_argument
    source = path_or_columns
    add("labels", metavar="LABELS", type=source, help="SOURCE of any real dtype or bool")
    add("logits", metavar="LOGITS", type=source, help="SOURCE of any real dtype")
    add(
        "--pos-weight",
        metavar="Q",
        type=_number_or_source,
        default=1.0,
        help="weight of the positives: a number or a SOURCE (default: 1)",
    )
    add(
        "--weight",
        metavar="SOURCE",
        type=source,
        help="weights of the elements; 0 masks an element whatever it holds",
    )
    add(
        "--reduction",
        choices=("mean", "sum", "weighted_mean", "none"),
        default="mean",
        help="the value printed: the sum of the weighted losses (sum), divided by the number of "
        "elements (mean, the default) or by the sum of the weights (weighted_mean); "
        "none prints no value and needs --loss-out or --grad-out",
    )
    add(
        "--loss-out",
        metavar="FILE",
        type=Path,
        help="write every element's weighted loss, whatever the reduction, as .npy",
    )
    add(
        "--grad-out",
        metavar="FILE",
        type=Path,
        help="write the gradient of the value with respect to the logits, as .npy "
        "(none: of every element's own loss)",
    )
    add(
        "--per-class",
        action="store_true",
        help="print the value of each class (index of the last axis, or column) as well",
    )
    add(
        "--plot",
        metavar="FILE.png",
        type=Path,
        help="draw a calibration curve and a histogram of the losses of positives and negatives "
        "(.png, .svg or .pdf); needs matplotlib",
    )
    add("--threads", metavar="N", type=int, help="number of threads")
    add(
        "--json",
        action="store_true",
        help="print one JSON object; NaN and infinities become "
        'the strings "NaN", "Infinity" and "-Infinity"',
    )
    add(
        "--config",
        action=_PrintAndExit,
        const=lambda: json.dumps(logitloss.show_config("dicts"), indent=2),
        help="print the build and exit",
    )
    add(
        "--version",
        action=_PrintAndExit,
        const=lambda: logitloss.__version__,
        help="print the version and exit",
    )
    add(
        "-h",
        "--help",
        action=_PrintAndExit,
        const=lambda: parser.format_help().rstrip("\n"),
        help="print this help and exit",
    )
    options = parser.parse_args(argv)
    if options.reduction == "none":
        if not (options.loss_out or options.grad_out):
            parser.error("--reduction none has no value to print: give --loss-out or --grad-out")
        if options.per_class:
            parser.error("--reduction none has no value to print for --per-class")
    return options


class _Inputs:
    """What is computed with, block by block."""

    def __init__(self, options: argparse.Namespace, open_files: ExitStack) -> None:
        self._open_files = open_files
        self._files: list[Input] = []
        self._tables: dict[Path, Table] = {}
        sources = (options.labels, options.logits, options.pos_weight, options.weight)
        values = [self._open(source) for source in sources]
        # These are checked as if they were in memory.
        arguments = check(
            LOSS,
            *(value.stand_in if isinstance(value, Input | Columns) else value for value in values),
        )
        self.dtype: np.dtype[Any] = arguments.dtype
        self.shape: tuple[int, ...] = arguments.logits.shape
        self.size = math.prod(self.shape)
        named = [value.names for value in values[:2] if isinstance(value, Columns)]
        self.column_names: list[str] | None = named[0] if named else None
        values = [self._spread(value) for value in values]
        # Rows of a table come in their own order.
        by_row = any(isinstance(value, Columns) for value in values)
        self.fortran_order: bool = not by_row and values[1].fortran_order
        self._orders = {False} if by_row else set()
        self._orders.update(file.fortran_order for file in self._files if file.has_an_order)
        self.labels: Value
        self.logits: Value
        self.pos_weight: Value | float
        self.weight: Value | None
        self.labels, self.logits, self.pos_weight, self.weight = values

    def _open(self, source: Any) -> Any:
        if isinstance(source, Path):
            if is_table(source):
                raise ValueError(f"{source}: a column has to be named, as in {source}:COLUMN")
            self._files.append(self._open_files.enter_context(closing(Input(source))))
            return self._files[-1]
        if isinstance(source, ColumnsOf):
            if source.path not in self._tables:
                self._tables[source.path] = Table(source.path)
            return self._tables[source.path].columns(source.columns)
        return source

    def _spread(self, value: Any) -> Any:
        """Columns in the shape of the logits; files broadcast by themselves."""
        if not isinstance(value, Columns):
            return value
        if len(value.shape) == len(self.shape) and value.shape[0] == self.shape[0]:
            return value.broadcast_to(self.shape)
        # A coefficient that is used again for every row.
        return np.broadcast_to(value.read(), self.shape)

    def paths(self) -> list[Path]:
        return [*(file.path for file in self._files), *self._tables]

    def blocks(self) -> Iterator[Block]:
        """Parts of at most BLOCK_ELEMENTS elements, in the order of the logits' file."""
        if self.size == 0:
            return
        sizes = [1] * len(self.shape)

        def widen(axes: Sequence[int], most: int) -> None:
            for axis in axes:
                sizes[axis] = min(self.shape[axis], sizes[axis] * (most // math.prod(sizes)))

        inner_first = range(len(self.shape))[:: 1 if self.fortran_order else -1]
        if len(self._orders) > 1:
            # Next to each other in one file is far apart in the other. In a block that is wide both
            # ways each file is read in runs, and not a page for each element.
            widen(inner_first, math.isqrt(BLOCK_ELEMENTS))
            widen(inner_first[::-1], BLOCK_ELEMENTS)
        else:
            widen(inner_first, BLOCK_ELEMENTS)
        outer_first = inner_first[::-1]
        for starts in itertools.product(
            *(range(0, self.shape[axis], sizes[axis]) for axis in outer_first)
        ):
            start = dict(zip(outer_first, starts, strict=True))
            yield tuple(
                slice(start[axis], min(start[axis] + sizes[axis], self.shape[axis]))
                for axis in range(len(self.shape))
            )

    def part(self, block: Block) -> tuple[Array, Array, Array | float, Array | None]:
        """Labels, logits, pos_weight and weight of a block, good until the next one is read."""

        def coefficient(value: Any) -> Any:
            # Without the ellipsis a 0-d array would become a scalar.
            index = (*block, ...) if isinstance(value, np.ndarray) else block
            return value if value is None or isinstance(value, float) else value[index]

        labels, logits = self.labels[block], self.logits[block]
        pos_weight, weight = coefficient(self.pos_weight), coefficient(self.weight)
        if self.dtype == np.float16:
            # The library computes in float32. Its results are needed as they are then: they are
            # added up first, and rounded when they are written.
            logits = logits.astype(np.float32)
            pos_weight = np.asarray(pos_weight).astype(self.dtype)
            weight = None if weight is None else weight.astype(self.dtype)
        return labels, logits, pos_weight, weight


@contextmanager
def _progress(elements: int) -> Iterator[Callable[[int], object]]:
    if sys.stderr.isatty() and importlib.util.find_spec("tqdm"):
        from tqdm import tqdm

        with tqdm(total=elements, unit=" elements", unit_scale=True, leave=False) as bar:
            yield bar.update
    else:
        yield lambda count: None


def _refuse_input(path: Path, inputs: _Inputs) -> None:
    if path.exists() and any(path.samefile(other) for other in inputs.paths()):
        raise ValueError(f"{path}: an output must not replace an input")


def _npy_output(path: Path | None, inputs: _Inputs) -> NpyOutput | None:
    if path is None:
        return None
    _refuse_input(path, inputs)
    return NpyOutput(path, inputs.shape, inputs.dtype, inputs.fortran_order)


def _plot_output(path: Path | None, inputs: _Inputs) -> Output | None:
    if path is None:
        return None
    _refuse_input(path, inputs)
    return Output(path)


def _divisor(inputs: _Inputs, reduction: str) -> float:
    if reduction == "weighted_mean" and inputs.weight is not None:
        return sum(
            float(np.sum(inputs.weight[block].astype(inputs.dtype), dtype=np.float64))
            for block in inputs.blocks()
        )
    return float(inputs.size) if reduction.endswith("mean") else 1.0


class _PerClass:
    """What is reported of each class: of each index of the last axis."""

    def __init__(self, inputs: _Inputs) -> None:
        shape = inputs.shape
        if len(shape) < 2:
            raise ValueError(f"--per-class needs rows of classes; got logits of shape {shape}")
        self._names = inputs.column_names or [str(index) for index in range(shape[-1])]
        self._elements = math.prod(shape[:-1])
        self._dtype = inputs.dtype
        self._loss = np.zeros(shape[-1])
        self._weights = np.zeros(shape[-1])
        self._positives = np.zeros(shape[-1])
        self._counted = np.zeros(shape[-1])

    def add(self, block: Block, labels: Array, weight: Array | None, loss: Array) -> None:
        weight = np.ones(loss.shape) if weight is None else weight
        kept = weight != 0
        classes, others = block[-1], tuple(range(loss.ndim - 1))
        self._loss[classes] += np.sum(loss, others, np.float64)
        self._weights[classes] += np.sum(weight.astype(self._dtype), others, np.float64)
        self._positives[classes] += np.sum(labels, others, np.float64, where=kept)
        self._counted[classes] += np.count_nonzero(kept, others)

    def report(self, reduction: str) -> list[dict[str, Any]]:
        divisor = self._weights
        if reduction != "weighted_mean":
            divisor = np.full_like(self._loss, self._elements if reduction == "mean" else 1)
        value = np.where(divisor == 0, np.nan, self._loss / divisor)
        share = self._positives / self._counted
        return [
            {
                "class": name,
                "value": float(value[index]),
                "elements": self._elements,
                "share_of_positives": float(share[index]),
            }
            for index, name in enumerate(self._names)
        ]


def _stream(
    inputs: _Inputs,
    reduction: str,
    loss_out: NpyOutput | None,
    grad_out: NpyOutput | None,
    per_class: _PerClass | None,
    plot: Plot | None,
    advance: Callable[[int], object],
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


# Sums of infinities and means of nothing are results here, as they are in the library.
@np.errstate(all="ignore")
def _run(options: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as open_files:
        return _score(options, open_files)


def _score(options: argparse.Namespace, open_files: ExitStack) -> dict[str, Any]:
    if options.threads is not None:
        logitloss.set_num_threads(options.threads)
    reduction = options.reduction
    plot = None if options.plot is None else Plot(options.plot)
    inputs = _Inputs(options, open_files)
    per_class = _PerClass(inputs) if options.per_class else None
    loss_out = _npy_output(options.loss_out, inputs)
    grad_out = _npy_output(options.grad_out, inputs)
    plot_out = _plot_output(options.plot, inputs)
    outputs = [output for output in (loss_out, grad_out, plot_out) if output is not None]
    start = time.perf_counter()
    with published_together(outputs):
        with _progress(inputs.size) as advance:
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


def _as_json(report: dict[str, Any]) -> str:
    def valid(value: Any) -> Any:
        if isinstance(value, list):
            return [{key: valid(part) for key, part in row.items()} for row in value]
        is_special = isinstance(value, float) and not math.isfinite(value)
        return json.dumps(value) if is_special else value

    return json.dumps({key: valid(value) for key, value in report.items()})


def _as_text(report: dict[str, Any]) -> str:
    value = f"value ({report['reduction']})"
    rows = {
        "elements": f"{report['elements']:,}",
        "share of positives": f"{report['share_of_positives']:.2%}",
        "elements per second": f"{report['elements_per_second'] / 1e6:,.2f} million",
    }
    if report["value"] is not None:
        rows = {value: f"{report['value']}"} | rows
    lines = [f"{name:<23} {text}" for name, text in rows.items()]
    if "classes" in report:
        lines += ["", f"{'class':<23} {value:<23} {'share of positives'}"]
        lines += [
            f"{row['class']:<23} {row['value']:<23} {row['share_of_positives']:.2%}"
            for row in report["classes"]
        ]
    return "\n".join(lines)


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except OSError as error:
        # Otherwise the interpreter tries, and fails, once more as it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, "standard output") from error


def _complain(message: str) -> None:
    print("logitloss:", *message.split(), file=sys.stderr)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    try:
        options = _parse(argv)
        report = _run(options)
        _print(_as_json(report) if options.json else _as_text(report))
    except (OSError, TypeError, ValueError) as error:
        _complain(_reason(error))
        return 2
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
