"""A mask of everything that the query of a row is known to have chosen, whatever proposed it."""

from __future__ import annotations

import base64
import math
import zlib
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.data.catalogue import ItemCatalogue, find_sorted
from tfrs_negatives.data.id_lists import History, query_column, query_keys_of_rows
from tfrs_negatives.data.ids import to_keys
from tfrs_negatives.step.records import Batch, Mask, Scored, is_per_row

TABLE_CELLS = 2**24
"""Queries times items up to which all cells are held, a byte each: some ten times as fast."""


class _Pairs(NamedTuple):
    """Who chose what: `codes` [P] are query row * N + item row, sorted; `query_keys` [Q] too."""

    query_key: str
    string_queries: bool
    query_keys: np.ndarray
    codes: np.ndarray


@part("mask")
class KnownPositives(Mask):
    """Drops a candidate that holds an item of the row's history, whatever its sampler.

        keep(i, j) = (query of i, id_j) is no pair of the history

    The query of a row is read from the batch, under the history's `query_key`. A query without
    history loses nothing, and neither does a candidate that is empty or not of the catalogue. The
    row's own positive is in its history as a rule, so its copies are dropped too, as
    `AccidentalHits` does: see there why that wants `correct="negatives"` or None.

    A pair costs 8 bytes and a query 16, however often the event repeats: 83 MB for 10 million
    events of 370 thousand queries, and 28 MB of text in the config. Candidates shared by all rows
    are grouped by item, and only the cells to drop are written; candidates of their own for each
    row are searched for in the table of pairs. Where queries times items are at most 16 million,
    all of them are held as well, a byte each, and the shared candidates are read off.

    Args:
        history: the log of E events that may be known in training, never the test part.
        items: the catalogue of N items.
        static_shapes: pad every history to the longest one, and give every tensor a shape that
            XLA (`jit_compile=True`) can compile. Without, memory follows the batch's own histories,
            and outside XLA it is faster. Where all cells are held it makes no difference.

    Raises:
        InputError: if the history has no `query_key`, an item that the catalogue does not have, or
            a query that is neither an integer nor a string; if a batch lacks the column, or has
            integers where the history has strings.

    Example:
        >>> from tfrs_negatives.data import Interactions
        >>> log = Interactions({"user": np.array(["u", "u"])}, np.array([7, 9]), query_key="user")
        >>> mask = KnownPositives(log, ItemCatalogue([7, 8, 9]))
        >>> mask.dropped_cells(tf.constant(["u", "new"]), tf.constant([9, 8, 7, 9])).numpy()
        array([[ True, False,  True,  True],
               [False, False, False, False]])

    Source: all positives of a query are left out in NGAME (Dahiya et al., WSDM 2023). The usual
        way, a search for each of the B x C pairs, costs more than twenty times as much
        (`benchmarks/known_positives`).
    """

    names_positives = True
    by_query = True

    def __init__(
        self, history: History, items: ItemCatalogue, *, static_shapes: bool = False
    ) -> None:
        self._set_up(_pairs_of(history, items), items, static_shapes)

    def _set_up(self, pairs: _Pairs, items: ItemCatalogue, static_shapes: bool) -> None:
        self.items, self.static_shapes = items, static_shapes
        self.query_key, self.string_queries = pairs.query_key, pairs.string_queries
        self.num_queries = len(pairs.query_keys)
        starts = np.searchsorted(pairs.codes, np.arange(self.num_queries + 1) * len(items))
        # One more query with no history, the row of those that are not known.
        starts = np.append(starts, len(pairs.codes))
        self.longest = int(np.diff(starts).max())
        order = np.argsort(items.keys, kind="stable")
        # Eager constants: a traced function captures them by reference instead of copying them.
        with tf.init_scope():
            self._starts = tf.constant(starts, tf.int64)
            self._codes = _sorted_table(pairs.codes)
            self._query_keys = _sorted_table(pairs.query_keys)
            self._item_keys = _sorted_table(items.keys[order])
            # A key that is not there is item N, the row of the columns that hold no item.
            self._item_order = tf.constant(np.append(order, len(items)), tf.int64)
            self._table = self._make_table(pairs.codes)

    def _make_table(self, codes: np.ndarray) -> tf.Tensor | None:
        """Returns which item each query has chosen, the longer side first; None if it is large."""
        shape = self.num_queries + 1, len(self.items) + 1
        if math.prod(shape) > TABLE_CELLS:
            return None
        table = np.zeros(shape, bool)
        table[codes // len(self.items), codes % len(self.items)] = True
        return tf.constant(table if shape[0] > shape[1] else table.T)

    def keep(self, scored: Scored, batch: Batch) -> tf.Tensor:
        """Returns [B, C] bool.

        Raises:
            InputError: if the batch does not have the query column, or not of the history's kind.
        """
        queries = query_keys_of_rows(
            batch.features,
            self.query_key,
            are_strings=self.string_queries,
            shape=batch.positive_ids.shape,
        )
        return ~self.dropped_cells(queries, scored.ids)

    def dropped_cells(self, queries: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
        """Which item each query has chosen.

        Args:
            queries: [B] as in the column `query_key`.
            ids: [C] of candidates that all rows share, or [B, C].

        Returns:
            [B, C] bool, True for a pair of the history.
        """
        rows = self._places(self._query_keys, to_keys(queries))
        columns = tf.gather(self._item_order, self._places(self._item_keys, to_keys(ids)))
        if is_per_row(ids):
            # An item outside the catalogue must not read as the first one of the next query.
            wanted = (rows * len(self.items))[:, None] + columns
            found = self._places(self._codes, wanted) < tf.shape(self._codes, tf.int64)[0] - 1
            return found & (columns < len(self.items))
        if self._table is not None:
            return self._cells_of_table(rows, columns)
        cells = self._cells_padded if self.static_shapes else self._cells
        return cells(rows, columns)

    def _places(self, table: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
        """Returns [...] int64: where in the table each number is, the end for one that is not."""
        place, found = find_sorted(table, wanted)
        return tf.where(found, place, tf.shape(table, tf.int64)[0] - 1)

    def _histories(self, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        start = tf.gather(self._starts, rows)
        return start, tf.gather(self._starts, rows + 1) - start

    def _cells_of_table(self, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
        """Two gathers of whole rows: one of single cells takes six times as long."""
        # The longer side first, so that what is gathered is not long.
        if self.num_queries > len(self.items):
            return tf.transpose(tf.gather(tf.transpose(tf.gather(self._table, rows)), columns))
        return tf.gather(tf.transpose(tf.gather(self._table, columns)), rows)

    def _cells(self, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
        """Writes the cells (row, candidate) of every pair of the batch, and of no other."""
        num_items = len(self.items)
        row, place = _ranges(*self._histories(rows))
        item = tf.gather(self._codes, place) - tf.gather(rows * num_items, row)
        # The candidates grouped by item: those of an item are a range of `by_item`.
        by_item = tf.argsort(columns, stable=True)
        count = tf.math.bincount(tf.cast(columns, tf.int32), minlength=num_items + 1)
        count = tf.cast(count, tf.int64)
        first = tf.cumsum(count, exclusive=True)
        pair, place = _ranges(tf.gather(first, item), tf.gather(count, item))
        cells = tf.stack([tf.gather(row, pair), tf.gather(by_item, place)], axis=1)
        nothing = tf.zeros([tf.shape(rows)[0], tf.shape(columns)[0]], tf.bool)
        return tf.tensor_scatter_nd_update(nothing, cells, tf.ones_like(pair, tf.bool))

    def _cells_padded(self, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
        """The same with static shapes: one candidate stands for all that hold its item."""
        num_items, num_rows, width = len(self.items), tf.shape(rows)[0], tf.shape(columns)[0]
        # An item that the pool does not hold is marked in one candidate more, which is never read.
        nowhere = tf.fill([num_items + 1], width)
        standing = tf.tensor_scatter_nd_min(nowhere, columns[:, None], tf.range(width))
        start, length = self._histories(rows)
        step = tf.range(self.longest, dtype=tf.int64)
        inside = step < length[:, None]
        codes = tf.gather(self._codes, tf.where(inside, start[:, None] + step, 0))
        item = tf.where(inside, codes - (rows * num_items)[:, None], 0)
        column = tf.where(inside, tf.gather(standing, item), width)
        row = tf.broadcast_to(tf.range(num_rows)[:, None], tf.shape(column))
        nothing = tf.zeros([num_rows, width + 1], tf.bool)
        marks = tf.tensor_scatter_nd_update(nothing, tf.stack([row, column], -1), inside)
        return tf.gather(marks, tf.gather(standing, columns), axis=1)

    def get_config(self) -> dict[str, Any]:
        """Returns the catalogue and the pairs, packed as text: about 3 bytes a pair."""
        return {
            "items": tf.keras.utils.serialize_keras_object(self.items),
            "query_key": self.query_key,
            "string_queries": self.string_queries,
            "query_keys": _pack(self._query_keys.numpy()[:-1]),
            "codes": _pack(self._codes.numpy()[:-1]),
            "static_shapes": self.static_shapes,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> KnownPositives:
        """Builds the mask that `get_config` described, without the history."""
        mask = cls.__new__(cls)
        codes, query_keys = _unpack(config["codes"]), _unpack(config["query_keys"])
        pairs = _Pairs(config["query_key"], config["string_queries"], query_keys, codes)
        items = tf.keras.utils.deserialize_keras_object(config["items"])
        mask._set_up(pairs, items, config["static_shapes"])
        return mask


def _pairs_of(history: History, items: ItemCatalogue) -> _Pairs:
    key, queries = query_column(history, argument="history")
    item_rows = _item_rows(np.asarray(history.item_ids), items)
    query_keys, query_rows = np.unique(to_keys(queries).numpy(), return_inverse=True)
    codes = np.unique(query_rows.astype(np.int64) * len(items) + item_rows)
    return _Pairs(key, queries.dtype.kind == "U", query_keys, codes)


def _item_rows(ids: np.ndarray, items: ItemCatalogue) -> np.ndarray:
    rows: np.ndarray = items.rows(ids, name="history.item_ids").numpy()
    unknown = np.flatnonzero(rows < 0)
    if len(unknown):
        received = f"{len(unknown)} events with others, the first is {ids[unknown[0]]!r}"
        raise bad_input("history.item_ids", "only items of the catalogue", received)
    return rows


def _ranges(start: tf.Tensor, length: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Writes out ranges [m] int64: the number of the range, int32, and the place, int64."""
    number = tf.repeat(tf.range(tf.shape(start)[0]), length)
    shift = start - tf.cumsum(length, exclusive=True)
    places = tf.range(tf.shape(number, out_type=tf.int64)[0])
    return number, places + tf.gather(shift, number)


def _sorted_table(numbers: np.ndarray) -> tf.Tensor:
    """Sorted int64 and one more, so that a search may end after the last one."""
    return tf.constant(np.append(numbers, np.iinfo(np.int64).max))


def _pack(numbers: np.ndarray) -> str:
    """Sorted int64 as text: their differences are small and compress well."""
    differences = np.diff(numbers, prepend=np.int64(0)).astype("<i8")
    return base64.b64encode(zlib.compress(differences.tobytes())).decode("ascii")


def _unpack(text: str) -> np.ndarray:
    differences = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i8")
    return np.cumsum(differences, dtype=np.int64)
