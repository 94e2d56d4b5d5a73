"""Losses about the best k of a row: thresholds, their gradient, and those that are state."""

from __future__ import annotations

import json

import numpy as np
import pytest
import reference
import reference_losses as slow
import tensorflow as tf
from scipy.special import expit

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.step.losses import SampledSoftmax, SLAtK, SoftTopK
from tfrs_negatives.step.losses.sl_at_k import kth_best
from tfrs_negatives.step.losses.top_k import soft_threshold
from tfrs_negatives.step.masks.keep import AccidentalHits
from tfrs_negatives.step.miners import Hardest
from tfrs_negatives.step.records import MorePositives, Scored
from tfrs_negatives.step.samplers import Explicit, Uniform
from tfrs_negatives.step.task import Retrieval

B, C = 5, 12
RNG = np.random.default_rng(1)
POSITIVE = RNG.normal(size=B)
NEGATIVES = RNG.normal(size=(B, C)) * 2
ALL = np.ones((B, C), bool)


def scored_of(positive=POSITIVE, negatives=NEGATIVES, keep=ALL, **more):
    return Scored(
        *(tf.constant(np.float32(x)) for x in (positive, negatives)), tf.constant(keep), **more
    )


def counted_as(scored, log_count):
    """The same with expected counts."""
    return scored._replace(
        logit=scored.logit - np.float32(log_count),
        score=scored.logit,
        positive_score=scored.positive_logit,
    )


def gradients(loss, scored):
    values = [scored.positive_logit, scored.logit]
    with tf.GradientTape() as tape:
        tape.watch(values)
        losses = loss(scored)
    return losses, tape.gradient(losses, values)


# ------------------------------------------------------------------ soft top-k


@pytest.mark.parametrize("k", [1, 3, 11])
@pytest.mark.parametrize("slope", [0.5, 4.0])
@pytest.mark.parametrize("count", [0.25, 1.0])
def test_the_sigmoids_sum_to_k(k, slope, count):
    places = np.float32(slope * (NEGATIVES - POSITIVE[:, None]))
    weights = np.full((B, C), 1 / count, np.float32)
    threshold, defined = soft_threshold(tf.constant(places), tf.constant(weights), k)
    assert defined.numpy().all()
    above = np.float64(threshold)[:, None]
    total = (weights * expit(places - above)).sum(axis=1) + expit(-above[:, 0])
    np.testing.assert_allclose(total, k, atol=1e-5)


def test_a_million_candidates_and_one_place():
    places = tf.constant(RNG.normal(size=(1, 10**6)).astype(np.float32))
    threshold, _ = soft_threshold(places, tf.ones_like(places), 1)
    total = expit(np.float64(places) - float(threshold[0])).sum() + expit(-float(threshold[0]))
    assert total == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("slope", [1.0, 6.0, 25.0])
def test_the_gradient_is_that_of_the_equation(slope):
    positive, negatives, k = POSITIVE[:3], NEGATIVES[:3, :7], 3
    _, received = gradients(SoftTopK(k, slope), scored_of(positive, negatives, ALL[:3, :7]))

    def total(positive, negatives):
        rows = zip(positive, negatives, strict=True)
        return sum(slow.soft_top_k(p, list(n), k, slope) for p, n in rows)

    by_positive = reference.numerical_gradient(lambda x: total(x, negatives), positive)
    by_negative = reference.numerical_gradient(lambda x: total(positive, x), negatives)
    np.testing.assert_allclose(received[0], by_positive, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(received[1], by_negative, rtol=2e-3, atol=1e-4)


def test_a_positive_far_below_is_pulled_where_every_slope_rounds_to_zero():
    # Two far above and one place: between them and the positive no sigmoid has a slope in float32.
    scored = scored_of([0.0], [[1000.0, -1000.0]], [[True, True]])
    losses, (by_positive, by_negative) = gradients(SoftTopK(1, 1.0), scored)
    assert float(losses[0]) > 100
    assert float(by_positive[0]) < -0.4
    assert float(by_negative[0, 0]) > 0.4
    np.testing.assert_allclose(float(by_positive[0]), -by_negative.numpy().sum(), rtol=1e-5)


def test_a_steep_slope_counts_places():
    places = np.float32(1e3 * (NEGATIVES - POSITIVE[:, None]))
    for k in (1, 4, 8):
        threshold, _ = soft_threshold(tf.constant(places), tf.ones([B, C]), k)
        at = np.concatenate([np.zeros([B, 1], np.float32), places], axis=1)
        best = np.argsort(np.argsort(-at, axis=1), axis=1) < k
        inside = expit(at - threshold.numpy()[:, None])
        np.testing.assert_allclose(inside, best, atol=1e-3)
        losses = SoftTopK(k, 1e3)(scored_of()).numpy()
        assert (losses[best[:, 0]] < 1e-3).all()
        assert (losses[~best[:, 0]] > 5).all()


def test_the_order_of_candidates_does_not_matter():
    order = RNG.permutation(C)
    shuffled = scored_of(negatives=NEGATIVES[:, order])
    loss = SoftTopK(3, 2.0)
    losses, (_, by_negative) = gradients(loss, shuffled)
    expected, (_, wanted) = gradients(loss, scored_of())
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(by_negative, wanted.numpy()[:, order], rtol=1e-4, atol=1e-7)


def test_a_row_of_no_more_than_k_has_no_loss():
    # With the positive: 4, 3, 2 and 1 to choose 3 from.
    keep = np.arange(4)[:, None] + np.arange(3) < 3
    rows = scored_of(POSITIVE[:4], NEGATIVES[:4, :3], keep)
    losses, (by_positive, by_negative) = gradients(SoftTopK(3), rows)
    assert losses[0] > 0
    for nothing in (losses[1:], by_positive[1:], by_negative[1:]):
        np.testing.assert_array_equal(nothing, np.zeros_like(nothing))
    assert np.abs(by_negative[0]).min() > 0


def test_copies_with_counts_are_the_items_themselves():
    # Each item twice, as two candidates of an expected count of two.
    loss = SoftTopK(3)
    twice = scored_of(negatives=np.repeat(NEGATIVES, 2, axis=1), keep=np.repeat(ALL, 2, axis=1))
    received = loss(counted_as(twice, np.log(2.0)))
    np.testing.assert_allclose(received, loss(scored_of()), rtol=1e-5)
    # And a correction that all have is no other k.
    uniform = loss(counted_as(scored_of(), np.log(0.01)))
    weights = [100.0] * C
    rows = zip(POSITIVE, NEGATIVES, strict=True)
    expected = [slow.soft_top_k(p, list(n), 3, 2.0, weights) for p, n in rows]
    np.testing.assert_allclose(uniform, expected, rtol=1e-4)


# ------------------------------------------------------------------ the k-th best score


@pytest.mark.parametrize("k", [1, 4, 13, 50])
def test_the_kth_best_of_a_row(k):
    found = kth_best(scored_of(), k).numpy()
    scores = np.concatenate([POSITIVE[:, None], NEGATIVES], axis=1)
    if k > C:  # the last one
        np.testing.assert_allclose(found, scores.min(axis=1), rtol=1e-5)
    else:
        np.testing.assert_array_equal((scores >= found[:, None]).sum(axis=1), np.full(B, k))


@pytest.mark.parametrize("k", [2.5, 7.1, 40.3])
def test_the_kth_best_with_counts_and_more_positives(k):
    keep, log_count = RNG.random((B, C)) < 0.7, RNG.normal(size=(B, C))
    marks = ~keep & (np.arange(C) % 2 == 0)
    more = RNG.normal(size=(B, C)) + 1
    others = MorePositives(*(tf.constant(x) for x in (marks, np.float32(more), np.float32(more))))
    scored = counted_as(scored_of(keep=keep), log_count)._replace(more_positives=others)
    expected = [
        slow.kth_best(
            [POSITIVE[i], *NEGATIVES[i][keep[i]], *more[i][marks[i]]],
            [1.0, *np.exp(-log_count[i][keep[i]]), *np.ones(marks[i].sum())],
            k,
        )
        for i in range(B)
    ]
    np.testing.assert_allclose(kth_best(scored, k), expected, rtol=1e-5, atol=1e-6)


def test_after_a_miner_the_other_positives_still_count():
    # The miner leaves two candidates; the other positives stand in the places of all of them.
    marks, more = np.arange(C) % 5 == 0, RNG.normal(size=(B, C)) * 2
    others = [np.broadcast_to(marks, (B, C)), np.float32(more), np.float32(more)]
    scored = scored_of(keep=np.broadcast_to(~marks, (B, C)))
    scored = scored._replace(more_positives=MorePositives(*map(tf.constant, others)))
    left = Hardest(2).mine(scored, None)
    scores = np.concatenate([POSITIVE[:, None], left.logit, more[:, marks]], axis=1)
    found = kth_best(left, 4).numpy()
    np.testing.assert_array_equal((scores >= found[:, None]).sum(axis=1), np.full(B, 4))


# ------------------------------------------------------------------ thresholds as state


N, D, USERS = 400, 6, 4
CATALOGUE = ItemCatalogue(np.arange(N))
LOG = Interactions({"user": np.arange(USERS)}, np.arange(USERS), query_key="user")
ITEMS = RNG.normal(size=(N, D)).astype(np.float32)
QUERIES = RNG.normal(size=(USERS + 2, D)).astype(np.float32)
# User 2 twice; 4 and 5 are not in the log.
BATCH_USERS = np.array([2, 0, 2, 5, 4])
CHOSEN = np.array([7, 30, 31, 2, 250])


def run(task, users=BATCH_USERS, chosen=CHOSEN, **options):
    return task(
        tf.gather(QUERIES, users),
        tf.gather(ITEMS, chosen),
        candidate_ids=tf.constant(chosen),
        features={"user": tf.constant(users)},
        encode_items=lambda features: tf.gather(ITEMS, features["item_id"]),
        **{"training": True, **options},
    )


def test_each_step_moves_the_thresholds_of_its_queries():
    loss = SLAtK(LOG, k=2, width=3.0, rate=0.25)
    task = Retrieval(loss, correct=None, reduction="sum")
    expected = np.zeros(USERS + 1)
    scores = QUERIES[BATCH_USERS] @ ITEMS[CHOSEN].T
    softmax = [np.log(np.exp(row - row[i]).sum()) for i, row in enumerate(scores)]
    rows = [2, 0, 2, USERS, USERS]
    for _ in range(4):
        weights = expit((np.diag(scores) - expected[rows]) / 3.0)
        assert float(run(task)) == pytest.approx(np.sum(weights * softmax), rel=1e-4)
        second = np.sort(scores, axis=1)[:, -2]
        best = np.sort(scores, axis=1)[:, -1]
        learned = loss.thresholds.numpy()
        for query in (0, 2, USERS):
            mine = [i for i, row in enumerate(rows) if row == query]
            # Any number up to the second best and above the third has two at or above it.
            third = np.sort(scores, axis=1)[mine, -3].mean()
            step = (learned[query] - 0.75 * expected[query]) / 0.25
            assert third - 1e-4 < step <= second[mine].mean() + 1e-4 < best[mine].mean()
        assert learned[1] == learned[3] == 0
        expected = learned


def test_a_row_that_is_not_finite_leaves_no_trace():
    loss = SLAtK(LOG, k=2, width=3.0, rate=1.0)
    task = Retrieval(loss, correct=None)
    features = {"user": tf.constant([0, 1, 2])}
    queries = np.eye(3, D, dtype=np.float32)
    queries[:2, 0] = np.nan, np.inf
    value = task(queries, ITEMS[:3], features=features, training=True)
    assert np.isnan(float(value))
    learned = loss.thresholds.numpy()
    assert np.isfinite(learned).all()
    assert learned[2] != 0
    np.testing.assert_array_equal(learned[[0, 1]], [0, 0])


def test_evaluation_moves_no_threshold():
    loss = SLAtK(LOG, k=2, width=3.0)
    run(Retrieval(loss), training=False)
    np.testing.assert_array_equal(loss.thresholds, np.zeros(USERS + 1))


def test_the_weight_has_no_gradient_and_a_wide_one_is_half():
    keep = RNG.random((B, C)) < 0.8
    features = {"user": tf.constant([0, 1, 2, 3, 9])}

    class Batch:
        pass

    batch = Batch()
    batch.features = features
    loss = SLAtK(LOG, k=3, width=0.7)
    loss.thresholds.assign([0.5, -0.5, 1.0, 0.0, 0.2])
    scored = scored_of(keep=keep)
    losses, received = gradients(lambda s: loss(s, batch), scored)
    whole, wanted = gradients(SampledSoftmax(), scored)
    weight = expit((POSITIVE - [0.5, -0.5, 1.0, 0.0, 0.2]) / 0.7)
    np.testing.assert_allclose(losses, weight * whole, rtol=1e-5)
    np.testing.assert_allclose(received[0], weight * wanted[0], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(received[1], weight[:, None] * wanted[1], rtol=1e-4, atol=1e-7)
    wide = SLAtK(LOG, k=3, width=1e7)(scored, batch)
    np.testing.assert_allclose(wide, 0.5 * whole, rtol=1e-5)


@pytest.mark.parametrize(("num_uniform", "best", "worst"), [(2000, 3, 5), (40, 5, 25)])
def test_the_threshold_is_that_of_the_catalogue(num_uniform, best, worst):
    # The fourth best of 400. With 40 draws each stands for ten items: the best of them is too low.
    loss = SLAtK(LOG, k=4, width=1.0, rate=0.1)
    task = Retrieval(loss, negatives=[Uniform(CATALOGUE, num_uniform)], masks=[AccidentalHits()])
    step = tf.function(lambda: run(task))
    for _ in range(60):
        step()
    queries = [0, 2]
    scores = -np.sort(-QUERIES[queries] @ ITEMS.T)
    learned = loss.thresholds.numpy()[queries]
    assert ((scores[:, worst - 1] < learned) & (learned < scores[:, best - 1])).all()


def test_candidates_of_single_rows_beside_shared_ones():
    loss = SLAtK(LOG, k=2, width=1.0)
    task = Retrieval(
        loss, negatives=[Uniform(CATALOGUE, 6), Explicit("rejected", CATALOGUE)], correct="both"
    )
    rejected = tf.constant([[1, 2], [3, -1], [4, 5], [6, 7], [8, 9]])
    losses = task(
        tf.gather(QUERIES, BATCH_USERS),
        tf.gather(ITEMS, CHOSEN),
        candidate_ids=tf.constant(CHOSEN),
        features={"user": tf.constant(BATCH_USERS), "rejected": rejected},
        encode_items=lambda features: tf.gather(ITEMS, features["item_id"]),
        training=True,
    )
    assert np.isfinite(float(losses))
    assert (loss.thresholds.numpy()[[0, 2, USERS]] != 0).all()


def test_queries_may_be_strings_and_come_back_with_the_weights():
    names = np.array(["b", "a", "c", "d"])
    log = Interactions({"user": names}, np.arange(4), query_key="user")
    loss = SLAtK(log, k=1, width=3.0, rate=1.0)
    task, call = Retrieval(loss), {"features": {"user": tf.constant(["d", "zz", "b"])}}
    fresh = float(task(tf.eye(3), 2 * tf.eye(3), **call, training=False))
    task(tf.eye(3), 2 * tf.eye(3), **call, training=True)
    # One item is at or above 1, of 2 and two times 0. "a" and "c" have learned nothing.
    assert sorted(loss.thresholds.numpy()) == [0, 0, 1, 1, 1]
    again = tf.keras.utils.deserialize_keras_object(
        json.loads(json.dumps(tf.keras.utils.serialize_keras_object(task)))
    )
    for mine, theirs in zip(again.variables, task.variables, strict=True):
        mine.assign(theirs)
    learned = float(again(tf.eye(3), 2 * tf.eye(3), **call, training=False))
    assert learned == float(task(tf.eye(3), 2 * tf.eye(3), **call, training=False)) != fresh
    other = {"features": {"user": tf.constant(["a", "c", "a"])}}
    assert float(again(tf.eye(3), 2 * tf.eye(3), **other, training=False)) == fresh
    with pytest.raises(InputError, match="strings, as in the history"):
        task(tf.eye(3), tf.eye(3), features={"user": tf.constant([1, 2, 3])}, training=True)
    with pytest.raises(InputError, match="the query of each row"):
        task(tf.eye(3), tf.eye(3), features={}, training=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SLAtK(LOG, 0, width=1), "`k`: expected at least 1. Received: 0"),
        (lambda: SLAtK(LOG, 1, width=0), "`width`: expected a positive number. Received: 0"),
        (
            lambda: SLAtK(LOG, 1, width=1, rate=2),
            "`rate`: expected a number in (0, 1]. Received: 2",
        ),
        (
            lambda: SLAtK(Interactions({"user": np.arange(2)}, np.arange(2)), 1, width=1),
            "`log.query_key`: expected the query feature that says whose event it is."
            " Received: None",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value) == message
