"""The least Bayesian risk against its slow version, and its posterior against known labels."""

from __future__ import annotations

import numpy as np
import pytest
import reference_bayesian as slow
import tensorflow as tf

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.step.miners import LeastBayesianRisk
from tfrs_negatives.step.miners.bayesian import share_at_or_below, true_negative_probability
from tfrs_negatives.step.records import Scored
from tfrs_negatives.step.task import Retrieval

B, C = 40, 15
CATALOGUE = ItemCatalogue([f"item {number}" for number in range(C)])
RNG = np.random.default_rng(3)
COUNTS = RNG.integers(1, 400, C)


class Step:
    """As much of a batch as a miner reads."""

    def __init__(self, step=1):
        self.seed = tf.constant([3, step])


def pool(seed=0):
    """Scores with ties, logits that rank differently, rows with few candidates and with none."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=(B, C)).round(1).astype(np.float32)
    keep = rng.random((B, C)) < rng.random((B, 1))
    keep[2] = False
    positive = rng.normal(size=B).astype(np.float32)
    logit = score - rng.normal(size=C).astype(np.float32)
    values = [positive - 0.3, logit, keep, positive, score]
    return Scored(*(tf.constant(x) for x in values), ids=tf.constant(CATALOGUE.keys))


@pytest.mark.parametrize("reference", ["kept", "all"])
@pytest.mark.parametrize("largest_prior", [None, 0.8])
@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_the_candidate_of_the_least_risk(reference, largest_prior, weight):
    scored = pool()
    miner = LeastBayesianRisk(
        CATALOGUE,
        COUNTS,
        num_candidates=C,  # all of them, so that chance has no part
        unbias_weight=weight,
        reference=reference,
        largest_prior=largest_prior,
    )
    mined = miner.mine(scored, Step())
    share = COUNTS / COUNTS.sum()
    priors = share if largest_prior is None else share / share.max() * largest_prior
    for i in range(B):
        kept = np.flatnonzero(scored.keep[i])
        assert mined.keep[i].numpy().tolist() == [len(kept) > 0]
        if not len(kept):
            continue
        scores = scored.score[i].numpy().astype(float)
        sample = scores[kept] if reference == "kept" else scores
        place = slow.best(
            float(scored.positive_score[i]), scores[kept], sample, priors[kept], weight
        )
        risks = [
            slow.risk(float(scored.positive_score[i]), scores[j],
                      slow.share_at_or_below(scores[j], sample), priors[j], weight)
            for j in kept
        ]  # fmt: skip
        chosen = np.flatnonzero(CATALOGUE.keys == mined.ids[i, 0].numpy())[0]
        # Of nearly equal ones either may be taken.
        assert risks[kept.tolist().index(chosen)] == pytest.approx(risks[place], abs=1e-5)


def test_few_candidates_are_looked_at_and_all_alike():
    scored = Scored(
        tf.zeros([400]), tf.tile(tf.range(4.0)[None], [400, 1]),
        tf.tile([[True, True, True, False]], [400, 1]), ids=tf.constant(CATALOGUE.keys[:4]),
    )  # fmt: skip
    miner = LeastBayesianRisk(CATALOGUE, COUNTS, num_candidates=1)
    counts = np.bincount(tf.reshape(miner.mine(scored, Step()).logit, [-1]).numpy().astype(int))
    # 133 of 400 each, standard deviation 9.4.
    assert len(counts) == 3
    assert (np.abs(counts - 133) < 47).all()
    two = LeastBayesianRisk(CATALOGUE, COUNTS, num_candidates=3, k=2).mine(scored, Step())
    assert all(len(set(row)) == 2 for row in two.logit.numpy())
    assert two.keep.numpy().all()


# ------------------------------------------------------------------ the posterior


def test_the_posterior_at_its_corners():
    prior = tf.constant([0.01, 0.3, 0.9])
    np.testing.assert_allclose(
        true_negative_probability(tf.zeros([3]), prior), np.ones(3), rtol=1e-4
    )
    np.testing.assert_allclose(
        true_negative_probability(tf.ones([3]), prior), np.zeros(3), atol=1e-3
    )
    below = tf.constant([0.1, 0.4, 0.8])
    np.testing.assert_allclose(
        true_negative_probability(below, tf.constant(0.5)), 1 - below.numpy(), rtol=1e-5
    )
    # The fraction that would be 0 / 0.
    assert np.isfinite(true_negative_probability(tf.constant(1.0), tf.constant(0.0)))


def test_the_posterior_is_the_formula_of_the_paper():
    for below in (0.05, 0.5, 0.95):
        for prior in (1e-4, 0.2, 0.7):
            received = true_negative_probability(tf.constant(below), tf.constant(prior))
            expected = slow.true_negative_probability(below, prior)
            assert float(received) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("prior", [0.1, 0.5])
def test_the_posterior_is_calibrated_where_labels_are_known(prior):
    """Scores of true negatives have the density 2 (1 - F), those of false ones 2 F."""
    rng = np.random.default_rng(0)
    false = rng.random(400_000) < prior
    first, second = rng.random((2, 400_000))
    # The smaller and the larger of two uniform numbers have these densities, with F(x) = x.
    below = np.where(false, np.maximum(first, second), np.minimum(first, second))
    received = true_negative_probability(
        tf.constant(below, tf.float32), tf.constant(prior, tf.float32)
    ).numpy()
    for low in np.arange(0, 1, 0.1):
        inside = (received >= low) & (received < low + 0.1)
        if inside.sum() > 1_000:
            # Standard error at most .016.
            assert (~false[inside]).mean() == pytest.approx(received[inside].mean(), abs=0.05)


def test_the_error_of_the_distribution_function_falls_with_the_root_of_the_sample():
    rng, rows = np.random.default_rng(1), 2_000
    values = tf.constant(rng.random((rows, 5)), tf.float32)
    errors = {}
    for size in (64, 1024):
        sample = tf.constant(rng.random((rows, size)), tf.float32)
        received = share_at_or_below(values, sample, tf.ones_like(sample, tf.bool))
        errors[size] = float(tf.sqrt(tf.reduce_mean((received - values) ** 2)))
    assert errors[64] == pytest.approx(np.sqrt(1 / 6 / 64), rel=0.1)  # mean of x (1 - x) / 64
    assert errors[64] / errors[1024] == pytest.approx(4.0, rel=0.1)


def test_the_distribution_function_counts_ties_and_leaves_out_what_is_masked():
    scored = pool()
    received = share_at_or_below(scored.score, scored.score, scored.keep).numpy()
    for i in range(B):
        kept = scored.score[i].numpy()[scored.keep[i].numpy()]
        for j in range(C):
            expected = slow.share_at_or_below(float(scored.score[i, j]), kept)
            assert received[i, j] == pytest.approx(expected, rel=1e-6)


def test_all_counts_candidates_that_have_an_id():
    ids = tf.constant([*CATALOGUE.keys[:3], EMPTY_ID])
    scored = Scored(
        tf.zeros([1]), tf.constant([[0.0, -1.0, -2.0, -3.0]]),
        tf.constant([[True, False, False, False]]), ids=ids,
    )  # fmt: skip
    kept, everything = (
        LeastBayesianRisk(CATALOGUE, COUNTS, reference=r)._share_below(
            scored.take(tf.constant([[0]])), scored
        )
        for r in ("kept", "all")
    )
    assert float(kept[0, 0]) == pytest.approx(1 / 2)
    assert float(everything[0, 0]) == pytest.approx(3 / 4)


def test_an_unknown_item_has_no_prior():
    scored = Scored(
        tf.zeros([1]), tf.zeros([1, 2]), tf.ones([1, 2], tf.bool),
        ids=tf.constant([CATALOGUE.keys[0], 12345]),
    )  # fmt: skip
    few = scored.take(tf.constant([[0, 1]]))
    risk = LeastBayesianRisk(CATALOGUE, COUNTS, largest_prior=0.9).risk(few, tf.fill([1, 2], 0.5))
    # Half the candidates below, and so 1 - p is what is left of it.
    prior = 0.9 * COUNTS[0] / COUNTS.max()
    np.testing.assert_allclose(risk[0], [0.5 * (1 - 6 * (1 - prior)), 0.5 * (1 - 6)], rtol=1e-4)


def test_a_catalogue_of_other_ids_is_refused():
    task = Retrieval(miners=[LeastBayesianRisk(CATALOGUE, COUNTS)])
    with pytest.raises(InputError, match=r"`miners\[0\]`: expected ids that are integers"):
        task(tf.ones([2, 3]), tf.ones([2, 3]), candidate_ids=[1, 2], training=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "`k`: expected at least 1. Received: 0"),
        ({"k": 9}, "`num_candidates`: expected at least k, 9. Received: 5"),
        ({"unbias_weight": -1}, "`unbias_weight`: expected at least 0. Received: -1.0"),
        ({"reference": "x"}, "`reference`: expected 'kept' or 'all'. Received: 'x'"),
        ({"largest_prior": 1}, "`largest_prior`: expected a number in (0, 1). Received: 1"),
        ({"counts": [1]}, "`counts`: expected 15 numbers, one per id. Received: (1,)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError) as error:
        LeastBayesianRisk(CATALOGUE, **{"counts": COUNTS, **arguments})
    assert str(error.value) == message
