"""The miners against their slow versions, and what their choice must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import reference_hard_negatives as slow
import tensorflow as tf
from small_batch import BATCH_IDS, CATALOGUE, NUM_ROWS, exact_frequency, run

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions
from tfrs_negatives.step.masks.keep import AccidentalHits
from tfrs_negatives.step.masks.known_positives import KnownPositives
from tfrs_negatives.step.miners import Hardest, RandomOfTop, SemiHard, WithinPositiveRadius
from tfrs_negatives.step.records import MorePositives, Scored
from tfrs_negatives.step.samplers import Explicit, InBatch
from tfrs_negatives.step.task import Retrieval

B, C = 7, 9


class Step:
    """As much of a batch as a miner reads."""

    def __init__(self, step=1):
        self.seed = tf.constant([3, step])


def random_logits(seed=0):
    """Scores and logits that rank differently, rows with few columns, and one with none."""
    rng = np.random.default_rng(seed)
    scores, correction = rng.normal(size=(2, B, C)).astype(np.float32)
    keep = rng.random((B, C)) < rng.random((B, 1))
    keep[2] = False
    positive = rng.normal(size=B).astype(np.float32)
    values = [positive - 0.3, scores - 2 * correction, keep, positive, scores]
    return Scored(*(tf.constant(x) for x in values))


@pytest.mark.parametrize("by", ["score", "logit"])
@pytest.mark.parametrize("seed", range(3))
def test_hardest(by, seed):
    logits = random_logits(seed)
    mined = Hardest(3, by=by).mine(logits, None)
    ranked = (logits.score if by == "score" else logits.logit).numpy()
    for i in range(B):
        columns = np.flatnonzero(logits.keep[i])
        best = columns[np.argsort(-ranked[i, columns])][:3]
        for name in ("logit", "score"):
            expected = getattr(logits, name).numpy()[i, best]
            received = getattr(mined, name).numpy()[i][mined.keep[i].numpy()]
            np.testing.assert_array_equal(received, expected)


@pytest.mark.parametrize("by", ["score", "logit"])
def test_semi_hard(by):
    logits = random_logits()
    mined = SemiHard(0.7, by=by).mine(logits, None)
    values = logits.score if by == "score" else logits.logit
    positive = logits.positive_score if by == "score" else logits.positive_logit
    for i in range(B):
        inside = slow.semi_hard(positive[i].numpy(), values[i].numpy(), 0.7)
        expected = [j for j in inside if logits.keep[i, j]]
        assert np.flatnonzero(mined.keep[i]).tolist() == expected
    assert mined.logit is logits.logit


@pytest.mark.parametrize("slack", [0.0, 0.5])
@pytest.mark.parametrize("farthest", ["own", "known"])
@pytest.mark.parametrize("by", ["score", "logit"])
def test_within_positive_radius(by, farthest, slack):
    logits = random_logits()
    rng = np.random.default_rng(5)
    marks = rng.random((B, C)) < 0.2
    others = rng.normal(size=(2, B, C)).astype(np.float32)
    logits = logits._replace(more_positives=MorePositives(tf.constant(marks), *others))
    mined = WithinPositiveRadius(farthest=farthest, slack=slack, by=by).mine(logits, None)
    values = logits.score if by == "score" else logits.logit
    own = logits.positive_score if by == "score" else logits.positive_logit
    more = others[1] if by == "score" else others[0]
    for i in range(B):
        positives = [own[i].numpy(), *(more[i][marks[i]] if farthest == "known" else [])]
        inside = slow.within_radius(positives, values[i].numpy(), slack)
        assert np.flatnonzero(mined.keep[i]).tolist() == [j for j in inside if logits.keep[i, j]]


def test_on_unit_vectors_the_score_form_is_the_rule_of_distances():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3, B, 4))
    queries, positives, negatives = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)
    logits = Scored(
        tf.constant(np.sum(queries * positives, axis=1)),
        tf.constant(queries @ negatives.T),
        tf.ones([B, B], tf.bool),
    )
    keep = WithinPositiveRadius().mine(logits, None).keep.numpy()
    for i in range(B):
        expected = slow.radius_of_distances(queries[i], [positives[i]], negatives)
        assert np.flatnonzero(keep[i]).tolist() == expected


# ------------------------------------------------------------------ random of top


def test_random_of_top_takes_k_of_the_n_hardest():
    logits = random_logits()
    shortlist = Hardest(5).mine(logits, None)
    for step in range(20):
        mined = RandomOfTop(2, 5).mine(logits, Step(step))
        for i in range(B):
            chosen = mined.logit[i].numpy()[mined.keep[i].numpy()]
            candidates = shortlist.logit[i].numpy()[shortlist.keep[i].numpy()]
            assert len(set(chosen)) == min(2, len(candidates))
            assert set(chosen) <= set(candidates)


def test_random_of_top_takes_each_alike():
    logits = Scored(
        tf.zeros([50]), tf.tile([[3.0, 2.0, 1.0, 0.0]], [50, 1]), tf.fill([50, 4], True)
    )
    draws = [RandomOfTop(1, 3).mine(logits, Step(step)).logit for step in range(60)]
    values, counts = np.unique(np.stack(draws), return_counts=True)
    assert values.tolist() == [1.0, 2.0, 3.0]
    # 1,000 of 3,000 each, standard deviation 26.
    assert (np.abs(counts - 1000) < 130).all()


def test_random_of_top_differs_by_row_and_step_and_repeats():
    logits = Scored(tf.zeros([50]), tf.tile([[3.0, 2.0, 1.0]], [50, 1]), tf.fill([50, 3], True))
    first, second = (RandomOfTop(1, 3).mine(logits, Step(step)).logit for step in (1, 2))
    assert len(np.unique(first)) == 3
    assert (first != second).numpy().any()
    np.testing.assert_array_equal(RandomOfTop(1, 3).mine(logits, Step(1)).logit, first)


# ------------------------------------------------------------------ in a task


class Look(Hardest):
    """Keeps the logits that it is given."""

    def mine(self, scored, batch):
        self.logits = scored
        return super().mine(scored, batch)


def logits_given(call=None, **options):
    """What a miner of a task with these options gets on the small batch; row i is user i."""
    look = Look(1)
    features = {"user": tf.range(NUM_ROWS), "named": tf.fill([NUM_ROWS, 2], 101)}
    run(Retrieval(miners=[look], **options), features=features, **(call or {}))
    return look.logits


def test_miners_apply_one_after_the_other():
    logits = random_logits()
    both = Hardest(2).mine(SemiHard(1.0).mine(logits, None), None)
    for i in range(B):
        inside = slow.semi_hard(logits.positive_score[i], logits.score[i].numpy(), 1.0)
        columns = [j for j in inside if logits.keep[i, j]]
        expected = sorted((float(logits.logit[i, j]) for j in columns), reverse=True)[:2]
        assert both.logit[i].numpy()[both.keep[i].numpy()].tolist() == expected


def test_the_logs_have_the_share_of_rows_without_any_negative():
    task = Retrieval(miners=[SemiHard(1e-9)])
    run(task, training=True)
    assert float(task.report.empty_rows.result()) == 1.0
    some = Retrieval(miners=[Hardest(1)])
    run(some, training=True)
    assert float(some.report.empty_rows.result()) == 0.0
    assert Retrieval().report.empty_rows is None


def test_the_scores_are_those_before_the_correction():
    corrected = logits_given(frequency=exact_frequency())
    plain = logits_given(correct=None)
    np.testing.assert_allclose(corrected.score, plain.logit, rtol=1e-6)
    np.testing.assert_allclose(corrected.positive_score, plain.positive_logit, rtol=1e-6)
    assert not np.allclose(corrected.logit, corrected.score)


@pytest.mark.parametrize("correct", ["both", "negatives"])
def test_other_positives_are_marked_once_and_corrected_as_positives(correct):
    # Rows 0 and 2 hold item 103. Row 0 knows 101 and 107, of rows 1 and 3; extra row 5 is a copy.
    log = Interactions(
        {"user": np.array([0, 0, 0, 4])}, np.array([103, 101, 107, 110]), query_key="user"
    )
    logits = logits_given(
        {"num_items": len(BATCH_IDS)},
        masks=[KnownPositives(log, CATALOGUE)],
        frequency=exact_frequency(),
        correct=correct,
    )
    more = logits.more_positives
    expected = np.zeros((NUM_ROWS, len(BATCH_IDS)), bool)
    expected[0, [1, 3]] = True
    np.testing.assert_array_equal(more.marks, expected)
    np.testing.assert_array_equal(more.score, logits.score)
    wanted = logits.logit if correct == "both" else logits.score
    np.testing.assert_array_equal(more.logit, wanted)


def test_copies_of_another_positive_count_once():
    # Item 103 is in columns 0, 2 and 5; row 1 has chosen it.
    log = Interactions({"user": np.array([1])}, np.array([103]), query_key="user")
    masks = [AccidentalHits(), KnownPositives(log, CATALOGUE)]
    logits = logits_given({"num_items": len(BATCH_IDS)}, masks=masks)
    assert np.argwhere(logits.more_positives.marks).tolist() == [[1, 0]]


def test_columns_of_single_rows_are_never_positives():
    # Row 0 has chosen 101, which is in the batch and is named as its negative as well.
    log = Interactions({"user": np.array([0])}, np.array([101]), query_key="user")
    logits = logits_given(
        negatives=[InBatch(), Explicit("named", CATALOGUE)],
        masks=[KnownPositives(log, CATALOGUE)],
        correct=None,
    )
    marks = logits.more_positives.marks
    assert marks.shape == (NUM_ROWS, NUM_ROWS)
    assert np.argwhere(marks).tolist() == [[0, 1]]


def test_without_a_mask_that_names_positives_none_are_marked():
    assert logits_given().more_positives is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Hardest(0), "`k`: expected at least 1. Received: 0"),
        (lambda: Hardest(1, by="x"), "`by`: expected one of ['logit', 'score']. Received: 'x'"),
        (lambda: RandomOfTop(3, 2), "`n`: expected at least k, 3. Received: 2"),
        (lambda: RandomOfTop(0, 2), "`k`: expected at least 1. Received: 0"),
        (lambda: SemiHard(0), "`margin`: expected a positive number. Received: 0"),
        (lambda: WithinPositiveRadius(slack=-1), "`slack`: expected at least 0. Received: -1"),
        (
            lambda: WithinPositiveRadius(farthest="all"),
            "`farthest`: expected 'own' or 'known'. Received: 'all'",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value) == message
