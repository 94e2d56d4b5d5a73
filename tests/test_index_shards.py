"""Several indexes as one, against sorting all scores by hand."""

import threading

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from index_cases import make_model
from retriever_cases import NumpyRetriever, brute_force

from tfrs_negatives.index import (
    DeltaIndex,
    ShardedIndex,
    build_index,
    export_index,
    load_index,
)
from tfrs_negatives.types import InputError

POOL = np.random.default_rng(0).normal(size=[40, 4]).astype(np.float32)
QUERIES = np.random.default_rng(1).normal(size=[3, 4]).astype(np.float32)

numbers = st.integers(0, 20)
lists = st.none() | st.lists(numbers, max_size=8) | st.tuples(*[st.lists(numbers, max_size=8)] * 3)


def shards_of(sizes, names, *, groups=True):
    ends = np.cumsum(sizes)
    parts = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    number = np.arange(ends[-1]) % 3
    return [NumpyRetriever(names[p], POOL[p], groups=number[p] if groups else None) for p in parts]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    k=st.integers(1, 20),
    exclude=lists,
    allow=lists,
    groups=lists,
    as_strings=st.booleans(),
)
def test_shards_answer_as_one_index_does(sizes, k, exclude, allow, groups, as_strings):
    total = sum(sizes)
    names = [f"item {'x' * n}" for n in range(21)] if as_strings else list(range(100, 121))
    # Strings of a later shard are longer than those of the first.
    index = ShardedIndex(shards_of(sizes, names[:total]))
    table = {names[n]: (POOL[n], n % 3) for n in range(total)}
    k = min(k, total)

    def each(lists, values):
        if lists is None:
            return None, None
        rows = [
            [values[n] for n in row] for row in (lists if isinstance(lists, tuple) else [lists])
        ]
        return rows if isinstance(lists, tuple) else rows[0], rows * (1 if len(rows) == 3 else 3)

    handed, expected = {}, {}
    for name, values, drawn in (
        ("exclude", names, exclude),
        ("allow", names, allow),
        ("allow_groups", range(21), groups),
    ):
        handed[name], expected[name] = each(drawn, values)
    scores, ids = index.search(QUERIES, k, **handed)
    wanted_scores, wanted = brute_force(table, QUERIES, k, padding=index.padding_id, **expected)
    assert scores.shape == (3, k)
    np.testing.assert_array_equal(ids, wanted)
    np.testing.assert_allclose(scores, wanted_scores, rtol=1e-5)
    assert len(index) == total
    assert index.contains(names).tolist() == [name in table for name in names]


def test_of_equal_scores_the_lower_shard_comes_first():
    same = np.ones([2, 4], np.float32)
    index = ShardedIndex([NumpyRetriever([9, 8], same), NumpyRetriever([1, 2], same)])
    assert index.search(QUERIES[:1], 4)[1].tolist() == [[9, 8, 1, 2]]
    assert index.search(QUERIES[:1], 3, exclude=[8])[1].tolist() == [[9, 1, 2]]


def test_a_query_is_embedded_once_and_by_the_first():
    first, second = shards_of([3, 3], range(6), groups=False)
    first.scale = np.float32(2)
    second.embed_query = second.embed_item = None  # whoever calls it fails
    index = ShardedIndex([first, second])
    scores, _ = index.top_k({"vector": QUERIES}, 6)
    expected = np.sort(2 * QUERIES @ POOL[:6].T)[:, ::-1]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    embedded = index.embed_item({"item_id": [7], "vector": QUERIES[:1]})
    np.testing.assert_array_equal(embedded, 2 * QUERIES[:1])


def test_all_shards_are_asked_at_the_same_time():
    barrier = threading.Barrier(3, timeout=5)

    class Waiting(NumpyRetriever):
        def search(self, *arguments, **options):
            barrier.wait()  # breaks unless three come together
            return super().search(*arguments, **options)

    index = ShardedIndex([Waiting([n], POOL[n : n + 1]) for n in range(3)])
    assert set(index.search(QUERIES[:1], 3)[1].flat) == {0, 1, 2}


def test_exports_of_parts_answer_as_the_index_of_all(tmp_path):
    model = make_model(50)
    whole = build_index(model)
    ids, vectors = model.items.ids, model.item_table.numpy()
    parts = [build_index(model, ids=ids[p], vectors=vectors[p]) for p in np.split(range(50), [20])]
    loaded = [
        load_index(export_index(part, tmp_path / str(n), ks=[5], check=False))
        for n, part in enumerate(parts)
    ]
    for shards in (parts, loaded):
        answer = ShardedIndex(shards).top_k({"user_id": [3, 0]}, 50, exclude=[int(ids[0])])
        for mine, theirs in zip(
            answer, whole.top_k({"user_id": [3, 0]}, 50, exclude=[int(ids[0])]), strict=True
        ):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5)
    loaded[1].manifest["similarity"] = "cosine"
    with pytest.raises(InputError, match="similarity of the first shard, 'dot'"):
        ShardedIndex(loaded)


def test_a_shard_may_change_and_lose_all_its_items():
    first, second = shards_of([3, 3], range(6), groups=False)
    changing = DeltaIndex(second)
    index = ShardedIndex([first, changing])
    changing.delete([3, 4, 5])
    assert len(index) == 3
    assert set(index.search(QUERIES, 3)[1].flat) == {0, 1, 2}
    changing.upsert([9], 100 * QUERIES[:1])
    assert index.search(QUERIES[:1], 4)[1][0, 0] == 9


def test_what_does_not_fit_together_is_refused():
    first = NumpyRetriever([1, 2], POOL[:2])

    class Renamed(NumpyRetriever):
        @property
        def query_signature(self):
            return {"user": tf.TensorSpec([None, 4], tf.float32)}

    for shards, message in (
        ([], "at least one index"),
        ([first, NumpyRetriever([3], POOL[:1, :3])], r"shards\[1\].*width of the first shard, 4"),
        ([first, NumpyRetriever(["a"], POOL[:1])], "padding_id of the first shard, -1"),
        ([first, Renamed([3], POOL[:1])], "query_signature of the first shard"),
    ):
        with pytest.raises(InputError, match=message):
            ShardedIndex(shards)
    model = make_model(4)
    parts = [
        build_index(model, ids=ids, vectors=POOL[: len(ids)]) for ids in ([1, 2, 3], [4, 2, 3])
    ]
    with pytest.raises(InputError, match="2 in two, the first is 2"):
        ShardedIndex(parts)
    with pytest.raises(InputError, match="at most the 2 items"):
        ShardedIndex([first]).search(QUERIES, 3)
