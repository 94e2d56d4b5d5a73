"""The losses on pairs and on several positives: values against slow versions, gradients too."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import reference_hard_negatives as slow
import tensorflow as tf

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.step.losses import (
    BPR,
    DecoupledSoftmax,
    PointwiseBCE,
    SampledSoftmax,
    TripletHinge,
    TripletLogistic,
)
from tfrs_negatives.step.records import MorePositives, Scored
from tfrs_negatives.step.task import Retrieval

B, C = 6, 8
RNG = np.random.default_rng(0)
POSITIVE = RNG.normal(size=B)
NEGATIVES = RNG.normal(size=(B, C))
KEEP = RNG.random((B, C)) < 0.6
KEEP[1] = False
MARKS = RNG.random((B, C)) < 0.3
MORE = RNG.normal(size=(B, C))

PAIRS = {
    "bpr": (BPR(), slow.bpr, ()),
    "logistic": (TripletLogistic(2.5), slow.triplet_logistic, (2.5,)),
    "hinge": (TripletHinge(0.4), slow.triplet_hinge, (0.4,)),
    "hinge active": (TripletHinge(0.4, focus=math.inf), slow.triplet_hinge, (0.4, math.inf)),
    "hinge focus": (TripletHinge(0.4, focus=0.7), slow.triplet_hinge, (0.4, 0.7)),
    "bce": (PointwiseBCE(3), slow.pointwise_bce, (3,)),
}


def logits_of(positive, negatives, keep=KEEP, **more):
    return Scored(*(tf.constant(x) for x in (positive, negatives, keep)), **more)


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name):
    loss, reference_loss, arguments = PAIRS[name]
    received = loss(logits_of(np.float32(POSITIVE), np.float32(NEGATIVES)))
    expected = [
        reference_loss(POSITIVE[i], list(NEGATIVES[i][KEEP[i]]), *arguments) for i in range(B)
    ]
    np.testing.assert_allclose(received, expected, rtol=1e-5)
    assert received[1] == 0


@pytest.mark.parametrize("name", [n for n in PAIRS if n != "hinge focus"])
def test_gradients_of_pairs(name):
    loss, reference_loss, arguments = PAIRS[name]
    values = [tf.constant(np.float32(x)) for x in (POSITIVE, NEGATIVES)]
    with tf.GradientTape() as tape:
        tape.watch(values)
        total = tf.reduce_sum(loss(Scored(*values, tf.constant(KEEP))))
    received = tape.gradient(total, values)

    def slow_total(positive, negatives):
        rows = [
            reference_loss(positive[i], list(negatives[i][KEEP[i]]), *arguments) for i in range(B)
        ]
        return sum(rows)

    by_positive = reference.numerical_gradient(lambda x: slow_total(x, NEGATIVES), POSITIVE)
    by_negative = reference.numerical_gradient(lambda x: slow_total(POSITIVE, x), NEGATIVES)
    np.testing.assert_allclose(received[0], by_positive, atol=1e-4)
    np.testing.assert_allclose(received[1], by_negative, atol=1e-4)


def test_no_gradient_flows_through_the_weights_of_a_focused_hinge():
    negatives = tf.constant([[0.5, 0.1]])
    with tf.GradientTape() as tape:
        tape.watch(negatives)
        loss = TripletHinge(1.0, focus=1.0)(Scored(tf.zeros([1]), negatives, tf.fill([1, 2], True)))
    weights = np.exp([0.5, 0.1]) / np.exp([0.5, 0.1]).sum()
    np.testing.assert_allclose(tape.gradient(loss, negatives)[0], weights, rtol=1e-5)


def test_decoupled_softmax():
    more = MorePositives(*(tf.constant(x) for x in (MARKS, np.float32(MORE), np.float32(MORE) + 9)))
    logits = logits_of(np.float32(POSITIVE), np.float32(NEGATIVES), more_positives=more)
    expected = [
        slow.decoupled_softmax([POSITIVE[i], *MORE[i][MARKS[i]]], list(NEGATIVES[i][KEEP[i]]))
        for i in range(B)
    ]
    np.testing.assert_allclose(DecoupledSoftmax()(logits), expected, rtol=1e-5)


def test_decoupled_softmax_of_one_positive_is_sampled_softmax():
    logits = logits_of(np.float32(POSITIVE), np.float32(NEGATIVES))
    np.testing.assert_array_equal(DecoupledSoftmax()(logits), SampledSoftmax()(logits))


def test_several_positives_of_a_softmax_share_one_and_decoupled_each_has_it():
    # Two positives far above the negatives: nothing is left to learn, the softmax still pulls.
    keep, marks = tf.constant([[True, True]]), tf.constant([[True, False]])
    more = MorePositives(marks, tf.fill([1, 2], 20.0), tf.fill([1, 2], 20.0))
    logits = Scored(tf.constant([20.0]), tf.constant([[20.0, 0.0]]), keep)
    assert float(SampledSoftmax()(logits)[0]) == pytest.approx(math.log(2))
    apart = logits._replace(keep=keep & ~marks, more_positives=more)
    assert float(DecoupledSoftmax()(apart)[0]) < 1e-8


def test_bpr_is_the_softmax_of_one_negative_and_the_logistic_of_scale_one():
    logits = logits_of(np.float32(POSITIVE), np.float32(NEGATIVES[:, :1]), np.ones((B, 1), bool))
    np.testing.assert_allclose(BPR()(logits), SampledSoftmax()(logits), rtol=1e-6)
    np.testing.assert_array_equal(BPR()(logits), TripletLogistic()(logits))


@pytest.mark.parametrize("extreme", [1e4, -1e4, 1e30])
@pytest.mark.parametrize("name", PAIRS)
def test_extreme_numbers_are_finite(name, extreme):
    values = [tf.constant([extreme]), tf.constant([[-extreme, extreme, 0.0]])]
    keep = tf.constant([[True, False, True]])
    with tf.GradientTape() as tape:
        tape.watch(values)
        loss = PAIRS[name][0](Scored(*values, keep))
    assert np.isfinite(loss).all()
    for gradient in tape.gradient(loss, values):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", PAIRS)
def test_weights_and_reduction_are_the_task_s(name):
    rng = np.random.default_rng(1)
    queries, items = rng.normal(size=(2, 5, 3)).astype(np.float32)
    weights = np.array([0.0, 1.0, 2.0, 0.5, 3.0], np.float32)
    loss, reference_loss, arguments = PAIRS[name]
    task = Retrieval(loss, reduction="sum")
    scores = queries @ items.T
    rows = [
        reference_loss(scores[i, i], list(np.delete(scores[i], i)), *arguments) for i in range(5)
    ]
    received = float(task(queries, items, sample_weight=weights, training=False))
    assert received == pytest.approx(float(np.dot(weights, rows)), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TripletHinge(0), "`margin`: expected a positive number. Received: 0"),
        (lambda: TripletHinge(1, focus=-1), "`focus`: expected a positive number. Received: -1"),
        (lambda: TripletLogistic(0), "`scale`: expected a positive number. Received: 0"),
        (
            lambda: PointwiseBCE(-1),
            "`negatives_per_positive`: expected a positive number. Received: -1",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value) == message
