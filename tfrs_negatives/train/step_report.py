"""What the last training step was made of, for one line in the log and for the training logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfrs_negatives.types import CandidatePool, StepContext


class StepReport(tf.keras.layers.Layer):
    """Counts queries, columns per source and masked columns.

    Args:
        num_sources: how many sources the task has.
        has_masks: whether a share of masked columns is worth a metric.
    """

    def __init__(self, num_sources: int, *, has_masks: bool, **kwargs: Any) -> None:
        super().__init__(**{"name": "step_report", "dtype": "float32", **kwargs})
        self.num_sources = num_sources
        zeros = tf.keras.initializers.Zeros()
        self.num_queries = self.add_weight("num_queries", [], tf.int32, zeros, trainable=False)
        # Of columns of single rows there are as many as a row has on average.
        self.columns = self.add_weight("columns", [num_sources], tf.float32, zeros, trainable=False)
        self.corrected = self.add_weight("corrected", [], tf.bool, zeros, trainable=False)
        self.masked_share = tf.keras.metrics.Mean("masked_share") if has_masks else None

    def record(
        self, pools: Sequence[CandidatePool], context: StepContext, *, num_kept: tf.Tensor
    ) -> None:
        """Takes in one step.

        Args:
            pools: the columns of the step.
            context: the step.
            num_kept: how many columns counted, over all rows of this replica.
        """
        rows = tf.cast(tf.shape(context.query_embeddings)[0], tf.float32)
        per_source = tf.zeros([self.num_sources])
        own = tf.zeros([])
        for pool in pools:
            filled = tf.cast(pool.filled, tf.float32)
            if pool.filled.shape.rank == 2:
                filled = tf.math.divide_no_nan(tf.reduce_sum(filled, axis=0), rows)
            per_source += tf.math.unsorted_segment_sum(filled, pool.origin, self.num_sources)
            own += tf.reduce_sum(tf.cast(pool.own_rows >= 0, tf.float32))
        self.num_queries.assign(context.num_queries)
        self.columns.assign(per_source)
        self.corrected.assign(pools[0].log_expected_count is not None)
        if self.masked_share is not None:
            columns = rows * tf.reduce_sum(per_source) - own
            share = 1.0 - num_kept / tf.maximum(columns, 1.0)
            self.masked_share.update_state(share, sample_weight=rows)

    def describe(self, names: Sequence[str]) -> str:
        """Returns "2048 queries, 4096 columns (in_batch 2048, uniform 2048), masked 0.35%"."""
        columns = self.columns.numpy().tolist()
        parts = ", ".join(f"{name} {_short(n)}" for name, n in zip(names, columns, strict=True))
        masked = "nothing" if self.masked_share is None else f"{self.masked_share.result():.2%}"
        queries = int(self.num_queries)
        return f"{queries} queries, {_short(sum(columns))} columns ({parts}), masked {masked}"


def _short(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:.1f}"
