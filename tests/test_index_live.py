"""An index that changes in place, against a dict and sorting all scores by hand."""

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from index_cases import make_model
from retriever_cases import brute_force

from tfrs_negatives.encode.catalogue import ItemCatalogue
from tfrs_negatives.index import LiveIndex, build_index
from tfrs_negatives.index.backends import Depth, ScannSettings
from tfrs_negatives.index.live_rows import LiveRows
from tfrs_negatives.types import InputError

WIDTH = 4
POOL = np.random.default_rng(0).normal(size=[3000, WIDTH]).astype(np.float32)
QUERIES = np.random.default_rng(1).normal(size=[2, WIDTH]).astype(np.float32)

FEW_LEAVES = ScannSettings(num_leaves=40, depths=(Depth(k=10, leaves=1, reorder=100),))


def item_id(number, as_strings=False):
    return f"item {'x' * number}" if as_strings else 5 + number


def model_of(ids, vectors, *, scale=1.0):
    """Both towers multiply by a number, so that a score tells which model made each side."""
    return SimpleNamespace(
        items=ItemCatalogue(ids, {"vector": vectors}),
        similarity="dot",
        query_signature={"vector": tf.TensorSpec([None, vectors.shape[1]], tf.float32)},
        query_vectors=lambda features: features["vector"] * scale,
        item_vectors=lambda features: features["vector"] * scale,
    )


def make(count, *, as_strings=False, settings=None):
    ids = [item_id(n, as_strings) for n in range(count)]
    vectors = POOL[:count]
    return LiveIndex(ids, vectors, model=model_of(ids, vectors), settings=settings)


@pytest.fixture
def small_trees(monkeypatch):
    """ScaNN with a tree even for few items, and asked even for a large part of them."""
    monkeypatch.setattr("tfrs_negatives.index.live_rows.SMALLEST_TREE", 10)
    monkeypatch.setattr("tfrs_negatives.index.live_rows._DEEPEST_SHARE", 1)
    # So few that older items are found by ScaNN alone, and one of them may have been fresh.
    monkeypatch.setattr("tfrs_negatives.index.live_rows._NUM_FRESH", 3)
    return ScannSettings(num_leaves=3, depths=(Depth(k=1, leaves=3, reorder=50),))


numbers = st.integers(0, 50)
lists = st.none() | st.lists(numbers, max_size=20) | st.tuples(*[st.lists(numbers, max_size=9)] * 2)
steps = st.lists(
    st.tuples(st.sampled_from("uudr"), st.lists(numbers, min_size=1, max_size=9, unique=True)),
    min_size=1,
    max_size=8,
)


def run_sequence(index, steps, exclude, allow, as_strings):
    def named(lists):
        if isinstance(lists, tuple):
            return [named(row) for row in lists]
        return None if lists is None else [item_id(n, as_strings) for n in lists]

    table = dict(zip(*[part.tolist() for part in index.snapshot()], strict=True))
    fresh = iter(range(100, 400))
    for action, some in steps:
        ids = named(some)
        if action == "u":
            rows = [next(fresh) for _ in ids]
            index.upsert(ids, POOL[rows])
            table.update(zip(ids, POOL[rows].tolist(), strict=True))
        elif action == "r":
            index.rebalance()
        elif all(i in table for i in ids):
            index.delete(ids)
            for i in ids:
                del table[i]
        else:
            with pytest.raises(InputError, match="items that the index holds"):
                index.delete(ids)
        assert len(index) == len(table)
        if table:
            k = 1 + some[0] % len(table)
            check(index, table, k, None, None)
            check(index, table, k, named(exclude), None)
            check(index, table, k, named(exclude), named(allow))
    ids, vectors = index.snapshot()
    assert dict(zip(ids.tolist(), vectors.tolist(), strict=True)) == table
    everything = named(range(51))
    assert index.contains(everything).tolist() == [i in table for i in everything]


def check(index, table, k, exclude, allow):
    scores, ids = index.search(QUERIES, k, exclude=exclude, allow=allow)
    each = [x if x is None or (x and isinstance(x[0], list)) else [x] * 2 for x in (exclude, allow)]
    items = {i: (np.float32(v), None) for i, v in table.items()}
    expected, wanted = brute_force(
        items, QUERIES, k, exclude=each[0], allow=each[1], padding=index.padding_id
    )
    assert scores.shape == ids.shape == (2, k)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(ids, wanted)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(steps=steps, exclude=lists, allow=lists, as_strings=st.booleans())
def test_any_sequence_of_changes_answers_as_a_dict_does(steps, exclude, allow, as_strings):
    run_sequence(make(30, as_strings=as_strings), steps, exclude, allow, as_strings)


def test_so_it_does_with_scann(small_trees):
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(steps=steps, exclude=lists, allow=lists, as_strings=st.booleans())
    def with_scann(steps, exclude, allow, as_strings):
        index = make(40, as_strings=as_strings, settings=small_trees)
        run_sequence(index, steps, exclude, allow, as_strings)

    with_scann()


def test_rows_are_the_same_here_and_in_scann(small_trees):
    generator, fresh = np.random.default_rng(3), iter(range(3000))
    rows = LiveRows(np.arange(60), POOL[:60], small_trees)
    assert not rows.is_exact
    table = dict(enumerate(POOL[:60]))
    for _ in range(300):
        if generator.random() < 0.5 and len(table) > 20:
            gone = generator.choice(list(table), 5, replace=False).tolist()
            rows.delete(gone)
            for item in gone:
                del table[item]
        else:
            ids = generator.choice(200, 5, replace=False)
            vectors = POOL[[next(fresh) for _ in ids]]
            rows.upsert(ids, vectors)
            table.update(zip(ids.tolist(), vectors, strict=True))
        assert {int(i): tuple(v) for i, v in zip(rows.ids, rows.vectors, strict=True)} == {
            i: tuple(v) for i, v in table.items()
        }
        scores, places = rows._ask_scann(QUERIES, len(rows))
        for query, found, place in zip(QUERIES, scores, places, strict=True):
            assert sorted(place) == list(range(len(rows)))
            np.testing.assert_allclose(found, rows.vectors[place] @ query, rtol=1e-4, atol=1e-5)


def test_it_may_lose_all_items_and_begin_anew(small_trees):
    index = make(30, settings=small_trees)
    index.delete(index.snapshot().ids)
    assert len(index) == 0
    with pytest.raises(InputError, match="at most the 0 items"):
        index.search(QUERIES, 1)
    index.rebalance()
    index.upsert([7, 8], QUERIES)
    assert index.search(QUERIES[:1], 2)[1][0, 0] == 7


def test_a_new_item_is_found_at_once_though_its_leaf_is_not_searched():
    index = make(2000, settings=FEW_LEAVES)
    for number in range(2000, 2400):
        vector = 3 * POOL[number : number + 1]
        index.upsert([item_id(number)], vector)
        ids, vectors = index.snapshot()
        scores = vectors @ vector[0]
        rank = (scores > scores[ids == item_id(number)]).sum()
        found = index.search(vector, 10)[1][0].tolist()
        assert found.count(item_id(number)) == (rank < 10)


def test_leaves_that_hold_too_few_are_filled_up():
    generator = np.random.default_rng(0)
    vectors = generator.normal([-10, 0], 0.5, size=[6000, 2]).astype(np.float32)
    vectors[100:160] = np.column_stack([10 + np.arange(60) / 100, np.zeros(60)])
    ids = np.arange(6000)
    tuned = ScannSettings(num_leaves=4, depths=(Depth(k=110, leaves=1, reorder=110),))
    index = LiveIndex(ids, vectors, model=model_of(ids, vectors), settings=tuned)
    query = np.array([[1, 0]], np.float32)
    for gone in (None, ids[150:160]):
        scores, found = index.search(query, 100, exclude=gone)
        best = np.argsort(-vectors[:, 0], kind="stable")
        best = best[~np.isin(best, [] if gone is None else gone)][:100]
        np.testing.assert_allclose(scores[0], vectors[best, 0], rtol=1e-5)
        assert set(found[0]) == set(best)


@pytest.mark.parametrize("excluded", [0, 3, 500])
def test_with_scann_scores_are_exact_and_excluded_items_stay_away(excluded):
    tuned = ScannSettings(num_leaves=55, depths=(Depth(k=10, leaves=25, reorder=200),))
    index = make(3000, settings=tuned)
    queries = np.random.default_rng(7).normal(size=[20, WIDTH]).astype(np.float32)
    best = np.argsort(-(queries @ POOL.T), axis=1)
    exclude = [5 + row[:excluded] for row in best]
    scores, ids = index.search(queries, 10, exclude=exclude)
    np.testing.assert_allclose(
        scores, np.einsum("bd,bkd->bk", queries, POOL[ids - 5]), rtol=1e-4, atol=1e-5
    )
    wanted = 5 + best[:, excluded : excluded + 10]
    found = [len(set(mine) & set(theirs)) for mine, theirs in zip(ids, wanted, strict=True)]
    assert not any(set(mine) & set(gone) for mine, gone in zip(ids, exclude, strict=True))
    assert np.sum(found) / wanted.size > (0.999 if excluded == 500 else 0.9)


def test_the_leaves_are_cut_anew_by_rebalance():
    generator = np.random.default_rng(5)
    old = generator.normal(size=[4000, 16]).astype(np.float32)
    ids = np.arange(4000)
    tuned = ScannSettings(num_leaves=63, depths=(Depth(k=10, leaves=8, reorder=200),))
    index = LiveIndex(ids, old, model=model_of(ids, old), settings=tuned)
    centres = generator.normal(size=[63, 16]) + 3
    new = centres[generator.integers(0, 63, 10_000)] + generator.normal(0, 0.4, [10_000, 16])
    new = new.astype(np.float32)
    for start in range(0, 10_000, 500):  # 4,000 replaced and 6,000 new
        index.upsert(range(start, start + 500), new[start : start + 500])
    queries = new[::50] + generator.normal(0, 0.4, [200, 16]).astype(np.float32)
    best = np.argsort(-(queries @ new.T), axis=1)[:, :10]

    def recall():
        found = index.search(queries, 10)[1]
        return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, best, strict=True)])

    before = recall()
    index.rebalance()
    after = recall()
    assert len(index) == 10_000
    assert before < 0.9 < after
    index.rebalance(settings=replace(tuned, depths=(Depth(k=10, leaves=63, reorder=2000),)))
    assert recall() > max(after, 0.999)


def test_what_a_snapshot_holds_can_be_built_and_made_live_again():
    model = make_model(1200)
    index = LiveIndex.of(build_index(model, kind="scann"))
    index.delete(model.items.ids[:100])
    index.upsert([90_000], index.embed_item({"row": [3]}) * 9)
    items = index.snapshot()
    built = build_index(model, ids=items.ids, vectors=items.vectors, kind="exact")
    assert len(built) == len(index) == 1101
    users = {"user_id": [1, 2, 3]}
    for mine, theirs in zip(index.top_k(users, 1101), built.top_k(users, 1101), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
    assert len(LiveIndex.of(built)) == 1101
    with pytest.raises(InputError, match="without `group_by`"):
        LiveIndex.of(build_index(model, group_by=np.zeros(1200, int)))


BAD = {
    "each id once": lambda index: index.upsert([1, 1], POOL[:2]),
    "2 rows, one per id": lambda index: index.upsert([1, 2], POOL[:1]),
    r"shape \[B, 4\]": lambda index: index.upsert([1], POOL[:1, :3]),
    "finite": lambda index: index.upsert([1], [[1, 2, 3, np.inf]]),
    "the id of 'no item'": lambda index: index.upsert([-1], POOL[:1]),
    "1 unknown, the first is 999": lambda index: index.delete([5, 999]),
    "has no groups": lambda index: index.search(QUERIES, 1, allow_groups=[1]),
    "positive integer, at most the 6": lambda index: index.search(QUERIES, 7),
    "`batch_size`": lambda index: index.refresh(index.model, batch_size=0),
    "features of every item": lambda index: index.refresh(model_of([5, 6], POOL[:2])),
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_wrong_is_said_and_changes_nothing(message):
    index = make(6)
    with pytest.raises(InputError, match=message):
        BAD[message](index)
    check(index, {item_id(n): POOL[n] for n in range(6)}, 6, None, None)


# ------------------------------------------------------------------ a new model


def test_refresh_keeps_the_items_and_changes_their_vectors():
    index = make(30)
    index.upsert([500], POOL[70:71])
    index.delete([5, 6])
    known = ItemCatalogue([500, *range(5, 35)], {"vector": POOL[[70, *range(30)]]})
    index.refresh(model_of([1], POOL[:1], scale=2.0), items=known, batch_size=7)
    table = {item_id(n): 2 * POOL[n] for n in range(2, 30)} | {500: 2 * POOL[70]}
    check(index, table, 29, None, None)
    assert index.contains([5, 6, 500, 1]).tolist() == [False, False, True, False]
    np.testing.assert_array_equal(index.embed_query({"vector": QUERIES}), 2 * QUERIES)


@pytest.mark.parametrize("count", [60, 1500])
def test_every_answer_is_wholly_of_one_model(count):
    ids = [item_id(n) for n in range(count)]
    models = [model_of(ids, POOL[:count], scale=scale) for scale in (1.0, 3.0)]
    every = ScannSettings(num_leaves=10, depths=(Depth(k=10, leaves=10, reorder=1500),))
    index = LiveIndex(ids, POOL[:count], model=models[0], settings=every)
    plain = np.sort(QUERIES @ POOL[:count].T)[:, ::-1][:, :10]
    stop = threading.Event()

    def read():
        seen = []
        while not stop.is_set():
            scores, _ = index.top_k({"vector": QUERIES}, 10)
            ratios = scores / plain
            # With the towers of one and the vectors of the other it would be 3.
            factor = round(float(ratios[0, 0]))
            np.testing.assert_allclose(ratios, factor, rtol=1e-4)
            seen.append(factor)
        return set(seen)

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        try:
            for number in range(1, 7):
                index.refresh(models[number % 2], batch_size=64)
        finally:
            stop.set()
        assert set.union(*[reader.result() for reader in readers]) == {1, 9}


def test_a_query_that_a_refresh_overtakes_is_answered_with_the_old_model():
    ids = [item_id(n) for n in range(30)]
    old, new = (model_of(ids, POOL[:30], scale=scale) for scale in (1.0, 3.0))
    index = LiveIndex(ids, POOL[:30], model=old)
    embed = old.query_vectors

    def embed_slowly(features):
        index.refresh(new)
        return embed(features)

    old.query_vectors = embed_slowly
    best = np.sort(QUERIES @ POOL[:30].T)[:, ::-1]
    for factor in (1, 9):
        scores, _ = index.top_k({"vector": QUERIES}, 30)
        np.testing.assert_allclose(scores, factor * best, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ threads


def test_searches_and_changes_wait_for_each_other():
    index = make(30)
    lock = index._current.lock
    actions = [
        (lock.writing, lambda: index.search(QUERIES, 3)),
        (lock.writing, lambda: index.contains([5])),
        (lock.writing, index.snapshot),
        (lock.reading, lambda: index.upsert([500], POOL[:1])),
        (lock.reading, lambda: index.delete([6])),
    ]
    with ThreadPoolExecutor(1) as pool:
        for held, action in actions:
            with held():
                task = pool.submit(action)
                assert not wait([task], timeout=0.05).done
            task.result(timeout=5)


def test_readers_and_writers_at_once():
    """5,000 upserts and as many deletes by four threads, under the eyes of four readers."""
    index = make(2000)
    deleted, stop = set(), threading.Event()

    def write(thread):
        for number in range(1250):
            item, vector = 10_000 + 4 * number + thread, 20 * POOL[[2000 + number % 1000]]
            index.upsert([item], vector)
            if number % 10 == 0:
                # At most three other threads have an item there.
                assert item in index.search(vector, 10)[1]
            index.delete([item])
            deleted.add(item)

    def read():
        count = 0
        while not stop.wait(0.005):
            gone = deleted.copy()
            scores, ids = index.search(QUERIES, 20)
            assert not gone & set(ids.flat)
            assert (np.diff(scores, axis=1) <= 0).all()
            old = np.where((ids >= 5) & (ids < 2005), ids - 5, -1)
            mine = np.einsum("bd,bkd->bk", QUERIES, POOL[old])
            np.testing.assert_allclose(scores[old >= 0], mine[old >= 0], rtol=1e-4, atol=1e-5)
            assert (ids != -1).all()
            count += 1
        return count

    with ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        writers = [pool.submit(write, thread) for thread in range(4)]
        rebalanced = pool.submit(index.rebalance)
        wait(writers)
        stop.set()
        assert [task.result() for task in [*writers, rebalanced]] == [None] * 5
        assert sum(reader.result() for reader in readers) > 20
    assert len(index) == 2000
    np.testing.assert_array_equal(np.sort(index.snapshot().ids), np.arange(5, 2005))
