"""The loss of all positives of a query, one after the other, in numpy."""

from __future__ import annotations

import numpy as np


def all_positives_terms(vectors, rows, ids, *, pool, policy, known=None, hits=False, kind=""):
    """Returns the term of every positive, whose negatives are the pool without its query's own.

    Args:
        vectors: of the queries [Q, D] and of the positives [B, D].
        rows: [B] the query of each positive.
        ids: [B].
        pool: ids [C], vectors [C, D], own_rows [C], log_count [C] and positive_log_count [B].
        policy: of the correction.
        known: the items of each query that are no negatives.
        hits: whether copies of the positive are left out.
        kind: "pairs", "hardest" and "semi-hard" are other losses.
    """
    queries, positives = vectors
    corrects = policy is not None and pool.get("log_count") is not None
    terms = []
    for number, (row, item) in enumerate(zip(rows, ids, strict=True)):
        score = own = float(queries[row] @ positives[number])
        if corrects and policy == "both":
            own -= float(pool["positive_log_count"][number])
        logits = []
        for c, held in enumerate(pool["ids"]):
            is_known = known is not None and held in known[row]
            if pool["own_rows"][c] == row or is_known or (hits and held == item):
                continue
            other = float(queries[row] @ pool["vectors"][c])
            if kind == "semi-hard" and not score - 1.0 < other < score:
                continue
            logits.append(other - (float(pool["log_count"][c]) if corrects else 0.0))
        terms.append(_term(own, logits, kind))
    return np.array(terms)


def _term(own, logits, kind):
    if not logits:
        return 0.0
    if kind in ("pairs", "hardest"):
        kept = sorted(logits)[-3:] if kind == "hardest" else logits
        return float(np.mean([np.logaddexp(0, logit - own) for logit in kept]))
    return float(np.logaddexp.reduce([own, *logits]) - own)
