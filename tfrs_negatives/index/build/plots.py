"""What tuning an index tried, as a picture: recall against time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from tfrs_negatives.core.files import drafted_file

_MARKS = "osD^vPX*"


def plot_sweep(sweep: Sequence[Mapping[str, Any]], path: Path, *, target: float) -> None:
    """Draws recall against milliseconds of all trials, a panel for each number of results.

    Args:
        sweep: the trials, as `Index.sweep` and the manifest of an export hold them.
        path: the PNG file.
        target: the recall that was to be reached, a line.

    Raises:
        InputError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> trial = {"num_leaves": 30, "leaves": 2, "reorder": 50, "k": 10, "recall": 0.9}
        >>> sweep = [{**trial, "milliseconds": 0.1, "chosen": True}]
        >>> path = Path(tempfile.mkdtemp()) / "sweep.png"
        >>> plot_sweep(sweep, path, target=0.95)
        >>> path.stat().st_size > 1000
        True
    """
    numbers = sorted({trial["k"] for trial in sweep})
    figure = Figure(figsize=(4.6 * len(numbers), 3.8), layout="constrained")
    panels = figure.subplots(1, len(numbers), squeeze=False)[0]
    for panel, k in zip(panels, numbers, strict=True):
        _draw(panel, [trial for trial in sweep if trial["k"] == k], target)
        panel.set_title(f"the {k} best")
    panels[0].set_ylabel("recall")
    with drafted_file(path, argument="path") as draft:
        figure.savefig(draft, format="png", dpi=120)


def _draw(panel: Axes, trials: Sequence[Mapping[str, Any]], target: float) -> None:
    lines = sorted({(trial["num_leaves"], trial["reorder"]) for trial in trials})
    trees = sorted({leaves for leaves, _ in lines})
    for number, (leaves, reorder) in enumerate(lines):
        line = [t for t in trials if (t["num_leaves"], t["reorder"]) == (leaves, reorder)]
        line.sort(key=lambda trial: trial["leaves"])
        panel.plot(
            [trial["milliseconds"] for trial in line],
            [trial["recall"] for trial in line],
            marker=_MARKS[trees.index(leaves) % len(_MARKS)],
            color=f"C{number % 10}",
            label=f"{leaves} leaves, {reorder} reordered",
            markersize=4,
            linewidth=1,
        )
    for trial in (trial for trial in trials if trial["chosen"]):
        panel.scatter(
            trial["milliseconds"], trial["recall"], s=160, marker="*", color="black", zorder=3
        )
    panel.axhline(target, color="gray", linewidth=0.8, linestyle="--")
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("milliseconds per query, in a batch")
    panel.legend(fontsize="x-small")
