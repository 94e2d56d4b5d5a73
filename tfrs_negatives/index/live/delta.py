"""New, changed and deleted items in front of an index that cannot change.

What was changed is written by one thread and read by any: a search takes all of it at one moment.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.index.live.arrays import GrowingArray, Lookup
from tfrs_negatives.index.retriever import (
    Asked,
    Nature,
    Retriever,
    check_item_ids,
    check_lists,
    check_upsert,
    is_positive_integer,
)
from tfrs_negatives.model.top_k import (
    Answer,
    best_of,
    in_parts,
    merge_answers,
    queries_at_once,
)

_DEAD_ROWS = 1024
"""Rows of replaced and deleted vectors that are kept before any are thrown out."""

_NO_GROUP: dict[str, int | str] = {"i": EMPTY_ID, "U": ""}
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
class ChangedItems:
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

    def search(self, queries: np.ndarray, asked: Asked) -> Answer:
        """Returns at most k columns, the best of the rows that are alive and allowed."""
        mask, k = self._mask(asked), min(asked.k, len(self.ids))

        def search_part(part: slice) -> Answer:
            kept = mask if len(mask) == 1 else mask[part]
            products = queries[part] @ self.vectors.T
            return best_of(np.where(kept, products, np.float32(-math.inf)), k)

        scores, rows = in_parts(search_part, len(queries), queries_at_once(len(self.ids)))
        return scores, self.ids[rows]

    def _mask(self, asked: Asked) -> np.ndarray:
        """Returns [B or 1, n] bool: the rows that the lists leave."""
        mask = self.alive[None]
        if asked.exclude is not None:
            mask = mask & ~self._id_lookup.in_lists(asked.exclude)
        if asked.allow is not None:
            mask = mask & self._id_lookup.in_lists(asked.allow)
        if asked.allow_groups is not None:
            mask = mask & self._group_lookup.in_lists(asked.allow_groups)
        return mask

    @cached_property
    def _id_lookup(self) -> Lookup:
        return Lookup(self.ids, padding=self.padding)

    @cached_property
    def _group_lookup(self) -> Lookup:
        groups = np.full(len(self.ids), _NO_GROUP["i"]) if self.groups is None else self.groups
        return Lookup(groups, padding=_NO_GROUP[groups.dtype.kind])


class ChangeLog:
    """Takes changes, one thread at a time, and shows them as a snapshot that is exchanged at once.

    A vector is never overwritten, as somebody may be reading it: a new row is appended and the old
    one marked as dead in the next snapshot.

    Args:
        nature: of the index behind.
        capacity: how many ids may be changed.

    Example:
        >>> log = ChangeLog(Nature(2, -1, None, {}), capacity=10)
        >>> log.upsert(np.array([7]), np.ones([1, 2], np.float32), None, np.array([True]))
        >>> log.changed.ids.tolist(), log.changed.hidden.tolist()
        ([7], [7])
    """

    def __init__(self, nature: Nature, *, capacity: int) -> None:
        padding = nature.padding_id
        no_ids = np.zeros([0], str if isinstance(padding, str) else np.int64)
        no_vectors = np.zeros([0, nature.width], np.float32)
        self._capacity = capacity
        self._group_padding = nature.group_padding
        self._row_of: dict[int | str, int] = {}
        self._hidden_ids: set[int | str] = set()
        self._num_new = 0
        self._ids, self._vectors = GrowingArray(no_ids), GrowingArray(no_vectors)
        self._groups: GrowingArray | None = None
        self._hidden = GrowingArray(no_ids)
        self.changed = ChangedItems(padding, no_ids, no_vectors, None, np.zeros([0], bool), no_ids)

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
        if self._group_padding is None:
            # The index behind has no groups, but one that these changes are made to again may.
            self._group_padding = _NO_GROUP[_kind_of(groups)]
        nothing = self._group_padding
        if groups is None:
            return np.full([count], nothing)
        if np.ndim(groups) == 1:
            groups = [nothing if group is None else group for group in groups]
        lists = check_lists(groups, -1, argument="groups", padding=nothing)
        assert lists is not None  # noqa: S101
        if lists.shape != (1, count):
            raise bad_input("groups", f"{count} groups, one per id", f"{lists.shape[-1]}")
        if self._groups is None:
            self._groups = GrowingArray(np.full([len(self._ids)], nothing))
        return lists[0].astype(str) if isinstance(nothing, str) else lists[0]

    def _retire(self, ids: np.ndarray, in_frozen: np.ndarray) -> np.ndarray:
        """Makes sure that no vector of these ids is found any more; returns which rows live."""
        alive = self.changed.alive.copy()
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
        self.changed = ChangedItems(
            self.changed.padding,
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


class DeltaIndex(Retriever):
    """An index that can be changed: a small exact one in front of a large frozen one.

    A new or changed item is found as soon as `upsert` returns, and a deleted one is not found any
    more as soon as `delete` returns. Items that were not changed are found as the frozen index
    finds them. Any number of threads may search while others change the index: a search sees all
    of a change or nothing of it.

    Args:
        frozen: the index behind.
        capacity: how many of its items may be changed or deleted, and new ones added, together.
            The work of a query grows with it. When it is used up, build the index anew.

    Raises:
        InputError: if the capacity is not positive.

    Example:
        >>> from types import SimpleNamespace
        >>> import tensorflow as tf
        >>> from tfrs_negatives.data.catalogue import ItemCatalogue
        >>> from tfrs_negatives.index.build.build import build_index
        >>> vectors = tf.constant([[3.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
        >>> model = SimpleNamespace(
        ...     items=ItemCatalogue([10, 20, 30], {"row": [0, 1, 2]}),
        ...     similarity="dot",
        ...     query_signature={"user": tf.TensorSpec([None], tf.int64)},
        ...     query_vectors=lambda features: tf.gather(tf.eye(2), features["user"]),
        ...     item_vectors=lambda features: tf.gather(vectors, features["row"]),
        ... )
        >>> index = DeltaIndex(build_index(model))
        >>> index.upsert([40], [[9.0, 9.0]])
        >>> index.delete([10])
        >>> index.top_k({"user": [0]}, k=3)[1].tolist()
        [[40, 30, 20]]
    """

    def __init__(self, frozen: Retriever, *, capacity: int = 10_000) -> None:
        if not is_positive_integer(capacity):
            raise bad_input("capacity", "a positive integer", repr(capacity))
        self._behind = frozen
        self._capacity = capacity
        self._writing = threading.Lock()
        self._log = ChangeLog(frozen.nature, capacity=capacity)

    def __len__(self) -> int:
        changed = self._log.changed
        return len(self._behind) - len(changed.hidden) + changed.num_live

    @property
    def behind(self) -> Retriever:
        """The index that cannot change."""
        return self._behind

    @property
    def capacity(self) -> int:
        """How many items may differ from the index behind."""
        return self._capacity

    @property
    def num_upserted(self) -> int:
        """How many items are new or changed."""
        return self._log.changed.num_live

    @property
    def num_deleted(self) -> int:
        """How many items of the index behind were deleted."""
        changed = self._log.changed
        return len(changed.hidden) - (changed.num_live - changed.num_new)

    def contains(self, ids: Any) -> np.ndarray:
        """Returns [m] bool: whether each of some ids is an item that it holds."""
        changed, behind = self._log.changed, self._behind.contains(ids)
        ids = np.asarray(ids)
        in_front = np.isin(ids, changed.ids[changed.alive])
        return in_front | (behind & ~np.isin(ids, changed.hidden))

    def changes(self) -> Changes:
        """Returns a copy of all changes at one moment, to be made again to another index."""
        changed = self._log.changed
        alive, groups = changed.alive, changed.groups
        return Changes(
            changed.ids[alive],
            changed.vectors[alive],
            None if groups is None else groups[alive],
            changed.hidden[~np.isin(changed.hidden, changed.ids[alive])],
        )

    def answer(self, vectors: np.ndarray, asked: Asked) -> Answer:
        """Finds the best items for checked query vectors [B, D] float32; see `top_k`."""
        changed = self._log.changed
        found = self._behind.answer(
            vectors,
            asked._replace(
                k=min(asked.k, len(self._behind)),
                exclude=_with_hidden(asked.exclude, changed.hidden),
            ),
        )
        return merge_answers([found, changed.search(vectors, asked)], asked.k, self.padding_id)

    def upsert(self, ids: Any, vectors: Any, *, groups: Any = None) -> None:
        """Adds items, or gives items another vector. All are found at once, or none.

        Args:
            ids: [m] integers or strings, as the index has, each once.
            vectors: [m, D] of the retrieval space, as `embed_item` gives them.
            groups: [m] integers or strings, the group of each item, for `allow_groups`; None for an
                item in no group. Without it no item is in one, whatever group it had.

        Raises:
            InputError: if an argument has another shape or kind, a number is not finite, or the
                capacity is used up. Then nothing has changed.
        """
        ids, vectors = check_upsert(ids, vectors, width=self.width, padding=self.padding_id)
        with self._writing:
            self._log.upsert(ids, vectors, groups, self._behind.contains(ids))

    def delete(self, ids: Any) -> None:
        """Deletes items. None of them is found any more, or an error is raised and all stay.

        Args:
            ids: [m] of items that the index holds, each once.

        Raises:
            InputError: if an id is unknown or of another kind, or the capacity is used up.
        """
        ids = check_item_ids(ids, self.padding_id)
        with self._writing:
            self._log.delete(ids, self._behind.contains(ids))


def _with_hidden(excluded: np.ndarray | None, hidden: np.ndarray) -> np.ndarray | None:
    if excluded is None or not len(hidden):
        return hidden[None] if len(hidden) else excluded
    more = np.broadcast_to(hidden, [len(excluded), len(hidden)])
    return np.concatenate([excluded, more], axis=1)
