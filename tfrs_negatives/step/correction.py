"""Logit = score - log count: the only place in the package where that sign appears.

A candidate drawn often counts for as many as it stands for: exp(score) / c is an unbiased term of
the sum over the catalogue. Two consistent rules exist for the positive:

    "both"       the positive is corrected like a negative. The optimum is log P(item | query) up to
                 a constant of the row (Yi et al., RecSys 2019, equation 5).
    "negatives"  the positive is left alone, so that the denominator estimates the full softmax
                 (Yang et al., WWW 2020, equation 5, with counts in the place of probabilities). Its
                 gradient, without copies of the positive, is that of Khrylchenko et al. (RecSys
                 2025), who leave it out of the correction too (`tests/test_relations.py`).
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfrs_negatives.core.types import CorrectionPolicy
from tfrs_negatives.step.records import Pool


class Offsets(NamedTuple):
    """What is added to scores, in nats; None adds nothing.

    Attributes:
        candidates: [C] or [B, C] float32.
        positives: [B] float32.
        more_positives: [C] or [B, C] float32, for a candidate that is another positive of a row.
    """

    candidates: tf.Tensor | None
    positives: tf.Tensor | None
    more_positives: tf.Tensor | None


class Correction(NamedTuple):
    """How scores become logits.

        logit_j = score_j - strength * log c_j + log weight_j

    Attributes:
        policy: "both", "negatives", or None for no correction.
        strength: in [0, 1]; 1 is the full correction.
    """

    policy: CorrectionPolicy | None = "both"
    strength: float = 1.0

    def offsets(self, pool: Pool) -> Offsets:
        """Returns what is added to the scores of a pool and of the rows' positives."""
        weights = pool.log_weight
        if self.policy is None or pool.log_count is None or self.strength == 0:
            return Offsets(weights, None, None)
        counts = -self.strength * pool.log_count
        candidates = counts if weights is None else counts + weights
        if self.policy == "negatives" or pool.positive_log_count is None:
            return Offsets(candidates, None, None)
        return Offsets(candidates, -self.strength * pool.positive_log_count, counts)


def added(values: tf.Tensor, offset: tf.Tensor | None) -> tf.Tensor:
    """Returns values [..., C] with what is added to them, if anything."""
    return values if offset is None else values + offset


def log_importance(score: tf.Tensor, log_count: tf.Tensor) -> tf.Tensor:
    """Returns log(exp(score) / count), by which draws are drawn again as if by exp(score)."""
    return score - log_count
