"""Columns of ids: several items for each row, and whose row it is."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import EMPTY_ID, Columns, Features
from tfrs_negatives.data.ids import IdKind, check_same_kind, id_kind, to_keys


class History(Protocol):
    """What is read of a log; `datasets.Interactions` has it."""

    @property
    def query_features(self) -> Columns:
        """Name -> [E, ...]."""

    @property
    def query_key(self) -> str | None:
        """The query feature that says whose event it is."""

    @property
    def item_ids(self) -> np.ndarray:
        """[E] integers or strings."""


def query_column(history: History, *, argument: str) -> tuple[str, np.ndarray]:
    """Reads whose event each one of a log is.

    Args:
        history: the log of E events.
        argument: what the caller calls it, for the error.

    Returns:
        The name of the query feature, and its values [E], integers or strings.

    Raises:
        InputError: if the log has no `query_key`, or the queries are neither.
    """
    key = history.query_key
    if key is None:
        expected = "the query feature that says whose event it is"
        raise bad_input(f"{argument}.query_key", expected, None)
    queries = np.asarray(history.query_features[key])
    if queries.ndim != 1 or queries.dtype.kind not in "iuU":
        received = f"dtype {queries.dtype}, shape {queries.shape}"
        name = f"{argument}.query_features[{key!r}]"
        raise bad_input(name, "[E] integers or strings", received)
    return key, queries


def query_keys_of_rows(
    features: Features, name: str, *, are_strings: bool, shape: tf.TensorShape
) -> tf.Tensor:
    """Reads whose row each one of a batch is.

    Args:
        features: the batch.
        name: its column, [B] as in the log that the caller knows.
        are_strings: whether that log has strings, and not integers.
        shape: [B] or [None].

    Returns:
        [B] int64 keys.

    Raises:
        InputError: if the batch lacks the column, or it has another shape or kind of values.
    """
    argument = f"features[{name!r}]"
    if name not in features:
        raise bad_input(argument, "the query of each row", sorted(features))
    queries = tf.convert_to_tensor(features[name])
    if not queries.shape.is_compatible_with(shape):
        raise bad_input(argument, f"shape {shape}, one per row", queries.shape)
    is_right = queries.dtype == tf.string if are_strings else queries.dtype.is_integer
    if not is_right:
        kind = "strings" if are_strings else "integers"
        raise bad_input(argument, f"{kind}, as in the history", f"dtype {queries.dtype.name}")
    return to_keys(queries)


def keys_of_rows(
    features: Features, name: str, num_rows: int | None, *, kind: IdKind | None = None
) -> tf.Tensor:
    """Reads a column of several ids per row.

    Args:
        features: the batch.
        name: its column, [B, P] integers or strings, filled up with -1, "" or `EMPTY_ID`, or a
            `tf.RaggedTensor`.
        num_rows: B, None where it is not known.
        kind: of the ids of the catalogue; None takes both.

    Returns:
        [B, P] int64 keys, `EMPTY_ID` where the column is filled up.

    Raises:
        InputError: if the batch lacks the column, or it is not [B, P] integers or strings, or of
            another kind than the catalogue.

    Example:
        >>> keys = keys_of_rows({"rejected": tf.constant([[7, 8], [9, -1]])}, "rejected", 2)
        >>> (keys == EMPTY_ID).numpy().tolist()
        [[False, False], [False, True]]
    """
    argument = f"features[{name!r}]"
    if name not in features:
        raise bad_input(argument, "ids for each row", sorted(features))
    ids = features[name]
    if isinstance(ids, tf.RaggedTensor):
        padding = tf.constant("" if ids.dtype == tf.string else -1, ids.dtype)
        ids = ids.to_tensor(padding) if ids.shape.rank == 2 else ids
    else:
        ids = tf.convert_to_tensor(ids)
    if not ids.shape.is_compatible_with([num_rows, None]):
        raise bad_input(argument, f"shape [{num_rows}, P]", ids.shape)
    if ids.dtype != tf.string and not ids.dtype.is_integer:
        raise bad_input(argument, "integers or strings", f"dtype {ids.dtype.name}")
    if kind is not None:
        check_same_kind(argument, id_kind(ids), kind, other_name="the catalogue")
    keys, padding = to_keys(ids), to_keys(tf.constant("" if ids.dtype == tf.string else -1))
    return tf.where(tf.equal(keys, padding), tf.constant(EMPTY_ID, tf.int64), keys)
