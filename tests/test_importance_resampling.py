"""Resampled candidates, and the cache of what was resampled, against slow versions and limits."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import reference_importance_resampling as slow
import tensorflow as tf

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.model.two_tower import TwoTower
from tfrs_negatives.step.frequency import ExactFrequency
from tfrs_negatives.step.losses import DecoupledSoftmax, SampledSoftmax
from tfrs_negatives.step.masks.keep import AccidentalHits
from tfrs_negatives.step.miners import Hardest, Resample
from tfrs_negatives.step.records import Candidates, MorePositives, Sampler, Scored
from tfrs_negatives.step.samplers import IdCache, InBatch, Uniform, Weighted
from tfrs_negatives.step.task import Retrieval

N = 20
RNG = np.random.default_rng(7)
SCORES = RNG.normal(size=N).astype(np.float32)
LOG_COUNTS = RNG.normal(size=N).astype(np.float32)
POSITIVE = 1.3
# The 1 - 1e-4 quantile of chi-square with 19 degrees of freedom.
UNLIKELY = 52.0


class Step:
    """As much of a batch as these parts read."""

    def __init__(self, step=1):
        self.seed = tf.constant([3, step])


def pool(rows, *, keep=None, scores=SCORES, log_counts=LOG_COUNTS):
    """The same candidates in every row: so rows are draws of one law."""
    score = tf.tile(tf.constant(scores)[None], [rows, 1])
    keep = np.ones(len(scores), bool) if keep is None else keep
    positive = tf.fill([rows], POSITIVE)
    return Scored(
        positive,
        score - tf.constant(log_counts),
        tf.constant(np.tile(keep, [rows, 1])),
        positive,
        score,
        tf.range(len(scores), dtype=tf.int64),
        log_count=tf.constant(log_counts),
    )


def drawn_items(scored, num, step=1):
    return Resample(num).mine(scored, Step(step)).ids.numpy()


# ------------------------------------------------------------------ what is drawn


def test_draws_follow_the_softmax_over_corrected_logits():
    counts = np.bincount(drawn_items(pool(200), 100).ravel(), minlength=N)
    expected = 20_000 * np.array(slow.law(SCORES, LOG_COUNTS))
    assert ((counts - expected) ** 2 / expected).sum() < UNLIKELY


def test_what_is_masked_is_never_drawn():
    keep = np.arange(N) % 3 > 0
    counts = np.bincount(drawn_items(pool(200, keep=keep), 100).ravel(), minlength=N)
    assert (counts[~keep] == 0).all()
    expected = 20_000 * np.array(slow.law(SCORES[keep], LOG_COUNTS[keep]))
    assert ((counts[keep] - expected) ** 2 / expected).sum() < UNLIKELY


def test_draws_differ_by_row_and_step_and_repeat():
    first = drawn_items(pool(30), 8)
    assert len({tuple(row) for row in first}) == 30
    assert (first != drawn_items(pool(30), 8, step=2)).any()
    np.testing.assert_array_equal(first, drawn_items(pool(30), 8))


def test_a_row_with_nothing_left_stays_empty_and_extremes_are_drawn():
    keep = tf.constant([[False, False], [True, True], [False, True]])
    logit = tf.constant([[0.0, 9.0], [1e37, -1e37], [1e37, -1e37]])
    mined = Resample(5).mine(Scored(tf.zeros([3]), logit, keep), Step())
    np.testing.assert_array_equal(mined.keep, [[False] * 5, [True] * 5, [True] * 5])
    np.testing.assert_allclose(mined.logit[1:], [[1e37] * 5, [-1e37] * 5])


@pytest.mark.parametrize(("batch", "most"), [(64, 1.7), (512, 0.65), (4096, 0.23), (32768, 0.09)])
def test_the_law_tends_to_the_softmax_as_the_batch_grows(batch, most):
    rng, items = np.random.default_rng(1), 200
    scores = rng.normal(size=items)
    q = rng.permutation(1 / np.sqrt(np.arange(1, items + 1)))
    q /= q.sum()
    in_batch = rng.choice(items, batch, p=q)
    scored = pool(
        1,
        scores=scores[in_batch].astype(np.float32),
        log_counts=np.log(batch * q[in_batch]).astype(np.float32),
    )
    places = drawn_items(scored, 400_000)[0]
    law = np.bincount(in_batch[places], minlength=items) / len(places)
    # It falls with the root of the batch; that of the draws themselves is about .02.
    assert np.abs(law - reference.full_softmax(scores)).sum() < most


# ------------------------------------------------------------------ what it is worth


def gradients(scored, miner, loss=None):
    """The loss of each row, and the mean over rows of its gradient in positive and candidates."""
    score = scored.score[0]
    with tf.GradientTape() as tape:
        positive = tf.constant(POSITIVE)
        tape.watch([positive, score])
        moved = scored._replace(
            positive_logit=scored.positive_logit + (positive - POSITIVE),
            positive_score=scored.positive_score + (positive - POSITIVE),
            logit=scored.logit + (score - scored.score),
            score=score + tf.zeros_like(scored.score),
        )
        losses = (loss or SampledSoftmax())(miner.mine(moved, Step()) if miner else moved)
        mean = tf.reduce_mean(losses)
    return losses, [g.numpy() for g in tape.gradient(mean, [positive, score])]


def test_reused_scores_have_the_closed_form_as_draws_grow():
    mined = Resample(200_000).mine(pool(1), Step())
    expected = slow.limit_of_reuse(POSITIVE, SCORES, LOG_COUNTS, 200_000)
    # The standard error of the sum is .3 %.
    assert float(SampledSoftmax()(mined)[0]) == pytest.approx(expected, abs=0.01)


def test_reused_scores_weigh_negatives_by_twice_their_score():
    _, (_, received) = gradients(pool(20), Resample(20_000))
    law = np.array(slow.law(2 * SCORES, LOG_COUNTS))
    assert np.abs(received / received.sum() - law).sum() < 0.02
    assert np.abs(law - np.array(slow.law(SCORES, LOG_COUNTS))).sum() > 0.3


def test_equal_weights_have_the_value_of_the_whole_pool():
    losses, _ = gradients(pool(50), Resample(7, reuse_scores=False))
    expected = slow.log_sum([POSITIVE, *(SCORES - LOG_COUNTS)]) - POSITIVE
    np.testing.assert_allclose(losses, np.full(50, expected), rtol=1e-6)


def test_equal_weights_have_the_mean_gradient_of_the_softmax():
    _, (positive, received) = gradients(pool(2_000), Resample(512, reuse_scores=False))
    wanted, expected = slow.linear_gradient(POSITIVE, SCORES, LOG_COUNTS)
    # A million draws: the standard error of a share of .2 is .0004.
    assert positive == pytest.approx(wanted, abs=1e-6)
    np.testing.assert_allclose(received, expected, atol=2e-3)
    # Which is what the whole pool has.
    _, (_, whole) = gradients(pool(1), None)
    np.testing.assert_allclose(whole, expected, rtol=1e-5)


def test_more_positives_have_scores_where_the_positive_has():
    scored = pool(2)
    marks = tf.constant(np.tile(np.arange(N) == 4, [2, 1]))
    scored = scored._replace(more_positives=MorePositives(marks, scored.logit, scored.score))
    mined = Resample(6).mine(scored, Step())
    row = mined.score[0].numpy().tolist()
    expected = reference_decoupled([POSITIVE, SCORES[4]], row)
    assert float(DecoupledSoftmax()(mined)[0]) == pytest.approx(expected, rel=1e-5)


def reference_decoupled(positives, negatives):
    losses = [slow.log_sum([p, *negatives]) - p for p in positives]
    return sum(losses) / len(losses)


# ------------------------------------------------------------------ the cache

ITEMS, D, ROWS = 12, 5, 6
CATALOGUE = ItemCatalogue(np.arange(ITEMS) + 100)
CORPUS = RNG.normal(size=(ITEMS, D)).astype(np.float32)
QUERIES = RNG.normal(size=(ROWS, D)).astype(np.float32)
Q = 1 / np.arange(1.0, ITEMS + 1)
Q /= Q.sum()


class Proposed(Sampler):
    """As many candidates of an item as its log count says: `InBatch` without its own rows."""

    name = "proposed"

    def __init__(self, rows):
        self.rows = rows

    def sample(self, batch):
        rows = tf.convert_to_tensor(self.rows)
        return Candidates(CATALOGUE.keys_at(rows), tf.gather(CORPUS, rows), rows >= 0)

    def log_count(self, ids, batch):
        return tf.gather(np.log(len(Q) * Q).astype(np.float32), ids - 100)


def call(task, rows=None, **options):
    rows = np.arange(ROWS) if rows is None else rows
    return task(
        tf.constant(QUERIES),
        tf.gather(CORPUS, rows),
        candidate_ids=tf.convert_to_tensor(rows) + 100,
        encode_items=lambda features: tf.gather(CORPUS, features["item_id"] - 100),
        **{"training": True, **options},
    )


def cache(num=16, **options):
    made = IdCache(CATALOGUE, num, **options)
    made.build([None, D])
    return made


def test_a_cache_begins_as_uniform_draws():
    ids = tf.constant([100, 111, 5, EMPTY_ID], tf.int64)
    expected = Uniform(CATALOGUE, 16).log_count(ids, None)
    np.testing.assert_allclose(cache().log_count(ids, None), expected, rtol=1e-6)


def test_the_log_count_is_that_of_the_draws():
    made = cache(num=24_000)
    made.counts.assign(np.where(np.arange(ITEMS) == 3, 0.0, Q * 40))
    rows = made.draw(tf.constant(np.random.default_rng(2).random(24_000)))
    counts = np.bincount(rows, minlength=ITEMS)
    expected = np.exp(made.log_count(CATALOGUE.keys_at(np.arange(ITEMS)), None))
    assert counts[3] == expected[3] == 0
    some = expected > 0
    assert expected.sum() == pytest.approx(24_000, rel=1e-5)
    assert ((counts - expected)[some] ** 2 / expected[some]).sum() < 42.0  # 10 degrees of freedom


def test_counted_is_what_the_miners_left():
    made = cache(decay=0.5)
    ids = tf.constant([[103, 103, 101], [103, 7, EMPTY_ID]], tf.int64)
    keep = tf.constant([[True, True, False], [True, True, True]])
    made.update(None, Scored(tf.zeros([2]), tf.zeros([2, 3]), keep, ids=ids))
    expected = np.full(ITEMS, 0.5)
    expected[3] += 3
    np.testing.assert_array_equal(made.counts, expected)
    # Candidates that all rows share, and then none at all.
    shared = Scored(tf.zeros([2]), tf.zeros([2, 3]), keep, ids=ids[0])
    made.update(None, shared)
    expected *= 0.5
    expected[[3, 1]] += [4, 1]
    np.testing.assert_array_equal(made.counts, expected)
    made.update(None, shared._replace(keep=tf.zeros_like(keep)))
    np.testing.assert_array_equal(made.counts, expected)


def test_the_law_of_the_cache_is_that_of_a_simulation():
    proposed = Proposed(tf.Variable(tf.zeros([ITEMS], tf.int32)))
    made = IdCache(CATALOGUE, 16, decay=0.9)
    task = Retrieval(negatives=[proposed, made], miners=[Resample(64)], correct="negatives", seed=5)
    step = tf.function(lambda: call(task), autograph=False)
    rng, shares = np.random.default_rng(3), []
    for _ in range(200):
        proposed.rows.assign(rng.choice(ITEMS, ITEMS, p=Q))
        step()
        shares.append(made.counts.numpy() / made.counts.numpy().sum())
    scores = QUERIES @ CORPUS.T
    settings = {"cached": 16, "draws": 64, "decay": 0.9, "steps": 200, "seed": 4}
    simulated = slow.simulate_cache(scores, Q, batch=ITEMS, **settings)
    received, expected = (np.mean(x[20:], axis=0) for x in (shares, simulated))
    assert np.abs(received - expected).sum() < 0.06
    # What it tends to is the mean of the rows' softmax over the catalogue.
    softmax = np.mean([reference.full_softmax(row) for row in scores], axis=0)
    assert np.abs(received - softmax).sum() < 0.06
    assert np.abs(softmax - 1 / ITEMS).sum() > 0.5


def test_cached_items_are_encoded_with_gradient():
    task = Retrieval(negatives=[IdCache(CATALOGUE, 16)], miners=[Resample(8)], correct=None)
    corpus = tf.Variable(CORPUS)
    with tf.GradientTape() as tape:
        loss = task(
            QUERIES,
            CORPUS[:ROWS],
            candidate_ids=np.arange(ROWS) + 100,
            encode_items=lambda features: tf.gather(corpus, features["item_id"] - 100),
            training=True,
        )
    gradient = tf.convert_to_tensor(tape.gradient(loss, corpus))
    assert float(tf.reduce_max(tf.abs(gradient))) > 0


def test_in_evaluation_a_cache_stays_as_it_is():
    made = IdCache(CATALOGUE, 16)
    task = Retrieval(negatives=[made], miners=[Resample(8)], correct=None)
    call(task, training=False)
    np.testing.assert_array_equal(made.counts, np.ones(ITEMS))
    call(task)
    assert made.counts.numpy().max() > 1


def test_resampled_ids_are_those_of_the_scores():
    class Look(Hardest):
        def mine(self, scored, batch):
            self.scored = scored
            return super().mine(scored, batch)

    look = Look(1)
    task = Retrieval(
        negatives=[InBatch(), IdCache(CATALOGUE, 16)],
        miners=[Resample(9), look],
        frequency=ExactFrequency(CATALOGUE.ids, Q * 1e6),
        masks=[AccidentalHits()],
        correct="negatives",
    )
    call(task)
    scores = QUERIES @ CORPUS.T
    ids = look.scored.ids.numpy() - 100
    np.testing.assert_allclose(
        look.scored.logit, np.take_along_axis(scores, ids, axis=1), rtol=1e-4, atol=1e-5
    )
    assert (ids != np.arange(ROWS)[:, None]).all()


def test_a_saved_model_goes_on_with_its_cache(tmp_path):
    def tower(name, size, first):
        ids = tf.keras.Input((), name=name, dtype=tf.int64)
        return tf.keras.Model({name: ids}, tf.keras.layers.Embedding(size, D)(ids - first))

    task = Retrieval(
        negatives=[InBatch(), Weighted(IdCache(CATALOGUE, 8), 0.5)],
        miners=[Resample(4)],
        frequency=ExactFrequency(CATALOGUE.ids, Q * 1e6),
        correct="negatives",
    )
    model = TwoTower(tower("user", 9, 0), tower("item_id", ITEMS, 100), CATALOGUE, task)
    model.compile(tf.keras.optimizers.SGD(0.1))
    rng = np.random.default_rng(0)
    columns = {"user": rng.integers(0, 9, 24), "item_id": rng.integers(0, ITEMS, 24) + 100}
    data = tf.data.Dataset.from_tensor_slices(columns).batch(6)
    model.fit(data, verbose=0)
    model.save(tmp_path / "model.keras")
    again = tf.keras.models.load_model(tmp_path / "model.keras")
    (cache,) = [s.sampler for s in again.task.negatives if s.name == "id_cache"]
    assert cache.counts.numpy().max() > 1
    expected, received = (m.fit(data, verbose=0).history["loss"] for m in (model, again))
    assert received == expected
    for one, other in zip(again.variables, model.variables, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Resample(0), "`num`: expected at least 1. Received: 0"),
        (lambda: IdCache(CATALOGUE, 0), "`num_negatives`: expected at least 1. Received: 0"),
        (
            lambda: IdCache(CATALOGUE, 1, decay=1.5),
            "`decay`: expected a number in [0, 1]. Received: 1.5",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value) == message
