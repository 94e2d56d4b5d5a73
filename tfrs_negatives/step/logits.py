"""Pools to logits, or straight to the loss of each row where the logits would not fit."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.replicas import place_of_rows
from tfrs_negatives.core.types import CorrectionPolicy
from tfrs_negatives.step.blocks import chunked_log_sum_exp, columns_within
from tfrs_negatives.step.correction import correct_logits
from tfrs_negatives.step.losses import masked_log_sum_exp
from tfrs_negatives.step.masks.keep import apply_masks
from tfrs_negatives.step.merge import slice_columns
from tfrs_negatives.step.records import (
    CandidatePool,
    Logits,
    Margin,
    Mask,
    Miner,
    SoftmaxLoss,
    StepContext,
)
from tfrs_negatives.step.score import Affinity

# Blocks of this size are the fastest: they stay near the cache, and their products are large.
BLOCK_BYTES = 2**24
# The rows that blocks are cut for where the size of the batch is not known in advance.
USUAL_ROWS = 4096


class Scorer(NamedTuple):
    """Arrows of the step: scores, masks, correction, and the miners that only drop columns."""

    affinity: Affinity
    masks: Sequence[Mask]
    policy: CorrectionPolicy | None
    strength: float
    filters: Sequence[Miner] = ()

    def logits(
        self,
        pools: Sequence[CandidatePool],
        context: StepContext,
        *,
        score_mask: tf.Tensor | None = None,
    ) -> Logits:
        """Scores, masks, corrects and filters every column; the rows' own ones stand last.

        Args:
            pools: the columns.
            context: the step.
            score_mask: [B, n] bool of the caller for the n candidates of this replica, which stand
                first in the first pool.

        Returns:
            Logits of all columns.
        """
        if score_mask is not None:
            first, _ = place_of_rows(tf.shape(score_mask)[1])
            score_mask = tf.pad(score_mask, [[0, 0], [first, 0]], constant_values=True)
        parts = []
        for pool in pools:
            scores = self.affinity(pool, context)
            scores = apply_masks(scores, pool, context, self.masks, score_mask=score_mask)
            parts.append(self.correct(scores, pool))
            score_mask = None
        explicit = [tf.fill(tf.shape(p.origin), p.ids.shape.rank == 2) for p in pools]
        logits = Logits(
            parts[0].positive,
            tf.concat([p.negatives for p in parts], axis=1),
            tf.concat([p.keep for p in parts], axis=1),
            tf.concat(explicit, axis=0),
            parts[0].positive_score,
            tf.concat([p.scores for p in parts], axis=1),
            parts[0].more_positives,
        )
        return self.filter(logits, context)

    def filter(self, logits: Logits, context: StepContext) -> Logits:
        """Drops the columns that a miner does not want."""
        for miner in self.filters:
            logits = miner.mine(logits, context)
        return logits

    def correct(self, scores: Logits, pool: CandidatePool) -> Logits:
        """Subtracts the log expected counts."""
        return correct_logits(scores, pool, policy=self.policy, strength=self.strength)

    def margin_in_blocks(
        self, pool: CandidatePool, context: StepContext, *, block_width: int, byte_budget: int
    ) -> tuple[Margin, tf.Tensor]:
        """The log-sum of shared columns, a block of them at a time.

        Args:
            pool: C shared columns.
            context: the step.
            block_width: how many columns at a time.
            byte_budget: within which the weights of all are remembered for the gradient.

        Returns:
            The margin of each row, and how many columns counted over all rows.
        """
        vectors, bias = self.affinity.columns(pool)
        queries = self.affinity.queries(context)
        positive = self.affinity.positives(queries, context)
        alone = self.correct(Logits(positive, bias[None, :], tf.constant(True)), pool)
        # An empty slot is left out by its shift, which costs no pass over [B, C].
        shift = tf.where(pool.filled, alone.negatives[0], -math.inf)
        correction = tf.stop_gradient(tf.where(pool.filled, bias - shift, 0.0))
        own, own_score = tf.stop_gradient(alone.positive), tf.stop_gradient(positive)

        def keep(start: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
            width = tf.shape(logits)[1]
            block = slice_columns(pool, start, width)
            # Masks read scores, as they are before the correction.
            before = logits + tf.slice(correction, [start], [width])
            scores = Logits(own_score, before, tf.constant(True))
            masks = [mask.keep(scores, block, context) for mask in self.masks]
            others = tf.ones_like(logits, tf.bool)
            if self.filters:  # A miner is not to see the row's own positive among the negatives.
                rows = tf.range(tf.shape(logits)[0])[:, None]
                others = tf.not_equal(block.own_rows, rows)
            kept = functools.reduce(tf.logical_and, masks, others)
            of_block = Logits(own, logits, kept, positive_score=own_score, scores=before)
            return self.filter(of_block, context).keep

        return chunked_log_sum_exp(
            queries,
            vectors,
            shift,
            keep=keep if self.masks or self.filters else None,
            origin=alone.positive,
            block_width=block_width,
            own_rows=pool.own_rows,
            byte_budget=byte_budget,
            learns_shift=self.affinity.item_bias is not None,
            # An item bias learns from stale columns too.
            stale_from=pool.num_fresh if self.affinity.item_bias is None else None,
        )


def loss_within_budget(
    loss: SoftmaxLoss,
    scorer: Scorer,
    pools: Sequence[CandidatePool],
    context: StepContext,
    *,
    byte_budget: int,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Computes the loss in blocks of shared columns; where each row has its own, from all logits.

    Args:
        loss: a loss that needs log-sums only.
        scorer: scores, masks and correction.
        pools: the columns.
        context: the step.
        byte_budget: bytes that the logits of the shared columns may take at once; beyond, each
            block is computed twice.

    Returns:
        The loss of each row, [B], whether it has any negative, [B] bool, and how many columns
        counted over all rows.

    Raises:
        InputError: if the budget does not hold one column.
    """

    def at_once() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        logits = scorer.logits(pools, context)
        some = tf.reduce_any(logits.keep, axis=1)
        return loss(logits), some, tf.reduce_sum(tf.cast(logits.keep, tf.float32))

    def in_blocks() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        width = _block_width(context.query_embeddings, byte_budget)
        shared, num_kept = scorer.margin_in_blocks(
            pools[0], context, block_width=width, byte_budget=byte_budget
        )
        if len(pools) == 1:
            return loss.of_margins(shared, None), shared.some, num_kept
        own = scorer.logits(pools[1:], context)
        margin = masked_log_sum_exp(own.negatives, own.keep, origin=own.positive)
        num_kept += tf.reduce_sum(tf.cast(own.keep, tf.float32))
        return loss.of_margins(shared, margin), shared.some | margin.some, num_kept

    return at_once() if pools[0].ids.shape.rank == 2 else in_blocks()


def _block_width(queries: tf.Tensor, byte_budget: int) -> int:
    rows, budget = queries.shape[0], min(byte_budget, BLOCK_BYTES)
    width = columns_within(budget, USUAL_ROWS if rows is None else max(rows, 1))
    if width < 1:
        least = 4 * (USUAL_ROWS if rows is None else rows)
        raise bad_input("logits_budget", f"at least {least} bytes, one column", byte_budget)
    return width
