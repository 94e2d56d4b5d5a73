"""Trains configurations over several seeds and writes what they reach, with its spread.

    .venv/bin/python benchmarks/quality/run.py benchmarks/quality/configs/NAME.yaml --seeds 0 1
    .venv/bin/python benchmarks/quality/render.py

A result is `results/<config>.json`: date, machine, versions, configuration, command, the metrics of
each seed after its last epoch, their mean and standard deviation, and the curve over the epochs
where `evaluation.every_epochs` asks for one. `render.py` renders all results.
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

from tfrs_negatives.core.files import write_text
from tfrs_negatives.runs.checkpoints import read_history
from tfrs_negatives.runs.config import load_config
from tfrs_negatives.runs.progress import EpochProgress
from tfrs_negatives.runs.train import train_run

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("tensorflow", "tf_keras", "tensorflow-recommenders", "numpy", "tfrs-negatives")


def main() -> None:
    """Runs the configurations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    for path in arguments.configs:
        result = run(path, arguments.seeds)
        write_text(RESULTS / f"{path.stem}.json", json.dumps(result, indent=2) + "\n")


def run(path: Path, seeds: list[int]) -> dict[str, Any]:
    """Trains one configuration once per seed."""
    runs = []
    for seed in seeds:
        config = load_config(path, [f"train.seed={seed}"])
        bar = EpochProgress(label=f"{path.stem} seed {seed}")
        with tempfile.TemporaryDirectory() as folder:
            metrics = train_run(config, Path(folder) / "run", callbacks=[bar])
            curve = read_curve(Path(folder) / "run" / "history.csv")
        runs.append({"seed": seed, **metrics, "curve": curve})
    return record(
        runs,
        packages=PACKAGES,
        config=load_config(path).model_dump(),
        command=f"benchmarks/quality/run.py benchmarks/quality/configs/{path.name}",
    )


def record(
    runs: list[dict[str, Any]], *, packages: Sequence[str], config: dict[str, Any], command: str
) -> dict[str, Any]:
    """Returns what a file of results holds.

    Args:
        runs: one per seed, with `seed` and `test`, the metrics.
        packages: whose versions matter.
        config: what was run.
        command: what gives the same again, without its seeds.
    """
    values = {name: [run["test"][name] for run in runs] for name in runs[0]["test"]}
    spread = statistics.stdev if len(runs) > 1 else lambda _: None
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "config": config,
        "command": f"{command} --seeds {' '.join(str(run['seed']) for run in runs)}",
        "mean": {name: statistics.fmean(value) for name, value in values.items()},
        "deviation": {name: spread(value) for name, value in values.items()},
        "runs": runs,
    }


def read_curve(history: Path) -> dict[str, list[float]]:
    """Returns `epoch` and each recall and nDCG over the evaluated epochs, empty without any."""
    rows = [row for row in read_history(history) if any(n.startswith("val_") for n in row)]
    names = [n for n in (rows[0] if rows else {}) if n.startswith(("val_recall", "val_ndcg"))]
    columns = {n.removeprefix("val_"): [float(row[n]) for row in rows] for n in names}
    return {"epoch": [int(row["epoch"]) for row in rows], **columns} if rows else {}


if __name__ == "__main__":
    main()
