"""Slow, obvious numpy version of mixed negatives: one row, one mixture, one vector at a time."""

from __future__ import annotations

import math

import numpy as np


def weights(draws, log_counts, temperature):
    """One row of W, from its K numbers in [0, 1)."""
    logits = [(w - c) / temperature for w, c in zip(draws, log_counts, strict=True)]
    raised = [math.exp(x - max(logits)) for x in logits]
    return [x / sum(raised) for x in raised]


def mixed_scores(query, vectors, keep, mixtures):
    """The score of each mixture of what a row keeps, by mixing the vectors; None without any."""
    scores = []
    for mixture in mixtures:
        kept = [j for j in range(len(vectors)) if keep[j]]
        total = sum(mixture[j] for j in kept)
        if not total > 0:
            scores.append(None)
            continue
        vector = sum(mixture[j] / total * vectors[j] for j in kept)
        scores.append(float(np.dot(query, vector)))
    return scores
