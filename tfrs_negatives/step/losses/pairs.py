"""Losses that compare the positive with one negative at a time."""

from __future__ import annotations

import math

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.step.records import Batch, Loss, Scored

LOWEST = tf.float32.min


@part("loss")
class TripletLogistic(Loss):
    """A smooth step on the distance of each negative from the positive, on average.

        loss_i = mean_{j kept} log(1 + exp(scale (s_ij - s_i+)))

    Args:
        scale: how steep; the scores are divided by the temperature already.

    Raises:
        InputError: if the scale is not positive.

    Example:
        >>> scored = Scored(tf.ones([1]), tf.constant([[1.0, 0.0]]), tf.ones([1, 2], tf.bool))
        >>> round(float(TripletLogistic(2.0)(scored)[0]), 4)
        0.41

    Source: the logistic loss on pairs of Burges et al., ICML 2005 (RankNet), with a scale.
    """

    def __init__(self, scale: float = 1.0) -> None:
        if not scale > 0:
            raise bad_input("scale", "a positive number", scale)
        self.scale = float(scale)

    def __call__(self, scored: Scored, batch: Batch | None = None) -> tf.Tensor:
        """Returns [B] float32; 0 with gradient 0 for a row without negatives."""
        return mean_over_kept(tf.math.softplus(self.scale * lead(scored)), scored.keep)


@part("loss")
class BPR(Loss):
    """Bayesian personalised ranking: minus the log probability that the positive wins each pair.

        loss_i = mean_{j kept} log(1 + exp(s_ij - s_i+))

    Example:
        >>> scored = Scored(tf.zeros([1]), tf.zeros([1, 3]), tf.ones([1, 3], tf.bool))
        >>> round(float(BPR()(scored)[0]), 4)     # log 2
        0.6931

    Relations: `TripletLogistic(1.0)`; with one negative, `SampledSoftmax`. With the M hardest of N
        uniform candidates it estimates a partial AUC at false positive rate M / N.

    Source: Rendle et al., UAI 2009; Shi et al., WWW 2023, for the partial AUC.
    """

    def __call__(self, scored: Scored, batch: Batch | None = None) -> tf.Tensor:
        """Returns [B] float32; 0 with gradient 0 for a row without negatives."""
        return TripletLogistic(1.0)(scored)


@part("loss")
class TripletHinge(Loss):
    """How far each negative is inside a margin below the positive, on average.

        loss_i = sum_{j kept} w_ij max(0, s_ij - s_i+ + margin)

    with w_ij = 1 / (number of kept candidates). With a `focus` the weights are those of a softmax
    over the candidates that are inside the margin, w_ij ~ exp(s_ij / focus), without gradient.

    Args:
        margin: in the unit of the logits, similarity / temperature: a margin m of the cosine is
            m / temperature here, 3 for 0.3 at temperature 0.1.
        focus: the temperature of the weights, in the same unit; infinity weighs all inside the
            margin alike, None all that are kept.

    Raises:
        InputError: if a number is not positive.

    Example:
        >>> scored = Scored(tf.ones([1]), tf.constant([[0.9, -9.0]]), tf.ones([1, 2], tf.bool))
        >>> round(float(TripletHinge(0.3)(scored)[0]), 4)
        0.1
        >>> round(float(TripletHinge(0.3, focus=1.0)(scored)[0]), 4)
        0.2

    Source: Schroff et al., CVPR 2015, as scores; with `focus`, and the ten hardest candidates, the
        loss of the code of NGAME (Dahiya et al., WSDM 2023: margin 0.3 and focus 0.1 of the
        cosine).
    """

    def __init__(self, margin: float, *, focus: float | None = None) -> None:
        for name, value in (("margin", margin), ("focus", focus)):
            if value is not None and not value > 0:
                raise bad_input(name, "a positive number", value)
        self.margin, self.focus = float(margin), focus

    def __call__(self, scored: Scored, batch: Batch | None = None) -> tf.Tensor:
        """Returns [B] float32; 0 with gradient 0 for a row without negatives."""
        excess = tf.where(scored.keep, tf.nn.relu(lead(scored) + self.margin), 0.0)
        if self.focus is None:
            return mean_over_kept(excess, scored.keep)
        active = excess > 0
        flat = math.isinf(self.focus)
        weight_logits = tf.zeros_like(excess) if flat else scored.logit / self.focus
        weights = tf.nn.softmax(tf.where(active, tf.stop_gradient(weight_logits), LOWEST))
        return tf.reduce_sum(weights * excess, axis=1)


def mean_over_kept(values: tf.Tensor, keep: tf.Tensor) -> tf.Tensor:
    """Returns [B] float32: the mean of the kept values [B, C] of each row, 0 where none is."""
    total = tf.reduce_sum(tf.where(keep, values, 0.0), axis=1)
    return tf.math.divide_no_nan(total, tf.reduce_sum(tf.cast(keep, tf.float32), axis=1))


def lead(scored: Scored) -> tf.Tensor:
    """Returns [B, C]: by how much each kept negative exceeds the positive, 0 for the others."""
    return tf.where(scored.keep, scored.logit - scored.positive_logit[:, None], 0.0)
