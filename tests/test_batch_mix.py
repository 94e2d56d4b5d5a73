"""Mixed negatives against mixtures of the vectors, and what they must leave as it was."""

from __future__ import annotations

import numpy as np
import pytest
import reference_batch_mix as slow
import tensorflow as tf
from small_batch import BATCH_IDS, CATALOGUE, NUM_ROWS, QUERIES, exact_frequency, pool_of, run

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.step.losses import EasyHardMixture
from tfrs_negatives.step.masks.keep import AccidentalHits
from tfrs_negatives.step.miners import BatchMix, Hardest
from tfrs_negatives.step.records import Scored
from tfrs_negatives.step.samplers import CrossBatch, Explicit, InBatch
from tfrs_negatives.step.task import Retrieval

NUM = len(BATCH_IDS)
VECTORS = np.array([column.vector for column in pool_of(NUM)])


class Look(BatchMix):
    """Keeps what it was given, its weights and what it made."""

    def mine(self, scored, batch):
        self.given, self.made = scored, super().mine(scored, batch)
        self.w = self.weights(scored._replace(per_row=tf.convert_to_tensor(scored.per_row)), batch)
        return self.made


def mixed(num=8, temperature=1.0, call=None, **options):
    look = Look(num, temperature=temperature)
    options = {"frequency": exact_frequency(), **options}
    run(Retrieval(miners=[look], **options), **{"num_items": NUM, **(call or {})})
    return look


def mixtures(look):
    """The scores and ids of what was added."""
    return look.made.score[:, look.given.logit.shape[1] :].numpy()


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_weights_are_a_softmax_that_favours_rare_items(temperature):
    look = mixed(500, temperature)
    np.testing.assert_allclose(tf.reduce_sum(look.w, axis=1), np.ones(500), rtol=1e-5)
    # Undone, the temperature and the counts leave numbers of [0, 1) up to a constant of the row.
    draws = temperature * np.log(look.w.numpy()) + look.given.log_count.numpy()
    assert np.ptp(draws, axis=1).max() <= 1
    draws -= draws.min(axis=1, keepdims=True)
    assert np.ptp(draws, axis=1).mean() > 0.7
    for row, received in zip(draws[:5], look.w.numpy()[:5], strict=True):
        expected = slow.weights(row, look.given.log_count.numpy(), temperature)
        np.testing.assert_allclose(received, expected, rtol=1e-4)


def test_the_score_of_a_mixture_is_that_of_the_mixed_vector():
    look = mixed()
    everything = look.given._replace(keep=tf.ones_like(look.given.keep))
    look.mine(everything, batch_of(1))
    expected = QUERIES @ (look.w.numpy() @ VECTORS).T
    np.testing.assert_allclose(mixtures(look), expected, atol=1e-6)


def batch_of(step):
    class Step:
        seed, several_vectors = tf.constant([0, step]), False

    return Step


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_what_a_row_may_not_have_is_left_out_of_its_mixtures(temperature):
    look = mixed(temperature=temperature, masks=[AccidentalHits()])
    keep = look.given.keep.numpy()
    assert (~keep).sum() == NUM_ROWS + 4  # item 103: two rows, each with two copies
    for i in range(NUM_ROWS):
        expected = slow.mixed_scores(QUERIES[i], VECTORS, keep[i], look.w.numpy())
        np.testing.assert_allclose(mixtures(look)[i], expected, rtol=1e-4, atol=1e-5)


def test_the_coldest_weights_pick_the_rarest():
    # Counts a factor of a hundred apart, so that no number of [0, 1) turns the order.
    log_count = tf.constant([3.0, -8.0, 8.0, 0.0])
    scored = Scored(
        tf.zeros([1]), tf.constant([[1.0, 2.0, 3.0, 4.0]]), tf.ones([1, 4], tf.bool),
        log_count=log_count,
    )  # fmt: skip
    for temperature in (1e-4, 1e-30):
        weights = BatchMix(50, temperature=temperature).weights(scored, batch_of(1))
        np.testing.assert_allclose(weights, np.tile([0, 1, 0, 0], [50, 1]), rtol=1e-6)
    # And where the rarest is the row's own, the next one.
    own = scored._replace(keep=tf.constant([[True, False, True, True]]))
    made = BatchMix(5, temperature=0.2).mine(own, batch_of(1))
    np.testing.assert_allclose(made.logit[0, 4:], [4.0] * 5, rtol=1e-5)


def gradient(task):
    inputs = [tf.constant(x, tf.float32) for x in (QUERIES, VECTORS)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        loss = task(*inputs, candidate_ids=BATCH_IDS, training=False)
    return loss, tape.gradient(loss, inputs)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_loss_is_that_of_batch_and_mixtures_with_their_shares(share):
    def task(miners, loss):
        return Retrieval(loss, miners=miners, frequency=exact_frequency(), reduction="mean")

    look = Look(6)
    loss, received = gradient(task([look], EasyHardMixture(share)))
    batch, expected = gradient(task([], None))
    if share == 0:
        assert float(loss) == pytest.approx(float(batch), rel=1e-6)
        for one, other in zip(received, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
        return
    # The loss of the mixtures by mixed vectors, with a gradient of its own.
    inputs = [tf.constant(x, tf.float32) for x in (QUERIES, VECTORS)]
    mass = tf.cast(look.given.keep, tf.float32)[:, None, :] * look.w
    mass /= tf.reduce_sum(mass, axis=2, keepdims=True)
    undo = look.given.positive_logit - look.given.positive_score
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        vectors = tf.einsum("bkc,cd->bkd", mass, inputs[1])
        logits = tf.einsum("bd,bkd->bk", inputs[0], vectors)
        positive = tf.reduce_sum(inputs[0] * inputs[1][:NUM_ROWS], axis=1) + undo
        losses = tf.reduce_logsumexp(tf.concat([positive[:, None], logits], 1), 1) - positive
        mixed_loss = tf.reduce_mean(losses)
    of_mixtures = tape.gradient(mixed_loss, inputs)
    assert float(loss) == pytest.approx(0.7 * float(batch) + 0.3 * float(mixed_loss), rel=1e-5)
    for one, other, third in zip(received, expected, of_mixtures, strict=True):
        np.testing.assert_allclose(one, 0.7 * other + 0.3 * third, rtol=1e-4, atol=1e-6)


def test_a_mixture_has_no_id_and_no_count():
    look = mixed(3)
    for name, value in {"ids": EMPTY_ID, "sampler": -1, "log_count": 0, "own_rows": -1}.items():
        field = np.broadcast_to(getattr(look.made, name), look.made.logit.shape)
        assert (field[:, NUM:] == value).all()
        assert (field[:, :NUM] != value).any()
    np.testing.assert_array_equal(look.made.per_row, [False] * NUM + [True] * 3)
    np.testing.assert_array_equal(look.made.logit[:, NUM:], look.made.score[:, NUM:])


def test_candidates_of_single_rows_are_in_no_mixture():
    features = {"named": tf.tile([[101, 107, 111]], [NUM_ROWS, 1])}
    negatives = [InBatch(), Explicit("named", CATALOGUE)]
    look = mixed(call={"features": features}, negatives=negatives)
    assert look.w.shape == (8, NUM + 3)
    np.testing.assert_array_equal(look.w[:, NUM:], np.zeros([8, 3]))
    keep = look.given.keep.numpy()[:, :NUM]
    for i in range(NUM_ROWS):
        expected = slow.mixed_scores(QUERIES[i], VECTORS, keep[i], look.w.numpy()[:, :NUM])
        np.testing.assert_allclose(mixtures(look)[i], expected, rtol=1e-4, atol=1e-5)


def test_where_no_candidate_is_shared_nothing_is_mixed():
    features = {"named": tf.tile([[101, 107, 111]], [NUM_ROWS, 1])}
    look = mixed(call={"features": features}, negatives=[Explicit("named", CATALOGUE)])
    assert not look.made.keep[:, 3:].numpy().any()


def test_an_empty_bank_is_in_no_mixture():
    look = mixed(negatives=[InBatch(), CrossBatch(9)], correct=None, frequency=None)
    for i in range(NUM_ROWS):
        keep = look.given.keep[i].numpy()
        assert not keep[NUM:].any()
        bank = np.zeros([9, VECTORS.shape[1]])
        vectors = np.concatenate([VECTORS, bank])
        expected = slow.mixed_scores(QUERIES[i], vectors, keep, look.w.numpy())
        np.testing.assert_allclose(mixtures(look)[i], expected, rtol=1e-4, atol=1e-5)


def test_mixtures_differ_by_step():
    first, other = (BatchMix(4).weights(mixed().given, batch_of(step)) for step in (1, 2))
    assert (first != other).numpy().any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BatchMix(0), "`num`: expected at least 1. Received: 0"),
        (lambda: BatchMix(1, temperature=0), "`temperature`: expected a positive number. "),
        (
            lambda: run(Retrieval(miners=[Hardest(2), BatchMix(1)])),
            "`miners`: expected `batch_mix` before miners that choose, ",
        ),
        (
            lambda: mixed(call={"queries": np.stack([QUERIES, QUERIES], axis=1)}),
            "`queries`: expected one vector per query, [B, D]. ",
        ),
    ],
)
def test_what_it_refuses(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value).startswith(message)
