"""The published methods, each as the composition of parts that it is.

Accidental hits are masked where the positive is not corrected (`correct="negatives"` or None) and
kept where it is: see the table of limits in `docs/architecture.md`. Pass `masks=` to decide
otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfrs_negatives.encode.catalogue import ItemCatalogue
from tfrs_negatives.propose.frequency import StreamingFrequency
from tfrs_negatives.propose.negatives import CrossBatch, InBatch, Uniform
from tfrs_negatives.score.keep_masks import AccidentalHits
from tfrs_negatives.train.task import Retrieval
from tfrs_negatives.types import NegativeSource


def in_batch(items: ItemCatalogue, **options: Any) -> Retrieval:
    """In-batch sampled softmax with the streaming logQ correction.

    Args:
        items: the catalogue, which sizes the frequency table.
        **options: any keyword of `Retrieval`; `correct=None` is the uncorrected softmax.

    Returns:
        The task.

    Example:
        >>> in_batch(ItemCatalogue([1, 2, 3])).correct
        'both'

    Source: Yi et al., RecSys 2019.
    """
    return _retrieval([InBatch()], items, options)


def mixed_negative_sampling(
    items: ItemCatalogue, *, num_uniform: int = 8192, **options: Any
) -> Retrieval:
    """In-batch negatives and items drawn uniformly from the catalogue, corrected as one mixture.

    Args:
        items: the catalogue to draw from.
        num_uniform: how many uniform columns, B' of the paper.
        **options: any keyword of `Retrieval`; `correct="negatives"` is the paper's equation 5.

    Returns:
        The task.

    Example:
        >>> task = mixed_negative_sampling(ItemCatalogue([1, 2, 3]), num_uniform=2)
        >>> [source.name for source in task.negatives]
        ['in_batch', 'uniform']

    Source: Yang et al., WWW 2020.
    """
    return _retrieval([InBatch(), Uniform(items, num_uniform)], items, options)


def cross_batch_negative_sampling(
    items: ItemCatalogue,
    *,
    capacity: int = 8192,
    warmup_steps: int = 0,
    max_drift: float | None = None,
    compensate: bool = True,
    **options: Any,
) -> Retrieval:
    """In-batch negatives and the items of past batches, as they were encoded then.

    Args:
        items: the catalogue, which sizes the frequency table and measures the drift.
        capacity: how many past items, M; at least a batch.
        warmup_steps: steps before they are used.
        max_drift: the largest relative drift at which they are used; None does not ask.
        compensate: whether fresh columns take over the gradient that those of the bank cannot have;
            False is the method as published, which can gather all vectors in one direction.
        **options: any keyword of `Retrieval`.

    Returns:
        The task.

    Example:
        >>> task = cross_batch_negative_sampling(ItemCatalogue([1, 2, 3]), capacity=64)
        >>> [source.name for source in task.negatives]
        ['in_batch', 'cross_batch']

    Source: Wang et al., SIGIR 2021.
    """
    bank = CrossBatch(
        capacity,
        warmup_steps=warmup_steps,
        max_drift=max_drift,
        probes=items,
        compensate=compensate,
    )
    return _retrieval([InBatch(), bank], items, options)


def mixed_cross_batch_negative_sampling(
    items: ItemCatalogue,
    *,
    num_uniform: int = 8192,
    capacity: int = 8192,
    warmup_steps: int = 0,
    max_drift: float | None = None,
    compensate: bool = True,
    **options: Any,
) -> Retrieval:
    """The batch, the items of past batches and items drawn uniformly, corrected as one mixture.

    Args:
        items: the catalogue to draw from.
        num_uniform: how many uniform columns.
        capacity: how many past items, M; at least a batch.
        warmup_steps: steps before they are used.
        max_drift: the largest relative drift at which they are used; None does not ask.
        compensate: whether fresh columns take over the gradient that those of the bank cannot have;
            False is the method as published, which can gather all vectors in one direction.
        **options: any keyword of `Retrieval`.

    Returns:
        The task. The expected count of an item is (B + M) q + B' / N.

    Example:
        >>> task = mixed_cross_batch_negative_sampling(ItemCatalogue([1, 2, 3]), num_uniform=2)
        >>> [source.name for source in task.negatives]
        ['in_batch', 'uniform', 'cross_batch']

    Source: ALG 3.2, three sources.
    """
    bank = CrossBatch(
        capacity,
        warmup_steps=warmup_steps,
        max_drift=max_drift,
        probes=items,
        compensate=compensate,
    )
    return _retrieval([InBatch(), Uniform(items, num_uniform), bank], items, options)


def _retrieval(
    negatives: Sequence[NegativeSource], items: ItemCatalogue, options: dict[str, Any]
) -> Retrieval:
    # With both sides corrected the copies of the positive are part of what estimates its share of
    # the denominator; elsewhere they would only count against it.
    masks = [] if options.get("correct", "both") == "both" else [AccidentalHits()]
    defaults = {
        "negatives": negatives,
        "frequency": frequency_table(items),
        "masks": masks,
        "similarity": "cosine",
        "temperature": 0.1,
    }
    return Retrieval(**{**defaults, **options})


def frequency_table(items: ItemCatalogue, **options: Any) -> StreamingFrequency:
    """A streaming estimator sized for a catalogue: four buckets per item, four hashes.

    Args:
        items: the catalogue.
        **options: any other keyword of `StreamingFrequency`.

    Returns:
        The estimator; about 0.2 % of the items share all of their buckets with others.

    Example:
        >>> frequency_table(ItemCatalogue(list(range(1000)))).num_buckets
        4000
    """
    return StreamingFrequency(num_buckets=max(1024, 4 * len(items)), num_hashes=4, **options)
