"""Slow, obvious metrics: one query at a time, one sorted list, the formulas written out."""

from __future__ import annotations

import math

import numpy as np

MEANS = (
    "recall",
    "normalized_recall",
    "precision",
    "hit_rate",
    "ndcg",
    "mrr",
    "all_hits_mrr",
    "map",
    "partial_auc",
)


def ranked_list(scores, relevant, seen):
    """Catalogue rows from best to worst: seen ones out, irrelevant before relevant among equals."""
    rows = [row for row in range(len(scores)) if row not in seen]
    return sorted(rows, key=lambda row: (-scores[row], row in relevant, row))


def metrics_of_query(ranked, relevant, k):
    hit = [1 if row in relevant else 0 for row in ranked[:k]]
    dcg = sum(h / math.log2(r + 1) for r, h in enumerate(hit, start=1))
    ideal = sum(1 / math.log2(r + 1) for r in range(1, min(k, len(relevant)) + 1))
    first = [r for r, h in enumerate(hit, start=1) if h]
    precision_at = [sum(hit[:r]) / r for r in range(1, len(hit) + 1)]
    return {
        "recall": sum(hit) / len(relevant),
        "normalized_recall": sum(hit) / min(k, len(relevant)),
        "precision": sum(hit) / k,
        "hit_rate": 1.0 if any(hit) else 0.0,
        "ndcg": dcg / ideal,
        "mrr": 1 / first[0] if first else 0.0,
        "all_hits_mrr": sum(h / r for r, h in enumerate(hit, start=1)),
        "map": sum(h * p for h, p in zip(hit, precision_at, strict=True)) / min(k, len(relevant)),
        "partial_auc": partial_auc(ranked, relevant, k),
    }


def partial_auc(ranked, relevant, k):
    """Of all pairs of a relevant item and one of the k best others, how many stand rightly."""
    others = [row for row in ranked if row not in relevant][:k]
    right = sum(ranked.index(i) < ranked.index(j) for i in relevant for j in others)
    # Others that there are not stand below.
    return (right + len(relevant) * (k - len(others))) / (len(relevant) * k)


def slice_of_each_item(counts):
    """Writes the training events out in order of popularity and cuts the line in three."""
    order = sorted(range(len(counts)), key=lambda row: (-counts[row], row))
    line = [row for row in order for _ in range(counts[row])]
    names = {}
    for row in order:
        if counts[row] == 0:
            names[row] = "unseen"
        else:
            share_before = line.index(row) / len(line)
            names[row] = (
                "head" if share_before < 1 / 3 else "middle" if share_before < 2 / 3 else "tail"
            )
    return names


def evaluate_slowly(scores, relevant_of, seen_of, counts, ks):
    """All metrics.

    Args:
        scores: [Q, N].
        relevant_of: query -> set of rows, seen ones included.
        seen_of: query -> set of rows.
        counts: [N] training events.
        ks: lengths of lists.
    """
    slices = slice_of_each_item(counts)
    metrics = {}
    for k in ks:
        values = {name: [] for name in MEANS}
        slice_recalls = {"head": [], "middle": [], "tail": [], "unseen": []}
        pair_hits, recommended = [], []
        for query in sorted(relevant_of):
            relevant = relevant_of[query] - seen_of.get(query, set())
            if not relevant:
                continue
            ranked = ranked_list(scores[query], relevant, seen_of.get(query, set()))
            for name, value in metrics_of_query(ranked, relevant, k).items():
                values[name].append(value)
            for name, recalls in slice_recalls.items():
                inside = [row for row in relevant if slices[row] == name]
                if inside:
                    recalls.append(sum(row in ranked[:k] for row in inside) / len(inside))
            pair_hits += [row in ranked[:k] for row in relevant]
            recommended += ranked[:k]
        metrics |= {f"{name}_at_{k}": np.mean(v) for name, v in values.items()}
        metrics |= {f"{n}_recall_at_{k}": np.mean(v) for n, v in slice_recalls.items() if v}
        metrics[f"top_k_accuracy_at_{k}"] = np.mean(pair_hits)
        metrics[f"coverage_at_{k}"] = len(set(recommended)) / len(counts)
        metrics[f"mean_popularity_at_{k}"] = np.mean([counts[row] for row in recommended])
    return metrics
