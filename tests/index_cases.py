"""A model of two tables, and indexes of it, for the tests of the index."""

from dataclasses import replace

import numpy as np
import tensorflow as tf

from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.index import build_index
from tfrs_negatives.index.search.backends import Depth, ScannSearch, ScannSettings

NUM_USERS = 40


class FakeModel(tf.Module):
    """Two tables. Users are integers, or strings "u0", "u1", ...; row 0 is the unknown user."""

    def __init__(self, items, users, *, string_users=False, similarity="dot"):
        super().__init__()
        self.similarity = similarity
        self.user_table = tf.Variable(users)
        self.item_table = tf.Variable(items)
        self.sampler_table = tf.Variable(tf.zeros([777, 5]), trainable=False)
        self.lookup = None
        if string_users:
            names = [f"u{row}" for row in range(1, len(users))]
            self.lookup = tf.keras.layers.StringLookup(vocabulary=names)
        self.chunks = []

    def with_ids(self, ids):
        self.items = ItemCatalogue(ids, {"row": np.arange(len(ids))})
        return self

    @property
    def query_signature(self):
        return {"user_id": tf.TensorSpec([None], tf.string if self.lookup else tf.int64)}

    def query_vectors(self, features):
        rows = features["user_id"]
        return tf.gather(self.user_table, self.lookup(rows) if self.lookup else rows)

    def item_vectors(self, features):
        self.chunks.append(features["row"].shape[0])
        return tf.gather(self.item_table, features["row"])


def make_model(num_items, *, width=8, seed=0, string_ids=False, **options):
    generator = np.random.default_rng(seed)
    users = generator.normal(size=[NUM_USERS, width]).astype(np.float32)
    items = generator.normal(size=[num_items, width]).astype(np.float32)
    # Ids are shuffled and start at 5, so that a row taken for an id is wrong.
    ids = 5 + generator.permutation(num_items)
    model = FakeModel(items, users, **options)
    return model.with_ids([f"item {i}" for i in ids] if string_ids else ids)


def index_with_a_small_leaf(ids):
    """60 items, rows 100 to 159, lie where the query looks; the other 940 on the opposite side."""
    generator = np.random.default_rng(0)
    items = generator.normal([-10, 0], 0.5, size=[1000, 2]).astype(np.float32)
    items[100:160] = np.column_stack([10 + np.arange(60) / 100, np.zeros(60)])
    model = FakeModel(items, np.array([[1, 0]], np.float32)).with_ids(ids)
    backend = ScannSearch(items, ScannSettings(num_leaves=4, depths=(Depth(100, 1, 100),)))
    return replace(build_index(model), backend=backend)
