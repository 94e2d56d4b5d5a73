"""Log-sums of the candidates of each row: what the softmax losses are made of."""

from __future__ import annotations

import tensorflow as tf

from tfrs_negatives.step.records import Excess


def softmax_loss(excess: Excess) -> tf.Tensor:
    """Minus the log share of the positive among itself and its negatives.

    Args:
        excess: of the negatives over the positive.

    Returns:
        [B] float32, softplus(value); 0 with gradient 0 for a row without negatives.
    """
    return tf.where(excess.some, tf.math.softplus(excess.value), 0.0)


def together(one: Excess, other: Excess) -> Excess:
    """Returns the log-sum of both kinds of candidates, as if they were one."""
    # A value of 0 that stands for no negatives must not count.
    values = tf.stack([tf.where(e.some, e.value, tf.float32.min) for e in (one, other)], axis=1)
    some = one.some | other.some
    return Excess(some, tf.where(some, tf.reduce_logsumexp(values, axis=1), 0.0))


def masked_log_sum_exp(logits: tf.Tensor, keep: tf.Tensor, *, positive: tf.Tensor) -> Excess:
    """Log-sum-exp over the kept candidates of each row, as its distance from a number of the row.

    Args:
        logits: [B, C] float32.
        keep: [B, C] bool.
        positive: [B] float32, the logit of each row's positive, subtracted.

    Returns:
        Whether each row has any kept candidate, and the value.
    """
    lowest = logits.dtype.min
    kept = tf.where(keep, logits, lowest)
    peak = tf.stop_gradient(tf.reduce_max(kept, axis=1))
    some = tf.reduce_any(keep, axis=1)
    # Shifted before it is masked: an extreme peak cannot lift a masked candidate above zero weight.
    weights = tf.exp(tf.where(keep, logits - peak[:, None], lowest))
    total = tf.where(some, tf.reduce_sum(weights, axis=1), 1.0)
    # Peak and positive first: their difference is small where both are large, the rest is rounded.
    # The `where` keeps the gradient of an empty row at 0.
    return Excess(some, tf.where(some, peak - positive, 0.0) + tf.math.log(total))
