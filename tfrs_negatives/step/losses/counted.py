"""Scores, and how many items each candidate stands for.

A softmax takes a correction into its logits: exp(score - log count) is a weighted term of its sum.
In a loss of another form the score has a meaning of its own, a cosine against a margin or the odds
of one item, and the weight stands before the term.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfrs_negatives.step.records import Scored

LOWEST = tf.float32.min


class Counted(NamedTuple):
    """The scores of a row before the correction, and the correction as weights.

    Attributes:
        positive: [B] float32.
        score: [B, C] float32, 0 for a candidate that does not count.
        log_weight: [B, C] float32 in nats, logit - score: minus the log of the expected count; 0
            where nothing is corrected.
        keep: [B, C] bool.
    """

    positive: tf.Tensor
    score: tf.Tensor
    log_weight: tf.Tensor
    keep: tf.Tensor

    @property
    def weights(self) -> tf.Tensor:
        """Returns [B, C]: how many items each candidate stands for, 0 where it does not count."""
        return tf.where(self.keep, tf.exp(self.log_weight), 0.0)

    def mean(self, values: tf.Tensor) -> tf.Tensor:
        """Returns [B]: the weighted mean of values [B, C] over what counts, 0 where nothing is."""
        shares = tf.nn.softmax(tf.where(self.keep, self.log_weight, LOWEST))
        return tf.reduce_sum(shares * tf.where(self.keep, values, 0.0), axis=1)


def counted(scored: Scored) -> Counted:
    """Takes the correction out of the logits.

    Args:
        scored: a record without scores was not corrected: its logits are the scores.

    Example:
        >>> keep, score = tf.constant([[True, False]]), tf.constant([[2.0, 9.0]])
        >>> scored = Scored(tf.ones([1]), score - 0.5, keep, tf.ones([1]), score)
        >>> counted(scored).log_weight.numpy()
        array([[-0.5, 0. ]], dtype=float32)
    """
    keep = scored.keep
    if scored.score is None or scored.positive_score is None:
        logit = tf.where(keep, scored.logit, 0.0)
        return Counted(scored.positive_logit, logit, tf.zeros_like(logit), keep)
    log_weight = tf.stop_gradient(tf.where(keep, scored.logit - scored.score, 0.0))
    return Counted(scored.positive_score, tf.where(keep, scored.score, 0.0), log_weight, keep)
