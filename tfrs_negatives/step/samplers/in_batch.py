"""Negatives that are there anyway: the positives of the other rows."""

from __future__ import annotations

import tensorflow as tf

from tfrs_negatives.core.part import part
from tfrs_negatives.step.records import Batch, Candidates, Sampler


@part("sampler")
class InBatch(Sampler):
    """The positives of the other rows of the batch, on all replicas.

    The expected count of an item is n q, for n candidates drawn from the stream of positives with
    probability q each. Extra candidate rows that the caller passes to the task are candidates of
    the same stream. In batches of queries with all of their positives n is what such a batch has on
    average, where the frequency knows it.

    Example:
        >>> InBatch().name
        'in_batch'

    Source: Yi et al., RecSys 2019, section 3.
    """

    needs_frequency = True

    def sample(self, batch: Batch) -> Candidates:
        """Returns the items of the batch [n, D]."""
        valid = tf.ones_like(batch.own_rows, tf.bool)
        return Candidates(batch.item_ids, batch.items, valid, batch.own_rows)

    def log_count(self, ids: tf.Tensor, batch: Batch) -> tf.Tensor:
        """Returns log(n q), float32, the shape of ids."""
        return tf.math.log(batch.expected_items) + batch.log_probability(ids)
