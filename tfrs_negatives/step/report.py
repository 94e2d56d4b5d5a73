"""What the last training step was made of, for one line in the log and for the training logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfrs_negatives.core.replicas import all_rows, num_replicas
from tfrs_negatives.step.records import CandidatePool, StepContext


class StepReport(tf.keras.layers.Layer):
    """Counts queries, columns per source and masked columns.

    Args:
        num_sources: how many sources the task has.
        has_masks: whether a share of masked columns is worth a metric.
        has_miners: the same for a share of rows that the miners left without any negative.
    """

    def __init__(
        self, num_sources: int, *, has_masks: bool, has_miners: bool, **kwargs: Any
    ) -> None:
        super().__init__(**{"name": "step_report", "dtype": "float32", **kwargs})
        self.num_sources = num_sources
        zeros = tf.keras.initializers.Zeros()
        self.num_queries = self.add_weight("num_queries", [], tf.int32, zeros, trainable=False)
        # Of columns of single rows there are as many as a row has on average.
        self.columns = self.add_weight("columns", [num_sources], tf.float32, zeros, trainable=False)
        self.corrected = self.add_weight("corrected", [], tf.bool, zeros, trainable=False)
        self.num_replicas = self.add_weight("num_replicas", [], tf.int32, zeros, trainable=False)
        self.masked_share = tf.keras.metrics.Mean("masked_share") if has_masks else None
        self.empty_rows = tf.keras.metrics.Mean("empty_row_share") if has_miners else None

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
        per_source, num_columns = tf.zeros([self.num_sources]), tf.zeros([])
        for pool in pools:
            filled = tf.cast(pool.filled, tf.float32)
            if pool.filled.shape.rank == 1:
                num_columns += rows * tf.reduce_sum(filled)
                per_source += self._by_source(filled, pool)
            else:
                num_columns += tf.reduce_sum(filled)
                own = self._by_source(tf.reduce_sum(filled, axis=0), pool)
                own = tf.reduce_sum(all_rows(own[None]), axis=0)
                per_source += own / tf.cast(context.num_queries, tf.float32)
            num_columns -= tf.reduce_sum(tf.cast(pool.own_rows >= 0, tf.float32))
        self.num_queries.assign(context.num_queries)
        self.num_replicas.assign(num_replicas())
        self.columns.assign(per_source)
        self.corrected.assign(pools[0].log_expected_count is not None)
        if self.masked_share is not None:
            self.masked_share.total.assign_add(num_columns - num_kept)
            self.masked_share.count.assign_add(num_columns)

    def record_mined(self, some: tf.Tensor) -> None:
        """Counts the rows of this replica that have any negative, [B] bool, and those without."""
        if self.empty_rows is not None:
            empty = tf.cast(~some, tf.float32)
            self.empty_rows.total.assign_add(tf.reduce_sum(empty))
            self.empty_rows.count.assign_add(tf.reduce_sum(tf.ones_like(empty)))

    def lacks_negatives(self, num_own: int) -> bool:
        """Returns whether not one row had a negative.

        Args:
            num_own: how many columns of a row are its own positive.
        """
        means = (self.masked_share, self.empty_rows)
        lost = [mean for mean in means if mean is not None and mean.count.numpy() > 0]
        none_left = any(mean.total.numpy() >= mean.count.numpy() for mean in lost)
        return none_left or sum(self.columns.numpy()) <= num_own

    def _by_source(self, filled: tf.Tensor, pool: CandidatePool) -> tf.Tensor:
        return tf.math.unsorted_segment_sum(filled, pool.origin, self.num_sources)

    def describe(self, names: Sequence[str]) -> str:
        """Returns "2048 queries, 4096 columns (in_batch 2048, uniform 2048), masked 0.35%, ..."."""
        columns = self.columns.numpy().tolist()
        parts = ", ".join(f"{name} {_short(n)}" for name, n in zip(names, columns, strict=True))
        masked = "nothing" if self.masked_share is None else f"{self.masked_share.result():.2%}"
        queries = self.num_queries.numpy()
        return (
            f"{queries} queries, {_short(sum(columns))} columns ({parts}), masked {masked}, "
            f"replicas {self.num_replicas.numpy()}"
        )


def _short(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:.1f}"
