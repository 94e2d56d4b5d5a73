"""Pools that are resampled by their scores: laws of the draws, and whose pool changes when."""

from __future__ import annotations

import numpy as np
import pytest
import reference_query_pools as slow
import tensorflow as tf
from replicas import strategy_of

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.step.masks.known_positives import KnownPositives
from tfrs_negatives.step.miners import Hardest
from tfrs_negatives.step.samplers import (
    AdaptivePool,
    Explicit,
    InBatch,
    Popularity,
    Reinforced,
    RobustMemory,
    Uniform,
    Weighted,
)
from tfrs_negatives.step.samplers.of_rows import write_rows
from tfrs_negatives.step.task import Retrieval

N, USERS, D = 8, 300, 3
ITEMS = ItemCatalogue(np.arange(N) + 50)
LOG = Interactions({"user": np.arange(USERS)}, np.arange(USERS) % N + 50, query_key="user")
RNG = np.random.default_rng(4)
CORPUS = RNG.normal(size=(N, D)).astype(np.float32)
QUERY = RNG.normal(size=D).astype(np.float32)


def step_of(task, users, *, queries=None, corpus=CORPUS, training=True, **call):
    """One step with the same query vector in every row, unless others are given."""
    users = np.asarray(users)
    queries = np.tile(QUERY, (len(users), 1)) if queries is None else queries
    rows = users % N if users.dtype.kind == "i" else np.zeros(len(users), int)
    return task(
        tf.constant(queries),
        tf.gather(corpus, rows),
        candidate_ids=ITEMS.ids[rows],
        features={"user": tf.constant(users), **call},
        encode_items=lambda features: tf.gather(corpus, features["item_id"] - 50),
        training=training,
    )


def task_of(*sources, seed=0, **options):
    return Retrieval(negatives=list(sources), **{"correct": None, **options}, seed=seed)


def pool_of(proposals=None, **options):
    return AdaptivePool(proposals or Uniform(ITEMS, 200), ITEMS, LOG, **options)


def test_half_of_the_slots_are_new_on_average():
    """The number of new slots of a pool of P is Binomial(P, 1/2)."""
    pool = pool_of(pool_size=20)
    task = task_of(pool)
    task.build([None, D])
    # Items of the old pool that are no proposals, so that each slot tells where it is from.
    pool.pool.assign(tf.fill(pool.pool.shape, tf.constant(57, tf.int64)))
    without = CORPUS.copy()
    without[7] = np.nan  # not finite, hence never a new one
    step_of(task, np.arange(USERS), corpus=without)
    new = (pool.pool.numpy()[:-1] != 57).sum(axis=1)
    total = USERS * 20
    assert abs(new.sum() - total / 2) / np.sqrt(total / 4) < 3.9
    # Not only the mean: the variance of each pool is that of P coins, and no pool is fixed at 10.
    assert new.var() == pytest.approx(20 / 4, abs=3.9 * 5 * np.sqrt(2 / USERS))


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_new_ones_follow_the_softmax_over_the_catalogue(kind, temperature):
    counts = np.arange(N) ** 2 + 1.0
    draws = {"uniform": Uniform(ITEMS, 1500), "popularity": Popularity(ITEMS, 1500, counts=counts)}
    pool = pool_of(draws[kind], pool_size=40, temperature=temperature)
    task = task_of(pool)
    task.build([None, D])
    for _ in range(8):  # what is left of the start is 1 in 256
        step_of(task, np.arange(USERS))
    shares = np.bincount(pool.pool.numpy()[:-1].ravel() - 50, minlength=N) / (USERS * 40)
    # Proposals are shared by the batch, so the shares move with them: not an exact multinomial.
    np.testing.assert_allclose(shares, slow.softmax(CORPUS @ QUERY / temperature), atol=0.035)


def test_few_proposals_follow_their_importance():
    """With the M proposals known, the law of a new slot is that of the slow version."""
    source = Uniform(ITEMS, 5)
    pool = pool_of(source, pool_size=60)
    task = task_of(pool)
    task.build([None, D])
    old = pool.pool.numpy().copy()
    seen = []
    plain = source.sample
    source.sample = lambda batch: seen.append(plain(batch)) or seen[-1]
    step_of(task, np.arange(USERS))
    proposed = ITEMS.rows_of_keys(seen[0].ids).numpy()
    law = slow.law_of_resampling(CORPUS[proposed] @ QUERY, np.full(5, 5 / N))
    expected = np.zeros(N)
    np.add.at(expected, proposed, law)
    total = USERS * 60
    before = np.bincount(old[:-1].ravel() - 50, minlength=N)
    after = np.bincount(pool.pool.numpy()[:-1].ravel() - 50, minlength=N)
    wanted = before / 2 + total / 2 * expected
    assert (((after - wanted) ** 2) / wanted).sum() < 31.8  # 99.99 % of chi squared, 7 degrees


def test_only_the_first_row_of_a_known_query_changes_its_pool():
    pool = pool_of(pool_size=300)
    task = task_of(pool)
    task.build([None, D])
    before = pool.pool.numpy().copy()
    users = np.array([5, 9, 5, 1000, 2, 9, 7])
    queries = np.tile(0.3 * QUERY, (7, 1))
    queries[2] *= 100.0  # would fill half of the slots with one item
    step_of(task, users, queries=queries)
    changed = np.flatnonzero((pool.pool.numpy() != before).any(axis=1))
    known = set(range(USERS))
    assert changed.tolist() == sorted(users[slow.first_rows(users, known)])
    best = (pool.pool.numpy()[5] == 50 + np.argmax(CORPUS @ QUERY)).mean()
    law = slow.softmax(0.3 * (CORPUS @ QUERY)).max()
    # 0.30; the other row would make 0.56 of it.
    assert best == pytest.approx((law + 1 / N) / 2, abs=0.12)


def test_evaluation_changes_nothing():
    pool = pool_of()
    task = task_of(pool)
    task.build([None, D])
    before = pool.pool.numpy().copy()
    step_of(task, np.arange(5), training=False)
    np.testing.assert_array_equal(pool.pool, before)


def test_draws_are_items_of_the_own_pool_and_all_of_its_slots():
    pool = pool_of(pool_size=3, num_negatives=400)
    task = task_of(pool)
    task.build([None, D])
    keys = np.array([[50, 51, 52], [53, 54, 55], [56, 57, 50]])
    pool.pool.scatter_update(tf.IndexedSlices(tf.constant(keys), tf.constant([4, 0, 7])))
    seen = []
    plain = pool.sample
    pool.sample = lambda batch: seen.append(plain(batch)) or seen[-1]
    step_of(task, [0, 7, 4], training=False)
    for row, place in enumerate([1, 2, 0]):
        ids, times = np.unique(seen[0].ids.numpy()[row], return_counts=True)
        assert ids.tolist() == sorted(keys[place])
        assert times.min() > 400 / 3 - 40


def test_masks_keep_items_out_of_the_pools():
    pool = pool_of(pool_size=40, masks=[KnownPositives(LOG, ITEMS)])
    task = task_of(pool)
    for _ in range(14):
        step_of(task, np.arange(40))
    kept = pool.pool.numpy()[:40] - 50
    own = (kept == np.arange(40)[:, None] % N).mean()
    assert own < 0.01
    assert (kept == (np.arange(40)[:, None] + 1) % N).mean() > 0.05


def test_a_row_without_any_proposal_keeps_its_pool():
    pool = pool_of(masks=[KnownPositives(LOG, ITEMS)])
    task = task_of(pool)
    task.build([None, D])
    before = pool.pool.numpy().copy()
    step_of(task, [3, 4], corpus=np.full_like(CORPUS, np.nan))
    np.testing.assert_array_equal(pool.pool, before)


def test_the_same_items_as_a_column_have_the_same_loss():
    pool = pool_of(num_negatives=4)
    task = task_of(pool, InBatch(), miners=[Hardest(3)])
    task.build([None, D])
    seen = []
    plain = pool.sample
    pool.sample = lambda batch: seen.append(plain(batch)) or seen[-1]
    loss = float(step_of(task, [3, 1, 4], training=False))
    column = task_of(Explicit("named", ITEMS), InBatch(), miners=[Hardest(3)])
    again = step_of(column, [3, 1, 4], training=False, named=seen[0].ids)
    assert loss == pytest.approx(float(again), rel=1e-6)


def test_scores_are_those_of_the_task():
    """With cosine and a temperature the pools follow them, not the bare product."""
    pool = pool_of(Uniform(ITEMS, 1500), pool_size=40)
    task = task_of(pool, similarity="cosine", temperature=0.3)
    for _ in range(8):
        step_of(task, np.arange(USERS))
    shares = np.bincount(pool.pool.numpy()[:-1].ravel() - 50, minlength=N) / (USERS * 40)
    lengths = np.linalg.norm(CORPUS, axis=1) * np.linalg.norm(QUERY)
    np.testing.assert_allclose(shares, slow.softmax(CORPUS @ QUERY / lengths / 0.3), atol=0.035)


def test_several_vectors_of_a_query_take_the_best_one():
    pool = pool_of(Uniform(ITEMS, 1500), pool_size=40)
    task = task_of(pool)
    other = RNG.normal(size=D).astype(np.float32)
    queries = np.tile(np.stack([QUERY, other]), (USERS, 1, 1))
    for _ in range(8):
        step_of(task, np.arange(USERS), queries=queries)
    shares = np.bincount(pool.pool.numpy()[:-1].ravel() - 50, minlength=N) / (USERS * 40)
    best = np.maximum(CORPUS @ QUERY, CORPUS @ other)
    np.testing.assert_allclose(shares, slow.softmax(best), atol=0.035)


def test_rows_of_several_replicas_write_once():
    strategy = strategy_of(2)
    with strategy.scope():
        table = tf.Variable(
            np.zeros([4, 1], np.int64), aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
        )
    parts = [[0, 1, 1, 3], [1, 2, 0, 2]]
    values = [[10, 11, 12, 13], [14, 15, 16, 17]]
    writes = [[True, False, True, True], [True, False, True, True]]

    def write(rows, values, writes):
        write_rows(table, rows, values[:, None], writes)

    def of(parts, dtype):
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group], dtype)
        )

    strategy.run(write, (of(parts, tf.int64), of(values, tf.int64), of(writes, tf.bool)))
    for copy in strategy.experimental_local_results(table):
        assert copy.numpy()[:, 0].tolist() == [10, 12, 17, 0]


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"num_negatives": 0}, "num_negatives"),
        ({"pool_size": 0}, "pool_size"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"proposals": InBatch()}, "proposals"),
    ],
)
def test_bad_arguments(options, argument):
    with pytest.raises(InputError, match=f"`{argument}`"):
        pool_of(**options)


def test_a_batch_without_the_query_is_an_error():
    with pytest.raises(InputError, match="user"):
        task_of(pool_of())(
            tf.ones([1, D]), tf.ones([1, D]), candidate_ids=tf.constant([50]), training=True
        )
    with pytest.raises(InputError, match="integers"):
        step_of(task_of(pool_of()), np.array(["a", "b"]))


# ------------------------------------------------------------------ all that know queries


TEXTS = ItemCatalogue(["a", "b", "é"])
TEXT_LOG = Interactions({"user": np.array(["u", "v"])}, np.array(["a", "b"]), query_key="user")
KNOWING_QUERIES = {
    "adaptive": lambda log=TEXT_LOG: AdaptivePool(Uniform(TEXTS, 9), TEXTS, log),
    "robust": lambda log=TEXT_LOG: RobustMemory(Uniform(TEXTS, 1), TEXTS, log, pool_size=5),
    "reinforced": lambda log=TEXT_LOG: Reinforced(
        TEXTS, log, exposed="shown", num_candidates=1, masks=[KnownPositives(log, TEXTS)]
    ),
}


def step_of_texts(task, *, heads=None, scale=1.0, users=("v", "new", "u", "v")):
    size = len(users)
    queries = RNG.normal(size=(size, *([heads] if heads else []), D)) * scale
    corpus = tf.constant(RNG.normal(size=(3, D)), tf.float32)
    return task(
        tf.constant(queries, tf.float32),
        tf.gather(corpus, [0, 1, 2, 0][:size]),
        candidate_ids=tf.constant(["a", "b", "é", "a"][:size]),
        features={
            "user": tf.constant(users),
            "shown": tf.constant([["é", ""], ["b", "x"], ["", ""], ["a", "b"]][:size]),
        },
        encode_items=lambda f: tf.gather(corpus, TEXTS.rows(f["item_id"])),
        training=True,
    )


@pytest.mark.parametrize("kind", KNOWING_QUERIES)
def test_texts_several_vectors_huge_scores_and_one_row(kind):
    sampler = KNOWING_QUERIES[kind]()
    task = task_of(Weighted(sampler, 0.5), InBatch())
    for options in ({}, {"heads": 2}, {"scale": 1e30}, {"users": ("u",)}, {"users": ("new",)}):
        assert np.isfinite(float(step_of_texts(task, **options)))
    for variable in sampler.variables:
        if variable.dtype == tf.int64:
            continue
        values = variable.numpy()
        # Scores that nobody has measured yet, of which the last query has none at all.
        assert np.isfinite(values).all() or "scores" in variable.name


@pytest.mark.parametrize("kind", KNOWING_QUERIES)
def test_a_log_without_queries_is_an_error(kind):
    no_key = Interactions({"user": np.array(["u"])}, np.array(["a"]))
    with pytest.raises(InputError, match="query_key"):
        KNOWING_QUERIES[kind](no_key)
