"""The streaming estimators: step by step against a slow reference, then law by law."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import tensorflow as tf
from frequency_helpers import METHODS, feed, hit, keys, probability, slots, state
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_frequency import ReferenceCounts, ReferenceGaps, splitmix_finaliser

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.step.frequency import StreamingFrequency, _mix

INT64 = st.integers(-(2**63) + 1, 2**63 - 1)


# Step by step against the reference.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("num_buckets", "num_hashes"), [(4, 1), (7, 3), (512, 2)])
def test_every_step_agrees_with_the_reference(method, num_buckets, num_hashes):
    rng = np.random.default_rng(num_buckets)
    # A small initial gap, so that many open gaps are longer than the mean.
    layer = StreamingFrequency(num_buckets, num_hashes, method=method, rate=0.1, initial_gap=3.0)
    known = np.arange(-6, 14)

    @functools.cache
    def buckets_of(i):
        return slots(layer, [i])[:, 0].tolist()

    if method == "interval":
        reference = ReferenceGaps(num_hashes, 0.1, buckets_of, batch_size=6, initial_gap=3.0)
    else:
        reference = ReferenceCounts(num_hashes, 0.1, buckets_of)
    for _ in range(40):
        batch = np.minimum(rng.zipf(1.5, 6) - 5, 9)  # few heads, so duplicates in most batches
        batch = np.append(batch, [EMPTY_ID, EMPTY_ID])
        layer.update(tf.constant(batch, tf.int64))
        reference.update(batch.tolist())
        expected = [reference.log_probability(i) for i in known.tolist()]
        np.testing.assert_allclose(layer.log_probability(keys(*known)), expected, rtol=2e-5)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(METHODS),
    st.lists(st.lists(INT64, min_size=3, max_size=3), min_size=1, max_size=5),
)
def test_any_stream_of_any_keys_agrees_with_the_reference(method, batches):
    layer = StreamingFrequency(5, 2, method=method, rate=0.25)

    @functools.cache
    def buckets_of(i):
        return slots(layer, [i])[:, 0].tolist()

    if method == "interval":
        reference = ReferenceGaps(2, 0.25, buckets_of, batch_size=3)
    else:
        reference = ReferenceCounts(2, 0.25, buckets_of)
    for batch in batches:
        layer.update(keys(*batch))
        reference.update(batch)
    expected = [reference.log_probability(i) for i in batches[0]]
    np.testing.assert_allclose(layer.log_probability(keys(*batches[0])), expected, rtol=2e-5)


# The hashes.


@settings(max_examples=50, deadline=None)
@given(st.lists(INT64, min_size=1, max_size=8))
def test_the_mix_is_splitmix64(ids):
    assert _mix(keys(*ids)).numpy().tolist() == [splitmix_finaliser(i) for i in ids]


@pytest.mark.parametrize("start", [0, -20_000, 2**62, -(2**63) + 1])
def test_hashes_spread_evenly(start):
    layer = StreamingFrequency(100, 2)
    table = slots(layer, np.arange(20_000, dtype=np.int64) + start)
    for row, places in enumerate(table):
        assert places.min() >= 100 * row
        assert places.max() < 100 * (row + 1)
        counts = np.bincount(places - 100 * row, minlength=100)
        # Chi-square with 99 degrees of freedom: mean 99, deviation 14.
        assert ((counts - 200.0) ** 2 / 200).sum() < 99 + 5 * 14


def test_hashes_of_two_rows_are_independent():
    first, second = slots(StreamingFrequency(20, 2), np.arange(40_000))
    pairs = np.bincount(first * 20 + second - 20, minlength=400)
    # Chi-square with 399 degrees of freedom: mean 399, deviation 28.
    assert ((pairs - 100.0) ** 2 / 100).sum() < 399 + 5 * 28


def test_hashes_depend_on_the_seed_alone():
    ids = np.arange(1000)
    first, again, other = (slots(StreamingFrequency(1000, 2, seed=seed), ids) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.mean(first == other) < 0.01


def test_every_key_has_a_bucket():
    extreme = [-(2**63) + 1, -1, 0, 1, 2**63 - 1]
    places = slots(StreamingFrequency(10**6, 3), extreme)
    assert len(np.unique(places)) == 15
    assert (slots(StreamingFrequency(10, 3), [EMPTY_ID]) == 30).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_collision_is_answered_by_the_row_without_one(method):
    layer = StreamingFrequency(8, 2, method=method, rate=0.1, initial_gap=1000.0)
    table = slots(layer, np.arange(200))
    rare = 0
    collided = np.flatnonzero((table[0] == table[0, rare]) & (table[1] != table[1, rare]))[0]
    for step in range(100):
        layer.update(keys(collided, rare if step in (20, 40) else EMPTY_ID))
    alone = StreamingFrequency(10**6, 1, method=method, rate=0.1, initial_gap=1000.0)
    for step in range(100):
        alone.update(keys(collided, rare if step in (20, 40) else EMPTY_ID))
    np.testing.assert_allclose(probability(layer, rare), probability(alone, rare), rtol=1e-5)


# One batch.


def test_a_count_follows_multiplicity():
    layer = StreamingFrequency(1000, 4)
    layer.update(keys(1, 1, 1, 2))
    np.testing.assert_allclose(probability(layer, 1, 2), [0.75, 0.25], rtol=1e-6)


def test_a_gap_is_updated_once_per_batch():
    def gap_after(*batches):
        layer = StreamingFrequency(1000, 1, method="interval", rate=0.5, initial_gap=8.0)
        for batch in batches:
            layer.update(keys(*batch))
        return layer.table.numpy()[slots(layer, [1])[0, 0]]

    # Seen at steps 1 and 4: the gap of 3 moves 8 half of the way.
    assert gap_after([1, 1, 1], [2, 2, 2], [2, 2, 2], [1, 1, 1]) == 5.5
    assert gap_after([1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 1, 2]) == 5.5


def test_first_sight_leaves_the_gap_and_starts_the_clock():
    layer = StreamingFrequency(1000, 2, method="interval", rate=0.5, initial_gap=50.0)
    for _ in range(30):
        layer.update(keys(2, 3))
    layer.update(keys(1, 2))
    places = slots(layer, [1])[:, 0]
    np.testing.assert_array_equal(layer.table.numpy()[places], 50.0)
    np.testing.assert_array_equal(layer.last_step.numpy()[places], 31)
    np.testing.assert_allclose(hit(layer, 2, 1), 1 / 50, rtol=1e-4)


def test_reading_before_the_first_update():
    gaps = StreamingFrequency(1000, 2, method="interval", initial_gap=50.0)
    np.testing.assert_allclose(probability(gaps, 1), 1 / 50, rtol=1e-5)
    for _ in range(10):
        gaps.update(keys(2, 3, 4, 5))
    # Never met, in batches of 4.
    np.testing.assert_allclose(probability(gaps, 1), 1 - (1 - 1 / 50) ** 0.25, rtol=1e-4)
    # Half an event, out of no more than one.
    np.testing.assert_allclose(probability(StreamingFrequency(1000, 2), 1), 0.5, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_reading_changes_nothing(method):
    layer = StreamingFrequency(16, 2, method=method)
    layer.update(keys(1, 2))
    before = state(layer)
    layer.log_probability(keys(1, 3))
    for old, new in zip(before, state(layer), strict=True):
        np.testing.assert_array_equal(old, new)


# Empty ids and batches of unequal size.


@pytest.mark.parametrize("method", METHODS)
def test_empty_ids_are_not_counted(method):
    plain, padded = (StreamingFrequency(64, 2, method=method, rate=0.1) for _ in range(2))
    for step in range(20):
        plain.update(keys(1, step))
        padded.update(keys(EMPTY_ID, 1, EMPTY_ID, step, EMPTY_ID))
    for one, other in zip(state(plain), state(padded), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_id_reads_like_an_item_that_was_never_met(method):
    layer = StreamingFrequency(10**5, 1, method=method, rate=0.05, initial_gap=20.0)
    for _ in range(40):
        layer.update(keys(1, EMPTY_ID, EMPTY_ID))
    assert probability(layer, EMPTY_ID) == probability(layer, 2)
    assert probability(layer, EMPTY_ID) < 0.1 * probability(layer, 1)


def test_a_short_batch_hardly_changes_what_gaps_say_of_one_draw():
    # 32 items in turn, 8 per batch: each comes every fourth step.
    stream = np.tile(np.arange(32).reshape(4, 8), (20, 1))
    layer = StreamingFrequency(10**5, 1, method="interval", initial_gap=4.0)
    feed(layer, stream)
    expected = 1 - (1 - 1 / 4) ** (1 / 8)
    np.testing.assert_allclose(probability(layer, 0, 31), expected, rtol=1e-4)
    layer.update(keys(0))
    np.testing.assert_allclose(probability(layer, 0, 31), expected, rtol=0.02)
    layer.update(keys(EMPTY_ID))
    np.testing.assert_allclose(probability(layer, 0, 31), expected, rtol=0.04)


def test_mean_batch_size_of_gaps_forgets_at_their_rate():
    layer = StreamingFrequency(10, 1, method="interval", rate=0.25)
    for size in (4, 8, 6):  # up to 1 / rate steps the plain mean
        layer.update(tf.range(size, dtype=tf.int64))
    assert layer.draws.numpy() == 6.0
    for size in (6, 2):
        layer.update(tf.range(size, dtype=tf.int64))
    assert layer.draws.numpy() == 5.0


# Graphs, numbers, saving, arguments.


@pytest.mark.parametrize("method", METHODS)
def test_eager_equals_graph(method):
    rng = np.random.default_rng(9)
    eager, graph = (StreamingFrequency(32, 3, method=method, rate=0.1) for _ in range(2))
    stream = rng.integers(40, size=(30, 6))
    for batch in stream:
        eager.update(tf.constant(batch))
    feed(graph, stream)
    read = tf.function(graph.log_probability)
    np.testing.assert_allclose(
        eager.log_probability(tf.range(40, dtype=tf.int64)),
        read(tf.range(40, dtype=tf.int64)),
        rtol=1e-6,
    )


@pytest.mark.parametrize("method", METHODS)
def test_answers_are_float32_under_mixed_precision(method):
    class Outer(tf.keras.layers.Layer):
        def __init__(self, frequency):
            super().__init__(dtype="mixed_float16")
            self.frequency = frequency

        def call(self, ids):
            self.frequency.update(ids)
            return self.frequency.log_probability(ids)

    inner = StreamingFrequency(64, 2, method=method, dtype="mixed_float16")
    plain = StreamingFrequency(64, 2, method=method)
    batch = tf.range(3000, dtype=tf.int64)
    for _ in range(30):  # 90,000 draws, above the largest float16
        mixed = Outer(inner)(batch)
        plain.update(batch)
    assert mixed.dtype == tf.float32
    np.testing.assert_array_equal(mixed, plain.log_probability(batch))


@pytest.mark.parametrize("method", METHODS)
def test_a_restored_layer_continues_bit_equal(method, tmp_path):
    rng = np.random.default_rng(10)
    stream = rng.integers(60, size=(40, 6))
    layer = feed(StreamingFrequency(32, 2, method=method, seed=4), stream[:20])
    path = tf.train.Checkpoint(frequency=layer).save(str(tmp_path / "checkpoint"))
    again = StreamingFrequency(32, 2, method=method, seed=4)
    tf.train.Checkpoint(frequency=again).restore(path).assert_consumed()
    for one in (layer, again):
        feed(one, stream[20:])
    for old, new in zip(state(layer), state(again), strict=True):
        np.testing.assert_array_equal(old, new)
    read = tf.range(70, dtype=tf.int64)
    np.testing.assert_array_equal(layer.log_probability(read), again.log_probability(read))


def test_nothing_is_trainable():
    assert not StreamingFrequency(16, 2).trainable_variables


def test_config_round_trip():
    layer = StreamingFrequency(
        33, 3, method="interval", rate=0.2, initial_gap=7.0, seed=11, name="mine"
    )
    config = tf.keras.utils.serialize_keras_object(layer)
    again = tf.keras.utils.deserialize_keras_object(config)
    assert isinstance(again, StreamingFrequency)
    assert again.get_config() == layer.get_config()
    for one in (layer, again):
        one.update(keys(1, 2))
        one.update(keys(1, 3))
    np.testing.assert_array_equal(
        layer.log_probability(keys(1, 2, 3, 4)), again.log_probability(keys(1, 2, 3, 4))
    )


def test_default_rates():
    assert StreamingFrequency(8).rate == 1e-4
    assert StreamingFrequency(8, method="interval").rate == 0.01


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("num_buckets", {"num_buckets": 0}),
        ("num_hashes", {"num_hashes": 0}),
        ("rate", {"rate": -0.1}),
        ("rate", {"rate": 1.0}),
        ("rate", {"rate": math.nan}),
        ("rate", {"rate": 0.0, "method": "interval"}),
        ("initial_gap", {"initial_gap": 0.0, "method": "interval"}),
        ("initial_gap", {"initial_gap": math.nan, "method": "interval"}),
        ("method", {"method": "gap"}),
    ],
)
def test_bad_arguments(argument, values):
    with pytest.raises(InputError, match=f"`{argument}`: expected"):
        StreamingFrequency(**{"num_buckets": 8, **values})
