"""Slow, obvious numpy version of resampling, and of a cache of what was resampled.

A row is the positive's score, and of each candidate that counts its score and log count.
"""

from __future__ import annotations

import math

import numpy as np


def log_sum(numbers):
    peak = max(numbers)
    return peak + math.log(sum(math.exp(x - peak) for x in numbers))


def law(scores, log_counts):
    """The probability of each candidate in one draw."""
    logits = [s - c for s, c in zip(scores, log_counts, strict=True)]
    total = log_sum(logits)
    return [math.exp(x - total) for x in logits]


def law_of_items(scores, log_counts, items, num_items):
    """The same by item, where several candidates hold one."""
    found = np.zeros(num_items)
    for item, p in zip(items, law(scores, log_counts), strict=True):
        found[item] += p
    return found


def limit_of_reuse(positive, scores, log_counts, num):
    """The loss of `num` draws whose scores are used again, as the number of draws grows."""
    logits = [s - c for s, c in zip(scores, log_counts, strict=True)]
    twice = [s + x for s, x in zip(scores, logits, strict=True)]
    negatives = math.log(num) + log_sum(twice) - log_sum(logits)
    return log_sum([positive, negatives]) - positive


def linear_gradient(positive, scores, log_counts):
    """The mean gradient of mean_j s_j - s+ over draws j from positive and candidates.

    Returns:
        That of the positive, and that of each candidate.
    """
    first, *others = law([positive, *scores], [0.0, *log_counts])
    return first - 1.0, others


def simulate_cache(scores, in_batch, *, batch, cached, draws, decay, steps, seed):
    """The shares of the counts after each step of a cache over frozen scores.

    Args:
        scores: [rows, N] of each query and item.
        in_batch: [N] probability of each item in one draw of the batch.
        batch: how many items the batch has besides each row's own.
        cached: how many the cache proposes.
        draws: how many are resampled for each row.
        decay: of the counts in a step.
        steps: how many.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    rows, num_items = scores.shape
    counts, shares = np.ones(num_items), []
    for _ in range(steps):
        share = counts / counts.sum()
        items = np.concatenate(
            [rng.choice(num_items, batch, p=in_batch), rng.choice(num_items, cached, p=share)]
        )
        expected = batch * in_batch + cached * share
        found = np.zeros(num_items)
        for row in range(rows):
            p = law(scores[row, items], np.log(expected[items]))
            np.add.at(found, rng.choice(items, draws, p=p), 1.0)
        counts = decay * counts + found
        shares.append(counts / counts.sum())
    return np.array(shares)
