"""What samplers have in common that propose other candidates for each row."""

from __future__ import annotations

import tensorflow as tf

from tfrs_negatives.core.replicas import all_rows
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.data.catalogue import ItemCatalogue, first_of_each
from tfrs_negatives.step.records import Batch, Candidates


def rows_of_known(items: ItemCatalogue, keys: tf.Tensor, label: str) -> tf.Tensor:
    """Returns the catalogue row of each key, [...] int64, -1 for `EMPTY_ID`; others stop the step.

    Args:
        items: the catalogue.
        keys: [...] int64.
        label: where they are from, for the error.
    """
    rows = items.rows_of_keys(keys)
    known = tf.debugging.assert_equal(
        tf.equal(keys, EMPTY_ID) | (rows >= 0),
        True,
        f"`{label}`: expected only items of the catalogue.",
    )
    with tf.control_dependencies([known] if known is not None else []):
        return tf.identity(rows)


def candidates_of_rows(
    keys: tf.Tensor, items: ItemCatalogue, batch: Batch, *, label: str
) -> Candidates:
    """Encodes the items of each row.

    Args:
        keys: [B, n] int64, `EMPTY_ID` for a slot that holds nothing.
        items: the catalogue with their features.
        batch: the step.
        label: where the keys are from, for the error.

    Returns:
        Candidates [B, n], valid where there is an item.
    """
    rows = rows_of_known(items, keys, label)
    vectors = batch.encode_items(items.gather(tf.maximum(tf.reshape(rows, [-1]), 0)))
    shape = tf.concat([tf.shape(rows), tf.shape(vectors)[1:]], axis=0)
    return Candidates(keys, tf.reshape(vectors, shape), rows >= 0)


def probes_of(batch: Batch) -> Batch:
    """Returns the step for measurements: items are encoded as in inference, without gradient."""
    return batch._replace(encode_items=lambda x: tf.stop_gradient(batch.encode_probes(x)))


def places(draws: tf.Tensor, number: int) -> tf.Tensor:
    """Returns int32 in 0 ... number - 1 for draws from [0, 1)."""
    return tf.minimum(tf.cast(draws * number, tf.int32), number - 1)


def write_rows(table: tf.Variable, rows: tf.Tensor, values: tf.Tensor, writes: tf.Tensor) -> None:
    """Writes rows of a table for the whole batch: of those with one place, the first.

    Args:
        table: [Q + 1, ...], of which the last row is never written.
        rows: [B] int64, the place of each row of this replica; Q writes nothing.
        values: [B, ...].
        writes: [B] bool, which rows write.
    """
    last = table.shape[0] - 1
    rows, values, writes = all_rows(rows), all_rows(values), all_rows(writes)
    # One that writes nothing must not hide a later one that does.
    rows = tf.where(writes, rows, last)
    writes = first_of_each(rows) & (rows < last)
    target = tf.where(writes, rows, last)
    kept = tf.gather(table, target)
    each = tf.reshape(writes, [-1, *[1] * (values.shape.rank - 1)])
    values = tf.where(each, values, kept)
    table.scatter_update(tf.IndexedSlices(values, target))
