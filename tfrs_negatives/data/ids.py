"""The one door for ids: what a user has becomes ids of one kind, and these become int64 keys.

An item is known by one int64 key: an integer id is its own key, a text becomes its 64-bit
fingerprint. Keys are compared, hashed and counted; nothing later sees a text.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import EMPTY_ID, Values
from tfrs_negatives.data.columns import read_column

IdKind = Literal["integers", "strings"]

_INTEGER_HINT = "; integers that pandas turned into floats: declare `type: integer`"


def as_ids(values: Any, name: str, *, are_items: bool = False) -> np.ndarray:
    """Turns a column into ids.

    Args:
        values: [m] integers of any width and sign, texts or bytes in UTF-8, in any container.
        name: of the column, for errors.
        are_items: whether they are ids of items, which may not be reserved ones.

    Returns:
        [m] int64 or strings.

    Raises:
        InputError: for a float, a truth value, a missing value, a mixture, an integer outside
            int64, a list in a row, or a reserved value where items are asked for.

    Example:
        >>> as_ids([7, 2**40], "item_id").tolist(), as_ids([b"a"], "item_id").tolist()
        ([7, 1099511627776], ['a'])
        >>> as_ids([7.0, 8.0], "user_id")
        Traceback (most recent call last):
        ...
        tfrs_negatives.InputError: `user_id`: expected ids that are integers or texts.
        Received: number 7.0 in row 0; integers that pandas turned into floats: declare
        `type: integer`
    """
    return check_ids(read_column(values, name), name, are_items=are_items)


def check_ids(values: Values, name: str, *, are_items: bool = False) -> np.ndarray:
    """Returns the ids of a column that is read; raises as `as_ids`."""
    expected = "ids that are integers or texts"
    if not len(values.array) and values.kind == "number":
        return np.empty(0, np.int64)  # of no rows, whatever they were to be
    if values.array.ndim != 1:
        raise bad_input(name, "one id per row", f"lists, shape {list(values.array.shape)}")
    if values.kind not in ("integer", "text"):
        row = int((~values.missing).argmax())
        given = f"{values.kind} {values.array[row]}"
        hint = _INTEGER_HINT if values.kind == "number" else ""
        raise bad_input(name, expected, f"{given} in row {row}{hint}")
    if values.first_missing is not None:
        raise bad_input(name, "an id in every row", values.says_missing)
    if are_items and values.kind == "integer":
        reserved = (values.array == -1) | (values.array == EMPTY_ID)
        if reserved.any():
            row = int(reserved.argmax())
            received = f"{values.array[row]} in row {row}"
            raise bad_input(name, "no id with the reserved values -1 and -2^63", received)
    return values.array


def id_kind(ids: np.ndarray | tf.Tensor) -> IdKind:
    """Returns what kind of ids an array or a tensor holds.

    Raises:
        InputError: if a tensor holds neither integers nor strings.

    Example:
        >>> id_kind(np.array(["a"])), id_kind(tf.constant([7]))
        ('strings', 'integers')
    """
    if isinstance(ids, np.ndarray):
        return "integers" if ids.dtype.kind in "iu" else "strings"
    if ids.dtype != tf.string and not ids.dtype.is_integer:
        raise bad_input("ids", "integers or strings", f"dtype {ids.dtype.name}")
    return "strings" if ids.dtype == tf.string else "integers"


def check_same_kind(name: str, kind: IdKind, other: IdKind, *, other_name: str) -> None:
    """Refuses two sides that never meet: texts here, integers there.

    Args:
        name: what is looked up.
        kind: of its ids.
        other: the kind of the ids that it is compared with.
        other_name: where these are from.

    Raises:
        InputError: if the kinds differ.

    Example:
        >>> check_same_kind("item_bias", "integers", "strings", other_name="the batch")
        Traceback (most recent call last):
        ...
        tfrs_negatives.InputError: `item_bias`: expected ids that are strings, as in the
        batch. Received: integers
    """
    if kind != other:
        raise bad_input(name, f"ids that are {other}, as in {other_name}", kind)


def to_keys(ids: Any) -> tf.Tensor:
    """Turns ids into int64 keys, in or out of a graph.

    Args:
        ids: [...] integers or strings.

    Returns:
        [...] int64: the integer itself, or the 64-bit fingerprint of the string.

    Raises:
        InputError: if the ids are neither integers nor strings, or outside int64 (in a graph, an
            error of the step).

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
    keys = tf.cast(ids, tf.int64)
    if ids.dtype != tf.uint64:
        return keys
    if tf.executing_eagerly() and not tf.reduce_all(keys >= 0):
        raise bad_input("ids", "integers that fit into int64", int(ids[keys < 0][0]))
    fits = tf.debugging.assert_non_negative(keys, "ids: expected integers that fit into int64.")
    with tf.control_dependencies([fits] if fits is not None else []):
        return tf.identity(keys)
