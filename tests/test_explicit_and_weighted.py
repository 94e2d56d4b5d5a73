"""Columns of single rows, weights of sources, and the loss that keeps easy and hard apart."""

from __future__ import annotations

import numpy as np
import pytest
import reference_sources as reference
import tensorflow as tf
from reference import Column
from small_batch import (
    BATCH_IDS,
    CATALOGUE,
    CORPUS,
    DRAWN,
    NUM_ITEMS,
    NUM_ROWS,
    QUERIES,
    Drawn,
    Q,
    encode_items,
    exact_frequency,
    pool_of,
    run,
)

from tfrs_negatives.propose.negatives import Explicit, InBatch, Uniform, Weighted
from tfrs_negatives.train.task import Retrieval

# Nothing, one's own positive (row 0 has 103), an item of the batch, and one twice.
REJECTED = [[100, 103], [102], [], [107, 105, 105], [111, 100, 104]]
PADDED = np.array([[*row, *[-1] * (3 - len(row))] for row in REJECTED])
FEATURES = {"rejected": tf.constant(PADDED)}


def explicit(items=CATALOGUE):
    return Explicit("rejected", items)


def task_of(*negatives, **options):
    return Retrieval(negatives=list(negatives), frequency=exact_frequency(), **options)


def loss_of(*negatives, features=FEATURES, call=None, **options):
    return float(run(task_of(*negatives, **options), features=features, **(call or {})))


def own_terms(weight=1.0, corpus=CORPUS):
    """The columns of each row: one item each, of no expected count."""
    return [
        [reference.Term(Column(item, corpus[item - 100]), 1.0, weight) for item in row]
        for row in REJECTED
    ]


def count_in_batch(item):
    return NUM_ROWS * Q[item - 100]


def batch_terms(weight=1.0, count=count_in_batch):
    return [reference.Term(c, count(c.item), weight) for c in pool_of()]


def expected_loss(terms, own, *, policy, counts=None):
    counts = counts or [count_in_batch(item) for item in BATCH_IDS[:NUM_ROWS]]
    return reference.step_loss(
        QUERIES, pool_of(), terms, own_terms=own, counts=counts, policy=policy
    )


policies = pytest.mark.parametrize("policy", ["both", "negatives", None])
close = {"rel": 1e-5}


# ------------------------------------------------------------------ weights


@policies
@pytest.mark.parametrize("weight", [0.01, 3.0])
def test_a_weight_of_the_rows_own_columns_holds_under_any_correction(policy, weight):
    loss = loss_of(InBatch(), Weighted(explicit(), weight), correct=policy)
    expected = expected_loss(batch_terms(), own_terms(weight), policy=policy)
    assert loss == pytest.approx(expected, **close)


@policies
def test_the_weight_of_a_weighted_source_is_the_product(policy):
    for source in (lambda: Drawn(DRAWN), explicit):
        twice = loss_of(InBatch(), Weighted(Weighted(source(), 0.5), 0.3), correct=policy)
        once = loss_of(InBatch(), Weighted(source(), 0.15), correct=policy)
        assert twice == pytest.approx(once, **close)


@policies
def test_a_source_that_is_off_is_not_there(policy):
    for others in ([explicit], [lambda: Drawn(DRAWN)], [lambda: Drawn(DRAWN), explicit]):
        off = [Weighted(InBatch(), 0.0), *(make() for make in others)]
        without = loss_of(*(make() for make in others), correct=policy)
        assert without > 0.1
        assert loss_of(*off, correct=policy) == pytest.approx(without, **close)


@policies
def test_a_positive_that_no_source_proposes_still_competes(policy):
    ids = np.array([999, *BATCH_IDS[1:NUM_ROWS]])
    loss = loss_of(Uniform(CATALOGUE, 4), correct=policy, call={"candidate_ids": ids})
    drawn = {}

    def record(features):
        drawn["ids"] = features["item_id"].numpy()
        return encode_items(features)

    source = Uniform(CATALOGUE, 4)
    call = {"candidate_ids": ids, "encode_items": record}
    assert loss_of(source, correct=policy, call=call) == loss
    terms = [reference.Term(Column(i, CORPUS[i - 100]), 4 / NUM_ITEMS) for i in drawn["ids"]]
    # Item 999 has no count: its positive is left as it is.
    counts = [1.0, *[4 / NUM_ITEMS] * (NUM_ROWS - 1)]
    assert loss == pytest.approx(expected_loss(terms, None, policy=policy, counts=counts), **close)
