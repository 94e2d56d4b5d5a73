"""From ranks to the numbers of a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tfrs_negatives.evaluation.held_out import HeldOut
from tfrs_negatives.evaluation.propensity import propensity_scored_precision
from tfrs_negatives.evaluation.ranks import Ranks

SLICES = ("head", "middle", "tail", "unseen")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How well a model finds the held-out items. A metric that was not computed is absent.

    With rel the distinct held-out items of a query, hits those of them in its list of the k best,
    and hit_r = 1 where the item at rank r is held out, averaged over the queries:

        recall_at_k             hits / |rel|
        normalized_recall_at_k  hits / min(k, |rel|)
        precision_at_k          hits / k
        hit_rate_at_k           1 if hits > 0, else 0
        ndcg_at_k               Σ_{r<=k} hit_r / log2(r+1)  /  Σ_{r<=min(k, |rel|)} 1 / log2(r+1)
        mrr_at_k                1 / rank of the first hit, 0 without one
        all_hits_mrr_at_k       Σ_{r<=k} hit_r / r, over all hits: it may be above 1
        map_at_k                Σ_{r<=k} hit_r · (hits up to r) / r  /  min(k, |rel|)
        partial_auc_at_k        share of the pairs (held-out item, one of the k best others) in the
                                right order; of all items this is the one-way partial area under the
                                ROC curve up to a false positive rate of k / others
        head_recall_at_k, middle_..., tail_..., unseen_...
                                recall of the held-out items of one slice, over the queries that
                                have any there (only with a training log)

    and over all at once:

        top_k_accuracy_at_k     share of the distinct held-out (query, item) pairs that are hits
        coverage_at_k           share of the catalogue that is in at least one list
        mean_popularity_at_k    training events of a recommended item, averaged over all places of
                                all lists (only with a training log)
        psp_at_k                Σ of w over all hits  /  Σ of the min(k, |rel|) largest w of each
                                query, with w of `inverse_propensities`: 1 for an ideal ranking
                                (only where its a and b are given)

    The slices go by training events: the most popular items that make up the first third of them
    (head), the second (middle) and the last (tail), and the items without any (unseen).

    Attributes:
        metrics: name -> value.
        counts: num_queries, num_skipped_queries (all their items are excluded), num_pairs,
            num_excluded_pairs, and with a training log num_head_pairs and so on.
        per_query: `recall_at_k` and `ndcg_at_k` -> [num_queries] float32 for paired tests, in the
            order of `test.queries()` without the skipped queries.
        query_features: name -> [num_queries, ...], the features of these queries.
    """

    metrics: dict[str, float]
    counts: dict[str, int]
    per_query: dict[str, np.ndarray]
    query_features: Mapping[str, np.ndarray]


def summarize(
    held_out: HeldOut,
    ranks: Ranks,
    *,
    item_counts: np.ndarray | None,
    item_weights: np.ndarray | None = None,
) -> Evaluation:
    """Computes all metrics that the data allows.

    Args:
        held_out: Q queries.
        ranks: where their P items stand.
        item_counts: [N], training events per item; None leaves the metrics of popularity out.
        item_weights: [N], the inverse propensity of each item; None leaves theirs out.
    """
    counts = _counts(held_out, ranks, item_counts)
    evaluation = Evaluation({}, counts, {}, held_out.query_features)
    for k, recommended in ranks.recommended.items():
        values = query_metrics(ranks, k)
        means = {name: value.mean() for name, value in values.items()}
        means["top_k_accuracy"] = np.mean(ranks.rank <= k)
        means["coverage"] = np.mean(recommended > 0)
        if item_counts is not None:
            means["mean_popularity"] = np.average(item_counts, weights=recommended)
            means |= _slice_recalls(ranks, popularity_slices(item_counts), k)
        if item_weights is not None:
            means["psp"] = propensity_scored_precision(ranks, item_weights, k)
        evaluation.metrics.update({f"{n}_at_{k}": float(mean) for n, mean in means.items()})
        for name in ("recall", "ndcg"):
            evaluation.per_query[f"{name}_at_{k}"] = values[name].astype(np.float32)
    return evaluation


def _counts(held_out: HeldOut, ranks: Ranks, item_counts: np.ndarray | None) -> dict[str, int]:
    counts = {
        "num_queries": held_out.num_queries,
        "num_skipped_queries": held_out.num_skipped_queries,
        "num_pairs": len(ranks.rank),
        "num_excluded_pairs": held_out.num_excluded_pairs,
    }
    if item_counts is not None:
        slices = popularity_slices(item_counts)[ranks.pairs.rows]
        sizes = np.bincount(slices, minlength=len(SLICES))
        counts |= {f"num_{name}_pairs": int(n) for name, n in zip(SLICES, sizes, strict=True)}
    return counts


def query_metrics(ranks: Ranks, k: int) -> dict[str, np.ndarray]:
    """Returns the metrics that are averaged over queries: name -> [Q] float64."""
    queries, rank, place = ranks.pairs.queries, ranks.rank, ranks.place
    hit = rank <= k
    num_relevant = np.bincount(queries)
    findable = np.minimum(num_relevant, k)
    hits = np.bincount(queries, hit)
    # Those that stand before an item and are not held out; exact up to k.
    others = rank - 1 - place
    ideal_gain = np.cumsum(1 / np.log2(np.arange(2, k + 2)))
    return {
        "recall": hits / num_relevant,
        "normalized_recall": hits / findable,
        "precision": hits / k,
        "hit_rate": np.minimum(hits, 1),
        "ndcg": np.bincount(queries, hit / np.log2(rank + 1)) / ideal_gain[findable - 1],
        "mrr": np.bincount(queries, (hit & (place == 0)) / rank),
        "all_hits_mrr": np.bincount(queries, hit / rank),
        "map": np.bincount(queries, hit * (place + 1) / rank) / findable,
        "partial_auc": np.bincount(queries, np.maximum(1 - others / k, 0)) / num_relevant,
    }


def _slice_recalls(ranks: Ranks, slices: np.ndarray, k: int) -> dict[str, float]:
    recalls = {}
    for number, name in enumerate(SLICES):
        inside = slices[ranks.pairs.rows] == number
        if inside.any():
            _, queries = np.unique(ranks.pairs.queries[inside], return_inverse=True)
            hits = np.bincount(queries, ranks.rank[inside] <= k)
            recalls[f"{name}_recall"] = float(np.mean(hits / np.bincount(queries)))
    return recalls


def popularity_slices(item_counts: np.ndarray) -> np.ndarray:
    """Cuts the catalogue by training events into the slices of `SLICES`.

    Args:
        item_counts: [N], not all zero. Items with equal counts go in catalogue order.

    Returns:
        [N] int64: 0 to 2 for the third of the events in which an item's first event falls when the
        events are ordered by the popularity of their items; 3 for an item without events.

    Example:
        >>> popularity_slices(np.array([1, 0, 6, 2])).tolist()
        [2, 3, 0, 2]
    """
    order = np.argsort(-item_counts, kind="stable")
    events_before = np.cumsum(item_counts[order]) - item_counts[order]
    slices = np.empty(len(item_counts), np.int64)
    # All events are before an item without any: 3 thirds.
    slices[order] = 3 * events_before // item_counts.sum()
    return slices
