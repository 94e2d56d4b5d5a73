"""Slow, obvious numpy version of the clusters: one node at a time, in float64, by recursion."""

from __future__ import annotations

import numpy as np


def sum_of_squares(vectors):
    """The sum of the squared distances to the mean."""
    return float(((vectors - vectors.mean(axis=0)) ** 2).sum())


def two_means(vectors, left, direction, power_steps, means_steps):
    """Which rows are the left part of a balanced 2-means, both centres written out."""
    centred = vectors - vectors.mean(axis=0)
    covariance = sum(np.outer(row, row) for row in centred)
    for _ in range(power_steps):
        direction = covariance @ direction
        direction = direction / np.linalg.norm(direction)
    chosen = None
    for _ in range(means_steps):
        before = chosen
        chosen = sorted(range(len(vectors)), key=lambda row: -(vectors[row] @ direction))[:left]
        if before is not None and set(before) == set(chosen):
            break
        others = [row for row in range(len(vectors)) if row not in chosen]
        direction = vectors[chosen].mean(axis=0) - vectors[others].mean(axis=0)
    return sorted(chosen)


def clusters(vectors, num_clusters, direction, *, power_steps, means_steps):
    """The rows of each cluster, [k] sets; every node starts from the same direction."""
    n = len(vectors)
    bounds = [i * n // num_clusters for i in range(num_clusters + 1)]

    def split(rows, a, b):
        if b - a == 1:
            return [set(rows)]
        m = (a + b) // 2
        picked = two_means(
            vectors[rows], bounds[m] - bounds[a], direction, power_steps, means_steps
        )
        left = [rows[i] for i in picked]
        right = [row for row in rows if row not in left]
        return split(left, a, m) + split(right, m, b)

    return split(list(range(n)), 0, num_clusters)
