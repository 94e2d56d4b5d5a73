"""The miners: which of the columns that the masks left are worth learning from.

After a miner the columns are no longer draws from the mixture, so the correction of what it chose
is a heuristic: the literature mines without one, or ranks by corrected logits and keeps it.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import Part
from tfrs_negatives.core.replicas import place_of_rows
from tfrs_negatives.step.records import Logits, StepContext

RankBy = Literal["logits", "scores"]
# The draws of a miner differ from those of the sources, which fold small numbers into the seed.
MINER_STREAM = 2**20


class RankedMiner(Part):
    """A miner that compares columns by their logits or by their scores."""

    def __init__(self, *, by: RankBy) -> None:
        if by not in get_args(RankBy):
            raise bad_input("by", f"one of {list(get_args(RankBy))}", repr(by))
        self.by = by

    def ranked(self, logits: Logits) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns what the columns are compared by: the positive [B], the negatives [B, C]."""
        positive, negatives = logits.positive, logits.negatives
        if self.by == "scores" and logits.scores is not None:
            positive, negatives = logits.positive_score, logits.scores
        return tf.stop_gradient(positive), tf.stop_gradient(negatives)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"by": self.by}


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class Hardest(RankedMiner):
    """Keeps the k columns of each row that are hardest to tell from its positive.

    Args:
        k: how many; all of them where the pool has fewer.
        by: what is largest: "logits" after the correction, or "scores" before it, which are larger
            for popular items.

    Raises:
        InputError: if k is below 1 or `by` is unknown.

    Example:
        >>> logits = Logits(tf.zeros([1]), tf.constant([[1.0, 3.0, 2.0]]), tf.ones([1, 3], tf.bool))
        >>> Hardest(2).mine(logits, None).negatives.numpy().tolist()
        [[3.0, 2.0]]

    Source: `num_hard_negatives` of `tfrs.tasks.Retrieval`; with uniform columns, dynamic negative
        sampling, Zhang et al., SIGIR 2013.
    """

    def __init__(self, k: int, *, by: RankBy = "logits") -> None:
        super().__init__(by=by)
        if k < 1:
            raise bad_input("k", "at least 1", k)
        self.k = k

    def mine(self, logits: Logits, context: StepContext | None) -> Logits:
        """Returns negatives [B, min(k, C)], masked ones where a row has fewer that are kept."""
        return _take(logits, _top(self.ranked(logits)[1], logits.keep, self.k))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"k": self.k, **super().get_config()}


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class RandomOfTop(RankedMiner):
    """Keeps k columns of each row, drawn at random from its n hardest.

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
        {'k': 4, 'n': 100, 'by': 'logits'}

    Source: the shortlist of ANCE, Xiong et al., ICLR 2021, in the columns of a step.
    """

    def __init__(self, k: int, n: int, *, by: RankBy = "logits") -> None:
        super().__init__(by=by)
        if k < 1:
            raise bad_input("k", "at least 1", k)
        if n < k:
            raise bad_input("n", f"at least k, {k}", n)
        self.k, self.n = k, n

    def mine(self, logits: Logits, context: StepContext) -> Logits:
        """Returns negatives [B, min(k, C)], masked ones where a row has fewer that are kept."""
        shortlist = _take(logits, _top(self.ranked(logits)[1], logits.keep, self.n))
        rows, columns = tf.unstack(tf.shape(shortlist.keep))
        first, total = place_of_rows(rows)
        seed = tf.random.experimental.stateless_fold_in(context.seed, MINER_STREAM, alg="philox")
        # Whole numbers: XLA makes other fractions of the same bits.
        bits = tf.random.stateless_uniform([total, columns], seed, 0, 2**53, tf.int64, alg="philox")
        draws = tf.cast(bits[first : first + rows], tf.float64)
        return _take(shortlist, _top(draws, shortlist.keep, self.k))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"k": self.k, "n": self.n, **super().get_config()}


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class SemiHard(RankedMiner):
    """Keeps the columns that score below the positive, by less than a margin.

        keep(i, j) = s_i+ - margin < s_ij < s_i+

    What scores above the positive may be a false negative, what is further below teaches nothing.

    Args:
        margin: in the unit of the scores, similarity / temperature: a margin m of the cosine is
            m / temperature here.
        by: "scores" before the correction, or "logits" after it.

    Raises:
        InputError: if the margin is not positive or `by` is unknown.

    Example:
        >>> scores = tf.constant([[0.4, 0.8, 1.2]])
        >>> logits = Logits(tf.ones([1]), scores, tf.ones([1, 3], tf.bool))
        >>> SemiHard(0.5).mine(logits, None).keep.numpy().tolist()
        [[False, True, False]]

    Source: Schroff et al., CVPR 2015 (FaceNet), section 3.2, as scores in the place of distances.
    """

    is_filter = True

    def __init__(self, margin: float, *, by: RankBy = "scores") -> None:
        super().__init__(by=by)
        if not margin > 0:
            raise bad_input("margin", "a positive number", margin)
        self.margin = float(margin)

    def mine(self, logits: Logits, context: StepContext | None) -> Logits:
        """Returns the same columns, fewer of them kept."""
        positive, negatives = self.ranked(logits)
        near = negatives > positive[:, None] - self.margin
        return logits._replace(keep=logits.keep & near & (negatives < positive[:, None]))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"margin": self.margin, **super().get_config()}


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class WithinPositiveRadius(RankedMiner):
    """Keeps the columns that are at least as near to the query as its farthest positive.

        r_i = max_{p in P(i)} |u_i - v_p|^2,     keep(i, j) = |u_i - v_j|^2 <= r_i

    On unit vectors that is keep(i, j) = s_ij >= min_p s_ip, which is what is computed: for vectors
    that are not normalised, where distance and score rank differently, the score decides. P(i) are
    the row's own positive and, with `farthest="known"`, the other positives among the columns that
    a mask knows (`KnownPositives`, or `AccidentalHits` with `more_positives`).

    A row whose positives are all nearer than every negative has none left and loss 0; the logs have
    their share as `empty_row_share`.

    Args:
        farthest: among "own", the positive of the row, or "known".
        slack: how much lower a column may score, in the unit of the scores.
        by: "scores" before the correction, or "logits" after it.

    Raises:
        InputError: if `farthest` or `by` is unknown, or `slack` is negative.

    Example:
        >>> scores = tf.constant([[0.4, 1.0, 1.2]])
        >>> logits = Logits(tf.ones([1]), scores, tf.ones([1, 3], tf.bool))
        >>> WithinPositiveRadius().mine(logits, None).keep.numpy().tolist()
        [[False, True, True]]

    Source: the r_i of the thesis on cross-batch NGAME, ALG 5.5; NGAME itself keeps the hardest k.
    """

    def __init__(
        self,
        *,
        farthest: Literal["own", "known"] = "own",
        slack: float = 0.0,
        by: RankBy = "scores",
    ) -> None:
        super().__init__(by=by)
        if farthest not in ("own", "known"):
            raise bad_input("farthest", "'own' or 'known'", repr(farthest))
        if not slack >= 0:
            raise bad_input("slack", "at least 0", slack)
        self.farthest, self.slack = farthest, float(slack)

    @property
    def is_filter(self) -> bool:
        """Whether a column is judged without looking at others."""
        return self.farthest == "own"

    def mine(self, logits: Logits, context: StepContext | None) -> Logits:
        """Returns the same columns, fewer of them kept."""
        limit, negatives = self.ranked(logits)
        more = logits.more_positives
        if self.farthest == "known" and more is not None:
            others = tf.stop_gradient(more.logits if self.by == "logits" else more.scores)
            lowest = tf.reduce_min(tf.where(more.marks, others, others.dtype.max), axis=1)
            limit = tf.minimum(limit, lowest)
        within = negatives >= limit[:, None] - self.slack
        return logits._replace(keep=logits.keep & within)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"farthest": self.farthest, "slack": self.slack, **super().get_config()}


def _top(values: tf.Tensor, keep: tf.Tensor, k: int) -> tf.Tensor:
    """Returns [B, min(k, C)] int32: the columns with the largest values, kept ones first."""
    width = values.shape[1]
    k = tf.minimum(k, tf.shape(values)[1]) if width is None else min(k, width)
    return tf.math.top_k(tf.where(keep, values, values.dtype.min), k).indices


def _take(logits: Logits, columns: tf.Tensor) -> Logits:
    """Returns the logits of some columns of each row, [B, K]."""
    explicit = tf.broadcast_to(logits.explicit, tf.shape(logits.keep))
    fields = {"negatives": logits.negatives, "keep": logits.keep, "explicit": explicit}
    if logits.scores is not None:
        fields["scores"] = logits.scores
    chosen = {name: tf.gather(x, columns, batch_dims=1) for name, x in fields.items()}
    return logits._replace(**chosen)
