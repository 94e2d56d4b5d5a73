"""Slow, obvious versions: the text format, the repository's metric, a step of mined unions."""

from __future__ import annotations

import math


def read_file(text):
    """Returns (labels, word -> value) of each point of a file, read a character class at a time."""
    points = []
    for line in text.split("\n")[1:]:
        if line:
            head, *tail = line.split(" ")
            labels = [int(label) for label in head.split(",")] if head else []
            pairs = [pair.partition(":") for pair in tail if pair]
            points.append((labels, {int(word): float(value) for word, _, value in pairs}))
    return points


def inverse_propensity(label, labels_of, a, b):
    """1 / p of one label: p = 1 / (1 + C exp(-a log(n_l + b))), as the paper writes it."""
    n_l = sum(label in labels for labels in labels_of.values())
    c = (math.log(len(labels_of)) - 1) * (b + 1) ** a
    p = 1 / (1 + c * math.exp(-a * math.log(n_l + b)))
    return 1 / p


def psp(lists, relevant_of, weights, k):
    """The ratio of what was hit to the best that any list of k could hit, summed over queries."""
    hit, best = 0.0, 0.0
    for query, ranked in lists.items():
        relevant = relevant_of[query]
        hit += sum(weights[row] for row in ranked[:k] if row in relevant) / k
        best += sum(sorted((weights[row] for row in relevant), reverse=True)[:k]) / k
    return hit / best


def union_loss(queries, positives, positive_ids, picks, corpus, known, temperature):
    """One step of shared mined negatives, row by row.

    Args:
        queries: [B, D].
        positives: [B, D].
        positive_ids: [B].
        picks: the mined item of each row, None without one.
        corpus: item -> vector.
        known: for each row the items that must not be its negatives, the positive left aside.
        temperature: of the dot product.
    """
    pool = {}
    for item, vector in zip(positive_ids, positives, strict=True):
        pool.setdefault(item, vector)
    for item in picks:
        if item is not None:
            pool.setdefault(item, corpus[item])
    losses = []
    for row, query in enumerate(queries):
        own = math.exp(float(query @ positives[row]) / temperature)
        rest = sum(
            math.exp(float(query @ vector) / temperature)
            for item, vector in pool.items()
            if item != positive_ids[row] and item not in known[row]
        )
        losses.append(math.log(own + rest) - math.log(own) if rest else 0.0)
    return losses
