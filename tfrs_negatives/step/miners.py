"""The miners: which of the candidates that the masks left are worth learning from.

After a miner the candidates are no longer draws from the mixture, so the correction of what it
chose is a heuristic: the literature mines without one, or ranks by corrected logits and keeps it.
"""

from __future__ import annotations

from typing import Literal, get_args

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.core.replicas import place_of_rows
from tfrs_negatives.step.records import Batch, Miner, Scored

RankBy = Literal["logit", "score"]


class RankedMiner(Miner):
    """A miner that compares candidates by their logits or by their scores."""

    def __init__(self, *, by: RankBy) -> None:
        if by not in get_args(RankBy):
            raise bad_input("by", f"one of {list(get_args(RankBy))}", repr(by))
        self.by = by

    def ranked(self, scored: Scored) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns what the candidates are compared by: the positive [B], the negatives [B, C]."""
        positive, negatives = scored.positive_logit, scored.logit
        if self.by == "score" and scored.score is not None:
            positive, negatives = scored.positive_score, scored.score
        return tf.stop_gradient(positive), tf.stop_gradient(negatives)


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
        return scored.take(_top(scored, self.ranked(scored)[1], self.k))


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
        shortlist = scored.take(_top(scored, self.ranked(scored)[1], self.n))
        rows, candidates = tf.unstack(tf.shape(shortlist.keep))
        first, total = place_of_rows(rows)
        # Whole numbers: XLA makes other fractions of the same bits.
        bits = tf.random.stateless_uniform(
            [total, candidates], batch.seed, 0, 2**53, tf.int64, alg="philox"
        )
        draws = tf.cast(bits[first : first + rows], tf.float64)
        return shortlist.take(_top(shortlist, draws, self.k))


@part("miner")
class SemiHard(RankedMiner):
    """Keeps the candidates that score below the positive, by less than a margin.

        keep(i, j) = s_i+ - margin < s_ij < s_i+

    What scores above the positive may be a false negative, what is further below teaches nothing.

    Args:
        margin: in the unit of the scores, similarity / temperature: a margin m of the cosine is
            m / temperature here.
        by: "score" before the correction, or "logit" after it.

    Raises:
        InputError: if the margin is not positive or `by` is unknown.

    Example:
        >>> scores = tf.constant([[0.4, 0.8, 1.2]])
        >>> scored = Scored(tf.ones([1]), scores, tf.ones([1, 3], tf.bool))
        >>> SemiHard(0.5).mine(scored, None).keep.numpy().tolist()
        [[False, True, False]]

    Source: Schroff et al., CVPR 2015 (FaceNet), section 3.2, as scores in the place of distances.
    """

    by_candidate = True

    def __init__(self, margin: float, *, by: RankBy = "score") -> None:
        super().__init__(by=by)
        if not margin > 0:
            raise bad_input("margin", "a positive number", margin)
        self.margin = float(margin)

    def mine(self, scored: Scored, batch: Batch | None) -> Scored:
        """Returns the same candidates, fewer of them kept."""
        positive, negatives = self.ranked(scored)
        near = negatives > positive[:, None] - self.margin
        return scored._replace(keep=scored.keep & near & (negatives < positive[:, None]))


@part("miner")
class WithinPositiveRadius(RankedMiner):
    """Keeps the candidates that are at least as near to the query as its farthest positive.

        r_i = max_{p in P(i)} |u_i - v_p|^2,     keep(i, j) = |u_i - v_j|^2 <= r_i

    On unit vectors that is keep(i, j) = s_ij >= min_p s_ip, which is what is computed: for vectors
    that are not normalised, where distance and score rank differently, the score decides. P(i) are
    the row's own positive and, with `farthest="known"`, the other positives among the candidates
    that a mask knows (`KnownPositives`, or `AccidentalHits` with `more_positives`).

    A row whose positives are all nearer than every negative has none left and loss 0; the logs have
    their share as `empty_row_share`.

    Args:
        farthest: among "own", the positive of the row, or "known".
        slack: how much lower a candidate may score, in the unit of the scores.
        by: "score" before the correction, or "logit" after it.

    Raises:
        InputError: if `farthest` or `by` is unknown, or `slack` is negative.

    Example:
        >>> scores = tf.constant([[0.4, 1.0, 1.2]])
        >>> scored = Scored(tf.ones([1]), scores, tf.ones([1, 3], tf.bool))
        >>> WithinPositiveRadius().mine(scored, None).keep.numpy().tolist()
        [[False, True, True]]

    Source: the r_i of the thesis on cross-batch NGAME; NGAME itself keeps the hardest k.
    """

    def __init__(
        self,
        *,
        farthest: Literal["own", "known"] = "own",
        slack: float = 0.0,
        by: RankBy = "score",
    ) -> None:
        super().__init__(by=by)
        if farthest not in ("own", "known"):
            raise bad_input("farthest", "'own' or 'known'", repr(farthest))
        if not slack >= 0:
            raise bad_input("slack", "at least 0", slack)
        self.farthest, self.slack = farthest, float(slack)
        self.by_candidate = farthest == "own"

    def mine(self, scored: Scored, batch: Batch | None) -> Scored:
        """Returns the same candidates, fewer of them kept."""
        limit, negatives = self.ranked(scored)
        more = scored.more_positives
        if self.farthest == "known" and more is not None:
            others = tf.stop_gradient(more.logit if self.by == "logit" else more.score)
            lowest = tf.reduce_min(tf.where(more.marks, others, others.dtype.max), axis=1)
            limit = tf.minimum(limit, lowest)
        within = negatives >= limit[:, None] - self.slack
        return scored._replace(keep=scored.keep & within)


def _top(scored: Scored, values: tf.Tensor, k: int) -> tf.Tensor:
    """Returns [B, min(k, C)] int32: the candidates with the largest values, kept ones first."""
    # The row's own positive is never chosen, so it is no place to fill.
    width, own = values.shape[1], int(scored.has_own)
    k = tf.minimum(k, tf.shape(values)[1] - own) if width is None else min(k, width - own)
    return tf.math.top_k(tf.where(scored.keep, values, values.dtype.min), k).indices
