"""The published methods that keep something of each query, as compositions."""

from __future__ import annotations

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.model.recipes.preset import Preset, recipe


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
        >>> from tfrs_negatives.data.catalogue import ItemCatalogue
        >>> log = Interactions({"user": np.array([1, 2])}, np.array([7, 9]), query_key="user")
        >>> task = adaptive_importance_resampling(ItemCatalogue([7, 9]), history=log)
        >>> [sampler.name for sampler in task.negatives]
        ['adaptive_pool']

    Source: Chen et al., WWW 2022 (AdaSIR); see `AdaptivePool` for where we differ.
    """
    sizes = {"num_negatives": num_negatives, "pool_size": pool_size}
    return _of_queries({"adaptive_pool": {**_proposals(num_proposals), **sizes}}, history)


@recipe
def simplified_robust(
    *,
    pool_size: int = 8,
    num_proposals: int = 64,
    alpha: float = 5.0,
    warmup_epochs: float = 50.0,
    history: bool = True,
) -> Preset:
    """Of a memory of each query the item whose score is high and varies, paired with the positive.

    Args:
        items: the catalogue to draw from.
        history: the training log: whose queries have memories, and what is kept out of them.
        pool_size: how many items a memory has.
        num_proposals: how many uniform items may enter the memories in a step.
        alpha: what the standard deviation over epochs counts for.
        warmup_epochs: until when it counts for less.
        **options: any keyword of `Retrieval`.

    Returns:
        The task.

    Raises:
        InputError: without a log.

    Example:
        >>> import numpy as np
        >>> from tfrs_negatives.data import Interactions
        >>> from tfrs_negatives.data.catalogue import ItemCatalogue
        >>> log = Interactions({"user": np.array([1, 2])}, np.array([7, 9]), query_key="user")
        >>> task = simplified_robust(ItemCatalogue([7, 9]), history=log)
        >>> [sampler.name for sampler in task.negatives]
        ['robust_memory']

    Source: Ding et al., NeurIPS 2020 (SRNS); see `RobustMemory` for where we differ.
    """
    sizes = {"pool_size": pool_size, "alpha": alpha, "warmup_epochs": warmup_epochs}
    return _of_queries({"robust_memory": {**_proposals(num_proposals), **sizes}}, history)


@recipe
def reinforced_negative_sampling(
    *,
    exposed: str | None = None,
    num_candidates: int = 30,
    alpha: float = 2.5,
    history: bool = True,
) -> Preset:
    """Of some random and exposed items the one that a learned policy chooses, with the positive.

    Args:
        items: the catalogue to draw from.
        history: the training log: whose queries the policy knows, and what it may not choose.
        exposed: the column of items that were shown and not chosen; None rewards hard ones alone.
        num_candidates: from how many items of a row it chooses.
        alpha: what the reward for an exposed item counts for.
        **options: any keyword of `Retrieval`.

    Returns:
        The task.

    Raises:
        InputError: without a log.

    Example:
        >>> import numpy as np
        >>> from tfrs_negatives.data import Interactions
        >>> from tfrs_negatives.data.catalogue import ItemCatalogue
        >>> log = Interactions({"user": np.array([1, 2])}, np.array([7, 9]), query_key="user")
        >>> task = reinforced_negative_sampling(ItemCatalogue([7, 9]), history=log, exposed="shown")
        >>> [sampler.name for sampler in task.negatives]
        ['reinforced']

    Source: Ding et al., IJCAI 2019 (RNS); see `Reinforced` for where we differ.
    """
    policy = {"exposed": exposed, "num_candidates": num_candidates, "alpha": alpha}
    return _of_queries({"reinforced": {**policy, "masks": ["known_positives"]}}, history)


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
