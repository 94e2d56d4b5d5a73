"""Candidates of each row drawn again, as often as the softmax over them says."""

from __future__ import annotations

import math

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.core.replicas import row_draws
from tfrs_negatives.step.draws import drawn_by_softmax
from tfrs_negatives.step.losses.log_sums import masked_log_sum_exp
from tfrs_negatives.step.miners.ranked import with_scores
from tfrs_negatives.step.records import Batch, Miner, Scored


@part("miner")
class Resample(Miner):
    """Draws candidates of each row with replacement, in proportion to exp(logit).

        P_ij = exp(s_ij) / c_j / sum_{k kept} exp(s_ik) / c_k

    Self-normalised importance sampling: as the pool grows, the law of what is drawn tends to the
    softmax over the catalogue without the row's own positive. The draws have no gradient, their
    scores do.

    Args:
        num: n, how many are drawn for each row.
        reuse_scores: what the draws are worth in the loss. True, as published: exp(s_ij), so that a
            negative counts twice for being likely, and the gradient weighs the negatives by
            P_ij exp(s_ij), which under a flat proposal is a softmax at half the temperature. False:
            all the same, log(sum_k exp(s_ik) / c_k / n), which is s_ij less the log of its count.

    Raises:
        InputError: if `num` is below 1.

    Example:
        >>> Resample(256).get_config()
        {'num': 256, 'reuse_scores': True}

    Relations: with `reuse_scores=False` the value of `SampledSoftmax` is the value without the
        miner, and so is the mean of its gradient: only noise is added. With True and n draws it
        tends to log(exp(s_i+) + n exp(LSE_j(2 s_ij - log c_j) - LSE_j(s_ij - log c_j))) - s_i+.

    Source: Chen et al., NeurIPS 2022 (BIR). There the row's own positive may be drawn, here it may
        not, and known positives are masked before the draws.
    """

    def __init__(self, num: int, *, reuse_scores: bool = True) -> None:
        if num < 1:
            raise bad_input("num", "at least 1", num)
        self.num, self.reuse_scores = num, reuse_scores

    def mine(self, scored: Scored, batch: Batch) -> Scored:
        """Returns negatives [B, num], masked ones where a row has none that is kept."""
        fixed, keep = tf.stop_gradient(scored.logit), scored.keep
        draws = row_draws(tf.shape(fixed)[0], self.num, batch.seed)
        drawn = scored.take(drawn_by_softmax(fixed, keep, draws))._replace(log_count=None)
        if self.reuse_scores:
            return with_scores(drawn)
        log_sum = masked_log_sum_exp(fixed, keep, positive=tf.zeros(tf.shape(fixed)[:1])).value
        logit = drawn.logit - tf.stop_gradient(drawn.logit)  # only its gradient
        return drawn._replace(logit=logit + log_sum[:, None] - math.log(self.num))
