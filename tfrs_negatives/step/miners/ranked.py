"""What miners that compare candidates have in common."""

from __future__ import annotations

from typing import Literal, get_args

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.step.records import Miner, Scored

RankBy = Literal["logit", "score"]


class RankedMiner(Miner):
    """A miner that compares candidates by their logits or by their scores."""

    def __init__(self, *, by: RankBy) -> None:
        if by not in get_args(RankBy):
            raise bad_input("by", f"one of {list(get_args(RankBy))}", repr(by))
        self.by = by

    def ranked(self, scored: Scored) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns what the candidates are compared by: the positive [B], the negatives [B, C]."""
        return compared(with_scores(scored) if self.by == "score" else scored)


def top(scored: Scored, values: tf.Tensor, k: int) -> tf.Tensor:
    """Returns [B, min(k, C)] int32: the candidates with the largest values, kept ones first."""
    # The row's own positive is never chosen, so it is no place to fill.
    width, own = values.shape[1], int(scored.has_own)
    k = tf.minimum(k, tf.shape(values)[1] - own) if width is None else min(k, width - own)
    return tf.math.top_k(tf.where(scored.keep, values, values.dtype.min), k).indices


def compared(scored: Scored) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the logits of the positive [B] and of the candidates [B, C], without gradient."""
    return tf.stop_gradient(scored.positive_logit), tf.stop_gradient(scored.logit)


def with_scores(scored: Scored) -> Scored:
    """Returns the candidates with their scores in the place of corrected logits."""
    if scored.score is None:
        return scored
    more = scored.more_positives
    return scored._replace(
        positive_logit=scored.positive_score,
        logit=scored.score,
        more_positives=None if more is None else more._replace(logit=more.score),
    )
