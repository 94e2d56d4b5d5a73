"""A log whose truth is known: who likes what, what was shown, how likely each item is.

    P(item | user)     = softmax over items of  taste · trait + appeal           (the relevance)
    P(pair in the log) = 1 - exp(-rate of the user * P(item | user) * exposure)  (at most one event)

The exposure is Zipf over items ordered by how much they are liked on average: the log shows popular
items more often than their relevance alone would. Some items are not shown at all in the training
period (exposure 0) and have events in test only; their features say what they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import Columns
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.interactions import Interactions
from tfrs_negatives.data.retrieval_data import RetrievalData
from tfrs_negatives.data.splits import check_fraction

NUM_DIMENSIONS = 8
NUM_TAGS = 24
NUM_AGE_GROUPS = 7
TASTE_STRENGTH = 4.0
NOVELTY_STRENGTH = 0.5
PAIRS_PER_CHUNK = 2**21
MAX_DENSITY = 1 / 16
TRAIN_START, TEST_START, TEST_END = 1_600_000_000, 1_626_000_000, 1_630_000_000


@dataclass(frozen=True)
class SyntheticTruth:
    """What the generator knows. Items are in catalogue order; user row r is the user `user_ids[r]`.

    Attributes:
        user_ids: [U] strings.
        user_tastes: [U, D] float32.
        item_traits: [N, D] float32.
        item_appeal: [N] float32, how much everyone likes the item, on the scale of the logits.
        exposure: [N] float32, how much the logging policy favours each item in the training period;
            0 for an item that it never shows.
        item_probability: [N] float64, the probability that one training event, drawn as a batch
            draws it, has this item. Sums to one; 0 for an item never shown.

    Example:
        >>> truth = synthetic(60, 200, num_events=600).truth
        >>> truth.relevance(np.array([3, 7])).shape, round(float(truth.item_probability.sum()), 6)
        ((2, 200), 1.0)
    """

    user_ids: np.ndarray
    user_tastes: np.ndarray
    item_traits: np.ndarray
    item_appeal: np.ndarray
    exposure: np.ndarray
    item_probability: np.ndarray

    def relevance(self, user_rows: np.ndarray) -> np.ndarray:
        """Returns [m, N] float32: P(item | user) of these users if every item were shown alike."""
        return _softmax(self.user_tastes[user_rows] @ self.item_traits.T + self.item_appeal)


def synthetic(
    num_users: int = 5000,
    num_items: int = 3000,
    *,
    num_events: int = 200_000,
    test_fraction: float = 0.15,
    num_clusters: int = 30,
    zipf_exponent: float = 0.6,
    unseen_fraction: float = 0.03,
    seed: int = 0,
) -> RetrievalData:
    """Generates a log with its truth; the same arguments give the same bytes.

    Args:
        num_users: users; each has an id, an age group, a noisy favourite cluster and a noisy
            number.
        num_items: items; each has an id, a cluster, a year and tags, from which its traits and its
            appeal follow but for noise.
        num_events: events in training and test; a pair of user and item has at most one.
        test_fraction: share of the events that are test, later in time than all of training.
        num_clusters: clusters of items, and of tastes.
        zipf_exponent: how steeply exposure falls with an item's rank; 0 shows all items alike.
        unseen_fraction: share of the items without any training event, spread evenly over the ranks
            below the head. At the default sizes they have 3 to 5 % of the test events.
        seed: of all random numbers.

    Returns:
        The data, split as generated, with its truth.

    Raises:
        InputError: if a number is out of range, or the log would hold too many of all pairs.

    Example:
        >>> data = synthetic(60, 200, num_events=600)
        >>> len(data.train), len(data.test), len(data.items)
        (510, 90, 200)
    """
    _check_sizes(num_users, num_items, num_events, num_clusters)
    num_test = _check_shares(num_events, test_fraction, unseen_fraction, zipf_exponent)
    rng = np.random.Generator(np.random.PCG64(seed))
    centres = _unit(rng.standard_normal((num_clusters, NUM_DIMENSIONS)))
    traits, appeal, item_features = _make_items(rng, num_items, centres)
    tastes, user_features = _make_users(rng, num_users, centres)
    exposure = _zipf_exposure(rng, _mean_relevance(tastes, traits, appeal), zipf_exponent)
    shown = np.where(_unseen(rng, exposure, unseen_fraction), np.float32(0), exposure)
    world = _World(tastes, traits, appeal, shown, exposure)
    train, test, probability = _draw_log(rng, world, num_events - num_test, num_test)
    items = ItemCatalogue(item_features.pop("item_id"), item_features)
    return RetrievalData(
        train=_to_log(
            train, _times(rng, TRAIN_START, TEST_START, len(train)), user_features, items
        ),
        test=_to_log(test, _times(rng, TEST_START, TEST_END, len(test)), user_features, items),
        items=items,
        name="synthetic",
        truth=SyntheticTruth(user_features["user_id"], tastes, traits, appeal, shown, probability),
    )


class _World(NamedTuple):
    """What decides which pairs are in the log: [U, D], [N, D], and [N] each."""

    tastes: np.ndarray
    traits: np.ndarray
    appeal: np.ndarray
    train_exposure: np.ndarray
    test_exposure: np.ndarray


def _make_items(
    rng: np.random.Generator, num_items: int, centres: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    num_clusters, width = centres.shape
    sizes = _share(rng.gamma(2.0, size=(num_clusters,)))
    cluster = rng.choice(num_clusters, num_items, p=sizes)
    spread = 0.5 / np.sqrt(width) * rng.standard_normal((num_items, width))
    position = _unit(centres[cluster] + spread)
    year = np.floor(2024 - rng.exponential(10.0, (num_items,)).clip(max=30))
    newness = (year - year.mean()) / max(year.std(), 1.0)
    topics = _unit(rng.standard_normal((NUM_TAGS, width)))
    closeness = position @ topics.T + 0.15 * rng.standard_normal((num_items, NUM_TAGS))
    tags = (closeness > np.quantile(closeness, 0.85, axis=0)).astype(np.int8)
    appeal = 0.6 * newness + tags @ (0.5 * rng.standard_normal(NUM_TAGS))
    appeal += (0.4 * rng.standard_normal((num_clusters,)))[cluster]
    appeal += 0.25 * rng.standard_normal(num_items)
    features = {
        "item_id": _names("item", np.arange(num_items)),
        "cluster": _names("cluster", cluster),
        "year": year.astype(np.float32),
        "tags": tags,
    }
    traits = np.column_stack([position, newness])
    return traits.astype(np.float32), appeal.astype(np.float32), features


def _make_users(
    rng: np.random.Generator, num_users: int, centres: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    num_clusters, width = centres.shape
    age_group = rng.integers(NUM_AGE_GROUPS, size=num_users)
    habit = rng.dirichlet(np.full(num_clusters, 0.3), (NUM_AGE_GROUPS,)).cumsum(axis=1)
    first = (habit[age_group] < rng.random((num_users, 1))).sum(axis=1).clip(max=num_clusters - 1)
    second = rng.integers(num_clusters, size=num_users)
    spread = 0.4 / np.sqrt(width) * rng.standard_normal((num_users, width))
    taste = _unit(centres[first] + 0.6 * centres[second] + spread)
    novelty = rng.standard_normal(num_users)
    told = np.where(rng.random(num_users) < 0.85, first, rng.integers(num_clusters, size=num_users))
    features = {
        "user_id": _names("user", np.arange(num_users)),
        "age_group": age_group,
        "favourite_cluster": _names("cluster", told),
        "novelty": (novelty + 0.5 * rng.standard_normal(num_users)).astype(np.float32),
    }
    tastes = np.column_stack([TASTE_STRENGTH * taste, NOVELTY_STRENGTH * novelty])
    return tastes.astype(np.float32), features


def _mean_relevance(tastes: np.ndarray, traits: np.ndarray, appeal: np.ndarray) -> np.ndarray:
    # The users of one chunk are sample enough to rank items.
    sample = tastes[: max(1, PAIRS_PER_CHUNK // len(traits))]
    return _softmax(sample @ traits.T + appeal).mean(axis=0)


def _zipf_exposure(
    rng: np.random.Generator, mean_relevance: np.ndarray, exponent: float
) -> np.ndarray:
    noise = 0.2 * rng.standard_normal(len(mean_relevance))
    order = np.argsort(-(np.log(mean_relevance) + noise))
    exposure = np.empty(len(order), np.float32)
    exposure[order] = np.arange(1.0, len(order) + 1) ** -exponent
    return exposure


def _unseen(rng: np.random.Generator, exposure: np.ndarray, fraction: float) -> np.ndarray:
    """Returns [N] bool: one item of each of equal slices of the ranks below the head."""
    num_unseen = round(fraction * len(exposure))
    unseen = np.zeros(len(exposure), bool)
    # One head item without training events would decide every measure on such items alone.
    tail = np.argsort(-exposure)[len(exposure) // 300 :]
    for ranks in np.array_split(tail, num_unseen) if num_unseen else []:
        unseen[rng.choice(ranks)] = True
    return unseen


def _draw_log(
    rng: np.random.Generator, world: _World, num_train: int, num_test: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the pairs [E, 2] (user row, item row) of training and of test, and the probability
    [N] of each item in training.
    """
    activity = _share(rng.lognormal(0.0, 0.8, len(world.tastes)).clip(0.25, 4.0))
    train, test = [], []
    expected = np.zeros(len(world.traits))
    for rows in _chunks(len(world.tastes), len(world.traits)):
        relevance = _softmax(world.tastes[rows] @ world.traits.T + world.appeal)
        probability = _pair_probability(
            relevance * world.train_exposure, activity[rows] * _with_margin(num_train)
        )
        expected += probability.sum(axis=0)
        taken = rng.random(probability.shape) < probability
        relevance[taken] = 0
        probability = _pair_probability(
            relevance * world.test_exposure, activity[rows] * _with_margin(num_test)
        )
        train.append(np.argwhere(taken) + np.array([rows.start, 0]))
        taken = rng.random(probability.shape) < probability
        test.append(np.argwhere(taken) + np.array([rows.start, 0]))
    return _thin(rng, train, num_train), _thin(rng, test, num_test), _share(expected)


def _pair_probability(weights: np.ndarray, num_expected: np.ndarray) -> np.ndarray:
    """Solves  sum over items of 1 - exp(-rate * weight) = num_expected  for the rate of each user.

    The left side is concave in the rate, so Newton's method climbs to the root from below.
    """
    weights = weights * (num_expected / weights.sum(axis=1)).astype(np.float32)[:, None]
    rate = np.ones((len(weights), 1), np.float32)
    for _ in range(50):
        absent = np.exp(-rate * weights)
        missing = num_expected - (weights.shape[1] - absent.sum(axis=1, dtype=np.float64))
        if missing.max() < 1e-3 * num_expected.max():
            break
        rate += (missing / (weights * absent).sum(axis=1)).astype(np.float32)[:, None]
    return -np.expm1(-rate * weights)


def _with_margin(num_events: int) -> float:
    # The number of drawn pairs is random, with a variance below its mean: six deviations are safe.
    return 1.01 * num_events + 6 * np.sqrt(num_events)


def _thin(rng: np.random.Generator, pairs: list[np.ndarray], num_events: int) -> np.ndarray:
    return rng.permutation(np.concatenate(pairs))[:num_events]


def _times(rng: np.random.Generator, start: int, end: int, num_events: int) -> np.ndarray:
    return np.sort(rng.integers(start, end, num_events))


def _to_log(
    pairs: np.ndarray, times: np.ndarray, user_features: Columns, items: ItemCatalogue
) -> Interactions:
    users = {name: column[pairs[:, 0]] for name, column in user_features.items()}
    return Interactions(users, items.ids[pairs[:, 1]], query_key="user_id", timestamps=times)


def _chunks(num_users: int, num_items: int) -> Iterator[slice]:
    size = max(1, PAIRS_PER_CHUNK // num_items)
    for start in range(0, num_users, size):
        yield slice(start, min(start + size, num_users))


def _names(kind: str, numbers: np.ndarray) -> np.ndarray:
    return np.array([f"{kind}_{number}" for number in numbers.tolist()])


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _share(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum()


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def _check_sizes(num_users: int, num_items: int, num_events: int, num_clusters: int) -> None:
    for name, size in (
        ("num_users", num_users),
        ("num_items", num_items),
        ("num_events", num_events),
        ("num_clusters", num_clusters),
    ):
        if size < 1:
            raise bad_input(name, "a positive integer", size)
    most = int(MAX_DENSITY * num_users * num_items)
    if num_events > most:
        expected = f"at most {most}, a sixteenth of all pairs of user and item"
        raise bad_input("num_events", expected, num_events)


def _check_shares(
    num_events: int, test_fraction: float, unseen_fraction: float, zipf_exponent: float
) -> int:
    check_fraction("test_fraction", test_fraction)
    if not 0 <= unseen_fraction <= 0.5:
        raise bad_input("unseen_fraction", "a number from 0 to 0.5", unseen_fraction)
    if not zipf_exponent >= 0:
        raise bad_input("zipf_exponent", "a number not below 0", zipf_exponent)
    num_test = round(num_events * test_fraction)
    if not 0 < num_test < num_events:
        expected = "a share that leaves events on both sides"
        raise bad_input("test_fraction", expected, f"{test_fraction} of {num_events} events")
    return num_test
