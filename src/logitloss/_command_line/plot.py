"""The plots that are asked for: what each counts, its file and its title."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from logitloss._command_line.drawing import draw
from logitloss._command_line.files import Output
from logitloss._command_line.histograms import Histograms, HistogramsOfClass
from logitloss._command_line.inputs import Inputs
from logitloss._command_line.outputs import is_path_of_each_class, path_of_class, plot_output


def require_matplotlib() -> None:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ValueError("--plot needs matplotlib: pip install 'logitloss[plot]'") from error


class Plot(NamedTuple):
    """A plot of one class, or of all elements if there is no index."""

    histograms: Histograms
    output: Output
    class_index: int | None

    def draw(self, sources: Mapping[str, Any], reduction: str, row: Mapping[str, Any]) -> None:
        """Write the picture. `row` is the row of a report on the same elements."""
        title = _title(sources, reduction, row)
        self.output.write(draw(self.histograms, title, self.output.path.suffix))


def open_plots(path: Path, inputs: Inputs) -> Iterator[Plot]:
    if not is_path_of_each_class(path):
        yield Plot(Histograms(), plot_output(path, inputs), None)
        return
    if len(inputs.shape) < 2:
        raise ValueError(f"{path}: a plot of each class needs rows of classes")
    for index, name in enumerate(inputs.class_names):
        output = plot_output(path_of_class(path, name), inputs)
        yield Plot(HistogramsOfClass(index), output, index)


def _title(sources: Mapping[str, Any], reduction: str, row: Mapping[str, Any]) -> str:
    """What was scored, how, and the result."""
    pos_weight, weight = sources["pos_weight"], sources["weight"]
    scored = f"{_short(sources['labels'])} and {_short(sources['logits'])}"
    if "class" in row:
        scored += f", class {_short(row['class'])}"
    how = f"pos_weight {f'{pos_weight:g}' if isinstance(pos_weight, float) else _short(pos_weight)}"
    if weight is not None:
        how += f", weight {_short(weight)}"
    result = f"{row['elements']:,} elements, {reduction} of the loss {row['value']:.6g}"
    return f"{scored}\n{how}: {result}"


def _short(name: object) -> str:
    """The end of a long name, which says more than its beginning."""
    text = str(name)
    return text if len(text) <= 40 else f"…{text[-39:]}"
