"""Scored candidates to one number per row."""

from __future__ import annotations

import math

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.step.records import Batch, Excess, Loss, Scored

LOWEST = tf.float32.min


@part("loss")
class SampledSoftmax(Loss):
    """Cross-entropy of picking the positive among itself and the candidates that count.

        loss_i = log(exp(s_i+) + sum_{j kept} exp(s_ij)) - s_i+

    computed as softplus(log-sum-exp of the negatives - s_i+). A row without any negative has loss 0
    and gradient 0.

    Example:
        >>> scored = Scored(tf.zeros([1]), tf.zeros([1, 3]), tf.constant([[True, True, False]]))
        >>> round(float(SampledSoftmax()(scored)[0]), 4)     # log 3
        1.0986

    Relations: with the whole catalogue as the pool, each item once, and no correction this is the
    full softmax.

    Source: Yi et al., RecSys 2019, equation 5; Yang et al., WWW 2020, equation 5.
    """

    folds = True

    def __call__(self, scored: Scored, batch: Batch | None = None) -> tf.Tensor:
        """Returns [B] float32."""
        return softmax_loss(
            masked_log_sum_exp(scored.logit, scored.keep, positive=scored.positive_logit)
        )

    def of_excess(self, shared: Excess, own: Excess | None) -> tf.Tensor:
        """The same from log-sums: of the shared candidates and of each row's own, [B] float32."""
        return softmax_loss(shared if own is None else _together(shared, own))


@part("loss")
class EasyHardMixture(Loss):
    """A fixed share of the loss for the row's own negatives, the rest for the shared ones.

        loss_i = (1 - a) softmax_loss(easy candidates) + a softmax_loss(hard candidates)

    Hard are the candidates of each row (`Explicit`), easy the shared ones. Neither can drown the
    other however many they are. A row with one kind only gets the loss of that kind.

    Args:
        hard_share: a, in [0, 1].

    Raises:
        InputError: if the share is outside [0, 1].

    Example:
        >>> keep, hard = tf.ones([1, 4], tf.bool), tf.constant([False, False, False, True])
        >>> scored = Scored(tf.zeros([1]), tf.zeros([1, 4]), keep, per_row=hard)
        >>> round(float(EasyHardMixture(0.5)(scored)[0]), 4)     # (log 4 + log 2) / 2
        1.0397

    Relations: without any candidate of a row this is `SampledSoftmax`.

    Source: the mixtures of easy and hard negatives of Huang et al., KDD 2020, as two losses.
    """

    folds = True

    def __init__(self, hard_share: float = 0.5) -> None:
        if not 0 <= hard_share <= 1:
            raise bad_input("hard_share", "a number in [0, 1]", hard_share)
        self.hard_share = float(hard_share)

    def __call__(self, scored: Scored, batch: Batch | None = None) -> tf.Tensor:
        """Returns [B] float32."""
        per_row = tf.convert_to_tensor(scored.per_row)
        easy, hard = (
            masked_log_sum_exp(scored.logit, scored.keep & kind, positive=scored.positive_logit)
            for kind in (~per_row, per_row)
        )
        return self.of_excess(easy, hard)

    def of_excess(self, shared: Excess, own: Excess | None) -> tf.Tensor:
        """The same from log-sums: of the shared candidates and of each row's own, [B] float32."""
        if own is None:
            return softmax_loss(shared)
        share = tf.where(own.some, tf.where(shared.some, self.hard_share, 1.0), 0.0)
        return (1.0 - share) * softmax_loss(shared) + share * softmax_loss(own)


@part("loss")
class DecoupledSoftmax(Loss):
    """Sampled softmax of several positives per row, none of which competes with another.

        loss_i = 1 / |P_i| sum_{p in P_i} log(1 + sum_{j kept} exp(s_ij - s_ip))

    P_i are the row's own positive and the candidates that hold another item which a mask knows to
    be one (`KnownPositives`, or `AccidentalHits` with `more_positives`), each item once. The other
    positives of a softmax would share the probability of 1; here each may have it all.

    Example:
        >>> from tfrs_negatives.step.records import MorePositives
        >>> keep, marks = tf.constant([[True, True, False]]), tf.constant([[False, False, True]])
        >>> more = MorePositives(marks, tf.zeros([1, 3]), tf.zeros([1, 3]))
        >>> scored = Scored(tf.zeros([1]), tf.zeros([1, 3]), keep, more_positives=more)
        >>> round(float(DecoupledSoftmax()(scored)[0]), 4)     # log 3, for both positives
        1.0986

    Relations: where no mask knows another positive this is `SampledSoftmax`.

    Source: Gupta et al., ICLR 2024 (DEXML), decoupled softmax.
    """

    def __call__(self, scored: Scored, batch: Batch | None = None) -> tf.Tensor:
        """Returns [B] float32."""
        positive, more = scored.positive_logit, scored.more_positives
        excess = masked_log_sum_exp(scored.logit, scored.keep, positive=positive)
        own = softmax_loss(excess)
        if more is None:
            return own
        marks = more.marks & excess.some[:, None]
        lead = tf.where(marks, positive[:, None] - more.logit, 0.0)
        others = tf.where(marks, tf.math.softplus(excess.value[:, None] + lead), 0.0)
        number = 1.0 + tf.reduce_sum(tf.cast(marks, tf.float32), axis=1)
        return (own + tf.reduce_sum(others, axis=1)) / number


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
        return mean_over_kept(tf.math.softplus(self.scale * _lead(scored)), scored.keep)


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
        excess = tf.where(scored.keep, tf.nn.relu(_lead(scored) + self.margin), 0.0)
        if self.focus is None:
            return mean_over_kept(excess, scored.keep)
        active = excess > 0
        flat = math.isinf(self.focus)
        weight_logits = tf.zeros_like(excess) if flat else scored.logit / self.focus
        weights = tf.nn.softmax(tf.where(active, tf.stop_gradient(weight_logits), LOWEST))
        return tf.reduce_sum(weights * excess, axis=1)


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


def mean_over_kept(values: tf.Tensor, keep: tf.Tensor) -> tf.Tensor:
    """Returns [B] float32: the mean of the kept values [B, C] of each row, 0 where none is."""
    total = tf.reduce_sum(tf.where(keep, values, 0.0), axis=1)
    return tf.math.divide_no_nan(total, tf.reduce_sum(tf.cast(keep, tf.float32), axis=1))


def _lead(scored: Scored) -> tf.Tensor:
    """Returns [B, C]: by how much each kept negative exceeds the positive, 0 for the others."""
    return tf.where(scored.keep, scored.logit - scored.positive_logit[:, None], 0.0)


def softmax_loss(excess: Excess) -> tf.Tensor:
    """Minus the log share of the positive among itself and its negatives.

    Args:
        excess: of the negatives over the positive.

    Returns:
        [B] float32, softplus(value); 0 with gradient 0 for a row without negatives.
    """
    return tf.where(excess.some, tf.math.softplus(excess.value), 0.0)


def _together(one: Excess, other: Excess) -> Excess:
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
