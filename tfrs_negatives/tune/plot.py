"""`report.png`: how the best value came about, and the metric against each parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tfrs_negatives.core.files import drafted_file
from tfrs_negatives.tune.results import COMPLETE, PRUNED
from tfrs_negatives.tune.space import Parameter

MARKS: dict[str, dict[str, Any]] = {
    COMPLETE: {"marker": "o", "color": "tab:blue"},
    PRUNED: {"marker": "x", "color": "tab:gray"},
}
COLUMNS = 3


def write_plot(
    rows: Sequence[Mapping[str, Any]],
    parameters: Sequence[Parameter],
    path: Path,
    *,
    metric: str,
    baseline: float,
) -> None:
    """Draws the trials that have a value.

    Args:
        rows: the trials, see `trial_rows`; at least one is complete.
        parameters: what they differ in.
        path: the PNG file.
        metric: the name of the value.
        baseline: the metric of the most popular items.
    """
    rows = [row for row in rows if row["state"] in MARKS and row["value"] is not None]
    best = max((row for row in rows if row["state"] == COMPLETE), key=lambda row: row["value"])
    width = min(COLUMNS, 1 + len(parameters))
    height = math.ceil((1 + len(parameters)) / width)
    figure = Figure(figsize=(4.2 * width, 3.4 * height), layout="constrained")
    panels = figure.subplots(height, width, squeeze=False, sharey=True).ravel()
    _draw_history(panels[0], rows)
    panels[0].set_title(f"most popular items: {baseline:.4f}", fontsize="medium")
    for panel, parameter in zip(panels[1:], parameters, strict=False):
        _draw_parameter(panel, rows, parameter)
        _mark(panel, [best], [_place(best, parameter)], marker="*", s=160, color="tab:orange")
    for panel in panels[::width]:
        panel.set_ylabel(f"{metric}, validation part")
    for panel in panels[1 + len(parameters) :]:
        panel.set_axis_off()
    with drafted_file(path, argument="out") as draft:
        figure.savefig(draft, format="png", dpi=120)


def _draw_history(panel: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for state, look in MARKS.items():
        chosen = [row for row in rows if row["state"] == state]
        _mark(panel, chosen, [row["number"] for row in chosen], label=state, **look)
    complete = [row for row in rows if row["state"] == COMPLETE]
    numbers = [row["number"] for row in complete] + [rows[-1]["number"]]
    best = np.maximum.accumulate([row["value"] for row in complete])
    panel.step(numbers, [*best, best[-1]], where="post", color="tab:orange", label="best so far")
    panel.set_xlabel("trial")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.legend(fontsize="small")


def _draw_parameter(panel: Axes, rows: Sequence[Mapping[str, Any]], parameter: Parameter) -> None:
    for state, look in MARKS.items():
        chosen = [row for row in rows if row["state"] == state]
        _mark(panel, chosen, [_place(row, parameter) for row in chosen], **look)
    if parameter.is_log:
        panel.set_xscale("log")
    if not parameter.values:
        # The whole range, so that a best value at its end shows.
        panel.set_xlim(*parameter.ends)
    else:
        names = [text.replace("_", "_\n") if len(text) > 12 else text for text in parameter.values]
        panel.set_xticks(range(len(names)), names, fontsize="small")
        panel.set_xlim(-0.5, len(names) - 0.5)
    panel.set_xlabel(parameter.key)


def _place(row: Mapping[str, Any], parameter: Parameter) -> Any:
    """Where a trial is on the axis of a parameter; the values of `one_of` are numbered."""
    drawn = row[parameter.key]
    return list(parameter.values).index(drawn) if parameter.values else drawn


def _mark(panel: Axes, rows: Sequence[Mapping[str, Any]], places: list[Any], **look: Any) -> None:
    panel.scatter(places, [row["value"] for row in rows], clip_on=False, zorder=3, **look)
