"""What the last training step was made of, for one line in the log and for the training logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfrs_negatives.core.replicas import all_rows, num_replicas, place_of_rows
from tfrs_negatives.step.records import Batch, Pool


class StepReport(tf.keras.layers.Layer):
    """Counts queries, candidates per sampler and masked candidates.

    Args:
        num_samplers: how many samplers the task has.
        has_masks: whether a share of masked candidates is worth a metric.
        has_miners: the same for a share of rows that the miners left without any negative.
    """

    def __init__(
        self, num_samplers: int, *, has_masks: bool, has_miners: bool, **kwargs: Any
    ) -> None:
        super().__init__(**{"name": "step_report", "dtype": "float32", **kwargs})
        self.num_samplers = num_samplers
        zeros = tf.keras.initializers.Zeros()
        self.num_queries = self.add_weight("num_queries", [], tf.int32, zeros, trainable=False)
        # Of candidates of single rows there are as many as a row has on average.
        self.candidates = self.add_weight(
            "candidates", [num_samplers], tf.float32, zeros, trainable=False
        )
        self.corrected = self.add_weight("corrected", [], tf.bool, zeros, trainable=False)
        self.num_replicas = self.add_weight("num_replicas", [], tf.int32, zeros, trainable=False)
        self.masked_share = tf.keras.metrics.Mean("masked_share") if has_masks else None
        self.empty_rows = tf.keras.metrics.Mean("empty_row_share") if has_miners else None

    def record(
        self,
        pools: Sequence[Pool],
        batch: Batch,
        *,
        some: tf.Tensor,
        num_kept: tf.Tensor,
        by_query: bool = False,
    ) -> None:
        """Takes in one step.

        Args:
            pools: the candidates of the step.
            batch: the step.
            some: [B] bool, the rows of this replica that have any negative in the end.
            num_kept: how many candidates the masks left, over all rows of this replica.
            by_query: whether the shared candidates are counted once for each query.
        """
        num_candidates = self._record_pools(pools, batch.of_queries() if by_query else batch)
        grouped = batch.grouped
        num_queries = None if grouped is None else place_of_rows(tf.shape(grouped.vectors)[0])[1]
        self.num_queries.assign(batch.num_queries if num_queries is None else num_queries)
        self.num_replicas.assign(num_replicas())
        self.corrected.assign(pools[0].log_count is not None)
        if self.masked_share is not None:
            self.masked_share.total.assign_add(num_candidates - num_kept)
            self.masked_share.count.assign_add(num_candidates)
        if self.empty_rows is not None:
            empty = tf.cast(~some, tf.float32)
            self.empty_rows.total.assign_add(tf.reduce_sum(empty))
            self.empty_rows.count.assign_add(tf.reduce_sum(tf.ones_like(empty)))

    def _record_pools(self, pools: Sequence[Pool], batch: Batch) -> tf.Tensor:
        """Counts the candidates of each sampler; returns how many all rows have, without own."""
        rows = tf.cast(tf.shape(batch.queries)[0], tf.float32)
        per_sampler, num_candidates = tf.zeros([self.num_samplers]), tf.zeros([])
        for pool in pools:
            valid = tf.cast(pool.valid, tf.float32)
            if not pool.per_row:
                num_candidates += rows * tf.reduce_sum(valid)
                per_sampler += self._by_sampler(valid, pool)
            else:
                num_candidates += tf.reduce_sum(valid)
                own = self._by_sampler(tf.reduce_sum(valid, axis=0), pool)
                own = tf.reduce_sum(all_rows(own[None]), axis=0)
                per_sampler += own / tf.cast(batch.num_queries, tf.float32)
            num_candidates -= _num_own(pool, batch)
        self.candidates.assign(per_sampler)
        return num_candidates

    def lacks_negatives(self, num_own: int) -> bool:
        """Returns whether not one row had a negative.

        Args:
            num_own: how many candidates of a row are its own positive.
        """
        means = (self.masked_share, self.empty_rows)
        lost = [mean for mean in means if mean is not None and mean.count.numpy() > 0]
        none_left = any(mean.total.numpy() >= mean.count.numpy() for mean in lost)
        return none_left or sum(self.candidates.numpy()) <= num_own

    def _by_sampler(self, valid: tf.Tensor, pool: Pool) -> tf.Tensor:
        return tf.math.unsorted_segment_sum(valid, pool.sampler, self.num_samplers)

    def describe(self, names: Sequence[str]) -> str:
        """Returns "64 queries, 96 candidates (in_batch 64, uniform 32), masked 0.35%, ..."."""
        counts = self.candidates.numpy().tolist()
        parts = ", ".join(f"{name} {_short(n)}" for name, n in zip(names, counts, strict=True))
        masked = "nothing" if self.masked_share is None else f"{self.masked_share.result():.2%}"
        queries = self.num_queries.numpy()
        return (
            f"{queries} queries, {_short(sum(counts))} candidates ({parts}), masked {masked}, "
            f"replicas {self.num_replicas.numpy()}"
        )


def _num_own(pool: Pool, batch: Batch) -> tf.Tensor:
    """Returns how many of the candidates are the rows' own positives, over all rows."""
    if batch.grouped is None or pool.per_row:
        return tf.reduce_sum(tf.cast(pool.own_rows >= 0, tf.float32))
    rows = tf.math.bincount(batch.owners, minlength=tf.shape(batch.grouped.vectors)[0])
    own = tf.boolean_mask(pool.own_rows, pool.own_rows >= 0)
    return tf.cast(tf.reduce_sum(tf.gather(rows, own)), tf.float32)


def _short(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:.1f}"
