"""The command line: weighted cross-entropy over `.npy` files of any size.

The files are memory-mapped and taken block by block, each in one library call with reduction
"none". The losses are added up in float64, and the value is printed as it is then, not rounded to
the dtype of the data.
"""

import argparse
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import logitloss
from logitloss._arguments import parse as check_arguments
from logitloss._npy_files import Array, Input, Output, published_together

# Large enough that every thread has work, small enough that labels, logits, loss and gradient of
# a block take some MiB together.
BLOCK_ELEMENTS = 2**20

EPILOG = """\
Labels and logits have the same shape. A file of weights has that shape too or broadcasts to it:
(C,) beside (N, C) is one weight per class. The value is summed and printed in float64; output
files have the dtype of the library's result and appear complete or not at all. The share of
positives is the mean label of the elements whose weight is not 0.

exit status: 0 success, 2 bad input or output (one line on stderr), 130 interrupted

examples:
  logitloss labels.npy logits.npy --pos-weight 10
  logitloss labels.npy logits.npy --pos-weight per_class.npy --weight mask.npy \\
      --reduction weighted_mean --json
  logitloss labels.npy logits.npy --reduction none --loss-out loss.npy
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _complain(message)
        self.exit(2)


class _PrintAndExit(argparse.Action):
    """An option that needs no files beside it; `const` does the printing."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(nargs=0, **settings)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        self.const()
        parser.exit()


def _number_or_path(text: str) -> float | Path:
    try:
        return float(text)
    except ValueError:
        return Path(text)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="logitloss",
        description="Weighted binary cross-entropy of logits in .npy files, "
        "in constant memory however large the files.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("labels", metavar="LABELS", type=Path, help=".npy file of any real dtype or bool")
    add("logits", metavar="LOGITS", type=Path, help=".npy file of any real dtype")
    add(
        "--pos-weight",
        metavar="Q",
        type=_number_or_path,
        default=1.0,
        help="weight of the positives: a number or a .npy file (default: 1)",
    )
    add(
        "--weight",
        metavar="FILE",
        type=Path,
        help=".npy file of element weights; 0 masks an element whatever it holds",
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
        const=logitloss.show_config,
        help="print the build and exit",
    )
    add(
        "--version",
        action=_PrintAndExit,
        const=lambda: print(logitloss.__version__),
        help="print the version and exit",
    )
    options = parser.parse_args(argv)
    if options.reduction == "none" and not (options.loss_out or options.grad_out):
        parser.error("--reduction none has no value to print: give --loss-out or --grad-out")
    return options


class _Inputs:
    """Arrays of one shape, transposed where needed so that C order is the order in the files."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._files: list[Input] = []
        pos_weight = options.pos_weight
        arguments = check_arguments(
            self._open(options.labels),
            self._open(options.logits),
            self._open(pos_weight) if isinstance(pos_weight, Path) else pos_weight,
            None if options.weight is None else self._open(options.weight),
        )
        self.dtype: np.dtype[Any] = arguments.dtype
        self.shape: tuple[int, ...] = arguments.logits.shape
        self.size = math.prod(self.shape)
        self.fortran_order: bool = arguments.logits.flags.fnc

        def in_file_order(value: Any) -> Any:
            if not isinstance(value, np.ndarray):
                return value
            array = np.broadcast_to(value, self.shape)
            return array.T if self.fortran_order else array

        self.labels: Array = in_file_order(arguments.labels)
        self.logits: Array = in_file_order(arguments.logits)
        self.pos_weight: Array | float = in_file_order(arguments.pos_weight)
        self.weight: Array | None = in_file_order(arguments.weight)

    def _open(self, path: Path) -> Array:
        self._files.append(Input(path))
        return self._files[-1].array

    def paths(self) -> list[Path]:
        return [file.path for file in self._files]

    def blocks(self) -> Iterator[tuple[Any, ...]]:
        """Index the arrays in C order, at most BLOCK_ELEMENTS elements at a time."""
        if self.size == 0:
            return
        shape = self.logits.shape or (1,)
        axis = 0
        while math.prod(shape[axis + 1 :]) > BLOCK_ELEMENTS:
            axis += 1
        step = BLOCK_ELEMENTS // math.prod(shape[axis + 1 :])
        for leading in np.ndindex(shape[:axis]):
            for start in range(0, shape[axis], step):
                # A 0-d array takes no index, and becomes a scalar without the ellipsis.
                yield (*leading, slice(start, start + step), ...) if self.shape else (...,)
                for file in self._files:
                    file.release()

    def part(self, block: tuple[Any, ...]) -> tuple[Array, Array, Array | float, Array | None]:
        """Labels, logits, pos_weight and weight of a block."""

        def coefficient(value: Any) -> Any:
            return value[block] if isinstance(value, np.ndarray) else value

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


def _output(path: Path | None, inputs: _Inputs) -> Output | None:
    if path is None:
        return None
    if path.exists() and any(path.samefile(other) for other in inputs.paths()):
        raise ValueError(f"{path}: an output must not replace an input")
    return Output(path, inputs.shape, inputs.dtype, inputs.fortran_order)


def _divisor(inputs: _Inputs, reduction: str) -> float:
    if reduction == "weighted_mean" and inputs.weight is not None:
        return sum(
            float(np.sum(inputs.weight[block].astype(inputs.dtype), dtype=np.float64))
            for block in inputs.blocks()
        )
    return float(inputs.size) if reduction.endswith("mean") else 1.0


# Sums of infinities and means of nothing are results here, as they are in the library.
@np.errstate(all="ignore")
def _stream(
    inputs: _Inputs,
    reduction: str,
    loss_out: Output | None,
    grad_out: Output | None,
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
            grad_out.append(quotient)
        if loss_out is not None:
            loss_out.append(loss)
        total += float(np.sum(loss, dtype=np.float64))
        kept = True if weight is None else weight != 0
        positives += float(np.sum(labels, dtype=np.float64, where=kept))
        counted += labels.size if weight is None else np.count_nonzero(kept)
        advance(labels.size)
    return (
        total / divisor if divisor else math.nan,
        positives / counted if counted else math.nan,
    )


def _run(options: argparse.Namespace) -> dict[str, Any]:
    if options.threads is not None:
        logitloss.set_num_threads(options.threads)
    inputs = _Inputs(options)
    loss_out = _output(options.loss_out, inputs)
    grad_out = _output(options.grad_out, inputs)
    start = time.perf_counter()
    with (
        published_together([output for output in (loss_out, grad_out) if output is not None]),
        _progress(inputs.size) as advance,
    ):
        value, positives = _stream(inputs, options.reduction, loss_out, grad_out, advance)
    seconds = time.perf_counter() - start
    return {
        "value": None if options.reduction == "none" else value,
        "reduction": options.reduction,
        "elements": inputs.size,
        "share_of_positives": positives,
        "elements_per_second": inputs.size / seconds,
    }


def _as_json(report: dict[str, Any]) -> str:
    def valid(value: Any) -> Any:
        is_special = isinstance(value, float) and not math.isfinite(value)
        return json.dumps(value) if is_special else value

    return json.dumps({key: valid(value) for key, value in report.items()})


def _as_text(report: dict[str, Any]) -> str:
    rows = {
        "elements": f"{report['elements']:,}",
        "share of positives": f"{report['share_of_positives']:.2%}",
        "elements per second": f"{report['elements_per_second'] / 1e6:,.2f} million",
    }
    if report["value"] is not None:
        rows = {f"value ({report['reduction']})": f"{report['value']}"} | rows
    return "\n".join(f"{name:<23} {text}" for name, text in rows.items())


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
