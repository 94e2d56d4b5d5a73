"""The published methods that choose negatives by their scores, or make others of them."""

from __future__ import annotations

from tfrs_negatives.model.recipes.preset import Preset, recipe


@recipe
def batch_importance_resampling(*, num_resampled: int = 256, reuse_scores: bool = True) -> Preset:
    """In-batch negatives, resampled for each row by the softmax over them.

    Args:
        items: the catalogue, which sizes the frequency table.
        num_resampled: how many negatives are drawn for each row.
        reuse_scores: whether the softmax over what was drawn uses the scores again, as published;
            see `Resample`.
        **options: any keyword of `Retrieval`.

    Returns:
        The task.

    Example:
        >>> from tfrs_negatives.data.catalogue import ItemCatalogue
        >>> task = batch_importance_resampling(ItemCatalogue([1, 2, 3]), num_resampled=2)
        >>> task.miners[0].num
        2

    Source: Chen et al., NeurIPS 2022 (BIR), which draws as many as the batch has. There the copies
        of a row's positive may be drawn, here they are masked.
    """
    return {"negatives": ["in_batch"], **_resampled(num_resampled, reuse_scores)}


@recipe
def cache_augmented_resampling(
    *,
    num_cached: int = 2048,
    cache_share: float = 0.5,
    decay: float = 0.99,
    num_resampled: int = 256,
    reuse_scores: bool = True,
) -> Preset:
    """The batch and a cache of items that were resampled often, resampled for each row.

    Args:
        items: the catalogue to draw from.
        num_cached: how many items of the cache are encoded in a step.
        cache_share: the weight of the cache in the mixture, in [0, 1]; that of the batch is the
            rest. 0 is `batch_importance_resampling`.
        decay: of the counts behind the cache, in each step.
        num_resampled: how many negatives are drawn for each row.
        reuse_scores: see `Resample`.
        **options: any keyword of `Retrieval`.

    Returns:
        The task.

    Example:
        >>> from tfrs_negatives.data.catalogue import ItemCatalogue
        >>> task = cache_augmented_resampling(ItemCatalogue([1, 2, 3]), num_cached=2)
        >>> [sampler.name for sampler in task.negatives]
        ['in_batch', 'id_cache']

    Source: Chen et al., NeurIPS 2022 (XIR). There half of the draws are from each of the two, in
        two losses with the shares; here all are from their mixture, whose counts are exact.
    """
    cache = {"id_cache": {"num_negatives": num_cached, "decay": decay}}
    negatives = [
        {"weighted": {"sampler": "in_batch", "weight": 1.0 - cache_share}},
        {"weighted": {"sampler": cache, "weight": cache_share}},
    ]
    return {"negatives": negatives, **_resampled(num_resampled, reuse_scores)}


@recipe
def batch_mix(
    *, num_mixed: int = 2048, mixed_share: float = 0.8, mixing_temperature: float = 1.0
) -> Preset:
    """In-batch negatives, and mixtures of them in which rare items weigh more.

    Args:
        items: the catalogue, which sizes the frequency table.
        num_mixed: how many mixtures, K.
        mixed_share: their share of the loss, 1 - gamma of the paper; 0 is `in_batch`.
        mixing_temperature: see `BatchMix`.
        **options: any keyword of `Retrieval`.

    Returns:
        The task.

    Example:
        >>> from tfrs_negatives.data.catalogue import ItemCatalogue
        >>> batch_mix(ItemCatalogue([1, 2, 3]), mixed_share=0.5).loss_function.hard_share
        0.5

    Source: Fan et al., CIKM 2023 (BMNS). There a row's positive is part of its own mixtures.
    """
    return {
        "negatives": ["in_batch"],
        "miners": [{"batch_mix": {"num": num_mixed, "temperature": mixing_temperature}}],
        "loss": {"easy_hard_mixture": {"hard_share": mixed_share}},
    }


@recipe
def bayesian_negative_sampling(
    *,
    num_uniform: int = 1024,
    num_candidates: int = 5,
    unbias_weight: float = 5.0,
    history: bool = True,
) -> Preset:
    """In pairs with the positive, the item that is hard and probably no false negative.

    Args:
        items: the catalogue to draw from.
        num_uniform: how many uniform items are drawn for all rows, M of `LeastBayesianRisk`.
        num_candidates: among how many of them each row chooses.
        unbias_weight: lambda, see there.
        history: the training log; what a query has chosen in it is no negative of it. Without one
            only the row's own positive is.
        **options: any keyword of `Retrieval`.

    Returns:
        The task.

    Example:
        >>> from tfrs_negatives.data import Interactions
        >>> from tfrs_negatives.data.catalogue import ItemCatalogue
        >>> import numpy as np
        >>> log = Interactions({"user": np.array([1, 2])}, np.array([7, 9]), query_key="user")
        >>> task = bayesian_negative_sampling(ItemCatalogue([7, 9]), history=log)
        >>> task.miners[0].num_candidates
        5

    Source: Liu and Wang, ICDE 2023 (BNS), which draws the candidates for each row and compares them
        with the whole catalogue.
    """
    risk = {"num_candidates": num_candidates, "unbias_weight": unbias_weight}
    return {
        "negatives": [{"uniform": {"num_negatives": num_uniform}}],
        "masks": ["known_positives" if history else "accidental_hits"],
        "miners": [{"least_bayesian_risk": risk}],
        "loss": "bpr",
        "frequency": None,
        "correct": None,
    }


def _resampled(num: int, reuse_scores: bool) -> Preset:
    resample = {"resample": {"num": num, "reuse_scores": reuse_scores}}
    return {"miners": [resample], "correct": "negatives"}
