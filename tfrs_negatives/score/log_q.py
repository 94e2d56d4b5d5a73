"""Logits = scores - log expected count: the only place in the package where that sign appears.

A column drawn often counts for as many as it stands for: exp(score) / c is an unbiased term of the
sum over the catalogue. Two consistent rules exist for the positive (ALG 2.3):

    "both"       the positive is corrected like a negative. The optimum is log P(item | query) up to
                 a constant of the row (Yi et al., RecSys 2019, equation 5).
    "negatives"  the positive is left alone, so that the denominator estimates the full softmax
                 (Yang et al., WWW 2020, equation 5, with counts in the place of probabilities).
"""

from __future__ import annotations

from tfrs_negatives.types import CandidatePool, CorrectionPolicy, Logits


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
        The corrected logits.
    """
    if pool.log_weight is not None:
        scores = scores._replace(negatives=scores.negatives + pool.log_weight)
    columns, positives = pool.log_expected_count, pool.positive_log_expected_count
    if policy is None or columns is None or positives is None or strength == 0:
        return scores
    negatives = scores.negatives - strength * columns
    if policy == "negatives":
        return scores._replace(negatives=negatives)
    positive = scores.positive - strength * positives
    return scores._replace(positive=positive, negatives=negatives)
