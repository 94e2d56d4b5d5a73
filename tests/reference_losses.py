"""Slow, obvious numpy version of the losses of single papers: one row, one number at a time.

A row is the positive's score and those of the candidates that count; a weight says for how many
items a candidate stands.
"""

from __future__ import annotations

import math

import numpy as np


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def shares(weights, negatives):
    weights = [1.0] * len(negatives) if weights is None else list(weights)
    return [w / sum(weights) for w in weights]


def soft_top_k_threshold(positive, negatives, k, slope, weights=None):
    """The threshold in the unit of the scores, by halving the widest interval there can be."""
    weights = [1.0] * len(negatives) if weights is None else list(weights)
    scores, counts = [positive, *negatives], [1.0, *weights]
    low, high = min(scores) - 800 / slope, max(scores) + 800 / slope
    for _ in range(100):
        middle = (low + high) / 2
        total = sum(c * sigmoid(slope * (s - middle)) for s, c in zip(scores, counts, strict=True))
        low, high = (middle, high) if total > k else (low, middle)
    return (low + high) / 2


def soft_top_k(positive, negatives, k, slope, weights=None):
    total = 1 + (len(negatives) if weights is None else sum(weights))
    if not negatives or total <= k:
        return 0.0
    threshold = soft_top_k_threshold(positive, negatives, k, slope, weights)
    return softplus(-slope * (positive - threshold))


def gbce(positive, negatives, rate, calibration, weights=None):
    if not negatives:
        return 0.0
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    mean = sum(w * softplus(s) for w, s in zip(shares(weights, negatives), negatives, strict=True))
    n = len(negatives)
    return (beta * softplus(-positive) + n * mean) / (n + 1)


def ccl(positive, negatives, margin, weight, weights=None):
    if not negatives:
        return 0.0
    pairs = zip(shares(weights, negatives), negatives, strict=True)
    return max(0.0, 1 - positive) + weight * sum(w * max(0.0, s - margin) for w, s in pairs)


def non_sampling(positive, negatives, weight, weights=None):
    """The squared errors themselves, without the constant 1."""
    if not negatives:
        return 0.0
    weights = [1.0] * len(negatives) if weights is None else weights
    wrong = sum(c * (s - 0) ** 2 for c, s in zip(weights, negatives, strict=True))
    return weight * wrong + (positive - 1) ** 2 - 1


def bsl(positives, negatives, positive_temperature, negative_weight):
    if not negatives:
        return 0.0
    mean = sum(math.exp(p / positive_temperature) for p in positives) / len(positives)
    of_negatives = sum(math.exp(n) for n in negatives)
    return negative_weight * math.log(of_negatives) - positive_temperature * math.log(mean)


SURROGATES = {
    "tanh": lambda d: math.tanh(d) + 1,
    "arctan": lambda d: max(math.atan(d) + 1, 1e-8),
    "relu": lambda d: max(d + 1, 1e-8),
    "exp": math.exp,
}


def psl(positive, negatives, surrogate, temperature, weights=None):
    if not negatives:
        return 0.0
    weights = [1.0] * len(negatives) if weights is None else weights
    values = [SURROGATES[surrogate](temperature * (n - positive)) for n in negatives]
    terms = [c * v ** (1 / temperature) for c, v in zip(weights, values, strict=True)]
    return math.log(sum(terms))


def softmax_over_positives(positives, negatives):
    if not negatives:
        return 0.0
    total = sum(math.exp(s) for s in [*positives, *negatives])
    return -sum(math.log(math.exp(p) / total) for p in positives) / len(positives)


def soft_partial_auc(positive, negatives, radius, weights=None):
    if not negatives:
        return 0.0
    lost = np.array([softplus(n - positive) for n in negatives])
    base = np.array(shares(weights, negatives))
    mean = base @ lost
    spread = math.sqrt(base @ (lost - mean) ** 2 / (2 * radius))
    tilted = base * np.exp((lost - mean) / max(spread, 1e-3))
    return float(tilted @ lost / tilted.sum())


def kth_best(scores, weights, k):
    """The score at which, from the best one on, the items are k or more; the last one if none."""
    reached = 0.0
    for place in np.argsort(-np.asarray(scores), kind="stable"):
        reached += weights[place]
        if reached >= k:
            break
    return scores[place]
