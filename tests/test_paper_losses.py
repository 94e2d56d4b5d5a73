"""The losses of single papers: values against slow versions, optima, limits and relations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import reference
import reference_losses as slow
import scipy.optimize
import tensorflow as tf
from scipy.special import expit, logsumexp

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.step.losses import (
    BPR,
    BSL,
    CCL,
    GBCE,
    PSL,
    NonSampling,
    PointwiseBCE,
    SampledSoftmax,
    SoftmaxOverPositives,
    SoftPartialAUC,
    SoftTopK,
)
from tfrs_negatives.step.masks.keep import AccidentalHits
from tfrs_negatives.step.records import Candidates, MorePositives, Sampler, Scored
from tfrs_negatives.step.samplers import Popularity, Uniform
from tfrs_negatives.step.task import Retrieval

B, C = 6, 8
RNG = np.random.default_rng(0)
POSITIVE = RNG.normal(size=B)
NEGATIVES = RNG.normal(size=(B, C))
KEEP = RNG.random((B, C)) < 0.7
KEEP[1] = False
# Counts differ, also from those of the positive.
LOG_COUNTS = RNG.normal(size=(B, C))
POSITIVE_LOG_COUNT = RNG.normal(size=B)
MARKS = (RNG.random((B, C)) < 0.4) & ~KEEP
MORE = RNG.normal(size=(B, C))

# Name -> the loss, its slow version, and the arguments of this.
ROWS = {
    "top-k": (SoftTopK(2, 1.5), slow.soft_top_k, (2, 1.5)),
    "gbce": (GBCE(0.3, 0.75), slow.gbce, (0.3, 0.75)),
    "ccl": (CCL(0.2, 3.0), slow.ccl, (0.2, 3.0)),
    "non-sampling": (NonSampling(0.3), slow.non_sampling, (0.3,)),
    "psl tanh": (PSL("tanh", 0.4), slow.psl, ("tanh", 0.4)),
    "psl arctan": (PSL("arctan", 0.4), slow.psl, ("arctan", 0.4)),
    "psl relu": (PSL("relu", 0.4), slow.psl, ("relu", 0.4)),
    "psl exp": (PSL("exp", 0.4), slow.psl, ("exp", 0.4)),
    "partial auc": (SoftPartialAUC(0.4), slow.soft_partial_auc, (0.4,)),
}
every_loss = pytest.mark.parametrize("name", ROWS)


def scored_of(positive=POSITIVE, negatives=NEGATIVES, keep=KEEP, **more):
    return Scored(
        *(tf.constant(np.float32(x)) for x in (positive, negatives)), tf.constant(keep), **more
    )


def corrected(log_counts=LOG_COUNTS, positive_log_count=POSITIVE_LOG_COUNT):
    """The same scores, with the counts in the logits."""
    scored = scored_of()
    return scored._replace(
        positive_logit=scored.positive_logit - np.float32(positive_log_count),
        logit=scored.logit - np.float32(log_counts),
        positive_score=scored.positive_logit,
        score=scored.logit,
    )


def with_more(positive=POSITIVE, negatives=NEGATIVES, keep=KEEP, marks=MARKS, more=MORE):
    others = MorePositives(*(tf.constant(x) for x in (marks, np.float32(more), np.float32(more))))
    return scored_of(positive, negatives, keep, more_positives=others)


# ------------------------------------------------------------------ values and gradients


@every_loss
def test_values(name):
    loss, slow_loss, arguments = ROWS[name]
    expected = [slow_loss(POSITIVE[i], list(NEGATIVES[i][KEEP[i]]), *arguments) for i in range(B)]
    received = loss(scored_of())
    np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-6)
    assert received[1] == 0


@every_loss
def test_counts_are_weights(name):
    loss, slow_loss, arguments = ROWS[name]
    expected = [
        slow_loss(
            POSITIVE[i],
            list(NEGATIVES[i][KEEP[i]]),
            *arguments,
            weights=list(np.exp(-LOG_COUNTS[i][KEEP[i]])),
        )
        for i in range(B)
    ]
    if name.startswith("psl"):  # The positive's count only moves the row.
        expected = np.where(KEEP.any(axis=1), expected + POSITIVE_LOG_COUNT, 0)
    np.testing.assert_allclose(loss(corrected()), expected, rtol=1e-4, atol=1e-5)


@every_loss
def test_gradients(name):
    loss, slow_loss, arguments = ROWS[name]
    if name == "partial auc":
        pytest.skip("its weights have no gradient")
    values = [tf.constant(np.float32(x)) for x in (POSITIVE, NEGATIVES)]
    with tf.GradientTape() as tape:
        tape.watch(values)
        total = tf.reduce_sum(loss(Scored(*values, tf.constant(KEEP))))
    received = tape.gradient(total, values)

    def slow_total(positive, negatives):
        rows = [slow_loss(positive[i], list(negatives[i][KEEP[i]]), *arguments) for i in range(B)]
        return sum(rows)

    by_positive = reference.numerical_gradient(lambda x: slow_total(x, NEGATIVES), POSITIVE)
    by_negative = reference.numerical_gradient(lambda x: slow_total(POSITIVE, x), NEGATIVES)
    np.testing.assert_allclose(received[0], by_positive, atol=1e-4)
    np.testing.assert_allclose(received[1], by_negative, atol=1e-4)


@pytest.mark.parametrize("extreme", [1e4, -1e4, 1e15, -1e15])
@every_loss
def test_extreme_numbers_are_finite(name, extreme):
    values = [tf.constant([extreme]), tf.constant([[-extreme, extreme, 0.0, 1.0]])]
    keep = tf.constant([[True, False, True, True]])
    with tf.GradientTape() as tape:
        tape.watch(values)
        loss = ROWS[name][0](Scored(*values, keep))
    assert np.isfinite(loss).all()
    for gradient in tape.gradient(loss, values):
        assert np.isfinite(gradient).all()


@every_loss
def test_what_a_masked_candidate_holds_does_not_matter(name):
    loss, (positive, negatives) = ROWS[name][0], (POSITIVE, np.where(KEEP, NEGATIVES, np.nan))
    values = [tf.constant(np.float32(x)) for x in (positive, negatives)]
    with tf.GradientTape() as tape:
        tape.watch(values)
        losses = loss(Scored(*values, tf.constant(KEEP), *values))
    np.testing.assert_array_equal(losses, loss(scored_of()))
    for gradient in tape.gradient(losses, values):
        assert np.isfinite(gradient).all()


def test_a_nan_that_counts_is_seen():
    for name, (loss, _, _) in ROWS.items():
        negatives = np.where(np.arange(C) == 2, np.nan, NEGATIVES)
        scored = scored_of(negatives=negatives, keep=np.ones((B, C), bool))
        of_scores = scored._replace(score=scored.logit, positive_score=scored.positive_logit)
        assert np.isnan(loss(scored)).all(), name
        assert np.isnan(loss(of_scores)).all(), name


# ------------------------------------------------------------------ gBCE


@pytest.mark.parametrize("calibration", [0.0, 0.6, 1.0])
def test_the_optimum_of_gbce(calibration):
    # All outcomes of a draw of the positive and of three of the others, and how probable each is.
    probability = np.array([0.5, 0.25, 0.15, 0.07, 0.03])
    rate, outcomes = 3 / 4, []
    for item in range(5):
        draws = list(itertools.combinations(set(range(5)) - {item}, 3))
        outcomes += [(item, drawn, probability[item] / len(draws)) for drawn in draws]
    item, drawn, weight = (np.array(x) for x in zip(*outcomes, strict=True))
    loss, keep = GBCE(rate, calibration), tf.ones(drawn.shape, tf.bool)

    def mean_loss(scores):
        scores = tf.constant(scores)
        with tf.GradientTape() as tape:
            tape.watch(scores)
            single = tf.cast(scores, tf.float32)
            rows = loss(Scored(tf.gather(single, item), tf.gather(single, drawn), keep))
            total = tf.reduce_sum(tf.cast(rows, tf.float64) * weight)
        return total.numpy(), tf.convert_to_tensor(tape.gradient(total, scores)).numpy()

    found = scipy.optimize.minimize(mean_loss, np.zeros(5), jac=True, method="BFGS")
    beta = 1 - calibration * (1 - rate)
    expected = probability * beta / (probability * beta + (1 - probability) * rate)
    np.testing.assert_allclose(expit(found.x), expected, atol=2e-4)
    if calibration == 1:
        np.testing.assert_allclose(expit(found.x), probability, atol=2e-4)


def test_gbce_without_calibration_is_half_of_a_pointwise_loss():
    one = scored_of(negatives=NEGATIVES[:, :1], keep=np.ones((B, 1), bool))
    expected = 0.5 * PointwiseBCE(1)(one)
    np.testing.assert_allclose(GBCE(0.2, calibration=0.0)(one), expected, rtol=1e-6)


# ------------------------------------------------------------------ CCL


def test_below_the_margin_there_is_no_gradient():
    scores = tf.constant([[0.3, 0.49, 0.51, 0.9]])
    positive = tf.constant([0.7])
    with tf.GradientTape() as tape:
        tape.watch([scores, positive])
        loss = CCL(margin=0.5, weight=8.0)(Scored(positive, scores, tf.ones([1, 4], tf.bool)))
    by_score, by_positive = tape.gradient(loss, [scores, positive])
    np.testing.assert_array_equal(by_score, [[0, 0, 2, 2]])
    np.testing.assert_array_equal(by_positive, [-1])


@pytest.mark.parametrize("name", ["gbce", "ccl", "partial auc", "psl tanh"])
def test_a_count_that_all_have_changes_nothing(name):
    # That of uniform draws: no margin and no odds may move with it.
    loss = ROWS[name][0]
    same = corrected(np.full((B, C), 3.7), np.full(B, 3.7))
    np.testing.assert_allclose(loss(same), loss(scored_of()), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------ BSL and PSL


@pytest.mark.parametrize("loss", [BSL(), PSL("exp", 0.05), PSL("exp", 3.0)])
def test_both_are_the_softmax_without_the_positive(loss):
    expected = [
        logsumexp(NEGATIVES[i][KEEP[i]]) - POSITIVE[i] if KEEP[i].any() else 0 for i in range(B)
    ]
    np.testing.assert_allclose(loss(scored_of()), expected, rtol=1e-5)


@pytest.mark.parametrize("surrogate", ["tanh", "arctan", "relu"])
def test_a_small_temperature_of_psl_is_the_softmax(surrogate):
    expected = PSL("exp")(scored_of())
    np.testing.assert_allclose(PSL(surrogate, 1e-3)(scored_of()), expected, atol=0.02)
    # And the surrogates are below exp at any other.
    below = PSL(surrogate, 0.3)(scored_of()) < expected - 0.01
    assert below.numpy()[KEEP.any(axis=1)].all()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("weight", [1.0, 1.3])
def test_bsl_of_several_positives(temperature, weight):
    expected = [
        slow.bsl(
            [POSITIVE[i], *MORE[i][MARKS[i]]], list(NEGATIVES[i][KEEP[i]]), temperature, weight
        )
        for i in range(B)
    ]
    assert MARKS.sum() > B
    received = BSL(temperature, weight)(with_more())
    np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-6)


def test_bsl_of_one_positive_has_one_temperature():
    np.testing.assert_array_equal(BSL(0.1)(scored_of()), BSL(7.0)(scored_of()))


def test_a_small_temperature_of_bsl_lets_noisy_positives_go():
    # The row's own positive is the noisy one, far below another.
    scored = with_more([-3.0], [[0.0, 0.0]], [[True, False]], [[False, True]], [[0.0, 2.0]])
    gradients = {}
    for temperature in (0.1, 50.0):
        with tf.GradientTape() as tape:
            tape.watch(scored.positive_logit)
            loss = BSL(temperature)(scored)
        gradients[temperature] = float(tape.gradient(loss, scored.positive_logit)[0])
    assert gradients[0.1] == pytest.approx(0, abs=1e-6)
    assert gradients[50.0] == pytest.approx(-0.5, abs=0.05)


# ------------------------------------------------------------------ softmax over positives


def test_softmax_over_positives():
    expected = [
        slow.softmax_over_positives([POSITIVE[i], *MORE[i][MARKS[i]]], list(NEGATIVES[i][KEEP[i]]))
        for i in range(B)
    ]
    received = SoftmaxOverPositives()(with_more())
    np.testing.assert_allclose(received, expected, rtol=1e-5)
    assert received[1] == 0


def test_without_another_positive_it_is_sampled_softmax():
    expected = SampledSoftmax()(scored_of())
    np.testing.assert_array_equal(SoftmaxOverPositives()(scored_of()), expected)
    unmarked = with_more(marks=np.zeros((B, C), bool))
    np.testing.assert_allclose(SoftmaxOverPositives()(unmarked), expected, rtol=1e-6)


def test_positives_that_are_far_ahead_share_the_probability():
    scored = with_more([20.0], [[0.0, 0.0]], [[True, False]], [[False, True]], [[0.0, 20.0]])
    with tf.GradientTape() as tape:
        tape.watch([scored.positive_logit, scored.more_positives.logit])
        loss = SoftmaxOverPositives()(scored)
    assert float(loss[0]) == pytest.approx(math.log(2), rel=1e-5)
    for gradient in tape.gradient(loss, [scored.positive_logit, scored.more_positives.logit]):
        np.testing.assert_allclose(gradient, np.zeros_like(gradient), atol=1e-6)


# ------------------------------------------------------------------ non-sampling


N, D, ROWS_OF_BATCH = 30, 4, 7
CATALOGUE = ItemCatalogue(np.arange(N))
USERS = RNG.normal(size=(ROWS_OF_BATCH, D)).astype(np.float32)
ITEMS = RNG.normal(size=(N, D)).astype(np.float32)
CHOSEN = RNG.integers(0, N, ROWS_OF_BATCH)


class WholeCatalogue(Sampler):
    """Proposes every item once."""

    name = "whole_catalogue"

    def sample(self, batch):
        nobody = tf.fill([N], -1)
        features = CATALOGUE.gather(tf.range(N))
        vectors = batch.encode_items(features)
        return Candidates(CATALOGUE.keys_at(tf.range(N)), vectors, tf.ones([N], tf.bool), nobody)

    def log_count(self, ids, batch):
        return tf.zeros(tf.shape(ids))


def run(task, **options):
    return task(
        tf.constant(USERS),
        tf.constant(ITEMS[CHOSEN]),
        candidate_ids=CHOSEN,
        encode_items=lambda features: tf.gather(ITEMS, features["item_id"]),
        **{"training": False, **options},
    )


def gram_form(weight):
    """The published sum of all rows, its first part from two [D, D] matrices."""
    of_all = np.sum((USERS.T @ USERS) * (ITEMS.T @ ITEMS))
    own = np.einsum("bd,bd->b", USERS, ITEMS[CHOSEN])
    return weight * of_all + np.sum((1 - weight) * own**2 - 2 * own)


@pytest.mark.parametrize("masks", [[], [AccidentalHits()]], ids=["copies", "no copies"])
@pytest.mark.parametrize("correct", ["both", "negatives", None])
@pytest.mark.parametrize("weight", [0.2, 3.0])
def test_the_whole_catalogue_once_is_the_gram_form(masks, correct, weight):
    task = Retrieval(
        NonSampling(weight), negatives=[WholeCatalogue()], masks=masks, correct=correct
    )
    assert float(run(task)) == pytest.approx(gram_form(weight), rel=1e-5)


@pytest.mark.parametrize(
    "sampler", [Uniform(CATALOGUE, 400), Popularity(CATALOGUE, 400, counts=np.arange(N) + 9.0)]
)
def test_draws_are_unbiased(sampler):
    task, count = Retrieval(NonSampling(0.3), negatives=[sampler]), 120
    step = tf.function(lambda: run(task, training=True))
    draws = np.array([float(step()) for _ in range(count)])
    error = draws.std() / math.sqrt(count)
    assert error < 0.01 * abs(gram_form(0.3))
    assert draws.mean() == pytest.approx(gram_form(0.3), abs=4 * error)


# ------------------------------------------------------------------ partial AUC


LOST = np.array([slow.softplus(x) for x in (2.0, 0.3, -0.5, 1.1, -2.0, 0.9, 0.0)])


def weights_of(loss):
    """The weights of a row with these losses, from the gradient by each score."""
    scores = tf.constant(np.float32(np.log(np.expm1(LOST)))[None])
    with tf.GradientTape() as tape:
        tape.watch(scores)
        value = loss(Scored(tf.zeros([1]), scores, tf.ones([1, len(LOST)], tf.bool)))
    return tape.gradient(value, scores)[0].numpy() / expit(scores[0]), float(value[0])


def divergence(weights):
    """From equal weights, in nats."""
    return float(np.sum(weights * np.log(weights * len(weights))))


@pytest.mark.parametrize("radius", [0.01, 0.3, 2.0])
def test_no_weights_of_the_same_divergence_lose_more(radius):
    weights, value = weights_of(SoftPartialAUC(radius))
    assert weights.sum() == pytest.approx(1, rel=1e-5)
    size = divergence(weights)
    # The dual of the largest mean in a ball, and the ball itself.
    dual = scipy.optimize.minimize_scalar(
        lambda t: t * size + t * (logsumexp(LOST / t) - math.log(len(LOST))),
        bounds=(1e-3, 100),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert value == pytest.approx(dual.fun, rel=1e-5)
    primal = scipy.optimize.minimize(
        lambda w: -w @ LOST,
        np.full(len(LOST), 1 / len(LOST)),
        method="SLSQP",
        bounds=[(1e-9, 1)] * len(LOST),
        constraints=[
            {"type": "eq", "fun": lambda w: w.sum() - 1},
            {"type": "ineq", "fun": lambda w: size - divergence(w)},
        ],
        options={"ftol": 1e-12},
    )
    np.testing.assert_allclose(weights, primal.x, atol=2e-3)


def test_the_divergence_tends_to_the_radius():
    ratio = [divergence(weights_of(SoftPartialAUC(r))[0]) / r for r in (0.1, 0.01, 1e-3)]
    assert ratio[2] == pytest.approx(1, abs=0.03)
    assert abs(ratio[2] - 1) < abs(ratio[1] - 1) < abs(ratio[0] - 1)


def test_no_radius_is_bpr():
    np.testing.assert_allclose(SoftPartialAUC(1e-9)(scored_of()), BPR()(scored_of()), rtol=1e-4)


def test_equal_scores_weigh_alike():
    # Equal but for rounding, as those of an untrained model may be.
    scores = tf.constant([[0.5, 0.5, 0.5, 0.5 + 1e-6]])
    scored = Scored(tf.zeros([1]), scores, tf.ones([1, 4], tf.bool))
    with tf.GradientTape() as tape:
        tape.watch(scores)
        loss = SoftPartialAUC(1.0)(scored)
    np.testing.assert_allclose(loss, BPR()(scored), rtol=1e-6)
    np.testing.assert_allclose(
        tape.gradient(loss, scores), np.full((1, 4), expit(0.5) / 4), rtol=1e-3
    )


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftTopK(0), "`k`: expected at least 1. Received: 0"),
        (lambda: SoftTopK(5, 0), "`slope`: expected a positive number. Received: 0"),
        (lambda: GBCE(0), "`sampling_rate`: expected a number in (0, 1]. Received: 0"),
        (lambda: GBCE(0.5, 2), "`calibration`: expected a number in [0, 1]. Received: 2"),
        (lambda: CCL(1, 1), "`margin`: expected a cosine in [-1, 1). Received: 1"),
        (lambda: CCL(0.5, 0), "`weight`: expected a positive number. Received: 0"),
        (lambda: NonSampling(0), "`weight`: expected a positive number. Received: 0"),
        (
            lambda: BSL(0),
            "`positive_temperature`: expected a positive number. Received: 0",
        ),
        (lambda: BSL(1, -1), "`negative_weight`: expected a positive number. Received: -1"),
        (
            lambda: PSL("atan"),
            "`surrogate`: expected one of ['tanh', 'arctan', 'relu', 'exp']. Received: 'atan'",
        ),
        (lambda: PSL("tanh", 0), "`temperature`: expected a positive number. Received: 0"),
        (lambda: SoftPartialAUC(0), "`radius`: expected a positive number. Received: 0"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value) == message
