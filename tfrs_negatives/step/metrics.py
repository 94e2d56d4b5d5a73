"""The losses and metrics that Keras and TFRS know, on the scored candidates of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfrs_negatives.step.records import Batch, Loss, Scored

# What a masked logit becomes for losses and metrics of Keras, which know no mask.
MASKED_LOGIT = tf.float32.min / 100.0


class KerasLoss(Loss):
    """A loss of Keras on one-hot labels and logits, with a reduction and weights of its own.

    Args:
        loss: labels [B, C] and logits [B, C] to a scalar.
    """

    def __init__(self, loss: tf.keras.losses.Loss) -> None:
        self.loss = loss

    def __call__(self, scored: Scored, batch: Batch | None = None) -> tf.Tensor:
        """Returns a scalar: what the loss makes of the batch."""
        labels, logits = one_hot_labels(scored)
        weights = None if batch is None else batch.sample_weight
        return self.loss(labels, logits, sample_weight=weights)


def one_hot_labels(scored: Scored) -> tuple[tf.Tensor, tf.Tensor]:
    """Lays logits out as losses and metrics of Keras and TFRS know them.

    Args:
        scored: B rows of C candidates.

    Returns:
        One-hot labels and logits: [B, C] float32 with the positive in its own column where it has
        one, else [B, 1 + C] with the positive first.
    """
    positive, logits = scored.positive_logit, tf.where(scored.keep, scored.logit, MASKED_LOGIT)
    if scored.has_own:
        own = tf.equal(scored.own_rows, tf.range(tf.shape(positive)[0])[:, None])
        return tf.cast(own, tf.float32), tf.where(own, positive[:, None], logits)
    logits = tf.concat([positive[:, None], logits], axis=1)
    return tf.one_hot(tf.zeros_like(positive, tf.int32), tf.shape(logits)[1]), logits


def update_factorized_metrics(
    metrics: Sequence[Any],
    batch: Batch,
    ids: tf.Tensor | None,
    sample_weight: tf.Tensor | None,
) -> None:
    """Updates metrics over the corpus with the positives only: they have no place for more."""
    rows = tf.shape(batch.queries)[0]
    for metric in metrics:
        metric.update_state(
            batch.queries,
            batch.positives,
            true_candidate_ids=None if ids is None else ids[:rows],
            sample_weight=sample_weight,
        )
