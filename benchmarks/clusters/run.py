"""What balanced clusters cost and how tight they are, beside scikit-learn's KMeans.

Run it from the root of the repository; it writes results.json and README.md beside itself, about
fifteen minutes on two cores, of which three train the model whose user embeddings are clustered.
They are kept in the folder for temporary files::

    python -m benchmarks.clusters.run --data lightgcn:../shared/data/gowalla
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
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# On a shared machine threads that wait for each other would slow KMeans down by any factor.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans

from tfrs_negatives.clustering import clusters
from tfrs_negatives.clustering.clusters import balanced_clusters, cluster_bounds
from tfrs_negatives.core.files import write_text

HERE = Path(__file__).parent
PACKAGES = ("numpy", "scikit-learn", "tensorflow")
EPOCHS, DIM, REPEATS = 5, 64, 3
USER_CLUSTERS = (32, 117, 467)
SPEED_ROWS, LARGE_ROWS, CLUSTER_SIZE = 200_000, 1_000_000, 256
# The search of `KMeans, evened` would take half an hour with more clusters.
EVENED_UP_TO = 117
# (steps of the power iteration, the most steps of 2-means)
VARIANTS = ((0, 1), (0, 10), (3, 1), (3, 3), (3, 10), (10, 10), (30, 30))

TEXT = """# Balanced clusters

What `balanced_clusters` costs and how tight its clusters are, written by
`python -m benchmarks.clusters.run` on {date} from [results.json](results.json). {machine}, which
other jobs used as well: read the ratios. Python {python}, numpy {numpy}, scikit-learn
{scikit-learn}, TensorFlow {tensorflow}; every method on one thread, although `KMeans` could use
more (`balanced_clusters` could not). Seeds 0 to {last_seed}, all methods of a table in turn in
one run. `KMeans` is Lloyd's with k-means++, `n_init=1`, scikit-learn's default of at most 300
iterations; `MiniBatchKMeans` has its defaults with `n_init=1`.

*Distance* is the mean Euclidean distance of a row to the mean of its cluster, *squared* the mean of
its square, both as ratios to `KMeans`; *random* is a random order cut at the same places.
"""

TRIED = """
## What was tried and not kept

Ratios of distance and squared distance to `KMeans` of seed 0, one run each on the same embeddings
(2026-11-24); the recursion alone reached 1.067 and 1.144, 1.096 and 1.203, 1.080 and 1.180 with 32,
117 and 467 clusters.

| | 32 | 117 | 467 |
| --- | --- | --- | --- |
| A: after each level, split adjacent cousins anew | 1.066, 1.141 | 1.093, 1.195 | 1.075, 1.167 |
| B: as A, children turned to their neighbours | 1.058, 1.124 | 1.085, 1.180 | 1.067, 1.149 |
| C: at the end, split near pairs anew, twice | 1.058, 1.124 | 1.085, 1.181 | 1.071, 1.160 |
| D: as C, ten times | 1.044, 1.094 | 1.071, 1.148 | 1.057, 1.130 |

At most two and a half percent of distance. A and B took one and a half to two and a half times as
long; C and D, not timed, compare all pairs of clusters. After each of them the leaves of a node of
the tree are no longer one coarser cluster. Not worth it for the order of mini-batches; D is where
to begin if tighter clusters are ever wanted.

`matmul` instead of `einsum`: no faster on one large node (11.5 and 24.6 ms against 11.2 and 13.0 ms
for the two products of 1,000,000 x 64), and a million rows took 13.6 s instead of 7.2 s, with
chunks of 4 MiB 71 s instead of 7.1 s, because another job held one of the two cores and the threads
of BLAS wait for each other at every small product.
"""


def user_vectors(data: str) -> np.ndarray:
    """Returns [29858, 64]: the users of a model without item bias, trained for a few epochs."""
    cache = Path(tempfile.gettempdir()) / f"clusters_benchmark_users_{EPOCHS}.npy"
    if not cache.exists():
        from tfrs_negatives.runs.config import load_config
        from tfrs_negatives.runs.train import load_data, load_run, train_run

        config = load_config(
            HERE.parent / "quality" / "configs" / "gowalla_in_batch_logq_bias.yaml",
            [f"data.source={data}", f"train.epochs={EPOCHS}", "model.item_bias=false"],
        )
        with tempfile.TemporaryDirectory() as folder:
            train_run(config, Path(folder) / "run")
            model = load_run(Path(folder) / "run")[1]
        features, _ = load_data(config).train.queries()
        np.save(cache, model.query_vectors(features).numpy())
    return np.load(cache)


def skewed_vectors(num_rows: int, seed: int = 0) -> np.ndarray:
    """Returns [n, 64] float32 around 2,000 centres, some much more popular than others."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((2000, DIM), np.float32)
    shares = np.arange(1, len(centres) + 1) ** -0.75
    which = rng.choice(len(centres), num_rows, p=shares / shares.sum())
    rows = rng.standard_normal((num_rows, DIM), np.float32)
    # In pieces: nothing but the rows themselves may count in the memory that is measured.
    for begin in range(0, num_rows, 10_000):
        rows[begin : begin + 10_000] *= 0.7
        rows[begin : begin + 10_000] += centres[which[begin : begin + 10_000]]
    return rows


# ------------------------------------------------------------------ how tight


def tightness(vectors: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Returns the mean distance and the mean squared distance to the means of the clusters."""
    order = np.argsort(labels, kind="stable")
    _, begins, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    rows = vectors[order].astype(np.float64)
    means = np.add.reduceat(rows, begins) / sizes[:, None]
    squares = ((rows - np.repeat(means, sizes, axis=0)) ** 2).sum(axis=1)
    return float(np.sqrt(squares).mean()), float(squares.mean())


def labels_of(order: np.ndarray, k: int) -> np.ndarray:
    """Returns which cluster each row is in."""
    labels = np.empty(len(order), np.int64)
    labels[order] = np.repeat(np.arange(k), np.diff(cluster_bounds(len(order), k)))
    return labels


def balanced(vectors: np.ndarray, k: int, seed: int) -> np.ndarray:
    """The labels of this package."""
    return labels_of(balanced_clusters(vectors, k, seed=seed), k)


def k_means(vectors: np.ndarray, k: int, seed: int) -> np.ndarray:
    """The labels of scikit-learn."""
    return KMeans(k, n_init=1, random_state=seed).fit(vectors).labels_


def mini_batch_k_means(vectors: np.ndarray, k: int, seed: int) -> np.ndarray:
    """The labels of scikit-learn's faster one."""
    return MiniBatchKMeans(k, n_init=1, random_state=seed).fit(vectors).labels_


def random_order(vectors: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Labels that say nothing."""
    return labels_of(np.random.default_rng(seed).permutation(len(vectors)), k)


def evened_k_means(vectors: np.ndarray, k: int, seed: int) -> np.ndarray:
    """KMeans with all sizes evened out: how much of a gap is due to the balance itself.

    Each row goes where distance^2 - price is least, with the prices of a transport problem found by
    annealed Sinkhorn steps; the few rows too many go to their next choice; six rounds of means.
    """
    room = np.diff(cluster_bounds(len(vectors), k))
    labels, prices = k_means(vectors, k, seed), np.zeros(k, np.float32)
    for _ in range(6):
        means = np.stack([vectors[labels == j].mean(axis=0) for j in range(k)])
        cost = (means**2).sum(axis=1) - 2 * vectors @ means.T
        for step in range(60):
            heat = max(0.05 * 0.94**step, 1e-3)
            shares = (prices - cost) / heat
            shares = np.exp(shares - shares.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
            prices -= (heat * np.log(shares.sum(axis=0) / room + 1e-12)).astype(np.float32)
        labels = _fill(cost - prices, room.copy())
    return labels


def _fill(cost: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Gives each cluster the rows that want it most, and the others their next choice."""
    labels = np.full(len(cost), -1)
    while (labels < 0).any():
        waiting = np.flatnonzero(labels < 0)
        open_cost = np.where(room > 0, cost[waiting], np.inf)
        choice = open_cost.argmin(axis=1)
        for cluster in np.unique(choice):
            mine = np.flatnonzero(choice == cluster)
            mine = mine[np.argsort(open_cost[mine, cluster])][: room[cluster]]
            labels[waiting[mine]] = cluster
            room[cluster] -= len(mine)
    return labels


Method = Callable[[np.ndarray, int, int], np.ndarray]


def compare(vectors: np.ndarray, k: int, methods: dict[str, Method], seeds: int) -> dict[str, Any]:
    """Runs the methods in turn; the first is what the others are compared with."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
    for seed in range(seeds):
        for name, method in methods.items():
            began = time.perf_counter()
            labels = method(vectors, k, seed)
            seconds = time.perf_counter() - began
            distance, squared = tightness(vectors, labels)
            sizes = np.percentile(np.bincount(labels, minlength=k), [0, 10, 50, 90, 100])
            run = {"seconds": seconds, "distance": distance, "squared": squared}
            runs[name].append({**run, "sizes": sizes.tolist()})
            print(len(vectors), k, name, seed, run, flush=True)
    return {"rows": len(vectors), "clusters": k, "runs": runs}


def with_steps(power_steps: int, means_steps: int) -> Method:
    """The labels of this package with other limits."""

    def method(vectors: np.ndarray, k: int, seed: int) -> np.ndarray:
        kept = clusters.POWER_STEPS, clusters.MEANS_STEPS
        clusters.POWER_STEPS, clusters.MEANS_STEPS = power_steps, means_steps
        labels = balanced(vectors, k, seed)
        clusters.POWER_STEPS, clusters.MEANS_STEPS = kept
        return labels

    return method


# ------------------------------------------------------------------ how large


def measure_large(traced: bool) -> dict[str, float]:
    """Clusters the large array in this process, which does nothing else."""
    balanced_clusters(np.ones((10, 2)), 2)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * resource.getpagesize()
    if traced:
        tracemalloc.start()
    vectors = skewed_vectors(LARGE_ROWS)
    began = time.perf_counter()
    balanced_clusters(vectors, -(-LARGE_ROWS // CLUSTER_SIZE))
    seconds = time.perf_counter() - began
    if traced:
        return {"traced_peak": tracemalloc.get_traced_memory()[1] / vectors.nbytes}
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "resident_peak": (peak - before) / vectors.nbytes}


def large_runs() -> dict[str, Any]:
    """Starts the processes that `measure_large` is for."""
    runs = []
    for mode in ["resident"] * REPEATS + ["traced"]:
        command = [sys.executable, "-m", "benchmarks.clusters.run", "--large", mode]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
        runs.append(json.loads(done.stdout))
        print(runs[-1], flush=True)
    return {"rows": LARGE_ROWS, "clusters": -(-LARGE_ROWS // CLUSTER_SIZE), "runs": runs}


# ------------------------------------------------------------------ what is written


def _table(comparison: dict[str, Any]) -> str:
    lines = [
        f"\n**{comparison['rows']:,} rows, {comparison['clusters']} clusters**\n",
        "| | distance | squared | seconds | sizes: least, 10 %, median, 90 %, most |",
        "| --- | --- | --- | --- | --- |",
    ]
    first = next(iter(comparison["runs"].values()))
    base = {name: np.median([run[name] for run in first]) for name in ("distance", "squared")}
    for method, runs in comparison["runs"].items():
        ratios = [
            f"{np.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"
            for name in base
            for values in [[run[name] / base[name] for run in runs]]
        ]
        seconds = f"{np.median([run['seconds'] for run in runs]):.2f}"
        sizes = ", ".join(f"{size:.0f}" for size in runs[0]["sizes"])
        lines.append(f"| {' | '.join([method, *ratios, seconds, sizes])} |")
    return "\n".join(lines) + "\n"


def write_readme(folder: Path) -> None:
    """Writes README.md from results.json."""
    results = json.loads((folder / "results.json").read_text())
    text = TEXT.format(**{**results, **results["versions"]}) + "\n## User embeddings of Gowalla\n"
    text += (
        f"\nTwo towers of width {DIM} after {EPOCHS} epochs, unit vectors. *KMeans, evened* moves "
        "its result to clusters of equal size by a slow search: about what the balance alone "
        "costs. The rest of the gap is that a tree never takes a cut back.\n"
    )
    text += "".join(_table(comparison) for comparison in results["users"])
    text += (
        "\n## Steps\n\nPower iteration / most steps of 2-means in a node, on the same embeddings; "
        f"{clusters.POWER_STEPS} / {clusters.MEANS_STEPS} is what the package has.\n"
    )
    text += _table(results["steps"]) + (
        "\n## Speed\n\nRows around 2,000 random centres of unequal share. The centres have no "
        "coarser structure, which is hard for a tree: see the distances. How much of that gap "
        "is the balance was not measured.\n"
    )
    large = results["large"]
    resident = [run for run in large["runs"] if "seconds" in run]
    seconds = ", ".join(f"{run['seconds']:.1f}" for run in resident)
    peak = max(run["resident_peak"] for run in resident)
    traced = next(run["traced_peak"] for run in large["runs"] if "traced_peak" in run)
    text += _table(results["speed"]) + (
        f"\n## A million rows\n\n{large['rows']:,} x {DIM} in {large['clusters']} clusters of "
        f"{CLUSTER_SIZE} at most: {seconds} seconds, each in a process of its own. The input "
        f"included, its resident memory grew by {peak:.2f} times the input at most; the arrays "
        f"that `tracemalloc` saw reached {traced:.2f} times.\n"
    )
    write_text(folder / "README.md", text + TRIED)


def measure(users: np.ndarray) -> dict[str, Any]:
    """Runs everything."""
    both: dict[str, Method] = {"KMeans": k_means, "balanced_clusters": balanced}
    bounds: dict[str, Method] = {"random": random_order, "KMeans, evened": evened_k_means}
    faster: dict[str, Method] = {**both, "MiniBatchKMeans": mini_batch_k_means}
    steps = {"KMeans": k_means, **{f"{p} / {m}": with_steps(p, m) for p, m in VARIANTS}}
    comparisons = []
    for k in USER_CLUSTERS:
        methods = {**both, **bounds}
        if k > EVENED_UP_TO:
            del methods["KMeans, evened"]
        comparisons.append(compare(users, k, methods, REPEATS))
    rows = skewed_vectors(SPEED_ROWS)
    return {
        "large": large_runs(),
        "users": comparisons,
        "steps": compare(users, USER_CLUSTERS[1], steps, REPEATS),
        "speed": compare(rows, -(-SPEED_ROWS // CLUSTER_SIZE), faster, REPEATS),
    }


def main() -> None:
    """Runs everything and writes it to the folder of this file, or to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="the log as `data.load` reads it")
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--large", choices=["resident", "traced"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.large:
        print(json.dumps(measure_large(arguments.large == "traced")))
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    results = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "last_seed": REPEATS - 1,
        **measure(user_vectors(arguments.data)),
    }
    write_text(arguments.output / "results.json", json.dumps(results, indent=1) + "\n")
    write_readme(arguments.output)


if __name__ == "__main__":
    main()
