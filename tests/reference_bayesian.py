"""Slow, obvious numpy version of the least Bayesian risk: one row, one number at a time."""

from __future__ import annotations

import math


def share_at_or_below(value, sample):
    return sum(1 for x in sample if x <= value) / (len(sample) + 1)


def true_negative_probability(below, prior):
    """As it is printed in the paper."""
    return (1 - below) * (1 - prior) / (1 - below - prior + 2 * below * prior)


def risk(positive, score, below, prior, unbias_weight):
    info = 1 - 1 / (1 + math.exp(-(positive - score)))
    return info * (1 - (1 + unbias_weight) * true_negative_probability(below, prior))


def best(positive, scores, sample, priors, unbias_weight):
    """The place of the candidate of the least risk."""
    risks = [
        risk(positive, s, share_at_or_below(s, sample), p, unbias_weight)
        for s, p in zip(scores, priors, strict=True)
    ]
    return risks.index(min(risks))
