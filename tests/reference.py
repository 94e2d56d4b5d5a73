"""Slow, obvious numpy version of every stage of a training step.

One row, one column and one number at a time, in float64. A pool is a list of `Column`s; the batch
is the part of it whose columns are somebody's positive, or come from the same stream.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

EMPTY = -(2**63)
NOBODY = -1


class Column(NamedTuple):
    """One candidate: which item it holds, its vector, and the row whose positive it is."""

    item: int
    vector: np.ndarray
    owner: int = NOBODY
    filled: bool = True


def batch_columns(items, vectors, num_rows):
    """The columns of the batch: the first `num_rows` belong to their rows, the rest to nobody."""
    return [
        Column(int(item), np.asarray(vector, np.float64), j if j < num_rows else NOBODY)
        for j, (item, vector) in enumerate(zip(items, vectors, strict=True))
    ]


# ---------------------------------------------------------------- how often an item is proposed


def in_batch_count(probability, num_columns):
    """The mean number of batch columns that hold an item of this probability."""
    return num_columns * probability


def uniform_count(num_items, num_draws, inside=True):
    """The mean number of uniform columns that hold an item of the catalogue."""
    return num_draws / num_items if inside else 0.0


def mixture_log_count(counts):
    """Columns of several sources are simply more columns: their mean numbers add up."""
    total = sum(counts)
    return math.log(total) if total > 0 else -math.inf


# ---------------------------------------------------------------- scores


def cosine(a, b):
    return float(a @ b) / (math.sqrt(float(a @ a)) * math.sqrt(float(b @ b)))


def euclidean(a, b):
    return -sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True))


def score(query, vector, *, similarity="dot", temperature=1.0, bias=0.0):
    """The score of one query and one item; the best vector of a query of several counts."""
    query, vector = np.asarray(query, np.float64), np.asarray(vector, np.float64)
    heads = query[None] if query.ndim == 1 else query
    compare = {"dot": lambda a, b: float(a @ b), "cosine": cosine, "euclidean": euclidean}
    return max(compare[similarity](head, vector) for head in heads) / temperature + bias


# ---------------------------------------------------------------- masks


def keeps(row, positive, j, column, *, accidental_hits=False, score_mask=None):
    """Whether column j counts as a negative of the row whose positive is `positive`."""
    if not column.filled or column.owner == row:
        return False
    if accidental_hits and column.item == positive.item and column.item != EMPTY:
        return False
    return score_mask is None or j >= len(score_mask[row]) or bool(score_mask[row][j])


# ---------------------------------------------------------------- correction


def corrected(positive_score, positive_log_count, scores, log_counts, policy, strength=1.0):
    """The positive's logit and the negatives' logits."""
    if policy is None:
        return positive_score, list(scores)
    logits = [s - strength * c for s, c in zip(scores, log_counts, strict=True)]
    if policy == "both":
        positive_score = positive_score - strength * positive_log_count
    return positive_score, logits


# ---------------------------------------------------------------- mining and loss


def hardest(logits, k):
    """The k largest logits, or all of them where there are fewer."""
    return sorted(logits, reverse=True)[:k]


def softmax_loss(positive, negatives):
    """Minus the log of the positive's share, 0 where it has nobody to compete with."""
    if not negatives:
        return 0.0
    peak = max([positive, *negatives])
    total = sum(math.exp(x - peak) for x in [positive, *negatives])
    return peak + math.log(total) - positive


def reduced(losses, weights=None, reduction="mean"):
    """Weights multiply; the mean is over the rows, not over the weights."""
    weights = [1.0] * len(losses) if weights is None else weights
    total = sum(w * loss for w, loss in zip(weights, losses, strict=True))
    return total / len(losses) if reduction == "mean" else total


# ---------------------------------------------------------------- the step


def retrieval_loss(queries, pool, **options: Any):
    """The loss of one batch.

    Options: similarity, temperature, bias (item -> number), accidental_hits, score_mask, policy,
    strength, count (item -> mean number of columns of each source), k (of the hardest), weights,
    reduction.
    """
    losses = [row_loss(row, query, pool, **options) for row, query in enumerate(queries)]
    return reduced(losses, options.get("weights"), options.get("reduction", "mean"))


def row_loss(row, query, pool, *, policy=None, strength=1.0, count=None, k=None, **options):
    """The loss of one row."""
    positive = pool[row]
    columns = [
        column
        for j, column in enumerate(pool)
        if keeps(row, positive, j, column, **_pick(options, "accidental_hits", "score_mask"))
    ]
    log_count = (lambda item: mixture_log_count(count(item))) if count else (lambda item: 0.0)
    scored = [_score_column(query, column, options) for column in [positive, *columns]]
    own, logits = corrected(
        scored[0],
        log_count(positive.item),
        scored[1:],
        [log_count(column.item) for column in columns],
        policy,
        strength,
    )
    return softmax_loss(own, logits if k is None else hardest(logits, k))


def _score_column(query, column, options):
    bias = options.get("bias") or {}
    settings = _pick(options, "similarity", "temperature")
    return score(query, column.vector, bias=bias.get(column.item, 0.0), **settings)


def _pick(options, *names):
    return {name: options[name] for name in names if name in options}


# ---------------------------------------------------------------- the goal, and derivatives


def full_softmax(scores):
    """P(item | query) over the whole corpus."""
    weights = np.exp(np.asarray(scores, np.float64) - np.max(scores))
    return weights / weights.sum()


def numerical_gradient(function, x, step=1e-5):
    """Central differences of a function of an array, one entry at a time."""
    x = np.asarray(x, np.float64)
    gradient = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[place] += step
        down[place] -= step
        gradient[place] = (function(up) - function(down)) / (2 * step)
    return gradient


def adam_rows(table, steps, *, rate, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
    """Adam on the rows that have a gradient; each step is a dict row -> gradient."""
    table = np.array(table, np.float64)
    m, v = np.zeros_like(table), np.zeros_like(table)
    for t, gradients in enumerate(steps, start=1):
        for row, g in gradients.items():
            m[row] = beta_1 * m[row] + (1 - beta_1) * g
            v[row] = beta_2 * v[row] + (1 - beta_2) * g * g
            rate_t = rate * math.sqrt(1 - beta_2**t) / (1 - beta_1**t)
            table[row] -= rate_t * m[row] / (np.sqrt(v[row]) + epsilon)
    return table
