"""Losses that compare the positive with one negative at a time."""

from __future__ import annotations

import math

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.step.losses.counted import LOWEST, Counted, counted
from tfrs_negatives.step.records import Batch, Loss, Scored

# The least difference of losses, in nats, that makes a difference of weights.
MIN_SPREAD = 1e-3


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


@part("loss")
class SoftPartialAUC(Loss):
    """BPR whose pairs weigh more the more they lose: a smooth partial area under the ROC curve.

        loss_i = sum_{j kept} w_ij z_ij,  z_ij = log(1 + exp(s_ij - s_i+))
        w_ij  ~ exp(z_ij / t_i) / c_j,    t_i = sqrt(var_j(z_ij) / (2 radius))

    The weights have no gradient. They are those that make the sum largest among all whose
    Kullback-Leibler divergence from equal weights is no larger than theirs. That divergence is
    `radius` for a small one, to second order, and never more than the log of the number of
    candidates. `BPR` with `Hardest` is the same with a sharp edge.

    The scores are those before the correction; the expected counts c_j, where they are known, make
    the equal weights those of uniform draws. t is at least 0.001, so that scores that are equal but
    for rounding weigh alike.

    Args:
        radius: in nats, larger for a shorter list.

    Raises:
        InputError: if the radius is not positive.

    Example:
        >>> scored = Scored(tf.zeros([1]), tf.constant([[1.0, -1.0]]), tf.ones([1, 2], tf.bool))
        >>> round(float(SoftPartialAUC(0.02)(scored)[0]), 4), round(float(BPR()(scored)[0]), 4)
        (0.9119, 0.8133)

    Relations: radius -> 0 is `BPR`.

    Source: Softmax(rho, N) of Shi et al., WWW 2023: N is the number of candidates. Their code sums
        over the rows and takes the variance with N - 1.
    """

    def __init__(self, radius: float) -> None:
        if not radius > 0:
            raise bad_input("radius", "a positive number", radius)
        self.radius = float(radius)

    def __call__(self, scored: Scored, batch: Batch | None = None) -> tf.Tensor:
        """Returns [B] float32; 0 with gradient 0 for a row without negatives."""
        candidates = counted(scored)
        ahead = candidates.score - candidates.positive[:, None]
        lost = tf.math.softplus(tf.where(scored.keep, ahead, 0.0))
        harder = tf.stop_gradient(self._harder(candidates, lost))
        return candidates._replace(log_weight=candidates.log_weight + harder).mean(lost)

    def _harder(self, candidates: Counted, lost: tf.Tensor) -> tf.Tensor:
        """Returns [B, C]: what is added to the log weights, (z - mean z) / t."""
        distance = lost - candidates.mean(lost)[:, None]
        # In units of the largest one, whose square is finite.
        unit = tf.reduce_max(tf.where(candidates.keep, tf.abs(distance), 0.0), axis=1)
        variance = candidates.mean(tf.square(tf.math.divide_no_nan(distance, unit[:, None])))
        spread = unit * tf.sqrt(variance / (2.0 * self.radius))
        return distance / tf.maximum(spread, MIN_SPREAD)[:, None]


def mean_over_kept(values: tf.Tensor, keep: tf.Tensor) -> tf.Tensor:
    """Returns [B] float32: the mean of the kept values [B, C] of each row, 0 where none is."""
    total = tf.reduce_sum(tf.where(keep, values, 0.0), axis=1)
    return tf.math.divide_no_nan(total, tf.reduce_sum(tf.cast(keep, tf.float32), axis=1))


def lead(scored: Scored) -> tf.Tensor:
    """Returns [B, C]: by how much each kept negative exceeds the positive, 0 for the others."""
    return tf.where(scored.keep, scored.logit - scored.positive_logit[:, None], 0.0)
