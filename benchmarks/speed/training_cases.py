"""What is measured of a training step: a function per section returns its cases.

The docstring of a section is its text in README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tfrs_negatives as tfn  # isort: skip  (chooses legacy Keras before TensorFlow is imported)
import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from benchmarks.known_positives.run import synthetic_log
from benchmarks.speed.measure import Call, Case, Claim, Contestant
from benchmarks.speed.models import (
    NUM_BATCHES,
    PlainModel,
    drawn_log,
    some_batches,
    train_step,
    two_tower,
)
from benchmarks.speed.sizes import SEED, Sizes
from tfrs_negatives.step.records import Mask


def _stepping(
    build: Callable[[], tf.keras.Model],
    sizes: Sizes,
    batch: int,
    log: tfn.Interactions | None = None,
) -> Callable[[], Call]:
    """Returns the preparation of a training step on batches of a log, or of a drawn one."""
    log = log or drawn_log(NUM_BATCHES * batch, sizes.users, sizes.items)
    return lambda: train_step(build, some_batches(log, batch))


def _in_batch(sizes: Sizes, batch: int) -> Callable[[], Call]:
    """Returns the preparation of the plainest step of `TwoTower`, beside which parts are timed."""
    return _stepping(lambda: two_tower(sizes.users, sizes.items, tfn.Retrieval()), sizes, batch)


def step(sizes: Sizes) -> list[Case]:
    """In-batch training steps of two towers: id embeddings, a ReLU layer, a linear layer, Adagrad.

    The baseline is `tfrs.Model` with `tfrs.tasks.Retrieval()`; `tfn.Retrieval()` is in its place in
    the same model, without any other change. `TwoTower` has the same towers; with a frequency it
    corrects as well, so it does more than the baseline.
    """
    return [_step_case(sizes, batch) for batch in sizes.step_batches]


def _step_case(sizes: Sizes, batch: int) -> Case:
    shape = sizes.users, sizes.items
    models: dict[str, Callable[[], tf.keras.Model]] = {
        "tfrs.tasks.Retrieval": lambda: PlainModel(*shape, tfrs.tasks.Retrieval()),
        "tfn.Retrieval": lambda: PlainModel(*shape, tfn.Retrieval()),
        "tfn.TwoTower": lambda: two_tower(*shape, tfn.Retrieval()),
        "tfn.TwoTower, StreamingFrequency": lambda: two_tower(
            *shape, tfn.Retrieval(frequency=tfn.StreamingFrequency(sizes.buckets, num_hashes=4))
        ),
    }
    base, drop_in, ours, corrected = models
    return Case(
        title=f"batches of {batch:,}, {sizes.users:,} users, {sizes.items:,} items",
        contestants=[Contestant(n, _stepping(m, sizes, batch)) for n, m in models.items()],
        claims=[
            Claim(drop_in, base, asked=1.15),
            Claim(ours, base, asked=1.15),
            Claim(corrected, base),
        ],
        turns=min(sizes.turns, 60 if batch <= 1024 else 21),
    )


def frequency(sizes: Sizes) -> list[Case]:
    """What estimating frequencies adds to a step: one update and one reading of a batch of ids.

    The ids follow Zipf's law. The step is in-batch `TwoTower` without a frequency.
    """
    batch, step = sizes.frequency_batch, "training step"
    methods = ("decayed_count", "interval")
    return [
        Case(
            title=f"{batch:,} ids, 4 hashes of {sizes.buckets:,} buckets",
            contestants=[
                Contestant(step, _in_batch(sizes, batch)),
                *(
                    Contestant(m, lambda m=m: _counting(sizes, m), repeats=NUM_BATCHES)
                    for m in methods
                ),
            ],
            claims=[Claim(method, step, "time", asked=0.05) for method in methods],
            turns=min(sizes.turns, 15),
        )
    ]


def _counting(sizes: Sizes, method: str) -> Call:
    table = tfn.StreamingFrequency(sizes.buckets, num_hashes=4, method=method)
    log = drawn_log(NUM_BATCHES * sizes.frequency_batch, sizes.users, sizes.items)
    batches = tf.split(tf.constant(log.item_ids), NUM_BATCHES)

    @tf.function
    def count(ids: tf.Tensor) -> tf.Tensor:
        table.update(ids)
        return table.log_probability(ids)

    return lambda: [count(ids) for ids in batches][-1].numpy()


def pool(sizes: Sizes) -> list[Case]:
    """What more columns cost, all corrected: uniform items, which are encoded, or a full bank."""
    items, columns = tfn.ItemCatalogue(np.arange(sizes.items)), sizes.pool_columns
    tasks: dict[str, Callable[[], tfn.Retrieval]] = {
        "in_batch": lambda: tfn.recipes.in_batch(items),
        "mixed_negative_sampling": lambda: tfn.recipes.mixed_negative_sampling(
            items, num_uniform=columns
        ),
        "cross_batch_negative_sampling": lambda: tfn.recipes.cross_batch_negative_sampling(
            items, capacity=columns
        ),
    }
    base, *others = tasks
    title = f"batches of {sizes.pool_batch:,}, {columns:,} more columns"
    return [
        Case(
            title=title,
            contestants=_steps_with(tasks, sizes, sizes.pool_batch),
            claims=[Claim(name, base, "time") for name in others],
            turns=min(sizes.turns, 21),
            warm_up=2 + columns // sizes.pool_batch,
        )
    ]


def _steps_with(
    tasks: Mapping[str, Callable[[], tfn.Retrieval]],
    sizes: Sizes,
    batch: int,
    log: tfn.Interactions | None = None,
) -> list[Contestant]:
    def building(task: Callable[[], tfn.Retrieval]) -> Callable[[], tf.keras.Model]:
        return lambda: two_tower(sizes.users, sizes.items, task())

    return [
        Contestant(n, _stepping(building(task), sizes, batch, log)) for n, task in tasks.items()
    ]


def masks(sizes: Sizes) -> list[Case]:
    """What masking the columns of an in-batch step costs: copies of the positive, whole histories.

    The batches are of the history. The masks alone are timed in
    [known_positives](../known_positives/README.md), whose synthetic log this is.
    """
    items = tfn.ItemCatalogue(np.arange(sizes.items))
    log = synthetic_log(sizes.mask_events, sizes.users, sizes.items, SEED)
    kinds: dict[str, Callable[[], list[Mask]]] = {
        "no mask": list,
        "AccidentalHits": lambda: [tfn.AccidentalHits()],
        "KnownPositives": lambda: [tfn.KnownPositives(log, items)],
    }
    tasks = {n: lambda make=make: tfn.Retrieval(masks=make()) for n, make in kinds.items()}
    base, *others = tasks
    shuffled = log.take(np.random.default_rng(SEED).permutation(len(log)))
    return [
        Case(
            title=f"batches of {sizes.mask_batch:,}, a history of {len(log):,} events",
            contestants=_steps_with(tasks, sizes, sizes.mask_batch, shuffled),
            claims=[Claim(name, base, "time") for name in others],
            turns=min(sizes.turns, 21),
        )
    ]


def batches(sizes: Sizes) -> list[Case]:
    """What shuffled batches of a log cost beside the step that they are for: one after the other,
    not hidden behind a step, as `prefetch` does it.
    """
    step, stream, pulled = "training step", "Interactions.stream", 50
    log = drawn_log(sizes.events, sizes.users, sizes.items)

    def streaming() -> Call:
        iterator = iter(log.stream(sizes.batch, item_key="item_id", seed=SEED))

        @tf.function
        def pull() -> tf.Tensor:
            total = tf.zeros([], tf.int64)
            for _ in tf.range(pulled):
                total += next(iterator)["item_id"][0]
            return total

        return lambda: pull().numpy()

    return [
        Case(
            title=f"{sizes.batch:,} rows of {sizes.events:,} events",
            contestants=[
                Contestant(step, _in_batch(sizes, sizes.batch)),
                Contestant(stream, streaming, repeats=pulled),
            ],
            claims=[Claim(stream, step, "time")],
            turns=min(sizes.turns, 21),
        )
    ]
