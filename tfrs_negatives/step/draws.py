"""Candidates of each row drawn again, with replacement."""

from __future__ import annotations

import tensorflow as tf


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
