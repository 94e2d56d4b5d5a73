"""The corpus: which items exist, what is known of each, and how an id finds its row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import Columns
from tfrs_negatives.data.columns import num_rows
from tfrs_negatives.data.ids import IdKind, as_ids, check_same_kind, id_kind, to_keys
from tfrs_negatives.data.roles import as_feature
from tfrs_negatives.data.schema import Column, ColumnSpec, Schema


def count_below(table: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
    """How many entries of a sorted table are smaller: what `tf.searchsorted` answers.

    Compiled by XLA, that compares all with all: 6,144 ids in 41,000 take a thousand times as long.

    Args:
        table: [N] numbers, ascending, N >= 1 and static.
        wanted: [...] of the same dtype.

    Returns:
        [...] int64.

    Example:
        >>> count_below(tf.constant([2, 5, 9], tf.int64), tf.constant([5, 10, 1], tf.int64)).numpy()
        array([1, 3, 0])
    """
    size = table.shape[0]
    place = tf.zeros(tf.shape(wanted), tf.int64)
    # One bit of the answer at a time, the highest first.
    for bit in reversed(range(size.bit_length())):
        further = place + 2**bit
        last = tf.gather(table, tf.minimum(further, size) - 1)
        place = tf.where((further <= size) & (last < wanted), further, place)
    return place


def find_sorted(table: tf.Tensor, wanted: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Where numbers stand in a sorted table.

    Args:
        table: [N] numbers, ascending, N >= 1 and static.
        wanted: [...] of the same dtype.

    Returns:
        The place, [...] int64, some valid one for a number that is not there; and whether it is
        there, [...] bool.

    Example:
        >>> place, found = find_sorted(tf.constant([2, 5, 9]), tf.constant([5, 10, 1]))
        >>> place.numpy().tolist(), found.numpy().tolist()
        ([1, 2, 0], [True, False, False])
    """
    place = tf.minimum(count_below(table, wanted), table.shape[0] - 1)
    return place, tf.equal(tf.gather(table, place), wanted)


def first_of_each(ids: tf.Tensor) -> tf.Tensor:
    """Says of each id [n] whether it is the first of its kind, [n] bool.

    Example:
        >>> first_of_each(tf.constant([7, 2, 7, 2, 5])).numpy().tolist()
        [True, True, False, False, True]
    """
    order = tf.argsort(ids, stable=True)
    in_order = tf.gather(ids, order)
    is_new = tf.not_equal(in_order[1:], in_order[:-1])
    starts = tf.concat([tf.ones_like(in_order[:1], tf.bool), is_new], axis=0)
    return tf.gather(starts, tf.argsort(order))


class KeyTable:
    """N distinct int64 keys, and the row of each.

    Args:
        keys: [N], N >= 1, in the order of their rows.

    Raises:
        ValueError: with the place of a key that occurs twice.

    Example:
        >>> KeyTable(np.array([7, 3])).rows(tf.constant([3, 5], tf.int64), unknown=-1).numpy()
        array([ 1, -1])
    """

    def __init__(self, keys: np.ndarray) -> None:
        self.order = np.argsort(keys, kind="stable")
        self.sorted = keys[self.order]
        # Numbers from a to b need no search, which is most of the work of a small step.
        self._is_consecutive = int(self.sorted[-1]) - int(self.sorted[0]) + 1 == len(keys)
        # Eager constants: a traced function captures them by reference instead of copying them.
        with tf.init_scope():
            self._order_tensor = tf.constant(self.order, tf.int64)
            self._sorted_tensor = tf.constant(self.sorted)

    def rows(self, keys: tf.Tensor, *, unknown: int) -> tf.Tensor:
        """Returns [...] int64: the row of each key, `unknown` for one that is not there."""
        flat = tf.reshape(keys, [-1])
        if self._is_consecutive:
            place = flat - self.sorted[0]
            found = (place >= 0) & (place < len(self.sorted))
            place = tf.where(found, place, 0)
        else:
            place, found = find_sorted(self._sorted_tensor, flat)
        rows = tf.where(found, tf.gather(self._order_tensor, place), tf.constant(unknown, tf.int64))
        return tf.reshape(rows, tf.shape(keys))


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class ItemCatalogue:
    """N items: their ids and the features that the item tower reads.

    Args:
        ids: [N] integers or texts, each once, in any container.
        features: name -> [N, ...], likewise. The ids themselves are added under `item_key`.
        item_key: the name under which the item tower finds the ids.
        columns: what is declared of the features, such as that one may miss values
            (`Column("item", missing="own")`).

    Raises:
        InputError: if an id is none, is reserved or occurs twice, the catalogue is empty, or a
            feature has another length, mixes kinds, or lacks values that it may not lack.

    Example:
        >>> items = ItemCatalogue(["a", "b", "c"], {"year": [1990, 1995, 2000]}, item_key="title")
        >>> len(items), sorted(items.features)
        (3, ['title', 'year'])
        >>> items.rows(["c", "unknown"]).numpy().tolist()
        [2, -1]
        >>> items.gather(tf.constant([1]))["year"].numpy().tolist()
        [1995]
    """

    def __init__(
        self,
        ids: Any,
        features: Mapping[str, Any] | None = None,
        *,
        item_key: str = "item_id",
        columns: Mapping[str, ColumnSpec] | None = None,
    ) -> None:
        self.ids = as_ids(ids, "ids", are_items=True)
        if not len(self.ids):
            raise bad_input("ids", "at least one item", "an empty catalogue")
        self.item_key = item_key
        schema = Schema(columns or {})
        schema.check_against([*(features or {}), item_key], where="the features")
        self.features: Columns = self._read_features(features or {}, schema)
        self.columns = {item_key: Column("item_id"), **schema.columns}
        self.keys = to_keys(self.ids).numpy()
        self._table = KeyTable(self.keys)
        self._check_distinct()
        with tf.init_scope():
            self._key_tensor = tf.constant(self.keys)
            self._feature_tensors = {n: tf.constant(c) for n, c in self.features.items()}

    def _read_features(self, features: Mapping[str, Any], schema: Schema) -> dict[str, np.ndarray]:
        for name, column in features.items():
            if num_rows(column, name) != len(self.ids):
                received = f"{num_rows(column, name)} rows"
                raise bad_input(name, f"{len(self.ids)} rows, one per item", received)
        own = features.get(self.item_key)
        if own is not None and as_ids(own, self.item_key).tolist() != self.ids.tolist():
            rule = f"another name than {self.item_key!r}, under which the tower finds the ids"
            raise bad_input("features", rule, "other values")
        read = {
            name: as_feature(
                column, name, may_miss=name in schema.may_miss, wanted=schema.type_of(name)
            )
            for name, column in features.items()
            if name != self.item_key
        }
        return {**read, self.item_key: self.ids}

    def __len__(self) -> int:
        return len(self.ids)

    def _check_distinct(self) -> None:
        same = np.flatnonzero(self._table.sorted[1:] == self._table.sorted[:-1])
        if len(same):
            first = self.ids[self._table.order[same[0]]]
            raise bad_input(
                "ids", "each item once", f"{len(same)} repeated, the first is {first!r}"
            )

    @property
    def id_kind(self) -> IdKind:
        """Whether its ids are integers or strings."""
        return id_kind(self.ids)

    def rows(self, ids: Any, *, unknown: int = -1, name: str = "ids") -> tf.Tensor:
        """Finds items by id.

        Args:
            ids: [...] integers or strings, as the catalogue has.
            unknown: the row of an id that is not in it.
            name: what the caller calls the ids, for the error.

        Returns:
            [...] int64 rows.

        Raises:
            InputError: if they are of the other kind: no such id could be found.
        """
        ids = tf.convert_to_tensor(ids)
        check_same_kind(name, id_kind(ids), self.id_kind, other_name="the catalogue")
        return self.rows_of_keys(to_keys(ids), unknown=unknown)

    def rows_of_keys(self, keys: tf.Tensor, *, unknown: int = -1) -> tf.Tensor:
        """Finds items by key: [...] int64 rows, `unknown` for keys not in the catalogue."""
        return self._table.rows(keys, unknown=unknown)

    def keys_at(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns [...] int64, the keys of the items at these rows."""
        return tf.gather(self._key_tensor, rows)

    def gather(self, rows: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the features of the items at rows [m], each [m, ...]."""
        return {name: tf.gather(column, rows) for name, column in self._feature_tensors.items()}

    def batches(self, batch_size: int) -> Iterator[dict[str, tf.Tensor]]:
        """Yields the features of all items in catalogue order, `batch_size` items at a time."""
        for start in range(0, len(self), batch_size):
            yield self.gather(tf.range(start, min(start + batch_size, len(self))))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as plain lists; about 20 bytes per number."""
        features = {n: c.tolist() for n, c in self.features.items() if n != self.item_key}
        dtypes = {n: c.dtype.str for n, c in self.features.items() if n != self.item_key}
        columns = {n: asdict(c) for n, c in self.columns.items() if n != self.item_key}
        return {
            "ids": self.ids.tolist(),
            "features": features,
            "item_key": self.item_key,
            "dtypes": dtypes,
            "columns": columns,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ItemCatalogue:
        """Builds the catalogue that `get_config` described, with the same dtypes."""
        features = {n: np.asarray(c, config["dtypes"][n]) for n, c in config["features"].items()}
        columns = {n: Column(**c) for n, c in config["columns"].items()}
        return cls(config["ids"], features, item_key=config["item_key"], columns=columns)
