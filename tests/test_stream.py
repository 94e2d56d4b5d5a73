"""The endless stream of batches: what an epoch holds, in which order, and from where on."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions


def log_of(num_events, **columns):
    return Interactions({"user_id": np.arange(num_events)}, np.arange(num_events) * 10, **columns)


def events(dataset, num_batches):
    """The event numbers of the first batches."""
    return [batch["user_id"] for batch in dataset.take(num_batches).as_numpy_iterator()]


def epochs(num_events, num_epochs, seed=0):
    """The orders of the first epochs, a row each."""
    stream = log_of(num_events).stream(num_events, item_key="item_id", seed=seed)
    return np.stack(events(stream, num_epochs))


@settings(deadline=None, max_examples=10)
@given(
    num_events=st.integers(1, 150),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 2**31 - 1),
    skipped=st.integers(0, 30),
)
def test_every_event_once_per_epoch_from_any_step_on(num_events, batch_size, seed, skipped):
    log = log_of(num_events)
    steps = log.steps_per_epoch(batch_size)
    taken = min(2 * steps + skipped, 60)
    batches = events(log.stream(batch_size, item_key="item_id", seed=seed), taken)
    for first in range(0, taken - steps + 1, steps):
        epoch = batches[first : first + steps]
        assert [len(b) for b in epoch[:-1]] == [batch_size] * (steps - 1)
        assert sorted(np.concatenate(epoch)) == list(range(num_events))
    later = log.stream(batch_size, item_key="item_id", seed=seed, start_step=skipped)
    for received, wanted in zip(events(later, 5), batches[skipped:], strict=False):
        np.testing.assert_array_equal(received, wanted)


def test_the_columns_are_those_of_dataset():
    log = log_of(7, weights=np.arange(7, dtype=np.float32))
    (batch,) = log.stream(7, item_key="movie").take(1)
    (wanted,) = log.dataset(7, item_key="movie", shuffle=False)
    order = np.argsort(batch["user_id"])
    assert set(batch) == set(wanted) == {"user_id", "movie", "sample_weight"}
    for name, column in wanted.items():
        np.testing.assert_array_equal(batch[name].numpy()[order], column)
        assert batch[name].dtype == column.dtype


def test_seed_and_epoch_decide_the_order():
    first, other = epochs(500, 4), epochs(500, 4, seed=1)
    np.testing.assert_array_equal(first, epochs(500, 4))
    orders = [*first, *other, np.arange(500)]
    # Two independent orders agree in one place on average.
    same = [(a == b).sum() for i, a in enumerate(orders) for b in orders[:i]]
    assert max(same) < 9
    # Further than the 256 keys that the cipher would tell apart if it had the plain numbers.
    starts = [0, 256, 512]
    log = log_of(20)
    later = [events(log.stream(20, item_key="i", start_step=s), 1)[0] for s in starts]
    assert len({tuple(order) for order in later}) == 3
    seeds = [events(log.stream(20, item_key="i", seed=s), 1)[0] for s in starts]
    assert len({tuple(order) for order in seeds}) == 3


def test_orders_are_as_if_drawn_at_random():
    num_events, num_epochs = 16, 1000
    orders = epochs(num_events, num_epochs)
    # Each event in each place equally often: 225 degrees of freedom.
    counts = np.zeros((num_events, num_events))
    np.add.at(counts, (np.arange(num_events)[None], orders), 1)
    expected = num_epochs / num_events
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi2 - 225) < 5 * np.sqrt(2 * 225)
    # Neighbours of the log are neighbours of an order once on average, with variance 1. With 4
    # rounds of the cipher the variance is 29: a few orders are hardly shuffled.
    long = epochs(1000, 1000)
    followers = (np.diff(long, axis=1) == 1).sum(axis=1)
    assert abs(followers.mean() - 1) < 5 / np.sqrt(1000)
    assert 0.7 < followers.var() < 1.4
    # Orders of two epochs are uncorrelated: the coefficient has standard error 1 / sqrt(1000).
    coefficients = np.corrcoef(long[:100])[np.triu_indices(100, 1)] * np.sqrt(1000)
    assert 0.95 < coefficients.std() < 1.05


def test_the_stream_begins_anywhere_at_once():
    log = log_of(1000)
    ahead = 10**12
    batch = events(log.stream(10, item_key="item_id", start_step=ahead), 100)
    assert sorted(np.concatenate(batch)) == list(range(1000))


def test_fit_asks_for_the_length_of_an_endless_stream():
    model = tf.keras.Sequential([tf.keras.layers.Dense(1)])
    model.compile(loss="mse")
    stream = log_of(5).stream(2, item_key="item_id").map(lambda b: (b["user_id"], b["item_id"]))
    with pytest.raises(ValueError, match="number of steps"):
        model.fit(stream, verbose=0)


@pytest.mark.parametrize(
    ("num_events", "options", "message"),
    [
        (0, {}, "`stream`: expected a log with at least one event"),
        (3, {"batch_size": 0}, "`batch_size`: expected at least 1"),
        (3, {"start_step": -1}, "`start_step`: expected at least 0"),
    ],
)
def test_what_cannot_be_streamed(num_events, options, message):
    with pytest.raises(InputError, match=message):
        log_of(num_events).stream(**{"batch_size": 2, "item_key": "item_id", **options})
