"""Pools to scored candidates and on to the loss of each row: all at once, or block by block.

There is one way to score. A block of candidates is scored, masked, corrected and filtered; a loss
that needs log-sums only meets one block after the other, any other loss one block of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.step.blocks import chunked_log_sum_exp, columns_within
from tfrs_negatives.step.correction import Correction, added
from tfrs_negatives.step.losses.log_sums import masked_log_sum_exp
from tfrs_negatives.step.masks.apply import apply_masks, kept_by
from tfrs_negatives.step.merge import slice_pool
from tfrs_negatives.step.records import Batch, Excess, Loss, Mask, Miner, Pool, Scored
from tfrs_negatives.step.score import Affinity

# Blocks of this size are the fastest: they stay near the cache, and their products are large.
BLOCK_BYTES = 2**24
# The rows that blocks are cut for where the size of the batch is not known in advance.
USUAL_ROWS = 4096


class Scorer(NamedTuple):
    """What makes logits of candidates, and which of them count.

    Attributes:
        affinity: scores.
        masks: which candidates may count.
        correction: scores to logits.
        byte_budget: bytes that logits may take at once; beyond, each block is computed twice.
    """

    affinity: Affinity
    masks: Sequence[Mask]
    correction: Correction
    byte_budget: int

    def whole(self, pool: Pool, batch: Batch) -> Scored:
        """Returns all candidates of a pool, scored, masked and corrected."""
        offsets = self.correction.offsets(pool)
        positive, score = self.affinity.scores(pool, batch)
        scored = Scored(
            added(positive, offsets.positives),
            added(score, offsets.candidates),
            pool.valid & tf.not_equal(pool.own_rows, batch.owners[:, None]),
            positive,
            score,
            pool.ids,
            pool.sampler,
            pool.log_count,
            pool.own_rows,
            tf.fill(tf.shape(pool.sampler), pool.per_row),
            has_own=pool.has_own,
            vectors=pool.vectors,
        )
        return apply_masks(scored, self.masks, batch, pool, offsets.more_positives)

    def excess_in_blocks(
        self, pool: Pool, batch: Batch, filters: Sequence[Miner]
    ) -> tuple[Excess, tf.Tensor]:
        """The log-sum of shared candidates, a block of them at a time.

        Args:
            pool: C shared candidates.
            batch: the step.
            filters: miners that judge each candidate alone.

        Returns:
            The excess of each row, and how many candidates counted over all rows, or over all
            queries where `by_query`.
        """
        once = self.by_query(batch, filters)
        of_sums = batch.of_queries() if once else batch
        queries = self.affinity.queries(of_sums)
        of_rows = tf.gather(queries, batch.owners) if once else queries
        positive = self.affinity.positives(of_rows, batch)
        own = added(positive, self.correction.offsets(pool).positives)
        if not once:
            return self._log_sums(pool, batch, filters, queries, (own, positive))
        nothing = tf.zeros(tf.shape(queries)[:1])
        sums, num_kept = self._log_sums(pool, of_sums, (), queries, (nothing, nothing))
        some, value = (tf.gather(x, batch.owners) for x in sums)
        return Excess(some, tf.where(some, value - own, 0.0)), num_kept

    def by_query(self, batch: Batch, filters: Sequence[Miner]) -> bool:
        """Returns whether the rows of one query have the same negatives, whose sum serves all."""
        several = batch.grouped is not None
        return several and not filters and all(mask.by_query for mask in self.masks)

    def _log_sums(
        self,
        pool: Pool,
        batch: Batch,
        filters: Sequence[Miner],
        queries: tf.Tensor,
        positives: tuple[tf.Tensor, tf.Tensor],
    ) -> tuple[Excess, tf.Tensor]:
        """The same for the queries of the score, over positives: logits and scores, [B] both."""
        vectors, bias = self.affinity.linear(pool)
        # An empty slot is left out by its shift, which costs no pass over [B, C].
        shift = added(bias, self.correction.offsets(pool).candidates)
        shift = tf.where(pool.valid, shift, -math.inf)
        own, positive = positives
        fixed = tf.stop_gradient(own), tf.stop_gradient(positive)
        undo = tf.stop_gradient(tf.where(pool.valid, bias - shift, 0.0))
        judge = _BlockJudge(self.masks, filters, pool, batch, fixed, undo)
        judged = bool(self.masks or filters) or batch.grouped is not None
        return chunked_log_sum_exp(
            queries,
            vectors,
            shift,
            keep=judge.keep if judged else None,
            positive=own,
            block_width=_block_width(batch.queries, self.byte_budget),
            # A query has several rows there, and the judge leaves its positives out.
            own_rows=pool.own_rows if batch.grouped is None else None,
            byte_budget=self.byte_budget,
            learns_shift=self.affinity.item_bias is not None,
            # An item bias learns from the candidates of the past too.
            stale_from=pool.num_fresh if self.affinity.item_bias is None else None,
        )


class _BlockJudge(NamedTuple):
    """Which candidates of a block count, from their logits.

    Attributes:
        masks: which candidates may count.
        filters: miners that judge each candidate alone.
        pool: C shared candidates.
        batch: the step.
        positive: logit and score of each row's positive, [B] both.
        undo: [C], what takes the correction back.
    """

    masks: Sequence[Mask]
    filters: Sequence[Miner]
    pool: Pool
    batch: Batch
    positive: tuple[tf.Tensor, tf.Tensor]
    undo: tf.Tensor

    def keep(self, start: tf.Tensor, logit: tf.Tensor) -> tf.Tensor:
        """Returns [B, w] bool for the block that begins at `start`.

        Args:
            start: int32 scalar.
            logit: [B, w].
        """
        width = tf.shape(logit)[1]
        block = slice_pool(self.pool, start, width)
        kept = tf.ones_like(logit, tf.bool)
        # A miner is not to see the row's own positive among the negatives.
        if self.filters or self.batch.grouped is not None:
            kept = tf.not_equal(block.own_rows, self.batch.owners[:, None])
        positive_logit, positive_score = self.positive
        score = logit + tf.slice(self.undo, [start], [width])
        scored = Scored(
            positive_logit, logit, kept, positive_score, score, block.ids, block.sampler
        )
        kept, _ = kept_by(self.masks, scored, self.batch)
        return _mined_by(self.filters, scored._replace(keep=kept), self.batch).keep


class ScoredPools:
    """The candidates of a step, scored when somebody asks: all of them, or only their log-sums.

    Args:
        scorer: what makes logits of candidates.
        pools: the shared candidates, and those of each row; one of the two kinds at least.
        batch: the step.
        at_once: whether somebody will read single scores.
        filters: miners that judge each candidate alone, not applied yet.

    Attributes:
        by_query: whether the shared candidates were counted once for each query, not for each row.
    """

    def __init__(
        self,
        scorer: Scorer,
        pools: Sequence[Pool],
        batch: Batch,
        *,
        at_once: bool,
        filters: Sequence[Miner] = (),
    ) -> None:
        self.scorer, self.pools, self.batch, self.filters = scorer, pools, batch, filters
        self._all: Scored | None = None
        self._kept: tuple[tf.Tensor, tf.Tensor] | None = None
        self.by_query = False
        can_mask = all(mask.in_blocks for mask in scorer.masks)
        self.at_once = at_once or pools[0].per_row or batch.several_vectors or not can_mask

    def all(self) -> Scored:
        """Returns all candidates at once; the rows' own ones stand last."""
        if self._all is None:
            parts = [self.scorer.whole(pool, self.batch) for pool in self.pools]
            self._all = _filtered(side_by_side(parts), self.filters, self.batch)
        return self._all

    def mined(self, miner: Miner, batch: Batch) -> ScoredPools:
        """Returns what a miner makes of them; one that judges each alone is only written down."""
        if miner.by_candidate and self._all is None:
            filters = [*self.filters, miner]
            return ScoredPools(
                self.scorer, self.pools, self.batch, at_once=self.at_once, filters=filters
            )
        made = ScoredPools(self.scorer, self.pools, self.batch, at_once=True)
        made._all = miner.mine(self.all(), batch)
        return made

    def losses(self, loss: Loss) -> tf.Tensor:
        """Returns the loss of each row, [B] float32."""
        if self.at_once or not loss.folds:
            return loss(self.all(), self.batch)
        first, *rest = self.pools
        shared, num_kept = self.scorer.excess_in_blocks(first, self.batch, self.filters)
        own, some = None, shared.some
        for pool in rest:
            scored = _filtered(self.scorer.whole(pool, self.batch), self.filters, self.batch)
            own = masked_log_sum_exp(scored.logit, scored.keep, positive=scored.positive_logit)
            some, num_kept = some | own.some, num_kept + scored.num_kept
        self._kept, self.by_query = (some, num_kept), self.scorer.by_query(self.batch, self.filters)
        return loss.of_excess(shared, own)

    def known(self) -> Scored:
        """Returns what is known once the loss is: single scores only where they were needed."""
        if self._all is not None:
            return self._all
        pool = self.pools[0]
        nothing: dict[str, Any] = dict.fromkeys(("positive_logit", "logit", "keep"))
        return Scored(
            **nothing,
            ids=pool.ids,
            sampler=pool.sampler,
            log_count=pool.log_count,
            own_rows=pool.own_rows,
        )

    def kept(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns [B] bool, which rows have any negative, and how many candidates counted."""
        if self._kept is None:
            self._kept = self.all().some, self.all().num_kept
        return self._kept


def side_by_side(parts: Sequence[Scored]) -> Scored:
    """Returns the candidates of one or two pools as one record."""
    first, *rest = parts
    if not rest:
        return first

    def join(name: str) -> tf.Tensor | None:
        fields = [getattr(part, name) for part in parts]
        if any(field is None for field in fields):
            return None
        whole = [tf.broadcast_to(x, tf.shape(p.logit)) for x, p in zip(fields, parts, strict=True)]
        return tf.concat(whole, axis=1)

    names = ("logit", "keep", "score", "ids", "sampler", "log_count", "own_rows")
    kinds = tf.concat([part.per_row for part in parts], axis=0)
    joined = {name: join(name) for name in names}
    return first._replace(**joined, per_row=kinds, has_own=False, vectors=None)


def _mined_by(miners: Sequence[Miner], scored: Scored, batch: Batch) -> Scored:
    for miner in miners:
        scored = miner.mine(scored, batch)
    return scored


def _filtered(scored: Scored, filters: Sequence[Miner], batch: Batch) -> Scored:
    scored = _mined_by(filters, scored, batch)
    return scored._replace(num_kept=tf.reduce_sum(tf.cast(scored.keep, tf.float32)))


def _block_width(queries: tf.Tensor, byte_budget: int) -> int:
    rows, budget = queries.shape[0], min(byte_budget, BLOCK_BYTES)
    width = columns_within(budget, USUAL_ROWS if rows is None else max(rows, 1))
    if width < 1:
        least = 4 * (USUAL_ROWS if rows is None else rows)
        raise bad_input("logits_budget", f"at least {least} bytes, one candidate", byte_budget)
    return width
