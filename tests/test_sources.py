"""The sources: what they draw, how often they say they do, and that the task believes them."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import tensorflow as tf
from small_batch import (
    CATALOGUE,
    DRAWN,
    ITEMS,
    NUM_ITEMS,
    NUM_ROWS,
    QUERIES,
    Q,
    count_of,
    encode_items,
    exact_frequency,
    pool_of,
    run,
)

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.step.frequency import ExactFrequency
from tfrs_negatives.step.samplers import InBatch, IndexStream, Uniform
from tfrs_negatives.step.task import Retrieval


def mixture(source, **options):
    options = {"frequency": exact_frequency(), "reduction": "mean", **options}
    return Retrieval(negatives=[InBatch(), source], **options)


def test_uniform_draws_what_the_seed_says_and_other_items_at_each_step():
    source, seen = Uniform(CATALOGUE, 6), []

    def record(features):
        seen.append((features["item_id"].numpy() - 100).tolist())
        return encode_items(features)

    for seed in (5, 5, 6):
        task = mixture(source, seed=seed)
        for _ in range(2):
            drawn_loss = run(task, encode_items=record, training=True)
            count = count_of(NUM_ROWS, 6)
            expected = reference.retrieval_loss(
                QUERIES, pool_of(drawn=seen[-1]), policy="both", count=count
            )
            assert float(drawn_loss) == pytest.approx(expected, rel=1e-5)
    assert seen[:2] == seen[2:4]
    assert len({tuple(draw) for draw in seen}) == 4


def test_two_sources_of_one_kind_draw_differently():
    seen = []

    def record(features):
        seen.append(features["item_id"].numpy().tolist())
        return encode_items(features)

    run(Retrieval(negatives=[Uniform(CATALOGUE, 8), Uniform(CATALOGUE, 8)]), encode_items=record)
    assert seen[0] != seen[1]


def test_uniform_draws_every_item_equally_often():
    counts = np.zeros(NUM_ITEMS)

    def record(features):
        np.add.at(counts, features["item_id"].numpy() - 100, 1)
        return encode_items(features)

    task = Retrieval(negatives=[Uniform(CATALOGUE, 600)], correct=None)
    for _ in range(10):
        run(task, encode_items=record, training=True)
    expected = 6000 / NUM_ITEMS
    # The 99.99th percentile of chi squared with 11 degrees of freedom is 37.4.
    assert ((counts - expected) ** 2 / expected).sum() < 37.4


def test_an_item_outside_the_catalogue_is_never_a_uniform_draw():
    ids, drawn = np.array([103, 999, 103, 107, 110]), []
    frequency = ExactFrequency([999, *CATALOGUE.ids], [5e5, *(Q * 5e5)])

    def record(features):
        drawn.extend(features["item_id"].numpy() - 100)
        return encode_items(features)

    def count(item):
        share = 0.5 if item == 999 else Q[item - 100] / 2
        uniform = reference.uniform_count(NUM_ITEMS, 6, inside=item != 999)
        return [reference.in_batch_count(share, NUM_ROWS), uniform]

    task = mixture(Uniform(CATALOGUE, 6), frequency=frequency)
    loss = run(task, candidate_ids=ids, encode_items=record)
    pool = (
        reference.batch_columns(ids, ITEMS[:NUM_ROWS], NUM_ROWS) + pool_of(drawn=drawn)[NUM_ROWS:]
    )
    expected = reference.retrieval_loss(QUERIES, pool, policy="both", count=count)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_index_stream_proposes_the_items_of_the_batch_column():
    source = IndexStream(CATALOGUE, 6)
    task = mixture(source)
    stream = CATALOGUE.gather(tf.constant(DRAWN))
    loss = run(task, features={"index_items": stream})
    count = count_of(NUM_ROWS, 6)
    expected = reference.retrieval_loss(QUERIES, pool_of(drawn=DRAWN), policy="both", count=count)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError, match="index_items"):
        run(task)


def test_index_stream_goes_through_the_catalogue_in_random_order():
    users = tf.data.Dataset.from_tensor_slices({"user_id": np.arange(8)}).batch(2)
    batches = list(IndexStream(CATALOGUE, 3).attach(users, seed=1))
    assert [b["user_id"].numpy().tolist() for b in batches] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    streamed = np.concatenate([b["index_items"]["item_id"] for b in batches])
    assert sorted(streamed) == CATALOGUE.ids.tolist()
    assert streamed.tolist() != CATALOGUE.ids.tolist()
