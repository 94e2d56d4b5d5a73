"""Which items were changed since an index was built: written by one thread, read by any."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.index.arguments import check_lists
from tfrs_negatives.index.live.growing import GrowingArray
from tfrs_negatives.index.search.merging import Answer, Lookup

_CELLS_AT_ONCE = 2**24
"""Scores that a search of the changed items may hold in memory, 64 MB of float32."""

_DEAD_ROWS = 1024
"""Rows of replaced and deleted vectors that are kept before any are thrown out."""

_NO_GROUP: dict[str, int | str] = {"i": EMPTY_ID, "U": "\uffff"}
"""What stands for "in no group" beside groups of each kind."""


class Changes(NamedTuple):
    """By what an index that changes differs from the one behind it.

    Attributes:
        ids: [m] the new and changed items, in the order in which they came.
        vectors: [m, D] float32.
        groups: [m] the group of each, None where no item was given one.
        deleted: [d] items of the index behind that are not to be found any more.
    """

    ids: np.ndarray
    vectors: np.ndarray
    groups: np.ndarray | None
    deleted: np.ndarray


@dataclass(frozen=True)
class Snapshot:
    """The changes at one moment. What it holds is never altered.

    Attributes:
        padding: the id that stands for "no item".
        ids: [n] one for each vector that was ever given.
        vectors: [n, D] float32.
        groups: [n], or None where no item was given one.
        alive: [n] bool, False for a vector that was replaced or deleted.
        hidden: [h] the ids of the index behind that were replaced or deleted.
        num_live: how many rows are alive.
        num_new: how many of these the index behind does not hold.
    """

    padding: int | str
    ids: np.ndarray
    vectors: np.ndarray
    groups: np.ndarray | None
    alive: np.ndarray
    hidden: np.ndarray
    num_live: int = 0
    num_new: int = 0

    def search(self, queries: np.ndarray, k: int, mask: np.ndarray) -> Answer:
        """Returns at most k columns, the best of the rows that a mask [B or 1, n] leaves."""
        k = min(k, len(self.ids))
        scores, rows = np.empty([len(queries), k], np.float32), np.empty([len(queries), k], int)
        step = max(1, _CELLS_AT_ONCE // max(len(self.ids), 1))
        for start in range(0, len(queries) if k else 0, step):
            part = slice(start, start + step)
            products = queries[part] @ self.vectors.T
            kept = np.where(mask if len(mask) == 1 else mask[part], products, np.float32(-math.inf))
            # Of equal scores the earlier row comes first, which a partition does not promise.
            best = tf.math.top_k(kept, k)
            scores[part], rows[part] = best.values, best.indices
        return scores, self.ids[rows]

    def mask(self, excluded: np.ndarray | None, allowed: np.ndarray | None) -> np.ndarray:
        """Returns [B or 1, n] bool: the rows that checked lists of ids leave."""
        mask = self.alive[None]
        if excluded is not None:
            mask = mask & ~self._id_lookup.in_lists(excluded)
        if allowed is not None:
            mask = mask & self._id_lookup.in_lists(allowed)
        return mask

    def group_mask(self, groups: Any, num_queries: int) -> np.ndarray:
        """Returns [B or 1, n] bool: the rows of some groups, one list or a list for each query."""
        if self.groups is None:
            return np.zeros([1, len(self.ids)], bool)
        padding = _NO_GROUP[self.groups.dtype.kind]
        lists = check_lists(groups, num_queries, argument="allow_groups", padding=padding)
        assert lists is not None  # noqa: S101
        return self._group_lookup.in_lists(lists)

    @cached_property
    def _id_lookup(self) -> Lookup:
        return Lookup(self.ids, padding=self.padding)

    @cached_property
    def _group_lookup(self) -> Lookup:
        assert self.groups is not None  # noqa: S101
        return Lookup(self.groups, padding=_NO_GROUP[self.groups.dtype.kind])


class ChangeLog:
    """Takes changes, one thread at a time, and shows them as a snapshot that is exchanged at once.

    A vector is never overwritten, as somebody may be reading it: a new row is appended and the old
    one marked as dead in the next snapshot.

    Args:
        width: D.
        padding: the id of a column without an item; ids are strings where it is one.
        capacity: how many ids may be changed.

    Example:
        >>> log = ChangeLog(2, padding=-1, capacity=10)
        >>> log.upsert(np.array([7]), np.ones([1, 2], np.float32), None, np.array([True]))
        >>> log.snapshot.ids.tolist(), log.snapshot.hidden.tolist()
        ([7], [7])
    """

    def __init__(self, width: int, *, padding: int | str, capacity: int) -> None:
        no_ids = np.zeros([0], str if isinstance(padding, str) else np.int64)
        no_vectors = np.zeros([0, width], np.float32)
        self._capacity = capacity
        self._row_of: dict[int | str, int] = {}
        self._hidden_ids: set[int | str] = set()
        self._num_new = 0
        self._ids, self._vectors = GrowingArray(no_ids), GrowingArray(no_vectors)
        self._groups: GrowingArray | None = None
        self._hidden = GrowingArray(no_ids)
        self.snapshot = Snapshot(padding, no_ids, no_vectors, None, np.zeros([0], bool), no_ids)

    def upsert(
        self, ids: np.ndarray, vectors: np.ndarray, groups: Any, in_frozen: np.ndarray
    ) -> None:
        """Takes ids [m], vectors [m, D], groups [m] (each may be None) or None, and which ids the
        index behind holds.
        """
        self._check_room(ids)
        rows_of_groups = self._checked_groups(groups, len(ids))
        alive = self._retire(ids, in_frozen)
        if len(alive) > 2 * len(self._row_of) + _DEAD_ROWS:
            alive = self._throw_out(alive)
        self._row_of.update((item, len(alive) + row) for row, item in enumerate(ids.tolist()))
        self._ids.append(ids)
        self._vectors.append(vectors)
        if self._groups is not None and rows_of_groups is not None:
            self._groups.append(rows_of_groups)
        self._num_new += int((~in_frozen).sum())
        self._publish(np.concatenate([alive, np.ones(len(ids), bool)]))

    def delete(self, ids: np.ndarray, in_frozen: np.ndarray) -> None:
        """Takes ids [m] and which of them the index behind holds."""
        unknown = [
            item
            for item, behind in zip(ids.tolist(), in_frozen, strict=True)
            if item not in self._row_of and (not behind or item in self._hidden_ids)
        ]
        if unknown:
            received = f"{len(unknown)} unknown, the first is {unknown[0]!r}"
            raise bad_input("ids", "items that the index holds", received)
        self._check_room(ids)
        self._publish(self._retire(ids, in_frozen))

    def _check_room(self, ids: np.ndarray) -> None:
        known = len(self._hidden_ids) + self._num_new
        more = sum(i not in self._row_of and i not in self._hidden_ids for i in ids.tolist())
        if known + more > self._capacity:
            expected = f"at most {self._capacity} changed items; build the index anew"
            raise bad_input("ids", expected, f"{more} more than the {known} changed so far")

    def _checked_groups(self, groups: Any, count: int) -> np.ndarray | None:
        """Returns [count] groups; makes the column with the first groups that are given."""
        if groups is None and self._groups is None:
            return None
        kind = _kind_of(groups) if self._groups is None else self._groups.view().dtype.kind
        if groups is None:
            return np.full([count], _NO_GROUP[kind])
        if np.ndim(groups) == 1:
            groups = [_NO_GROUP[kind] if group is None else group for group in groups]
        lists = check_lists(groups, -1, argument="groups", padding=_NO_GROUP[kind])
        assert lists is not None  # noqa: S101
        if lists.shape != (1, count):
            raise bad_input("groups", f"{count} groups, one per id", f"{lists.shape[-1]}")
        if self._groups is None:
            self._groups = GrowingArray(np.full([len(self._ids)], _NO_GROUP[kind]))
        return lists[0].astype(str) if kind == "U" else lists[0]

    def _retire(self, ids: np.ndarray, in_frozen: np.ndarray) -> np.ndarray:
        """Makes sure that no vector of these ids is found any more; returns which rows live."""
        alive = self.snapshot.alive.copy()
        hide = []
        for item, behind in zip(ids.tolist(), in_frozen.tolist(), strict=True):
            row = self._row_of.pop(item, None)
            if row is not None:
                alive[row] = False
                self._num_new -= not behind
            if behind and item not in self._hidden_ids:
                hide.append(item)
        self._hidden_ids.update(hide)
        self._hidden.append(np.array(hide, ids.dtype))
        return alive

    def _throw_out(self, alive: np.ndarray) -> np.ndarray:
        # Into new arrays: the old ones belong to the readers of earlier snapshots.
        self._ids = GrowingArray(self._ids.view()[alive])
        self._vectors = GrowingArray(self._vectors.view()[alive])
        if self._groups is not None:
            self._groups = GrowingArray(self._groups.view()[alive])
        self._row_of = {item: row for row, item in enumerate(self._ids.view().tolist())}
        return np.ones(len(self._ids), bool)

    def _publish(self, alive: np.ndarray) -> None:
        self.snapshot = Snapshot(
            self.snapshot.padding,
            self._ids.view(),
            self._vectors.view(),
            None if self._groups is None else self._groups.view(),
            alive,
            self._hidden.view(),
            num_live=len(self._row_of),
            num_new=self._num_new,
        )


def _kind_of(groups: Any) -> str:
    given = [group for group in groups if group is not None] if np.ndim(groups) == 1 else groups
    kind = np.asarray(given).dtype.kind
    return "i" if kind in "iu" else "U"
