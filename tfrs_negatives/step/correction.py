"""Logits = scores - log expected count: the only place in the package where that sign appears.

A column drawn often counts for as many as it stands for: exp(score) / c is an unbiased term of the
sum over the catalogue. Two consistent rules exist for the positive (ALG 2.3):

    "both"       the positive is corrected like a negative. The optimum is log P(item | query) up to
                 a constant of the row (Yi et al., RecSys 2019, equation 5).
    "negatives"  the positive is left alone, so that the denominator estimates the full softmax
                 (Yang et al., WWW 2020, equation 5, with counts in the place of probabilities).
"""

from __future__ import annotations

from tfrs_negatives.core.types import CorrectionPolicy
from tfrs_negatives.step.records import CandidatePool, Logits


def correct_logits(
    scores: Logits,
    pool: CandidatePool,
    *,
    policy: CorrectionPolicy | None,
    strength: float = 1.0,
) -> Logits:
    """Subtracts the log expected count of each column.

        logit_j = score_j - strength * log c_j + log weight_j

    Args:
        scores: positive [B] and negatives [B, C].
        pool: with its log expected counts; without them nothing is corrected.
        policy: "both", "negatives", or None for no correction.
        strength: in [0, 1]; 1 is the full correction.

    Returns:
        The corrected logits, with the scores beside them.
    """
    positive, negatives, more = scores.positive, scores.negatives, scores.more_positives
    weighted = negatives if pool.log_weight is None else negatives + pool.log_weight
    columns, positives = pool.log_expected_count, pool.positive_log_expected_count
    logits = scores._replace(negatives=weighted, positive_score=positive, scores=negatives)
    if policy is None or columns is None or positives is None or strength == 0:
        return logits
    logits = logits._replace(negatives=weighted - strength * columns)
    if policy == "negatives":
        return logits
    if more is not None:
        more = more._replace(logits=more.scores - strength * columns)
    return logits._replace(positive=positive - strength * positives, more_positives=more)
