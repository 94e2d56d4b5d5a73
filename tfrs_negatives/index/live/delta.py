"""New, changed and deleted items in front of an index that cannot change."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.index.arguments import (
    check_item_ids,
    check_k,
    check_lists,
    check_upsert,
    check_vectors,
    is_positive_integer,
)
from tfrs_negatives.index.live.changes import ChangeLog, Changes, Snapshot
from tfrs_negatives.index.retriever import InFront, Retriever
from tfrs_negatives.index.search.merging import Answer, merge_answers


class DeltaIndex(InFront):
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
        self._frozen = frozen
        self._capacity = capacity
        self._writing = threading.Lock()
        self._log = ChangeLog(frozen.width, padding=frozen.padding_id, capacity=capacity)

    def __len__(self) -> int:
        return self._size_at(self._log.snapshot)

    def _size_at(self, snapshot: Snapshot) -> int:
        return len(self._frozen) - len(snapshot.hidden) + snapshot.num_live

    @property
    def frozen(self) -> Retriever:
        """The index behind."""
        return self._frozen

    @property
    def capacity(self) -> int:
        """How many items may differ from the index behind."""
        return self._capacity

    @property
    def num_upserted(self) -> int:
        """How many items are new or changed."""
        return self._log.snapshot.num_live

    @property
    def num_deleted(self) -> int:
        """How many items of the index behind were deleted."""
        snapshot = self._log.snapshot
        return len(snapshot.hidden) - (snapshot.num_live - snapshot.num_new)

    @property
    def _model_of(self) -> Retriever:
        return self._frozen

    def contains(self, ids: Any) -> np.ndarray:
        """Returns [m] bool: whether each of some ids is an item that it holds."""
        snapshot, behind = self._log.snapshot, self._frozen.contains(ids)
        ids = np.asarray(ids)
        in_front = np.isin(ids, snapshot.ids[snapshot.alive])
        return in_front | (behind & ~np.isin(ids, snapshot.hidden))

    def changes(self) -> Changes:
        """Returns a copy of all changes at one moment, to be made again to another index."""
        snapshot = self._log.snapshot
        alive, groups = snapshot.alive, snapshot.groups
        return Changes(
            snapshot.ids[alive],
            snapshot.vectors[alive],
            None if groups is None else groups[alive],
            snapshot.hidden[~np.isin(snapshot.hidden, snapshot.ids[alive])],
        )

    def search(
        self,
        vectors: Any,
        k: int,
        *,
        exclude: Any = None,
        allow: Any = None,
        allow_groups: Any = None,
    ) -> Answer:
        """Finds the best items for query vectors [B, D] of the retrieval space; see `top_k`."""
        snapshot, padding = self._log.snapshot, self.padding_id
        size = self._size_at(snapshot)
        k = check_k(k, size, f"at most the {size} items of the index")
        queries = check_vectors(vectors, self.width)
        number = len(queries)
        excluded = check_lists(exclude, number, argument="exclude", padding=padding)
        allowed = check_lists(allow, number, argument="allow", padding=padding)
        behind = self._frozen.search(
            queries,
            min(k, len(self._frozen)),
            exclude=_with_hidden(excluded, snapshot.hidden),
            allow=None if allowed is None else _one_or_each(allowed),
            allow_groups=allow_groups,
        )
        mask = snapshot.mask(excluded, allowed)
        if allow_groups is not None:
            mask = mask & snapshot.group_mask(allow_groups, number)
        return merge_answers([behind, snapshot.search(queries, k, mask)], k, padding)

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
            self._log.upsert(ids, vectors, groups, self._frozen.contains(ids))

    def delete(self, ids: Any) -> None:
        """Deletes items. None of them is found any more, or an error is raised and all stay.

        Args:
            ids: [m] of items that the index holds, each once.

        Raises:
            InputError: if an id is unknown or of another kind, or the capacity is used up.
        """
        ids = check_item_ids(ids, self.padding_id)
        with self._writing:
            self._log.delete(ids, self._frozen.contains(ids))


def _with_hidden(excluded: np.ndarray | None, hidden: np.ndarray) -> np.ndarray | None:
    if excluded is None:
        return hidden if len(hidden) else None
    more = np.broadcast_to(hidden, [len(excluded), len(hidden)])
    return _one_or_each(np.concatenate([excluded, more], axis=1))


def _one_or_each(lists: np.ndarray) -> np.ndarray:
    # As callers hand them in: one list for all queries has one dimension.
    return lists[0] if len(lists) == 1 else lists
