"""The log expected count of a mixture of sources, against counts added by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.step.batch import make_batch
from tfrs_negatives.step.frequency import ExactFrequency
from tfrs_negatives.step.merge import mixture_log_count, sample_pools
from tfrs_negatives.step.samplers import CrossBatch, InBatch, IndexStream, Uniform, Weighted

CATALOGUE = ItemCatalogue([10, 20, 30, 40])
SHARES = ExactFrequency([10, 20, 30, 40, 99], [8, 4, 2, 2, 4])
INDEX_ITEMS = {"item_id": tf.constant([20, 40, 20], tf.int64)}


def encode(features):
    ids = tf.cast(features["item_id"], tf.float32)
    return tf.stack([ids, -ids], axis=1)


@pytest.fixture
def context():
    """Two queries and five items: the positives 10 and 99, and three extra candidates."""
    item_ids = tf.constant([10, 99, 20, 10, 30], tf.int64)
    return make_batch(
        tf.ones([2, 2]),
        encode({"item_id": item_ids}),
        candidate_ids=item_ids,
        features={"index_items": INDEX_ITEMS},
        encode_items=encode,
        sample_weight=None,
        frequency=SHARES,
        step=tf.constant(2, tf.int64),
        seed=1,
    )


def counts(sources, ids, context):
    answer = mixture_log_count(sources, tf.constant(ids, tf.int64), context)
    assert answer.dtype == tf.float32
    return np.exp(answer.numpy())


def test_one_source_is_its_own_count(context):
    # Five columns of the stream, item 10 is 8 of 20 events.
    np.testing.assert_allclose(counts([InBatch()], [10], context), [5 * 8 / 20], rtol=1e-6)
    np.testing.assert_allclose(counts([Uniform(CATALOGUE, 6)], [10], context), [6 / 4], rtol=1e-6)


def test_expected_counts_of_three_sources_add_up(context):
    sources = [InBatch(), Uniform(CATALOGUE, 6), IndexStream(CATALOGUE, 3)]
    # In batch 5 q, uniform 6/4, stream 3/4.
    expected = [5 * 0.4 + 2.25, 5 * 0.2 + 2.25, 5 * 0.1 + 2.25]
    np.testing.assert_allclose(counts(sources, [10, 20, 30], context), expected, rtol=1e-6)


def test_an_item_outside_the_catalogue_comes_from_the_batch_alone(context):
    sources = [InBatch(), Uniform(CATALOGUE, 6), IndexStream(CATALOGUE, 3)]
    np.testing.assert_allclose(counts(sources, [99], context), [5 * 0.2], rtol=1e-6)
    outside = mixture_log_count(sources[1:], tf.constant([99], tf.int64), context)
    assert outside.numpy() == [-math.inf]


def test_columns_and_positives_get_the_mixture_whichever_source_made_them(context):
    (pool,) = sample_pools([InBatch(), IndexStream(CATALOGUE, 3)], context, counted=True)
    assert pool.ids.numpy().tolist() == [10, 99, 20, 10, 30, 20, 40, 20]
    assert pool.sampler.numpy().tolist() == [0] * 5 + [1] * 3
    assert pool.own_rows.numpy().tolist() == [0, 1, -1, -1, -1, -1, -1, -1]
    of = {10: 2.75, 99: 1.0, 20: 1.75, 30: 1.25, 40: 1.25}
    expected = [of[i] for i in pool.ids.numpy().tolist()]
    np.testing.assert_allclose(np.exp(pool.log_count), expected, rtol=1e-6)
    np.testing.assert_allclose(np.exp(pool.positive_log_count), [2.75, 1.0], rtol=1e-6)


def test_without_correction_no_frequency_is_asked_for(context):
    def refuse(ids):
        raise AssertionError("asked")

    (pool,) = sample_pools([InBatch()], context._replace(log_probability=refuse), counted=False)
    assert pool.log_count is None
    assert pool.positive_log_count is None


def test_uniform_columns_come_as_often_as_their_expected_count(context):
    source = Uniform(CATALOGUE, 8)
    drawn = [
        sample_pools(
            [InBatch(), source], context._replace(seed=tf.constant([3, step])), counted=False
        )[0].ids.numpy()[5:]
        for step in range(250)
    ]
    seen = np.array([(np.array(drawn) == i).sum() for i in (10, 20, 30, 40)]) / 250
    expected = np.exp(source.log_count(tf.constant([10, 20, 30, 40], tf.int64), context))
    # Binomial of 8 columns at 1/4: deviation 1.22 in one step.
    np.testing.assert_allclose(seen, expected, atol=4 * 1.22 / math.sqrt(250))


# ------------------------------------------------------------------ gradients for what has none


def column_gradients(sources, context, **options):
    """What reaches the embeddings of the batch, where 1 arrives at every number of the pool."""
    items = context.items
    with tf.GradientTape() as tape:
        tape.watch(items)
        (pool,) = sample_pools(sources, context._replace(items=items), **options)
        total = tf.reduce_sum(pool.vectors)
    gradient = tape.gradient(total, items)
    np.testing.assert_array_equal(pool.vectors[:5], items)
    np.testing.assert_array_equal(gradient[:, 0], gradient[:, 1])
    return gradient[:, 0].numpy()


def filled_bank(context, *, batches=1, **options):
    bank = CrossBatch(20, **options)
    bank.build([2])
    for _ in range(batches):
        bank.update(context, None)
    return bank


def test_fresh_columns_take_over_the_gradient_of_the_bank_item_by_item(context):
    # Five columns of the stream and six uniform draws are fresh; ten slots weigh a half.
    bank = Weighted(filled_bank(context, batches=2), 0.5)
    sources = [InBatch(), Uniform(CATALOGUE, 6), bank]
    received = column_gradients(sources, context, counted=True)
    share = {10: 8 / 20, 20: 4 / 20, 30: 2 / 20, 99: 4 / 20}
    drawn = {10: 6 / 4, 20: 6 / 4, 30: 6 / 4, 99: 0.0}
    wanted = [
        (5 * share[i] + drawn[i] + 0.5 * 10 * share[i]) / (5 * share[i] + drawn[i])
        for i in (10, 99, 20, 10, 30)
    ]
    np.testing.assert_allclose(received, wanted, rtol=1e-5)


def test_without_counts_all_fresh_columns_take_over_alike(context):
    bank = Weighted(filled_bank(context, batches=2), 0.5)
    sources = [InBatch(), Uniform(CATALOGUE, 6), bank]
    received = column_gradients(sources, context, counted=False)
    np.testing.assert_allclose(received, [(11 + 0.5 * 10) / 11] * 5, rtol=1e-5)


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize(
    "options", [{"compensate": False}, {"batches": 0}, {"warmup_steps": 9}], ids=str
)
def test_nothing_is_taken_over_from_a_bank_that_is_off_or_as_published(context, options, corrected):
    sources = [InBatch(), filled_bank(context, **options)]
    received = column_gradients(sources, context, counted=corrected)
    np.testing.assert_array_equal(received, np.ones(5))
