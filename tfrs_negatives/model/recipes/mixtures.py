"""The published methods whose negatives are of the batch, of the past and of the catalogue."""

from __future__ import annotations

from typing import Any, Literal

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.model.recipes.preset import Preset, recipe
from tfrs_negatives.step.arguments import SIZED, Run
from tfrs_negatives.step.frequency import StreamingFrequency

Draws = Literal["log_uniform", "unigram"]


@recipe
def in_batch() -> Preset:
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
    return {"negatives": ["in_batch"]}


@recipe
def uniform_negative_sampling(*, num_uniform: int = 1024) -> Preset:
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
    uncorrected = {"frequency": None, "correct": None}
    return {"negatives": [_uniform(num_uniform)], "masks": ["accidental_hits"], **uncorrected}


@recipe
def all_positives(*, num_uniform: int = 2048, history: bool = True) -> Preset:
    """Every positive of a query against items drawn uniformly, in batches of whole queries.

    A batch is of queries, each with all of its positives (`tfn.data.QueryBatches`; `batches.order:
    by_query`): the towers see each query and each item once and the candidates are scored once for
    each query, so an epoch of long histories takes a fraction of the time.

    Args:
        items: the catalogue to draw from.
        num_uniform: how many uniform candidates.
        history: the training log; what a query has chosen in it is no negative of it. Without one
            only the positives of the batch are none.
        **options: any keyword of `Retrieval`.

    Returns:
        The task.

    Example:
        >>> task = all_positives(ItemCatalogue([1, 2, 3]), num_uniform=2)
        >>> [sampler.name for sampler in task.negatives]
        ['uniform']

    Source: the loss over all positives of a query of the thesis on cross-batch NGAME, with the
        uniform candidates of Yang et al., WWW 2020.
    """
    return {
        "negatives": [_uniform(num_uniform)],
        "masks": ["known_positives"] if history else [],
        "frequency": None,
        "correct": None,
        "order": "by_query",
    }


@recipe
def sampled_softmax_mlp(
    *, draws: Draws = "log_uniform", num_negatives: int = 1024, history: bool = True
) -> Preset:
    """The sampled softmax classifier over items, a baseline: one vector and one bias for each.

    In a configuration, with layers of 1,024 and 128 on the side of the queries::

        model: {hidden: [1024], output_dim: 128, similarity: dot, temperature: 1.0, item_bias: true,
                item_tower: "tfrs_negatives.towers.build:id_vectors"}
        task: {recipe: sampled_softmax_mlp}

    Args:
        items: the catalogue to draw from.
        draws: "log_uniform" goes by the rank of popularity, "unigram" by the number of events.
        num_negatives: how many candidates, the same for all rows.
        history: the training log, whose events are counted.
        **options: any keyword of `Retrieval`; the original has dot and temperature 1.

    Returns:
        The task. With dot and temperature 1 its loss is `tf.nn.sampled_softmax_loss`.

    Example:
        >>> import numpy as np
        >>> from tfrs_negatives.data import Interactions
        >>> log = Interactions({"user": np.array([1, 2])}, np.array([7, 9]), query_key="user")
        >>> sampled_softmax_mlp(ItemCatalogue([7, 9]), history=log).negatives[0].name
        'log_uniform'

    Source: Covington et al., RecSys 2016; in Yang et al., WWW 2020, table 1. As there, both sides
        are corrected and copies of the positive masked, all of them and not one: with many draws
        it is the softmax over the *other* items. Draws repeat, so a count is n p.
    """
    if not history:
        raise bad_input("history", "the training log, whose events are counted", None)
    size: dict[str, float] = {"num_negatives": num_negatives}
    of_events = {"popularity": {**size, "exponent": 1.0}}
    sampler = of_events if draws == "unigram" else {"log_uniform": size}
    return {"negatives": [sampler], "masks": ["accidental_hits"], "frequency": None}


@recipe
def mixed_negative_sampling(*, num_uniform: int = 8192) -> Preset:
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
    return {"negatives": ["in_batch", _uniform(num_uniform)]}


@recipe
def cross_batch_negative_sampling(
    *,
    capacity: int = 8192,
    warmup_steps: int = 0,
    max_drift: float | None = None,
    compensate: bool = True,
) -> Preset:
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
    bank = _bank(capacity, warmup_steps, max_drift, compensate)
    return {"negatives": ["in_batch", bank]}


@recipe
def mixed_cross_batch_negative_sampling(
    *,
    num_uniform: int = 8192,
    capacity: int = 8192,
    warmup_steps: int = 0,
    max_drift: float | None = None,
    compensate: bool = True,
) -> Preset:
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
    bank = _bank(capacity, warmup_steps, max_drift, compensate)
    return {"negatives": ["in_batch", _uniform(num_uniform), bank]}


@recipe
def ngame(*, slack: float = 3.0, history: bool = True) -> Preset:
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
    return {"negatives": ["in_batch"], **_hard(slack)}


@recipe
def cross_batch_ngame(
    *,
    slack: float = 3.0,
    capacity: int = 8192,
    warmup_steps: int = 0,
    max_drift: float | None = None,
    compensate: bool = True,
    history: bool = True,
) -> Preset:
    """NGAME with the items of past batches that are within each row's positive radius as well.

    Args:
        items: the catalogue, which sizes the frequency table and measures the drift.
        history: the training log; what a query has chosen in it is no negative of it.
        slack: how much lower than the positive a candidate may score, see `ngame`.
        capacity: of the bank, as all that follow; see `cross_batch_negative_sampling`.
        warmup_steps: steps before it is used.
        max_drift: the largest relative drift at which it is used.
        compensate: whether fresh candidates take over the gradient that it cannot have.
        **options: any keyword of `Retrieval`.

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
    bank = _bank(capacity, warmup_steps, max_drift, compensate)
    return {"negatives": ["in_batch", bank], **_hard(slack)}


@recipe
def dynamic_negative_sampling(
    *, num_hardest: int = 50, num_uniform: int = 200, history: bool = True
) -> Preset:
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
    return {
        "negatives": [_uniform(num_uniform)],
        "masks": ["known_positives" if history else "accidental_hits"],
        "miners": [{"hardest": {"k": num_hardest}}],
        "loss": "bpr",
        "frequency": None,
        "correct": None,
    }


def _uniform(num: int) -> Preset:
    return {"uniform": {"num_negatives": num}}


def _bank(capacity: int, warmup_steps: int, max_drift: float | None, compensate: bool) -> Preset:
    arguments = {"capacity": capacity, "warmup_steps": warmup_steps}
    return {"cross_batch": {**arguments, "max_drift": max_drift, "compensate": compensate}}


def _hard(slack: float) -> Preset:
    return {
        "masks": ["known_positives"],
        "miners": [{"within_positive_radius": {"slack": slack}}],
        "order": "clustered",
    }


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
    return StreamingFrequency(SIZED["num_buckets"](Run(items)), num_hashes=4, **options)
