"""A layer of both towers: one table in memory, in a file, and after that."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from test_two_tower import ITEMS, LOG_ITEMS, LOG_USERS, USERS, D, N, embedding, titles

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.model.recipes import mixed_negative_sampling
from tfrs_negatives.model.two_tower import TwoTower
from tfrs_negatives.towers.shared_layers import deserialize_towers

HISTORY = titles(np.ravel((LOG_ITEMS[:, None] + np.arange(3)) % N)).reshape(-1, 3)
COLUMNS = {"user_id": LOG_USERS, "history": HISTORY, "title": titles(LOG_ITEMS)}


class Scale(tf.keras.layers.Layer):
    """A layer of the user, known to Keras only by `custom_objects`."""

    def __init__(self, start=2.0, **kwargs):
        super().__init__(**kwargs)
        self.start = start
        self.scale = self.add_weight("scale", [D], initializer=tf.constant_initializer(start))

    def call(self, vectors):
        return vectors * self.scale

    def get_config(self):
        return {**super().get_config(), "start": self.start}


def encoder(kind):
    """The shared layers by name, and what they make of titles."""
    lookup = tf.keras.layers.StringLookup(vocabulary=ITEMS.ids.tolist(), name="lookup")
    layers = {"table": embedding(N + 1, 2), "scale": Scale(name="own")}
    if kind == "one table":
        return {"table": layers["table"]}, lambda x: layers["table"](lookup_of()(x))
    if kind == "a model":
        column = tf.keras.Input((None,), dtype=tf.string)
        inner = tf.keras.Model(column, layers["scale"](layers["table"](lookup(column))), name="m")
        flat = tf.keras.layers.Flatten()

        def encode(x):
            return inner(x) if x.shape.rank == 2 else flat(inner(x[:, None]))

        return {**layers, "model": inner}, encode
    return {**layers, "lookup": lookup}, lambda x: layers["scale"](layers["table"](lookup(x)))


def lookup_of():
    return tf.keras.layers.StringLookup(vocabulary=ITEMS.ids.tolist())


KINDS = ["one table", "several layers", "a model"]


def make_model(kind="several layers"):
    shared, encode = encoder(kind)
    title = tf.keras.Input((), name="title", dtype=tf.string)
    item = tf.keras.Model({"title": title}, tf.keras.layers.Dense(D)(encode(title)), name="item")
    history = tf.keras.Input((3,), name="history", dtype=tf.string)
    user = tf.keras.Input((), name="user_id", dtype=tf.int64)
    mean = tf.reduce_mean(encode(history), axis=1)
    if kind == "a model":
        # The table of the shared model again, outside of it.
        mean += tf.reduce_mean(shared["table"](lookup_of()(history)), axis=1)
    vector = tf.keras.layers.Dense(D)(mean) + embedding(USERS, 3)(user)
    query = tf.keras.Model({"user_id": user, "history": history}, vector, name="query")
    model = TwoTower(query, item, ITEMS, mixed_negative_sampling(ITEMS, num_uniform=5))
    model.compile(tf.keras.optimizers.Adagrad(0.2), run_eagerly=True)
    return model


def step(model):
    model.fit(COLUMNS, batch_size=22, shuffle=False, verbose=0)


def answers(model):
    queries = {name: COLUMNS[name] for name in ("user_id", "history")}
    return [model.query_vectors(queries), model.item_vectors(ITEMS.gather(tf.range(N)))]


def towers_of(model):
    return [v.numpy() for v in model.query_tower.weights + model.item_tower.weights]


def in_both(model):
    """The types of the layers that are one object in both towers."""
    parts = [{id(x): x for x in t.submodules} for t in (model.query_tower, model.item_tower)]
    both = [x for key, x in parts[0].items() if key in parts[1]]
    return sorted(type(x).__name__ for x in both if isinstance(x, tf.keras.layers.Layer))


def assert_equal(first, second):
    for received, wanted in zip(first, second, strict=True):
        np.testing.assert_array_equal(received, wanted)


def assert_goes_on_as(loaded, model):
    assert_equal(answers(loaded), answers(model))
    assert_equal(towers_of(loaded), towers_of(model))
    step(loaded)
    step(model)
    assert_equal(towers_of(loaded), towers_of(model))
    assert_equal(answers(loaded), answers(model))


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_shares_what_the_model_shared(tmp_path, kind):
    model = make_model(kind)
    step(model)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras", custom_objects={"Scale": Scale})
    loaded.compile(loaded.optimizer, run_eagerly=True)
    assert in_both(loaded) == in_both(model)
    assert "Embedding" in in_both(loaded)
    assert len(loaded.trainable_variables) == len(model.trainable_variables)
    assert_goes_on_as(loaded, model)
    # What was shared moves in both: saved once more, it is still one.
    loaded.save(tmp_path / "again.keras")
    again = tf.keras.models.load_model(tmp_path / "again.keras", custom_objects={"Scale": Scale})
    assert in_both(again) == in_both(model)
    assert_equal(answers(again), answers(model))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_from_its_configuration_shares_too(kind):
    model = make_model(kind)
    with tf.keras.utils.custom_object_scope({"Scale": Scale}):
        again = TwoTower.from_config(model.get_config())
    assert in_both(again) == in_both(model)
    again.set_weights(model.get_weights())
    assert_equal(answers(again), answers(model))


@pytest.mark.parametrize("name", ["weights.h5", "weights.weights.h5", "checkpoint"])
def test_weights_alone_restore_shared_layers(tmp_path, name):
    model, again = make_model(), make_model()
    step(model)
    model.save_weights(tmp_path / name)
    again.load_weights(tmp_path / name)
    assert_equal(answers(again), answers(model))


def test_a_checkpoint_restores_model_and_optimizer(tmp_path):
    model, again = make_model(), make_model()
    step(model)
    saved = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(tmp_path / "at")
    step(again)
    tf.train.Checkpoint(model=again, optimizer=again.optimizer).restore(saved).assert_consumed()
    assert_goes_on_as(again, model)


@tf.keras.utils.register_keras_serializable(package="tests")
class SharingTower(tf.keras.Model):
    """A tower of the user, with layers among its arguments."""

    def __init__(self, table, column, **kwargs):
        super().__init__(**kwargs)
        self.table, self.column, self.lookup = table, column, lookup_of()

    def call(self, columns):
        vectors = self.table(self.lookup(columns[self.column]))
        return tf.reduce_mean(vectors, axis=1) if vectors.shape.rank == 3 else vectors

    def get_config(self):
        table = tf.keras.utils.serialize_keras_object(self.table)
        return {**super().get_config(), "table": table, "column": self.column}

    @classmethod
    def from_config(cls, config):
        table = tf.keras.utils.deserialize_keras_object(config.pop("table"))
        return cls(table, **config)


@pytest.mark.parametrize("shares", [True, False])
def test_subclassed_towers_are_saved_with_and_without_shared_layers(tmp_path, shares):
    table = embedding(N + 1, 2)
    other = table if shares else embedding(N + 1, 3)
    model = TwoTower(SharingTower(table, "history"), SharingTower(other, "title"), ITEMS)
    model.compile(tf.keras.optimizers.Adagrad(0.2), run_eagerly=True)
    step(model)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    loaded.compile(loaded.optimizer, run_eagerly=True)
    assert (loaded.query_tower.table is loaded.item_tower.table) == shares
    assert list(loaded.query_signature) == ["history"]
    columns = {"history": HISTORY}
    assert_equal([loaded.query_vectors(columns)], [model.query_vectors(columns)])
    for each in (loaded, model):
        step(each)
    assert_equal(towers_of(loaded), towers_of(model))


def test_a_tower_with_shared_layers_is_not_built_alone():
    config = make_model().get_config()
    deserialize_towers({"shared_layers": []})
    with (
        tf.keras.utils.custom_object_scope({"Scale": Scale}),
        pytest.raises(InputError, match="whole model"),
    ):
        tf.keras.utils.deserialize_keras_object(config["item_tower"])
