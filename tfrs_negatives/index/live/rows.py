"""Items that change under a search: ids, vectors and ScaNN's own rows kept in step.

A row is the place of an item, 0 to N - 1, the same here and in ScaNN. An item that is deleted
leaves its row to the last one. Nothing here is safe beside a change: `LiveIndex` holds the lock.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.index.live.arrays import GrowingArray, Lookup
from tfrs_negatives.index.search.backends import (
    SMALLEST_TREE,
    ScannSettings,
    build_tree,
    scann_ops,
)
from tfrs_negatives.model.top_k import (
    MISSING,
    Answer,
    best_of,
    in_parts,
    merge_answers,
    queries_at_once,
)

_DEEPEST_SHARE = 50
"""A search that would need more than 1/50 of the items as candidates is exact."""

_NUM_FRESH = 2048
"""Items that every query scores: those that came last, wherever ScaNN's leaves have put them."""

_BATCH = 256
"""Vectors that ScaNN takes in at once, and queries that one of its threads answers at once."""


class LiveRows:
    """Finds the items of the highest inner product while items come and go.

    Args:
        ids: [N] integers or strings, each once.
        vectors: [N, D] float32.
        settings: of ScaNN; None for the rule of thumb. Below 1000 items all are scored.

    Attributes:
        ids: [N], of the rows.
        vectors: [N, D], of the rows.

    Example:
        >>> rows = LiveRows(np.array([7, 8]), np.array([[1.0], [2.0]], np.float32))
        >>> rows.delete([7])
        >>> rows.search(np.array([[1.0]], np.float32), 2, None, None)[1].tolist()
        [[0, -1]]
    """

    def __init__(
        self, ids: np.ndarray, vectors: np.ndarray, settings: ScannSettings | None = None
    ) -> None:
        self._ids, self._vectors = GrowingArray(ids), GrowingArray(vectors)
        self._row_of = {item: row for row, item in enumerate(ids.tolist())}
        self._settings = settings or ScannSettings.rule_of_thumb(max(len(ids), 1))
        self._scann = _train(self.vectors, self._settings)
        # In the order in which they came; a dict is an ordered set.
        self._fresh_ids: dict[int | str, None] = {}
        self._fresh: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> np.ndarray:
        """Returns [N], the ids of the rows."""
        return self._ids.view()

    @property
    def vectors(self) -> np.ndarray:
        """Returns [N, D], the vectors of the rows."""
        return self._vectors.view()

    @property
    def is_exact(self) -> bool:
        """Whether all items are scored, without ScaNN."""
        return self._scann is None

    def rows_of(self, lists: np.ndarray) -> np.ndarray:
        """Returns [...] rows of ids [...]; -1 for an id that is no item."""
        flat = [self._row_of.get(item, MISSING) for item in lists.ravel().tolist()]
        return np.array(flat, np.int64).reshape(lists.shape)

    def upsert(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Adds items [m] or exchanges their vectors [m, D]; each id once."""
        rows = [self._row_of.get(item) for item in ids.tolist()]
        if self._scann is not None:
            self._scann.upsert(rows, vectors, _BATCH)
        is_new = np.array([row is None for row in rows])
        self.vectors[[row for row in rows if row is not None]] = vectors[~is_new]
        first = len(self)
        self._row_of.update((i, first + place) for place, i in enumerate(ids[is_new].tolist()))
        self._ids.append(ids[is_new])
        self._vectors.append(vectors[is_new])
        for item in ids.tolist():
            self._fresh_ids.pop(item, None)
            self._fresh_ids[item] = None
        self._forget_old()

    def delete(self, ids: list[Any]) -> None:
        """Deletes items.

        Raises:
            InputError: if one is unknown; then nothing has changed.
        """
        unknown = [item for item in ids if item not in self._row_of]
        if unknown:
            received = f"{len(unknown)} unknown, the first is {unknown[0]!r}"
            raise bad_input("ids", "items that the index holds", received)
        rows = []
        for item in ids:
            row, last = self._row_of.pop(item), self.ids[-1].item()
            if last != item:
                self._row_of[last] = row
            self._ids.remove(row)
            self._vectors.remove(row)
            self._fresh_ids.pop(item, None)
            rows.append(row)
        if self._scann is not None:
            self._scann.delete(rows)  # in this order, each after the moves of those before
        self._forget_old()

    def _forget_old(self) -> None:
        if self._scann is None:
            self._fresh_ids.clear()
        while len(self._fresh_ids) > _NUM_FRESH:
            del self._fresh_ids[next(iter(self._fresh_ids))]
        self._fresh = None

    def _fresh_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rows [F] that came last and their vectors [F, D], gathered once a change."""
        fresh = self._fresh
        if fresh is None:
            rows = np.array([self._row_of[item] for item in self._fresh_ids], int)
            # Two readers may both do it: they put the same thing there.
            self._fresh = fresh = rows, self.vectors[rows]
        return fresh

    def search(
        self,
        queries: np.ndarray,
        k: int,
        excluded: np.ndarray | None,
        allowed: np.ndarray | None,
    ) -> Answer:
        """Finds the best rows of each query.

        Args:
            queries: [B, D] float32.
            k: the number of columns.
            excluded: [B or 1, E] rows that may not be found, -1 for none.
            allowed: [B or 1, A] rows of which alone the answer may consist.

        Returns:
            scores [B, k] float32, falling, and rows [B, k]; -inf and -1 without an item.
        """
        if allowed is not None:
            answer = self._among(queries, k, excluded, allowed)
        else:
            excluded = np.full([1, 0], MISSING) if excluded is None else excluded
            # Ids that are no items take nothing away.
            depth = k + int((excluded != MISSING).sum(axis=1).max(initial=0))
            if self._scann is None or depth * _DEEPEST_SHARE > len(self) or not len(queries):
                answer = self._exact(queries, k, excluded)
            else:
                answer = self._approximate(queries, k, depth, excluded)
        return answer

    def _exact(self, queries: np.ndarray, k: int, excluded: np.ndarray) -> Answer:
        excluded = np.broadcast_to(excluded, [len(queries), excluded.shape[1]])

        def search(part: slice) -> Answer:
            found, gone = queries[part] @ self.vectors.T, excluded[part]
            query, column = np.nonzero(gone != MISSING)
            found[query, gone[query, column]] = -math.inf
            return best_of(found, k)

        return in_parts(search, len(queries), queries_at_once(len(self)))

    def _among(
        self, queries: np.ndarray, k: int, excluded: np.ndarray | None, allowed: np.ndarray
    ) -> Answer:
        def search(part: slice) -> Answer:
            rows = np.unique(allowed[part] if len(allowed) > 1 else allowed)
            if excluded is not None:
                rows = rows[~np.isin(rows, excluded[part] if len(excluded) > 1 else excluded)]
            rows = rows[rows != MISSING]
            return best_of(queries[part] @ self.vectors[rows].T, k, rows)

        one_for_all = len(allowed) == 1 and (excluded is None or len(excluded) == 1)
        return in_parts(search, len(queries), max(len(queries), 1) if one_for_all else 1)

    def _approximate(self, queries: np.ndarray, k: int, depth: int, excluded: np.ndarray) -> Answer:
        """Asks ScaNN for as many as the lists may take away, and scores what came last."""
        gone = np.broadcast_to(excluded, [len(queries), excluded.shape[1]])
        fresh, vectors = self._fresh_rows()
        scores, rows = self._ask_scann(queries, depth)
        found = ~np.isnan(scores) & ~np.isin(rows, fresh)
        if gone.size:
            found &= [~np.isin(*pair) for pair in zip(rows, gone, strict=True)]
        of_scann = np.where(found, scores, np.float32(-math.inf)), rows
        of_fresh = _best(queries @ vectors.T, fresh, k, excluded)
        scores, rows = merge_answers([of_fresh, of_scann], k, MISSING)
        # Leaves that hold too few items leave columns empty.
        short = np.flatnonzero(rows[:, -1] == MISSING)
        if len(short):
            scores[short], rows[short] = self._exact(queries[short], k, gone[short])
        return scores, rows

    def _ask_scann(self, queries: np.ndarray, depth: int) -> Answer:
        leaves, reorder = (int(number) for number in self._settings.depth_of(depth))
        num_leaves = self._settings.num_leaves
        # Leaves of twice as many items in all, so that a large k is filled as a rule.
        leaves_for_k = 2 * depth * num_leaves // len(self) + 1
        rows, scores = self._scann.search_batched(
            queries,
            depth,
            min(max(reorder, depth), len(self)),
            min(max(leaves, leaves_for_k), num_leaves),
            len(queries) > _BATCH,
            _BATCH,
        )
        return scores, rows.astype(int)


def _best(scores: np.ndarray, rows: np.ndarray, k: int, excluded: np.ndarray) -> Answer:
    """Returns k columns, the best of scores [B, F] of rows [F] that are not excluded."""
    if excluded.size:
        named = Lookup(rows, padding=MISSING).in_lists(excluded)
        scores = np.where(named, np.float32(-math.inf), scores)
    return best_of(scores, k, rows)


def _train(vectors: np.ndarray, settings: ScannSettings) -> Any:
    """Returns ScaNN's handle, which changes; None where scoring all items is as fast."""
    if len(vectors) < SMALLEST_TREE or settings.num_leaves == 1:
        return None
    scann_ops()  # says what is missing where it is
    from scann.scann_ops.py import scann_ops_pybind

    builder = scann_ops_pybind.builder(vectors, settings.depths[0].k, "dot_product")
    return build_tree(builder, settings).searcher
