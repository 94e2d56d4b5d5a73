"""Data and models that the cases share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tfrs_negatives as tfn  # isort: skip  (chooses legacy Keras before TensorFlow is imported)
import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from benchmarks.speed.measure import Call
from benchmarks.speed.sizes import SEED, WIDTH

HIDDEN, NUM_BATCHES = 128, 8
ZIPF = 1.3


def tower(num_ids: int, name: str) -> tf.keras.Model:
    """Returns ids [B] -> [B, WIDTH]: an embedding and two layers."""
    ids = tf.keras.Input((), name=name, dtype=tf.int64)
    vectors = tf.keras.layers.Embedding(num_ids, WIDTH)(ids)
    vectors = tf.keras.layers.Dense(HIDDEN, activation="relu")(vectors)
    return tf.keras.Model(ids, tf.keras.layers.Dense(WIDTH)(vectors))


class PlainModel(tfrs.Model):
    """The model of the TFRS tutorials, around any task of that interface."""

    def __init__(self, num_users: int, num_items: int, task: tfrs.tasks.Task) -> None:
        super().__init__()
        self.query_tower, self.item_tower = tower(num_users, "user_id"), tower(num_items, "item_id")
        self.task = task

    def compute_loss(self, features: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Returns the loss of one batch."""
        queries = self.query_tower(features["user_id"])
        return self.task(queries, self.item_tower(features["item_id"]), compute_metrics=False)


def two_tower(num_users: int, num_items: int, task: tfn.Retrieval) -> tfn.TwoTower:
    """Returns the model of this package with the same towers."""
    items = tfn.ItemCatalogue(np.arange(num_items))
    return tfn.TwoTower(tower(num_users, "user_id"), tower(num_items, "item_id"), items, task)


def drawn_log(num_events: int, num_users: int, num_items: int) -> tfn.Interactions:
    """Draws events: users uniformly, items by Zipf's law."""
    rng = np.random.default_rng(SEED)
    users = {"user_id": rng.integers(0, num_users, num_events)}
    items = rng.zipf(ZIPF, num_events) % num_items
    return tfn.Interactions(users, items.astype(np.int64), query_key="user_id")


def some_batches(log: tfn.Interactions, batch_size: int) -> tf.data.Dataset:
    """Returns the first events of a log as a few batches, over and over: they cost nothing."""
    rows = np.resize(np.arange(len(log)), [NUM_BATCHES, batch_size])
    columns = {**log.query_features, "item_id": log.item_ids}
    batches = tf.data.Dataset.from_tensor_slices({n: c[rows] for n, c in columns.items()})
    return batches.repeat().prefetch(2)


def train_step(build: Callable[[], tf.keras.Model], batches: tf.data.Dataset) -> Call:
    """Returns a training step as `fit` runs it; every model starts from the same weights."""
    tf.keras.utils.set_random_seed(SEED)
    model = build()
    model.compile(tf.keras.optimizers.Adagrad(0.1))
    step, iterator = model.make_train_function(), iter(batches)
    return lambda: step(iterator)["loss"].numpy()


class VectorModel:
    """Users and items that are their vectors."""

    similarity = "dot"
    query_signature = {"user_id": tf.TensorSpec([None], tf.int64)}  # noqa: RUF012

    def __init__(self, users: np.ndarray, items: np.ndarray) -> None:
        self.users, self.vectors = tf.constant(users), tf.constant(items)
        self.items = tfn.ItemCatalogue(np.arange(len(items)))

    def query_vectors(self, features: Any) -> tf.Tensor:
        """Returns the vectors of users."""
        return tf.gather(self.users, features["user_id"])

    def item_vectors(self, features: Any) -> tf.Tensor:
        """Returns the vectors of items."""
        return tf.gather(self.vectors, features["item_id"])


def clustered(num_rows: int) -> np.ndarray:
    """Returns [n, WIDTH] float32 around a hundredth as many centres."""
    rng = np.random.default_rng(SEED)
    centres = rng.standard_normal([num_rows // 100, WIDTH], np.float32)
    noise = rng.standard_normal([num_rows, WIDTH], np.float32)
    return centres[rng.integers(0, len(centres), num_rows)] + 0.7 * noise


def near(vectors: np.ndarray, rows: np.ndarray, noise: float) -> np.ndarray:
    """Returns queries [Q, D] that want the items at rows [Q], which are not all near the top."""
    rng = np.random.default_rng(SEED)
    return vectors[rows] + noise * rng.standard_normal([len(rows), vectors.shape[1]], np.float32)
