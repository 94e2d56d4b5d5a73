"""A weight that moves until its sampler has its share of the push: fixed points in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from small_batch import CATALOGUE, CORPUS, COUNTS, ITEMS, NUM_ROWS, QUERIES, Q, exact_frequency, run

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.step.samplers import Balanced, Explicit, InBatch, Popularity, Uniform, Weighted
from tfrs_negatives.step.task import Retrieval

NAMED = np.array([[100, 104], [102, -1], [111, 109], [-1, -1], [105, 106]])
IN_BATCH = QUERIES @ ITEMS[:NUM_ROWS].T


def task_of(*negatives, **options):
    return Retrieval(negatives=list(negatives), **{"correct": None, **options})


def train(task, steps, named=NAMED):
    def step():
        return run(task, features={"named": tf.constant(named)}, training=True)

    task.build([None, 4])
    # A graph takes as long as ten steps.
    step = tf.function(step) if steps > 10 else step
    for _ in range(steps):
        step()


def masses(named=NAMED):
    """exp(score) of the named items and of the other rows' items, summed, of each row."""
    valid = named >= 0
    scores = np.einsum("qd,qcd->qc", QUERIES, CORPUS[np.where(valid, named - 100, 0)])
    own = (np.exp(scores) * valid).sum(axis=1)
    return own, (np.exp(IN_BATCH) * (1 - np.eye(NUM_ROWS))).sum(axis=1)


def part_at(log_weight, own, others):
    return 1 / (1 + np.exp(-log_weight) * others / own)


def solve(mean_part, share):
    """The log weight at which an increasing function is the share, by halving."""
    low, high = -20.0, 20.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_part(middle) < share else (low, middle)
    return low


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_one_row_moves_to_the_closed_form(share):
    one = np.full_like(NAMED, -1)
    one[0] = NAMED[0]  # the other rows have nothing of this sampler, and do not count
    balanced = Balanced(Explicit("named", CATALOGUE), share, rate=0.3)
    task = task_of(InBatch(), balanced)
    own, others = (mass[0] for mass in masses(one))
    wanted = np.log(share / (1 - share) * others / own)
    train(task, 1, one)
    start = np.log(own / others)
    first = 0.3 * (np.log(share / (1 - share)) - start)
    assert float(balanced.log_weight) == pytest.approx(first, rel=1e-4, abs=1e-5)
    train(task, 4, one)
    # The distance shrinks by the factor 0.7 in each step.
    assert float(balanced.log_weight) == pytest.approx(wanted * (1 - 0.7**5), rel=1e-4, abs=1e-5)


def test_several_rows_have_the_share_on_average():
    balanced = Balanced(Explicit("named", CATALOGUE), 0.6, rate=0.5)
    train(task_of(InBatch(), balanced), 40)
    own, others = (mass[[0, 1, 2, 4]] for mass in masses())  # row 3 has no named item
    wanted = solve(lambda x: part_at(x, own, others).mean(), 0.6)
    assert float(balanced.log_weight) == pytest.approx(wanted, abs=1e-4)


def test_drawn_candidates_are_weighed_by_the_mixture():
    """Shared candidates: the weight is in the counts of all of them as well."""
    source = Popularity(CATALOGUE, 6, counts=COUNTS)
    balanced = Balanced(source, 0.5, rate=1.0)
    task = task_of(InBatch(), balanced, frequency=exact_frequency(), correct="negatives")
    drawn, plain = [], source.sample
    source.sample = lambda batch: drawn.append(plain(batch)) or drawn[-1]
    ids = np.array([103, 101, 103, 107, 110])
    for _ in range(3):
        before = float(balanced.log_weight) if balanced.built else 0.0
        train(task, 1)
        rows = CATALOGUE.rows_of_keys(drawn[-1].ids).numpy()
        probability = np.exp(source.log_probability(tf.range(12)).numpy())
        counts = NUM_ROWS * Q / Q.sum() + np.exp(before) * 6 * probability
        mine = np.exp(QUERIES @ CORPUS[rows].T + before) / counts[rows]
        others = np.exp(IN_BATCH) * (1 - np.eye(NUM_ROWS)) / counts[ids - 100]
        part = (mine.sum(axis=1) / (mine.sum(axis=1) + others.sum(axis=1))).mean()
        assert float(balanced.log_weight) == pytest.approx(
            before - np.log(part / (1 - part)), rel=1e-4, abs=1e-4
        )


def test_a_rate_of_zero_never_moves():
    balanced = Balanced(Uniform(CATALOGUE, 6), 0.25, rate=0.0)
    other = Balanced(Explicit("named", CATALOGUE), 0.25, rate=0.5)
    task = task_of(InBatch(), other, balanced)
    train(task, 30)
    assert float(balanced.log_weight) == 0.0
    assert float(other.log_weight) != 0.0


def test_nothing_to_compare_moves_nothing():
    nobody = np.full_like(NAMED, -1)
    empty = Balanced(Explicit("named", CATALOGUE), rate=0.5)
    train(task_of(InBatch(), empty), 2, nobody)
    alone = Balanced(InBatch(), rate=0.5)
    train(task_of(alone), 2)
    assert float(empty.log_weight) == float(alone.log_weight) == 0.0


def test_it_is_found_inside_of_another_wrapper_and_at_any_place():
    losses = []
    for place in (0, 1):
        balanced = Balanced(Explicit("named", CATALOGUE), 0.3, rate=0.4)
        parts = [InBatch()]
        parts.insert(place, Weighted(balanced, 1.0))
        train(task_of(*parts), 5)
        losses.append(float(balanced.log_weight))
    plain = Balanced(Explicit("named", CATALOGUE), 0.3, rate=0.4)
    train(task_of(InBatch(), plain), 5)
    assert losses == pytest.approx([float(plain.log_weight)] * 2, rel=1e-5)
    # A constant weight outside is one more factor of the fixed point.
    twice = Balanced(Explicit("named", CATALOGUE), 0.3, rate=0.4)
    train(task_of(InBatch(), Weighted(twice, 2.0)), 60)
    train(task_of(InBatch(), plain), 60)
    difference = float(plain.log_weight) - float(twice.log_weight)
    assert difference == pytest.approx(np.log(2.0), abs=1e-4)


def test_the_weight_stays_within_its_limit():
    balanced = Balanced(Explicit("named", CATALOGUE), 0.999, rate=1.0, limit=3.0)
    train(task_of(InBatch(), balanced), 5)
    assert float(balanced.log_weight) == pytest.approx(np.log(3.0))


def test_scores_that_are_not_finite_leave_a_finite_weight():
    balanced = Balanced(Explicit("named", CATALOGUE), rate=0.5)
    task = task_of(InBatch(), balanced)
    queries = QUERIES.copy()
    queries[1] = np.nan
    run(task, queries=queries, features={"named": tf.constant(NAMED)}, training=True)
    assert np.isfinite(float(balanced.log_weight))
    assert float(balanced.log_weight) != 0.0


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"share": 0.0}, "share"),
        ({"share": 1.0}, "share"),
        ({"rate": -0.1}, "rate"),
        ({"rate": 1.5}, "rate"),
        ({"limit": 0.5}, "limit"),
        ({"limit": float("nan")}, "limit"),
    ],
)
def test_bad_arguments(options, argument):
    with pytest.raises(InputError, match=f"`{argument}`"):
        Balanced(InBatch(), **options)
