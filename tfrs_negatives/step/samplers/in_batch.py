"""Negatives that are there anyway: the positives of the other rows."""

from __future__ import annotations

import tensorflow as tf

from tfrs_negatives.core.part import Part
from tfrs_negatives.step.records import Candidates, StepContext


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class InBatch(Part):
    """The positives of the other rows of the batch, on all replicas.

    The expected count of an item is n q, for n columns drawn from the stream of positives with
    probability q each. Extra candidate rows that the caller passes to the task are columns of the
    same stream.

    Example:
        >>> InBatch().name
        'in_batch'

    Source: Yi et al., RecSys 2019, section 3.
    """

    name = "in_batch"
    needs_frequency = True

    def propose(self, context: StepContext) -> Candidates:
        """Returns the items of the batch [n, D]."""
        filled = tf.ones_like(context.own_rows, tf.bool)
        return Candidates(context.item_ids, context.item_embeddings, filled, context.own_rows)

    def log_expected_count(self, ids: tf.Tensor, context: StepContext) -> tf.Tensor:
        """Returns log(n q), float32, the shape of ids."""
        num_items = tf.cast(tf.shape(context.item_ids)[0], tf.float32)
        return tf.math.log(num_items) + context.log_probability(ids)
