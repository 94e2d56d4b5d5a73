"""The plots of the report: one look per variant, kept in all of them."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tfrs_negatives.evaluation.summary import SLICES

Line = Literal["-", "--", ":", "-."]
# Okabe and Ito, "Color Universal Design", 2008, without its yellow, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES: tuple[Line, ...] = ("-", "--", ":", "-.")
GREY, PALE, DARK = "#767676", "#a8a8a8", "#4d4d4d"
DOTS = (0, (1, 1.5))
WIDTH, DPI = 9.6, 150
MAX_ROW_LABEL = 34

Results = Mapping[str, Any]


class Style(NamedTuple):
    """How a variant is drawn, wherever it is."""

    colour: str
    marker: str
    line: Line


def style_of(number: int) -> Style:
    """Returns the look of the variant of this number.

    Colours repeat after 7; the marker and the line then still tell variants apart.

    Example:
        >>> len({style_of(number) for number in range(28)})
        28
    """
    again = number // len(COLOURS)
    return Style(
        COLOURS[number % len(COLOURS)],
        MARKERS[(number + again) % len(MARKERS)],
        LINES[again % len(LINES)],
    )


def draw_plots(results: Results) -> dict[str, bytes]:
    """Draws everything that the results have.

    Args:
        results: see `compare`.

    Returns:
        Name -> PNG.
    """
    plots: dict[str, Callable[[Results], Figure]] = {
        "learning_curves": _learning_curves,
        "recall_by_popularity": _recall_by_popularity,
        "popularity": _popularity,
        "seconds": _seconds,
        "scores": _scores,
        "item_counts": _item_counts,
    }
    if any(v["diagnostics"]["log_q"] for v in results["variants"]):
        plots["log_q"] = _log_q
    return {name: _to_png(draw(results)) for name, draw in plots.items()}


def _to_png(figure: Figure) -> bytes:
    file = io.BytesIO()
    # Without a date and a version, equal results give equal files.
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), layout="constrained")


def _tidy(axes: Axes, *, grid: str = "both") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, axis=grid, color="#e5e5e5", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def _literal(name: str) -> str:
    """A name in which matplotlib sees no formula."""
    return name.replace("$", r"\$")


def _wrapped(name: str, width: int) -> str:
    """A name in lines of at most so many letters, broken after a space or a sign."""
    lines = [""]
    for part in re.findall(rf"[^ _,.=-]{{0,{width - 1}}}.", name):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return _literal("\n".join(line.strip() for line in lines))


def label(metric: str) -> str:
    """What a metric is called in a sentence.

    Example:
        >>> label("tail_recall_at_10"), label("ndcg_at_5")
        ('tail recall at 10', 'NDCG at 5')
    """
    return metric.replace("_", " ").replace("ndcg", "NDCG")


def _mean(record: Results, metric: str) -> float:
    return record["metrics"][metric]["mean"]


# ------------------------------------------------------------------ one panel, variants as lines


def _with_legend(results: Results, *, rows: float = 4.2) -> tuple[Figure, Axes]:
    """A figure with one panel, and below it what each colour is."""
    names = [v["name"] for v in results["variants"]]
    widest = max(map(len, names))
    columns = min(len(names), 3 if widest <= 32 else 2 if widest <= 52 else 1)
    labels = [_wrapped(name, 100) for name in names]
    lines = sum(label.count("\n") + 1 for label in labels) / columns
    figure = _figure(rows + 0.35 + 0.21 * np.ceil(lines))
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.line)
        for look in map(style_of, range(len(names)))
    ]
    # matplotlib takes a label that begins with _ for one that is not to be shown.
    labels = ["\u200a" + label for label in labels]
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, frameon=False)
    return figure, figure.subplots()


def _learning_curves(results: Results) -> Figure:
    figure, axes = _with_legend(results)
    for number, variant in enumerate(results["variants"]):
        look, curve = style_of(number), variant["curve"]
        epochs = [point["epoch"] for point in curve]
        means = np.array([point["mean"] for point in curve])
        stds = np.array([point["std"] or 0.0 for point in curve])
        axes.plot(
            epochs,
            means,
            color=look.colour,
            marker=look.marker,
            linestyle=look.line,
            markersize=5,
        )
        if len(results["seeds"]) > 1:
            axes.fill_between(
                epochs, means - stds, means + stds, color=look.colour, alpha=0.15, linewidth=0
            )
    _mark_popular(axes, results)
    axes.set(xlabel="epoch", ylabel=label(results["metric"]))
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _tidy(axes)
    return figure


def _mark_popular(axes: Axes, results: Results) -> None:
    """A line at the height of the most popular items."""
    reference = results["references"][0]
    height = _mean(reference, results["metric"])
    axes.axhline(height, color=GREY, linewidth=1.2, linestyle=DOTS)
    axes.annotate(
        reference["name"],
        (1, height),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=GREY,
        fontsize=9,
    )


def _seconds(results: Results) -> Figure:
    figure, axes = _with_legend(results)
    for number, variant in enumerate(results["variants"]):
        look, time = style_of(number), variant["seconds_per_epoch"]
        if time["mean"] is None:
            continue
        value = variant["metrics"][results["metric"]]
        axes.errorbar(
            time["mean"],
            value["mean"],
            xerr=time["std"],
            yerr=value["std"],
            color=look.colour,
            marker=look.marker,
            markersize=8,
            elinewidth=1,
        )
    _mark_popular(axes, results)
    axes.set(xlabel="seconds per epoch", ylabel=label(results["metric"]))
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    _tidy(axes)
    return figure


# ------------------------------------------------------------------ variants as rows


def _row_panels(results: Results, panels: Mapping[str, str]) -> tuple[Figure, list[Axes]]:
    """Panels side by side in which each variant has a row, and its mean and deviation a point.

    Args:
        results: see `compare`.
        panels: metric -> what is on its axis.
    """
    variants = results["variants"]
    labels = [_wrapped(v["name"], MAX_ROW_LABEL) for v in variants]
    lines = max(label.count("\n") + 1 for label in labels)
    figure = _figure(1.1 + len(variants) * (0.2 + 0.16 * lines))
    grid = list(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0])
    for axes, (metric, title) in zip(grid, panels.items(), strict=True):
        for row, variant in enumerate(variants):
            _draw_point(axes, row, variant["metrics"].get(metric))
        axes.set_xlabel(title)
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", nbins=3 if len(panels) > 2 else 8)
        _tidy(axes, grid="x")
    grid[0].set_yticks(range(len(variants)), labels)
    grid[0].set_ylim(len(variants) - 0.5, -0.5)
    return figure, grid


def _draw_point(axes: Axes, row: int, value: Results | None) -> None:
    if value is None or value["mean"] is None:
        return
    look = style_of(row)
    axes.plot([0, value["mean"]], [row, row], color=look.colour, linewidth=1.2, alpha=0.5)
    if value["std"] is not None:
        axes.errorbar(value["mean"], row, xerr=value["std"], color=look.colour, elinewidth=1.5)
    # Also the half of a point at 0 that is outside the panel.
    axes.plot(value["mean"], row, color=look.colour, marker=look.marker, ms=7, clip_on=False)


def _recall_by_popularity(results: Results) -> Figure:
    metrics = [f"{name}_recall_at_{results['k']}" for name in SLICES]
    # Many logs have no item that is only in the test part.
    known = [m for m in metrics if any(m in v["metrics"] for v in results["variants"])]
    return _row_panels(results, {metric: label(metric) for metric in known})[0]


def _popularity(results: Results) -> Figure:
    k = results["k"]
    title = f"training events of an item in the list of {k}, mean"
    figure, (axes,) = _row_panels(results, {f"mean_popularity_at_{k}": title})
    liked = results["data"]["liked_popularity"]["mean"]
    axes.set_xlim(right=max(axes.get_xlim()[1], 1.05 * liked))
    axes.axvline(liked, color=GREY, linewidth=1.2, linestyle=DOTS)
    axes.annotate(
        "of a held-out item",
        (liked, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        color=GREY,
        fontsize=9,
    )
    return figure


# ------------------------------------------------------------------ a panel per variant


def _small_panels(
    results: Results, numbers: Sequence[int], *, aspect: float
) -> tuple[Figure, list[Axes]]:
    """A panel for each of these variants, at most three in a line, with its name above."""
    columns = min(3, len(numbers))
    lines = -(-len(numbers) // columns)
    width = WIDTH / columns if columns > 1 else WIDTH * 0.6
    figure = Figure(figsize=(width * columns, 0.5 + lines * aspect * width), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid[len(numbers) :]:
        axes.remove()
    for axes, number in zip(grid, numbers, strict=False):
        name = results["variants"][number]["name"]
        axes.set_title(_wrapped(name, 100 // columns), fontsize=9, loc="left")
        _tidy(axes)
    return figure, list(grid[: len(numbers)])


def _scores(results: Results) -> Figure:
    numbers = range(len(results["variants"]))
    figure, panels = _small_panels(results, numbers, aspect=0.72)
    for axes, number in zip(panels, numbers, strict=True):
        found = results["variants"][number]["diagnostics"]["scores"]
        for name, colour in (("random", PALE), ("positives", style_of(number).colour)):
            counts = np.array(found[name])
            share = counts / counts.sum()
            axes.stairs(share, found["edges"], color=colour, fill=True, alpha=0.3)
            axes.stairs(share, found["edges"], color=colour, linewidth=1.5)
        axes.set_ylim(bottom=0)
        axes.text(0.02, 0.96, f"AUC {found['auc']:.3f}", transform=axes.transAxes, va="top")
    figure.supxlabel("score", fontsize=10)
    figure.supylabel("share of the pairs", fontsize=10)
    return figure


def _log_q(results: Results) -> Figure:
    found = [v["diagnostics"]["log_q"] for v in results["variants"]]
    numbers = [number for number, log_q in enumerate(found) if log_q]
    figure, panels = _small_panels(results, numbers, aspect=0.85)
    both = [x for n in numbers for x in (*found[n]["exact"], *found[n]["estimated"])]
    low, high = min(both) - 0.3, max(both) + 0.3
    for axes, number in zip(panels, numbers, strict=True):
        log_q, colour = found[number], style_of(number).colour
        axes.plot([low, high], [low, high], color=GREY, linewidth=1)
        axes.scatter(log_q["exact"], log_q["estimated"], s=7, color=colour, alpha=0.4, linewidths=0)
        axes.set(xlim=(low, high), ylim=(low, high))
        text = f"mean error {log_q['mean_error']:.3f}"
        axes.text(0.03, 0.96, text, transform=axes.transAxes, va="top")
    figure.supxlabel("exact log q", fontsize=10)
    figure.supylabel("estimated log q", fontsize=10)
    return figure


# ------------------------------------------------------------------ the data


def _item_counts(results: Results) -> Figure:
    bins = results["data"]["popularity"]
    figure = _figure(3.6)
    axes = figure.subplots()
    items = np.array([b["items"] for b in bins])
    places = np.arange(len(bins))
    # Greys: the colours belong to the variants.
    axes.bar(places - 0.2, items / items.sum(), 0.4, color=DARK, label="items")
    axes.bar(places + 0.2, [b["events"] for b in bins], 0.4, color=PALE, label="events")
    labels = [f"{b['low']:,}" if b["low"] == b["high"] else _range(b) for b in bins]
    axes.set_xticks(places, labels)
    axes.tick_params(axis="x", rotation=45 if len(bins) > 12 else 0)
    axes.set(xlabel="training events of an item", ylabel="share of all")
    axes.legend(frameon=False)
    _tidy(axes, grid="y")
    return figure


def _range(record: Results) -> str:
    return f"{record['low']:,}–{record['high']:,}"
