"""Slow, obvious versions of the samplers that keep a pool for each query."""

from __future__ import annotations

import numpy as np


def law_of_resampling(scores, counts):
    """The probability that one resampled slot holds each of the M proposals of a row."""
    weights = [np.exp(s) / c for s, c in zip(scores, counts, strict=True)]
    return np.array(weights) / sum(weights)


def softmax(scores):
    return np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()


def first_rows(queries, known):
    """The rows of a batch that change a pool: the first one of each known query."""
    seen, rows = set(), []
    for row, query in enumerate(queries):
        if query in known and query not in seen:
            seen.add(query)
            rows.append(row)
    return rows


def survivors(pool, proposals, slots):
    """The new pool: slot p holds what stands at `slots[p]` of the old and the proposed ones."""
    both = [*pool, *proposals]
    return [both[slot] for slot in slots]


def robust_pick(gains_now, history, positive, factor):
    """The place of the largest gain plus `factor` times the spread of what its score once was."""
    best, place = -np.inf, None
    for number, (gain, scores) in enumerate(zip(gains_now, history, strict=True)):
        past = [1 / (1 + np.exp(positive - s)) for s in scores if np.isfinite(s)]
        value = gain + factor * (np.std(past) if past else 0.0)
        if value > best:
            best, place = value, number
    return place


def expected_gradient(policy, advantages):
    """The mean over all choices l of the gradient of -advantage(l) log policy(l), by its logits."""
    total = np.zeros(len(policy))
    for choice, (probability, advantage) in enumerate(zip(policy, advantages, strict=True)):
        for k in range(len(policy)):
            total[k] += probability * advantage * (policy[k] - (k == choice))
    return total


def adagrad(vectors, squares, updates, rate):
    """One step: `updates` are (row, gradient); each moves by the squares of all of the step."""
    vectors, squares = vectors.copy(), squares.copy()
    for row, gradient in updates:
        squares[row] += gradient**2
    for row, gradient in updates:
        vectors[row] -= rate * gradient / np.sqrt(squares[row])
    return vectors
