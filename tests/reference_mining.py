"""Mining as its definition says it: every score of one query, sorted, filtered, one by one."""

from __future__ import annotations

import numpy as np


def mine_one(query, items, positives, *, allowed, rank_range, relative_margin, num):
    """The negatives of one query as (row, rank, score), its positive score, and all that was left.

    query [D] and items [N, D] in float64; positives and allowed are sets of rows.
    """
    scores = items @ query
    positive_score = np.mean([scores[row] for row in sorted(positives)])
    left, rank = [], 0
    for row in sorted(range(len(items)), key=lambda row: -scores[row]):
        if row in positives:
            continue
        rank += 1
        if row not in allowed or not rank_range[0] <= rank <= rank_range[1]:
            continue
        limit = positive_score - (relative_margin or 0) * abs(positive_score)
        if relative_margin is not None and scores[row] > limit:
            continue
        left.append((row, rank, scores[row]))
    return left[:num], positive_score, left
