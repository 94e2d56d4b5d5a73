"""Thinned and repeated events: counts against the Binomial, and who sees the thinned log."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions, RetrievalData
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.resampling import resampled_rows
from tfrs_negatives.runs import train
from tfrs_negatives.runs.build import (
    build_batches,
    build_model,
    learn_features,
    training_log,
)
from tfrs_negatives.runs.config import load_config
from tfrs_negatives.step.frequency import StreamingFrequency

N = 200
COUNTS = np.sort(np.random.default_rng(0).zipf(1.4, N) % 3000 + 1)[::-1]
E = COUNTS.sum()
# Ids far from the row numbers, shuffled as a log is.
ITEM_IDS = np.random.default_rng(1).permutation(np.repeat(np.arange(N) * 7 + 1000, COUNTS))


def counts_after(**options):
    rows = resampled_rows(ITEM_IDS, **options)
    assert (np.diff(rows) >= 0).all()
    return np.bincount((ITEM_IDS[rows] - 1000) // 7, minlength=N)


def rates_of(threshold=None, exponent=None):
    """How often each event is kept on average, one item after the other."""
    if threshold is not None:
        return np.array([min(1.0, (threshold / (n / E)) ** 0.5) for n in COUNTS])
    total = sum(float(n) ** exponent for n in COUNTS)
    return np.array([float(n) ** exponent * E / total / n for n in COUNTS])


SETTINGS = [
    {"threshold": 1e-3},
    {"threshold": 1e-2},
    {"exponent": 0.0},
    {"exponent": 0.75},
    {"exponent": 1.3},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_counts_are_whole_copies_and_a_binomial(setting):
    rates = rates_of(**setting)
    whole, rest = np.floor(rates + 1e-9), np.maximum(rates - np.floor(rates + 1e-9), 0)
    squares, seeds = np.zeros(N), 40
    for seed in range(seeds):
        drawn = counts_after(**setting, seed=seed) - whole.astype(int) * COUNTS
        assert (drawn >= 0).all()
        assert (drawn <= COUNTS).all()
        variance = COUNTS * rest * (1 - rest)
        # Where nothing is drawn, nothing differs.
        assert (drawn == np.round(COUNTS * rest))[variance < 1e-6].all()
        squares += np.where(variance > 1e-6, (drawn - COUNTS * rest) ** 2, 0) / np.maximum(
            variance, 1e-6
        )
    random = variance > 1e-6
    assert random.sum() >= 20
    # Each square has the mean 1 of a Binomial's; of many together the spread is known.
    mean, number = squares[random].mean() / seeds, random.sum() * seeds
    kurtosis = np.mean((1 - 6 * rest * (1 - rest))[random] / variance[random])
    assert abs(mean - 1) < 5 * np.sqrt((2 + kurtosis) / number)


def test_the_most_frequent_item_is_thinned_as_a_binomial_says():
    rate = rates_of(threshold=1e-3)[0]
    kept = [counts_after(threshold=1e-3, seed=seed)[0] for seed in range(200)]
    p = stats.kstest(stats.binom.cdf(kept, COUNTS[0], rate), "uniform").pvalue
    assert p > 1e-4
    assert np.mean(kept) < COUNTS[0] / 2


def test_an_exponent_keeps_the_number_of_events_and_flattens_them():
    for exponent in (0.0, 0.5, 0.75):
        after = counts_after(exponent=exponent)
        assert after.sum() == pytest.approx(E, rel=0.02)
        assert after.max() < COUNTS.max()
        assert after.min() > COUNTS.min()
    assert (counts_after(exponent=1.0) == COUNTS).all()
    # A threshold that nobody exceeds drops nothing.
    assert (counts_after(threshold=1.0) == COUNTS).all()


def test_a_seed_decides_the_draw():
    first, again, other = (resampled_rows(ITEM_IDS, threshold=1e-3, seed=s) for s in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()


@pytest.mark.parametrize("ids", [["a", "b", "a", "a", "a"], [-5, 2**62, -5, -5, -5]])
def test_all_columns_of_an_event_stay_together(ids):
    log = Interactions(
        {"user": np.arange(5)},
        np.array(ids),
        "user",
        timestamps=np.arange(5) * 10.0,
        weights=np.arange(5) / 10,
    )
    more = log.resample(exponent=0.0, seed=3)
    users = more.query_features["user"]
    # The rare one has 5 / 2 events on average.
    assert 2 <= (users == 1).sum() <= 3
    assert more.item_ids.tolist() == [ids[user] for user in users]
    np.testing.assert_allclose(more.timestamps, users * 10.0)
    np.testing.assert_allclose(more.weights, users / 10)
    assert len(log) == 5


def test_an_estimator_sees_the_thinned_stream():
    log = Interactions({"user": np.arange(E)}, ITEM_IDS)
    thinned = log.resample(threshold=2e-3)
    frequency = StreamingFrequency(2**14, rate=0.0)
    for batch in thinned.dataset(512, item_key="item"):
        frequency.update(tf.cast(batch["item"], tf.int64))
    ids = np.arange(N) * 7 + 1000
    share = np.array([(thinned.item_ids == i).mean() for i in ids])
    kept = share > 0
    found = np.exp(frequency.log_probability(tf.constant(ids)))
    np.testing.assert_allclose(found[kept], share[kept], rtol=1e-4)
    assert share[0] < COUNTS[0] / E / 2


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({}, "resample"),
        ({"threshold": 0.1, "exponent": 0.5}, "resample"),
        ({"threshold": 0}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"exponent": -0.1}, "exponent"),
        ({"exponent": float("inf")}, "exponent"),
        ({"exponent": 0.5, "seed": -1}, "seed"),
        ({"threshold": 1e-30}, "resample"),
    ],
)
def test_bad_input(options, argument):
    with pytest.raises(InputError, match=f"`{argument}`"):
        resampled_rows(ITEM_IDS, **options)


def test_no_event_is_no_division_by_zero():
    with pytest.raises(InputError, match="none left"):
        resampled_rows(np.array([], np.int64), exponent=0.5)


# ------------------------------------------------------------------ in a run

SMALL = ["model.embedding_dim=2", "model.hidden=[4]", "model.output_dim=2"]


def small_data():
    log = Interactions({"user": np.arange(E) % 300}, ITEM_IDS, query_key="user")
    return RetrievalData(log, log, ItemCatalogue(np.arange(N) * 7 + 1000), "small")


def test_a_run_trains_on_the_thinned_log_and_remembers_the_whole_one():
    data = small_data()
    keys = ["train.resample_threshold=0.001", "train.schedule=cosine", "train.epochs=2"]
    parts = ["task.frequency=exact", "task.masks=[known_positives]", "train.batch_size=128"]
    config = load_config(overrides=[*SMALL, *keys, *parts])
    log = training_log(config, data)
    assert len(log) < E / 2
    model = build_model(config, data)
    # Counts are those of the stream.
    share = np.exp(model.task.frequency.log_probability(data.items.keys))
    counts = log.item_counts(data.items)
    np.testing.assert_allclose(share, np.maximum(counts, 0.5) / counts.sum(), rtol=1e-5)
    # What a user has chosen stays no negative of it.
    (mask,) = model.task.masks
    assert mask.num_queries == 300
    steps = 2 * log.steps_per_epoch(128)
    assert float(model.optimizer._learning_rate(steps)) == pytest.approx(0.0, abs=1e-9)


def test_an_item_whose_events_are_all_dropped_keeps_its_row_in_the_tower():
    data, config = small_data(), load_config(overrides=["train.resample_exponent=1.5"])
    queries, items, counts = learn_features(config, data)
    assert (counts == 0).any()
    assert len(items[0].vocabulary) == N
    assert len(queries[0].vocabulary) == 300


def test_an_epoch_of_a_run_is_the_thinned_log(tmp_path):
    data = small_data()
    keys = ["train.resample_exponent=0.5", "train.batch_size=999"]
    config = load_config(overrides=[*SMALL, *keys])
    model, log = build_model(config, data), training_log(config, data)
    batches, _, _ = train._resumed_batches(config, data, model, tmp_path / "checkpoints")
    epoch = [b["item_id"] for b in batches.take(log.steps_per_epoch(999))]
    assert np.sort(np.concatenate(epoch)).tolist() == np.sort(log.item_ids).tolist()


def test_clusters_are_of_the_thinned_log():
    keys = ["train.resample_threshold=0.001", "batches.order=clustered"]
    config = load_config(overrides=[*SMALL, *keys])
    data = small_data()
    batches = build_batches(config, data, item_key="item_id")
    size = config.train.batch_size
    assert batches.steps_per_epoch == training_log(config, data).steps_per_epoch(size)


def test_two_settings_at_once_are_an_error():
    keys = ["train.resample_threshold=0.1", "train.resample_exponent=0.5"]
    with pytest.raises(InputError, match=r"`train\.resample_threshold`.*either"):
        training_log(load_config(overrides=keys), small_data())
