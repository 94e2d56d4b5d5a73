"""The plots and the page of the frequency benchmark, from its numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from tfrs_negatives.core.files import write_text

# Reading -> title of its panel, in the order of the panels and of the rows.
TITLES = {
    "interval_paper": "Gaps as in the paper, 1 / D",
    "interval": "Gaps with the open gap (interval)",
    "decayed_count": "Counts (decayed_count)",
}

TEXT = """# Streaming frequency estimation

The simulation of Yi et al. (RecSys 2019), written by `python -m benchmarks.frequency.run` on
{date} from [results.json](results.json): {items} items, batches of {batch_size} different items,
item i in proportion to i², from step {half} on to (N - 1 - i)². Every item is in a batch with
probability exactly B q (systematic sampling). The error is half the sum over all items of
|estimated - true probability to be in a batch|, divided by B: 0 is perfect.

Rate {interval:g} for the gaps; {count:g} for the counts, which is the same window for the mean
item. The table of each hash has the number of buckets given. Each number is the mean over the
seeds {seeds}, ± their standard deviation. "Floor" is the mean over the tenth of the steps before
the switch. Python {python}, numpy {numpy}, TensorFlow {tensorflow}.

`interval_paper` reads p = 1 / D from the table; `interval` is what the layer answers, with the gap
that is still open as a lower bound on D. The bound forgets an item that disappears at once and so
takes part of the jump at the switch away. Its price is the higher floor: an item that happens to be
away for longer than its mean gap is read as rarer than it is. An item of the batch just counted has
no open gap and pays nothing.
"""


def draw_plot(
    path: Path,
    steps: np.ndarray,
    panels: Mapping[str, Mapping[int, np.ndarray]],
    num_buckets: int,
) -> None:
    """Draws error against step, a panel per method and a line per number of hashes.

    Args:
        path: where the PNG goes.
        steps: [reads] steps at which the error was read.
        panels: reading -> number of hashes -> [seeds, reads] errors.
        num_buckets: of each hash, for the title.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(13, 4.5), sharey=True, layout="constrained"
    )
    for axis, (reading, curves) in zip(axes, panels.items(), strict=True):
        for number, (num_hashes, errors) in enumerate(curves.items()):
            mean, deviation = errors.mean(axis=0), errors.std(axis=0)
            color = plt.get_cmap("viridis_r")((number + 0.5) / len(curves))
            axis.plot(steps, mean, label=f"m = {num_hashes}", color=color)
            axis.fill_between(steps, mean - deviation, mean + deviation, color=color, alpha=0.2)
        axis.axvline(steps[-1] / 2, color="gray", linestyle=":")
        axis.set(title=TITLES[reading], xlabel="step")
        axis.grid(alpha=0.3)
    # Only now do the shared limits know the curves of every panel.
    axes[0].set(ylabel="error", ylim=(0, None))
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, title="hashes", loc="outside right center")
    figure.suptitle(f"{num_buckets} buckets per hash; the distribution is switched at the dots")
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, dpi=120, format="png")
    temporary.replace(path)
    plt.close(figure)


def write_readme(folder: Path) -> None:
    """Writes README.md from results.json and the names of the plots in the folder."""
    results = json.loads((folder / "results.json").read_text())
    rates, half = results["rates"], results["steps"] // 2
    text = TEXT.format(
        **{**results, **results["versions"], "seeds": ", ".join(map(str, results["seeds"]))},
        half=half,
        interval=rates["interval"],
        count=rates["decayed_count"],
    )
    for num_buckets in sorted({row["buckets_per_hash"] for row in results["rows"]}, reverse=True):
        rows = [row for row in results["rows"] if row["buckets_per_hash"] == num_buckets]
        text += f"\n## {num_buckets} buckets per hash\n\n![error](error_{num_buckets}.png)\n\n"
        text += _table(
            sorted(rows, key=lambda row: (list(TITLES).index(row["reading"]), row["hashes"]))
        )
    write_text(folder / "README.md", text)


def _table(rows: list[dict[str, Any]]) -> str:
    steps = list(rows[0]["error_at_step"])
    head = ["reading", "hashes", *(f"step {step}" for step in steps), "floor"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [*(row["error_at_step"][step] for step in steps), row["floor_before_switch"]]
        numbers = [f"{cell['mean']:.4f} ± {cell['deviation']:.4f}" for cell in cells]
        lines.append([row["reading"], str(row["hashes"]), *numbers])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
