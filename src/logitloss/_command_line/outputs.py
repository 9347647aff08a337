"""Which file each result is written to, and in which format."""

import re
from argparse import ArgumentTypeError
from pathlib import Path
from typing import TypeAlias

from logitloss._command_line.files import Output, require_regular_file
from logitloss._command_line.formats import is_address, table_format
from logitloss._command_line.inputs import Inputs
from logitloss._command_line.npy import NpyOutput
from logitloss._command_line.table_outputs import TableOutput

ArrayOutput: TypeAlias = NpyOutput | TableOutput

_ARRAYS = (".npy", ".parquet", ".pq", ".csv", ".tsv", ".csv.gz", ".tsv.gz")
_PLOTS = (".png", ".svg", ".pdf")
# Stands for the name of a class in the path of a plot.
_CLASS = "{class}"


def read_array_path(text: str) -> Path:
    """Read an argument that names a file to write an array to."""
    return _read_path(text, _ARRAYS)


def read_plot_path(text: str) -> Path:
    """Read an argument that names a file to draw a plot into."""
    return _read_path(text, _PLOTS)


def _read_path(text: str, suffixes: tuple[str, ...]) -> Path:
    path = Path(text)
    if is_address(text) and not path.parent.exists():
        raise ArgumentTypeError(f"{text}: only files on this machine are written")
    try:
        require_regular_file(path)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error
    if not path.name.lower().endswith(suffixes):
        *others, last = suffixes
        raise ArgumentTypeError(f"{text}: it must end in {', '.join(others)} or {last}")
    return path


def is_table(path: Path | None) -> bool:
    return path is not None and table_format(path) is not None


def array_output(path: Path | None, name: str, inputs: Inputs) -> ArrayOutput | None:
    """An array of the logits' shape; `name` is the name of its column if it has only one."""
    if path is None:
        return None
    _refuse_input(path, inputs)
    form = table_format(path)
    if form is None:
        return NpyOutput(path, inputs.shape, inputs.dtype, inputs.fortran_order)
    names = inputs.class_names if len(inputs.shape) == 2 else [name]
    return TableOutput(path, form, names, inputs.shape, inputs.dtype)


def plot_output(path: Path, inputs: Inputs) -> Output:
    _refuse_input(path, inputs)
    return Output(path)


def is_path_of_each_class(path: Path) -> bool:
    return _CLASS in path.name


def path_of_class(path: Path, name: str) -> Path:
    """Put the name of a class into a path, without what cannot be part of a file's name."""
    return path.with_name(path.name.replace(_CLASS, re.sub(r"[^\w.+-]+", "_", name)))


def _refuse_input(path: Path, inputs: Inputs) -> None:
    if path.exists() and any(path.samefile(other) for other in inputs.paths()):
        raise ValueError(f"{path}: an output must not replace an input")
