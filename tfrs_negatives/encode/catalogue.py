"""The corpus: which items exist, what is known of each, and how an id finds its row.

An item is known by one int64 key from the boundary on: an integer id is its own key, a string id
becomes its 64-bit fingerprint. Keys are compared, hashed and counted; nothing later sees a string.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfrs_negatives.types import EMPTY_ID, Columns, bad_input


def to_keys(ids: Any) -> tf.Tensor:
    """Turns item ids into int64 keys, in or out of a graph.

    Args:
        ids: [...] integers or strings.

    Returns:
        [...] int64: the integer itself, or the 64-bit fingerprint of the string.

    Raises:
        InputError: if the ids are neither integers nor strings.

    Example:
        >>> to_keys([7, 3]).numpy().tolist()
        [7, 3]
        >>> first, _, again = to_keys(["a", "b", "a"]).numpy().tolist()
        >>> first == again
        True
    """
    ids = tf.convert_to_tensor(ids)
    if ids.dtype == tf.string:
        flat = tf.fingerprint(tf.reshape(ids, [-1]))
        return tf.reshape(tf.bitcast(flat, tf.int64), tf.shape(ids))
    if not ids.dtype.is_integer:
        raise bad_input("ids", "integers or strings", f"dtype {ids.dtype.name}")
    return tf.cast(ids, tf.int64)


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


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class ItemCatalogue:
    """N items: their ids and the features that the item tower reads.

    Args:
        ids: [N] integers or strings, each once.
        features: name -> array [N, ...]. The ids themselves are added under `item_key`.
        item_key: the name under which the item tower finds the ids.

    Raises:
        InputError: if an id occurs twice, the catalogue is empty, a feature has another length, or
            an id equals the reserved value.

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
        self, ids: Any, features: Columns | None = None, *, item_key: str = "item_id"
    ) -> None:
        self.ids = _as_id_array(ids)
        self.item_key = item_key
        self.features = {name: np.asarray(column) for name, column in (features or {}).items()}
        self.features[item_key] = self.ids
        for name, column in self.features.items():
            if column.shape[:1] != self.ids.shape:
                raise bad_input(
                    f"features[{name!r}]", f"{len(self.ids)} rows, one per item", column.shape
                )
        self.keys = to_keys(self.ids).numpy()
        self._order = np.argsort(self.keys, kind="stable")
        self._sorted_keys = self.keys[self._order]
        self._check_keys()
        # Numbers from a to b need no search, which is most of the work of a small step.
        self._is_consecutive = int(self._sorted_keys[-1]) - int(self._sorted_keys[0]) + 1 == len(
            self
        )
        # Eager constants: a traced function captures them by reference instead of copying them.
        with tf.init_scope():
            self._key_tensor = tf.constant(self.keys)
            self._order_tensor = tf.constant(self._order, tf.int64)
            self._sorted_tensor = tf.constant(self._sorted_keys)
            self._feature_tensors = {n: tf.constant(c) for n, c in self.features.items()}

    def __len__(self) -> int:
        return len(self.ids)

    def _check_keys(self) -> None:
        if not len(self.ids):
            raise bad_input("ids", "at least one item", "an empty catalogue")
        if self._sorted_keys[0] == EMPTY_ID:
            raise bad_input("ids", f"no id equal to the reserved value {EMPTY_ID}", EMPTY_ID)
        same = np.flatnonzero(self._sorted_keys[1:] == self._sorted_keys[:-1])
        if len(same):
            first = self.ids[self._order[same[0]]]
            raise bad_input(
                "ids", "each item once", f"{len(same)} repeated, the first is {first!r}"
            )

    def rows(self, ids: Any, *, unknown: int = -1) -> tf.Tensor:
        """Finds items by id or key: [...] int64 rows, `unknown` for ids not in the catalogue."""
        keys = to_keys(ids)
        flat = tf.reshape(keys, [-1])
        if self._is_consecutive:
            place = flat - self._sorted_keys[0]
            found = (place >= 0) & (place < len(self))
            place = tf.where(found, place, 0)
        else:
            place, found = find_sorted(self._sorted_tensor, flat)
        rows = tf.where(found, tf.gather(self._order_tensor, place), tf.constant(unknown, tf.int64))
        return tf.reshape(rows, tf.shape(keys))

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
        return {
            "ids": self.ids.tolist(),
            "features": features,
            "item_key": self.item_key,
            "dtypes": dtypes,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ItemCatalogue:
        """Builds the catalogue that `get_config` described, with the same dtypes."""
        features = {n: np.asarray(c, config["dtypes"][n]) for n, c in config["features"].items()}
        return cls(config["ids"], features, item_key=config["item_key"])


def _as_id_array(ids: Any) -> np.ndarray:
    array = np.asarray(ids)
    if array.ndim != 1:
        raise bad_input("ids", "one dimension", f"shape {array.shape}")
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    if array.dtype.kind == "O" or array.dtype.kind == "S":
        array = np.array([i.decode() if isinstance(i, bytes) else i for i in array.tolist()])
    if array.dtype.kind != "U":
        raise bad_input("ids", "integers or strings", f"dtype {array.dtype}")
    return array
