"""Items of past batches as negatives, against a queue and loops over the whole of several steps."""

from __future__ import annotations

import numpy as np
import pytest
import reference_sources as reference
import tensorflow as tf
from reference import batch_columns

from tfrs_negatives.encode.catalogue import ItemCatalogue
from tfrs_negatives.propose.frequency import ExactFrequency
from tfrs_negatives.propose.negatives import CrossBatch, InBatch
from tfrs_negatives.train.task import Retrieval
from tfrs_negatives.train.two_tower import TwoTower

N, D, B, M = 9, 3, 4, 10
CATALOGUE = ItemCatalogue(np.arange(N) * 5)
Q = np.arange(1, N + 1) / np.arange(1, N + 1).sum()
CLOSE = {"rel": 1e-5, "abs": 1e-6}


def frequency():
    return ExactFrequency(CATALOGUE.ids, Q * 1e6)


def share(item):
    return Q[item // 5]


def batches(number, size=B, seed=0):
    """Queries, vectors and ids of so many batches; ids come again and again."""
    rng = np.random.default_rng(seed)
    for _ in range(number):
        queries, vectors = rng.normal(size=[2, size, D]).astype(np.float32)
        yield queries, vectors, rng.integers(0, N, size) * 5


def task_of(source, *more, **options):
    return Retrieval(negatives=[*more, source], frequency=frequency(), **options)


def with_batch(source, **options):
    return task_of(source, InBatch(), **options)


def step(task, batch, *, training=True, **call):
    queries, vectors, ids = batch
    return float(task(queries, vectors, candidate_ids=ids, training=training, **call))


def gauge(source, name):
    (metric,) = [m for m in source.gauges if m.name == name]
    return float(metric.result())


def expected_loss(batch, bank, *, in_batch=True, **options):
    """The loss of one step: the columns of the batch and of the bank, both of the one stream."""
    queries, vectors, ids = batch
    own = batch_columns(ids, vectors, len(ids))
    columns = [*(own if in_batch else []), *bank]
    terms = [reference.Term(c, len(columns) * share(c.item)) for c in columns]
    counts = [len(columns) * share(item) for item in ids]
    return reference.step_loss(queries, own, terms, counts=counts, **options)


# ------------------------------------------------------------------ probes


def moving(tables):
    """An item tower whose vectors are those of the first table, and of the next after `pop`."""
    return lambda features: tf.gather(tables[0], features["item_id"] // 5)


@pytest.mark.parametrize("kind", ["function", "model"])
def test_probes_are_encoded_as_in_inference(kind):
    flat = tf.keras.Sequential([tf.keras.layers.Dense(D, use_bias=False), Noise()])
    inputs = tf.keras.Input((), name="item_id", dtype=tf.int64)
    outputs = flat(tf.keras.layers.Lambda(lambda x: tf.cast(x[:, None], tf.float32))(inputs))
    model = tf.keras.Model({"item_id": inputs}, outputs)
    encode = model if kind == "model" else lambda f, training=True: model(f, training=training)
    source = CrossBatch(M, probes=CATALOGUE, probe_every=1)
    task = with_batch(source)
    for batch in batches(3):
        step(task, batch, encode_items=encode)
    # The tower has not moved: only its noise in training would have.
    assert float(source.drift.value) == 0.0


class Noise(tf.keras.layers.Layer):
    """Another result at every call in training."""

    def call(self, inputs, training=None):
        return inputs + tf.random.normal(tf.shape(inputs)) if training else inputs


# ------------------------------------------------------------------ inside a model


ITEMS = ItemCatalogue(np.arange(N))
USERS = np.tile(np.arange(4), 4)
CHOSEN = np.random.default_rng(3).integers(0, N, 16)


def embedding(name, rows, seed):
    ids = tf.keras.Input((), name=name, dtype=tf.int64)
    start = tf.keras.initializers.RandomNormal(stddev=0.5, seed=seed)
    table = tf.keras.layers.Embedding(rows, D, embeddings_initializer=start)
    return tf.keras.Model({name: ids}, table(ids))


def model_of(source, **options):
    task = with_batch(source, **options)
    model = TwoTower(embedding("user_id", 4, 1), embedding("item_id", N, 2), ITEMS, task)
    model.compile(tf.keras.optimizers.Adagrad(0.1))
    return model


def data(size=4):
    columns = {"user_id": USERS, "item_id": CHOSEN * 1}
    return tf.data.Dataset.from_tensor_slices(columns).batch(size)


GAUGES = {"bank_fill", "bank_age", "bank_drift"}


def test_the_training_logs_have_the_gauges_and_those_of_evaluation_not():
    model = model_of(CrossBatch(20, probes=ITEMS, probe_every=1))
    first = model.fit(data(), validation_data=data(), verbose=0).history
    # Before the fourth push: three batches of 4 in 20 slots, 3, 2 and 1 steps old.
    assert first["bank_fill"] == pytest.approx([12 / 20])
    assert first["bank_age"] == pytest.approx([2.0])
    assert first["bank_drift"][0] > 0
    assert not {f"val_{name}" for name in GAUGES} & set(first)
    assert not GAUGES & set(model.evaluate(data(), verbose=0, return_dict=True))
    second = model.fit(data(), verbose=0).history
    assert second["bank_fill"] == pytest.approx([1.0])
    assert second["bank_age"] == pytest.approx([3.0])
    without = model_of(CrossBatch(20)).fit(data(), verbose=0).history
    assert {"bank_fill", "bank_age"} <= set(without)
    assert "bank_drift" not in without
