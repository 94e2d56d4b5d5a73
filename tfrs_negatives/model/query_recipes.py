"""The published methods that keep something of each query, as compositions."""

from __future__ import annotations

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.model.recipe import Preset, recipe


@recipe
def adaptive_importance_resampling(
    *, num_negatives: int = 5, pool_size: int = 50, num_proposals: int = 200, history: bool = True
) -> Preset:
    """Items of a pool that each query has, resampled by their scores, in pairs with the positive.

    Args:
        items: the catalogue to draw from.
        history: the training log: whose queries have pools, and what is kept out of them.
        num_negatives: how many items of its pool a row has.
        pool_size: how many items a pool has.
        num_proposals: how many uniform items may enter the pools in a step.
        **options: any keyword of `Retrieval`.

    Returns:
        The task.

    Raises:
        InputError: without a log.

    Example:
        >>> import numpy as np
        >>> from tfrs_negatives.data import Interactions
        >>> log = Interactions({"user": np.array([1, 2])}, np.array([7, 9]), query_key="user")
        >>> task = adaptive_importance_resampling(ItemCatalogue([7, 9]), history=log)
        >>> [sampler.name for sampler in task.negatives]
        ['adaptive_pool']

    Source: Chen et al., WWW 2022 (AdaSIR); see `AdaptivePool` for where we differ.
    """
    sizes = {"num_negatives": num_negatives, "pool_size": pool_size}
    return _of_queries({"adaptive_pool": {**_proposals(num_proposals), **sizes}}, history)


def _proposals(num: int) -> Preset:
    return {"proposals": {"uniform": {"num_negatives": num}}, "masks": ["known_positives"]}


def _of_queries(sampler: Preset, history: bool) -> Preset:
    if not history:
        raise bad_input("history", "the training log, whose queries have pools", None)
    return {
        "negatives": [sampler],
        "masks": ["known_positives"],
        "loss": "bpr",
        "frequency": None,
        "correct": None,
    }
