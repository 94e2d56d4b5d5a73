"""Which items may be in an answer: what is excluded, what alone is allowed, which groups.

    query vectors, lists of ids -> rows of the lists -> candidates that may be -> the k best -> ids

It is one graph for an index in memory and for an export. An answer is that of a brute-force search
among the items that the filters leave, at the recall of the search: what a list takes away is
fetched in addition, and a query that still comes up short is answered by an exact pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfrs_negatives.data.catalogue import find_sorted
from tfrs_negatives.data.ids import to_keys
from tfrs_negatives.index.search.backends import Backend, ExactSearch, ask_the_finite
from tfrs_negatives.model.top_k import MISSING, best_columns

_NO_ROW = np.iinfo(np.int32).max
"""Stands behind the rows of a list: no row, so that a list is never empty."""

_GROUP_RESERVE = 1.5
"""Candidates fetched for each one expected to be of an allowed group."""

_DEEPEST_SHARE = 50
"""A query that would need more than 1/50 of the corpus as candidates is answered exactly."""


@dataclass(frozen=True)
class Groups:
    """The group of every item, from an integer or string column.

    Attributes:
        name: of the column.
        values: [N], the value of each item.
    """

    name: str
    values: np.ndarray

    @property
    def padding(self) -> int | str:
        """What fills up a list of groups that is shorter than others; it names no group."""
        return "" if self.values.dtype.kind == "U" else int(np.iinfo(np.int64).min)


class _Lists(NamedTuple):
    """The rows [B, E] that each query excludes, and the groups [B, groups] it allows."""

    exclude: tf.Tensor
    is_allowed: tf.Tensor | None

    def of(self, queries: slice) -> _Lists:
        allowed = None if self.is_allowed is None else self.is_allowed[queries]
        return _Lists(self.exclude[queries], allowed)


class FilteredSearch(tf.Module):
    """Finds the best rows among those that filters leave.

    Args:
        backend: finds the best rows of all.
        group_codes: [N] int32, the number of each item's group, or None.
        num_groups: how many there are.
    """

    def __init__(
        self, backend: Backend, group_codes: np.ndarray | None = None, *, num_groups: int = 0
    ) -> None:
        super().__init__()
        self.backend = backend
        self._num_groups = num_groups
        if group_codes is not None:
            self._codes = tf.Variable(group_codes, trainable=False, name="group_codes")
            sizes = np.bincount(group_codes, minlength=num_groups).astype(np.float32)
            self._shares = tf.Variable(sizes / len(group_codes), trainable=False, name="shares")

    def search(
        self,
        queries: tf.Tensor,
        k: tf.Tensor,
        *,
        exclude: tf.Tensor | None = None,
        allow: tf.Tensor | None = None,
        groups: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Finds the best rows of each query.

        Args:
            queries: [B, D] float32.
            k: scalar int32, at most the number of items.
            exclude: [B, E] int32 rows, -1 for none; all three may be [1, ...], for all queries.
            allow: [B, A] int32 rows, -1 for none.
            groups: [B, G] int32 numbers of groups, -1 for none.

        Returns:
            [B, k] float32 scores, falling, and [B, k] int32 rows; -inf and -1 without an item.
        """
        if exclude is None and allow is None and groups is None:
            return self.backend.search(queries, k)
        lists = self._lists(tf.shape(queries)[0], exclude, groups)
        if allow is not None:
            return ask_the_finite(queries, lambda usable: self._among(usable, k, allow, lists))
        is_exact = isinstance(self.backend, ExactSearch)
        find = self._exact if is_exact else self._fetched
        return ask_the_finite(queries, lambda usable: find(usable, k, lists))

    def _lists(
        self, batch: tf.Tensor, exclude: tf.Tensor | None, groups: tf.Tensor | None
    ) -> _Lists:
        exclude = tf.zeros([1, 0], tf.int32) if exclude is None else exclude
        exclude = tf.broadcast_to(exclude, [batch, tf.shape(exclude)[1]])
        if groups is None:
            return _Lists(exclude, None)
        allowed = is_in(tf.range(self._num_groups)[None, :], groups)
        return _Lists(exclude, tf.broadcast_to(allowed, [batch, self._num_groups]))

    def _keep(self, rows: tf.Tensor, lists: _Lists) -> tf.Tensor:
        # [B, C] bool, for rows [B, C].
        keep = (rows != MISSING) & ~is_in(rows, lists.exclude)
        if lists.is_allowed is None:
            return keep
        codes = tf.gather(self._codes, tf.maximum(rows, 0))
        return keep & tf.gather(lists.is_allowed, codes, batch_dims=1)

    def _exact(
        self, queries: tf.Tensor, k: tf.Tensor, lists: _Lists
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """All scores, without those that may not be: [B, N] at once."""
        scores = tf.matmul(queries, self.backend.vectors(), transpose_b=True)
        if lists.is_allowed is not None:
            allowed = tf.gather(lists.is_allowed, self._codes, axis=1)
            scores = tf.where(allowed, scores, -math.inf)
        place = tf.where(lists.exclude != MISSING)
        row = tf.cast(tf.gather_nd(lists.exclude, place), tf.int64)
        cells = tf.stack([place[:, 0], row], axis=1)
        gone = tf.fill([tf.shape(cells)[0]], -math.inf)
        return best_columns(tf.tensor_scatter_nd_update(scores, cells, gone), k)

    def _fetched(
        self, queries: tf.Tensor, k: tf.Tensor, lists: _Lists
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """As many candidates as will leave k; what comes up short is searched exactly."""
        depth = self._depth(k, lists)
        scores, rows = self.backend.search(queries, depth)
        scores = tf.where(self._keep(rows, lists), scores, -math.inf)
        scores, rows = best_columns(scores, k, rows)
        is_short = tf.reduce_any(tf.math.is_inf(scores), axis=1)
        return tf.cond(
            tf.reduce_any(is_short),
            lambda: self._complete(queries, k, lists, (scores, rows, is_short)),
            lambda: (scores, rows),
        )

    def _depth(self, k: tf.Tensor, lists: _Lists) -> tf.Tensor:
        taken = tf.reduce_sum(tf.cast(lists.exclude != MISSING, tf.int32), axis=1)
        num_items = self.backend.num_items
        if lists.is_allowed is None:
            return tf.minimum(k + tf.reduce_max(tf.concat([taken, [0]], 0)), num_items)
        share = tf.linalg.matvec(tf.cast(lists.is_allowed, tf.float32), self._shares)
        wanted = _GROUP_RESERVE * tf.cast(k + taken, tf.float32) / tf.maximum(share, 1e-9)
        limit = tf.maximum(4 * k, num_items // _DEEPEST_SHARE)
        # Queries that want more than the limit are left to the exact pass.
        in_reach = tf.where(wanted <= tf.cast(limit, tf.float32), wanted, 0.0)
        deepest = tf.cast(tf.reduce_max(tf.concat([in_reach, [0.0]], 0)), tf.int32)
        return tf.minimum(tf.maximum(deepest, k), num_items)

    def _complete(
        self,
        queries: tf.Tensor,
        k: tf.Tensor,
        lists: _Lists,
        so_far: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
    ) -> tuple[tf.Tensor, tf.Tensor]:
        scores, rows, is_short = so_far

        # One query at a time: the scores of a whole batch against all items may not fit.
        def search_one(place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            one = slice(place, place + 1)
            best = self._exact(queries[one], k, lists.of(one))
            return best[0][0], best[1][0]

        places = tf.cast(tf.where(is_short)[:, 0], tf.int32)
        found = _map(search_one, places)
        where = places[:, None]
        return (
            tf.tensor_scatter_nd_update(scores, where, found[0]),
            tf.tensor_scatter_nd_update(rows, where, found[1]),
        )

    def _among(
        self, queries: tf.Tensor, k: tf.Tensor, allow: tf.Tensor, lists: _Lists
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Scores of the allowed rows alone: of all queries at once where they share a list."""

        def search_one(place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            one = slice(place, place + 1)
            scores, rows = self._of_list(queries[one], k, allow[place], lists.of(one))
            return scores[0], rows[0]

        return tf.cond(
            tf.shape(allow)[0] == 1,
            lambda: self._of_list(queries, k, allow[0], lists),
            lambda: _map(search_one, tf.range(tf.shape(queries)[0])),
        )

    def _of_list(
        self, queries: tf.Tensor, k: tf.Tensor, allow: tf.Tensor, lists: _Lists
    ) -> tuple[tf.Tensor, tf.Tensor]:
        # In the order of the catalogue, so that equal scores keep it; an item counts once.
        allow = tf.sort(allow)
        again = tf.concat([[False], allow[1:] == allow[:-1]], axis=0)[: tf.size(allow)]
        vectors = tf.gather(self.backend.vectors(), tf.maximum(allow, 0))
        scores = tf.matmul(queries, vectors, transpose_b=True)
        rows = tf.broadcast_to(allow, tf.shape(scores))
        keep = self._keep(rows, lists) & ~again
        return best_columns(tf.where(keep, scores, -math.inf), k, allow)


def _map(function: Callable[[tf.Tensor], Any], places: tf.Tensor) -> Any:
    signature = (tf.TensorSpec([None], tf.float32), tf.TensorSpec([None], tf.int32))
    return tf.map_fn(function, places, fn_output_signature=signature)


def is_in(values: tf.Tensor, lists: tf.Tensor) -> tf.Tensor:
    """Returns whether each value is in the list of its row.

    Args:
        values: [B, C] int32, or [1, C] for all lists.
        lists: [B, W] int32 in any order, -1 for none; W may be 0.

    Returns:
        [B, C] bool.

    Example:
        >>> is_in(tf.constant([[1, 2, 3], [1, 2, 3]]), tf.constant([[3, -1], [2, 2]])).numpy()
        array([[False, False,  True],
               [False,  True, False]])
    """
    batch = tf.maximum(tf.shape(values)[0], tf.shape(lists)[0])
    values = tf.broadcast_to(values, [batch, tf.shape(values)[1]])
    ends = tf.fill([batch, 1], _NO_ROW)
    lists = tf.broadcast_to(lists, [batch, tf.shape(lists)[1]])
    table = tf.sort(tf.concat([lists, ends], axis=1), axis=1)
    place = tf.searchsorted(table, values)
    return (tf.gather(table, place, batch_dims=1) == values) & (values != MISSING)


class Numbering(tf.Module):
    """From ids or values to numbers: a sorted table in variables, as a SavedModel keeps it.

    Args:
        keys: [M] int64, each once, in the order of their numbers.
    """

    def __init__(self, keys: np.ndarray, *, name: str) -> None:
        super().__init__()
        order = np.argsort(keys, kind="stable")
        self._sorted = tf.Variable(keys[order], trainable=False, name=f"{name}_keys")
        self._number = tf.Variable(order.astype(np.int32), trainable=False, name=f"{name}_numbers")

    def of(self, values: tf.Tensor) -> tf.Tensor:
        """Returns [...] int32 numbers of ids or values [...], -1 for those it does not know."""
        keys = to_keys(values)
        place, found = find_sorted(self._sorted, tf.reshape(keys, [-1]))
        numbers = tf.where(found, tf.gather(self._number, place), MISSING)
        return tf.reshape(numbers, tf.shape(keys))
