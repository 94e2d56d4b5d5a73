"""A corpus in parts answers as one; vectors go through files without being all in memory."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from index_cases import NUM_USERS, make_model
from retriever_cases import NumpyRetriever, brute_force

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.index import (
    DeltaIndex,
    ShardedIndex,
    build_index,
    embed_items,
    export_shards,
    load_shards,
    vectors_to_parquet,
)


@pytest.fixture(scope="module")
def parts():
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=[60, 4]).astype(np.float32)
    ids, groups = np.arange(100, 160), generator.integers(0, 3, 60)
    bounds = [(0, 7), (7, 50), (50, 60)]
    shards = [NumpyRetriever(ids[a:b], vectors[a:b], groups=groups[a:b]) for a, b in bounds]
    items = {i: (v, g) for i, v, g in zip(ids.tolist(), vectors, groups.tolist(), strict=True)}
    return ShardedIndex(shards), items


@pytest.mark.parametrize("k", [1, 5, 12, 60])
def test_parts_answer_as_the_whole(parts, k):
    index, items = parts
    generator = np.random.default_rng(k)
    queries = generator.normal(size=[5, 4]).astype(np.float32)
    some = [generator.integers(90, 170, size).tolist() for size in (0, 1, 5, 30, 50)]
    for lists in (
        {},
        {"exclude": some},
        {"allow": some},
        {"allow": some, "exclude": some[::-1]},
        {"allow_groups": [[0], [1, 2], [], [2], [0, 1]]},
    ):
        scores, ids = index.search(queries, k, **lists)
        expected_scores, expected_ids = brute_force(items, queries, k, **lists)
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(ids, expected_ids)
    assert len(index) == 60
    assert index.contains([100, 159, 99]).tolist() == [True, True, False]


def test_parts_of_other_models_are_refused(parts):
    good = NumpyRetriever([1, 2], np.zeros([2, 4]))
    for other in (NumpyRetriever([3], np.zeros([1, 5])), NumpyRetriever(["a"], np.zeros([1, 4]))):
        with pytest.raises(InputError, match="`shards`: expected indexes of the same model"):
            ShardedIndex([good, other])
    with pytest.raises(InputError, match="`shards`: expected at least one index"):
        ShardedIndex([])
    with pytest.raises(InputError, match=r"`k`.*at most the 60 items"):
        parts[0].search(np.zeros([1, 4]), 61)


def test_what_only_some_parts_know_is_compared_among_those(tmp_path):
    model = make_model(60)
    export_shards(model, tmp_path / "parts", byte_budget=1000, ks=[5], check=False)
    in_memory, loaded = build_index(model), load_shards(tmp_path / "parts").shards
    assert len(ShardedIndex([in_memory, *loaded])) == 120
    loaded[1].manifest["similarity"] = "cosine"
    with pytest.raises(InputError, match="similarity cosine in number 2, dot in number 1"):
        ShardedIndex([in_memory, *loaded])


def test_a_part_that_changes_may_lose_all_its_items():
    vectors = np.eye(4, dtype=np.float32)
    changing = DeltaIndex(NumpyRetriever([3, 4], vectors[2:]))
    index = ShardedIndex([NumpyRetriever([1, 2], vectors[:2]), changing])
    changing.delete([3, 4])
    assert sorted(index.search(vectors[:1], 2)[1][0]) == [1, 2]
    changing.upsert([9], 5 * vectors[:1])
    assert index.search(vectors[:1], 3)[1].tolist() == [[9, 1, 2]]


@pytest.mark.slow
def test_exported_parts_answer_as_one_index(tmp_path):
    model = make_model(100, string_ids=True)
    groups = np.where(np.arange(100) < 30, "few", "many")
    model.items.features["kind"] = groups
    whole = build_index(model, group_by="kind")
    path = export_shards(
        model, tmp_path / "parts", byte_budget=40 * 8 * 4, ks=[5, 50], check=False, group_by="kind"
    )
    assert sorted(p.name for p in path.iterdir()) == [
        "shard-00000",
        "shard-00001",
        "shard-00002",
        "shards.json",
    ]
    index = load_shards(path)
    users = {"user_id": np.arange(NUM_USERS)}
    for lists in ({}, {"exclude": whole.ids[:60].tolist()}, {"allow_groups": ["few"]}):
        scores, ids = index.top_k(users, 12, **lists)
        expected_scores, expected_ids = whole.top_k(users, 12, **lists)
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)


def test_parts_come_whole_or_not_at_all(tmp_path, monkeypatch):
    model = make_model(50)
    with pytest.raises(InputError, match="`byte_budget`: expected at least 32, one vector"):
        export_shards(model, tmp_path / "parts", byte_budget=31)
    monkeypatch.setattr(
        "tfrs_negatives.index.live.shards.export_index",
        lambda *_, **__: (_ for _ in ()).throw(OSError),
    )
    with pytest.raises(OSError):  # noqa: PT011
        export_shards(model, tmp_path / "parts", byte_budget=10_000)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "parts").mkdir()
    with pytest.raises(InputError, match="`path`: expected a new folder"):
        export_shards(model, tmp_path / "parts", byte_budget=10_000)
    with pytest.raises(InputError, match=r"`path`: expected a folder with shards\.json"):
        load_shards(tmp_path / "parts")


def test_vectors_go_through_a_file(tmp_path):
    model = make_model(90)
    mapped = embed_items(model, 40, out=tmp_path / "vectors.npy")
    assert isinstance(mapped, np.memmap)
    assert model.chunks == [40, 40, 10]
    np.testing.assert_array_equal(mapped, model.item_table.numpy())
    users = {"user_id": [1, 2, 3]}
    expected = build_index(model).top_k(users, 9)
    for vectors in (mapped, tmp_path / "vectors.npy", str(tmp_path / "vectors.npy")):
        np.testing.assert_array_equal(
            build_index(model, vectors=vectors).top_k(users, 9)[1], expected[1]
        )
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.npy"]


@pytest.mark.parametrize(
    "vectors",
    [
        np.zeros([89, 8]),
        np.zeros([90]),
        np.zeros([90, 8], int),
        np.full([90, 8], np.inf),
        "missing.npy",
        __file__,
    ],
)
def test_vectors_that_are_none_are_refused(vectors):
    with pytest.raises(InputError, match="`vectors`"):
        build_index(make_model(90), vectors=vectors)


def test_ids_of_ones_own_need_their_vectors():
    with pytest.raises(InputError, match="`vectors`: expected the vectors of these ids"):
        build_index(make_model(5), ids=[1, 2])


@pytest.mark.parametrize("string_ids", [True, False])
def test_parquet_holds_ids_and_vectors_in_groups(tmp_path, string_ids):
    vectors = np.random.default_rng(0).normal(size=[25, 3]).astype(np.float32)
    ids = np.array([f"ü{n}" for n in range(25)]) if string_ids else np.arange(25)
    path = vectors_to_parquet(tmp_path / "items.parquet", ids, vectors, rows_per_group=10)
    file = pq.ParquetFile(path)
    assert file.num_row_groups == 3
    kind = "string" if string_ids else "int64"
    names = [(field.name, str(field.type)) for field in file.schema_arrow]
    assert names[0] == ("id", kind)
    assert names[1][0] == "vector"
    assert names[1][1].startswith("fixed_size_list<")
    assert names[1][1].endswith("float>[3]")
    table = file.read()
    assert table["id"].to_pylist() == ids.tolist()
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.float32), vectors)
    with pytest.raises(InputError, match="`vectors`"):
        vectors_to_parquet(tmp_path / "other.parquet", ids, vectors[:5])
    assert [p.name for p in tmp_path.iterdir()] == ["items.parquet"]
