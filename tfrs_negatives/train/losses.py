"""Logits to one number per row."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfrs_negatives.types import Logits, Margin, Part, bad_input

# What a masked logit becomes for losses and metrics of Keras, which know no mask.
MASKED_LOGIT = tf.float32.min / 100.0


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class SampledSoftmax(Part):
    """Cross-entropy of picking the positive among itself and the columns that count.

        loss_i = log(exp(s_i+) + sum_{j kept} exp(s_ij)) - s_i+

    computed as softplus(log-sum-exp of the negatives - s_i+). A row without any negative has loss 0
    and gradient 0.

    Example:
        >>> logits = Logits(tf.zeros([1]), tf.zeros([1, 3]), tf.constant([[True, True, False]]))
        >>> round(float(SampledSoftmax()(logits)[0]), 4)     # log 3
        1.0986

    Relations: with the whole catalogue as the pool, each item once, and no correction this is the
    full softmax.

    Source: Yi et al., RecSys 2019, equation 5; Yang et al., WWW 2020, equation 5.
    """

    def __call__(self, logits: Logits) -> tf.Tensor:
        """Returns [B] float32."""
        negatives, keep, positive = logits.negatives, logits.keep, logits.positive
        return softmax_loss(masked_log_sum_exp(negatives, keep, origin=positive))

    def of_margins(self, shared: Margin, own: Margin | None) -> tf.Tensor:
        """The same from the log-sums of the shared columns and of each row's own, [B] float32."""
        return softmax_loss(shared if own is None else _together(shared, own))


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class EasyHardMixture(Part):
    """A fixed share of the loss for the row's own negatives, the rest for the shared ones.

        loss_i = (1 - a) softmax_loss(easy columns) + a softmax_loss(hard columns)

    Hard are the columns of each row (`Explicit`), easy the shared ones. Neither can drown the other
    however many they are. A row with one kind only gets the loss of that kind.

    Args:
        hard_share: a, in [0, 1].

    Raises:
        InputError: if the share is outside [0, 1].

    Example:
        >>> keep, explicit = tf.ones([1, 4], tf.bool), tf.constant([False, False, False, True])
        >>> logits = Logits(tf.zeros([1]), tf.zeros([1, 4]), keep, explicit)
        >>> round(float(EasyHardMixture(0.5)(logits)[0]), 4)     # (log 4 + log 2) / 2
        1.0397

    Relations: without any column of a row this is `SampledSoftmax`.

    Source: the half easy, half hard mixture of ALG 14.2, as two losses.
    """

    def __init__(self, hard_share: float = 0.5) -> None:
        if not 0 <= hard_share <= 1:
            raise bad_input("hard_share", "a number in [0, 1]", hard_share)
        self.hard_share = float(hard_share)

    def __call__(self, logits: Logits) -> tf.Tensor:
        """Returns [B] float32."""
        explicit = tf.convert_to_tensor(logits.explicit)
        easy, hard = (
            masked_log_sum_exp(logits.negatives, logits.keep & kind, origin=logits.positive)
            for kind in (~explicit, explicit)
        )
        return self.of_margins(easy, hard)

    def of_margins(self, shared: Margin, own: Margin | None) -> tf.Tensor:
        """The same from the log-sums of the shared columns and of each row's own, [B] float32."""
        if own is None:
            return softmax_loss(shared)
        share = tf.where(own.some, tf.where(shared.some, self.hard_share, 1.0), 0.0)
        return (1.0 - share) * softmax_loss(shared) + share * softmax_loss(own)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"hard_share": self.hard_share}


def softmax_loss(margin: Margin) -> tf.Tensor:
    """Minus the log share of the positive among itself and its negatives.

    Args:
        margin: of the negatives over the positive.

    Returns:
        [B] float32, softplus(value); 0 with gradient 0 for a row without negatives.
    """
    return tf.where(margin.some, tf.math.softplus(margin.value), 0.0)


def _together(one: Margin, other: Margin) -> Margin:
    # A value of 0 that stands for no negatives must not count.
    values = tf.stack([tf.where(m.some, m.value, tf.float32.min) for m in (one, other)], axis=1)
    some = one.some | other.some
    return Margin(some, tf.where(some, tf.reduce_logsumexp(values, axis=1), 0.0))


def masked_log_sum_exp(logits: tf.Tensor, keep: tf.Tensor, *, origin: tf.Tensor) -> Margin:
    """Log-sum-exp over the kept columns of each row, as its distance from a number of the row.

    Args:
        logits: [B, C] float32.
        keep: [B, C] bool.
        origin: [B] float32, subtracted.

    Returns:
        Whether each row has any kept column, and the value.
    """
    lowest = logits.dtype.min
    kept = tf.where(keep, logits, lowest)
    peak = tf.stop_gradient(tf.reduce_max(kept, axis=1))
    some = tf.reduce_any(keep, axis=1)
    # Shifted before it is masked: an extreme peak cannot lift a masked column above zero weight.
    weights = tf.exp(tf.where(keep, logits - peak[:, None], lowest))
    total = tf.where(some, tf.reduce_sum(weights, axis=1), 1.0)
    # Peak and origin first: their difference is small where both are large, the rest is rounded.
    # The `where` keeps the gradient of an empty row at 0.
    return Margin(some, tf.where(some, peak - origin, 0.0) + tf.math.log(total))


def one_hot_labels(logits: Logits, *, own_rows: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
    """Lays logits out as losses and metrics of Keras and TFRS know them.

    Args:
        logits: positive [B] and negatives [B, C].
        own_rows: [C] int32, the row whose positive each column is, -1 for none; None where the
            positives have no columns.

    Returns:
        One-hot labels and logits, both [B, C] float32 with the positive in its own column, or
        [B, 1 + C] with the positive first.
    """
    negatives = tf.where(logits.keep, logits.negatives, MASKED_LOGIT)
    if own_rows is not None:
        own = own_rows[None, :] == tf.range(tf.shape(logits.positive)[0])[:, None]
        return tf.cast(own, tf.float32), tf.where(own, logits.positive[:, None], negatives)
    scores = tf.concat([logits.positive[:, None], negatives], axis=1)
    labels = tf.one_hot(tf.zeros_like(logits.positive, tf.int32), tf.shape(scores)[1])
    return labels, scores
