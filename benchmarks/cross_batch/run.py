"""What a memory bank costs: seconds per epoch beside in-batch with the same batch.

The towers of the thesis on MovieLens-100K, batches of 1,024, float32. Epochs of all variants are
trained in turn within one process, and a ratio compares two epochs of the same turn::

    in_batch   in-batch with logQ
    bank_1152  and the bank of the thesis
    bank_4096  and a larger one

Run it from the root of the repository; it writes results.json and README.md beside itself, about
three minutes on two cores::

    .venv/bin/python -m benchmarks.cross_batch.run --data ml-100k:../shared/data/ml-100k
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tfrs_negatives  # noqa: F401  # isort: skip  (chooses legacy Keras before TensorFlow)
from tfrs_negatives.core.files import write_text
from tfrs_negatives.runs.build import build_model
from tfrs_negatives.runs.config import load_config
from tfrs_negatives.runs.train import load_data

HERE = Path(__file__).parent
BATCH = 1024
VARIANTS = {
    "in_batch": ["task.recipe=in_batch"],
    "bank_1152": ["task.recipe=cross_batch_negative_sampling", "task.recipe.capacity=1152"],
    "bank_4096": ["task.recipe=cross_batch_negative_sampling", "task.recipe.capacity=4096"],
}
PACKAGES = ("tensorflow", "tf_keras", "numpy", "tfrs-negatives")


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="ml-100k:FOLDER")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    seconds = measure(arguments.data, arguments.rounds)
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "batch": BATCH,
        "seconds_per_epoch": seconds,
    }
    write_text(HERE / "results.json", json.dumps(result, indent=2) + "\n")
    write_text(HERE / "README.md", render(result))


def measure(source: str, rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each epoch of each variant, the first, which traces, left out."""
    keys = [f"data.source={source}", "data.min_rating=3"]
    configs = {name: load_config(overrides=[*keys, *own]) for name, own in VARIANTS.items()}
    data = load_data(configs["in_batch"])
    models = {name: build_model(config, data) for name, config in configs.items()}
    steps = data.train.steps_per_epoch(BATCH)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            stream = data.train.stream(BATCH, item_key=model.item_key, start_step=number * steps)
            start = time.perf_counter()
            model.fit(stream, steps_per_epoch=steps, verbose=0)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def render(result: dict[str, Any]) -> str:
    """Renders the ratios as a table."""
    usage = [line.strip() for line in __doc__.splitlines() if ".venv" in line]
    base = result["seconds_per_epoch"]["in_batch"]
    rows = []
    for name, seconds in result["seconds_per_epoch"].items():
        ratios = [mine / other for mine, other in zip(seconds, base, strict=True)]
        cells = f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f}"
        rows.append(f"| {name} | {statistics.median(seconds):.2f} | {cells} |")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        "\n".join(
            [
                "# Cross-batch negatives\n",
                "Written by `run.py`. Seconds per epoch on MovieLens-100K with the towers of the "
                f"thesis and batches of {result['batch']:,}, in turn within one process; the ratio "
                f"is to in-batch in the same turn, over {len(base)} turns.\n",
                f"    {usage[0]}\n",
                "| variant | s/epoch, median | to in_batch, median | smallest to largest |",
                "|---|---|---|---|",
                *rows,
                f"\n{result['date']}, {result['machine']}; {versions}.",
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
