"""What samplers have in common that propose other candidates for each row."""

from __future__ import annotations

import tensorflow as tf

from tfrs_negatives.core.replicas import all_rows, place_of_rows
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.step.records import Batch, Candidates


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
    rows = items.rows_of_keys(keys)
    known = tf.debugging.assert_equal(
        tf.equal(keys, EMPTY_ID) | (rows >= 0),
        True,
        f"`{label}`: expected only items of the catalogue.",
    )
    with tf.control_dependencies([known] if known is not None else []):
        features = items.gather(tf.maximum(tf.reshape(rows, [-1]), 0))
    vectors = batch.encode_items(features)
    shape = tf.concat([tf.shape(rows), tf.shape(vectors)[1:]], axis=0)
    return Candidates(keys, tf.reshape(vectors, shape), rows >= 0)


def probes_of(batch: Batch) -> Batch:
    """Returns the step for measurements: items are encoded as in inference, without gradient."""
    return batch._replace(encode_items=lambda x: tf.stop_gradient(batch.encode_probes(x)))


def draws_of_rows(seed: tf.Tensor, num_rows: tf.Tensor, width: int | tf.Tensor) -> tf.Tensor:
    """Draws numbers for each row, the same however many replicas share the batch.

    Args:
        seed: [2] int32.
        num_rows: scalar int32, the rows of this replica, B.
        width: how many for each.

    Returns:
        [B, width] float64, uniform in [0, 1).
    """
    first, total = place_of_rows(num_rows)
    # Whole numbers: XLA makes other fractions of the same bits.
    bits = tf.random.stateless_uniform([total, width], seed, 0, 2**53, tf.int64, alg="philox")
    return tf.cast(bits[first : first + num_rows], tf.float64) / 2**53


def places(draws: tf.Tensor, number: int) -> tf.Tensor:
    """Returns int32 in 0 ... number - 1 for draws from [0, 1)."""
    return tf.minimum(tf.cast(draws * number, tf.int32), number - 1)


def drawn_by_softmax(logit: tf.Tensor, keep: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Turns draws [B, P] into places [B, P] among candidates [B, M], by the softmax of those kept.

    A row that keeps none gets any.

    Example:
        >>> logit, keep = tf.math.log([[1.0, 5.0, 3.0]]), tf.constant([[True, False, True]])
        >>> drawn_by_softmax(logit, keep, tf.constant([[0.2, 0.3, 0.9]], tf.float64)).numpy()
        array([[0, 2, 2]], dtype=int32)
    """
    logit = tf.where(keep, tf.cast(logit, tf.float64), tf.float32.min)
    cumulative = tf.cumsum(tf.nn.softmax(logit), axis=1)
    place = tf.searchsorted(cumulative, draws * cumulative[:, -1:], side="right")
    return tf.minimum(place, tf.shape(logit)[1] - 1)


def first_of_each(keys: tf.Tensor) -> tf.Tensor:
    """Returns [m] bool: whether no earlier one of keys [m] is the same.

    Example:
        >>> first_of_each(tf.constant([7, 3, 7, 3, 9])).numpy().tolist()
        [True, True, False, False, True]
    """
    order = tf.argsort(keys, stable=True)
    in_order = tf.gather(keys, order)
    is_new = tf.not_equal(in_order[1:], in_order[:-1])
    starts = tf.concat([tf.ones_like(in_order[:1], tf.bool), is_new], axis=0)
    return tf.gather(starts, tf.argsort(order))


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
