"""Slow, obvious numpy version of miners and of the losses on pairs: one row, one number at a time.

A row is the positive's number, and the numbers of the columns that count.
"""

from __future__ import annotations

import math


def semi_hard(positive, scores, margin):
    """The columns below the positive by less than the margin."""
    return [j for j, s in enumerate(scores) if positive - margin < s < positive]


def within_radius(positives, scores, slack=0.0):
    """The columns that score at least as much as the farthest positive."""
    return [j for j, s in enumerate(scores) if s >= min(positives) - slack]


def radius_of_distances(query, positives, negatives):
    """The thesis's rule as it is printed: squared distances, no scores."""
    radius = max(sum((q - v) ** 2 for q, v in zip(query, p, strict=True)) for p in positives)
    distances = [sum((q - v) ** 2 for q, v in zip(query, n, strict=True)) for n in negatives]
    return [j for j, d in enumerate(distances) if d <= radius]


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def bpr(positive, negatives):
    pairs = [softplus(n - positive) for n in negatives]
    return sum(pairs) / len(pairs) if pairs else 0.0


def triplet_logistic(positive, negatives, scale):
    pairs = [softplus(scale * (n - positive)) for n in negatives]
    return sum(pairs) / len(pairs) if pairs else 0.0


def triplet_hinge(positive, negatives, margin, focus=None):
    if focus is None:
        pairs = [max(0.0, n - positive + margin) for n in negatives]
        return sum(pairs) / len(pairs) if pairs else 0.0
    active = [n for n in negatives if n - positive + margin > 0]
    weights = [1.0 if math.isinf(focus) else math.exp(n / focus) for n in active]
    total = sum(weights)
    return sum(w / total * (n - positive + margin) for n, w in zip(active, weights, strict=True))


def pointwise_bce(positive, negatives, number):
    """All ways to draw `number` of the negatives, with replacement, on average."""
    if not negatives:
        return 0.0
    return softplus(-positive) + number * sum(softplus(n) for n in negatives) / len(negatives)


def decoupled_softmax(positives, negatives):
    if not negatives:
        return 0.0
    lost = [math.log(math.exp(p) + sum(math.exp(n) for n in negatives)) - p for p in positives]
    return sum(lost) / len(lost)
