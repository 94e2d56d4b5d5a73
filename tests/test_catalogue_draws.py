"""Draws by popularity and by rank: probabilities in closed form, draws by their statistics."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import reference_sources as reference
import tensorflow as tf
from reference import full_softmax

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.step.batch import make_batch
from tfrs_negatives.step.frequency import ExactFrequency
from tfrs_negatives.step.samplers import LogUniform, Popularity, Uniform
from tfrs_negatives.step.task import Retrieval

N = 12
# Neither sorted by id nor by count; three items without any event, some with equal counts.
ITEMS = ItemCatalogue([f"item {i}" for i in np.random.default_rng(1).permutation(N)])
COUNTS = [3, 0, 40, 7, 7, 0, 1, 100, 3, 0, 12, 1]
# The 99.99th percentile of chi squared with 11 degrees of freedom.
LIMIT = 37.4


def popularity(num_negatives=5, **options):
    return Popularity(ITEMS, num_negatives, counts=COUNTS, **options)


def log_uniform(num_negatives=5):
    return LogUniform(ITEMS, num_negatives, counts=COUNTS)


def context_of(step=1, items=ITEMS):
    ids = items.keys[:2]
    return make_batch(
        tf.ones([2, 1]),
        tf.ones([2, 1]),
        candidate_ids=tf.constant(ids),
        features={},
        sample_weight=None,
        encode_items=lambda features: tf.ones([tf.shape(features["item_id"])[0], 1]),
        frequency=None,
        step=tf.constant(step, tf.int64),
        seed=3,
    )


def probabilities(source):
    """exp(log expected count) / n of each item of the catalogue."""
    counts = source.log_count(tf.constant(source.items.keys), context_of())
    assert counts.dtype == tf.float32
    return np.exp(counts.numpy().astype(float)) / source.num_negatives


SOURCES = {
    "popularity": (popularity, reference.popularity(COUNTS, 0.75)),
    "square root": (lambda n=5: popularity(n, exponent=0.5), reference.popularity(COUNTS, 0.5)),
    "inverse": (lambda n=5: popularity(n, exponent=-1), reference.popularity(COUNTS, -1)),
    "log uniform": (log_uniform, reference.log_uniform(COUNTS)),
}
every_source = pytest.mark.parametrize("name", SOURCES)


# ------------------------------------------------------------------ probabilities


@every_source
def test_probabilities_are_the_closed_form(name):
    make, expected = SOURCES[name]
    np.testing.assert_allclose(probabilities(make()), expected, rtol=1e-5)
    assert sum(expected) == pytest.approx(1.0)


def test_exponent_zero_is_uniform_and_one_the_shares_of_the_events():
    np.testing.assert_allclose(probabilities(popularity(exponent=0)), [1 / N] * N, rtol=1e-6)
    counts = np.maximum(COUNTS, 1)
    source = Popularity(ITEMS, 5, counts=counts, exponent=1)
    shares = np.exp(ExactFrequency(ITEMS.ids, counts).log_probability(tf.constant(ITEMS.keys)))
    np.testing.assert_allclose(probabilities(source), shares, rtol=1e-5)


def test_an_id_outside_the_catalogue_is_never_expected():
    ids = tf.constant([[5, ITEMS.keys[7]], [ITEMS.keys[7], -1]], tf.int64)
    for source in (popularity(), log_uniform()):
        counts = source.log_count(ids, context_of()).numpy()
        np.testing.assert_array_equal(np.isneginf(counts), [[True, False], [False, True]])
        assert counts[0, 1] == counts[1, 0]


def test_extreme_counts_and_exponents_stay_finite():
    items = ItemCatalogue([1, 2, 3])
    for exponent in (0.75, 60.0, -60.0):
        source = Popularity(items, 2, counts=[1e15, 0, 3], exponent=exponent)
        assert np.isfinite(source.log_probability(tf.range(3))).all()
    assert probabilities(LogUniform(ItemCatalogue([8]), 2, counts=[4])) == pytest.approx([1.0])


# ------------------------------------------------------------------ draws


def drawn_rows(source, steps=10):
    ids = [source.sample(context_of(step)).ids for step in range(steps)]
    return source.items.rows_of_keys(tf.concat(ids, axis=0)).numpy()


@every_source
def test_items_are_drawn_as_often_as_it_says(name):
    make, expected = SOURCES[name]
    rows = drawn_rows(make(2000))
    seen = [int((rows == row).sum()) for row in range(N)]
    wanted = [len(rows) * share for share in expected]
    chi_squared = sum((s - w) ** 2 / w for s, w in zip(seen, wanted, strict=True))
    assert chi_squared < LIMIT
    # Items without any event too.
    assert min(seen) > 0


def every_number(source, count=100_000):
    """The rows of a grid over [0, 1): their shares are the probabilities up to 1 / count."""
    grid = (np.arange(count) + 0.5) / count
    return source.draw(tf.constant(grid)).numpy()


@every_source
def test_a_grid_of_numbers_lands_on_the_probabilities(name):
    make, expected = SOURCES[name]
    rows = every_number(make())
    assert rows.min() >= 0
    assert rows.max() < N
    np.testing.assert_allclose(np.bincount(rows, minlength=N) / len(rows), expected, atol=3e-5)


BIG = 300_007
BIG_COUNTS = np.random.default_rng(2).integers(1, 1000, BIG)


@pytest.mark.parametrize("kind", ["uniform", "popularity", "log uniform"])
def test_the_largest_number_draws_an_item(kind, monkeypatch):
    items = ItemCatalogue(np.arange(BIG) + 7)
    source = {
        "uniform": lambda: Uniform(items, 4),
        "popularity": lambda: Popularity(items, 4, counts=BIG_COUNTS),
        "log uniform": lambda: LogUniform(items, 4, counts=BIG_COUNTS),
    }[kind]()
    numbers = tf.constant([0, 2**53 - 1, 2**53 - 2, 2**52], tf.int64)
    monkeypatch.setattr(tf.random, "stateless_uniform", lambda *_, **__: numbers)
    first, last, _, middle = source.sample(context_of(items=items)).ids.numpy() - 7
    by_rank = np.argsort(-BIG_COUNTS, kind="stable")
    if kind == "log uniform":
        # (N + 1)^(1/2) is rank 546.7.
        assert [first, last, middle] == [by_rank[0], by_rank[-1], by_rank[546]]
    else:
        assert [first, last] == [0, BIG - 1]
        powers = BIG_COUNTS**0.75 if kind == "popularity" else np.ones(BIG)
        assert powers[:middle].sum() <= powers.sum() / 2 < powers[: middle + 1].sum()


def test_a_sum_of_shares_below_one_draws_the_last_item(monkeypatch):
    # Seven shares of a seventh add up to less than the largest number below 1.
    items = ItemCatalogue(np.arange(7))
    source = Popularity(items, 1, counts=[1] * 7)
    assert source._cumulative[-1] < 1 - 2.0**-53
    assert int(source.draw(tf.constant([1 - 2.0**-53], tf.float64))[0]) == 7
    largest = tf.constant([2**53 - 1], tf.int64)
    monkeypatch.setattr(tf.random, "stateless_uniform", lambda *_, **__: largest)
    assert source.sample(context_of(items=items)).ids.numpy().tolist() == [6]


@every_source
def test_a_config_draws_the_same_items(name):
    source = SOURCES[name][0](50)
    config = json.loads(json.dumps(tf.keras.utils.serialize_keras_object(source)))
    again = tf.keras.utils.deserialize_keras_object(config)
    assert tf.keras.utils.serialize_keras_object(again) == config
    np.testing.assert_array_equal(drawn_rows(again, 2), drawn_rows(source, 2))
    np.testing.assert_array_equal(probabilities(again), probabilities(source))


# ------------------------------------------------------------------ inside a task

EYE = np.eye(N, dtype=np.float32)
SCORES = np.random.default_rng(4).normal(size=N).astype(np.float32)
POSITIVE = 3
SCORES[POSITIVE] = 2.0


def mean_gradient(source, policy, repeats=40):
    """The gradient of one row in its scores of the corpus, which is the identity matrix."""
    task = Retrieval(negatives=[source], correct=policy)

    def encode(features):
        return tf.gather(EYE, ITEMS.rows(features["item_id"]))

    @tf.function
    def one():
        query = tf.constant(SCORES[None])
        with tf.GradientTape() as tape:
            tape.watch(query)
            ids = tf.constant(ITEMS.ids[[POSITIVE]])
            loss = task(
                query, EYE[[POSITIVE]], candidate_ids=ids, encode_items=encode, training=True
            )
        return tape.gradient(loss, query)[0]

    return np.mean([one() for _ in range(repeats)], axis=0)


@pytest.mark.parametrize("name", ["popularity", "log uniform"])
def test_the_corrected_gradient_tends_to_that_of_the_full_softmax(name):
    weights = full_softmax(SCORES)
    full = weights - EYE[POSITIVE]
    corrected = mean_gradient(SOURCES[name][0](4000), "both")
    assert np.linalg.norm(corrected - full) < 0.012
    # Without a correction the draws are a prior, and the positive is one item more.
    drawn = np.exp(SCORES) * np.array(SOURCES[name][1]) * 4000
    prior = drawn + EYE[POSITIVE] * np.exp(SCORES[POSITIVE])
    uncorrected = mean_gradient(SOURCES[name][0](4000), None)
    assert np.linalg.norm(uncorrected - (prior / prior.sum() - EYE[POSITIVE])) < 0.012
    assert np.linalg.norm(uncorrected - full) > 0.1


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize("kind", [Popularity, LogUniform])
@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("num_negatives", {"num_negatives": 0}),
        ("counts", {"counts": COUNTS[:-1]}),
        ("counts", {"counts": [-1, *COUNTS[1:]]}),
        ("counts", {"counts": [0] * N}),
        ("counts", {"counts": [math.nan, *COUNTS[1:]]}),
        ("counts", {"counts": [math.inf, *COUNTS[1:]]}),
    ],
)
def test_errors_name_the_argument(kind, argument, options):
    with pytest.raises(InputError, match=f"^`{argument}`"):
        kind(**{"items": ITEMS, "num_negatives": 2, "counts": COUNTS, **options})


@pytest.mark.parametrize("exponent", [math.nan, math.inf])
def test_an_exponent_that_is_no_number_is_an_error(exponent):
    with pytest.raises(InputError, match=r"^`exponent`"):
        popularity(exponent=exponent)
