"""What the frame of a step promises its parts: what they are given, and what is saved of them."""

from __future__ import annotations

import json
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from small_batch import (
    BATCH_IDS,
    CATALOGUE,
    DRAWN,
    NUM_ROWS,
    Drawn,
    exact_frequency,
    run,
)

from tfrs_negatives.core import part as registry
from tfrs_negatives.core.errors import InputError
from tfrs_negatives.core.part import Part, find_part, part, part_names
from tfrs_negatives.step.losses import BPR, SampledSoftmax
from tfrs_negatives.step.masks.keep import AccidentalHits
from tfrs_negatives.step.miners import Hardest, RandomOfTop, SemiHard
from tfrs_negatives.step.records import Loss, Miner, Sampler
from tfrs_negatives.step.samplers import Explicit, InBatch, Weighted
from tfrs_negatives.step.task import Retrieval

NAMED = {"named": tf.constant([[100, 111]] * NUM_ROWS)}


class Seen(Miner):
    """A miner that takes what it is given as it is, and keeps what the step ended with."""

    reads_scores = True

    def mine(self, scored, batch):
        self.given, self.seed = scored, batch.seed
        return scored

    def update(self, batch, scored):
        self.batch, self.ended = batch, scored


class Learner(Loss):
    """A softmax that folds, and keeps what it may learn from."""

    folds = True
    ended = None

    def __call__(self, scored, batch=None):
        return SampledSoftmax()(scored)

    def of_excess(self, shared, own):
        return SampledSoftmax().of_excess(shared, own)

    def update(self, batch, scored):
        self.ended = scored


def mixed(**options):
    negatives = [InBatch(), Drawn(DRAWN), Explicit("named", CATALOGUE)]
    return Retrieval(negatives=negatives, frequency=exact_frequency(), **options)


# ------------------------------------------------------------------ what a part is given


def test_candidates_of_all_kinds_stand_in_one_record():
    seen = Seen()
    run(mixed(miners=[seen], correct="negatives"), features=NAMED)
    given = seen.given
    ids = [*BATCH_IDS[:NUM_ROWS], *(100 + row for row in DRAWN), 100, 111]
    np.testing.assert_array_equal(given.ids, [ids] * NUM_ROWS)
    numbers = [0] * NUM_ROWS + [1] * len(DRAWN) + [2] * 2
    np.testing.assert_array_equal(given.sampler, [numbers] * NUM_ROWS)
    np.testing.assert_array_equal(given.per_row, [number == 2 for number in numbers])
    np.testing.assert_array_equal(given.log_count[:, -2:], np.zeros([NUM_ROWS, 2]))
    # Nothing is weighted, so a logit is its score without its log count.
    np.testing.assert_allclose(given.logit, given.score - given.log_count, rtol=1e-5)


def test_a_part_learns_from_what_was_chosen_not_from_what_was_proposed():
    seen = Seen()
    run(Retrieval(miners=[Hardest(2), seen]), training=True)
    assert seen.ended.ids.shape == (NUM_ROWS, 2)
    for row in range(NUM_ROWS):
        others = np.delete(seen.ended.logit.numpy(), row, axis=0)
        assert others.shape == (NUM_ROWS - 1, 2)
        # The ids are those of the scores: the position of each is found from the batch.
        place = [list(BATCH_IDS[:NUM_ROWS]).index(i) for i in seen.ended.ids[row].numpy()]
        assert set(place) <= set(range(NUM_ROWS))
    assert int(seen.batch.step) == 1


def test_nobody_learns_from_an_evaluation():
    seen = Seen()
    run(Retrieval(miners=[seen]), training=False)
    assert not hasattr(seen, "ended")


def test_what_folds_never_sees_single_scores_unless_it_asks():
    for reads in (False, True):
        loss = Learner()
        loss.reads_scores = reads
        run(Retrieval(loss), training=True)
        np.testing.assert_array_equal(loss.ended.ids, BATCH_IDS[:NUM_ROWS])
        assert (loss.ended.logit is not None) == reads


def test_a_weighted_sampler_learns_as_its_own():
    class Learning(Drawn):
        learned = None

        def update(self, batch, scored):
            self.learned = int(batch.step)

    inner = Learning(DRAWN)
    run(Retrieval(negatives=[Weighted(inner, 0.0)], correct=None), training=True)
    assert inner.learned == 1


def test_two_parts_that_draw_draw_apart():
    first, second = Seen(), Seen()
    run(Retrieval(miners=[first, RandomOfTop(2, 3), second]))
    assert not np.array_equal(first.seed, second.seed)


def test_the_place_of_the_own_positive_is_no_place_to_fill():
    seen = Seen()
    run(Retrieval(miners=[Hardest(100), seen]))
    assert seen.given.keep.shape == (NUM_ROWS, NUM_ROWS - 1)
    assert seen.given.keep.numpy().all()


@pytest.mark.parametrize("loss", [SampledSoftmax(), BPR()])
def test_a_miner_that_judges_each_alone_gives_the_same_in_blocks(loss):
    features, options = NAMED, {"masks": [AccidentalHits()], "miners": [SemiHard(3.0)]}
    in_blocks = run(mixed(loss=loss, **options), features=features)
    options["miners"] = [SemiHard(3.0), Seen()]
    at_once = run(mixed(loss=loss, **options), features=features)
    np.testing.assert_allclose(in_blocks, at_once, rtol=1e-6)


# ------------------------------------------------------------------ what is saved of a part


class Described(Part):
    def __init__(self, ids, *pairs, inner=None, **more):
        self.ids, self.pairs, self.inner, self.more = ids, pairs, inner, more


def test_a_configuration_is_the_arguments_with_their_defaults():
    config = Described(np.array(["a", "bc"]), inner=(1, 2), depth=3).get_config()
    assert json.loads(json.dumps(config)) == {"ids": ["a", "bc"], "inner": [1, 2], "depth": 3}
    assert Described.from_config(config).more == {"depth": 3}


def test_an_id_that_is_named_like_a_class_stays_an_id():
    with tf.keras.utils.custom_object_scope({"bc": Described}):
        assert Described.from_config({"ids": ["a", "bc"]}).ids == ["a", "bc"]


def test_arguments_that_do_not_fit_are_the_constructors_error():
    with pytest.raises(TypeError, match="ids"):
        Described()


def test_a_layer_keeps_the_name_that_it_has_now():
    layer = Weighted(InBatch(), 2.0, name="twice")
    again = Weighted.from_config(layer.get_config())
    assert (again.name, again.weight, type(again.sampler)) == ("twice", 2.0, InBatch)


# ------------------------------------------------------------------ the registry


def test_a_part_is_found_by_its_name_or_where_it_is_defined():
    assert find_part("sampler", "in_batch") is InBatch
    assert find_part("sampler", "tfrs_negatives.step.samplers:InBatch") is InBatch
    assert {"in_batch", "uniform", "cross_batch", "weighted"} <= set(part_names("sampler"))
    with pytest.raises(InputError, match=r"`sampler`: expected .*perhaps `in_batch`"):
        find_part("sampler", "in_btach")
    with pytest.raises(InputError, match="that can be imported"):
        find_part("sampler", "no.such.module:Class")


def test_a_part_of_ones_own_has_a_name():
    with mock.patch.dict(registry._FAMILIES["sampler"]):

        @part("sampler")
        class NewestOfAll(Sampler):
            pass

        assert NewestOfAll.name == "newest_of_all"
        assert find_part("sampler", "newest_of_all") is NewestOfAll


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": [AccidentalHits()]}, "`negatives`.*Sampler"),
        ({"masks": [InBatch()]}, "`masks`.*Mask"),
        ({"miners": [BPR()]}, "`miners`.*Miner"),
        ({"loss": lambda scored: scored.logit}, "`loss`.*Loss"),
        ({"frequency": InBatch()}, "`frequency`.*Frequency"),
    ],
)
def test_a_part_of_another_family_is_an_error(options, message):
    with pytest.raises(InputError, match=message):
        Retrieval(**options)


# ------------------------------------------------------------------ answers that are none


class Odd(Drawn):
    """A sampler with one field of its candidates changed."""

    def __init__(self, **changed):
        super().__init__(DRAWN)
        self.changed = changed

    def sample(self, batch):
        given = super().sample(batch)
        return given._replace(
            **{n: change(getattr(given, n)) for n, change in self.changed.items()}
        )


class Answers(Loss):
    """A loss of another shape."""

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, scored, batch=None):
        return self.answer(scored)


class Zeros(AccidentalHits):
    def keep(self, scored, batch):
        return tf.zeros_like(scored.score)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": [Odd(ids=lambda x: tf.cast(x, tf.int32))]}, "drawn.*ids.*int64.*int32"),
        ({"negatives": [Odd(valid=lambda x: tf.cast(x, tf.float32))]}, "drawn.*valid.*bool"),
        ({"negatives": [Odd(valid=lambda x: x[:-1])]}, "drawn.*valid.*one for each of ids"),
        ({"negatives": [Odd(vectors=lambda x: x[1:])]}, "drawn.*vectors.*one for each of ids"),
        ({"loss": Answers(lambda scored: scored.logit)}, "`loss`.*one number per row"),
        (
            {"loss": Answers(lambda scored: scored.positive_logit[:-1])},
            "`loss`.*one number per row",
        ),
        ({"masks": [Zeros()], "miners": [Hardest(1)]}, "Zeros.keep.*booleans.*float32"),
    ],
)
def test_an_answer_of_another_shape_or_type_names_its_part(options, message):
    with pytest.raises(InputError, match=message):
        run(Retrieval(correct=None, **options), training=False)
