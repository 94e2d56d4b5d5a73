"""A policy that learns which negatives to choose: its gradient, its rewards, and exposures."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import reference_query_pools as slow
import tensorflow as tf

import tfrs_negatives as tfn
from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.step.masks.known_positives import KnownPositives
from tfrs_negatives.step.samplers import InBatch, Reinforced
from tfrs_negatives.step.samplers.reinforced import policy_gradient
from tfrs_negatives.step.task import Retrieval

N, USERS = 24, 6
ITEMS = ItemCatalogue(np.arange(N) + 100)
LOG = Interactions({"user": np.arange(USERS)}, np.full(USERS, 100), query_key="user")
# Each user was shown three items of its own and chose none of them.
SHOWN = np.arange(USERS * 3).reshape(USERS, 3) + 104


def task_of(sampler, **options):
    task = Retrieval(**{"negatives": [sampler], "correct": None, **options})
    task.build([None, 1])
    return task


def step_of(task, users, scores=None, *, shown=SHOWN, training=True, steps=1):
    """Steps in which the score of each item is a number, the same for all queries."""
    users = np.asarray(users)
    scores = np.zeros(N) if scores is None else scores
    vectors = tf.constant(np.asarray(scores, np.float32)[:, None])
    shown = shown if isinstance(shown, tf.RaggedTensor) else shown[users % USERS]

    def step():
        return task(
            tf.ones([len(users), 1]),
            tf.fill([len(users), 1], 0.5),
            candidate_ids=np.full(len(users), 100),
            features={"user": tf.constant(users), "shown": shown},
            encode_items=lambda features: tf.gather(vectors, features["item_id"] - 100),
            training=training,
        )

    step = tf.function(step) if steps > 10 else step
    for _ in range(steps):
        step()


def watched(part, method):
    """What a part answers from now on."""
    seen, plain = [], getattr(part, method)

    def record(*given):
        seen.append(plain(*given))
        return seen[-1]

    setattr(part, method, record)
    return seen


def shares_of(sampler, task, users, num=40, **given):
    """How often each item is chosen for each user."""
    seen, plain = [], sampler.sample
    sampler.sample = lambda batch: seen.append(plain(batch)) or seen[-1]
    step_of(task, np.tile(users, num), training=False, **given)
    sampler.sample = plain
    return seen[0].ids.numpy()[:, 0].reshape(num, -1) - 100


# ------------------------------------------------------------------ the gradient


def test_the_mean_gradient_is_the_exact_sum_over_all_candidates():
    rng = np.random.default_rng(0)
    logits, advantages = rng.normal(size=30), rng.normal(size=30)
    policy = slow.softmax(logits)
    every = policy_gradient(
        tf.constant(np.tile(policy, (30, 1)), tf.float32),
        tf.range(30),
        tf.constant(advantages, tf.float32),
    )
    mean = policy @ every.numpy()
    np.testing.assert_allclose(mean, slow.expected_gradient(policy, advantages), atol=1e-6)
    # And that is the gradient of minus the expected advantage.
    shifted = [logits + 1e-6 * sign * np.eye(30) for sign in (1, -1)]
    values = [np.array([-slow.softmax(row) @ advantages for row in rows]) for rows in shifted]
    np.testing.assert_allclose(mean, (values[0] - values[1]) / 2e-6, atol=1e-6)


def test_choices_follow_the_policy():
    sampler = Reinforced(ITEMS, LOG, num_candidates=5, width=3)
    task = task_of(sampler)
    rng = np.random.default_rng(1)
    sampler.query_vectors.assign(rng.normal(size=sampler.query_vectors.shape))
    sampler.item_vectors.assign(rng.normal(size=sampler.item_vectors.shape))
    seen = watched(sampler, "_draw")
    step_of(task, np.tile(np.arange(USERS), 700), training=False)
    drawn = seen[0]
    queries, items = sampler.query_vectors.numpy(), sampler.item_vectors.numpy()
    scores = np.einsum("bd,bnd->bn", queries[drawn.queries], items[drawn.rows])
    expected = np.array(
        [
            slow.softmax(np.where(row == 0, -np.inf, score))  # item 0 is everybody's positive
            for row, score in zip(drawn.rows.numpy(), scores, strict=True)
        ]
    )
    np.testing.assert_allclose(drawn.policy, expected, atol=1e-5)
    chosen = tf.one_hot(drawn.chosen[:, 0], 5).numpy()
    wanted = expected.sum(axis=0)
    assert ((chosen.sum(axis=0) - wanted) ** 2 / wanted).sum() < 23.5
    # And row by row: what was chosen has the probability that it should have, on average.
    surprise = (chosen * expected).sum(axis=1) - (expected**2).sum(axis=1)
    assert abs(surprise.mean()) < 3.9 * surprise.std() / np.sqrt(len(surprise))


def test_a_step_is_that_of_the_slow_version():
    sampler = Reinforced(ITEMS, LOG, exposed="shown", num_candidates=6, width=3, alpha=2.0)
    task = task_of(sampler)
    seen = watched(sampler, "_draw")
    scores = np.random.default_rng(2).normal(size=N)
    users = np.array([0, 3, 3, 5])
    means = None
    for number in range(2):
        tables = [sampler.query_vectors, sampler.query_squares]
        tables += [sampler.item_vectors, sampler.item_squares]
        queries, squares, items, item_squares = (t.numpy().astype(float) for t in tables)
        step_of(task, users, scores)
        drawn = seen[2 * number + 1]
        # What is rewarded is what was proposed.
        np.testing.assert_array_equal(drawn.chosen, seen[2 * number].chosen)
        rows, chosen = drawn.rows.numpy(), drawn.chosen.numpy()[:, 0]
        picked = rows[np.arange(4), chosen]
        rewards = np.array(
            [
                [-1 / (1 + np.exp(scores[item])), float(item + 100 in SHOWN[user])]
                for item, user in zip(picked, users, strict=True)
            ]
        )
        means = rewards.mean(axis=0) if means is None else means
        advantage = (rewards - means) @ [1.0, 2.0]
        means = 0.99 * means + 0.01 * rewards.mean(axis=0)
        np.testing.assert_allclose(sampler.means, means, rtol=1e-5)
        of_queries, of_items = [], []
        for row, user in enumerate(users):
            gradient = advantage[row] * (drawn.policy.numpy()[row] - np.eye(6)[chosen[row]])
            of_queries.append((user, gradient @ items[rows[row]]))
            of_items += [(rows[row, k], gradient[k] * queries[user]) for k in range(6)]
        moved = slow.adagrad(queries, squares, of_queries, 0.05)
        np.testing.assert_allclose(sampler.query_vectors, moved, atol=1e-5)
        moved = slow.adagrad(items, item_squares, of_items, 0.05)
        np.testing.assert_allclose(sampler.item_vectors, moved, atol=1e-5)


# ------------------------------------------------------------------ what it learns


def share_of_exposed(alpha, steps):
    sampler = Reinforced(
        ITEMS, LOG, exposed="shown", num_candidates=8, width=8, alpha=alpha, learning_rate=0.2
    )
    task = task_of(sampler)
    step_of(task, np.tile(np.arange(USERS), 4), steps=steps)
    picked = shares_of(sampler, task, np.arange(USERS))
    return np.mean([np.isin(picked[:, u] + 100, SHOWN[u]).mean() for u in range(USERS)])


def test_the_policy_concentrates_on_planted_exposures():
    before = share_of_exposed(2.5, 0)
    assert before == pytest.approx(1 / 8, abs=0.08)
    assert share_of_exposed(2.5, 100) > 0.8
    # With flat scores and no reward for exposures there is nothing to learn.
    assert share_of_exposed(0.0, 10) < 0.25


def test_flat_rewards_leave_the_policy_where_it_is():
    sampler = Reinforced(ITEMS, LOG, exposed="shown", alpha=0.0, learning_rate=1.0)
    task = task_of(sampler)
    before = [t.numpy().copy() for t in (sampler.query_vectors, sampler.item_vectors)]
    step_of(task, np.tile(np.arange(USERS), 4), np.full(N, 0.7), steps=5)
    np.testing.assert_allclose(sampler.query_vectors, before[0], atol=1e-5)
    np.testing.assert_allclose(sampler.item_vectors, before[1], atol=1e-5)


def test_without_exposures_it_learns_to_choose_hard_items():
    sampler = Reinforced(ITEMS, LOG, num_candidates=8, width=8, learning_rate=0.2)
    task = task_of(sampler)
    scores = np.where(np.arange(N) % 4 == 1, 3.0, -3.0)
    step_of(task, np.tile(np.arange(USERS), 8), scores, steps=120)
    picked = shares_of(sampler, task, np.arange(USERS))
    assert (scores[picked] > 0).mean() > 0.7


# ------------------------------------------------------------------ candidates


def test_one_candidate_is_exposed_where_there_is_one_and_no_other_counts():
    sampler = Reinforced(ITEMS, LOG, exposed="shown", num_candidates=200)
    task, seen = task_of(sampler), watched(sampler, "_draw")
    # Padding, nothing, the positive alone, an item that the catalogue does not have.
    shown = tf.ragged.constant([[104, 105], [], [100], [999, 107], [-1, 108]], dtype=tf.int64)
    step_of(task, np.arange(5), shown=shown, training=False)
    rows, policy = seen[0].rows.numpy(), seen[0].policy.numpy()
    wanted = [{104, 105}, set(), set(), {107}, {108}]
    for row, exposed in enumerate(wanted):
        known = np.isin(rows[row] + 100, list(exposed))
        assert seen[0].exposed.numpy()[row].astype(bool).tolist() == known.tolist()
        assert bool(known[0]) == bool(exposed) or rows[row, 0] + 100 not in exposed
        assert (policy[row, 1:][known[1:]] == 0).all()
        if exposed:
            assert known[0]
            assert policy[row, 0] > 0
        # 100 is the positive of all rows.
        assert (policy[row][rows[row] == 0] == 0).all()
        assert policy[row].sum() == pytest.approx(1.0, rel=1e-5)


def test_each_exposed_item_is_the_candidate_as_often_as_the_others():
    sampler = Reinforced(ITEMS, LOG, exposed="shown", num_candidates=2)
    task, seen = task_of(sampler), watched(sampler, "_draw")
    step_of(task, np.zeros(900, int), training=False)
    times = np.bincount(seen[0].rows.numpy()[:, 0] - 4, minlength=3)
    assert ((times - 300) ** 2 / 300).sum() < 18.4  # 99.99 % of chi squared, 2 degrees


def test_masks_keep_the_history_out():
    log = Interactions(
        {"user": np.repeat(np.arange(USERS), 2)}, np.tile([100, 103], USERS), query_key="user"
    )
    sampler = Reinforced(ITEMS, log, num_candidates=100, masks=[KnownPositives(log, ITEMS)])
    task, seen = task_of(sampler), watched(sampler, "_draw")
    step_of(task, np.arange(USERS), training=False)
    rows, policy = seen[0].rows.numpy(), seen[0].policy.numpy()
    assert (rows == 3).any()
    assert (policy[(rows == 3) | (rows == 0)] == 0).all()


def test_a_row_without_any_candidate_has_no_negative_and_no_reward():
    items = ItemCatalogue([100])
    sampler = Reinforced(items, LOG, num_candidates=3)
    task = task_of(sampler)
    before = sampler.query_vectors.numpy().copy()
    seen = watched(sampler, "sample")
    loss = task(
        tf.ones([2, 1]),
        tf.ones([2, 1]),
        candidate_ids=tf.constant([100, 100]),
        features={"user": tf.constant([0, 1])},
        encode_items=lambda features: tf.ones([tf.shape(features["item_id"])[0], 1]),
        training=True,
    )
    assert float(loss) == 0.0
    assert not seen[0].valid.numpy().any()
    np.testing.assert_array_equal(sampler.query_vectors, before)
    assert np.isnan(sampler.means).all()


# ------------------------------------------------------------------ a log that has exposures


def test_exposures_of_a_frame_reach_the_policy_through_fit():
    frame = pd.DataFrame(
        {
            "user": np.repeat(np.arange(USERS), 4),
            "movie": np.tile([100, 101, 102, 103], USERS),
            "shown": [SHOWN[u][: 1 + k % 3].tolist() for u in range(USERS) for k in range(4)],
        }
    )
    log = tfn.Interactions.from_pandas(
        frame,
        {
            "user": "query_id",
            "movie": "item_id",
            "shown": tfn.Column("event", encoding="left_out"),
        },
    )
    items = ItemCatalogue(np.arange(N) + 100, item_key="movie")
    sampler = Reinforced(items, log, exposed="shown", num_candidates=4)
    task = Retrieval(negatives=[sampler, InBatch()], correct=None, reduction="mean")
    towers = {}
    for name in ("user", "movie"):
        ids = tf.keras.Input((), name=name, dtype=tf.int64)
        towers[name] = tf.keras.Model({name: ids}, tf.keras.layers.Embedding(200, 4)(ids))
    model = tfn.TwoTower(towers["user"], towers["movie"], items, task)
    model.compile(tf.keras.optimizers.SGD(0.1))
    before = sampler.query_vectors.numpy().copy() if sampler.built else None
    model.fit(log.dataset(8, item_key="movie"), epochs=2, verbose=0)
    assert before is None or not np.array_equal(before, sampler.query_vectors)
    assert sampler.means.numpy()[1] > 0  # some of what was chosen was exposed
    # The optimizer of the model knows nothing of the policy.
    assert not any("vectors" in weight.name for weight in model.trainable_variables)


def test_that_there_are_no_exposures_is_said_once(caplog):
    caplog.set_level("INFO", "tfrs_negatives")
    sampler = Reinforced(ITEMS, LOG)
    task = task_of(sampler)
    step_of(task, [0, 1], steps=2)
    assert [r.message for r in caplog.records if "exposed" in r.message] == [
        "reinforced: no `exposed` column, rewards are adversarial only"
    ]


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"num_candidates": 0}, "num_candidates"),
        ({"width": 0}, "width"),
        ({"alpha": -1.0}, "alpha"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"decay": 1.0}, "decay"),
    ],
)
def test_bad_arguments(options, argument):
    with pytest.raises(InputError, match=f"`{argument}`"):
        Reinforced(ITEMS, LOG, **options)


def test_a_batch_without_the_column_is_an_error():
    task = task_of(Reinforced(ITEMS, LOG, exposed="impressions"))
    with pytest.raises(InputError, match="impressions"):
        step_of(task, [0, 1])
