"""Relations between compositions, and what the corrected gradient tends to as draws grow.

The corpus is the identity matrix and the query is a vector of N scores, so that the gradient with
respect to the query is the gradient with respect to the scores of the whole corpus: the full
softmax has P - e_p there.
"""

from __future__ import annotations

import numpy as np
import pytest
import reference
import tensorflow as tf

from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.step.frequency import ExactFrequency
from tfrs_negatives.step.masks.keep import AccidentalHits
from tfrs_negatives.step.miners import Hardest
from tfrs_negatives.step.records import Candidates, Miner, Sampler
from tfrs_negatives.step.samplers import CrossBatch, InBatch, Uniform
from tfrs_negatives.step.task import Retrieval

N = 20
CATALOGUE = ItemCatalogue(np.arange(N))
EYE = np.eye(N, dtype=np.float32)
RNG = np.random.default_rng(4)
SCORES = RNG.normal(size=N).astype(np.float32)
Q = 1 / np.arange(1, N + 1)
Q /= Q.sum()
POSITIVE = 2
# The positive's share is large, so that leaving it out, or counting it twice, is seen.
SCORES[POSITIVE] = 2.5
P = reference.full_softmax(SCORES)
FULL = P - EYE[POSITIVE]


def encode_items(features):
    return tf.gather(EYE, features["item_id"])


class WholeCorpus(Sampler):
    """Proposes every item of the catalogue once, with a constant log count."""

    name = "whole_corpus"

    def __init__(self, count=0.0):
        self.count = count

    def sample(self, batch):
        features = CATALOGUE.gather(tf.range(N))
        nobody = tf.fill([N], -1)
        vectors = batch.encode_items(features)
        return Candidates(CATALOGUE.keys_at(tf.range(N)), vectors, tf.ones([N], tf.bool), nobody)

    def log_count(self, ids, batch):
        return tf.fill(tf.shape(ids), tf.constant(self.count))


class Seen(Miner):
    """Keeps what it is given where a test can see it, all candidates at once."""

    reads_scores = True

    def mine(self, scored, batch):
        self.given = scored
        return scored


def loss_and_gradient(task, scores, item_ids, **call):
    queries = tf.constant(scores)
    with tf.GradientTape() as tape:
        tape.watch(queries)
        loss = task(
            queries,
            tf.gather(EYE, item_ids),
            candidate_ids=item_ids,
            encode_items=encode_items,
            **{"training": False, **call},
        )
    return loss, tape.gradient(loss, queries)


# ------------------------------------------------------------------ exact relations


ROWS = RNG.normal(size=(4, N)).astype(np.float32)
POSITIVES = np.array([3, 0, 19, 3])


@pytest.mark.parametrize(("policy", "log_count"), [(None, 0.0), ("both", 1.7), ("negatives", 0.0)])
def test_the_whole_corpus_as_pool_is_the_full_softmax(policy, log_count):
    source = WholeCorpus(log_count)
    options = {"masks": [AccidentalHits()], "correct": policy, "reduction": "mean"}
    task = Retrieval(negatives=[source], **options)
    loss, gradient = loss_and_gradient(task, ROWS, POSITIVES)
    shares = [reference.full_softmax(row) for row in ROWS]
    expected = np.mean([-np.log(p[j]) for p, j in zip(shares, POSITIVES, strict=True)])
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    one_hot = np.eye(N)[POSITIVES]
    np.testing.assert_allclose(gradient, (shares - one_hot) / len(ROWS), atol=1e-6)


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_a_constant_log_count_on_all_columns_is_no_correction(strength):
    flat = ExactFrequency(np.arange(N), np.full(N, 7.0))
    corrected = Retrieval(frequency=flat, strength=strength)
    plain, with_constant = (
        loss_and_gradient(task, ROWS, POSITIVES) for task in (Retrieval(), corrected)
    )
    for expected, received in zip(plain, with_constant, strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-6)
    # The same constant on the negatives alone is a correction.
    task = Retrieval(frequency=flat, strength=strength, correct="negatives")
    shifted = loss_and_gradient(task, ROWS, POSITIVES)[0]
    assert float(shifted) != pytest.approx(float(plain[0]), rel=1e-2)


def test_strength_zero_is_no_correction():
    frequency = ExactFrequency(np.arange(N), Q)
    task = Retrieval(frequency=frequency, strength=0.0)
    plain = loss_and_gradient(Retrieval(), ROWS, POSITIVES)[0]
    assert float(loss_and_gradient(task, ROWS, POSITIVES)[0]) == pytest.approx(float(plain))


def test_a_permutation_of_the_batch_permutes_the_gradient():
    order = np.array([2, 0, 3, 1])
    task = Retrieval(
        frequency=ExactFrequency(np.arange(N), Q), masks=[AccidentalHits()], miners=[Hardest(2)]
    )
    weights = np.array([1.0, 2.0, 0.5, 3.0], np.float32)
    loss, gradient = loss_and_gradient(task, ROWS, POSITIVES, sample_weight=weights)
    other, permuted = loss_and_gradient(
        task, ROWS[order], POSITIVES[order], sample_weight=weights[order]
    )
    assert float(other) == pytest.approx(float(loss), rel=1e-6)
    np.testing.assert_allclose(permuted, gradient.numpy()[order], atol=1e-7)


def test_as_many_hardest_as_columns_are_no_miner():
    plain = loss_and_gradient(Retrieval(), ROWS, POSITIVES)
    mined = loss_and_gradient(Retrieval(miners=[Hardest(3)]), ROWS, POSITIVES)
    for expected, received in zip(plain, mined, strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-7)


def test_a_probability_is_a_frequency_that_the_caller_knows():
    for policy in ("both", "negatives"):
        known = Retrieval(frequency=ExactFrequency(np.arange(N), Q * 1e6), correct=policy)
        given = Retrieval(correct=policy)
        expected = loss_and_gradient(known, ROWS, POSITIVES)[0]
        probability = Q[POSITIVES].astype(np.float32)
        loss, _ = loss_and_gradient(
            given, ROWS, POSITIVES, candidate_sampling_probability=probability
        )
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("kind", ["in_batch", "uniform", "mixture"])
def test_negatives_with_masked_copies_is_the_loss_that_leaves_the_positive_out(kind):
    """Khrylchenko et al. (RecSys 2025), written as they do: another value, the same gradient.

    L = -(1 - P) log(exp(s+) / sum_i exp(s_i - log Q'_i)), 1 - P without gradient,
    P = exp(s+) / (exp(s+) + mean_i exp(s_i - log Q'_i)), Q' = Q / (1 - Q+) over the n others.
    """
    draws = 12
    negatives, num_batch = sources(kind, draws)
    seen = Seen()
    task = Retrieval(
        negatives=negatives,
        frequency=ExactFrequency(np.arange(N), Q * 1e6),
        masks=[AccidentalHits()],
        miners=[seen],
        correct="negatives",
    )
    ids = np.random.default_rng(5).choice(N, size=num_batch, p=Q)
    ids[0] = POSITIVE
    _, gradient = loss_and_gradient(task, SCORES[None], ids, training=True)
    kept = seen.given.ids.numpy()[seen.given.keep.numpy()[0]]
    assert len(kept) < draws
    # What the pool draws with: of the mixture, the batch's share of Q and the rest of 1 / N.
    share = {"in_batch": 1.0, "uniform": 0.0, "mixture": 0.5}[kind]
    law = share * Q + (1 - share) / N
    scores = SCORES.astype(np.float64)

    def theirs(scores, fixed):
        # The mean number of candidates that are not the positive, which their n estimates.
        number = draws * (1 - law[POSITIVE])
        others = law / (1 - law[POSITIVE])
        log_sum = np.log(np.sum(np.exp(scores[kept]) / others[kept]))
        fixed_sum = np.sum(np.exp(fixed[kept]) / others[kept]) / number
        solved = np.exp(fixed[POSITIVE]) / (np.exp(fixed[POSITIVE]) + fixed_sum)
        return -(1 - solved) * (scores[POSITIVE] - log_sum)

    expected = reference.numerical_gradient(lambda x: theirs(x, scores), scores)
    np.testing.assert_allclose(gradient[0], expected, atol=1e-5)


def test_temperature_divides_the_score_and_therefore_the_query():
    sharp = loss_and_gradient(Retrieval(temperature=0.25), ROWS, POSITIVES)[0]
    scaled = loss_and_gradient(Retrieval(), ROWS * 4, POSITIVES)[0]
    assert float(sharp) == pytest.approx(float(scaled), rel=1e-5)


# ------------------------------------------------------------------ what the gradient tends to


def sources(kind, draws):
    """Sources whose columns are `draws` in all, and how many of them the batch holds."""
    if kind == "in_batch":
        return [InBatch()], draws
    if kind == "uniform":
        return [Uniform(CATALOGUE, draws)], 1
    return [InBatch(), Uniform(CATALOGUE, draws // 2)], draws // 2


def gradients(kind, draws, *, repeats, hits_masked, **options):
    """[repeats, N]: the gradient of one row with fresh draws each time, the positive fixed."""
    negatives, num_batch = sources(kind, draws)
    task = Retrieval(
        negatives=negatives,
        frequency=ExactFrequency(np.arange(N), Q * 1e6),
        masks=[AccidentalHits()] if hits_masked else [],
        **options,
    )
    drawn = np.random.default_rng(draws).choice(N, size=(repeats, num_batch), p=Q)
    drawn[:, 0] = POSITIVE

    @tf.function
    def all_repeats():
        rows = tf.TensorArray(tf.float32, repeats)
        for r in tf.range(repeats):
            ids = tf.gather(tf.constant(drawn), r)
            _, gradient = loss_and_gradient(task, SCORES[None], ids, training=True)
            rows = rows.write(r, gradient[0])
        return rows.stack()

    return all_repeats().numpy()


def bias(kind, draws, target=FULL, *, repeats=200, **options):
    """Distance of the mean gradient from the target."""
    mean = gradients(kind, draws, repeats=repeats, **options).mean(axis=0)
    return float(np.linalg.norm(mean - target))


KINDS = ["in_batch", "uniform", "mixture"]
# The estimator of the full softmax's denominator counts the positive once: as the positive itself
# ("negatives", its copies masked), or as one item among those drawn ("both", its copies kept).
CONSISTENT = {
    "negatives": {"correct": "negatives", "hits_masked": True},
    "both": {"correct": "both", "hits_masked": False},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", CONSISTENT)
def test_the_corrected_gradient_tends_to_that_of_the_full_softmax(kind, policy):
    options = CONSISTENT[policy]
    few, many = bias(kind, 16, **options), bias(kind, 1024, **options)
    # The bias of a ratio of means is of order 1 / draws; the mean of 200 repeats still wobbles.
    assert many < 0.012
    assert many < few / 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", CONSISTENT)
def test_the_error_of_one_step_falls_with_the_root_of_the_draws(kind, policy):
    def spread(draws):
        errors = gradients(kind, draws, repeats=100, **CONSISTENT[policy]) - FULL
        return np.sqrt((errors**2).sum(axis=1).mean())

    # 16 times the draws, a quarter of the error.
    assert 3.0 < spread(128) / spread(2048) < 5.5


@pytest.mark.parametrize("kind", ["in_batch", "mixture"])
@pytest.mark.parametrize("hits_masked", [True, False])
def test_without_the_correction_the_error_stays(kind, hits_masked):
    options = {"correct": None, "hits_masked": hits_masked, "repeats": 60}
    assert bias(kind, 256, **options) > 0.1
    assert bias(kind, 2048, **options) > 0.1


def test_without_the_correction_in_batch_tends_to_the_popularity_weighted_softmax():
    weighted = reference.full_softmax(SCORES + np.log(Q)) - EYE[POSITIVE]
    options = {"correct": None, "hits_masked": False, "repeats": 60}
    assert bias("in_batch", 2048, weighted, **options) < 0.012


def test_uniform_draws_have_nothing_to_correct_when_both_sides_are():
    options = {"repeats": 5, "hits_masked": False}
    corrected, plain = (gradients("uniform", 64, correct=c, **options) for c in ("both", None))
    np.testing.assert_allclose(corrected, plain, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_both_with_masked_copies_tends_to_the_softmax_over_the_other_items(kind):
    # The positive itself weighs 1 / count among the draws: its copies masked, it vanishes.
    others = np.where(np.arange(N) == POSITIVE, 0.0, P)
    target = others / others.sum() - EYE[POSITIVE]
    assert np.linalg.norm(target - FULL) > 0.3
    options = {"correct": "both", "hits_masked": True, "repeats": 60}
    assert bias(kind, 2048, target, **options) < 0.012


@pytest.mark.parametrize("kind", KINDS)
def test_negatives_with_kept_copies_tends_to_the_positive_counted_twice(kind):
    weights = P + P[POSITIVE] * EYE[POSITIVE]
    target = weights / weights.sum() - EYE[POSITIVE]
    assert np.linalg.norm(target - FULL) > 0.1
    options = {"correct": "negatives", "hits_masked": False, "repeats": 60}
    assert bias(kind, 2048, target, **options) < 0.012


@pytest.mark.parametrize("compensate", [True, False])
def test_items_are_pushed_as_by_the_full_softmax_though_the_bank_has_no_gradient(compensate):
    """The gradient of the item table, with a quarter of the columns fresh; the towers stand still.

    As published the items get the pull of their positives, and a quarter of the push.
    """
    fresh, stored, repeats = 512, 1536, 60
    drawn = np.random.default_rng(9).choice(N, size=(repeats, fresh + stored), p=Q)
    drawn[:, 0] = POSITIVE
    source, table = CrossBatch(stored, compensate=compensate), tf.Variable(EYE)
    frequency = ExactFrequency(np.arange(N), Q * 1e6)
    task = Retrieval(negatives=[InBatch(), source], frequency=frequency)
    task.build([None, N])

    @tf.function
    def one(ids):
        source.bank.push(ids[fresh:], tf.gather(table, ids[fresh:]))
        with tf.GradientTape() as tape:
            items = tf.gather(table, ids[:fresh])
            loss = task(SCORES[None], items, candidate_ids=ids[:fresh], training=False)
        return tf.convert_to_tensor(tape.gradient(loss, table))

    mean = np.mean([one(tf.constant(ids)) for ids in drawn], axis=0)
    # Row k is (P(k) - [k is the positive]) times the query.
    by_item = mean @ SCORES / (SCORES @ SCORES)
    pushed = P if compensate else P * fresh / (fresh + stored)
    np.testing.assert_allclose(by_item, pushed - EYE[POSITIVE], atol=0.01)


@pytest.mark.parametrize(("slots", "hits_masked"), [(4, False), (64, False), (64, True)])
def test_the_optimum_of_both_is_the_posterior_at_any_number_of_draws(slots, hits_masked):
    """With s = log P(item | query) the mean gradient over positives is zero, even with few draws.

    Only while the copies of the positive stay: the label is one slot among those that hold it.
    """
    rng, repeats = np.random.default_rng(8), 20000
    drawn = rng.choice(N, size=(repeats, slots), p=Q)
    drawn[:, 0] = rng.choice(N, size=repeats, p=P)
    logits = (np.log(P) - np.log(Q))[drawn]
    if hits_masked:
        logits[:, 1:][drawn[:, 1:] == drawn[:, :1]] = -np.inf
    weights = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    weights[:, 0] -= 1
    mean = np.bincount(drawn.ravel(), weights.ravel(), minlength=N) / repeats
    # The mean of 20,000 repeats wobbles by 0.005.
    assert np.linalg.norm(mean) > 0.04 if hits_masked else np.linalg.norm(mean) < 0.012
    # The package computes that very gradient.
    task = Retrieval(
        frequency=ExactFrequency(np.arange(N), Q * 1e6),
        masks=[AccidentalHits()] if hits_masked else [],
    )
    for ids, expected in zip(drawn[:20], weights[:20], strict=True):
        _, gradient = loss_and_gradient(task, np.log(P)[None].astype(np.float32), ids)
        np.testing.assert_allclose(gradient[0], np.bincount(ids, expected, minlength=N), atol=1e-5)
