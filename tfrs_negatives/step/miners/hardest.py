"""The candidates that are hardest to tell from the positive."""

from __future__ import annotations

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.core.replicas import row_draws
from tfrs_negatives.step.miners.ranked import RankBy, RankedMiner, top
from tfrs_negatives.step.records import Batch, Scored


@part("miner")
class Hardest(RankedMiner):
    """Keeps the k candidates of each row that are hardest to tell from its positive.

    Args:
        k: how many; all of them where the pool has fewer.
        by: what is largest: "logit" after the correction, or "score" before it, which are larger
            for popular items.

    Raises:
        InputError: if k is below 1 or `by` is unknown.

    Example:
        >>> scored = Scored(tf.zeros([1]), tf.constant([[1.0, 3.0, 2.0]]), tf.ones([1, 3], tf.bool))
        >>> Hardest(2).mine(scored, None).logit.numpy().tolist()
        [[3.0, 2.0]]

    Source: `num_hard_negatives` of `tfrs.tasks.Retrieval`; with uniform candidates, dynamic
        negative sampling, Zhang et al., SIGIR 2013.
    """

    def __init__(self, k: int, *, by: RankBy = "logit") -> None:
        super().__init__(by=by)
        if k < 1:
            raise bad_input("k", "at least 1", k)
        self.k = k

    def mine(self, scored: Scored, batch: Batch | None) -> Scored:
        """Returns negatives [B, min(k, C)], masked ones where a row has fewer that are kept."""
        return scored.take(top(scored, self.ranked(scored)[1], self.k))


@part("miner")
class RandomOfTop(RankedMiner):
    """Keeps k candidates of each row, drawn at random from its n hardest.

    A little softer than the k hardest, among which false negatives are the most frequent. Draws
    differ by row and step, and are the same however many replicas share the batch.

    Args:
        k: how many are kept.
        n: among how many, at least k.
        by: what is largest, see `Hardest`.

    Raises:
        InputError: if k is below 1, n below k, or `by` is unknown.

    Example:
        >>> RandomOfTop(4, 100).get_config()
        {'k': 4, 'n': 100, 'by': 'logit'}

    Source: the shortlist of ANCE, Xiong et al., ICLR 2021, in the candidates of a step.
    """

    def __init__(self, k: int, n: int, *, by: RankBy = "logit") -> None:
        super().__init__(by=by)
        if k < 1:
            raise bad_input("k", "at least 1", k)
        if n < k:
            raise bad_input("n", f"at least k, {k}", n)
        self.k, self.n = k, n

    def mine(self, scored: Scored, batch: Batch) -> Scored:
        """Returns negatives [B, min(k, C)], masked ones where a row has fewer that are kept."""
        shortlist = scored.take(top(scored, self.ranked(scored)[1], self.n))
        rows, candidates = tf.unstack(tf.shape(shortlist.keep))
        draws = row_draws(rows, candidates, batch.seed)
        return shortlist.take(top(shortlist, draws, self.k))
