"""Batch columns that hold several item ids for each row."""

from __future__ import annotations

import tensorflow as tf

from tfrs_negatives.encode.catalogue import to_keys
from tfrs_negatives.types import EMPTY_ID, Features, bad_input


def keys_of_rows(features: Features, name: str, num_rows: int | None) -> tf.Tensor:
    """Reads a column of several ids per row.

    Args:
        features: the batch.
        name: its column, [B, P] integers or strings, filled up with -1, "" or `EMPTY_ID`, or a
            `tf.RaggedTensor`.
        num_rows: B, None where it is not known.

    Returns:
        [B, P] int64 keys, `EMPTY_ID` where the column is filled up.

    Raises:
        InputError: if the batch lacks the column, or it is not [B, P] integers or strings.

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
    keys, padding = to_keys(ids), to_keys(tf.constant("" if ids.dtype == tf.string else -1))
    return tf.where(keys == padding, tf.constant(EMPTY_ID, tf.int64), keys)
