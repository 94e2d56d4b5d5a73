"""A small batch with everything that can go wrong in it, and the tasks that are tried on it."""

from __future__ import annotations

import numpy as np
import reference
import tensorflow as tf

from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.step.frequency import ExactFrequency
from tfrs_negatives.step.records import Candidates, Sampler
from tfrs_negatives.step.score import ItemBias
from tfrs_negatives.step.task import Retrieval

NUM_ROWS, DIM, NUM_ITEMS = 5, 4, 12
CATALOGUE = ItemCatalogue(np.arange(NUM_ITEMS) + 100)
# Item 103 is the positive of two rows and one of the extra rows: hits must be told from others.
BATCH_IDS = np.array([103, 101, 103, 107, 110, 103, 111])
Q = np.random.default_rng(1).dirichlet(np.full(NUM_ITEMS, 0.7)) + 0.01
Q /= Q.sum()
DRAWN = [3, 3, 0, 7, 11, 4]  # rows of the catalogue, the positive of rows 0 and 2 twice
RNG = np.random.default_rng(0)
QUERIES = RNG.normal(size=(NUM_ROWS, DIM)).astype(np.float32)
ITEMS = RNG.normal(size=(len(BATCH_IDS), DIM)).astype(np.float32)
# Other numbers than `ITEMS`: the positive comes from the batch, a drawn item from the item tower.
CORPUS = RNG.normal(size=(NUM_ITEMS, DIM)).astype(np.float32)
WEIGHTS = np.array([0.5, 2.0, 0.0, 1.0, 3.0], np.float32)
COUNTS = np.arange(NUM_ITEMS) * 3.0
SCORE_MASK = RNG.random((NUM_ROWS, NUM_ROWS)) > 0.4


class Drawn(Sampler):
    """Proposes the items it is told to, as if they had been drawn uniformly."""

    name = "drawn"

    def __init__(self, rows, valid=None):
        self.rows = tf.constant(rows)
        self.valid = tf.constant([True] * len(rows) if valid is None else valid)

    def sample(self, batch):
        vectors = batch.encode_items(CATALOGUE.gather(self.rows))
        nobody = tf.fill([len(self.rows)], -1)
        return Candidates(CATALOGUE.keys_at(self.rows), vectors, self.valid, nobody)

    def log_count(self, ids, batch):
        return tf.fill(tf.shape(ids), np.float32(np.log(len(self.rows) / NUM_ITEMS)))


def exact_frequency():
    return ExactFrequency(CATALOGUE.ids, Q * 1e6)


def item_bias():
    return ItemBias(CATALOGUE.ids, COUNTS)


def encode_items(features):
    return tf.gather(CORPUS, features["item_id"] - 100)


def run(task, *, queries=QUERIES, num_items=NUM_ROWS, **call):
    ids = BATCH_IDS[:num_items]
    call = {"candidate_ids": ids, "encode_items": encode_items, "training": False, **call}
    return task(tf.constant(queries), tf.constant(ITEMS[:num_items]), **call)


def pool_of(num_items=NUM_ROWS, drawn=()):
    batch = reference.batch_columns(BATCH_IDS[:num_items], ITEMS[:num_items], NUM_ROWS)
    return [*batch, *(reference.Column(100 + row, CORPUS[row]) for row in drawn)]


def count_of(num_items=0, num_drawn=0):
    def count(item):
        in_batch = reference.in_batch_count(Q[item - 100], num_items)
        return [in_batch, reference.uniform_count(NUM_ITEMS, num_drawn)]

    return count


def build(arguments):
    # Layers are built anew for each test: they hold variables. The reference takes the mean.
    made = {n: a() if callable(a) else a for n, a in arguments.items()}
    return Retrieval(**{"reduction": "mean", **made})
