"""The README of this folder, from its results."""

from __future__ import annotations

import statistics
from typing import Any

COLUMNS = {
    "P@1": "precision_at_1",
    "P@3": "precision_at_3",
    "P@5": "precision_at_5",
    "PSP@1": "psp_at_1",
    "PSP@3": "psp_at_3",
    "PSP@5": "psp_at_5",
    "nDCG@5": "ndcg_at_5",
    "MRR@10": "all_hits_mrr_at_10",
    "R@10": "recall_at_10",
    "R@50": "recall_at_50",
    "R@100": "recall_at_100",
}

TEXT = """# Extreme classification: the losses of DEXML on words

Two linear towers, the words of points and the ids and words of labels, trained with each loss on
the split that the data come with, beside a ridge regression of the label matrix on tf-idf words;
written by `python -m benchmarks.xmc.run` from [results.json](results.json). In percent, the mean
over the seeds and in brackets the standard deviation between them; the best of a column is bold.

- `in-batch softmax, logQ`: over the labels of the batch, corrected on both sides; its limit is the
  softmax over all labels.
- `softmax`: over the labels of the batch, each once, not corrected, as in DEXML. The other labels
  of a point are among its negatives.
- `decoupled`: the same without the other known labels of the point (`KnownPositives`), so that they
  do not compete.
- `all positives`: a row also has a term for each other label of its point that is in the batch
  (`DecoupledSoftmax`).
- `mined`: a uniform pick of the 100 best labels of each row's point joins them, as a negative of
  all rows (`dexml`), from the epoch `first_mined` on, mined anew every `every` epochs.
- `ridge on tf-idf`: in closed form, centred, each point of length 1: a weight for every word and
  label, where the towers meet in `embedding_dim` numbers.
- PSP has a 0.55 and b 1.5. MRR is over all hits, so it may be above 100. Points without labels are
  left out.

The soft top-k loss of the dissertation has no row yet, and delicious has not been run.
"""


def render(results: dict[str, Any]) -> str:
    """Returns README.md for the results of all data sets."""
    return TEXT + "".join(_data_set(name, found) for name, found in results.items())


def _data_set(name: str, found: dict[str, Any]) -> str:
    versions, told = found["versions"], found["settings"]
    points, seeds = found["points"], len(found["seeds"])
    rows = {
        **{row: _cells(runs) for row, runs in found["rows"].items()},
        **{row: _cells([metrics]) for row, metrics in found["references"].items()},
    }
    best = {n: max((c[n][0] for c in rows.values() if n in c), default=0) for n in COLUMNS.values()}
    shown = {title: n for title, n in COLUMNS.items() if any(n in cells for cells in rows.values())}
    lines = [
        f"| {row} | " + " | ".join(_cell(cells.get(n), best[n]) for n in shown.values()) + " |"
        for row, cells in rows.items()
    ]
    seconds = [run["seconds"] for runs in found["rows"].values() for run in runs]
    settings = ", ".join(f"{key} {value}" for key, value in told.items())
    return (
        f"\n## {name}\n\n{points[0]:,} points to train on and {points[1]:,} to test, "
        f"{found['words']:,} words, {found['labels']:,} labels; {seeds} seeds, "
        f"{found['date']}, {found['machine']} beside other jobs (load {found['load']:.1f}), "
        f"{statistics.median(seconds):.0f} seconds a run in the median, Python {found['python']}, "
        f"TensorFlow {versions['tensorflow']}.\n\nSettings: {settings}. {found['chosen']} "
        f"A batch holds {found['labels_in_batch']:.0f} of the {found['labels']} labels on average: "
        "only the others are what a mining can add.\n\n"
        f"| | {' | '.join(shown)} |\n|---|{'---|' * len(shown)}\n" + "\n".join(lines) + "\n"
        f"\n{_verdict(found)}\n"
    )


def _cells(runs: list[dict[str, float]]) -> dict[str, tuple[float, float | None]]:
    """Returns metric -> mean and spread, in percent."""
    cells = {}
    for name in COLUMNS.values():
        values = [100 * run[name] for run in runs if name in run]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else None
            cells[name] = (statistics.mean(values), spread)
    return cells


def _cell(cell: tuple[float, float | None] | None, best: float) -> str:
    if cell is None:
        return ""
    mean, spread = cell
    text = f"{mean:.2f}" if spread is None else f"{mean:.2f} ({spread:.2f})"
    return f"**{text}**" if mean == best else text


def _verdict(found: dict[str, Any]) -> str:
    """Says of both headline metrics whether the best row is above the ridge regression."""
    ridge, said = found["references"]["ridge on tf-idf"], []
    for title in ("P@1", "PSP@5"):
        name = COLUMNS[title]
        means = {row: _cells(runs)[name][0] for row, runs in found["rows"].items()}
        row = max(means, key=lambda r: means[r])
        gap = means[row] - 100 * ridge[name]
        side = "above" if gap > 0 else "below"
        said.append(f"{title} of the best row (`{row}`) is {abs(gap):.2f} {side} the ridge's")
    return "; ".join(said) + "."
