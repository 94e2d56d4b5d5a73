"""What encoding in chunks saves in memory and costs in time.

One training step of two deep towers with in-batch negatives, at once and in chunks. Every
measurement has a process of its own, whose peak memory is the most it ever held minus what it held
before its first step. Loss alone is the same step with towers of one layer: what no chunk can save.

Run it from the root of the repository; it writes results.json and README.md beside itself, about
five minutes on two cores::

    python -m benchmarks.gradient_cache.run
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tfrs_negatives.core.files import write_text

ROWS, FEATURES, WIDTH, DEPTH, DIM = 4096, 64, 384, 16, 64
SEED = 0
STEPS = 3
# Name -> rows per chunk (None for the batch at once) and hidden layers.
SETTINGS = {
    "loss alone": (None, 0),
    "at once": (None, DEPTH),
    "chunks of 1024": (1024, DEPTH),
    "chunks of 256": (256, DEPTH),
}

TEXT = """# Encoding in chunks

Written by `python -m benchmarks.gradient_cache.run` on {date} from [results.json](results.json).
One training step of two towers of {depth} layers of {width} units on {rows} rows, with in-batch
negatives and Adagrad; {cores} {architecture} cores, Python {python}, TensorFlow {tensorflow}, seed
{seed}. Means over {rounds} processes each, ± their standard deviation; ratios are to the step at
once of the same round. Peak memory is what the steps add to the process. CPU time is that of all
threads, of the fastest of {steps} steps; other work on the machine changes it less than the time on
the clock.

| setting | peak memory, MB | ratio | CPU s per step | ratio |
|---|---|---|---|---|
{table}
"Loss alone" is the step with towers of a single layer: the logits [B, B] and what else is there
whatever the towers are. Of the memory that deep towers add to it, chunks of 1024 keep {share_1024},
chunks of 256 keep {share_256}. A second forward pass makes four passes of three (a backward pass
counts as two): a ratio of 1.33, were the towers all there is.
"""


def measure(chunk: int | None, depth: int) -> dict[str, float]:
    """Returns the peak memory in MB and the CPU seconds of one step, in this process."""
    import tfrs_negatives as tfn  # isort: skip  (chooses legacy Keras before TensorFlow)
    import tensorflow as tf

    from tfrs_negatives.towers.chunked import encode_in_chunks

    tf.keras.utils.set_random_seed(SEED)
    towers = [_tower(tf, depth), _tower(tf, depth)]
    task, optimizer = tfn.Retrieval(reduction="mean"), tf.keras.optimizers.Adagrad(0.01)
    variables = [v for tower in towers for v in tower.trainable_variables]
    optimizer.build(variables)
    rng = np.random.default_rng(SEED)
    columns = [tf.constant(rng.normal(size=(ROWS, FEATURES)), tf.float32) for _ in towers]

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            embeddings = [
                encode_in_chunks(tower, x, chunk) if chunk else tower(x, training=True)
                for tower, x in zip(towers, columns, strict=True)
            ]
            loss = task(*embeddings, compute_metrics=False, training=True)
        optimizer.minimize(loss, variables, tape=tape)
        return loss

    concrete = step.get_concrete_function()
    before, seconds = _peak_megabytes(), []
    for _ in range(STEPS + 1):
        began = time.process_time()
        loss = float(concrete())
        seconds.append(time.process_time() - began)
    # The first step allocates.
    return {"memory": _peak_megabytes() - before, "seconds": min(seconds[1:]), "loss": loss}


def _tower(tf: Any, depth: int) -> Any:
    hidden = [tf.keras.layers.Dense(WIDTH, activation="relu") for _ in range(depth)]
    return tf.keras.Sequential([tf.keras.Input((FEATURES,)), *hidden, tf.keras.layers.Dense(DIM)])


def _peak_megabytes() -> float:
    # Linux counts in kilobytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def run(rounds: int) -> dict[str, list[dict[str, float]]]:
    """Returns setting -> a measurement per round, each from a new process."""
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
    for _ in range(rounds):
        for name in SETTINGS:
            command = [sys.executable, "-m", "benchmarks.gradient_cache.run", "--measure", name]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
            measured[name].append(json.loads(output.splitlines()[-1]))
            print(name, measured[name][-1], flush=True)
    return measured


def describe(rounds: int) -> dict[str, Any]:
    """Returns what is needed to run the same again."""
    from importlib.metadata import version

    return {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("tensorflow", "tf_keras", "numpy")},
        },
        "seed": SEED,
        "rounds": rounds,
        "steps": STEPS,
        "rows": ROWS,
        "features": FEATURES,
        "width": WIDTH,
        "depth": DEPTH,
        "dim": DIM,
    }


def write_readme(folder: Path) -> None:
    """Writes README.md from results.json."""
    results = json.loads((folder / "results.json").read_text())
    measured = {
        name: {key: np.array([one[key] for one in rounds]) for key in rounds[0]}
        for name, rounds in results["measured"].items()
    }
    whole, floor = measured["at once"], measured["loss alone"]["memory"]
    table = ""
    for name, values in measured.items():
        cells = [name]
        for key, form in (("memory", ".0f"), ("seconds", ".2f")):
            cells += [_mean(values[key], form), _mean(values[key] / whole[key], ".2f")]
        table += f"| {' | '.join(cells)} |\n"
    kept = {
        f"share_{rows}": f"{((values['memory'] - floor) / (whole['memory'] - floor)).mean():.0%}"
        for rows in (1024, 256)
        if (values := measured[f"chunks of {rows}"])
    }
    text = TEXT.format(**{**results, **results["versions"]}, **kept, table=table)
    write_text(folder / "README.md", text)


def _mean(values: np.ndarray, form: str) -> str:
    return f"{values.mean():{form}} ± {values.std(ddof=len(values) > 1):{form}}"


def main() -> None:
    """Measures everything and writes it to the folder of this file, or to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=SETTINGS, help="one setting, in this process")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*SETTINGS[arguments.measure])))
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    results = {**describe(arguments.rounds), "measured": run(arguments.rounds)}
    write_text(arguments.output / "results.json", json.dumps(results, indent=1) + "\n")
    write_readme(arguments.output)


if __name__ == "__main__":
    main()
