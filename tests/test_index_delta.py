"""New, changed and deleted items before a frozen index, against sorting all scores by hand."""

import threading
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from retriever_cases import NumpyRetriever, brute_force

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.index.live.delta import ChangeLog, DeltaIndex
from tfrs_negatives.index.retriever import Asked, Nature

WIDTH = 4
POOL = np.random.default_rng(0).normal(size=[400, WIDTH]).astype(np.float32)
QUERIES = np.random.default_rng(1).normal(size=[2, WIDTH]).astype(np.float32)


def item_id(number, as_strings):
    # Longer strings for larger numbers, so that one cut off would be another id.
    return f"item {'x' * number}" if as_strings else 5 + number


def make(count, *, as_strings=False, groups=True, capacity=100):
    """A delta index over `count` items and the same as a dict."""
    ids = [item_id(n, as_strings) for n in range(count)]
    groups = [n % 3 for n in range(count)] if groups else None
    frozen = NumpyRetriever(ids, POOL[:count], groups=groups)
    table = {i: (POOL[n], n % 3) for n, i in enumerate(ids)}
    return DeltaIndex(frozen, capacity=capacity), table


def assert_answers(index, table, k, **filters):
    given = {name: values for name, values in filters.items() if values is not None}
    scores, ids = index.search(QUERIES, k, **given)
    each = {n: v if v and isinstance(v[0], list) else [v] * 2 for n, v in given.items()}
    expected, wanted = brute_force(table, QUERIES, k, padding=index.padding_id, **each)
    assert scores.shape == ids.shape == (2, k)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(ids, wanted)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


numbers = st.integers(0, 14)
lists = st.none() | st.lists(numbers, max_size=8) | st.tuples(*[st.lists(numbers, max_size=8)] * 2)
steps = st.lists(
    st.tuples(st.sampled_from("uudq"), st.lists(numbers, min_size=1, max_size=4, unique=True)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(steps=steps, exclude=lists, allow=lists, groups=lists, as_strings=st.booleans())
def test_any_sequence_of_changes_answers_as_a_dict_does(steps, exclude, allow, groups, as_strings):
    index, table = make(8, as_strings=as_strings)

    def named(lists):
        if isinstance(lists, tuple):
            return [named(row) for row in lists]
        return None if lists is None else [item_id(n, as_strings) for n in lists]

    groups = [list(g) for g in groups] if isinstance(groups, tuple) else groups
    fresh = iter(range(8, 400))
    for action, some in steps:
        ids = named(some)
        if action == "u":
            rows = [next(fresh) for _ in ids]
            index.upsert(ids, POOL[rows], groups=[row % 3 for row in rows])
            # A changed item comes behind the others of equal score, as a new one does.
            for i, row in zip(ids, rows, strict=True):
                table.pop(i, None)
                table[i] = POOL[row], row % 3
        elif action == "d" and all(i in table for i in ids):
            index.delete(ids)
            for i in ids:
                del table[i]
        elif action == "d":
            with pytest.raises(InputError, match="items that the index holds"):
                index.delete(ids)
        assert len(index) == len(table)
        if table:
            k = 1 + some[0] % len(table)
            assert_answers(index, table, k)
            assert_answers(
                index, table, k, exclude=named(exclude), allow=named(allow), allow_groups=groups
            )
    everything = named(range(15))
    assert index.contains(everything).tolist() == [i in table for i in everything]
    assert {i: tuple(v[0]) for i, v in table.items()} == contents(index)


def contents(index):
    """Id -> vector from the frozen index and the changes."""
    ids, vectors, _, deleted = index.changes()
    gone = {*ids.tolist(), *deleted.tolist()}
    old = zip(index.behind.ids.tolist(), index.behind.vectors, strict=True)
    kept = {i: tuple(v) for i, v in old if i not in gone}
    assert index.num_upserted == len(ids)
    assert index.num_deleted == len(deleted)
    return {**kept, **{i: tuple(v) for i, v in zip(ids.tolist(), vectors, strict=True)}}


def test_a_replaced_item_does_not_come_back_with_its_old_vector():
    index, _ = make(8)
    best = index.search(QUERIES[:1], 1)[1][0, 0]
    index.upsert([best], -100 * QUERIES[:1])
    scores, ids = index.search(QUERIES[:1], 8)
    assert ids[0].tolist().count(best) == 1
    assert ids[0, -1] == best
    assert scores[0, -1] == pytest.approx(-100 * float(QUERIES[0] @ QUERIES[0]), rel=1e-5)


def test_changes_made_again_to_another_index_give_the_same_answers():
    index, _ = make(20)
    index.upsert([5, 100], POOL[50:52], groups=[7, 8])
    index.delete([6, 7])
    other, _ = make(20)
    ids, vectors, groups, deleted = index.changes()
    other.upsert(ids, vectors, groups=groups)
    other.delete(deleted)
    for first, second in zip(
        index.search(QUERIES, 18, allow_groups=[0, 7]),
        other.search(QUERIES, 18, allow_groups=[0, 7]),
        strict=True,
    ):
        np.testing.assert_array_equal(first, second)
    assert len(other) == len(index) == 19


def test_an_item_without_a_group_is_in_none_and_one_that_lost_it_too():
    index, _ = make(6)
    assert 6 in index.search(QUERIES, 6, allow_groups=[1])[1]
    index.upsert([6, 50], 50 * QUERIES)  # 6 was of group 1
    index.upsert([51], 60 * QUERIES[:1], groups=[1])
    assert set(index.search(QUERIES, 8, allow_groups=[1])[1].flat) == {51, 9, -1}
    assert set(index.search(QUERIES, 8, allow_groups=[0, 1, 2, -(2**63)])[1].flat) == {
        *{5, 7, 8, 9, 10, 51},
        -1,
    }


@pytest.mark.parametrize("names", [(1, 2), ("one", "two")])
def test_items_with_and_without_a_group_come_together(names):
    index = DeltaIndex(NumpyRetriever(np.arange(4), POOL[:4], groups=[names[0]] * 4))
    index.upsert([50, 51, 52], 50 * QUERIES[[0, 0, 0]], groups=[None, names[1], None])
    assert set(index.search(QUERIES, 7, allow_groups=[names[1]])[1].flat) == {51, -1}
    assert set(index.search(QUERIES, 7)[1].flat) >= {50, 51, 52}


def test_an_index_without_groups_refuses_them():
    index, _ = make(6, groups=False)
    index.upsert([50], QUERIES[:1])
    with pytest.raises(InputError, match="allow_groups"):
        index.search(QUERIES, 3, allow_groups=[1])


BAD_UPSERTS = {
    "each id once": ([50, 50], POOL[:2], None),
    "no item with the id": ([-1], POOL[:1], None),
    "integers, as the index has": (["a"], POOL[:1], None),
    "2 rows, one per id": ([50, 51], POOL[:1], None),
    "shape": ([50], POOL[:1, :3], None),
    "finite numbers": ([50], np.full([1, WIDTH], np.nan), None),
    "at most 3 changed items; build the index anew": ([50, 51, 52], POOL[:3], [1, 1, 1]),
    "integers, as the index": ([50], POOL[:1], ["drama"]),
    "1 groups, one per id": ([50], POOL[:1], [1, 2]),
}


@pytest.mark.parametrize("message", BAD_UPSERTS)
def test_an_upsert_that_fails_changes_nothing(message):
    index, table = make(6, capacity=3)
    index.upsert([60], POOL[30:31], groups=[1])
    table[60] = POOL[30], 1
    ids, vectors, groups = BAD_UPSERTS[message]
    with pytest.raises(InputError, match=message):
        index.upsert(ids, vectors, groups=groups)
    assert_answers(index, table, 7)
    assert_answers(index, table, 7, allow_groups=[1])
    assert (len(index), index.num_upserted, index.num_deleted) == (7, 1, 0)


def test_the_capacity_counts_different_items_and_what_is_deleted():
    index, _ = make(6, capacity=3)
    for number in range(20):
        index.upsert([50, 6], POOL[number : number + 2])
    index.delete([7])
    with pytest.raises(InputError, match="build the index anew"):
        index.delete([8])
    index.delete([50])  # a new item leaves no trace
    index.delete([8])
    assert (len(index), index.num_upserted, index.num_deleted) == (4, 1, 2)
    with pytest.raises(InputError, match="1 unknown, the first is 8"):
        index.delete([6, 8])
    assert index.contains([6, 7, 8, 50]).tolist() == [True, False, False, False]
    with pytest.raises(InputError, match="at most the 4 items"):
        index.search(QUERIES, 5)


def test_a_snapshot_that_was_taken_stays_as_it_was():
    log = ChangeLog(Nature(WIDTH, -1, None, {}), capacity=100)
    kept = []
    for number in range(5000):
        item = number % 60
        log.upsert(np.array([item]), POOL[[number % 400]], [item], np.array([item < 30]))
        if number % 500 == 0:
            changed = log.changed
            answer = changed.search(QUERIES, Asked(5))
            kept.append((changed, [np.copy(a) for a in (*answer, changed.hidden)]))
    for changed, before in kept:
        after = (*changed.search(QUERIES, Asked(5)), changed.hidden)
        for first, second in zip(before, after, strict=True):
            np.testing.assert_array_equal(first, second)
    # Rows of replaced vectors do not pile up.
    assert len(log.changed.ids) < 1024 + 3 * 60
    assert sorted(log.changed.ids[log.changed.alive]) == list(range(60))


def test_many_queries_are_answered_in_parts(monkeypatch):
    index, _ = make(6)
    index.upsert([50, 51], POOL[20:22], groups=[1, 1])
    many = np.repeat(QUERIES, 25, axis=0)
    lists = [[50]] * 25 + [[51, 5]] * 25
    whole = index.search(many, 8, exclude=lists)
    monkeypatch.setattr("tfrs_negatives.model.top_k.CELLS_AT_ONCE", 7)
    for first, second in zip(whole, index.search(many, 8, exclude=lists), strict=True):
        np.testing.assert_array_equal(first, second)
    assert {len(part) for part in whole} == {50}
    assert [len(part) for part in index.search(np.zeros([0, WIDTH]), 8)] == [0, 0]


def test_towers_and_signatures_are_those_behind():
    index, _ = make(6)
    assert index.query_signature == index.behind.query_signature
    assert index.item_signature == index.behind.item_signature
    index.upsert([50], index.embed_item({"item_id": [50], "vector": 9 * QUERIES[:1]}))
    assert index.top_k({"vector": QUERIES[:1]}, 2)[1][0, 0] == 50
    with pytest.raises(InputError, match="capacity"):
        DeltaIndex(index, capacity=0)


@pytest.mark.slow
def test_readers_and_writers_at_once():
    """5,000 upserts and as many deletes by four threads, under the eyes of four readers."""
    index, _ = make(300, groups=False, capacity=6000)
    deleted, stop = set(), threading.Event()

    def write(thread):
        for number in range(1250):
            item, vector = 1000 + 4 * number + thread, 100 * POOL[[number % 400]]
            index.upsert([item], vector)
            own = index.search(vector, 10)[1] if number % 10 == 0 else [item]
            assert item in np.asarray(own)
            index.delete([item])
            deleted.add(item)

    def read():
        count = 0
        while not stop.is_set():
            gone = deleted.copy()
            scores, ids = index.search(QUERIES, 40)
            assert not gone & set(ids.flat)
            assert (np.diff(scores, axis=1) <= 0).all()
            assert ((ids == -1) == (scores == -np.inf)).all()
            assert (ids != -1).all()  # 300 items were never touched
            count += 1
        return count

    with ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        writers = [pool.submit(write, thread) for thread in range(4)]
        wait(writers)
        stop.set()
        assert [writer.result() for writer in writers] == [None] * 4
        assert sum(reader.result() for reader in readers) > 20
    assert (len(index), index.num_upserted, index.num_deleted) == (300, 0, 0)


def test_no_reader_sees_half_of_an_upsert():
    index, _ = make(20, groups=False, capacity=50)
    stop = threading.Event()

    def write():
        try:
            for number in range(1, 1500):
                # Both ways of changing an item: 5 is of the frozen index, 90 is not.
                index.upsert([5, 90], 100 * np.float32(number) * np.repeat(QUERIES[:1], 2, axis=0))
        finally:
            stop.set()

    def read():
        while not stop.is_set():
            scores, ids = index.search(QUERIES[:1], 2)
            if 90 in ids:
                assert set(ids.flat) == {5, 90}
                assert scores[0, 0] == scores[0, 1]

    index.upsert([5, 90], 50 * np.repeat(QUERIES[:1], 2, axis=0))
    with ThreadPoolExecutor(3) as pool:
        for task in [pool.submit(write), pool.submit(read), pool.submit(read)]:
            task.result()
