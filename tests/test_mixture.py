"""Mixtures with the positive against mixed vectors, and what they are for a dot product."""

from __future__ import annotations

import numpy as np
import pytest
import reference_mixture as slow
import tensorflow as tf
from small_batch import CATALOGUE, NUM_ROWS, encode_items, exact_frequency, run

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.step.losses import BPR
from tfrs_negatives.step.miners import Hardest, PositiveMixture
from tfrs_negatives.step.records import Scored
from tfrs_negatives.step.samplers import Explicit, InBatch, Uniform
from tfrs_negatives.step.task import Retrieval

B, D = 6, 4
RNG = np.random.default_rng(8)
QUERIES, POSITIVES = RNG.normal(size=(2, B, D)).astype(np.float32)
IDS = np.array([103, 101, 105, 107, 110, 108])
CORPUS = RNG.normal(size=(len(CATALOGUE), D)).astype(np.float32)
NAMED = RNG.integers(100, 112, size=(B, 5))


class Look(PositiveMixture):
    """Keeps what it was given, the shares and what it made."""

    def mine(self, scored, batch):
        self.given, self.made = scored, super().mine(scored, batch)
        self.a = self.shares(scored, batch).numpy()
        return self.made


def step(miners, loss=None, negatives=None, **options):
    """The loss, and its gradient in queries, positives and corpus."""
    task = Retrieval(
        loss or BPR(),
        miners=miners,
        negatives=negatives or [InBatch(), Uniform(CATALOGUE, 9)],
        correct=None,
        **options,
    )
    inputs = [tf.constant(x) for x in (QUERIES, POSITIVES, CORPUS)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        loss = task(
            *inputs[:2],
            candidate_ids=IDS,
            features={"named": NAMED},
            encode_items=lambda features: tf.gather(inputs[2], features["item_id"] - 100),
            training=False,
        )
    return loss, [tf.convert_to_tensor(g) for g in tape.gradient(loss, inputs)]


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("own", [False, True], ids=["shared", "of each row"])
def test_the_hardest_mixtures_are_those_of_mixed_vectors(similarity, own):
    look = Look(3, similarity=similarity)
    negatives = [Explicit("named", CATALOGUE)] if own else None
    step([look], negatives=negatives, similarity=similarity)
    vectors = look.given.vectors.numpy()
    for i in range(B):
        scores = [
            slow.mixed_score(QUERIES[i], POSITIVES[i], v, look.a[i], similarity)
            for v, kept in zip(vectors[i] if own else vectors, look.given.keep[i], strict=True)
            if kept
        ]
        np.testing.assert_allclose(look.made.logit[i], sorted(scores)[::-1][:3], rtol=1e-4)


def test_for_a_dot_product_they_are_the_hardest_with_a_slope_of_each_row():
    look = Look()
    received_loss, received = step([look])

    class Slopes(BPR):
        """`TripletLogistic` with a scale of each row."""

        def __call__(self, scored, batch=None):
            slope = (1.0 - look.a)[:, None]
            return super().__call__(
                Scored(scored.positive_logit * slope[:, 0], scored.logit * slope, scored.keep)
            )

    expected_loss, expected = step([Hardest(1, by="score")], Slopes())
    assert float(received_loss) == pytest.approx(float(expected_loss), rel=1e-6)
    for one, other in zip(received, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_for_a_cosine_others_are_the_hardest():
    look, plain = Look(similarity="cosine"), []

    class Keep(Hardest):
        def mine(self, scored, batch):
            plain.append(super().mine(scored, batch))
            return plain[0]

    negatives = [Uniform(CATALOGUE, 40)]
    _, received = step([look], negatives=negatives, similarity="cosine")
    step([Keep(1)], negatives=negatives, similarity="cosine")
    share = look.a[:, None]
    mixed = share * plain[0].positive_logit[:, None] + (1 - share) * plain[0].logit
    # At least as hard as the mixture of the hardest before it had length 1 again.
    assert (look.made.logit >= mixed).numpy().all()
    # Its gradient is that of the mixed vectors.
    inputs = [tf.constant(x) for x in (QUERIES, POSITIVES, CORPUS)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        q, p, v = (tf.math.l2_normalize(x, axis=-1) for x in inputs)
        v = tf.gather(v, look.given.ids - 100)
        a = look.a[:, None, None]
        mixture = tf.math.l2_normalize(a * p[:, None] + (1 - a) * v, axis=-1)
        scores = tf.einsum("bd,bcd->bc", q, mixture)
        lead = tf.reduce_max(tf.where(look.given.keep, scores, -9.0), axis=1)
        loss = tf.reduce_sum(tf.math.softplus(lead - tf.reduce_sum(q * p, axis=1)))
    expected = [tf.convert_to_tensor(g) for g in tape.gradient(loss, inputs)]
    for one, other in zip(received, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)


def test_opposite_vectors_have_a_finite_mixture():
    scored = Scored(
        tf.ones([1]), -tf.ones([1, 1]), tf.ones([1, 1], tf.bool),
        ids=tf.constant([5], tf.int64), vectors=tf.constant([[-1.0, 0.0]]),
    )  # fmt: skip

    class Half(PositiveMixture):
        def shares(self, scored, batch):
            return tf.constant([0.5])

    class Step:
        several_vectors, positives = False, tf.constant([[1.0, 0.0]])

    made = Half(similarity="cosine").mine(scored, Step)
    assert np.isfinite(made.logit).all()


def test_shares_differ_by_row_and_are_below_the_largest():
    look = Look(largest_share=0.25)
    step([look])
    assert len(set(look.a.tolist())) == B
    assert 0.1 < look.a.max() < 0.25


def test_a_mixture_has_no_id_and_no_count():
    look = Look(2)
    run(Retrieval(miners=[look], frequency=exact_frequency()), encode_items=encode_items)
    assert (look.made.ids.numpy() == EMPTY_ID).all()
    assert look.made.ids.shape == (NUM_ROWS, 2)
    assert look.made.log_count is None
    np.testing.assert_array_equal(look.made.positive_logit, look.given.positive_score)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PositiveMixture(0), "`k`: expected at least 1. Received: 0"),
        (
            lambda: PositiveMixture(similarity="euclidean"),
            "`similarity`: expected one of ['dot', 'cosine']. Received: 'euclidean'",
        ),
        (
            lambda: PositiveMixture(largest_share=1.5),
            "`largest_share`: expected a number in (0, 1]. Received: 1.5",
        ),
        (
            lambda: step([Hardest(2), PositiveMixture(similarity="cosine")]),
            "`miners`: expected `positive_mixture` of a cosine first, ",
        ),
        (
            lambda: step(
                [PositiveMixture(similarity="cosine")],
                negatives=[InBatch(), Explicit("named", CATALOGUE)],
            ),
            "`miners`: expected `positive_mixture` of a cosine first, and candidates of one kind",
        ),
        (
            lambda: run(
                Retrieval(miners=[PositiveMixture()]), queries=np.ones([NUM_ROWS, 2, 4], np.float32)
            ),
            "`queries`: expected one vector per query, [B, D]. ",
        ),
    ],
)
def test_what_it_refuses(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value).startswith(message)
