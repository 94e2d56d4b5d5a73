"""Which items each query has: the one structure of pairs, for a log, a test part or a history."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class QueryItems(NamedTuple):
    """P pairs of a query and what it has, those of one query side by side.

    Attributes:
        queries: [P] int64, query numbers, ascending.
        rows: [P] int64, rows of a catalogue, or of the log that the pairs are the events of.

    Example:
        >>> chosen = QueryItems.distinct(np.array([2, 0, 2, 2]), np.array([5, 7, 4, 5]))
        >>> chosen.queries.tolist(), chosen.rows.tolist()
        ([0, 2, 2], [7, 4, 5])
        >>> chosen.of(np.array([2, 1]))
        QueryItems(queries=array([0, 0]), rows=array([4, 5]))
        >>> chosen.holds(np.array([[0], [2]]), np.array([[7, -1], [7, 5]])).tolist()
        [[True, False], [False, True]]
    """

    queries: np.ndarray
    rows: np.ndarray

    @classmethod
    def distinct(cls, queries: np.ndarray, rows: np.ndarray) -> QueryItems:
        """Takes each pair of [E] query numbers and rows once, sorted by query and then by row."""
        beyond = rows.max(initial=0) + 1
        return cls(*np.divmod(np.unique(queries.astype(np.int64) * beyond + rows), beyond))

    def of(self, chunk: np.ndarray) -> QueryItems:
        """Returns the pairs of some queries [q], which are numbered from 0 in that order."""
        first, last = np.searchsorted(self.queries, [chunk, chunk + 1])
        counts = last - first
        places = np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)
        return QueryItems(np.repeat(np.arange(len(chunk)), counts), self.rows[places])

    def where(self, kept: np.ndarray) -> QueryItems:
        """Returns the pairs for which [P] bool says so."""
        return QueryItems(self.queries[kept], self.rows[kept])

    def holds(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Says of pairs whether they are among these, which have to be `distinct`.

        Args:
            queries: [...] query numbers.
            rows: [...] of a shape that goes with it; a negative one is no item.

        Returns:
            [...] bool.
        """
        beyond = max(self.rows.max(initial=0), rows.max(initial=0)) + 1
        # One more than any pair, so that there always is a place.
        codes = np.append(self.queries * beyond + self.rows, np.iinfo(np.int64).max)
        wanted = queries * beyond + rows
        return (codes[np.searchsorted(codes, wanted)] == wanted) & (rows >= 0)
