from __future__ import annotations

import numpy as np
import pytest

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions
from tfrs_negatives.data.splits import SPLITS, by_time, by_user, leave_last_out, random


def make_log(num_events: int = 400, num_users: int = 40, seed: int = 0) -> Interactions:
    rng = np.random.default_rng(seed)
    return Interactions(
        {"user_id": rng.integers(num_users, size=num_events)},
        np.arange(num_events),  # an item id that says which event it is
        query_key="user_id",
        timestamps=rng.integers(0, 150, size=num_events),
    )


@pytest.mark.parametrize("name", sorted(SPLITS))
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_split_is_a_partition_in_the_order_of_the_log(name: str, seed: int) -> None:
    log = make_log(seed=seed)
    train, test = SPLITS[name](log, 0.25, seed)
    assert sorted([*train.item_ids, *test.item_ids]) == list(range(len(log)))
    for part in (train, test):
        assert (np.diff(part.item_ids) > 0).all()
        assert (
            part.query_features["user_id"] == log.query_features["user_id"][part.item_ids]
        ).all()
        assert (part.timestamps == log.timestamps[part.item_ids]).all()


@pytest.mark.parametrize("name", ["random", "by_user"])
def test_a_seed_decides_the_draw(name: str) -> None:
    log = make_log()
    first, again, other = (SPLITS[name](log, 0.25, seed)[1].item_ids for seed in (5, 5, 6))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.9])
def test_random_holds_out_the_share_of_events(fraction: float) -> None:
    assert len(random(make_log(), test_fraction=fraction)[1]) == 400 * fraction


def test_random_gives_each_event_the_same_chance() -> None:
    log = make_log(num_events=20)
    held_out = np.zeros(20)
    for seed in range(600):
        held_out[random(log, test_fraction=0.25, seed=seed)[1].item_ids] += 1
    # Binomial(600, 1/4): mean 150, deviation 10.6.
    assert abs(held_out - 150).max() < 5 * 10.6


def test_by_user_holds_out_whole_users() -> None:
    train, test = by_user(make_log(), test_fraction=0.25)
    train_users, test_users = (set(part.query_features["user_id"]) for part in (train, test))
    assert not train_users & test_users
    assert len(test_users) == 10


def test_by_user_without_a_key_takes_each_event_as_a_query() -> None:
    log = Interactions({"words": np.array(["a", "a", "b", "c"])}, np.arange(4))
    assert len(by_user(log, test_fraction=0.5)[1]) == 2


def test_leave_last_out_takes_the_latest_event_of_each_user() -> None:
    log = make_log()
    test = leave_last_out(log)[1]
    expected = []
    for user in sorted(set(log.query_features["user_id"])):
        mine = [e for e in range(len(log)) if log.query_features["user_id"][e] == user]
        if len(mine) > 1:
            latest = max(log.timestamps[e] for e in mine)
            expected.append([e for e in mine if log.timestamps[e] == latest][-1])
    assert test.item_ids.tolist() == sorted(expected)


def test_leave_last_out_takes_the_later_row_of_a_tie_and_spares_single_events() -> None:
    users = {"user_id": np.array(["b", "a", "b", "c", "b"])}
    log = Interactions(users, np.arange(5), "user_id", np.array([9, 1, 9, 5, 2]))
    assert leave_last_out(log)[1].item_ids.tolist() == [2]


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5])
def test_by_time_never_trains_on_the_future(fraction: float) -> None:
    train, test = by_time(make_log(), test_fraction=fraction)
    assert train.timestamps.max() < test.timestamps.min()
    # 150 possible times: ties at the cut add a few events at most.
    assert 400 * fraction <= len(test) < 400 * fraction + 15


NO_TIMES = Interactions({"user_id": np.array([1, 1, 2])}, np.arange(3), query_key="user_id")
NO_KEY = Interactions({"user_id": np.array([1, 1])}, np.arange(2), timestamps=np.array([1, 2]))
SINGLES = Interactions({"u": np.arange(3)}, np.arange(3), "u", np.arange(3))
ONE_TIME = Interactions({"u": np.arange(4)}, np.arange(4), "u", np.zeros(4, np.int64))
ONE_USER = Interactions({"u": np.zeros(4, np.int64)}, np.arange(4), query_key="u")


@pytest.mark.parametrize(
    ("name", "log", "fraction", "message"),
    [
        ("random", make_log(), 0.0, "`test_fraction`: expected a number between 0 and 1"),
        ("random", make_log(), 1.0, "`test_fraction`: .*Received: 1.0"),
        ("by_user", make_log(), -0.2, "`test_fraction`: .*Received: -0.2"),
        ("by_time", make_log(), float("nan"), "`test_fraction`: .*Received: nan"),
        ("random", make_log(3), 0.01, "`test_fraction`: expected a share that leaves something"),
        ("by_user", ONE_USER, 0.5, "`test_fraction`: expected a share that leaves something"),
        ("leave_last_out", NO_TIMES, 0.2, "`split`: expected a log with timestamps"),
        ("by_time", NO_TIMES, 0.2, "`split`: expected a log with timestamps"),
        ("leave_last_out", NO_KEY, 0.2, "`split`: expected a log with a query key"),
        ("leave_last_out", SINGLES, 0.2, "`split`: .*an empty test side"),
        ("by_time", ONE_TIME, 0.25, "`split`: .*an empty training side"),
    ],
)
def test_bad_input(name: str, log: Interactions, fraction: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SPLITS[name](log, fraction, 0)
