"""Ways to cut a log into training and test. Each keeps the order of the log on both sides.

`SPLITS` is the registry: the names that a configuration may use for what is cut here. A source that
comes with its own split also answers to `AS_GIVEN`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, get_args

import numpy as np

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.data.groups import Moment, event_of_each
from tfrs_negatives.data.interactions import Interactions

Parts: TypeAlias = tuple[Interactions, Interactions]

AS_GIVEN = "as_given"

VALIDATION_SEED = 2**31
"""The seed of the validation part; `train.seed` is below it, so no split draws the same numbers."""


def random(log: Interactions, *, test_fraction: float = 0.2, seed: int = 0) -> Parts:
    """Puts a random share of the events into test.

    Args:
        log: E events.
        test_fraction: share of the events, between 0 and 1.
        seed: of the draw.

    Returns:
        Training and test.

    Raises:
        InputError: if the share is not between 0 and 1, or a side is left empty.

    Example:
        >>> log = Interactions({"user_id": np.arange(10)}, np.arange(10))
        >>> train, test = random(log, test_fraction=0.3)
        >>> len(train), len(test)
        (7, 3)
    """
    return _cut(log, _draw(len(log), test_fraction, seed))


def by_user(log: Interactions, *, test_fraction: float = 0.2, seed: int = 0) -> Parts:
    """Puts all events of a random share of the queries into test: their users are new to the model.

    Args:
        log: E events; an event is a query of its own where the log has no `query_key`.
        test_fraction: share of the queries, between 0 and 1.
        seed: of the draw.

    Returns:
        Training and test.

    Raises:
        InputError: if the share is not between 0 and 1, or a side is left empty.

    Example:
        >>> users = {"user_id": np.array([1, 1, 2, 2])}
        >>> log = Interactions(users, np.arange(4), query_key="user_id")
        >>> train, test = by_user(log, test_fraction=0.5)
        >>> len(set(train.query_features["user_id"]) & set(test.query_features["user_id"]))
        0
    """
    return _cut(log, _of_queries(log, test_fraction, seed, argument="test_fraction"))


def leave_last_out(log: Interactions) -> Parts:
    """Puts the last event of each query into test; a query with a single event stays in training.

    Args:
        log: E events with timestamps and a `query_key`; of events at one time the later row
            is last.

    Returns:
        Training and test.

    Raises:
        InputError: if the log has no timestamps or no `query_key`, or no query has two events.

    Example:
        >>> users = {"user_id": np.array([1, 1, 2])}
        >>> log = Interactions(users, np.array([7, 8, 9]), "user_id", np.array([5, 4, 3]))
        >>> train, test = leave_last_out(log)
        >>> train.item_ids.tolist(), test.item_ids.tolist()
        ([8, 9], [7])
    """
    return _cut(log, _is_last(log, "leave_last_out"))


def by_time(log: Interactions, *, test_fraction: float = 0.2) -> Parts:
    """Puts the latest events into test. Events at one time stay together, on the side of test.

    Args:
        log: E events with timestamps.
        test_fraction: share of the events, between 0 and 1; ties at the cut can only raise it.

    Returns:
        Training and test: every training event is earlier than every test event.

    Raises:
        InputError: if the log has no timestamps, the share is not between 0 and 1, or a side is
            left empty.

    Example:
        >>> log = Interactions({"u": np.arange(4)}, np.arange(4), timestamps=np.array([9, 2, 7, 1]))
        >>> by_time(log, test_fraction=0.25)[1].item_ids.tolist()
        [0]
    """
    return _cut(log, _latest(log, test_fraction, argument="test_fraction"))


def validation(train: Interactions, *, fraction: float, split: str = "random") -> Parts:
    """Puts a share of the training events aside, to choose settings on, in the way of the split.

    Settings for the future are chosen on the latest events before it, settings for new queries on
    other new queries. A draw has a seed of its own: runs of all seeds see one validation part where
    they have one training part.

    Args:
        train: E events, the training part of a split.
        fraction: share of them (of the queries for `by_user`), between 0 and 1.
        split: the way that the test part was cut off. For `leave_last_out` it is the last event of
            each of a share of the queries, such that it is the fraction of all events, or all that
            there are. `random` and `as_given` draw events.

    Returns:
        What is left to train on, and the validation part.

    Raises:
        InputError: if the share is not between 0 and 1, or a side is left empty.

    Example:
        >>> log = Interactions({"user_id": np.arange(10)}, np.arange(10))
        >>> train, chosen = validation(log, fraction=0.3)
        >>> len(train), len(chosen)
        (7, 3)
    """
    if split not in (*SPLITS, AS_GIVEN):
        raise bad_input("split", f"one of {sorted([*SPLITS, AS_GIVEN])}", repr(split))
    argument = "validation_fraction"
    if split == "by_time":
        return _cut(train, _latest(train, fraction, argument=argument))
    if split == "by_user":
        return _cut(train, _of_queries(train, fraction, VALIDATION_SEED, argument=argument))
    drawn = _draw(len(train), fraction, VALIDATION_SEED, argument=argument)
    if split != "leave_last_out":
        return _cut(train, drawn)
    last = np.flatnonzero(_is_last(train, split))
    order = np.random.Generator(np.random.PCG64(VALIDATION_SEED)).permutation(len(last))
    chosen = np.zeros(len(train), bool)
    chosen[last[order[: drawn.sum()]]] = True
    return _cut(train, chosen)


SPLITS: dict[str, Callable[[Interactions, float, int], Parts]] = {
    "random": lambda log, test_fraction, seed: random(log, test_fraction=test_fraction, seed=seed),
    "by_user": lambda log, test_fraction, seed: by_user(
        log, test_fraction=test_fraction, seed=seed
    ),
    "leave_last_out": lambda log, test_fraction, seed: leave_last_out(log),
    "by_time": lambda log, test_fraction, seed: by_time(log, test_fraction=test_fraction),
}


def check_fraction(name: str, fraction: float) -> None:
    """Raises `InputError` unless 0 < fraction < 1."""
    if not isinstance(fraction, (int, float, np.floating)) or not 0 < fraction < 1:
        raise bad_input(name, "a number between 0 and 1, both excluded", fraction)


def _num_test(total: int, fraction: float, *, argument: str = "test_fraction") -> int:
    check_fraction(argument, fraction)
    num_test = round(fraction * total)
    if not 0 < num_test < total:
        expected = "a share that leaves something on both sides"
        raise bad_input(argument, expected, f"{fraction} of {total}")
    return num_test


def _draw(total: int, fraction: float, seed: int, *, argument: str = "test_fraction") -> np.ndarray:
    num_test = _num_test(total, fraction, argument=argument)
    if seed < 0:
        raise bad_input("seed", "a seed of at least 0", seed)
    chosen = np.zeros(total, bool)
    chosen[np.random.Generator(np.random.PCG64(seed)).permutation(total)[:num_test]] = True
    return chosen


def _of_queries(log: Interactions, fraction: float, seed: int, *, argument: str) -> np.ndarray:
    queries, query_of_event = log.queries()
    num_queries = len(next(iter(queries.values()), query_of_event))
    return _draw(num_queries, fraction, seed, argument=argument)[query_of_event]


def _is_last(log: Interactions, split: str) -> np.ndarray:
    """Returns [E] bool, the last event of each query that has another one."""
    times = _timestamps(log, split)
    if log.query_key is None:
        raise bad_input("split", f"a log with a query key for {split}", "a log without one")
    _, query_of_event = log.queries()
    first, last = (event_of_each(query_of_event, times, moment=m) for m in get_args(Moment))
    is_last = np.zeros(len(log), bool)
    is_last[last[last != first]] = True
    return is_last


def _latest(log: Interactions, fraction: float, *, argument: str) -> np.ndarray:
    """Returns [E] bool, the latest events, with all that are as late as the first of them."""
    times = _timestamps(log, "by_time")
    num_test = _num_test(len(log), fraction, argument=argument)
    late: np.ndarray = times >= np.sort(times)[len(log) - num_test]
    return late


def _cut(log: Interactions, is_test: np.ndarray) -> Parts:
    if is_test.all() or not is_test.any():
        side = "training" if is_test.any() else "test"
        raise bad_input("split", "events on both sides", f"an empty {side} side")
    return log.take(~is_test), log.take(is_test)


def _timestamps(log: Interactions, split: str) -> np.ndarray:
    if log.timestamps is None:
        raise bad_input("split", f"a log with timestamps for {split}", "a log without timestamps")
    return log.timestamps
