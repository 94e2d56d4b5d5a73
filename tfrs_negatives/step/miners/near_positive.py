"""The candidates that are about as near to the query as its positive."""

from __future__ import annotations

from typing import Literal

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.step.miners.ranked import RankBy, RankedMiner
from tfrs_negatives.step.records import Batch, Scored


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

    What is computed is keep(i, j) = s_ij >= min_p s_ip. With `similarity="euclidean"`, and no item
    bias, that is the same; so it is with "cosine", on the normalised vectors. With "dot", where
    distance and score rank differently, the score decides. P(i) are
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
