"""Random numbers of the rows of a batch, the same however many replicas share it."""

from __future__ import annotations

import tensorflow as tf

from tfrs_negatives.core.replicas import place_of_rows


def row_draws(rows: tf.Tensor, width: int | tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws numbers for each row of this replica.

    Args:
        rows: scalar int32, the rows of this replica.
        width: how many numbers a row gets.
        seed: [2] int32, see `Batch.seed`.

    Returns:
        [rows, width] float64, uniform in [0, 1).

    Example:
        >>> row_draws(tf.constant(2), 3, tf.constant([0, 1])).shape.as_list()
        [2, 3]
    """
    first, total = place_of_rows(rows)
    # Whole numbers: XLA makes other fractions of the same bits.
    bits = tf.random.stateless_uniform([total, width], seed, 0, 2**53, tf.int64, alg="philox")
    return tf.cast(bits[first : first + rows], tf.float64) / 2**53
