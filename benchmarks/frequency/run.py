"""The simulation of Yi et al. (RecSys 2019): how fast and how well the stream tells frequencies.

N items, batches of B different items. Item i is drawn in proportion to i^2 until half of the steps
are over and to (N - 1 - i)^2 after that, so every estimate has to be forgotten. The error of the
estimated probabilities p_hat that an item is in a batch is their distance in total variation::

    error = 1 / (2 B) sum_i |p_hat_i - p_i|,   p_i = B q_i

The gap estimator is read twice: as the layer answers, and as in the paper, whose p_hat = 1 / D does
not look at the gap that is still open.

Run it from the root of the repository; it writes its plots, results.json and README.md beside
itself, about two minutes on two cores::

    python -m benchmarks.frequency.run
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import platform
import time
from pathlib import Path
from typing import Any, TypeAlias

import tfrs_negatives as tfn  # isort: skip  (chooses legacy Keras before TensorFlow is imported)
import numpy as np
import tensorflow as tf

from benchmarks.frequency.report import TITLES, draw_plot, write_readme
from tfrs_negatives.core.files import write_text

NUM_ITEMS, BATCH_SIZE = 1000, 128
INTERVAL_RATE = 0.01
# An item of hit probability h is averaged over 1 / (rate h) steps by the gaps, over 1 / rate by
# the counts: the two windows agree for the mean item, whose h is B / N.
RATES = {
    "interval": INTERVAL_RATE,
    "decayed_count": INTERVAL_RATE * BATCH_SIZE / NUM_ITEMS,
}
NUM_HASHES = (1, 2, 3, 4, 5)
BUCKETS_PER_HASH = (5000, 500)
READ_EVERY = 100

Curves: TypeAlias = "dict[tuple[int, str, int], np.ndarray]"


def hit_probabilities() -> np.ndarray:
    """Returns [2, N]: the probability that a batch holds each item, before and after the switch."""
    weights = np.arange(NUM_ITEMS, dtype=np.float64) ** 2
    hits = BATCH_SIZE * weights / weights.sum()
    if hits.max() > 1:
        raise ValueError(f"no batch of different items holds an item {hits.max()} times")
    return np.stack([hits, hits[::-1]])


def draw_stream(hits: np.ndarray, num_steps: int, seed: int) -> np.ndarray:
    """Draws batches of different items in which item i is present with probability exactly hits_i.

    Weighted drawing without replacement would not do: the heavy items would be met less often than
    B q. Systematic sampling lays the items, in a new random order at each step, on a line of length
    B, each as long as its probability, and takes those under B equally spaced points.

    Args:
        hits: [2, N] hit probabilities before and after the switch; each row has sum B.
        num_steps: how many batches; the switch is in the middle.
        seed: of the random numbers.

    Returns:
        [num_steps, B] int64 item numbers.
    """
    rng = np.random.default_rng(seed)
    stream = np.empty((num_steps, BATCH_SIZE), np.int64)
    for step in range(num_steps):
        order = rng.permutation(NUM_ITEMS)
        ends = np.cumsum(hits[2 * step // num_steps][order])
        places = np.searchsorted(ends, rng.random() + np.arange(BATCH_SIZE), side="right")
        # Rounding may end the line just before the last point.
        stream[step] = order[np.minimum(places, NUM_ITEMS - 1)]
    return stream


def error_curve(
    frequency: tfn.StreamingFrequency, stream: np.ndarray, hits: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns reading -> the error after every `READ_EVERY` steps of the stream."""
    items = tf.range(NUM_ITEMS, dtype=tf.int64)

    @tf.function(reduce_retracing=True)
    def advance(batches: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        for ids in batches:
            frequency.update(ids)
        tables = tf.gather(frequency.table, frequency._slots(items))
        return frequency.log_probability(items), tf.reduce_max(tables, axis=0)

    errors: dict[str, list[float]] = {}
    for start in range(0, len(stream), READ_EVERY):
        log_q, gap = advance(tf.constant(stream[start : start + READ_EVERY]))
        estimates = {frequency.method: to_hit_probability(log_q.numpy(), frequency.method)}
        if frequency.method == "interval":
            estimates["interval_paper"] = 1 / gap.numpy()
        for reading, estimate in estimates.items():
            error = np.abs(estimate - hits[2 * start // len(stream)]).sum() / (2 * BATCH_SIZE)
            errors.setdefault(reading, []).append(error)
    return {reading: np.array(values) for reading, values in errors.items()}


def to_hit_probability(log_q: np.ndarray, method: str) -> np.ndarray:
    """Turns the answer for one draw back into the probability that a batch holds the item.

    The gaps measured h and the layer answered 1 - (1 - h)^(1/B). The counts measured the columns
    of an item, c = B q; in a batch of different items that is the probability itself.
    """
    log_q = log_q.astype(np.float64)
    if method == "interval":
        return -np.expm1(BATCH_SIZE * np.log1p(-np.exp(log_q)))
    return BATCH_SIZE * np.exp(log_q)


def run(num_steps: int, seeds: list[int]) -> Curves:
    """Returns (buckets, reading, hashes) -> [seeds, reads] errors."""
    hits = hit_probabilities()
    streams = {seed: draw_stream(hits, num_steps, seed) for seed in seeds}
    curves: dict[tuple[int, str, int], list[np.ndarray]] = {}
    for num_buckets, method, num_hashes in itertools.product(BUCKETS_PER_HASH, RATES, NUM_HASHES):
        began = time.perf_counter()
        for seed, stream in streams.items():
            frequency = tfn.StreamingFrequency(
                num_buckets, num_hashes, method=method, rate=RATES[method], seed=seed
            )
            for reading, errors in error_curve(frequency, stream, hits).items():
                curves.setdefault((num_buckets, reading, num_hashes), []).append(errors)
        seconds = time.perf_counter() - began
        print(f"{num_buckets} {method} {num_hashes}: {seconds:.0f} s", flush=True)
    return {setting: np.stack(errors) for setting, errors in curves.items()}


def summarise(curves: Curves, num_steps: int) -> list[dict]:
    """Returns one row per setting: errors at chosen steps, mean and deviation over the seeds."""
    half, window = num_steps // 2, num_steps // 10
    steps = [num_steps * twentieths // 20 for twentieths in (1, 5, 10, 11, 15, 20)]
    rows = []
    for (num_buckets, reading, num_hashes), errors in curves.items():
        chosen = {
            str(step): _mean_and_deviation(errors[:, step // READ_EVERY - 1]) for step in steps
        }
        floor = errors[:, (half - window) // READ_EVERY : half // READ_EVERY].mean(axis=1)
        rows.append(
            {
                "buckets_per_hash": num_buckets,
                "reading": reading,
                "hashes": num_hashes,
                "error_at_step": chosen,
                "floor_before_switch": _mean_and_deviation(floor),
            }
        )
    return rows


def _mean_and_deviation(values: np.ndarray) -> dict[str, float]:
    return {"mean": float(values.mean()), "deviation": float(values.std(ddof=len(values) > 1))}


def describe(num_steps: int, seeds: list[int]) -> dict[str, Any]:
    """Returns what is needed to run the same again."""
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    return {
        "date": datetime.date.today().isoformat(),
        "versions": {**versions, "tensorflow": tf.__version__},
        "seeds": seeds,
        "items": NUM_ITEMS,
        "batch_size": BATCH_SIZE,
        "steps": num_steps,
        "rates": RATES,
        "initial_gap": tfn.StreamingFrequency(1, 1, method="interval").initial_gap,
    }


def main() -> None:
    """Runs everything and writes it to the folder of this file, or to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    curves = run(arguments.steps, arguments.seeds)
    results = describe(arguments.steps, arguments.seeds)
    results["rows"] = summarise(curves, arguments.steps)
    write_text(arguments.output / "results.json", json.dumps(results, indent=1) + "\n")
    read_steps = np.arange(READ_EVERY, arguments.steps + 1, READ_EVERY)
    for num_buckets in BUCKETS_PER_HASH:
        panels = {
            reading: {m: curves[num_buckets, reading, m] for m in NUM_HASHES} for reading in TITLES
        }
        draw_plot(arguments.output / f"error_{num_buckets}.png", read_steps, panels, num_buckets)
    write_readme(arguments.output)


if __name__ == "__main__":
    main()
