"""The results as a page that needs no other file, with its plots and numbers beside it."""

from __future__ import annotations

import base64
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from tfrs_negatives.compare.plots import MARKERS, draw_plots, label, style_of
from tfrs_negatives.compare.statistics import SIGNIFICANCE
from tfrs_negatives.core.files import drafted, write_text

Results = Mapping[str, Any]
GLYPHS = dict(zip(MARKERS, "●■▲◆▼✚✖", strict=True))
NOTHING = "–"


@dataclass(frozen=True)
class TableColumn:
    """A column of the tables.

    Attributes:
        title: its head.
        metric: what it shows, None for the seconds per epoch.
        digits: after the point.
        better: 1 where more is better, -1 where less is, 0 where that cannot be said.
    """

    title: str
    metric: str | None
    digits: int = 4
    better: int = 1


@dataclass(frozen=True)
class Plot:
    """The words around a plot, with places for what the results say."""

    title: str
    alt: str
    caption: str


PLOTS = {
    "learning_curves": Plot(
        "Learning curves",
        "Lines of {metric} over the epochs, one per variant",
        "How {metric} on the test part grows while a model trains. A curve that still rises at its "
        "end would gain from more epochs, and its variant is judged too early.{band} The dotted "
        "line is a list of the most popular items.",
    ),
    "recall_by_popularity": Plot(
        "Recall by popularity",
        "Points of recall at {k} by slice of popularity, a row per variant",
        "Which items are found. The most popular items that make up a third of the training events "
        "are the head, the next third the middle, the last the tail; unseen items have no training "
        "event. Each slice has a scale of its own. A good sampler gives little of the tail away "
        "for the head.{bar}",
    ),
    "popularity": Plot(
        "Popularity of what is recommended",
        "Points of mean popularity in the list of {k}, a row per variant",
        "The training events of a recommended item, on average over all lists of {k}. The dotted "
        "line is the same of the held-out items. A point to the right of it recommends more "
        "popular items than people choose; one to the left pushes popular items down, as an "
        "uncorrected sampler does.{bar}",
    ),
    "seconds": Plot(
        "Time against quality",
        "Points of seconds per epoch and {metric}, one per variant",
        "Seconds of training per epoch (median of a run, evaluation left out) and what is found. "
        "The best place is above and to the left. Times are those of this machine, and compare "
        "only where nothing else ran on it.{bar}",
    ),
    "scores": Plot(
        "Scores",
        "Histograms of scores of held-out and of random items, a panel per variant",
        "In the colour of the variant the scores of held-out items, in grey those of items drawn "
        "at random for the same queries, as the index would rank them (model of seed 0). The less "
        "they overlap, the better they are told apart; AUC is the share of the pairs in which the "
        "held-out item scores higher.",
    ),
    "item_counts": Plot(
        "Popularity in the log",
        "Bars of the share of items and of events by number of training events",
        "Dark: the share of items with so many training events; light: the share of all events "
        "that these items have (seed 0). The further apart the two are, the more popularity a "
        "sampler has to correct.",
    ),
    "log_q": Plot(
        "Estimated against exact log q",
        "Scatter of the estimated over the exact log q of items, a panel per variant",
        "The log of the probability that a draw of the training stream is this item, as the "
        "model's streaming estimator has it, against the share of the item in the log (seed 0, at "
        "most 2,000 items). On the line the correction is exact; above it items are corrected as "
        "if they were more popular than they are. The mean error is absolute, in nats, over all "
        "items with training events.",
    ),
}


def write_report(results: Results, folder: Path) -> None:
    """Writes `plots/`, `report.html` and then `results.json`, each completely or not at all.

    Args:
        results: see `compare`.
        folder: where they go; what is there is replaced.
    """
    plots = draw_plots(results)
    with drafted(folder / "plots", argument="out") as draft:
        for name, png in plots.items():
            (draft / f"{name}.png").write_bytes(png)
    write_text(folder / "report.html", render(results, plots))
    write_text(folder / "results.json", json.dumps(results, indent=2) + "\n")


def render(results: Results, plots: Mapping[str, bytes]) -> str:
    """Returns the page.

    Args:
        results: see `compare`.
        plots: name -> PNG, see `draw_plots`.
    """
    source = importlib.resources.files("tfrs_negatives.compare") / "report.html.jinja"
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["label"] = label
    environment.filters["p"] = format_p
    words = describe_plots(results)
    return environment.from_string(source.read_text(encoding="utf-8")).render(
        results=results,
        significance=SIGNIFICANCE,
        looks=_looks(results),
        advice=_advice(results),
        tables=[_table(results, k) for k in _ks_in_order(results)],
        tests=_tests(results),
        plots=[
            {"words": words[name], "data": base64.b64encode(png).decode("ascii")}
            for name, png in plots.items()
        ],
    )


def format_p(p: float) -> str:
    """A p value, in no more digits than 10,000 flips can give.

    Example:
        >>> format_p(0.0421), format_p(0.0001)
        ('0.042', '< 0.001')
    """
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _looks(results: Results) -> dict[str, Results]:
    looks = {v["name"]: style_of(number) for number, v in enumerate(results["variants"])}
    return {n: {"colour": x.colour, "glyph": GLYPHS[x.marker]} for n, x in looks.items()}


# ------------------------------------------------------------------ tables


def _ks_in_order(results: Results) -> list[int]:
    """The k of the compared metric, then the others."""
    return [results["k"], *(k for k in results["ks"] if k != results["k"])]


def _columns(k: int) -> list[TableColumn]:
    return [
        TableColumn(f"recall at {k}", f"recall_at_{k}"),
        TableColumn(f"NDCG at {k}", f"ndcg_at_{k}"),
        TableColumn(f"tail recall at {k}", f"tail_recall_at_{k}"),
        TableColumn(f"coverage at {k}", f"coverage_at_{k}"),
        TableColumn("mean popularity", f"mean_popularity_at_{k}", digits=1, better=0),
        TableColumn("s/epoch", None, digits=2, better=-1),
    ]


def _value(record: Results, column: TableColumn) -> Results:
    """Mean, std and values of a cell; a ranking without training has no seconds."""
    absent: Results = {"mean": None, "std": None, "values": []}
    if column.metric is None:
        return record.get("seconds_per_epoch", absent)
    return record["metrics"].get(column.metric, absent)


def _table(results: Results, k: int) -> Results:
    # The time of an epoch has nothing to do with k: it is said once.
    columns = [c for c in _columns(k) if c.metric is not None or k == results["k"]]
    best = [_best(results["variants"], column) for column in columns]
    return {
        "k": k,
        "columns": columns,
        "variants": [_row(v, columns, best) for v in results["variants"]],
        "references": [_row(r, columns, [set()] * len(columns)) for r in results["references"]],
    }


def _row(record: Results, columns: Sequence[TableColumn], best: Sequence[set[str]]) -> Results:
    cells = [
        {"text": plus_minus(_value(record, c), c.digits), "best": record["name"] in names}
        for c, names in zip(columns, best, strict=True)
    ]
    return {"name": record["name"], "cells": cells}


def _best(variants: Sequence[Results], column: TableColumn) -> set[str]:
    """The variants that are best in a column, to the digits that are shown."""
    means = {v["name"]: _value(v, column)["mean"] for v in variants}
    shown = {n: round(x, column.digits) for n, x in means.items() if x is not None}
    if not column.better or len(shown) < 2:
        return set()
    top = max(column.better * x for x in shown.values())
    return {name for name, x in shown.items() if column.better * x == top}


def plus_minus(value: Results, digits: int) -> str:
    """Mean and, where there are several seeds, standard deviation.

    Example:
        >>> plus_minus({"mean": 0.25, "std": 0.031}, 2), plus_minus({"mean": None, "std": None}, 2)
        ('0.25 ± 0.03', '–')
    """
    if value["mean"] is None:
        return NOTHING
    mean = f"{value['mean']:,.{digits}f}"
    return mean if value["std"] is None else f"{mean} ± {value['std']:,.{digits}f}"


def _tests(results: Results) -> list[Results]:
    """The two families of comparisons; the pair of best and baseline stands in both."""
    best, baseline = results["recommendation"]["best"], results["baseline"]
    families = [
        {
            "title": f"Each variant against the baseline, {baseline}",
            "head": "variant − baseline",
            "side": "first",
            "rows": [c for c in results["comparisons"] if c["second"] == baseline],
        },
        {
            "title": f"The best, {best}, against each other",
            "head": "best − variant",
            "side": "second",
            "rows": [c for c in results["comparisons"] if c["first"] == best],
        },
    ]
    # Where the baseline is the best, the second says all.
    return [family for family in families if family["rows"]]


# ------------------------------------------------------------------ words


def _advice(results: Results) -> Results:
    """What the lead says: the best, and what else may be taken for less time."""
    found = results["recommendation"]
    named = {v["name"]: v for v in results["variants"]}
    chosen = [named[name] for name in (found["best"], *found["not_worse"])]
    timed = [v for v in chosen if v["seconds_per_epoch"]["mean"] is not None]
    fastest = min(timed, key=lambda v: v["seconds_per_epoch"]["mean"], default=chosen[0])
    return {
        "best": found["best"],
        "fastest": fastest["name"],
        "chosen": {v["name"]: _said(v, results["k"]) for v in chosen},
        "metric": {v["name"]: plus_minus(v["metrics"][results["metric"]], 4) for v in chosen},
        "popular": plus_minus(results["references"][0]["metrics"][results["metric"]], 4),
        "beats_popular": found["beats_popular"],
    }


def _said(variant: Results, k: int) -> str:
    """What it costs and whom it serves, in words."""
    metrics, seconds = variant["metrics"], variant["seconds_per_epoch"]["mean"]
    parts = [] if seconds is None else [f"{seconds:.2f} s per epoch"]
    for name in ("tail_recall", "coverage"):
        value = metrics.get(f"{name}_at_{k}", {"mean": None})["mean"]
        if value is not None:
            parts.append(f"{label(name)} {value:.3f}")
    return ", ".join(parts)


def describe_plots(results: Results) -> dict[str, Plot]:
    """Returns the words of every plot that there may be."""
    many = len(results["seeds"]) > 1
    filled = {
        "metric": label(results["metric"]),
        "k": results["k"],
        "band": " The band is one standard deviation over the seeds." if many else "",
        "bar": " Bars are one standard deviation over the seeds." if many else "",
    }
    return {
        name: Plot(words.title, words.alt.format(**filled), words.caption.format(**filled))
        for name, words in PLOTS.items()
    }
