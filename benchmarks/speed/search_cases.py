"""What is measured beyond a training step: a function per section returns its cases.

The docstring of a section is its text in README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tfrs_negatives as tfn  # isort: skip  (chooses legacy Keras before TensorFlow is imported)
import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from benchmarks.speed.measure import Call, Case, Claim, Contestant
from benchmarks.speed.models import VectorModel, clustered, near
from benchmarks.speed.sizes import SEED, WIDTH, Sizes

NEAREST = 10
Search = Callable[[np.ndarray], np.ndarray]


def evaluation(sizes: Sizes) -> list[Case]:
    """Ranking the whole corpus for every query, exactly.

    `FactorizedTopK` has all queries in one batch, in a `tf.function`; `Streaming` over `batch(128)`
    is how the TFRS tutorials write it. `evaluate` also computes the other metrics of its report,
    and excludes seen items, which `FactorizedTopK` cannot. *accuracy* is the share of queries whose
    one held-out item is among the k best: the same for all, but for rounding at the last place and
    for what the excluded items leave free.
    """
    rng, k = np.random.default_rng(SEED), sizes.k
    vectors = rng.standard_normal([sizes.corpus, WIDTH], np.float32)
    wanted = rng.integers(0, sizes.corpus, sizes.queries)
    model = VectorModel(near(vectors, wanted, 2.0), vectors)
    seen = _log_of((wanted[:, None] + 1 + np.arange(sizes.seen)) % sizes.corpus)
    streams = {f"Streaming, batch({size})": size for size in sizes.stream_batches}
    ways = {
        "BruteForce": lambda: _factorized(model, wanted, k),
        **{n: lambda b=b: _factorized(model, wanted, k, stream=b) for n, b in streams.items()},
        "evaluate": lambda: _evaluating(model, wanted, k, None),
        f"evaluate, {sizes.seen} excluded": lambda: _evaluating(model, wanted, k, seen),
    }
    brute, *_, ours, excluding = ways
    return [
        Case(
            title=f"{sizes.queries:,} queries, {sizes.corpus:,} items, width {WIDTH}, k {k}",
            contestants=[Contestant(name, prepare) for name, prepare in ways.items()],
            claims=[
                Claim(ours, brute, asked=2),
                *(Claim(ours, n, asked=15 if b == 128 else None) for n, b in streams.items()),
                Claim(excluding, ours, "time", asked=1.2),
            ],
            turns=min(sizes.turns, 15),
            warm_up=1,
            facts=lambda results: {n: {"accuracy": float(x)} for n, x in results.items()},
        )
    ]


def _log_of(rows: np.ndarray) -> tfn.Interactions:
    """Returns the log in which user i has the items rows[i]."""
    users = np.repeat(np.arange(len(rows)), rows.shape[1])
    return tfn.Interactions({"user_id": users}, rows.reshape(-1), query_key="user_id")


def _evaluating(
    model: VectorModel, wanted: np.ndarray, k: int, seen: tfn.Interactions | None
) -> Call:
    test, metric = _log_of(wanted[:, None]), f"top_k_accuracy_at_{k}"
    return lambda: tfn.evaluate(model, test, ks=[k], exclude=seen).metrics[metric]


def _factorized(
    model: VectorModel, wanted: np.ndarray, k: int, *, stream: int | None = None
) -> Call:
    candidates = (
        tf.data.Dataset.from_tensor_slices(model.vectors).batch(stream)
        if stream
        else tfrs.layers.factorized_top_k.BruteForce(k=k).index(model.vectors)
    )
    metric = tfrs.metrics.FactorizedTopK(candidates, ks=[k])
    positives = tf.gather(model.vectors, wanted)

    @tf.function
    def update(queries: tf.Tensor, positives: tf.Tensor) -> tf.Tensor:
        with tf.control_dependencies([metric.update_state(queries, positives)]):
            return tf.stack(metric.result())

    def measure() -> float:
        metric.reset_states()
        return update(model.users, positives).numpy()[0]

    return measure


def evaluation_memory(sizes: Sizes) -> list[Case]:
    """The memory of an evaluation of a whole log, above the model, the logs and what Python loads.

    The baseline is what the scores of all users and items would take as float32; nobody allocates
    them. Seven items per user are held out and 27 excluded.
    """
    rng = np.random.default_rng(SEED)
    matrix = "all scores"

    def evaluating() -> Call:
        users, items = (rng.standard_normal([n, WIDTH], np.float32) for n in shape)
        per_user = np.arange(sizes.held_out + sizes.seen)
        rows = (rng.integers(0, sizes.items, [sizes.users, 1]) + per_user) % sizes.items
        test, seen = (_log_of(part) for part in np.split(rows, [sizes.held_out], axis=1))
        model = VectorModel(users, items)
        return lambda: tfn.evaluate(model, test, ks=[sizes.k], exclude=seen).metrics

    shape = sizes.users, sizes.items
    return [
        Case(
            title=f"{sizes.users:,} users, {sizes.items:,} items, width {WIDTH}, k {sizes.k}",
            contestants=[Contestant("evaluate", evaluating)],
            claims=[Claim("evaluate", matrix, "memory", asked=0.05)],
            turns=3,
            warm_up=0,
            given_bytes={matrix: 4 * sizes.users * sizes.items},
        )
    ]


def index(sizes: Sizes) -> list[Case]:
    """Answering queries from their vectors, some at a time, with scores and ids as arrays.

    The rows are clustered, and a query is a row with noise. `scann` was widened to a recall of 0.95
    on other queries than those that are timed. `BruteForce` runs in a `tf.function`. *recall at 10*
    is the share of its ids that are found. The speed is in queries per second.
    """
    batches = 16
    vectors = clustered(sizes.rows)
    wanted = np.random.default_rng(SEED).integers(0, sizes.rows, 2 * batches * sizes.index_batch)
    model = VectorModel(near(vectors, wanted, 0.7), vectors)
    queries = np.split(model.users.numpy(), 2 * batches)[:batches]
    searches = {
        "BruteForce": lambda: _brute_force(model),
        "exact": lambda: _indexed(model, "exact"),
        "scann": lambda: _indexed(model, "scann"),
    }
    base, *kinds = searches

    def answering(search: Callable[[], Search]) -> Call:
        ready = search()
        return lambda: np.concatenate([ready(batch) for batch in queries])

    def recall(results: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
        best = results[base][:, None]
        found = {n: (ids[:, :, None] == best).any(2).mean() for n, ids in results.items()}
        return {n: {f"recall at {NEAREST}": float(share)} for n, share in found.items()}

    return [
        Case(
            title=f"{sizes.rows:,} vectors of width {WIDTH}, {sizes.index_batch} queries at a time",
            contestants=[
                Contestant(n, lambda s=s: answering(s), repeats=len(wanted) // 2)
                for n, s in searches.items()
            ],
            claims=[Claim(kind, base) for kind in kinds],
            turns=min(sizes.turns, 15),
            facts=recall,
        )
    ]


def _indexed(model: VectorModel, kind: str) -> Search:
    probes = {"user_id": np.arange(len(model.users))[len(model.users) // 2 :]}
    built = tfn.build_index(model, kind=kind, recall_k=NEAREST, probe_queries=probes)
    return lambda queries: built.search(queries, NEAREST)[1]


def _brute_force(model: VectorModel) -> Search:
    layer = tfrs.layers.factorized_top_k.BruteForce(k=NEAREST)
    layer.index(model.vectors, tf.constant(model.items.ids))
    search = tf.function(lambda queries: layer(queries))
    return lambda queries: [column.numpy() for column in search(queries)][1]
