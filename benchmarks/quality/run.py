"""Trains configurations over several seeds and writes what they reach, with its spread.

    .venv/bin/python benchmarks/quality/run.py benchmarks/quality/configs/NAME.yaml --seeds 0 1
    .venv/bin/python benchmarks/quality/run.py --table

A result is `results/<config>.json`: date, machine, versions, configuration, the metrics of each
seed, their mean and standard deviation. `--table` only renders the results as `README.md`.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tfrs_negatives.config import load_config
from tfrs_negatives.experiments import train_run
from tfrs_negatives.files import write_text
from tfrs_negatives.progress import EpochProgress

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PACKAGES = ("tensorflow", "tf_keras", "tensorflow-recommenders", "numpy", "tfrs-negatives")
COLUMNS = (
    "recall_at_10",
    "recall_at_20",
    "recall_at_100",
    "ndcg_at_20",
    "tail_recall_at_100",
    "coverage_at_100",
)
# Rows of this name stand in a table of their own, beside what the thesis printed (its tables 4.3
# and 4.4; ALG 15.6), whose seen items, seeds and epoch are not stated.
THESIS = "ml100k_thesis_"
THESIS_KS = (1, 5, 10, 50, 100)
THESIS_COLUMNS = tuple(
    f"{metric}_at_{k}" for metric in ("recall", "top_k_accuracy") for k in THESIS_KS
)
PRINTED = {
    "in-batch": (0.021, 0.096, 0.174, 0.3105, 0.3948, 0.0016, 0.020, 0.046, 0.270, 0.462),
    "MNS": (0.021, 0.097, 0.176, 0.314, 0.401, 0.0022, 0.019, 0.047, 0.273, 0.471),
    "CBNS": (0.017, 0.075, 0.135, 0.266, 0.347, 0.027, 0.024, 0.051, 0.252, 0.432),
    "NGAME": (0.024, 0.099, 0.179, 0.319, 0.400, 0.0024, 0.022, 0.051, 0.275, 0.473),
}


def main() -> None:
    """Runs the configurations, or renders the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="*", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--table", action="store_true", help="only render README.md")
    arguments = parser.parse_args()
    for path in arguments.configs:
        result = run(path, arguments.seeds)
        write_text(RESULTS / f"{path.stem}.json", json.dumps(result, indent=2) + "\n")
    (HERE / "README.md").write_text(render())


def run(path: Path, seeds: list[int]) -> dict[str, Any]:
    """Trains one configuration once per seed."""
    runs = []
    for seed in seeds:
        config = load_config(path, [f"train.seed={seed}"])
        bar = EpochProgress(label=f"{path.stem} seed {seed}")
        with tempfile.TemporaryDirectory() as folder:
            metrics = train_run(config, Path(folder) / "run", callbacks=[bar])
        runs.append({"seed": seed, **metrics})
    names = list(runs[0]["test"])
    values = {name: [r["test"][name] for r in runs] for name in names}
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "config": load_config(path).model_dump(),
        "mean": {name: statistics.fmean(values[name]) for name in names},
        "deviation": {
            name: statistics.stdev(values[name]) if len(seeds) > 1 else None for name in names
        },
        "runs": runs,
    }


def render() -> str:
    """Renders every result as a row of one table per log."""
    results = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    logs: dict[str, list[str]] = {}
    for name, result in results.items():
        logs.setdefault(result["runs"][0]["data"], []).append(name)
    thesis = {name: results[name] for name in results if name.startswith(THESIS)}
    tables = [
        _table(log, {name: results[name] for name in names if name not in thesis}, COLUMNS)
        for log, names in logs.items()
    ]
    if thesis:
        title = "ml-100k:ml-100k, as the thesis cuts it"
        tables.append(_table(title, thesis, THESIS_COLUMNS) + _printed())
    usage = "\n".join(f"    {line.strip()}" for line in __doc__.splitlines() if ".venv" in line)
    intro = (
        "# Quality\n\nWritten by `run.py` from `results/*.json`. Each row is `configs/<row>.yaml`; "
        "the value is the mean over the seeds, ± the standard deviation; the last epoch is "
        "reported, none is chosen on the test part. Full corpus, training items excluded. "
        "Seconds compare within one date only: the machine is shared.\n\n"
        f"{usage}\n"
    )
    return intro + "\n".join(tables)


def _printed() -> str:
    rows = [
        f"| {name}, as printed | " + " | ".join(f"{x:g}" for x in values) + " | | | |"
        for name, values in PRINTED.items()
    ]
    return "\n".join(rows) + "\n"


def _table(log: str, results: dict[str, dict[str, Any]], names: Sequence[str]) -> str:
    columns = [c for c in names if any(c in r["mean"] for r in results.values())]
    lines = [
        f"\n## {log}\n",
        "| row | " + " | ".join(columns) + " | s/epoch | seeds | date |",
        "|---" * (len(columns) + 4) + "|",
    ]
    for name, result in results.items():
        seconds = statistics.fmean(r["seconds_per_epoch"] for r in result["runs"])
        cells = [_cell(result, column) for column in columns]
        tail = [f"{seconds:.1f}", str(len(result["runs"])), result["date"]]
        lines.append("| " + " | ".join([name, *cells, *tail]) + " |")
    return "\n".join(lines) + "\n"


def _cell(result: dict[str, Any], name: str) -> str:
    if name not in result["mean"]:
        return ""
    spread = result["deviation"][name]
    return f"{result['mean'][name]:.4f}" + ("" if spread is None else f" ± {spread:.4f}")


if __name__ == "__main__":
    main()
