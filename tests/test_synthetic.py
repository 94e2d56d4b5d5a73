from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import RetrievalData, load, synthetic


@pytest.fixture(scope="module")
def made() -> RetrievalData:
    return synthetic(2000, 400, num_events=50_000, test_fraction=0.2, seed=3)


def all_bytes(data: RetrievalData) -> bytes:
    arrays = [*data.items.features.values(), *vars(data.truth).values()]
    for log in (data.train, data.test):
        arrays += [*log.query_features.values(), log.item_ids, log.timestamps]
    return b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)


def test_the_seed_decides_every_byte() -> None:
    first, again, other = (synthetic(60, 200, num_events=600, seed=seed) for seed in (1, 1, 2))
    assert all_bytes(first) == all_bytes(again)
    assert all_bytes(first) != all_bytes(other)


def test_sizes_and_order(made: RetrievalData) -> None:
    assert (len(made.train), len(made.test), len(made.items)) == (40_000, 10_000, 400)
    assert len(made.truth.user_ids) == 2000
    for log in (made.train, made.test):
        assert (np.diff(log.timestamps) >= 0).all()
    assert made.train.timestamps.max() < made.test.timestamps.min()


def test_a_pair_occurs_at_most_once(made: RetrievalData) -> None:
    pairs = [
        pair
        for log in (made.train, made.test)
        for pair in zip(log.query_features["user_id"], log.item_ids, strict=True)
    ]
    assert len(set(pairs)) == len(pairs) == 50_000


def test_item_frequency_follows_the_true_probability(made: RetrievalData) -> None:
    expected = 40_000 * made.truth.item_probability
    counts = made.train.item_counts(made.items)
    assert math.isclose(made.truth.item_probability.sum(), 1.0, rel_tol=1e-9)
    shown = expected > 5
    # Each count is a sum of independent yes-or-no draws: its variance is at most its mean.
    deviations = (counts[shown] - expected[shown]) / np.sqrt(expected[shown])
    assert abs(deviations).max() < 5
    assert 0.5 < (deviations**2).mean() < 1.3
    head = np.argsort(-expected)[:20]
    assert abs(counts[head] / expected[head] - 1).max() < 0.15


def test_relevance_is_a_distribution_and_the_log_follows_it(made: RetrievalData) -> None:
    relevance = made.truth.relevance(np.arange(2000))
    assert relevance.shape == (2000, 400)
    assert relevance.min() > 0
    np.testing.assert_allclose(relevance.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(made.truth.relevance(np.array([7, 3])), relevance[[7, 3]], rtol=1e-5)
    row_of_user = {user: row for row, user in enumerate(made.truth.user_ids)}
    users = np.array([row_of_user[user] for user in made.test.query_features["user_id"]])
    items = made.test.item_rows(made.items)
    own = np.log(relevance[users, items]).mean()
    of_others = np.log(relevance[np.random.default_rng(0).permutation(users), items]).mean()
    assert own > of_others + 0.5


def test_relevance_agrees_with_a_loop(made: RetrievalData) -> None:
    truth = made.truth
    weights = []
    for item in range(400):
        taste = zip(truth.user_tastes[11].tolist(), truth.item_traits[item].tolist(), strict=True)
        weights.append(math.exp(sum(a * b for a, b in taste) + float(truth.item_appeal[item])))
    expected = [weight / sum(weights) for weight in weights]
    np.testing.assert_allclose(truth.relevance(np.array([11]))[0], expected, rtol=1e-4)


def test_without_exposure_bias_items_occur_as_they_are_liked() -> None:
    data = synthetic(2000, 400, num_events=4000, zipf_exponent=0.0, unseen_fraction=0.0)
    liked = data.truth.relevance(np.arange(2000)).mean(axis=0)
    # So few events leave nearly no pair taken twice; activity is independent of taste.
    np.testing.assert_allclose(data.truth.item_probability, liked, rtol=0.15)


def test_the_logging_policy_shows_popular_items_more(made: RetrievalData) -> None:
    liked = made.truth.relevance(np.arange(2000)).mean(axis=0)
    shown = made.truth.exposure > 0
    share = made.truth.item_probability
    slope = np.polyfit(np.log(liked[shown]), np.log(share[shown]), 1)[0]
    assert slope > 1.2
    ranked = np.sort(made.truth.exposure[shown])[::-1]
    # Zipf: ranks 10 and 100 differ by 10 to the exponent, up to the few ranks that are left out.
    assert math.isclose(ranked[9] / ranked[99], 10**0.6, rel_tol=0.1)


def test_some_items_are_never_seen_in_training_but_in_test(made: RetrievalData) -> None:
    never_shown = made.truth.item_probability == 0
    assert never_shown.sum() == 12  # 3 % of 400
    assert (never_shown == (made.truth.exposure == 0)).all()
    assert made.train.item_counts(made.items)[never_shown].sum() == 0
    share = made.test.item_counts(made.items)[never_shown].sum() / len(made.test)
    assert 0.01 < share < 0.12


def test_features_of_unseen_items_tell_how_much_they_are_liked() -> None:
    data = synthetic(500, 1500, num_events=20_000, unseen_fraction=0.2)
    features = data.items.features
    clusters = features["cluster"][:, None] == np.unique(features["cluster"])
    inputs = np.column_stack([clusters, features["year"] / 1000, features["tags"]]).astype(float)
    target = np.log(data.truth.relevance(np.arange(500)).mean(axis=0))
    unseen = data.truth.item_probability == 0
    weights = np.linalg.lstsq(inputs[~unseen], target[~unseen], rcond=None)[0]
    assert np.corrcoef(inputs[unseen] @ weights, target[unseen])[0, 1] > 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_users": 0}, "`num_users`: expected a positive integer. Received: 0"),
        ({"num_items": -3}, "`num_items`: expected a positive integer. Received: -3"),
        ({"num_events": -1}, "`num_events`: expected a positive integer. Received: -1"),
        ({"num_clusters": 0}, "`num_clusters`: expected a positive integer"),
        ({"num_events": 2000}, "`num_events`: expected at most 1000"),
        ({"test_fraction": 1.5}, "`test_fraction`: expected a number between 0 and 1"),
        ({"test_fraction": 0.001}, "`test_fraction`: expected a share that leaves events"),
        ({"unseen_fraction": 0.9}, "`unseen_fraction`: expected a number from 0 to 0.5"),
        ({"zipf_exponent": float("nan")}, "`zipf_exponent`: expected a number not below 0"),
    ],
)
def test_bad_synthetic_arguments(arguments: dict[str, Any], message: str) -> None:
    sizes = {"num_users": 80, "num_items": 200, "num_events": 400}
    with pytest.raises(InputError, match=message):
        synthetic(**{**sizes, **arguments})


def test_load_gives_the_synthetic_log_with_its_own_split_and_truth() -> None:
    loaded, direct = load("synthetic", seed=1), synthetic(seed=1)
    assert all_bytes(loaded) == all_bytes(direct)
    assert loaded.name == "synthetic"
