"""Which of the items that an index found become negatives, and how many each rule dropped."""

from __future__ import annotations

import math
import operator
from collections import Counter
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.model.top_k import MISSING

Choice = Literal["top", "random"]
DROPS = ("positives", "outside_catalogue", "rank_window", "margin", "surplus")


@dataclass(frozen=True)
class MiningSummary:
    """What a mining did: retrieved = kept + the sum of what the rules dropped.

    Attributes:
        queries: how many were mined for.
        retrieved: items that the index found for them, all queries together.
        dropped: rule -> items that it dropped and the rules before it had left: "positives" (of the
            query, in training), "outside_catalogue", "rank_window", "margin", "surplus" (more than
            `num`).
        kept: the negatives that were written.
        short: queries with fewer than `num`, those with none among them.
        empty: queries with none.
        seconds: the time it took, without that of an index that was given.
    """

    queries: int
    retrieved: int
    dropped: dict[str, int]
    kept: int
    short: int
    empty: int
    seconds: float

    @classmethod
    def from_counts(cls, counts: Counter[str], seconds: float) -> MiningSummary:
        """Makes it of the counts of all chunks."""
        dropped = {rule: counts[rule] for rule in DROPS}
        names = ("queries", "retrieved", "kept", "short", "empty")
        return cls(dropped=dropped, seconds=seconds, **{name: counts[name] for name in names})

    def by_rule(self) -> list[dict[str, str | int | float]]:
        """Returns a record for each line of a table: what, how many items, the share of all."""
        lines = {f"dropped by {rule}": count for rule, count in self.dropped.items()}
        lines = {"retrieved": self.retrieved, **lines, "kept": self.kept}
        whole = max(self.retrieved, 1)
        return [{"what": n, "items": count, "share": count / whole} for n, count in lines.items()]

    def __str__(self) -> str:
        dropped = ", ".join(f"{count} {rule}" for rule, count in self.dropped.items())
        return (
            f"{self.kept} negatives for {self.queries} queries, {self.short} of which have fewer "
            f"than asked for and {self.empty} none; dropped: {dropped}; {self.seconds:.1f} s"
        )


@dataclass(frozen=True)
class MiningRules:
    """Checked arguments of `mine_hard_negatives`, which explains them.

    Raises:
        InputError: if one is out of range.

    Example:
        >>> MiningRules(rank_range=(20, 10))
        Traceback (most recent call last):
        ...
        tfrs_negatives.InputError: `rank_range`: expected two ranks, 1 <= low <= high.
        Received: (20, 10)
    """

    rank_range: tuple[int, int] = (1, 100)
    relative_margin: float | None = None
    num: int = 4
    choose: Choice = "top"
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            low, high = map(operator.index, self.rank_range)
        except (TypeError, ValueError):
            low, high = 0, 0
        if not 1 <= low <= high:
            raise bad_input("rank_range", "two ranks, 1 <= low <= high", self.rank_range)
        for name, least in (("num", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise bad_input(name, f"at least {least}", getattr(self, name))
        if self.relative_margin is not None and not math.isfinite(self.relative_margin):
            raise bad_input("relative_margin", "a finite number, or None", self.relative_margin)
        if self.choose not in get_args(Choice):
            raise bad_input("choose", f"one of {list(get_args(Choice))}", repr(self.choose))


class Found(NamedTuple):
    """What an index found for q queries, k columns each, the best first.

    Attributes:
        scores: [q, k] float32, -inf in a column without an item.
        rows: [q, k] of the model's catalogue, `MISSING` in a column without an item.
        is_positive: [q, k] bool, whether the query has chosen the item.
        may_be_negative: [q, k] bool, whether the item is in the catalogue of negatives.
        positive_score: [q] float32.
        query_keys: [q] int64.
    """

    scores: np.ndarray
    rows: np.ndarray
    is_positive: np.ndarray
    may_be_negative: np.ndarray
    positive_score: np.ndarray
    query_keys: np.ndarray


def apply_rules(found: Found, rules: MiningRules) -> tuple[np.ndarray, np.ndarray, Counter[str]]:
    """Decides which of the items that were found become negatives.

    Args:
        found: k items of each of q queries.
        rules: which to choose.

    Returns:
        Whether each item is chosen, [q, k] bool; its rank, [q, k] int64, of use where it is; and
        how many were "retrieved", "kept", and dropped by each rule.
    """
    low, high = rules.rank_range
    left = found.rows != MISSING
    ranks = np.cumsum(left & ~found.is_positive, axis=1)
    passes = {
        "positives": ~found.is_positive,
        "outside_catalogue": found.may_be_negative,
        "rank_window": (ranks >= low) & (ranks <= high),
        "margin": _keeps_its_distance(found, rules),
    }
    counts = Counter(retrieved=int(left.sum()))
    for rule, passed in passes.items():
        counts[rule] = int((left & ~passed).sum())
        left &= passed
    chosen = _pick(left, found.query_keys, rules)
    counts.update(surplus=int((left & ~chosen).sum()), kept=int(chosen.sum()))
    return chosen, ranks, counts


def _keeps_its_distance(found: Found, rules: MiningRules) -> np.ndarray:
    if rules.relative_margin is None:
        return np.ones_like(found.is_positive)
    positive = found.positive_score
    limit = positive - np.float32(rules.relative_margin) * np.abs(positive)
    return found.scores <= limit[:, None]


def _pick(left: np.ndarray, query_keys: np.ndarray, rules: MiningRules) -> np.ndarray:
    """Returns [q, k] bool: `num` of those that are left in each row, or all if there are fewer."""
    if rules.choose == "top":
        return left & (np.cumsum(left, axis=1) <= rules.num)
    # A generator for each query: what it draws does not depend on who is in the chunk.
    draws = np.stack(
        [
            np.random.default_rng((rules.seed, int(key) % 2**64)).random(left.shape[1])
            for key in query_keys
        ]
    )
    first = np.argsort(np.where(left, draws, np.inf), axis=1)[:, : rules.num]
    chosen = np.zeros_like(left)
    np.put_along_axis(chosen, first, True, axis=1)
    return left & chosen
