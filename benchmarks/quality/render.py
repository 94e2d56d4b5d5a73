"""Renders all results as `docs/results.md`, with its plots.

.venv/bin/python benchmarks/quality/render.py
"""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import yaml
from matplotlib import ticker

from tfrs_negatives.core.files import drafted_file, write_text

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
PLOTS = DOCS / "results"
THESIS = "ml100k_thesis_"
MARKERS = "osD^v<>PX*hpd"
THESIS_KS = (1, 5, 10, 50, 100)
THESIS_COLUMNS = [f"{name}_at_{k}" for name in ("recall", "top_k_accuracy") for k in THESIS_KS]
COLUMNS = {
    "gowalla": ["recall_at_20", "ndcg_at_20", "recall_at_100", "tail_recall_at_20"],
    "ml100k": ["recall_at_10", "recall_at_100", "tail_recall_at_100", "coverage_at_100"],
    "ml100k_thesis": THESIS_COLUMNS,
}
# Recall and accuracy at 1, 5, 10, 50, 100 of the thesis's tables 4.3 and 4.4, where seen
# items, seeds and the epoch are not stated; the accuracy at 1 of CBNS is above that at 5.
PRINTED_THESIS = {
    "in-batch": (0.021, 0.096, 0.174, 0.3105, 0.3948, 0.0016, 0.020, 0.046, 0.270, 0.462),
    "MNS": (0.021, 0.097, 0.176, 0.314, 0.401, 0.0022, 0.019, 0.047, 0.273, 0.471),
    "CBNS": (0.017, 0.075, 0.135, 0.266, 0.347, 0.027, 0.024, 0.051, 0.252, 0.432),
    "NGAME": (0.024, 0.099, 0.179, 0.319, 0.400, 0.0024, 0.022, 0.051, 0.275, 0.473),
}
# Recall and nDCG at 20 on this split, the best epoch on test.
PRINTED_GOWALLA = {
    "BSPM-EM (graph)": (0.1920, 0.1597),
    "MF + BSL": (0.1882, 0.1584),
    "SimpleX": (0.1872, 0.1557),
    "MF-CCL": (0.1837, 0.1493),
    "LightGCN": (0.1830, 0.1554),
    "EASE": (0.1765, 0.1467),
    "MF + sampled softmax": (0.1759, 0.1395),
    "BPR-MF": (0.1627, 0.1378),
}


def main() -> None:
    """Writes the page and the plots."""
    results = {p.stem: json.loads(p.read_text()) for p in sorted(HERE.glob("results/*.json"))}
    groups = {
        "gowalla": {n: r for n, r in results.items() if "gowalla" in n},
        "ml100k_thesis": {n: r for n, r in results.items() if "ml100k_thesis" in n},
    }
    groups["ml100k"] = {
        n: r for n, r in results.items() if not any(n in group for group in groups.values())
    }
    plots = {
        "seconds": _draw("gowalla_seconds.png", groups["gowalla"], _against_seconds),
        "mixed": _draw("mixed_columns.png", groups["ml100k_thesis"], _against_columns),
        "curves": _draw("gowalla_curves.png", groups["gowalla"], _curves),
    }
    page = (HERE / "results.md.in").read_text()
    for name, group in groups.items():
        page = page.replace(f"<!-- table {name} -->", table(name, group))
        page = page.replace(f"<!-- commands {name} -->", commands(group))
    for name, path in plots.items():
        page = page.replace(f"<!-- plot {name} -->", f"![{name}]({path.relative_to(DOCS)})")
    write_text(DOCS / "results.md", page)


def table(name: str, results: dict[str, dict[str, Any]]) -> str:
    """Renders the rows of one data set, the best first, then what was printed elsewhere."""
    columns = COLUMNS[name]
    key = columns[0] if name != "ml100k_thesis" else "recall_at_10"
    head = ["row", *columns, "best epoch", "s/epoch", "seeds", "date"]
    rows = []
    for row, r in sorted(results.items(), key=lambda pair: -pair[1]["mean"].get(key, 0)):
        cells = [row, *(_cell(r, c) for c in columns), best_epoch(r, key), _seconds(r)]
        rows.append([*cells, str(len(r["runs"])), r["date"]])
    printed = {"gowalla": PRINTED_GOWALLA, "ml100k_thesis": PRINTED_THESIS}.get(name, {})
    for method, values in printed.items():
        filled = [f"{x:g}" for x in values] + [""] * (len(columns) - len(values))
        # The literature's Gowalla is the best epoch on test.
        best = f"{values[0]:g}" if name == "gowalla" else ""
        rows.append([f"*{method}, as printed*", *filled, best, "", "", ""])
    lines = ["| " + " | ".join(row) + " |" for row in [head, *rows]]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def commands(results: dict[str, dict[str, Any]]) -> str:
    """Lists what gives each row anew."""
    lines = []
    for name, result in results.items():
        seeds = " ".join(str(run["seed"]) for run in result["runs"])
        usual = f"benchmarks/quality/run.py benchmarks/quality/configs/{name}.yaml --seeds {seeds}"
        lines.append(f"    .venv/bin/python {result.get('command', usual)}")
    return "\n".join(dict.fromkeys(lines))


def best_epoch(result: dict[str, Any], metric: str) -> str:
    """Returns the highest value of any evaluated epoch, the mean of the seeds, if all have one."""
    curves = [run.get("curve", {}).get(metric) for run in result["runs"]]
    return f"{statistics.fmean(map(max, curves)):.4f}" if all(curves) else ""


def _cell(result: dict[str, Any], name: str) -> str:
    if name not in result["mean"]:
        return ""
    spread = result["deviation"][name]
    return f"{result['mean'][name]:.4f}" + ("" if spread is None else f" ± {spread:.4f}")


def _seconds(result: dict[str, Any]) -> str:
    seconds = _seconds_per_epoch(result)
    return "" if seconds is None else f"{seconds:.1f}"


def _seconds_per_epoch(result: dict[str, Any]) -> float | None:
    seconds = [run.get("seconds_per_epoch") for run in result["runs"]]
    return statistics.fmean(seconds) if all(seconds) else None


def _label(name: str) -> str:
    return name.removeprefix("gowalla_").replace("_", " ")


def _draw(file: str, results: dict[str, Any], fill: Callable[[Any, dict[str, Any]], None]) -> Path:
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    fill(axes, results)
    axes.grid(alpha=0.3)
    path = PLOTS / file
    with drafted_file(path, argument="results") as draft:
        figure.savefig(draft, dpi=130, format="png")
    plt.close(figure)
    return path


def _against_seconds(axes: Any, results: dict[str, Any]) -> None:
    points = []
    for name, result in results.items():
        seconds = _seconds_per_epoch(result)
        if seconds is not None and "train" in result["config"]:
            total = seconds * result["config"]["train"]["epochs"]
            points.append((result["mean"]["recall_at_20"], total, _label(name)))
    for number, (recall, total, label) in enumerate(sorted(points, reverse=True)):
        axes.scatter(total, recall, s=40, marker=MARKERS[number % len(MARKERS)], label=label)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set(xlabel="seconds of training", ylabel="recall at 20, Gowalla", xscale="log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())


def _against_columns(axes: Any, results: dict[str, Any]) -> None:
    def columns(name: str) -> int:
        recipe = yaml.safe_load((HERE / "configs" / f"{name}.yaml").read_text())["task"]["recipe"]
        return 0 if recipe == "in_batch" else int(recipe["mixed_negative_sampling"]["num_uniform"])

    chosen = [n for n in results if n.startswith((f"{THESIS}mixed", f"{THESIS}in_batch_l"))]
    sizes = {columns(name): results[name] for name in chosen}
    sweep = [sizes[size] for size in sorted(sizes)]
    for metric, marker in (("recall_at_10", "o"), ("recall_at_100", "s")):
        base = sweep[0]["mean"][metric]
        means = [r["mean"][metric] / base for r in sweep]
        spreads = [(r["deviation"][metric] or 0) / base for r in sweep]
        label = metric.replace("_", " ")
        axes.errorbar(range(len(sweep)), means, yerr=spreads, marker=marker, capsize=3, label=label)
    axes.set(
        xticks=range(len(sweep)),
        xticklabels=[f"{size:,}" for size in sorted(sizes)],
        xlabel="uniform columns B' beside a batch of 2,048",
        ylabel="to in-batch with logQ",
    )
    axes.legend()


def _curves(axes: Any, results: dict[str, Any]) -> None:
    for name, result in results.items():
        curves: Sequence[dict[str, list[float]]] = [r.get("curve") or {} for r in result["runs"]]
        if all(curves):
            axes.plot(curves[0]["epoch"], curves[0]["recall_at_20"], label=_label(name))
    axes.set(xlabel="epoch", ylabel="recall at 20 on test, Gowalla, seed 0")
    if axes.lines:
        axes.legend(fontsize=8)


if __name__ == "__main__":
    main()
