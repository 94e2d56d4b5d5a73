"""ScaNN's rows, its leaves and the locks under changes, against a dict and all scores by hand."""

from concurrent.futures import ThreadPoolExecutor, wait
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from retriever_cases import brute_force

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.index import LiveIndex, build_index
from tfrs_negatives.index.live.rows import LiveRows
from tfrs_negatives.index.search.backends import Depth, ScannSettings

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


def items_of(index):
    """All ids and vectors at one moment; `snapshot` would build an index of them."""
    return index._current.items()


@pytest.fixture
def small_trees(monkeypatch):
    """ScaNN with a tree even for few items, and asked even for a large part of them."""
    monkeypatch.setattr("tfrs_negatives.index.live.rows.SMALLEST_TREE", 10)
    monkeypatch.setattr("tfrs_negatives.index.live.rows._DEEPEST_SHARE", 1)
    # So few that older items are found by ScaNN alone, and one of them may have been fresh.
    monkeypatch.setattr("tfrs_negatives.index.live.rows._NUM_FRESH", 3)
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

    table = dict(zip(*[part.tolist() for part in items_of(index)], strict=True))
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
    ids, vectors = items_of(index)
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


def test_any_sequence_of_changes_answers_as_a_dict_does_with_scann(small_trees):
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
    index.delete(items_of(index).ids)
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
        ids, vectors = items_of(index)
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


def test_searches_and_changes_wait_for_each_other():
    index = make(30)
    lock = index._current.lock
    actions = [
        (lock.writing, lambda: index.search(QUERIES, 3)),
        (lock.writing, lambda: index.contains([5])),
        (lock.writing, lambda: items_of(index)),
        (lock.reading, lambda: index.upsert([500], POOL[:1])),
        (lock.reading, lambda: index.delete([6])),
    ]
    with ThreadPoolExecutor(1) as pool:
        for held, action in actions:
            with held():
                task = pool.submit(action)
                assert not wait([task], timeout=0.05).done
            task.result(timeout=60)


def test_other_settings_are_taken_by_rebalance():
    index = make(3000, settings=FEW_LEAVES)
    best = np.argsort(-(POOL @ POOL[:50].T), axis=0)[:10].T + 5
    assert (index.search(POOL[:50], 10)[1] == best).mean() < 0.9
    every = ScannSettings(num_leaves=40, depths=(Depth(k=10, leaves=40, reorder=1000),))
    index.rebalance(settings=every)
    assert (index.search(POOL[:50], 10)[1] == best).mean() > 0.99


def test_groups_are_not_lost_in_silence():
    model = model_of([1, 2], POOL[:2])
    with pytest.raises(InputError, match="without `group_by`"):
        LiveIndex.of(build_index(model, group_by=np.array([1, 2])))
