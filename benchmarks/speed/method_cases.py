"""What each published method costs in a step, beside in-batch negatives."""

from __future__ import annotations

from collections.abc import Callable

import tfrs_negatives as tfn  # isort: skip  (chooses legacy Keras before TensorFlow is imported)
import numpy as np

from benchmarks.speed.measure import Case, Claim, Contestant
from benchmarks.speed.models import NUM_BATCHES, drawn_log, some_batches, train_step, two_tower
from benchmarks.speed.sizes import Sizes

Tasks = dict[str, Callable[[], tfn.Retrieval]]


def samplers(sizes: Sizes) -> list[Case]:
    """What the recipes cost, each with as many candidates as the published settings have, at most.

    The baseline is `in_batch` with the same towers and events. Where a method encodes more items,
    what it costs is mostly the item tower: here an embedding and two layers.
    """
    items, log = _world(sizes)
    some, r = sizes.method_candidates, tfn.recipes
    tasks: Tasks = {
        "in_batch": lambda: r.in_batch(items),
        "mixed_negative_sampling": lambda: r.mixed_negative_sampling(items, num_uniform=some),
        "cross_batch_negative_sampling": lambda: r.cross_batch_negative_sampling(
            items, capacity=some
        ),
        "ngame": lambda: r.ngame(items, history=log),
        "dynamic_negative_sampling": lambda: r.dynamic_negative_sampling(items, history=log),
        "batch_importance_resampling": lambda: r.batch_importance_resampling(items),
        "cache_augmented_resampling": lambda: r.cache_augmented_resampling(items, num_cached=some),
        "batch_mix": lambda: r.batch_mix(items, num_mixed=some),
        "bayesian_negative_sampling": lambda: r.bayesian_negative_sampling(items, history=log),
        "adaptive_importance_resampling": lambda: r.adaptive_importance_resampling(
            items, history=log
        ),
        "simplified_robust": lambda: r.simplified_robust(items, history=log),
        "reinforced_negative_sampling": lambda: r.reinforced_negative_sampling(items, history=log),
        "sampled_softmax_mlp": lambda: r.sampled_softmax_mlp(items, history=log),
    }
    return [_case(f"batches of {sizes.pool_batch:,}, {some:,} candidates", tasks, sizes, log)]


def losses(sizes: Sizes) -> list[Case]:
    """What the losses cost, on uniform items that are the same for all rows.

    The baseline is `SampledSoftmax`, which needs log-sums only.
    """
    items, log = _world(sizes)
    some, of = sizes.method_candidates, tfn.losses
    made = [
        of.SampledSoftmax(),
        of.BPR(),
        of.SoftTopK(5),
        of.SLAtK(log, 20, width=10.0),
        of.CCL(0.5, 1.0),
        of.GBCE(some / sizes.items),
        of.BSL(),
        of.PSL(),
        of.SoftPartialAUC(1.0),
        of.NonSampling(0.1),
    ]
    tasks: Tasks = {
        type(loss).__name__: lambda loss=loss: tfn.recipes.uniform_negative_sampling(
            items, num_uniform=some, loss=loss
        )
        for loss in made
    }
    return [_case(f"batches of {sizes.pool_batch:,}, {some:,} uniform items", tasks, sizes, log)]


def _world(sizes: Sizes) -> tuple[tfn.ItemCatalogue, tfn.Interactions]:
    log = drawn_log(NUM_BATCHES * sizes.pool_batch, sizes.users, sizes.items)
    return tfn.ItemCatalogue(np.arange(sizes.items)), log


def _case(title: str, tasks: Tasks, sizes: Sizes, log: tfn.Interactions) -> Case:
    def stepping(task: Callable[[], tfn.Retrieval]) -> Callable[[], Callable[[], object]]:
        batches = some_batches(log, sizes.pool_batch)
        return lambda: train_step(lambda: two_tower(sizes.users, sizes.items, task()), batches)

    base, *others = tasks
    return Case(
        title=title,
        contestants=[Contestant(name, stepping(task)) for name, task in tasks.items()],
        claims=[Claim(name, base, "time") for name in others],
        turns=min(sizes.turns, 15),
    )
