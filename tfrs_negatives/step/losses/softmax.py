"""Losses that pick the positive among all that count."""

from __future__ import annotations

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.step.losses.log_sums import masked_log_sum_exp, softmax_loss, together
from tfrs_negatives.step.records import Batch, Excess, Loss, Scored


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
        return softmax_loss(shared if own is None else together(shared, own))


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
class SoftmaxOverPositives(Loss):
    """Sampled softmax of several positives per row, which compete with each other.

        loss_i = 1 / |P_i| sum_{p in P_i} (z_i - s_ip)
        z_i    = log(sum_{p in P_i} exp(s_ip) + sum_{j kept} exp(s_ij))

    P_i are the row's own positive and the candidates that hold another item which a mask knows to
    be one, as in `DecoupledSoftmax`. All of them stay in the denominator: they share the
    probability of 1, and at the optimum each has 1 / |P_i|.

    Example:
        >>> from tfrs_negatives.step.records import MorePositives
        >>> keep, marks = tf.constant([[True, True, False]]), tf.constant([[False, False, True]])
        >>> more = MorePositives(marks, tf.zeros([1, 3]), tf.zeros([1, 3]))
        >>> scored = Scored(tf.zeros([1]), tf.zeros([1, 3]), keep, more_positives=more)
        >>> round(float(SoftmaxOverPositives()(scored)[0]), 4)     # log 4, for both positives
        1.3863

    Relations: where no mask knows another positive this is `SampledSoftmax`. With one positive
        drawn per row it is `SampledSoftmax` without a mask.

    Source: the softmax of Gupta et al., ICLR 2024 (DEXML), which sums over the positives of a query
        where this is the mean, so that a query with many of them weighs no more.
    """

    def __call__(self, scored: Scored, batch: Batch | None = None) -> tf.Tensor:
        """Returns [B] float32; 0 with gradient 0 for a row without negatives."""
        positive, more = scored.positive_logit, scored.more_positives
        excess = masked_log_sum_exp(scored.logit, scored.keep, positive=positive)
        if more is None:
            return softmax_loss(excess)
        marks = more.marks & excess.some[:, None]
        others = masked_log_sum_exp(more.logit, marks, positive=positive)
        lead = tf.where(marks, more.logit - positive[:, None], 0.0)
        number = 1.0 + tf.reduce_sum(tf.cast(marks, tf.float32), axis=1)
        return softmax_loss(together(excess, others)) - tf.reduce_sum(lead, axis=1) / number
