"""What the log-sum-exp in blocks costs, in time and in memory, beside what it replaces.

B queries and C columns of width D, a shift per column, and a mask of accidental hits; value and the
gradients of queries, columns and shift. The variants::

    products            P = Q V', P V and P' Q: the least that value and gradients take
    products_in_blocks  the same three, block by block
    dense               autodiff of `masked_log_sum_exp` over all logits
    chunked             `chunked_log_sum_exp`
    chunked_stale       the same, where only the first B columns get a gradient

Times are taken in turn within one process, and a ratio compares two of the same turn. Each peak is
that of a fresh process that runs one variant once, less that of one that only holds the inputs and
outputs.

Run it from the root of the repository; it writes results.json and README.md beside itself, about
five minutes on two cores that do nothing else::

    python -m benchmarks.large_pools.run
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tfrs_negatives  # noqa: F401  # isort: skip  (chooses legacy Keras before TensorFlow)
import numpy as np
import tensorflow as tf

from tfrs_negatives.core.files import write_text
from tfrs_negatives.step.blocks import chunked_log_sum_exp, columns_within
from tfrs_negatives.step.losses.log_sums import masked_log_sum_exp

HERE = Path(__file__).parent
NUM_ROWS, WIDTH = 4096, 128
# 36,864 = 72 * 512: the transposed logits of all columns fall on few lines of the cache.
NUM_COLUMNS = (36_864, 36_872)
BLOCK_BYTES = 2**24
VARIANTS = ("products", "products_in_blocks", "dense", "chunked", "chunked_stale")
PACKAGES = ("tensorflow", "numpy", "tfrs-negatives")

Step: TypeAlias = "Callable[[], Any]"


class Problem:
    """The inputs, and a compiled step of each variant."""

    def __init__(self, num_rows: int, num_columns: int, block_bytes: int, seed: int) -> None:
        self.num_rows, self.num_columns = num_rows, num_columns
        self.block_width = columns_within(block_bytes, num_rows)
        # Logits of standard deviation 2: neither one column nor all of them make the sum. Drawn by
        # TensorFlow in single precision, so that no larger draft counts in the baseline of memory.
        scale = (2 / WIDTH**0.5) ** 0.5
        self.queries, self.columns, self.shift = (
            tf.random.stateless_normal(shape, [seed, number], stddev=scale)
            for number, shape in enumerate([[num_rows, WIDTH], [num_columns, WIDTH], [num_columns]])
        )
        self.origin = tf.zeros([num_rows])
        limits = {"maxval": num_columns, "dtype": tf.int64}
        self.ids = tf.random.stateless_uniform([num_columns], [seed, 3], 0, **limits)
        self.positive_ids = self.ids[:num_rows]

    def step(self, variant: str) -> Step:
        """Returns the compiled variant."""
        # As arguments, so that nothing is computed when the function is built.
        function = tf.function(getattr(self, variant))
        return lambda: function(self.queries, self.columns, self.shift)

    def keep(self, start: tf.Tensor | int, width: tf.Tensor | int) -> tf.Tensor:
        """Returns [B, w] bool: which columns are no accidental hits."""
        return tf.slice(self.ids, [start], [width])[None, :] != self.positive_ids[:, None]

    def products(self, queries: tf.Tensor, columns: tf.Tensor, _shift: tf.Tensor) -> Any:
        """The three products over all columns."""
        logits = tf.matmul(queries, columns, transpose_b=True)
        return tf.matmul(logits, columns), tf.matmul(logits, queries, transpose_a=True)

    def products_in_blocks(self, queries: tf.Tensor, columns: tf.Tensor, _shift: tf.Tensor) -> Any:
        """The three products of each block, and nothing else."""
        starts = range(0, self.num_columns, self.block_width)
        blocks = tf.TensorArray(tf.float32, len(starts), infer_shape=False)

        def of_block(number: tf.Tensor, total: tf.Tensor, blocks: tf.TensorArray) -> Any:
            start = number * self.block_width
            block = columns[start : start + self.block_width]
            logits = tf.matmul(queries, block, transpose_b=True)
            by_column = tf.matmul(logits, queries, transpose_a=True)
            return number + 1, total + tf.matmul(logits, block), blocks.write(number, by_column)

        state = 0, tf.zeros_like(queries), blocks
        _, total, blocks = tf.while_loop(
            lambda number, *_: number < len(starts), of_block, state, parallel_iterations=1
        )
        return total, blocks.concat()

    def dense(self, queries: tf.Tensor, columns: tf.Tensor, shift: tf.Tensor) -> Any:
        """Autodiff over all logits."""
        inputs = [queries, columns, shift]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            logits = tf.matmul(queries, columns, transpose_b=True) + shift
            _, value = masked_log_sum_exp(
                logits, self.keep(0, self.num_columns), positive=self.origin
            )
            loss = tf.reduce_mean(value)
        return value, *tape.gradient(loss, inputs)

    def chunked(
        self,
        queries: tf.Tensor,
        columns: tf.Tensor,
        shift: tf.Tensor,
        stale_from: int | None = None,
    ) -> Any:
        """Block by block."""
        inputs = [queries, columns, shift]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            (_, value), _ = chunked_log_sum_exp(
                *inputs,
                keep=lambda start, logits: self.keep(start, tf.shape(logits)[1]),
                positive=self.origin,
                block_width=self.block_width,
                stale_from=stale_from,
            )
            loss = tf.reduce_mean(value)
        return value, *tape.gradient(loss, inputs)

    def chunked_stale(self, *inputs: tf.Tensor) -> Any:
        """Block by block, a bank behind the batch."""
        return self.chunked(*inputs, self.num_rows)


def measure_times(problem: Problem, rounds: int) -> dict[str, Any]:
    """Returns the seconds of every variant in every round, and how far two of them differ."""
    steps = {variant: problem.step(variant) for variant in VARIANTS}
    difference = _difference(steps["chunked"](), steps["dense"]())
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for number in range(rounds):
        for variant, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[variant].append(round(time.perf_counter() - began, 4))
        print(f"{problem.num_columns} columns, round {number + 1} of {rounds}", flush=True)
    return {
        "columns": problem.num_columns,
        "block_width": problem.block_width,
        "chunked_minus_dense": difference,
        "seconds": seconds,
    }


def _difference(ours: Any, expected: Any) -> float:
    """Returns the largest difference of any output, relative to the largest number in it."""
    pairs = zip(ours, expected, strict=True)
    return max(float(tf.reduce_max(abs(a - b)) / tf.reduce_max(abs(b))) for a, b in pairs)


def print_peak(problem: Problem, variant: str) -> None:
    """Runs one variant once and prints the most memory this process ever held, in bytes."""
    if variant == "nothing":
        held: Any = [x + 1.0 for x in (problem.queries, problem.columns, problem.shift)]
    else:
        held = problem.step(variant)()
    assert held is not None
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def measure_peaks(options: list[str]) -> dict[str, int]:
    """Returns variant -> bytes above those of the inputs and outputs."""
    peaks = {}
    for variant in ("nothing", *VARIANTS):
        command = [sys.executable, "-m", "benchmarks.large_pools.run", "--peak", variant, *options]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
        peaks[variant] = int(output.split()[-1])
        print(f"peak of {variant}: {peaks[variant] / 2**20:.0f} MiB", flush=True)
    return {variant: peaks[variant] - peaks["nothing"] for variant in VARIANTS}


def describe(seed: int, rounds: int) -> dict[str, Any]:
    """Returns what is needed to run the same again."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {"python": platform.python_version(), **versions},
        "seeds": [seed],
        "rows": NUM_ROWS,
        "width": WIDTH,
        "block_bytes": BLOCK_BYTES,
        "rounds": rounds,
    }


TEXT = """# Large pools

Written by `python -m benchmarks.large_pools.run` on {date} from [results.json](results.json):
{rows} queries, vectors of {width} dimensions, blocks of at most {mib} MiB of logits, a shift per
column, a mask of accidental hits; value and all gradients. {machine}; Python {python},
TensorFlow {tensorflow}, seed {seed}.

- `products`: P = Q V', P V and P' Q over all columns; `products_in_blocks`: the same in blocks.
- `dense`: autodiff of `masked_log_sum_exp`. `chunked`: `chunked_log_sum_exp`, which takes four
  products. `chunked_stale`: only the first {rows} columns get a gradient.

A ratio is the median over {rounds} rounds of two times of the same round, with the smallest and the
largest in brackets. The seconds and the spread are also those of whatever else the machine did. The
product of the transposed logits is slow where the number of columns is a multiple of 512 (36,864
is), which the first two rows show; `columns_within` avoids such blocks.
"""


def render(results: dict[str, Any]) -> str:
    """Returns the page of the results."""
    text = TEXT.format(
        **{**results, **results["versions"], "seed": results["seeds"][0]},
        mib=results["block_bytes"] // 2**20,
    )
    for times in results["times"]:
        text += (
            f"\n## {times['columns']:,} columns, blocks of {times['block_width']}\n\n"
            "| variant | least seconds | to `products` | to `products_in_blocks` | to `dense` |\n"
            "|---|---|---|---|---|\n"
        )
        for variant, seconds in times["seconds"].items():
            against = [times["seconds"][other] for other in VARIANTS[:3]]
            cells = [f"{min(seconds):.2f}", *(_ratio(seconds, other) for other in against)]
            text += f"| `{variant}` | {' | '.join(cells)} |\n"
        difference = times["chunked_minus_dense"]
        text += f"\nLargest relative difference of `chunked` and `dense`: {difference:.1e}.\n"
    text += (
        f"\n## Memory, {results['peak_columns']:,} columns\n\n"
        "The most a fresh process held, above one with the inputs and outputs alone.\n\n"
        "| variant | MiB | to `dense` |\n|---|---|---|\n"
    )
    peaks = results["extra_bytes"]
    for variant, extra in peaks.items():
        text += f"| `{variant}` | {extra / 2**20:.0f} | {extra / peaks['dense']:.2f} |\n"
    return text


def _ratio(seconds: list[float], others: list[float]) -> str:
    ratios = np.divide(seconds, others)
    return f"{np.median(ratios):.2f} [{ratios.min():.2f}, {ratios.max():.2f}]"


def main() -> None:
    """Runs everything and writes it to the folder of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peak", choices=("nothing", *VARIANTS), help="print one variant's peak")
    arguments = parser.parse_args()

    def problem(num_columns: int) -> Problem:
        return Problem(NUM_ROWS, num_columns, BLOCK_BYTES, arguments.seed)

    if arguments.peak:
        print_peak(problem(NUM_COLUMNS[0]), arguments.peak)
        return
    results = describe(arguments.seed, arguments.rounds)
    # First of all: a process starts with the peak of the one that started it.
    results["peak_columns"] = NUM_COLUMNS[0]
    results["extra_bytes"] = measure_peaks(["--seed", str(arguments.seed)])
    results["times"] = [measure_times(problem(size), arguments.rounds) for size in NUM_COLUMNS]
    write_text(HERE / "results.json", json.dumps(results, indent=1) + "\n")
    write_text(HERE / "README.md", render(results))


if __name__ == "__main__":
    main()
