"""Memories that know how scores varied: what is chosen, what is remembered of which item, when."""

from __future__ import annotations

import numpy as np
import pytest
import reference_query_pools as slow
import tensorflow as tf

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.step.masks.known_positives import KnownPositives
from tfrs_negatives.step.miners import Hardest
from tfrs_negatives.step.samplers import InBatch, RobustMemory, Uniform
from tfrs_negatives.step.task import Retrieval

N, USERS, P, H = 60, 40, 16, 5
ITEMS = ItemCatalogue(np.arange(N) + 100)
LOG = Interactions({"user": np.arange(USERS)}, np.full(USERS, 100), query_key="user")


def memory_of(log=LOG, num_proposals=64, **options):
    return RobustMemory(Uniform(ITEMS, num_proposals), ITEMS, log, **{"pool_size": P, **options})


def task_of(memory, **options):
    task = Retrieval(**{"negatives": [memory], "correct": None, **options})
    task.build([None, 1])
    return task


def step_of(task, users, scores, *, positive=2.5, training=True):
    """One step in which the score of each item is a number, the same for all queries."""
    vectors = tf.constant(np.asarray(scores, np.float32)[:, None])
    users = np.asarray(users)
    return task(
        tf.ones([len(users), 1]),
        tf.fill([len(users), 1], np.float32(positive)),
        candidate_ids=np.full(len(users), 100),
        features={"user": tf.constant(users)},
        encode_items=lambda features: tf.gather(vectors, features["item_id"] - 100),
        training=training,
    )


def watched(part, method="sample"):
    """What a part answers from now on."""
    seen, plain = [], getattr(part, method)

    def record(*given):
        seen.append(plain(*given))
        return seen[-1]

    setattr(part, method, record)
    return seen


FALSE_NEGATIVES, HARD = np.arange(1, 7), np.arange(10, 22)


def scores_of_epoch(epoch):
    """Six items of the highest score, always the same; twelve that go up and down below it."""
    rng = np.random.default_rng(epoch)
    scores = rng.uniform(-1.0, 0.0, N)
    scores[FALSE_NEGATIVES] = 2.0
    scores[HARD] = rng.uniform(0.3, 1.9, len(HARD))
    return scores


def share_of_false_negatives(**options):
    memory = memory_of(warmup_epochs=3, temperature=0.5, **options)
    task, seen = task_of(memory), watched(memory)
    for epoch in range(20):
        step_of(task, np.arange(USERS), scores_of_epoch(epoch))
    picked = tf.concat([one.ids for one in seen[8:]], axis=0).numpy() - 100
    return np.isin(picked, FALSE_NEGATIVES).mean()


def test_false_negatives_of_constant_score_are_chosen_less_than_by_the_hardest():
    hardest = Hardest(1)
    task, seen = task_of(Uniform(ITEMS, 64), miners=[hardest]), watched(hardest, "mine")
    for epoch in range(20):
        step_of(task, np.arange(USERS), scores_of_epoch(epoch))
    picked = tf.concat([one.ids for one in seen], axis=0).numpy() - 100
    dynamic = np.isin(picked, FALSE_NEGATIVES).mean()
    assert dynamic > 0.95
    assert share_of_false_negatives() < 0.3
    # It is the spread that does it, not the memory.
    assert share_of_false_negatives(alpha=0.0) > 0.8


@pytest.mark.parametrize(("step", "factor"), [(0, 0.0), (2, 2.0 / 4 * 3.0), (9, 3.0)])
def test_the_choice_is_that_of_the_slow_version(step, factor):
    memory = memory_of(alpha=3.0, warmup_epochs=4)
    task, seen = task_of(memory), watched(memory)
    rng = np.random.default_rng(step)
    past = np.where(rng.random([USERS + 1, P, H]) < 0.4, np.nan, rng.normal(size=[USERS + 1, P, H]))
    memory.scores.assign(past)
    memory.recorded.assign(np.full(USERS + 1, 100))
    scores = rng.normal(size=N)
    task.step.assign(step)
    step_of(task, np.arange(USERS), scores, positive=0.7)
    keys = memory.pool.numpy()
    for user in range(USERS):
        gains = 1 / (1 + np.exp(0.7 - scores[keys[user] - 100]))
        place = slow.robust_pick(gains, past[user], 0.7, factor)
        assert seen[0].ids.numpy()[user].tolist() == [keys[user, place]]


def test_scores_stay_with_their_items():
    memory = memory_of()
    task = task_of(memory)
    for epoch in range(7):
        keys, past = memory.pool.numpy()[:-1].copy(), memory.scores.numpy()[:-1].copy()
        scores = scores_of_epoch(epoch).astype(np.float32)
        step_of(task, np.arange(USERS), scores)
        new_keys, new_past = memory.pool.numpy()[:-1], memory.scores.numpy()[:-1]
        np.testing.assert_array_equal(new_past[..., -1], scores[new_keys - 100])
        for user in range(USERS):
            before = {}
            for key, scored in zip(keys[user], past[user, :, 1:], strict=True):
                before.setdefault(key, []).append(scored.tolist())
            for key, scored in zip(new_keys[user], new_past[user, :, :-1], strict=True):
                known = before.get(key, [[np.nan] * (H - 1)])
                assert any(np.array_equal(scored, one, equal_nan=True) for one in known)
    # Some have been there all the time, and have a score of each of the last epochs.
    assert np.isfinite(new_past).all(axis=2).any()
    # A memory of items that are all different stays so.
    assert all(len(set(keys)) == P for keys in new_keys[:5])


def test_a_memory_is_made_anew_once_an_epoch():
    log = Interactions({"user": np.repeat(np.arange(4), 3)}, np.full(12, 100), query_key="user")
    memory = memory_of(log)
    task = task_of(memory)
    writes = []
    for users in ([0, 1, 0], [0, 2, 3], [1, 0, 2], [3, 3, 0], [3, 0, 9], [1, 0, 0]):
        before = memory.scores.numpy().copy()
        step_of(task, users, scores_of_epoch(0))
        changed = ~np.isclose(memory.scores.numpy(), before, equal_nan=True).all(axis=(1, 2))
        writes.append(np.flatnonzero(changed).tolist())
    # Twelve events are four steps of three; a query that is not known writes nothing.
    assert writes == [[0, 1], [2, 3], [], [], [0, 3], [1]]
    assert memory.recorded.numpy().tolist() == [1, 1, 0, 1, -1]


def test_survivors_are_drawn_by_the_softmax_of_their_scores():
    users = 4000
    log = Interactions({"user": np.arange(users)}, np.full(users, 100), query_key="user")
    items = ItemCatalogue(np.arange(5) + 100)
    memory = RobustMemory(Uniform(items, 30), items, log, pool_size=1, temperature=2.0)
    task = task_of(memory)
    scores = np.array([0.0, 1.0, 2.0, -1.0, 3.0])
    step_of(task, np.arange(users), scores)
    # With 30 proposals of 5 items all are there, each once however often it was drawn.
    times = np.bincount(memory.pool.numpy()[:-1, 0] - 100, minlength=5)
    wanted = users * slow.softmax(scores / 2.0)
    assert ((times - wanted) ** 2 / wanted).sum() < 23.5  # 99.99 % of chi squared, 4 degrees


def test_masks_keep_items_out_of_the_choice_and_the_memories():
    memory = memory_of(masks=[KnownPositives(LOG, ITEMS)], temperature=0.5)
    task, seen = task_of(memory), watched(memory)
    scores = scores_of_epoch(0)
    scores[0] = 9.0  # the item that all queries have
    keys = memory.pool.numpy()
    keys[:, 0] = 100
    memory.pool.assign(keys)
    step_of(task, np.arange(USERS), scores)
    assert not (seen[0].ids.numpy() == 100).any()
    assert not (memory.pool.numpy()[:-1] == 100).any()


def test_scores_that_are_not_finite_choose_and_change_nothing_worse():
    memory = memory_of()
    task, seen = task_of(memory), watched(memory)
    scores = scores_of_epoch(0)
    scores[::2] = np.nan
    step_of(task, np.arange(USERS), scores)
    assert (seen[0].ids.numpy() % 2 == 1).all()
    assert (memory.pool.numpy()[:-1] % 2 == 1).all()


def test_evaluation_changes_nothing():
    memory = memory_of()
    task = task_of(memory)
    before = [v.numpy().copy() for v in memory.variables]
    step_of(task, [0, 1], scores_of_epoch(0), training=False)
    for now, was in zip(memory.variables, before, strict=True):
        np.testing.assert_array_equal(now, was)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"alpha": -1.0}, "alpha"),
        ({"alpha": float("inf")}, "alpha"),
        ({"warmup_epochs": -1}, "warmup_epochs"),
        ({"num_epochs": 1}, "num_epochs"),
        ({"pool_size": 0}, "pool_size"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_bad_arguments(options, argument):
    with pytest.raises(InputError, match=f"`{argument}`"):
        memory_of(**options)


def test_only_draws_of_the_catalogue_are_proposals():
    with pytest.raises(InputError, match="`proposals`"):
        RobustMemory(InBatch(), ITEMS, LOG)
