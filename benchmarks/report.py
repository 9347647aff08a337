"""Tables and plots of what compare.py has measured."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

Results = dict[str, Any]
DTYPES = ("float32", "float64")
CASES = ("loss", "mean", "mean + gradient")
COMPILED = ("torch.compile", "JAX jit", "TensorFlow XLA")

# A case of logitloss, what it is compared with, and the most that its time may be of the other's,
# in float32 and float64.
OVER_BOUNDS = (
    ("loss", ("memory", "triad"), 1.15, 1.5),
    ("mean + gradient", ("memory", "triad"), 1.2, 1.7),
    ("mean", ("memory", "sweep"), 1.7, 2.4),
    ("loss without out", ("logitloss", "loss"), 1.5, 1.5),
    ("loss, pos_weight of 8 classes", ("logitloss", "loss"), 1.2, 1.2),
    ("loss, pos_weight of 100 classes", ("logitloss", "loss"), 1.2, 1.2),
    ("loss, pos_weight of 1000 classes", ("logitloss", "loss"), 1.2, 1.2),
    ("loss, weight", ("memory", "weighted triad"), 1.2, 1.5),
    ("loss, Fortran order", ("logitloss", "loss"), 1.1, 1.1),
    ("loss, every second element", ("logitloss", "loss"), 2.5, 2.5),
    ("loss, bool labels", ("logitloss", "loss"), 1.1, 1.1),
    ("loss, int8 labels", ("logitloss", "loss"), 1.1, 1.1),
)
# A case of logitloss, what the memory alone takes, and the most that its time may be of the greater
# of this and of what its arithmetic takes.
OVER_ROOFLINE = (
    ("loss", "triad", 1.15),
    ("mean", "sweep", 1.15),
    ("mean + gradient", "triad", 1.2),
    ("loss, weight", "weighted triad", 1.2),
)
# A case, the peers of which the fastest counts, and how many times faster to be at least.
OVER_PEERS = (
    ("loss", COMPILED, 2, 3),
    ("mean", COMPILED, 1.5, 1.1),
    ("mean + gradient", COMPILED, 3, 3),
    ("loss", ("PyTorch",), 10, 8),
)
# Where the time per element may not rise by more than a fifth over the best smaller size, and
# where a call may not take longer than NumPy's addition.
SMOOTH, MOST_RISE = (100, 1_000_000), 1.2
SHORT, MOST_OVER_ADD = (1, 100), 1.0


def tables(results: Results) -> dict[str, str]:
    """Tables in Markdown by name. What misses its aim is bold."""
    found = {
        "environment": _environment(results["environment"]),
        "bounds": _bounds(results["large"]),
        "roofline": _roofline(results["large"], results["size"]),
        "peers": _peers(results["large"], results["size"]),
        "faster": _faster(results["large"]),
        "sizes": _sizes(results["sizes"]),
    }
    return {name: table for name, table in found.items() if table}


def table(header: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    # The first column holds words, the others numbers.
    rules = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rules, *rows])


def mark(value: float, reached: bool, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if reached else f"**{value:.{digits}f}**"


def _environment(about: dict[str, Any]) -> str:
    own = about["logitloss"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    rows = {
        "processor": f"{about['processor']}, {about['processors']} processors visible",
        "threads, instructions": f"{own['threads']}, {own['cpu']}",
        "system": about["system"],
        "compiler": about["compiler"],
        "logitloss": f"{own['version']}, commit {about['commit'] or 'unknown'}",
        "others": f"Python {about['python']}, {versions}",
    }
    return "\n".join(
        ["| setting | value |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in rows.items())]
    )


def _bounds(large: Results) -> str:
    rows = []
    for case, (library, other), *limits in OVER_BOUNDS:
        row = [f"{case} / {other}"]
        for dtype, limit in zip(DTYPES, limits, strict=True):
            ratio = large[dtype]["logitloss"][case] / large[dtype][library][other]
            row += [mark(ratio, ratio <= limit), f"{limit}"]
        rows.append(row)
    return table(["times the other's time", "float32", "at most", "float64", "at most"], rows)


def _roofline(large: Results, size: int) -> str:
    rows = []
    for case, stream, limit in OVER_ROOFLINE:
        for dtype in DTYPES:
            if "arithmetic" not in large[dtype]:
                continue
            memory, arithmetic = large[dtype]["memory"][stream], large[dtype]["arithmetic"][case]
            ratio = large[dtype]["logitloss"][case] / max(memory, arithmetic)
            bounds = (f"{seconds / size * 1e9:.2f}" for seconds in (memory, arithmetic))
            rows.append([f"{case}, {dtype}", *bounds, mark(ratio, ratio <= limit), f"{limit}"])
    return table(["case", "memory, ns", "arithmetic, ns", "over the greater", "at most"], rows)


def _faster(large: Results) -> str:
    rows = []
    for case, libraries, *limits in OVER_PEERS:
        row = []
        for dtype, limit in zip(DTYPES, limits, strict=True):
            seconds = {n: large[dtype][n][case] for n in libraries if n in large[dtype]}
            if seconds:
                peer = min(seconds, key=seconds.__getitem__)
                ratio = seconds[peer] / large[dtype]["logitloss"][case]
                row += [f"{mark(ratio, ratio >= limit)} ({peer})", f"{limit}"]
        if row:
            kind = "the fastest compiled peer" if libraries is COMPILED else libraries[0]
            rows.append([f"{case}, than {kind}", *row])
    return table(["times faster", "float32", "at least", "float64", "at least"], rows)


def _peers(large: Results, size: int) -> str:
    def row(name: str, library: str, cases: tuple[str, ...]) -> list[str]:
        seconds = [large[dtype].get(library, {}).get(c) for dtype in DTYPES for c in cases]
        return [name, *("" if s is None else f"{s / size * 1e9:.2f}" for s in seconds)]

    rows = [
        row("memory alone", "memory", ("triad", "sweep", "triad")),
        row("logitloss", "logitloss", CASES),
        row(
            "logitloss, without `out`",
            "logitloss",
            ("loss without out", "mean", "mean + gradient without out"),
        ),
    ]
    rows += [row(name, name, CASES) for name in by_loss(large)]
    header = [f"{dtype} {case}" for dtype in DTYPES for case in CASES]
    return table(["ns per element", *header], rows)


def by_loss(large: Results) -> list[str]:
    """The peers, the fastest float32 loss first."""
    times = {name: cases["loss"] for name, cases in large["float32"].items() if "loss" in cases}
    for own in ("logitloss", "arithmetic"):
        times.pop(own, None)
    return sorted(times, key=times.__getitem__)


def _sizes(sizes: Results) -> str:
    if not sizes:
        return ""
    rows = []
    for case in ("loss", "loss into out", "mean", "mean + gradient"):
        row = [f"{case}: largest rise over a smaller size, {SMOOTH[0]:,} to {SMOOTH[1]:,} elements"]
        for dtype in DTYPES:
            rise, size = largest_rise(sizes[dtype]["logitloss"][case])
            row += [f"{mark(rise, rise <= MOST_RISE)} (at {size:,})", f"{MOST_RISE}"]
        rows.append(row)
    row = [f"loss / np.add, most, {SHORT[0]} to {SHORT[1]} elements"]
    for dtype in DTYPES:
        ratio, size = _over_add(sizes[dtype])
        row += [f"{mark(ratio, ratio <= MOST_OVER_ADD)} (at {size:,})", f"{MOST_OVER_ADD}"]
    return table(["times", "float32", "at most", "float64", "at most"], [*rows, row])


def largest_rise(seconds: dict[str, float]) -> tuple[float, int]:
    """The largest time per element over the best at a smaller size, and at how many elements."""
    costs = {int(n): s / int(n) for n, s in seconds.items() if SMOOTH[0] <= int(n) <= SMOOTH[1]}
    rises = {n: cost / min(c for m, c in costs.items() if m <= n) for n, cost in costs.items()}
    worst = max(rises, key=rises.__getitem__)
    return rises[worst], worst


def _over_add(sizes: Results) -> tuple[float, int]:
    ratios = {
        int(n): sizes["logitloss"]["loss"][n] / s
        for n, s in sizes["NumPy"]["np.add"].items()
        if SHORT[0] <= int(n) <= SHORT[1]
    }
    worst = max(ratios, key=ratios.__getitem__)
    return ratios[worst], worst


def add_options(parser: argparse.ArgumentParser) -> None:
    """What becomes of the results."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the results")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw them")
    parser.add_argument(
        "--page", type=Path, nargs="+", default=[], metavar="FILE", help="renew the tables of pages"
    )
    parser.add_argument("--from", type=Path, metavar="FILE", dest="saved", help="measure nothing")


def saved_or(measure: Callable[[], Results], options: argparse.Namespace) -> Results:
    """The results that the options name, or new ones, saved where the options say."""
    results = json.loads(options.saved.read_text()) if options.saved else measure()
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return results


def renew(page: Path, found: dict[str, str]) -> None:
    """Put tables between the page's markers, ``<!-- table: NAME -->`` and ``<!-- end -->``."""

    def table(match: re.Match[str]) -> str:
        text = found.get(match["name"])
        return f"{match['start']}\n\n{text}\n\n{match['end']}" if text else match[0]

    pattern = r"(?P<start><!-- table: (?P<name>.*?) -->).*?(?P<end><!-- end -->)"
    page.write_text(re.sub(pattern, table, page.read_text(), flags=re.DOTALL))


# The look of all figures on the pages.
STYLE = Path(__file__).parents[1] / "docs" / "figures" / "logitloss.mplstyle"
# The same colour for a library in every figure, by its place in the style's cycle.
COLOURS = {
    "logitloss": "C0",
    "NumPy": "C1",
    "JAX": "C2",
    "PyTorch": "C3",
    "TensorFlow": "C4",
    "memory": "C5",
}
LINES = {"logitloss": "logitloss", "JAX jit": "JAX", "PyTorch": "PyTorch", "NumPy": "NumPy"}


def draw(results: Results, folder: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    with plt.style.context(STYLE):
        save(_bars(plt, results["large"], results["size"]), folder / "peers.svg")
        if results["sizes"]:
            save(_throughput(plt, results), folder / "throughput.svg")


def save(figure: Any, path: Path) -> None:
    """Write a figure in the font of the page that shows it, rather than in matplotlib's own."""
    figure.savefig(path, bbox_inches="tight", pad_inches=0.05, metadata={"Date": None})
    text = re.sub(r"'DejaVu Sans', |^ *<!--.*?-->\n|^ +", "", path.read_text(), flags=re.M)
    path.write_text(text)


def _throughput(plt: Any, results: Results) -> Any:
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for dtype, axes in zip(DTYPES, panels, strict=True):
        for library, name in LINES.items():
            seconds = results["sizes"][dtype].get(library, {}).get("loss")
            if seconds:
                own = library == "logitloss"
                axes.loglog(
                    [int(n) for n in seconds],
                    [int(n) / s for n, s in seconds.items()],
                    color=COLOURS[name],
                    linewidth=2.2 if own else 1.4,
                    label=library,
                    zorder=3 if own else 2,
                )
        bound = results["size"] / results["large"][dtype]["memory"]["triad"]
        axes.axhline(bound, color=COLOURS["memory"], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.text(1, bound * 1.15, "memory alone", fontsize=9, va="bottom")
        axes.set_title(f"loss, {dtype}", fontsize=11)
        axes.set_xlabel("elements")
        axes.grid(True, which="major")
        axes.minorticks_off()
    panels[0].set_ylabel("elements per second")
    panels[1].legend(loc="lower right")
    return figure


def _bars(plt: Any, large: Results, size: int) -> Any:
    libraries = ["memory", "logitloss", *by_loss(large)]
    bounds = {"loss": "triad", "mean": "sweep", "mean + gradient": "triad"}
    figure, panels = plt.subplots(
        1, len(CASES), figsize=(9, 0.4 * len(libraries) + 0.8), sharey=True
    )
    for case, axes in zip(CASES, panels, strict=True):
        for dtype, offset in zip(DTYPES, (-0.19, 0.19), strict=True):
            for row, library in enumerate(libraries):
                name = bounds[case] if library == "memory" else case
                cost = large[dtype].get(library, {}).get(name)
                if cost is None:
                    continue
                cost *= 1e9 / size
                alpha = 0.55 if dtype == "float64" else 1
                colour = COLOURS.get(library, COLOURS["NumPy"])
                axes.barh(row + offset, cost, 0.34, color=colour, alpha=alpha)
                axes.annotate(
                    f"{cost:.2g}" if cost < 10 else f"{cost:.0f}",
                    (cost, row + offset),
                    xytext=(3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                )
        axes.set_title(case, fontsize=11)
        axes.set_xlabel("ns per element")
        axes.margins(x=0.12)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    labels = ["memory alone" if name == "memory" else name for name in libraries]
    panels[0].set_yticks(range(len(libraries)), labels)
    panels[0].get_yticklabels()[libraries.index("logitloss")].set_color(COLOURS["logitloss"])
    panels[0].invert_yaxis()
    patches = [plt.Rectangle((0, 0), 1, 1, color=COLOURS["NumPy"], alpha=a) for a in (1, 0.55)]
    panels[-1].legend(patches, DTYPES, loc="lower right", fontsize=9)
    return figure
