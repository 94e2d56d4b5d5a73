"""One step on two and on four replicas is the step on one with the same global batch.

Plain TFRS logs 88.7 in the place of 110.9 here: each replica sees its share of the negatives.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from replicas import strategy_of, strategy_with_collectives

from tfrs_negatives.core.replicas import all_rows, encode_together, place_of_rows
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.data import Interactions
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.model.optimizers import SparseAdam
from tfrs_negatives.model.two_tower import TwoTower, describe_last_step
from tfrs_negatives.step.frequency import ExactFrequency, StreamingFrequency
from tfrs_negatives.step.losses import (
    BPR,
    BSL,
    DecoupledSoftmax,
    EasyHardMixture,
    NonSampling,
    SLAtK,
    SoftPartialAUC,
    SoftTopK,
    TripletHinge,
)
from tfrs_negatives.step.masks.keep import AccidentalHits, ScoreMargin
from tfrs_negatives.step.masks.known_positives import KnownPositives
from tfrs_negatives.step.miners import (
    BatchMix,
    Hardest,
    LeastBayesianRisk,
    PositiveMixture,
    RandomOfTop,
    Resample,
    WithinPositiveRadius,
)
from tfrs_negatives.step.samplers import (
    AdaptivePool,
    Balanced,
    CrossBatch,
    Explicit,
    IdCache,
    InBatch,
    IndexStream,
    LogUniform,
    MinedUnion,
    Popularity,
    Reinforced,
    RobustMemory,
    Uniform,
    UniformSubset,
    Weighted,
)
from tfrs_negatives.step.samplers.negative_table import NegativeTable
from tfrs_negatives.step.score import ItemBias
from tfrs_negatives.step.task import Retrieval
from tfrs_negatives.towers.layers import IdDropout

N, USERS, D, B = 12, 10, 4, 8
RNG = np.random.default_rng(5)
ITEMS = ItemCatalogue(np.arange(N) + 50)
COUNTS = np.arange(N) + 1.0
SGD = functools.partial(tf.keras.optimizers.SGD, 0.5)
HISTORY = Interactions(
    {"user_id": np.repeat(np.arange(USERS), 2)},
    RNG.integers(0, N, 2 * USERS) + 50,
    query_key="user_id",
)
FADE_IN = tf.keras.optimizers.schedules.PolynomialDecay(0.0, 3, 1.0)
# Three steps; the last batch is short, so that a replica of four has no row at all.
SIZES = [B, B, 5]


def streaming():
    return StreamingFrequency(64, 2)


def mined():
    table = NegativeTable(HISTORY, 3)
    # Drawn anew here: other numbers of replicas train with the same.
    lists = np.random.default_rng(1).integers(0, N, table.ids.shape) + 50
    lists[1::3] = EMPTY_ID  # of some queries nothing is mined
    table.ids.assign(lists)
    return table


COMPOSITIONS = {
    "in-batch": dict,
    "sum": lambda: {"reduction": "sum"},
    "logq": lambda: {"frequency": streaming()},
    "logq, gaps": lambda: {"frequency": StreamingFrequency(64, 2, method="interval")},
    "logq, exact": lambda: {"frequency": ExactFrequency(ITEMS.ids, COUNTS)},
    "hits": lambda: {"masks": [AccidentalHits()], "correct": None},
    "several hits": lambda: {
        "masks": [AccidentalHits(more_positives="liked")],
        "correct": None,
    },
    "known positives": lambda: {
        "masks": [KnownPositives(HISTORY, ITEMS)],
        "negatives": [InBatch(), CrossBatch(9), Explicit("rejected", ITEMS)],
        "frequency": streaming(),
    },
    "score margin": lambda: {"masks": [ScoreMargin(-0.2, 0.1)]},
    "uniform": lambda: {"negatives": [InBatch(), Uniform(ITEMS, 7)], "frequency": streaming()},
    "uniform subset": lambda: {
        "negatives": [InBatch(), UniformSubset(ITEMS, 7, num_items=5)],
        "frequency": streaming(),
    },
    "popularity": lambda: {"negatives": [Popularity(ITEMS, 7, counts=COUNTS)]},
    "log-uniform": lambda: {
        "negatives": [LogUniform(ITEMS, 5, counts=COUNTS)],
        "correct": "negatives",
    },
    "euclidean": lambda: {
        "negatives": [InBatch(), Uniform(ITEMS, 7), CrossBatch(9)],
        "frequency": streaming(),
        "similarity": "euclidean",
        "temperature": 0.4,
        "learn_temperature": True,
    },
    "index stream": lambda: {"negatives": [IndexStream(ITEMS, 8)]},
    "cross-batch": lambda: {
        "negatives": [InBatch(), CrossBatch(11, probes=ITEMS, max_drift=100.0)],
        "frequency": streaming(),
    },
    "explicit": lambda: {
        "negatives": [InBatch(), Weighted(Explicit("rejected", ITEMS), 0.5)],
        "loss": EasyHardMixture(0.4),
        "frequency": streaming(),
    },
    "mined union": lambda: {
        "negatives": [MinedUnion(mined(), ITEMS)],
        "masks": [KnownPositives(HISTORY, ITEMS)],
        "correct": None,
    },
    "adaptive pool": lambda: {
        "negatives": [
            AdaptivePool(Uniform(ITEMS, 9), ITEMS, HISTORY, masks=[KnownPositives(HISTORY, ITEMS)])
        ],
        "correct": None,
    },
    "reinforced": lambda: {
        "negatives": [
            InBatch(),
            Reinforced(ITEMS, HISTORY, exposed="rejected", num_candidates=5, learning_rate=0.5),
        ],
        "correct": None,
    },
    "robust memory": lambda: {
        "negatives": [
            Balanced(InBatch(), 0.3, rate=0.4),
            RobustMemory(Uniform(ITEMS, 9), ITEMS, HISTORY, pool_size=3, warmup_epochs=0.5),
        ],
        "correct": None,
    },
    "balanced": lambda: {
        "negatives": [InBatch(), Balanced(Uniform(ITEMS, 6), 0.6, rate=0.5)],
        "frequency": streaming(),
    },
    "mixed cross-batch": lambda: {
        "negatives": [InBatch(), Uniform(ITEMS, 6), CrossBatch(10)],
        "frequency": streaming(),
        "masks": [AccidentalHits()],
        "correct": "negatives",
    },
    "random of top": lambda: {
        "miners": [RandomOfTop(2, 4)],
        "loss": TripletHinge(2.0, focus=1.0),
        "correct": None,
    },
    "resampled with a cache": lambda: {
        "negatives": [InBatch(), Weighted(IdCache(ITEMS, 7, decay=0.5), 0.5)],
        "frequency": streaming(),
        "masks": [AccidentalHits()],
        "miners": [Resample(9)],
        "correct": "negatives",
    },
    "batch mix": lambda: {
        "negatives": [InBatch(), CrossBatch(9)],
        "frequency": streaming(),
        "miners": [BatchMix(6)],
        "loss": EasyHardMixture(0.6),
    },
    "mixtures with the positive": lambda: {
        "negatives": [InBatch(), Uniform(ITEMS, 5)],
        "miners": [PositiveMixture(2, similarity="cosine")],
        "similarity": "cosine",
        "loss": BPR(),
        "correct": None,
    },
    "bayesian": lambda: {
        "negatives": [Uniform(ITEMS, 9)],
        "masks": [KnownPositives(HISTORY, ITEMS)],
        "miners": [LeastBayesianRisk(ITEMS, COUNTS, num_candidates=4, largest_prior=0.5)],
        "loss": BPR(),
        "correct": None,
    },
    "cross-batch ngame": lambda: {
        "negatives": [InBatch(), CrossBatch(9)],
        "frequency": streaming(),
        "masks": [KnownPositives(HISTORY, ITEMS)],
        "miners": [WithinPositiveRadius(slack=1.0)],
    },
    "several positives": lambda: {
        "negatives": [InBatch(), CrossBatch(9)],
        "frequency": streaming(),
        "masks": [AccidentalHits(more_positives="liked")],
        "miners": [WithinPositiveRadius(farthest="known", slack=1.0)],
        "loss": DecoupledSoftmax(),
    },
    "thresholds of queries": lambda: {
        "negatives": [InBatch(), Uniform(ITEMS, 7)],
        "frequency": streaming(),
        "masks": [KnownPositives(HISTORY, ITEMS)],
        "loss": SLAtK(HISTORY, 2, width=1.0),
    },
    "soft top-k": lambda: {"negatives": [Uniform(ITEMS, 9)], "loss": SoftTopK(3)},
    "non-sampling": lambda: {"negatives": [Uniform(ITEMS, 9)], "loss": NonSampling(0.3)},
    "partial auc": lambda: {"loss": SoftPartialAUC(0.3), "frequency": streaming()},
    "bilateral": lambda: {
        "loss": BSL(0.5, 1.1),
        "masks": [AccidentalHits(more_positives="liked")],
        "similarity": "cosine",
    },
    "everything": lambda: {
        "negatives": [
            InBatch(),
            Weighted(Uniform(ITEMS, 6), FADE_IN),
            CrossBatch(10, warmup_steps=1),
            Explicit("rejected", ITEMS),
        ],
        "frequency": streaming(),
        "correct": "negatives",
        "masks": [AccidentalHits()],
        "miners": [Hardest(9)],
        "similarity": "cosine",
        "temperature": 0.3,
        "learn_temperature": True,
        "item_bias": ItemBias(ITEMS.ids, COUNTS),
    },
}
every_composition = pytest.mark.parametrize("name", COMPOSITIONS)


def batch(step):
    rng = np.random.default_rng(step)
    size = SIZES[step]
    return {
        "user_id": rng.integers(0, USERS, size),
        "item_id": rng.integers(0, N, size) + 50,
        "sample_weight": rng.random(size).astype(np.float32),
        "rejected": np.where(rng.random((size, 3)) < 0.3, -1, rng.integers(0, N, (size, 3)) + 50),
        "liked": rng.integers(0, N, (size, 2)) + 50,
        "index_items": {"item_id": rng.integers(0, N, 8) + 50},
    }


def split(columns, replicas):
    """Contiguous parts of every column, of equal size while there are rows."""

    def part(column, replica):
        size = -(-len(column) // replicas)
        return tf.constant(column[replica * size : (replica + 1) * size])

    return [tf.nest.map_structure(lambda c, r=r: part(c, r), columns) for r in range(replicas)]


def tower(name, rows, first, seed):
    start = tf.keras.initializers.RandomNormal(stddev=0.5, seed=seed)
    ids = tf.keras.Input((), name=name, dtype=tf.int64)
    decay = tf.keras.regularizers.L2(0.1)
    table = tf.keras.layers.Embedding(
        rows, D, embeddings_initializer=start, embeddings_regularizer=decay
    )
    return tf.keras.Model({name: ids}, table(ids - first))


def make_model(name, optimizer):
    query_tower, item_tower = tower("user_id", USERS, 0, 1), tower("item_id", N, 50, 2)
    task = Retrieval(**{"reduction": "mean", **COMPOSITIONS[name]()})
    model = TwoTower(query_tower, item_tower, ITEMS, task)
    model.compile(optimizer())
    return model


@functools.cache
def trained(name, replicas, optimizer):
    """The logs of each step and all state afterwards, as every replica has it."""
    strategy = strategy_of(replicas)
    with strategy.scope():
        model = make_model(name, optimizer)
    logs = train_steps(strategy, model, range(len(SIZES)))
    local = strategy.experimental_local_results
    states = [[x.numpy() for x in local(v)] for v in state_of(model)]
    return logs, states, describe_last_step(model.task)


def train_steps(strategy, model, steps):
    """The logs of each step."""
    replicas, logs = strategy.num_replicas_in_sync, []
    for step in steps:
        parts = split(batch(step), replicas)
        value = strategy.experimental_distribute_values_from_function(
            lambda context, parts=parts: parts[context.replica_id_in_sync_group]
        )
        model.reset_metrics()
        results = strategy.run(model.train_step, args=(value,))
        local = strategy.experimental_local_results
        logs.append({key: float(local(x)[0]) for key, x in results.items()})
    return logs


def state_of(model):
    """All variables but those of metrics, parts of a sum on each replica, and what is no result."""
    left_out = {id(v) for metric in model.metrics for v in metric.variables}
    left_out.add(id(model.task.report.num_replicas))
    variables = [*model.variables, *model.optimizer.variables]
    return [v for v in variables if id(v) not in left_out]


def compare(name, replicas, optimizer):
    expected_logs, expected, one = trained(name, 1, optimizer)
    logs, states, several = trained(name, replicas, optimizer)
    for received, wanted in zip(logs, expected_logs, strict=True):
        assert received.keys() == wanted.keys()
        for key, value in wanted.items():
            assert received[key] == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True), key
    for copies, (wanted,) in zip(states, expected, strict=True):
        assert len(copies) == replicas
        for copy in copies:
            np.testing.assert_array_equal(copy, copies[0])  # identical on all replicas
            np.testing.assert_allclose(copy, wanted, rtol=1e-5, atol=1e-5)
    assert several.replace(f"replicas {replicas}", "replicas 1") == one


@every_composition
@pytest.mark.parametrize("replicas", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_replicas_change_nothing(name, replicas):
    # With SGD the weights are the sum of the gradients.
    compare(name, replicas, SGD)


@pytest.mark.parametrize(
    "optimizer", [SparseAdam, pytest.param(tf.keras.optimizers.Adagrad, marks=pytest.mark.slow)]
)
def test_sparse_optimizers_on_replicas(optimizer):
    compare("everything", 2, optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["in-batch", "mixed cross-batch"])
def test_fit_with_collectives_in_a_graph(name):
    """The same through `fit`, with the data split by Keras and the gathers as collectives.

    The length of the data is unknown, so that each epoch ends inside a step; a gather that ran on
    one replica only would spoil the next.
    """

    def fit(strategy):
        with strategy.scope():
            model = make_model(name, SGD)
        # New arrays each time: TensorFlow computes in the memory of those that it was given.
        data = tf.data.Dataset.from_generator(
            lambda: map(batch, (0, 2)), output_signature=tf.nest.map_structure(spec, batch(0))
        )
        losses = model.fit(data, epochs=2, verbose=0).history["loss"]
        assert model.steps_done.numpy() == 4
        return losses, [w.numpy() for w in model.trainable_variables]

    def spec(column):
        return tf.TensorSpec([None, *column.shape[1:]], column.dtype)

    losses, weights = fit(strategy_with_collectives())
    expected_losses, expected = fit(tf.distribute.get_strategy())
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    for received, wanted in zip(weights, expected, strict=True):
        np.testing.assert_allclose(received, wanted, atol=1e-5)


@pytest.mark.slow
def test_two_worker_processes_equal_one(tmp_path):
    ports = []
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports.append(listener.getsockname()[1])
    addresses = [f"127.0.0.1:{port}" for port in ports]
    outputs = [tmp_path / f"{number}.npz" for number in range(2)]
    script = Path(__file__).with_name("worker.py")
    workers = [
        subprocess.Popen(
            [sys.executable, script, str(number), output, *addresses],
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, output in enumerate(outputs)
    ]
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=600)
            assert worker.returncode == 0, errors[-3000:]
    finally:
        for worker in workers:
            worker.kill()
    logs, expected, _ = trained("mixed cross-batch", 1, SGD)
    for output in outputs:
        with np.load(output) as saved:
            losses, states = saved["losses"], [saved[n] for n in sorted(saved) if n != "losses"]
        assert losses.tolist() == pytest.approx([log["loss"] for log in logs], rel=1e-5)
        for received, (wanted,) in zip(states, expected, strict=True):
            np.testing.assert_allclose(received, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("saved_on", "restored_on"), [(2, 1), (1, 2), pytest.param(2, 4, marks=pytest.mark.slow)]
)
def test_training_goes_on_with_another_number_of_replicas(tmp_path, saved_on, restored_on):
    models = []
    for replicas in (saved_on, restored_on):
        strategy = strategy_of(replicas)
        with strategy.scope():
            model = make_model("everything", tf.keras.optimizers.Adagrad)
            model.optimizer.build(model.trainable_variables)
        models.append((strategy, model))
    (first, model), (second, other) = models
    train_steps(first, model, [0])
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "saved"))
    tf.train.Checkpoint(model=other).read(path).assert_existing_objects_matched()
    logs, expected = train_steps(second, other, [1, 2]), train_steps(first, model, [1, 2])
    for received, wanted in zip(logs, expected, strict=True):
        assert received["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    for received, wanted in zip(state_of(other), state_of(model), strict=True):
        np.testing.assert_allclose(received.numpy(), wanted.numpy(), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ what the gathers do


def on_replicas(function, parts, strategy=None):
    """Runs a function of (part) on as many replicas as there are parts; their answers."""
    strategy = strategy or strategy_of(len(parts))
    value = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(parts[context.replica_id_in_sync_group])
    )
    return strategy.experimental_local_results(strategy.run(function, args=(value,)))


def test_rows_are_joined_in_order_and_know_their_place():
    parts = [[[1.0], [2.0]], [[3.0], [4.0]], [[5.0]], np.zeros([0, 1], np.float32)]

    def answer(part):
        return all_rows(part)[:, 0], tf.stack(place_of_rows(tf.shape(part)[0]))

    for (joined, place), before in zip(on_replicas(answer, parts), (0, 2, 4, 5), strict=True):
        assert joined.numpy().tolist() == [1, 2, 3, 4, 5]
        assert place.numpy().tolist() == [before, 5]


def test_the_gradient_of_a_row_is_what_all_replicas_made_of_it():
    def answer(part):
        with tf.GradientTape() as tape:
            tape.watch(part)
            loss = tf.reduce_sum(part[0] * all_rows(part))
        return tape.gradient(loss, part)

    # Replica r: its first row times the sum of all. Own rows: the sum; every row: all firsts.
    first, second = on_replicas(answer, [[2.0, 3.0], [7.0]])
    assert first.numpy().tolist() == [12.0 + 9.0, 9.0]
    assert second.numpy().tolist() == [12.0 + 9.0]


@pytest.mark.parametrize("count", [1, 5, 8])
def test_items_are_encoded_once_between_all_replicas(count):
    seen = []

    def answer(_):
        def encode(rows):
            seen.append(len(rows))
            return tf.cast(rows, tf.float32)[:, None] * 10

        return encode_together(tf.range(count) + 3, encode)

    for result in on_replicas(answer, [[0], [0]]):
        np.testing.assert_array_equal(result[:, 0], (np.arange(count) + 3) * 10)
    assert seen == [-(-count // 2)] * 2


def test_dropped_ids_differ_by_replica():
    strategy = strategy_of(2)
    with strategy.scope():
        layer = IdDropout(0.5)
    ones = np.ones(64, np.int64)
    answers = on_replicas(lambda part: layer(part, training=True), [ones, ones], strategy)
    first, second = (x.numpy() for x in answers)
    assert (first != second).mean() > 0.2
