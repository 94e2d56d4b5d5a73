"""Towers in chunks against the same towers at once: one loss, one gradient, less in memory."""

from __future__ import annotations

import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.model.recipes import mixed_negative_sampling
from tfrs_negatives.model.two_tower import TwoTower
from tfrs_negatives.step.score import ItemBias
from tfrs_negatives.towers.chunked import check_repeatable, encode_in_chunks
from tfrs_negatives.towers.layers import IdDropout

IDS, WIDTH, D = 30, 3, 4
LAYERS = tf.keras.layers
SIGNATURE = {"id": tf.TensorSpec([None], tf.int64), "x": tf.TensorSpec([None, WIDTH])}


class ChunkedTwoTower(TwoTower):
    """What `TwoTower` has to do to train in chunks."""

    chunk = 3

    def _run(self, tower, features, training):
        if not training:
            return super()._run(tower, features, training)
        return encode_in_chunks(tower, {n: features[n] for n in tower.input_names}, self.chunk)


def dense(width, seed, **options):
    start = tf.keras.initializers.GlorotUniform(seed=seed)
    return LAYERS.Dense(width, kernel_initializer=start, bias_initializer="ones", **options)


def table(seed):
    start = tf.keras.initializers.RandomNormal(stddev=1.0, seed=seed)
    return LAYERS.Embedding(IDS, D, embeddings_initializer=start)


def make_tower(embedding, seed, *middle, name="id", **options):
    ids = tf.keras.Input((), name=name, dtype=tf.int64)
    x = tf.keras.Input((WIDTH,), name="x")
    vector = LAYERS.Concatenate()([embedding(ids), x])
    for layer in (dense(8, seed, activation="tanh", **options), *middle, dense(D, seed + 1)):
        vector = layer(vector)
    return tf.keras.Model({name: ids, "x": x}, vector)


def rows(m, seed=0):
    rng = np.random.default_rng([m, seed])
    x = tf.constant(rng.normal(size=(m, WIDTH)), tf.float32)
    return {"id": tf.constant(rng.integers(0, IDS, m), tf.int64), "x": x}


def assert_same(received, expected, *, tolerance=1e-6):
    """Equal to `tolerance` of the largest entry, and of one kind."""
    assert len(received) == len(expected)
    for a, b in zip(received, expected, strict=True):
        assert isinstance(a, tf.IndexedSlices) == isinstance(b, tf.IndexedSlices)
        if a is not None and b is not None:
            a, b = np.asarray(tf.convert_to_tensor(a)), np.asarray(tf.convert_to_tensor(b))
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1e-30, np.abs(b).max()))
        else:
            assert a is None
            assert b is None


def at_once(tower, features, _chunk):
    return tower(features, training=True)


# ------------------------------------------------------------------ the gradient


class Problem:
    """Two towers on one table, a third encoding, a temperature, a regularizer: one loss."""

    def __init__(self):
        shared = table(1)
        self.query_tower = make_tower(shared, 2, kernel_regularizer="l2")
        self.item_tower = make_tower(shared, 4)
        self.temperature, self.unused = tf.Variable(0.7), tf.Variable(1.0)
        towers = {v.ref(): v for t in (self.query_tower, self.item_tower) for v in t.variables}
        self.variables = [*towers.values(), self.temperature, self.unused]

    def gradients(self, encode, queries, items, others, chunk=3):
        with tf.GradientTape() as tape:
            q = encode(self.query_tower, queries, chunk)
            # A gather hands its gradient back as slices.
            picked = tf.gather(encode(self.item_tower, others, chunk), [0, 2, 2])
            columns = tf.concat([encode(self.item_tower, items, chunk), picked], axis=0)
            logits = q @ tf.transpose(columns) / self.temperature
            loss = tf.reduce_sum(tf.reduce_logsumexp(logits, axis=1))
            loss += tf.add_n(self.query_tower.losses)
        return loss, tape.gradient(loss, self.variables)


PROBLEM = Problem()
DYNAMIC = tf.function(
    lambda *columns: PROBLEM.gradients(encode_in_chunks, *columns), input_signature=[SIGNATURE] * 3
)
COMPILED = tf.function(PROBLEM.gradients, jit_compile=True)


@pytest.mark.parametrize("m", [0, 1, 3, 6, 7, 11])
def test_the_gradient_is_that_of_the_whole_batch(m):
    batch = rows(m), rows(m, 1), rows(5)
    loss, gradients = PROBLEM.gradients(at_once, *batch)
    kinds = {type(gradient).__name__ for gradient in gradients}
    assert kinds == {"IndexedSlices", "EagerTensor", "NoneType"}
    for run in (DYNAMIC, lambda *columns: PROBLEM.gradients(encode_in_chunks, *columns)):
        again, received = run(*batch)
        assert float(again) == pytest.approx(float(loss), rel=1e-6)
        assert_same(received, gradients)


def test_xla_compiles_it_where_shapes_are_static():
    batch = rows(7), rows(6), rows(4)
    # Another compiler rounds in another way: both sides are compiled.
    _, expected = COMPILED(at_once, *batch)
    _, received = COMPILED(encode_in_chunks, *batch)
    assert_same(received, expected, tolerance=2e-6)


def test_a_table_gets_the_rows_of_its_ids_and_no_others():
    features = rows(7)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(encode_in_chunks(PROBLEM.query_tower, features, 3) ** 2)
    (gradient,) = tape.gradient(loss, PROBLEM.query_tower.trainable_variables[:1])
    assert set(gradient.indices.numpy()) == set(features["id"].numpy())
    assert gradient.dense_shape.numpy().tolist() == [IDS, D]


def test_several_vectors_per_row_keep_their_shape():
    inputs = tf.keras.Input((WIDTH,), name="x")
    tower = tf.keras.Model({"x": inputs}, LAYERS.Reshape((2, D))(dense(2 * D, 0)(inputs)))
    features = {"x": rows(7)["x"]}
    gradients = []
    for encode in (at_once, encode_in_chunks):
        with tf.GradientTape() as tape:
            vectors = encode(tower, features, 3)
            loss = tf.reduce_sum(tf.reduce_max(vectors, axis=1) ** 2)
        assert vectors.shape == [7, 2, D]
        gradients.append(tape.gradient(loss, tower.trainable_variables))
    assert_same(*gradients)


def test_frozen_layers_cost_no_gradient():
    tower = make_tower(table(1), 2)
    tower.layers[-1].trainable = False
    frozen = tower.layers[-1].kernel
    wanted = tower.trainable_variables
    gradients = []
    for encode in (at_once, encode_in_chunks):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(encode(tower, rows(7), 3) ** 2)
        *received, of_frozen = tape.gradient(loss, [*wanted, frozen])
        gradients.append(received)
    assert_same(*gradients)
    assert of_frozen is None


def test_a_tower_that_is_built_by_its_first_chunk():
    tower = tf.keras.Sequential([dense(D, 1)])

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(encode_in_chunks(tower, x, 3) ** 2)
        return tape.gradient(loss, tower.trainable_variables)

    received = step(rows(7)["x"])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tower(rows(7)["x"]) ** 2)
    assert_same(received, tape.gradient(loss, tower.trainable_variables))


# ------------------------------------------------------------------ memory


class Witness(tf.keras.layers.Layer):
    """Notes how many rows come by, and holds no more than a weak hand on what it lets out."""

    def __init__(self):
        super().__init__()
        self.counts, self.alive = [], []

    def call(self, x):
        y = x * 2.0
        if tf.executing_eagerly():
            self.alive.append(weakref.ref(y))
        self.counts.append(x.shape[0])
        return y


@pytest.mark.parametrize(("m", "sizes"), [(7, [3, 3, 3]), (8, [3, 3, 3]), (4, [2, 2]), (3, [3])])
def test_no_more_than_a_chunk_is_in_the_tower_and_the_tape_holds_none_of_it(m, sizes):
    witness = Witness()
    tower = make_tower(table(1), 2, witness)
    witness.counts.clear()
    witness.alive.clear()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(encode_in_chunks(tower, rows(m), 3))
        assert [reference() for reference in witness.alive] == [None] * len(sizes)
    assert witness.counts == sizes
    tape.gradient(loss, tower.trainable_variables)
    assert witness.counts == 2 * sizes


# ------------------------------------------------------------------ draws


def dropout_tower(rate=0.4):
    ids = tf.keras.Input((), name="id", dtype=tf.int64)
    dropout = IdDropout(rate, seed=3)
    return tf.keras.Model({"id": ids}, dense(D, 2)(table(1)(dropout(ids)))), dropout


def weighted(vectors):
    return tf.reduce_sum(vectors * tf.range(1.0, 41.0)[:, None])


@pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "graph"])
def test_both_passes_see_the_draws_and_each_chunk_has_its_own(wrap):
    (plain, by_hand), (chunked, dropout) = dropout_tower(), dropout_tower()
    features = {"id": tf.fill([40], tf.constant(5, tf.int64))}

    @wrap
    def step():
        with tf.GradientTape() as tape:
            first, second = (encode_in_chunks(chunked, features, 10) for _ in range(2))
            loss = weighted(first) + 2.0 * weighted(second)
        return first, second, tape.gradient(loss, chunked.trainable_variables)

    for _ in range(2):
        first, second, received = step()
        with tf.GradientTape() as tape:
            parts = []
            for call in (by_hand.count_call(), by_hand.count_call()):
                for number in range(4):
                    with by_hand.in_part(call, tf.constant(number)):
                        parts.append(plain({"id": features["id"][:10]}, training=True))
            expected = tf.concat(parts[:4], axis=0), tf.concat(parts[4:], axis=0)
            loss = weighted(expected[0]) + 2.0 * weighted(expected[1])
        np.testing.assert_allclose(first, expected[0], rtol=1e-6)
        np.testing.assert_allclose(second, expected[1], rtol=1e-6)
        assert_same(received, tape.gradient(loss, plain.trainable_variables))
        patterns = {part.numpy().tobytes() for part in parts}
        assert len(patterns) == 8
    assert int(dropout.calls) == 4


def test_within_one_chunk_the_draws_are_those_of_the_plain_step():
    (plain, _), (chunked, _) = dropout_tower(), dropout_tower()
    features = {"id": rows(40)["id"]}
    for _ in range(2):
        received = encode_in_chunks(chunked, features, 40)
        np.testing.assert_array_equal(received, plain(features, training=True))


# ------------------------------------------------------------------ the model


def make_model(kind):
    items = ItemCatalogue(np.arange(IDS), {"x": np.eye(IDS, WIDTH, dtype=np.float32)})
    task = mixed_negative_sampling(
        items, num_uniform=8, learn_temperature=True, item_bias=ItemBias(items.ids, np.arange(IDS))
    )
    query_tower = make_tower(table(1), 2, kernel_regularizer="l2")
    model = kind(query_tower, make_tower(table(3), 4, name="item_id"), items, task)
    # Tracing costs more than these few steps; what is new is traced nevertheless.
    model.compile(tf.keras.optimizers.SGD(0.1), run_eagerly=kind is TwoTower)
    return model


def log_of(m):
    items = np.random.default_rng(5).integers(0, IDS, m)
    return tf.data.Dataset.from_tensor_slices({**rows(m), "item_id": items}).batch(8)


def fitted(kind):
    model = make_model(kind)
    model.run_eagerly = kind is TwoTower
    history = model.fit(log_of(21), verbose=0).history
    return model, history


@pytest.mark.slow  # Two whole trainings; `test_precision` trains in chunks in `make test`.
def test_the_model_trains_as_without_chunks():
    (plain, before), (chunked, after) = fitted(TwoTower), fitted(ChunkedTwoTower)
    assert set(before) == set(after)
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, rtol=1e-5)
    assert_same(chunked.get_weights(), plain.get_weights(), tolerance=1e-5)
    assert float(chunked.task.affinity.temperature) != pytest.approx(0.1, rel=1e-4)


def minimize(tower, optimizer, encode, features):
    with tf.GradientTape() as tape:
        # Each row for itself, so that the loss does not depend on how rows are dealt out.
        rows = tf.reduce_logsumexp(tf.cast(encode(tower, features, 2), tf.float32), axis=1)
        loss = tf.reduce_sum(rows)
    optimizer.minimize(loss, tower.trainable_variables, tape=tape)


def test_mixed_precision_scales_the_loss_and_casts_the_gradient():
    weights = []
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        for encode, wrap in ((at_once, lambda f: f), (encode_in_chunks, tf.function)):
            # A fixed scale: the sum over a whole batch overflows before that over a chunk.
            optimizer = tf.keras.mixed_precision.LossScaleOptimizer(
                tf.keras.optimizers.SGD(0.1), dynamic=False, initial_scale=256.0
            )
            tower = make_tower(table(1), 2)
            start = tower.get_weights()
            optimizer.build(tower.trainable_variables)
            wrap(minimize)(tower, optimizer, encode, rows(7))
            weights.append(tower.get_weights())
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    assert tower.compute_dtype == "float16"
    for a, b, c in zip(*weights, start, strict=True):
        assert np.abs(b - c).max() > 0.01
        np.testing.assert_allclose(a - c, b - c, rtol=0, atol=3e-3 * np.abs(b - c).max())


@pytest.mark.slow
def test_replicas_sum_their_gradients():
    script = Path(__file__).with_name("gradient_cache_replicas.py")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]


# ------------------------------------------------------------------ what is refused


REFUSED = {
    "Dropout": lambda: LAYERS.Dropout(0.1, name="culprit"),
    "SpatialDropout1D": lambda: LAYERS.SpatialDropout1D(0.1, name="culprit"),
    "GaussianNoise": lambda: LAYERS.GaussianNoise(0.1, name="culprit"),
    "AlphaDropout": lambda: LAYERS.AlphaDropout(0.1, name="culprit"),
    "RandomFlip": lambda: LAYERS.RandomFlip(name="culprit"),
    "GRU": lambda: LAYERS.GRU(2, dropout=0.1, name="culprit"),
    "LSTM": lambda: LAYERS.LSTM(2, stateful=True, name="culprit"),
    "BatchNormalization": lambda: LAYERS.BatchNormalization(name="culprit"),
    "SyncBatchNormalization": lambda: LAYERS.experimental.SyncBatchNormalization(name="culprit"),
    "SpectralNormalization": lambda: LAYERS.SpectralNormalization(LAYERS.Dense(2), name="culprit"),
    "Dense": lambda: LAYERS.Dense(2, activity_regularizer="l2", name="culprit"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_repeated_is_refused_by_name(kind):
    inside = tf.keras.Sequential([LAYERS.Dense(2), REFUSED[kind]()], name="inside")
    with pytest.raises(InputError, match=rf"`encode_chunk`: .* culprit \({kind}\)"):
        check_repeatable(tf.keras.Sequential([inside, LAYERS.Dense(2)], name="tower"))


def test_a_loss_of_activations_is_refused():
    tower = make_tower(table(1), 2)
    tower.add_loss(tf.reduce_sum(tower.output))
    with pytest.raises(InputError, match="AddLoss"):
        check_repeatable(tower)


def test_what_repeats_itself_is_accepted():
    frozen = LAYERS.BatchNormalization()
    frozen.trainable = False
    tower = tf.keras.Sequential(
        [frozen, LAYERS.Dropout(0.0), LAYERS.LSTM(2), LAYERS.LayerNormalization(), LAYERS.Dense(2)]
    )
    check_repeatable(tower)
    check_repeatable(dropout_tower()[0])
    tower.add_loss(lambda: tf.reduce_sum(tower.layers[-1].kernel))
    check_repeatable(tower)


@pytest.mark.parametrize("chunk", [0, -1])
def test_a_chunk_holds_at_least_one_row(chunk):
    with pytest.raises(InputError, match="encode_chunk"):
        encode_in_chunks(PROBLEM.query_tower, rows(3), chunk)


def test_rows_are_counted_in_the_features():
    with pytest.raises(InputError, match="features"):
        encode_in_chunks(PROBLEM.query_tower, {}, 3)
