"""The index in memory against sorting all scores by hand."""

import numpy as np
import pytest
import tensorflow as tf
from index_cases import NUM_USERS, FakeModel, index_with_a_small_leaf, make_model

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.index import build_index
from tfrs_negatives.index.search.backends import Depth, ScannSearch, ScannSettings
from tfrs_negatives.towers.signature import check_features


def slow_top_k(model, users, k):
    """Scores in float64, sorted by score and, among equals, by place in the catalogue."""
    items, queries = (t.numpy().astype(np.float64) for t in (model.item_table, model.user_table))
    all_scores, all_ids = [], []
    for user in users:
        pairs = sorted((-float(queries[user] @ item), row) for row, item in enumerate(items))
        all_scores.append([-score for score, _ in pairs[:k]])
        all_ids.append([model.items.ids[row] for _, row in pairs[:k]])
    return np.array(all_scores), np.array(all_ids)


@pytest.mark.parametrize("kind", ["exact", "scann"])
@pytest.mark.parametrize("num_items", [1, 2, 3, 17, 300, 1000])
def test_all_items_of_a_corpus_of_any_size_come_back_in_order(kind, num_items):
    model = make_model(num_items)
    index = build_index(model, kind=kind)
    assert (index.kind, len(index)) == (kind, num_items)
    scores, ids = index.top_k({"user_id": [3, 0, 7]}, k=num_items)
    expected_scores, expected_ids = slow_top_k(model, [3, 0, 7], num_items)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(ids, expected_ids)


@pytest.mark.parametrize("string_ids", [False, True])
def test_scann_scores_are_exact_and_the_reported_recall_is_true(string_ids):
    model = make_model(3000, string_ids=string_ids)
    users = list(range(NUM_USERS))
    index = build_index(model, kind="scann", target_recall=0.8, probe_queries={"user_id": users})
    scores, ids = index.top_k({"user_id": users}, k=10)
    assert scores.shape == ids.shape == (NUM_USERS, 10)
    assert ids.dtype.kind == ("U" if string_ids else "i")
    assert (np.diff(scores, axis=1) <= 0).all()
    _, best = slow_top_k(model, users, 10)
    found = [len(set(mine) & set(theirs)) for mine, theirs in zip(ids, best, strict=True)]
    assert index.recall["recall"] == pytest.approx(sum(found) / (10 * NUM_USERS))
    assert 0.8 <= index.recall["recall"] < 1
    assert {**index.recall, "recall": 0} == {
        "k": 10,
        "recall": 0,
        "num_queries": NUM_USERS,
        "probes": "given queries",
    }
    row_of = {item: row for row, item in enumerate(model.items.ids)}
    rows = np.vectorize(row_of.__getitem__)(ids)
    for user in users:
        products = model.item_table.numpy()[rows[user]] @ model.user_table.numpy()[user]
        np.testing.assert_allclose(scores[user], products, rtol=1e-5, atol=1e-5)


def test_the_report_of_an_exact_index_says_that_nothing_was_measured():
    recall = build_index(make_model(4), recall_k=10).recall
    assert recall == {"k": 4, "recall": 1.0, "num_queries": 0, "probes": "exact"}


def test_items_that_tie_are_all_found_and_keep_the_order_of_the_catalogue():
    items = np.array([[1, 1], [2, 0], [0, 2], [3, 3], [1, 1]], np.float32)
    model = FakeModel(items, np.array([[1, 1]], np.float32)).with_ids([9, 8, 7, 6, 5])
    scores, ids = build_index(model).top_k({"user_id": [0]}, k=4)
    assert scores.tolist() == [[6, 2, 2, 2]]
    assert ids.tolist() == [[6, 9, 8, 7]]
    many = np.repeat(np.eye(4, dtype=np.float32), 300, axis=0)
    tied = FakeModel(many, np.eye(4, dtype=np.float32)).with_ids(np.arange(1200))
    assert build_index(tied, kind="scann", target_recall=0.01).recall["recall"] == 1.0


def test_a_bias_dimension_is_part_of_the_score_of_a_cosine_model():
    generator = np.random.default_rng(3)
    users, items = generator.normal(size=[5, 4]), generator.normal(size=[30, 4])
    bias = generator.normal(size=30)
    unit_users = users / np.linalg.norm(users, axis=1, keepdims=True)
    unit_items = items / np.linalg.norm(items, axis=1, keepdims=True)
    model = FakeModel(
        np.column_stack([unit_items, bias]).astype(np.float32),
        np.column_stack([unit_users, np.ones(5)]).astype(np.float32),
        similarity="cosine",
    ).with_ids(np.arange(100, 130))
    for kind in ("exact", "scann"):
        scores, ids = build_index(model, kind=kind).top_k({"user_id": [4]}, k=30)
        expected = {}
        for item in range(30):
            cosine = (
                users[4]
                @ items[item]
                / np.sqrt((users[4] @ users[4]) * (items[item] @ items[item]))
            )
            expected[100 + item] = cosine + bias[item]
        assert ids[0].tolist() == sorted(expected, key=expected.get, reverse=True)
        np.testing.assert_allclose(scores[0], sorted(expected.values(), reverse=True), atol=1e-5)


@pytest.mark.parametrize(
    ("ids", "padding"), [(np.arange(1000), -1), ([f"i{n}" for n in range(1000)], "")]
)
def test_columns_that_a_search_cannot_fill_are_declared_and_never_the_first_item(ids, padding):
    scores, found = index_with_a_small_leaf(ids).top_k({"user_id": [0, 0]}, k=100)
    expected = [ids[row] for row in range(159, 99, -1)] + [padding] * 40
    assert found.tolist() == [expected, expected]
    np.testing.assert_allclose(scores[0, :60], 10 + np.arange(59, -1, -1) / 100, rtol=1e-6)
    assert np.isneginf(scores[:, 60:]).all()


def test_a_large_k_searches_enough_leaves_to_be_filled():
    index = build_index(make_model(3000), kind="scann", target_recall=0.01)
    scores, _ = index.top_k({"user_id": range(NUM_USERS)}, k=1500)
    assert np.isfinite(scores).mean() > 0.99


@pytest.mark.parametrize("kind", ["exact", "scann"])
@pytest.mark.parametrize("num_items", [20, 1000])
def test_a_broken_query_finds_nothing_and_the_others_are_answered(kind, num_items):
    backend = build_index(make_model(num_items, width=2), kind=kind).backend
    queries = tf.constant([[1, 2], [np.nan, 1], [np.inf, -1], [1, 2]], tf.float32)
    for search in (backend.search, tf.function(backend.search)):
        scores, rows = (answer.numpy() for answer in search(queries, 5))
        assert np.isneginf(scores[1:3]).all()
        assert (rows[1:3] == -1).all()
        assert np.isfinite(scores[[0, 3]]).all()
        np.testing.assert_array_equal(rows[0], rows[3])


@pytest.mark.parametrize("kind", ["exact", "scann"])
def test_any_number_of_queries_is_answered(kind):
    index = build_index(make_model(1000), kind=kind)
    together = index.top_k({"user_id": [1, 2, 3]}, k=4)
    for row, user in enumerate([1, 2, 3]):
        scores, ids = index.top_k({"user_id": [user]}, k=4)
        np.testing.assert_array_equal(ids[0], together[1][row])
        np.testing.assert_allclose(scores[0], together[0][row], rtol=1e-5)
    scores, ids = index.top_k({"user_id": []}, k=4)
    assert scores.shape == ids.shape == (0, 4)


def test_queries_are_searched_in_parts_that_memory_allows(monkeypatch):
    index = build_index(make_model(30))
    users = {"user_id": np.arange(NUM_USERS)}
    scores, ids = index.top_k(users, k=3)
    monkeypatch.setattr("tfrs_negatives.model.top_k.CELLS_AT_ONCE", 30 * 7)
    again = index.top_k(users, k=3)
    np.testing.assert_array_equal(ids, again[1])
    np.testing.assert_allclose(scores, again[0], rtol=1e-5)


def test_the_catalogue_is_embedded_in_chunks():
    model = make_model(25)
    in_chunks = build_index(model, batch_size=10)
    assert model.chunks == [10, 10, 5]
    whole = build_index(model, batch_size=25)
    query = {"user_id": [8]}
    assert in_chunks.top_k(query, 25)[1].tolist() == whole.top_k(query, 25)[1].tolist()


def test_the_same_vectors_and_settings_give_the_same_scann_index():
    settings = ScannSettings(num_leaves=50, depths=(Depth(k=10, leaves=4, reorder=40),))
    first, second = (
        build_index(make_model(3000), kind="scann", settings=settings) for _ in range(2)
    )
    query = {"user_id": range(NUM_USERS)}
    np.testing.assert_array_equal(first.top_k(query, 30)[1], second.top_k(query, 30)[1])
    assert first.recall == second.recall
    assert first.backend.settings == settings
    assert first.sweep == []


def test_auto_takes_scann_for_a_large_corpus_and_exact_where_it_is_not_installed(monkeypatch):
    large = make_model(20_000, width=2)
    assert build_index(make_model(19_999, width=2)).kind == "exact"
    assert build_index(large).kind == "scann"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert build_index(large).kind == "exact"


def test_an_item_vector_that_is_not_finite_is_named():
    model = make_model(30)
    model.item_table[17, 3].assign(np.nan)
    model.item_table[23, 0].assign(np.inf)
    with pytest.raises(
        InputError, match=rf"`item_vectors`.* nan for the item {model.items.ids[17]}$"
    ):
        build_index(model, batch_size=10)


@pytest.mark.parametrize("bad_id", [-1, ""])
def test_an_item_must_not_have_the_id_of_no_item(bad_id):
    ids = [3, bad_id] if bad_id == -1 else ["a", bad_id]
    with pytest.raises(InputError, match="`ids`"):
        make_model(2).with_ids(ids)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"kind": "annoy"}, "kind"),
        ({"target_recall": 0}, "target_recall"),
        ({"target_recall": 1.1}, "target_recall"),
        ({"target_recall": float("nan")}, "target_recall"),
        ({"recall_k": 0}, "recall_k"),
        ({"recall_k": 2.5}, "recall_k"),
        ({"batch_size": -1}, "batch_size"),
        ({"num_probe_queries": True}, "num_probe_queries"),
        ({"probe_queries": {"user_id": []}}, "probe_queries"),
        ({"probe_queries": {"user": [1]}}, "probe_queries"),
    ],
)
def test_bad_options_are_named(options, argument):
    with pytest.raises(InputError, match=f"^`{argument}`"):
        build_index(make_model(5), **options)


def test_features_are_cast_only_where_nothing_is_lost():
    signature = {
        "age": tf.TensorSpec([None], tf.float32),
        "tags": tf.TensorSpec([None, None], tf.string),
        "old": tf.TensorSpec([None], tf.bool),
        "code": tf.TensorSpec([None], tf.int32),
    }
    good = {"age": [3], "tags": [["a", "b"]], "old": [True], "code": np.array([7], np.int64)}
    tensors = check_features(good, signature)
    assert {n: t.dtype for n, t in tensors.items()} == {n: s.dtype for n, s in signature.items()}
    wrong = {"age": [np.nan], "tags": [[1, 2]], "old": [1], "code": [2**40]}
    for name, values in wrong.items():
        with pytest.raises(InputError, match=rf"features\['{name}'\]"):
            check_features({**good, name: values}, signature)
    with pytest.raises(InputError, match="same number of rows"):
        check_features({**good, "age": [1, 2]}, signature)


@pytest.mark.parametrize("vectors", [[1.0] * 8, np.zeros([2, 7]), [[np.nan] * 8]])
def test_bad_vectors_are_refused(vectors):
    with pytest.raises(InputError, match="`vectors`"):
        build_index(make_model(5)).search(vectors, 2)


def test_scann_below_a_thousand_items_scores_all_of_them():
    assert ScannSettings.rule_of_thumb(999).num_leaves == 1
    vectors = np.random.default_rng(0).normal(size=[999, 3]).astype(np.float32)
    scores, rows = ScannSearch(vectors, ScannSettings.rule_of_thumb(999)).search(
        tf.constant([[1.0, 0, 0]]), 5
    )
    assert rows.numpy()[0].tolist() == np.argsort(-vectors[:, 0])[:5].tolist()
    np.testing.assert_allclose(scores.numpy()[0], np.sort(vectors[:, 0])[::-1][:5], rtol=1e-5)
