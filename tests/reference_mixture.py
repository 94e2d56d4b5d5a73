"""Slow, obvious numpy version of mixtures with the positive: one row, one vector at a time."""

from __future__ import annotations

import numpy as np


def unit(vector):
    return vector / np.sqrt(sum(x * x for x in vector))


def mixed_score(query, positive, negative, share, similarity):
    """The score of the mixture of a positive and a negative."""
    if similarity == "dot":
        return float(np.dot(query, share * positive + (1 - share) * negative))
    mixture = share * unit(positive) + (1 - share) * unit(negative)
    return float(np.dot(unit(query), unit(mixture)))
