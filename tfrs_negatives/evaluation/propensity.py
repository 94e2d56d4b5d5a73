"""Precision that counts a hit by how probable it was that its label would be known at all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.interactions import Interactions
from tfrs_negatives.data.query_items import QueryItems
from tfrs_negatives.evaluation.ranks import Ranks


def inverse_propensities(
    train: Interactions, items: ItemCatalogue, *, a: float = 0.55, b: float = 1.5
) -> np.ndarray:
    """Returns how much a hit of each item counts in `psp_at_k`.

        w_l = 1 + C (n_l + b)^-a,    C = (log n - 1) (b + 1)^a

    for n queries in the training log, n_l of which have the item: a label that few points have is
    missing in the data more often than one that many have. The constants of the Extreme
    Classification Repository are a 0.6, b 2.6 for the data sets of Amazon, 0.5, 0.4 for those of
    Wikipedia, and 0.55, 1.5 for all others.

    Args:
        train: the training log; equal events count once.
        items: the corpus of N items.
        a: how fast the weight falls.
        b: as if so many more queries had every item.

    Returns:
        [N] float64, above 1.

    Raises:
        InputError: if a or b is not above 0, or the log has fewer than three queries.

    Example:
        >>> points, labels = np.array([0, 1, 2, 3, 0]), np.array([7, 7, 7, 7, 8])
        >>> train = Interactions({"point": points}, labels, query_key="point")
        >>> inverse_propensities(train, ItemCatalogue([7, 8])).round(4).tolist()
        [1.2504, 1.3863]

    Source: Jain et al., KDD 2016, with n >= 3 where C is positive.
    """
    for name, constant in (("a", a), ("b", b)):
        if not 0 < constant < math.inf:
            raise bad_input(f"propensity.{name}", "a finite number above 0", constant)
    _, query_of_event = train.queries()
    num_queries = len(np.unique(query_of_event))
    if num_queries < 3:
        raise bad_input("propensity", "a training log with at least 3 queries", num_queries)
    pairs = QueryItems.distinct(query_of_event, train.item_rows(items))
    counts = np.bincount(pairs.rows, minlength=len(items))
    scale = (math.log(num_queries) - 1) * (b + 1) ** a
    return np.asarray(1 + scale * (counts + b) ** -a)


def checked_constants(propensity: Sequence[float] | None) -> tuple[float, float] | None:
    """Returns a and b.

    Raises:
        InputError: unless there are two, or None.
    """
    if propensity is None:
        return None
    try:
        a, b = map(float, propensity)
    except (TypeError, ValueError):
        raise bad_input("propensity", "two numbers, a and b, or None", propensity) from None
    return a, b


def propensity_scored_precision(ranks: Ranks, weights: np.ndarray, k: int) -> float:
    """Returns the weight of all hits as a share of what an ideal ranking hits.

    It is the ratio of two means over the queries, not the mean of a ratio, as in the repository.

    Args:
        ranks: where the held-out items stand.
        weights: [N].
        k: length of the lists.

    Source: Jain et al., KDD 2016, normalised as the scripts of the repository do.
    """
    queries, weight = ranks.pairs.queries, weights[ranks.pairs.rows]
    ideal = weight[np.lexsort((-weight, queries))]
    place = np.arange(len(queries)) - np.searchsorted(queries, queries)
    return float(weight[ranks.rank <= k].sum() / ideal[place < k].sum())
