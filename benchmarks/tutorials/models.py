"""The models of the retrieval tutorials of TFRS on MovieLens-100K, around either task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import tfrs_negatives  # noqa: F401  # isort: skip  (chooses legacy Keras before TensorFlow)
import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

DIM, HISTORY, NUM_TRAIN, BATCH = 32, 10, 80_000, 2048
MODELS = ("basic", "deep", "sequential")
OPTIMIZERS = {
    "SGD": tf.keras.optimizers.SGD,
    "Adagrad": tf.keras.optimizers.Adagrad,
    "Adam": tf.keras.optimizers.Adam,
}


class Log(NamedTuple):
    """The events in the order of each user's time.

    Attributes:
        users: [n] of strings.
        titles: [n] of strings, the movie of each event.
        history: [n, HISTORY] of strings, the user's movies before it, the last one last; "" where
            there were fewer.
    """

    users: np.ndarray
    titles: np.ndarray
    history: np.ndarray


def read_log(folder: Path) -> Log:
    """Reads `u.data` and `u.item` of MovieLens-100K; every rating is an event, as there."""
    lines = (folder / "u.item").read_text("latin-1").splitlines()
    title_of = dict(line.split("|")[:2] for line in lines)
    users, movies, _, times = np.loadtxt(folder / "u.data", dtype=np.int64).T
    order = np.lexsort([times, users])
    titles = np.array([title_of[str(movie)] for movie in movies[order]])
    users = users[order]
    number = np.arange(len(users)) - np.searchsorted(users, users)
    back = np.arange(HISTORY, 0, -1)
    place = np.maximum(np.arange(len(users))[:, None] - back, 0)
    history = np.where(number[:, None] >= back, titles[place], "")
    return Log(users.astype(str), titles, history)


def split(log: Log, *, sequential: bool, seed: int) -> tuple[Log, Log]:
    """Splits at random, 80,000 events to train; without those that have no history, if asked."""
    rows = np.flatnonzero(log.history[:, -1] != "") if sequential else np.arange(len(log.users))
    rows = np.random.default_rng(seed).permutation(rows)
    train, test = rows[:NUM_TRAIN], rows[NUM_TRAIN:]
    return Log(*(column[train] for column in log)), Log(*(column[test] for column in log))


def _embedding(vocabulary: np.ndarray, *above: tf.keras.layers.Layer) -> tf.keras.Model:
    lookup = tf.keras.layers.StringLookup(vocabulary=vocabulary.tolist(), mask_token=None)
    table = tf.keras.layers.Embedding(len(vocabulary) + 1, DIM)
    return tf.keras.Sequential([lookup, table, *above])


class TutorialModel(tfrs.Model):
    """Two towers and a task.

    Args:
        kind: "basic", an embedding of each id; "deep", two layers above both; "sequential", a GRU
            over the last movies in the place of the user.
        log: of which users and titles are known.
        task: of TFRS, or in its place.
    """

    def __init__(self, kind: str, log: Log, task: tfrs.tasks.Task) -> None:
        super().__init__()

        def layers() -> list[tf.keras.layers.Layer]:
            widths = {64: "relu", DIM: None} if kind == "deep" else {}
            return [tf.keras.layers.Dense(n, activation) for n, activation in widths.items()]

        self.query = "history" if kind == "sequential" else "user"
        self.vocabulary = np.unique(log.titles)
        if kind == "sequential":
            self.query_tower = _embedding(self.vocabulary, tf.keras.layers.GRU(DIM))
        else:
            self.query_tower = _embedding(np.unique(log.users), *layers())
        self.item_tower = _embedding(self.vocabulary, *layers())
        self.task = task

    def compute_loss(self, features: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Returns the loss of one batch."""
        queries, items = self.query_tower(features[self.query]), self.item_tower(features["title"])
        return self.task(queries, items, compute_metrics=not training)


def _batches(model: TutorialModel, log: Log, size: int) -> tf.data.Dataset:
    query = {"user": log.users, "history": log.history}[model.query]
    columns = {model.query: query, "title": log.titles}
    # The split has put the events into a random order.
    return tf.data.Dataset.from_tensor_slices(columns).batch(size).cache()


def top_100(model: TutorialModel, test: Log) -> float:
    """Returns the factorized top-100 accuracy over all titles, as TFRS measures it."""
    corpus = tfrs.layers.factorized_top_k.BruteForce(k=100)
    corpus.index(model.item_tower(tf.constant(model.vocabulary)))
    metric = tfrs.metrics.FactorizedTopK(corpus, ks=[100])
    for batch in _batches(model, test, 4096):
        metric.update_state(model.query_tower(batch[model.query]), model.item_tower(batch["title"]))
    return float(metric.result()[0])


def accuracy(
    kind: str,
    log: Log,
    task: tfrs.tasks.Task,
    optimizer: tf.keras.optimizers.Optimizer,
    *,
    epochs: int,
    seed: int,
) -> float:
    """Trains a model from the weights and in the order of a seed, and measures it.

    Args:
        kind: of the model.
        log: all events.
        task: of TFRS, or in its place; it draws nothing when it is made.
        optimizer: new.
        epochs: how many times over the events.
        seed: of the split, the weights and the order.

    Returns:
        The top-100 accuracy on the events that were not trained on.
    """
    train, test = split(log, sequential=kind == "sequential", seed=seed)
    tf.keras.utils.set_random_seed(seed)
    model = TutorialModel(kind, log, task)
    model.compile(optimizer)
    batches = _batches(model, train, BATCH).shuffle(NUM_TRAIN // BATCH + 1, seed=seed)
    model.fit(batches, epochs=epochs, verbose=0)
    return top_100(model, test)
