"""Losses that judge each candidate on its own."""

from __future__ import annotations

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.step.losses.pairs import mean_over_kept
from tfrs_negatives.step.records import Batch, Loss, Scored


@part("loss")
class PointwiseBCE(Loss):
    """Binary cross-entropy of each candidate on its own: the positive is 1, negatives are 0.

        loss_i = log(1 + exp(-s_i+)) + n mean_{j kept} log(1 + exp(s_ij))

    which is the mean over all ways to draw n of the kept candidates. The logits are those of a
    candidate being a positive in a sample with n negatives for each, not in the world.

    Args:
        negatives_per_positive: n, how much the negatives weigh.

    Raises:
        InputError: if n is not positive.

    Example:
        >>> scored = Scored(tf.zeros([1]), tf.zeros([1, 5]), tf.ones([1, 5], tf.bool))
        >>> round(float(PointwiseBCE(2)(scored)[0]), 4)     # 3 log 2
        2.0794

    Source: He et al., WWW 2017 (NCF), equation 7, which draws the n negatives.
    """

    def __init__(self, negatives_per_positive: float = 3) -> None:
        if not negatives_per_positive > 0:
            raise bad_input("negatives_per_positive", "a positive number", negatives_per_positive)
        self.negatives_per_positive = negatives_per_positive

    def __call__(self, scored: Scored, batch: Batch | None = None) -> tf.Tensor:
        """Returns [B] float32; 0 with gradient 0 for a row without negatives."""
        negatives = tf.where(scored.keep, scored.logit, 0.0)
        mean = mean_over_kept(tf.math.softplus(negatives), scored.keep)
        some = tf.reduce_any(scored.keep, axis=1)
        own = tf.where(some, tf.math.softplus(-scored.positive_logit), 0.0)
        return own + self.negatives_per_positive * mean
