"""Uniform draws from a fixed part of the catalogue: which part, how often, and in a mixture."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from small_batch import BATCH_IDS, CATALOGUE, NUM_ITEMS, NUM_ROWS, Q, exact_frequency, run

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.step.merge import mixture_log_count
from tfrs_negatives.step.samplers import InBatch, Uniform, UniformSubset
from tfrs_negatives.step.task import Retrieval

M = 5


class Step:
    """As much of a batch as these samplers read."""

    item_ids = tf.constant(BATCH_IDS[:NUM_ROWS])
    expected_items = tf.constant(float(NUM_ROWS))

    def __init__(self, step=1):
        self.seed = tf.constant([3, step])

    def encode_items(self, features):
        return tf.zeros([tf.shape(features["item_id"])[0], 1])

    def log_probability(self, ids):
        return exact_frequency().log_probability(ids)


def part_of(source):
    """The rows that its log probability says are drawn at all."""
    return np.flatnonzero(np.isfinite(source.log_probability(tf.range(NUM_ITEMS)).numpy()))


def test_a_part_is_chosen_once_by_its_seed():
    first, again = (part_of(UniformSubset(CATALOGUE, 4, num_items=M, seed=2)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len(first) == M
    parts = [part_of(UniformSubset(CATALOGUE, 4, num_items=M, seed=seed)) for seed in range(40)]
    # Each item is in 40 M / N parts on average, with a standard deviation of 3.1.
    times = np.bincount(np.concatenate(parts), minlength=NUM_ITEMS)
    assert times.min() > 40 * M / NUM_ITEMS - 12
    assert times.max() < 40 * M / NUM_ITEMS + 12


def test_items_of_the_part_are_drawn_evenly_and_no_others():
    source = UniformSubset(CATALOGUE, 2000, num_items=M, seed=2)
    ids = tf.concat([source.sample(Step(step)).ids for step in range(5)], axis=0)
    times = np.bincount(CATALOGUE.rows_of_keys(ids).numpy(), minlength=NUM_ITEMS)
    inside = np.isin(np.arange(NUM_ITEMS), part_of(source))
    assert (times[~inside] == 0).all()
    # The 99.99th percentile of chi squared with 4 degrees of freedom is 23.5.
    assert ((times[inside] - 10000 / M) ** 2 / (10000 / M)).sum() < 23.5


def test_the_count_of_the_mixture_is_the_batch_alone_outside_the_part():
    source, ids = UniformSubset(CATALOGUE, 8, num_items=M, seed=2), tf.constant(CATALOGUE.keys)
    counts = np.exp(mixture_log_count([InBatch(), source], ids, Step()))
    inside = np.isin(np.arange(NUM_ITEMS), part_of(source))
    np.testing.assert_allclose(counts, NUM_ROWS * Q / Q.sum() + np.where(inside, 8 / M, 0), 1e-5)
    nowhere = source.log_count(tf.constant([5], tf.int64), Step())
    assert np.isneginf(nowhere).all()


def test_all_items_are_the_whole_catalogue():
    whole, part = Uniform(CATALOGUE, 50), UniformSubset(CATALOGUE, 50, num_items=NUM_ITEMS, seed=4)
    np.testing.assert_array_equal(whole.sample(Step()).ids, part.sample(Step()).ids)
    ids = tf.constant(CATALOGUE.keys)
    np.testing.assert_array_equal(whole.log_count(ids, Step()), part.log_count(ids, Step()))


@pytest.mark.parametrize("correct", ["both", "negatives"])
@pytest.mark.parametrize("beside", [[], [InBatch()]])
def test_a_positive_outside_the_part_has_a_finite_loss(beside, correct):
    source = UniformSubset(CATALOGUE, 4, num_items=1, seed=0)
    assert not np.isin(BATCH_IDS[:NUM_ROWS] - 100, part_of(source)).all()
    task = Retrieval(negatives=[*beside, source], frequency=exact_frequency(), correct=correct)
    assert np.isfinite(run(task))


def test_the_last_place_of_the_part_is_drawn_by_the_largest_number():
    source = UniformSubset(ItemCatalogue(np.arange(300_007)), 1, num_items=299_993, seed=1)
    rows = source.draw(tf.constant([0.0, 1 - 2.0**-53], tf.float64)).numpy()
    np.testing.assert_array_equal(np.isfinite(source.log_probability(tf.constant(rows))), True)
    assert rows[0] < 10
    assert rows[1] > 300_007 - 10


@pytest.mark.parametrize("num_items", [0, -1, NUM_ITEMS + 1])
def test_a_part_is_a_part(num_items):
    with pytest.raises(InputError, match="`num_items`"):
        UniformSubset(CATALOGUE, 2, num_items=num_items)
