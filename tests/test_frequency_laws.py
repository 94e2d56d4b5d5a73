"""The streaming estimators over many batches: limits, bias, spread and forgetting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from frequency_helpers import METHODS, feed, hit, keys, probability, slots

from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.step.frequency import StreamingFrequency

# Many batches.


@pytest.mark.parametrize("copies", [5, 50])
def test_an_item_in_every_batch(copies):
    batch_size, steps = 200, 3000
    stream = np.arange(steps * batch_size).reshape(steps, batch_size) + 10
    stream[:, :copies] = 1
    counts = feed(StreamingFrequency(2**16, 4, rate=1e-3), stream)
    np.testing.assert_allclose(batch_size * probability(counts, 1), copies, rtol=1e-3)
    gaps = feed(StreamingFrequency(2**16, 4, method="interval"), stream)
    # One sight per batch is all that it knows: h = 1, held at 1 - 1/(4 B), is 6.7 columns.
    columns = batch_size * probability(gaps, 1).item()
    assert 5 < columns < math.log(4 * batch_size)
    assert columns < 50


def test_gaps_are_right_for_independent_draws_of_a_frequent_item():
    rng = np.random.default_rng(1)
    stream = np.where(rng.random((4000, 50)) < 0.04, 1, 2)  # B q = 2, h = 0.87
    layer = StreamingFrequency(2**10, 1, method="interval", rate=2e-3, initial_gap=1.0)
    # The deviation of the gap, 0.013, is one of 0.05 of q, after the conversion from h.
    np.testing.assert_allclose(probability(feed(layer, stream), 1), 0.04, rtol=0.15)


def test_an_item_that_disappears_is_forgotten_by_its_open_gap():
    layer = StreamingFrequency(1000, 3, method="interval", rate=0.5)
    for _ in range(40):
        layer.update(keys(1, 2))
    seen = hit(layer, 2, 1)
    for _ in range(80):
        layer.update(keys(2, 3))
    assert seen > 0.8
    np.testing.assert_allclose(hit(layer, 2, 1), 1 / 80, rtol=1e-4)
    layer.update(keys(1, 2))
    # Back again: half of its gap of 1 and half of the 81 steps it was away.
    np.testing.assert_allclose(hit(layer, 2, 1), 1 / 41, rtol=1e-3)


def test_an_item_that_never_came_is_no_more_frequent_than_one_that_came_once():
    for method in METHODS:
        layer = StreamingFrequency(1000, 3, method=method, initial_gap=5.0, rate=0.01)
        layer.update(keys(1, 2))
        for _ in range(60):
            layer.update(keys(2, 2))
            assert probability(layer, 9) <= probability(layer, 1)


def test_an_item_that_disappears_decays():
    layer = StreamingFrequency(1000, 3, rate=0.1)
    for _ in range(100):
        layer.update(keys(*[1] * 500, *[2] * 500))
    for _ in range(20):
        layer.update(keys(*[2] * 1000))
    # Twenty steps of the geometric window: 0.9^20 of its half remains.
    np.testing.assert_allclose(probability(layer, 1), 0.5 * 0.9**20, rtol=1e-3)
    for _ in range(200):
        layer.update(keys(*[2] * 1000))
    np.testing.assert_allclose(probability(layer, 1), 0.5 / (1000 / 0.1), rtol=1e-3)


def test_rate_zero_is_a_running_count():
    rng = np.random.default_rng(2)
    stream = rng.zipf(1.6, (50, 8)).clip(max=30)
    layer = feed(StreamingFrequency(10**5, 2, rate=0.0), stream)
    met = np.unique(stream)
    shares = [(stream == i).mean() for i in met]
    np.testing.assert_allclose(probability(layer, *met), shares, rtol=1e-5)
    assert layer.draws.numpy() == 400


def test_counts_are_unbiased_from_the_first_step():
    rng = np.random.default_rng(4)
    truth = np.array([0.5, 0.3, 0.2])
    for steps in (1, 3):
        # 600 independent streams side by side: stream s counts its own three ids.
        answers = []
        for _ in range(600):
            layer_ids = rng.choice(3, (steps, 20), p=truth)
            answers.append(layer_ids)
        layers = StreamingFrequency(2**18, 2, rate=0.1)
        stream = np.stack(answers, 1) + 3 * np.arange(600)[None, :, None]
        for batch in stream:
            layers.update(tf.constant(batch.reshape(-1), tf.int64))
        share = 600 * probability(layers, *range(1800)).reshape(600, 3)
        # The mean of 600 estimates of deviation at most 0.11 is within 4 deviations of the truth.
        np.testing.assert_allclose(share.mean(axis=0), truth, atol=4 * 0.11 / math.sqrt(600))


# Bias and spread in the steady state, from many items of one probability in one long stream.


def independent_sights(rate, hit_probability, steps, num_items=300):
    """Whether each item is in each batch, independently; the batch is padded with empty ids."""
    rng = np.random.default_rng(7)
    met = rng.random((steps, num_items)) < hit_probability
    return np.where(met, np.arange(num_items), EMPTY_ID)


@pytest.mark.parametrize(("rate", "hit_probability"), [(0.05, 0.3), (0.1, 0.5)])
def test_steady_state_of_gaps(rate, hit_probability):
    steps = int(12 / (rate * hit_probability))
    stream = independent_sights(rate, hit_probability, steps)
    layer = StreamingFrequency(2**18, 1, method="interval", rate=rate, initial_gap=4.0)
    feed(layer, stream)
    gaps = layer.table.numpy()[slots(layer, np.arange(300))[0]]
    # A geometric gap has mean 1/h and variance (1-h)/h^2; the moving mean keeps a/(2-a) of it.
    mean, variance = 1 / hit_probability, (1 - hit_probability) / hit_probability**2
    expected = rate / (2 - rate) * variance
    assert abs(gaps.mean() - mean) < 4 * math.sqrt(expected / 300)
    assert 0.7 < gaps.var() / expected < 1.35
    # 1/D is convex in D: it overestimates h by the relative variance of D.
    bias = np.mean(1 / gaps) / hit_probability - 1
    deviation = math.sqrt(expected) / mean / math.sqrt(300)
    assert abs(bias - expected / mean**2) < 4 * deviation


def test_initial_gap_is_forgotten_geometrically():
    layer = StreamingFrequency(1000, 2, method="interval", rate=0.1, initial_gap=100.0)
    feed(layer, np.tile([[1], [2], [3], [4]], (11, 1)))
    # Gaps of exactly 4: ten of them leave 0.9^10 of the distance between 100 and 4.
    np.testing.assert_allclose(
        layer.table.numpy()[slots(layer, [1])[:, 0]], 4 + 0.9**10 * 96, rtol=1e-5
    )


def test_steady_state_of_counts():
    rate, batch_size, num_items = 0.02, 100, 200
    rng = np.random.default_rng(8)
    stream = rng.integers(num_items, size=(500, batch_size))
    layer = feed(StreamingFrequency(2**18, 1, rate=rate), stream)
    relative = num_items * probability(layer, *range(num_items)) - 1
    # Each item: mean B q / rate, variance of the window B q / (rate (2 - rate)).
    columns = batch_size / num_items
    expected = math.sqrt(rate / (2 * columns))
    assert abs(relative.mean()) < 1e-3
    assert 0.8 < relative.std() / expected < 1.2


@pytest.mark.parametrize("method", METHODS)
def test_late_steps_are_still_told_apart(method):
    early, late = (
        StreamingFrequency(1000, 2, method=method, rate=0.1, initial_gap=10.0) for _ in range(2)
    )
    late.step.assign(2**40)
    late.draws.assign(2.0 if method == "interval" else 0.0)  # the mean batch size so far
    for layer in (early, late):
        for batch in ([1, 2], [1, 3], [2, 3], [2, 4], [1, 2]):
            layer.update(keys(*batch))
    np.testing.assert_array_equal(
        early.log_probability(keys(1, 2, 3, 4)), late.log_probability(keys(1, 2, 3, 4))
    )
    assert late.step.numpy() == 2**40 + 5


def test_default_rate_does_not_drift_in_float32():
    layer = StreamingFrequency(1000, 1)
    batch = keys(*[1] * 6, *[2] * 3, 3)

    @tf.function
    def run():
        for _ in tf.range(30_000):
            layer.update(batch)

    run()
    np.testing.assert_allclose(probability(layer, 1, 2, 3), [0.6, 0.3, 0.1], rtol=2e-3)
    # Three windows: the total has come to 1 - e^-3 of B / rate.
    np.testing.assert_allclose(layer.draws.numpy(), 1e5 * (1 - math.exp(-3)), rtol=2e-3)
