"""The published methods, each as the composition of parts that it is.

Their loss is the mean over the batch, unless `reduction="sum"` is passed.
Accidental hits are masked where the positive is not corrected (`correct="negatives"` or None) and
kept where it is: see the table of limits in `docs/architecture.md`. Pass `masks=` to decide
otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.id_lists import History
from tfrs_negatives.step.frequency import StreamingFrequency
from tfrs_negatives.step.losses import BPR
from tfrs_negatives.step.masks.keep import AccidentalHits
from tfrs_negatives.step.masks.known_positives import KnownPositives
from tfrs_negatives.step.miners import Hardest, WithinPositiveRadius
from tfrs_negatives.step.records import Sampler
from tfrs_negatives.step.samplers import CrossBatch, InBatch, Uniform
from tfrs_negatives.step.task import Retrieval


def in_batch(items: ItemCatalogue, **options: Any) -> Retrieval:
    """In-batch sampled softmax with the streaming logQ correction.

    Args:
        items: the catalogue, which sizes the frequency table.
        **options: any keyword of `Retrieval`; `correct=None` is the uncorrected softmax.

    Returns:
        The task.

    Example:
        >>> in_batch(ItemCatalogue([1, 2, 3])).correction.policy
        'both'

    Source: Yi et al., RecSys 2019.
    """
    return _retrieval([InBatch()], items, options)


def uniform_negative_sampling(
    items: ItemCatalogue, *, num_uniform: int = 1024, **options: Any
) -> Retrieval:
    """Sampled softmax against items drawn uniformly from the catalogue, the same for all rows.

    Every item is as likely, so there is nothing to correct.

    Args:
        items: the catalogue to draw from.
        num_uniform: how many uniform candidates.
        **options: any keyword of `Retrieval`; `loss=BPR()` compares in pairs.

    Returns:
        The task.

    Example:
        >>> task = uniform_negative_sampling(ItemCatalogue([1, 2, 3]), num_uniform=2)
        >>> [sampler.name for sampler in task.negatives]
        ['uniform']

    Source: Bengio and Senecal, 2008; Wu et al., TOIS 2024 (SSM). There each row has draws of its
        own; sharing them costs nothing but their number.
    """
    defaults = {"masks": [AccidentalHits()], "frequency": None, "correct": None}
    return _retrieval([Uniform(items, num_uniform)], items, {**defaults, **options})


def mixed_negative_sampling(
    items: ItemCatalogue, *, num_uniform: int = 8192, **options: Any
) -> Retrieval:
    """In-batch negatives and items drawn uniformly from the catalogue, corrected as one mixture.

    Args:
        items: the catalogue to draw from.
        num_uniform: how many uniform candidates, B' of the paper.
        **options: any keyword of `Retrieval`; `correct="negatives"` is the paper's equation 5.

    Returns:
        The task.

    Example:
        >>> task = mixed_negative_sampling(ItemCatalogue([1, 2, 3]), num_uniform=2)
        >>> [sampler.name for sampler in task.negatives]
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
        compensate: whether fresh candidates take over the gradient that those of the bank cannot
            have; False is the method as published, which can gather all vectors in one direction.
        **options: any keyword of `Retrieval`.

    Returns:
        The task.

    Example:
        >>> task = cross_batch_negative_sampling(ItemCatalogue([1, 2, 3]), capacity=64)
        >>> [sampler.name for sampler in task.negatives]
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
        num_uniform: how many uniform candidates.
        capacity: how many past items, M; at least a batch.
        warmup_steps: steps before they are used.
        max_drift: the largest relative drift at which they are used; None does not ask.
        compensate: whether fresh candidates take over the gradient that those of the bank cannot
            have; False is the method as published, which can gather all vectors in one direction.
        **options: any keyword of `Retrieval`.

    Returns:
        The task. The expected count of an item is (B + M) q + B' / N.

    Example:
        >>> task = mixed_cross_batch_negative_sampling(ItemCatalogue([1, 2, 3]), num_uniform=2)
        >>> [sampler.name for sampler in task.negatives]
        ['in_batch', 'uniform', 'cross_batch']

    Source: the mixtures of Yang et al., WWW 2020, and Wang et al., SIGIR 2021, in one.
    """
    bank = CrossBatch(
        capacity,
        warmup_steps=warmup_steps,
        max_drift=max_drift,
        probes=items,
        compensate=compensate,
    )
    return _retrieval([InBatch(), Uniform(items, num_uniform), bank], items, options)


def ngame(
    items: ItemCatalogue, *, history: History, slack: float = 3.0, **options: Any
) -> Retrieval:
    """The hard negatives of batches of similar queries: those within each row's positive radius.

    Half of the method is the order of the data: train it on `ClusteredBatches`.

    Args:
        items: the catalogue, which sizes the frequency table.
        history: the training log; what a query has chosen in it is no negative of it.
        slack: how much lower than the positive a candidate may score, in nats, similarity /
            temperature: 3 is NGAME's margin of 0.3 at temperature 0.1. 0 is the thesis's radius,
            which stops at a positive that is just above the rest and finds far less
            (`benchmarks/ngame`).
        **options: any keyword of `Retrieval`. `correct=None` is as published; so is, at temperature
            t, `miners=[Hardest(10)]` with `loss=TripletHinge(0.3 / t, focus=0.1 / t)`.

    Returns:
        The task, whose logits are corrected on both sides.

    Example:
        >>> import numpy as np
        >>> from tfrs_negatives.data import Interactions
        >>> log = Interactions({"user": np.array([1, 2])}, np.array([7, 9]), query_key="user")
        >>> [type(miner).__name__ for miner in ngame(ItemCatalogue([7, 9]), history=log).miners]
        ['WithinPositiveRadius']

    Source: Dahiya et al., WSDM 2023, with the radius of the thesis in the place of the ten hardest
        (section 3.5). Neither corrects, which finds far less (`benchmarks/ngame`).
    """
    return _retrieval([InBatch()], items, {**_hard(items, history, slack), **options})


def cross_batch_ngame(
    items: ItemCatalogue,
    *,
    history: History,
    slack: float = 3.0,
    **options: Any,
) -> Retrieval:
    """NGAME with the items of past batches that are within each row's positive radius as well.

    Args:
        items: the catalogue, which sizes the frequency table and measures the drift.
        history: the training log; what a query has chosen in it is no negative of it.
        slack: how much lower than the positive a candidate may score, see `ngame`.
        **options: any keyword of `cross_batch_negative_sampling`, such as `capacity`, and so of
            `Retrieval`.

    Returns:
        The task, whose logits are corrected on both sides.

    Example:
        >>> import numpy as np
        >>> from tfrs_negatives.data import Interactions
        >>> log = Interactions({"user": np.array([1, 2])}, np.array([7, 9]), query_key="user")
        >>> task = cross_batch_ngame(ItemCatalogue([7, 9]), history=log, capacity=64)
        >>> [sampler.name for sampler in task.negatives]
        ['in_batch', 'cross_batch']

    Source: the thesis, section 3.5. We differ: the bank's candidates are tested against
        the history too, ids are stored and log q is read when used, the drift is relative, the
        gradient is compensated and the radius has a slack.
    """
    return cross_batch_negative_sampling(items, **{**_hard(items, history, slack), **options})


def dynamic_negative_sampling(
    items: ItemCatalogue,
    *,
    num_hardest: int = 50,
    num_uniform: int = 200,
    history: History | None = None,
    **options: Any,
) -> Retrieval:
    """The M hardest of N items drawn uniformly, in pairs with the positive.

    The smaller M / N, the more the loss is about the top of the ranking, and the longer training
    takes to begin: the hardest of an untrained model are noise.

    Args:
        items: the catalogue to draw from.
        num_hardest: M, how many of them are used in each row; 1 is the original method.
        num_uniform: N, how many are drawn, for all rows of the batch together.
        history: the training log; what a query has chosen in it is no negative of it. Without one
            only the row's own positive is.
        **options: any keyword of `Retrieval`.

    Returns:
        The task.

    Example:
        >>> task = dynamic_negative_sampling(ItemCatalogue([1, 2, 3]), num_hardest=1, num_uniform=2)
        >>> type(task.loss_function).__name__
        'BPR'

    Source: Zhang et al., SIGIR 2013; Shi et al., WWW 2023, DNS(M, N), there with M = 2 of N = 200
        for 200 epochs. There each row has N draws of its own, and its M pairs are summed; here they
        are averaged, so the gradient is M times smaller.
    """
    mask = AccidentalHits() if history is None else KnownPositives(history, items)
    defaults = {
        "masks": [mask],
        "miners": [Hardest(num_hardest)],
        "loss": BPR(),
        "frequency": None,
        "correct": None,
    }
    return _retrieval([Uniform(items, num_uniform)], items, {**defaults, **options})


def _hard(items: ItemCatalogue, history: History, slack: float) -> dict[str, Any]:
    return {
        "masks": [KnownPositives(history, items)],
        "miners": [WithinPositiveRadius(slack=slack)],
    }


def _retrieval(
    negatives: Sequence[Sampler], items: ItemCatalogue, options: dict[str, Any]
) -> Retrieval:
    # With both sides corrected the copies of the positive are part of what estimates its share of
    # the denominator; elsewhere they would only count against it.
    masks = [] if options.get("correct", "both") == "both" else [AccidentalHits()]
    defaults: dict[str, Any] = {
        "negatives": negatives,
        "frequency": frequency_table(items),
        "masks": masks,
        "similarity": "cosine",
        "temperature": 0.1,
        "reduction": "mean",
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
