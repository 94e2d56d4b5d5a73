"""Models and logs small enough to see through."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.interactions import Interactions


class FakeModel:
    """Two matrices; ids of users and items are 100 + row, so that ids and rows differ."""

    def __init__(self, queries, vectors, ids=None):
        self.queries, self.vectors = np.float32(queries), np.float32(vectors)
        self.items = ItemCatalogue(100 + np.arange(len(vectors)) if ids is None else ids)

    def query_vectors(self, features):
        return tf.gather(self.queries, tf.cast(features["user_id"], tf.int64) - 100)

    def item_vectors(self, features):
        return tf.gather(self.vectors, self.items.rows(features["item_id"]))


def log(*events, **columns):
    """Interactions from (user row, item row) pairs."""
    users, rows = np.array(events, np.int64).reshape(-1, 2).T
    return Interactions({"user_id": users + 100}, rows + 100, query_key="user_id", **columns)


def from_scores(scores):
    """A model with exactly these scores: each query picks out its row."""
    scores = np.asarray(scores, np.float32)
    return FakeModel(np.eye(len(scores)), scores.T)
