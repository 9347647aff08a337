"""The options, their help, and what is refused before a file is opened."""

import argparse
import difflib
import itertools
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import logitloss
from logitloss._command_line.files import exists
from logitloss._command_line.outputs import read_array_path, read_plot_path
from logitloss._command_line.report import complain, print_out
from logitloss._command_line.sources import Source, read_source

EPILOG = """\
A SOURCE is a .npy file, or FILE:COLUMN, a column of a table. FILE:A,B,C is an array with one column
for each name. A comma at the end, FILE:A, makes a single column two-dimensional. FILE is a
.parquet, .pq, .csv or .tsv file (the last two also with .gz, .bz2 or .zst), a folder of parts, a
quoted pattern like 'part-*.parquet', or - for CSV from standard input. Tables need pyarrow.

Labels and logits must have the same shape. Weights have that shape or broadcast to it: (C,) beside
(N, C) is one weight per class. The value is summed and printed in float64. Output files have the
dtype of the library's result, and appear together or not at all. The share of positives is the mean
label of the elements whose weight is not 0.

exit status:
  0    success, with or without warnings
  2    bad arguments, bad input, an output that cannot be written or, with --strict, a warning
  130  interrupted

examples:
  logitloss labels.npy logits.npy --pos-weight 10
  logitloss scores.parquet:label scores.parquet:logit --weight scores.parquet:weight \\
      --reduction weighted_mean --plot scores.png
  logitloss tags.npy tags.csv:cat,dog --pos-weight per_class.npy --per-class --json
  logitloss labels.npy logits.npy --reduction none --loss-out loss.npy
"""


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    argv = sys.argv[1:] if argv is None else argv
    parser = _Parser(
        prog="logitloss",
        description="Weighted binary cross-entropy of labels and logits in .npy, Parquet and "
        "CSV files, in constant memory.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # argparse's own --help ignores an output that cannot be written.
        add_help=False,
    )
    _add_inputs(parser.add_argument)
    _add_results(parser.add_argument)
    _add_settings(parser.add_argument)
    _add_about(parser)
    options = parser.parse_args(argv)
    if options.reduction == "none":
        if not (options.loss_out or options.grad_out):
            parser.error("--reduction none has no value to print: give --loss-out or --grad-out")
        if options.per_class:
            parser.error("--reduction none has no value to print for --per-class")
        if options.by:
            parser.error("--reduction none has no value to print for --by")
    return options


def _add_inputs(add: Callable[..., argparse.Action]) -> None:
    add("labels", metavar="LABELS", type=read_source, help="SOURCE of any real dtype or bool")
    add("logits", metavar="LOGITS", type=read_source, help="SOURCE of any real dtype")
    add(
        "--pos-weight",
        metavar="Q",
        type=_number_or_source,
        default=1.0,
        help="the weight of positives: a number or a SOURCE (default: 1)",
    )
    add(
        "--weight",
        metavar="SOURCE",
        type=_weights,
        help="the weight of each element; 0 masks an element, whatever it holds",
    )


def _add_results(add: Callable[..., argparse.Action]) -> None:
    add(
        "--reduction",
        choices=("mean", "sum", "weighted_mean", "none"),
        default="mean",
        help="which value to print: the sum of the weighted losses (sum), divided by the number of "
        "elements (mean, the default) or by the sum of the weights (weighted_mean); "
        "none prints no value, and needs --loss-out or --grad-out",
    )
    add(
        "--loss-out",
        metavar="FILE",
        type=read_array_path,
        help="write the weighted loss of every element, whatever the reduction; the suffix decides "
        "the format: .npy, .parquet, .pq, .csv, .tsv, .csv.gz or .tsv.gz",
    )
    add(
        "--grad-out",
        metavar="FILE",
        type=read_array_path,
        help="write the gradient of the value with respect to the logits, in the same formats "
        "(with --reduction none: of each element's own loss)",
    )
    add(
        "--per-class",
        action="store_true",
        help="also print the value of each class (index of the last axis, or column)",
    )
    add(
        "--by",
        metavar="SOURCE",
        type=read_source,
        help="also print the value of each group of rows: those with the same text or number in "
        "SOURCE",
    )
    add(
        "--plot",
        metavar="FILE",
        type=read_plot_path,
        help="draw a calibration curve and a histogram of the losses, as .png, .svg or .pdf; "
        "{class} in the name makes one file for each class; needs matplotlib",
    )


def _add_settings(add: Callable[..., argparse.Action]) -> None:
    add(
        "--strict",
        action="store_true",
        help="treat warnings as errors: labels that are not between 0 and 1, negative weights, "
        "NaN, no elements",
    )
    add("--threads", metavar="N", type=int, help="the number of threads to compute with")
    add(
        "--json",
        action="store_true",
        help="print one JSON object; NaN and infinities become "
        'the strings "NaN", "Infinity" and "-Infinity"',
    )


def _add_about(parser: "_Parser") -> None:
    add = parser.add_argument
    add(
        "--config",
        action=_PrintAndExit,
        nargs=0,
        const=lambda _: json.dumps(logitloss.show_config("dicts"), indent=2),
        help="print the build and exit",
    )
    add(
        "--print-completion",
        action=_PrintAndExit,
        metavar="SHELL",
        choices=("bash", "zsh", "tcsh"),
        const=lambda shell: _completion(parser, shell),
        help="print a script that completes options and file names in bash, zsh or tcsh, and exit; "
        "needs shtab",
    )
    add(
        "--version",
        action=_PrintAndExit,
        nargs=0,
        const=lambda _: logitloss.__version__,
        help="print the version and exit",
    )
    add(
        "-h",
        "--help",
        action=_PrintAndExit,
        nargs=0,
        const=lambda _: parser.format_help().rstrip("\n"),
        help="print this help and exit",
    )


class _Parser(argparse.ArgumentParser):
    """Errors in one line. For an unknown option, the one that was probably meant."""

    def __init__(self, **settings: Any) -> None:
        self.actions: list[argparse.Action] = []
        super().__init__(**settings)

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        self.actions.append(super().add_argument(*names, **settings))
        return self.actions[-1]

    def parse_args(self, argv: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]
        self._refuse_unknown_options(argv)
        # argparse would take -:COLUMN for an option.
        return super().parse_args([f" {text}" if text.startswith("-:") else text for text in argv])

    def _refuse_unknown_options(self, argv: Sequence[str]) -> None:
        # Before argparse does so, because it counts the value of such an option as a source, and
        # takes abbreviations, which could come to mean something else with a new option.
        known = [name for action in self.actions for name in action.option_strings]
        for text in itertools.takewhile(lambda text: text != "--", argv):
            name = text.partition("=")[0]
            if re.match("--?[a-zA-Z]", text) and name not in known:
                similar = difflib.get_close_matches(name.replace("_", "-"), known, 1, 0.75)
                hint = f"; did you mean {similar[0]}?" if similar else ""
                self.error(f"unknown option {name}{hint}")

    def error(self, message: str) -> NoReturn:
        hint = "; `logitloss --help` tells more" if "required" in message else ""
        complain(message + hint)
        self.exit(2)


class _PrintAndExit(argparse.Action):
    """An option that needs no files beside it; `const` makes the text of the option's value."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, value: Any, option: object = None
    ) -> None:
        print_out(self.const(value))
        parser.exit()


def _completion(parser: _Parser, shell: str) -> str:
    try:
        import shtab
    except ImportError as error:
        raise ValueError(
            "--print-completion needs shtab: pip install 'logitloss[completion]'"
        ) from error
    take_files = (read_source, _number_or_source, _weights, read_array_path, read_plot_path)
    for action in parser.actions:
        if action.type in take_files:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell)).rstrip("\n")


def _number_or_source(text: str) -> float | Source:
    number = _number(text)
    if number is not None:
        return number
    source = read_source(text)
    is_file = source.columns or exists(source.path) or source.path.suffix.lower() == ".npy"
    if not is_file:
        raise argparse.ArgumentTypeError(f"{text}: neither a number nor a file")
    return source


def _weights(text: str) -> Source:
    if _number(text) is not None and not exists(Path(text)):
        raise argparse.ArgumentTypeError(
            f"it takes a SOURCE that holds a weight for each element; got the number {text}"
        )
    return read_source(text)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
