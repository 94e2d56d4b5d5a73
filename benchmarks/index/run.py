"""A million vectors: recall, queries per second and memory of the index, beside others.

Run it from the root of the repository; it writes results.json, sweep.png and README.md beside
itself, about fifteen minutes on two cores::

    python -m benchmarks.index.run

The peers are installed by `pip install -e '.[index_peers]'`.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tfrs_negatives as tfn  # isort: skip

import faiss
import hnswlib
import numpy as np
import scann
import tensorflow as tf

from tfrs_negatives.core.files import write_text
from tfrs_negatives.index import Index, build_index, export_index, load_index
from tfrs_negatives.index.build.plots import plot_sweep
from tfrs_negatives.index.search.backends import ExactSearch, ScannSettings

HERE = Path(__file__).parent
PACKAGES = ("tensorflow", "scann", "faiss-cpu", "hnswlib", "numpy")
K, TARGET, CLUSTERS, TURNS, TUNING, FILTERED = 10, 0.95, 2000, 5, 1000, 256

Answer = Callable[[np.ndarray], np.ndarray]


def make_vectors(num_items: int, width: int, num_queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around 2,000 centres, and queries that lie as far from items as items do."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=[CLUSTERS, width]).astype(np.float32)

    def draw(count: int) -> np.ndarray:
        noise = generator.normal(size=[count, width]).astype(np.float32)
        vectors = centres[generator.integers(0, CLUSTERS, count)] + 0.7 * noise
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return draw(num_items), draw(num_queries)


def as_model(vectors: np.ndarray) -> Any:
    """A model whose queries are vectors already."""
    spec = tf.TensorSpec([None, vectors.shape[1]], tf.float32)
    items = tfn.ItemCatalogue(np.arange(len(vectors)))
    return SimpleNamespace(
        items=items,
        similarity="cosine",
        query_signature={"vector": spec},
        query_vectors=lambda features: features["vector"],
        item_vectors=lambda features: tf.zeros([tf.size(features["item_id"]), vectors.shape[1]]),
    )


def recall_of(found: np.ndarray, exact: np.ndarray) -> float:
    """The share of the exact ids that were found."""
    pairs = zip(found.tolist(), exact.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / K for a, b in pairs]))


def seconds_of(answers: dict[str, Answer], queries: np.ndarray) -> dict[str, list[float]]:
    """Seconds of all queries as one batch, each method once per turn, after one that is dropped."""
    seconds: dict[str, list[float]] = {name: [] for name in answers}
    for turn in range(TURNS + 1):
        for name, answer in answers.items():
            start = time.perf_counter()
            answer(queries)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def scann_directly(vectors: np.ndarray, settings: ScannSettings) -> Answer:
    """ScaNN's own package, with the parameters of our index."""
    depth = settings.depths[0]
    builder = scann.scann_ops_pybind.builder(vectors, K, "dot_product")
    builder = builder.tree(settings.num_leaves, depth.leaves, random_init=False)
    builder = builder.score_ah(
        settings.dimensions_per_block,
        anisotropic_quantization_threshold=settings.anisotropic_threshold,
    )
    searcher = builder.reorder(depth.reorder).build()
    return lambda queries: searcher.search_batched_parallel(queries)[0]


def faiss_ivf(vectors: np.ndarray, queries: np.ndarray, exact: np.ndarray) -> tuple[Answer, str]:
    """Inverted lists of float32 vectors, with the fewest probes that meet the target."""
    leaves = round(len(vectors) ** 0.5)
    quantizer = faiss.IndexFlatIP(vectors.shape[1])
    index = faiss.IndexIVFFlat(quantizer, vectors.shape[1], leaves, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors[:: max(1, len(vectors) // 100_000)])
    index.add(vectors)
    for probes in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256, leaves):
        index.nprobe = probes
        if recall_of(index.search(queries, K)[1], exact) >= TARGET:
            break
    return lambda q: index.search(q, K)[1], f"IVFFlat, {leaves} lists, {index.nprobe} probed"


def hnsw(vectors: np.ndarray, queries: np.ndarray, exact: np.ndarray) -> tuple[Answer, str]:
    """A navigable graph, M 16, with the shortest list of candidates that meets the target."""
    index = hnswlib.Index(space="ip", dim=vectors.shape[1])
    index.init_index(max_elements=len(vectors), ef_construction=100, M=16, random_seed=0)
    index.add_items(vectors)
    for candidates in (10, 15, 20, 30, 40, 60, 80, 120, 200, 400, 800, 1600):
        index.set_ef(candidates)
        if recall_of(index.knn_query(queries, K)[0], exact) >= TARGET:
            break
    return lambda q: index.knn_query(q, K)[0], f"M 16, ef_construction 100, ef {candidates}"


def build(vectors: np.ndarray, queries: np.ndarray) -> tuple[Index, float]:
    """Our index, tuned on queries of their own, and how long that took."""
    start = time.perf_counter()
    index = build_index(
        as_model(vectors),
        kind="scann",
        target_recall=TARGET,
        vectors=vectors,
        probe_queries={"vector": queries},
    )
    return index, time.perf_counter() - start


def measure(num_items: int, width: int, num_queries: int) -> dict[str, Any]:
    """All methods on the same vectors and queries, in turn in one process."""
    vectors, drawn = make_vectors(num_items, width, TUNING + num_queries)
    tuning, queries = drawn[:TUNING], drawn[TUNING:]
    exact_search = ExactSearch(vectors)
    exact = exact_search.search_arrays(queries, K)[1]
    index, seconds = build(vectors, tuning)
    print(f"built in {seconds:.0f} s: {index.backend.settings}", flush=True)
    settings = index.backend.settings
    built = {"ours": seconds}
    answers: dict[str, Answer] = {
        "exact": lambda q: exact_search.search_arrays(q, K)[1],
        "ours": lambda q: index.search(q, K)[1],
    }
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        loaded = load_index(export_index(index, Path(folder, "index"), ks=[K]))
        built["ours, exported"] = time.perf_counter() - start
    answers["ours, exported"] = lambda q: loaded.search(q, K)[1]
    notes = {"exact": "all inner products, TensorFlow"}
    notes["ours"] = notes["ours, exported"] = _describe(settings)
    makers: dict[str, Callable[[], tuple[Answer, str]]] = {
        "scann": lambda: (scann_directly(vectors, settings), "the same parameters"),
        "faiss": lambda: faiss_ivf(vectors, tuning, exact_search.search_arrays(tuning, K)[1]),
        "hnswlib": lambda: hnsw(vectors, tuning, exact_search.search_arrays(tuning, K)[1]),
    }
    for name, make in makers.items():
        start = time.perf_counter()
        answers[name], notes[name] = make()
        built[name] = time.perf_counter() - start
        print(f"{name} in {built[name]:.0f} s", flush=True)
    seconds_by = seconds_of(answers, queries)
    plot_sweep(index.sweep, HERE / "sweep.png", target=TARGET)
    rows = [
        {
            "method": name,
            "recall": recall_of(answer(queries), exact),
            "seconds": seconds_by[name],
            "build_seconds": built.get(name),
            "settings": notes[name],
        }
        for name, answer in answers.items()
    ]
    sizes = {"num_items": num_items, "width": width, "num_queries": num_queries, "k": K}
    return {**sizes, "rows": rows, "filters": measure_filters(index, exact_search, queries)}


def measure_filters(
    index: Index, exact_search: ExactSearch, queries: np.ndarray
) -> list[dict[str, Any]]:
    """Recall and time of filtered searches, by the best items and by random ones."""
    few, generator = queries[:FILTERED], np.random.default_rng(1)
    vectors = exact_search.vectors().numpy()
    order = exact_search.search_arrays(few, 1000 + K)[1].astype(np.int64)
    rows = [
        _filtered(
            f"the {excluded:,} best excluded",
            order[:, excluded : excluded + K],
            functools.partial(index.search, few, K, exclude=order[:, :excluded]),
        )
        for excluded in (0, 1, 10, 100, 1000)
    ]
    for allowed in (1, 100, 10_000, 100_000):
        some = generator.choice(len(index), allowed, replace=False)
        best = some[np.argsort(-(few @ vectors[some].T), axis=1)[:, :K]]
        search = functools.partial(index.search, few, K, allow=some)
        rows.append(_filtered(f"{allowed:,} random items allowed", best, search))
    return rows


def _filtered(
    name: str, exact: np.ndarray, search: Callable[[], tuple[np.ndarray, np.ndarray]]
) -> dict[str, Any]:
    search()  # the first one traces the graph
    start = time.perf_counter()
    found = search()[1]
    seconds = time.perf_counter() - start
    pairs = zip(found.tolist(), exact.tolist(), strict=True)
    recall = float(np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs]))
    return {"filter": name, "recall": recall, "ms_per_query": 1000 * seconds / len(found)}


def _describe(settings: ScannSettings) -> str:
    depth = settings.depths[0]
    return f"{settings.num_leaves} leaves, {depth.leaves} searched, {depth.reorder} reordered"


TEXT = """# The index at a million vectors

Written by `python -m benchmarks.index.run` on {date} from [results.json](results.json). {machine},
Python {python}; {versions}. {num_items:,} unit vectors of {width} dimensions around
{clusters:,} centres, {num_queries:,} queries from the same centres, none of them an item; settings
were chosen on {tuning:,} other queries, for a recall of {target} at {k}. All queries are one
batch, every method in turn, {turns} turns in one process; times are medians with least and most.
Read the ratios.

{table}

Peak memory of the process, with all methods in it: {peak_gb:.1f} GB. *ours, exported* is the
SavedModel in this process, its seconds those of writing, checking in another process and loading.

![recall against time of all settings tried](sweep.png)

## Filters

{filtered} queries in one batch; recall is against a brute-force search of what the filter leaves.

{filters}
"""


def render(results: dict[str, Any]) -> str:
    """The README of the results."""
    exact = statistics.median(results["rows"][0]["seconds"])
    lines = [
        "| method | recall at 10 | queries/s | x exact | build s | settings |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        rates = sorted(results["num_queries"] / s for s in row["seconds"])
        build_seconds = "" if row["build_seconds"] is None else f"{row['build_seconds']:.0f}"
        median = statistics.median(row["seconds"])
        lines.append(
            f"| {row['method']} | {row['recall']:.4f} | {results['num_queries'] / median:,.0f} "
            f"({rates[0]:,.0f} to {rates[-1]:,.0f}) | {exact / median:.1f} | {build_seconds} "
            f"| {row['settings']} |"
        )
    filters = ["| filter | recall | ms per query |", "|---|---|---|"]
    filters += [
        f"| {row['filter']} | {row['recall']:.4f} | {row['ms_per_query']:.2f} |"
        for row in results["filters"]
    ]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    fields = {**results, "versions": versions, "table": "\n".join(lines)}
    return TEXT.format(
        **{**fields, "filters": "\n".join(filters)},
        clusters=CLUSTERS,
        target=TARGET,
        turns=TURNS,
        tuning=TUNING,
        filtered=FILTERED,
    )


def main() -> None:
    """Measures and writes results.json and README.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--queries", type=int, default=5000)
    arguments = parser.parse_args()
    results = measure(arguments.items, arguments.width, arguments.queries)
    results |= {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    write_text(HERE / "results.json", json.dumps(results, indent=2) + "\n")
    write_text(HERE / "README.md", render(results))


if __name__ == "__main__":
    main()
