"""The index against sorting all scores by hand, in memory, exported, and in another process."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from tfrs_negatives.encode.catalogue import ItemCatalogue
from tfrs_negatives.index import ExportError, build_index, export_index, load_index
from tfrs_negatives.index import export as export_module
from tfrs_negatives.index.backends import ScannSearch, ScannSettings
from tfrs_negatives.types import InputError

NUM_USERS = 40


class FakeModel(tf.Module):
    """Two tables. Users are integers, or strings "u0", "u1", ...; row 0 is the unknown user."""

    def __init__(self, items, users, *, string_users=False, similarity="dot"):
        super().__init__()
        self.similarity = similarity
        self.user_table = tf.Variable(users)
        self.item_table = tf.Variable(items)
        self.sampler_table = tf.Variable(tf.zeros([777, 5]), trainable=False)
        self.lookup = None
        if string_users:
            names = [f"u{row}" for row in range(1, len(users))]
            self.lookup = tf.keras.layers.StringLookup(vocabulary=names)
        self.chunks = []

    def with_ids(self, ids):
        self.items = ItemCatalogue(ids, {"row": np.arange(len(ids))})
        return self

    @property
    def query_signature(self):
        return {"user_id": tf.TensorSpec([None], tf.string if self.lookup else tf.int64)}

    def query_vectors(self, features):
        rows = features["user_id"]
        return tf.gather(self.user_table, self.lookup(rows) if self.lookup else rows)

    def item_vectors(self, features):
        self.chunks.append(len(features["row"]))
        return tf.gather(self.item_table, features["row"])


def make_model(num_items, *, width=8, seed=0, string_ids=False, **options):
    generator = np.random.default_rng(seed)
    users = generator.normal(size=[NUM_USERS, width]).astype(np.float32)
    items = generator.normal(size=[num_items, width]).astype(np.float32)
    # Ids are shuffled and start at 5, so that a row taken for an id is wrong.
    ids = 5 + generator.permutation(num_items)
    model = FakeModel(items, users, **options)
    return model.with_ids([f"item {i}" for i in ids] if string_ids else ids)


def slow_top_k(model, users, k):
    """Scores in float64, sorted by score and, among equals, by place in the catalogue."""
    all_scores, all_ids = [], []
    for user in users:
        pairs = []
        for row, vector in enumerate(model.item_table.numpy()):
            query = model.user_table.numpy()[user].astype(np.float64)
            pairs.append((-sum(query * vector.astype(np.float64)), row))
        best = sorted(pairs)[:k]
        all_scores.append([-score for score, _ in best])
        all_ids.append([model.items.ids[row] for _, row in best])
    return np.array(all_scores), np.array(all_ids)


@pytest.fixture(scope="module")
def exported_exact(tmp_path_factory):
    model = make_model(60)
    index = build_index(model)
    path = tmp_path_factory.mktemp("made") / "not yet there" / "exact"
    assert export_index(index, path, ks=[3, 20, 10]) == path
    return index, path


@pytest.fixture(scope="module")
def exported_scann(tmp_path_factory):
    model = make_model(1000, string_ids=True, string_users=True)
    probes = {"user_id": [f"u{user}" for user in range(NUM_USERS)]}
    index = build_index(model, kind="scann", probe_queries=probes)
    path = tmp_path_factory.mktemp("made") / "scann"
    export_index(index, path, ks=(10, 50))
    return index, path


@pytest.fixture(params=["exact", "scann"])
def exported(request, exported_exact, exported_scann):
    return exported_exact if request.param == "exact" else exported_scann


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


def test_leaves_are_doubled_until_the_target_is_met():
    model = make_model(3000)
    low = build_index(model, kind="scann", target_recall=0.01)
    high = build_index(model, kind="scann", target_recall=0.9)
    start = ScannSettings.rule_of_thumb(3000)
    assert low.backend.settings == start
    searched = high.backend.settings.leaves_to_search
    assert searched in {start.leaves_to_search * 2**n for n in range(1, 6)} | {start.num_leaves}
    assert high.recall["recall"] >= 0.9 > low.recall["recall"]
    assert high.recall["probes"] == "item vectors with noise"


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


def few_near_many_far():
    """Three items, rows 5 to 7, in the direction of the query; 997 in the opposite one."""
    generator = np.random.default_rng(0)
    items = generator.normal([-10, 0], 0.5, size=[1000, 2]).astype(np.float32)
    items[5:8] = [[10, 0], [11, 0], [12, 0]]
    return items


def test_columns_that_a_search_cannot_fill_are_declared_and_never_the_first_item():
    items = few_near_many_far()
    for ids, padding in ((np.arange(1000), -1), ([f"i{n}" for n in range(1000)], "")):
        model = FakeModel(items, np.array([[1, 0]], np.float32)).with_ids(ids)
        index = build_index(model, kind="scann")
        index.backend.settings = replace(index.backend.settings, leaves_to_search=1)
        scores, found = index.top_k({"user_id": [0, 0]}, k=10)
        expected_ids = [ids[7], ids[6], ids[5]] + [padding] * 7
        assert found.tolist() == [expected_ids, expected_ids]
        np.testing.assert_allclose(scores[0], [12, 11, 10] + [-np.inf] * 7, rtol=1e-6)


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
    monkeypatch.setattr("tfrs_negatives.index.backends._CELLS_AT_ONCE", 30 * 7)
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


def test_the_same_vectors_give_the_same_scann_index():
    first, second = (
        build_index(make_model(3000), kind="scann", target_recall=0.01) for _ in range(2)
    )
    query = {"user_id": range(NUM_USERS)}
    np.testing.assert_array_equal(first.top_k(query, 30)[1], second.top_k(query, 30)[1])
    assert first.recall == second.recall


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
        InputError,
        match=f"`item_vectors`.*item {model.items.ids[17]!r}".replace("(", r"\(").replace(
            ")", r"\)"
        ),
    ):
        build_index(model, batch_size=10)


@pytest.mark.parametrize("bad_id", [-1, ""])
def test_an_item_must_not_have_the_id_of_no_item(bad_id):
    ids = [3, bad_id] if bad_id == -1 else ["a", bad_id]
    with pytest.raises(InputError, match="`items`"):
        build_index(make_model(2).with_ids(ids))


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


@pytest.mark.parametrize("k", [0, -1, 61, 2.0, True, None, "3"])
def test_a_bad_k_is_refused_in_memory_and_loaded(exported_exact, k):
    index, path = exported_exact
    with pytest.raises(InputError, match="^`k`: expected a positive integer, at most the 60 items"):
        index.top_k({"user_id": [1]}, k)
    with pytest.raises(InputError, match=r"at most 20: exported were \[3, 10, 20\]"):
        load_index(path).top_k({"user_id": [1]}, k)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({}, r"missing \['user_id'\], unknown \[\]"),
        ({"user_id": [1], "age": [3.0]}, r"missing \[\], unknown \['age'\]"),
        ({"user_id": 1}, "one entry per query. Received: a single value, 1"),
        ({"user_id": [[1], [2]]}, r"Received: shape \[2, 1\]"),
        ({"user_id": [[1], [2, 3]]}, "rows of different lengths"),
        ({"user_id": ["u1"]}, "Received: dtype <U2"),
        ({"user_id": [1.5]}, "Received: dtype float64"),
        ({"user_id": [2**63]}, "which does not fit"),
        ({"user_id": None}, "a single value, None"),
        ([1, 2], "a dict of query features. Received: a list"),
    ],
)
def test_bad_features_are_refused_in_memory_and_loaded(exported_exact, features, message):
    index, path = exported_exact
    for answering in (index, load_index(path)):
        with pytest.raises(InputError, match=message):
            answering.top_k(features, 3)


def test_features_are_cast_only_where_nothing_is_lost():
    from tfrs_negatives.index.arguments import check_features

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
def test_bad_vectors_are_refused(exported_exact, vectors):
    with pytest.raises(InputError, match="`vectors`"):
        exported_exact[0].search(vectors, 2)


def test_an_export_answers_as_the_index_in_memory(exported):
    index, path = exported
    loaded = load_index(path)
    users = ["u1", "nobody", "u39"] if index.kind == "scann" else [1, 0, 39]
    for batch in (users, users[:1], np.array(users), []):
        for k in (1, 3, 4, 10, 20):
            scores, ids = loaded.top_k({"user_id": batch}, k)
            expected_scores, expected_ids = index.top_k({"user_id": batch}, k)
            assert scores.shape == ids.shape == (len(batch), k)
            assert ids.dtype.kind == expected_ids.dtype.kind
            np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
            np.testing.assert_array_equal(ids, expected_ids)
    vectors = index.model.user_table.numpy()[[1, 0, 39]]
    np.testing.assert_allclose(loaded.embed_query({"user_id": users}), vectors, rtol=1e-6)


def test_an_export_has_named_signatures(exported_exact):
    index, path = exported_exact
    signatures = tf.saved_model.load(str(path)).signatures
    assert set(signatures) == {"serving_default", "top_3", "top_10", "top_20", "embed_query"}
    answer = signatures["serving_default"](user_id=tf.constant([5], tf.int64))
    assert set(answer) == {"scores", "ids"}
    assert answer["ids"].numpy().tolist() == index.top_k({"user_id": [5]}, 3)[1].tolist()
    assert signatures["top_20"].structured_outputs["scores"].shape.as_list() == [None, 20]


def test_an_export_declares_what_it_could_not_fill(tmp_path):
    model = FakeModel(few_near_many_far(), np.array([[1, 0]], np.float32))
    index = build_index(model.with_ids(np.arange(1000)), kind="scann")
    index.backend.settings = replace(index.backend.settings, leaves_to_search=1)
    loaded = load_index(export_index(index, tmp_path / "padded", ks=[10], check=False))
    scores, ids = loaded.top_k({"user_id": [0]}, 10)
    assert ids.tolist() == [[7, 6, 5] + [-1] * 7]
    assert np.isneginf(scores[0, 3:]).all()


def test_the_manifest_says_what_the_index_is(exported):
    index, path = exported
    manifest = json.loads((path / "manifest.json").read_text())
    scann = index.kind == "scann"
    assert manifest == load_index(path).manifest
    assert manifest["versions"]["tensorflow"] == tf.__version__
    assert manifest["custom_ops"] == (
        ["Scann>ScannSearchBatched", "Scann>TensorsToScann"] if scann else []
    )
    assert manifest["padding"] == {"id": "" if scann else -1, "score": "-inf"}
    assert manifest["recall"] == index.recall
    assert manifest["query_features"] == [
        {"name": "user_id", "dtype": "string" if scann else "int64", "shape": [None]}
    ]
    expected = {
        "kind": index.kind,
        "similarity": "dot",
        "num_items": 1000 if scann else 60,
        "width": 8,
        "ks": [10, 50] if scann else [3, 20, 10],
        "id_dtype": "string" if scann else "int64",
    }
    assert {name: manifest[name] for name in expected} == expected
    on_disk = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == on_disk - {"manifest.json"}


def test_nothing_of_the_training_is_exported(exported_exact):
    _, path = exported_exact
    variables = tf.train.list_variables(str(path / "variables" / "variables"))
    shapes = sorted(tuple(shape) for _, shape in variables if len(shape))
    assert shapes == [(NUM_USERS, 8), (60,), (60, 8)]


def test_two_exports_in_one_process_keep_apart(exported_scann, tmp_path):
    index, path = exported_scann
    other = build_index(make_model(1000, seed=9), kind="scann")
    other_loaded = load_index(export_index(other, tmp_path / "other", ks=[10], check=False))
    loaded = load_index(path)
    for _ in range(2):
        assert other_loaded.top_k({"user_id": [2]}, 5)[1].tolist() == (
            other.top_k({"user_id": [2]}, 5)[1].tolist()
        )
        assert loaded.top_k({"user_id": ["u2"]}, 5)[1].tolist() == (
            index.top_k({"user_id": ["u2"]}, 5)[1].tolist()
        )


def test_a_moved_export_answers(exported_exact, tmp_path):
    index, path = exported_exact
    moved = shutil.move(shutil.copytree(path, tmp_path / "copy"), tmp_path / "moved")
    assert load_index(moved).top_k({"user_id": [4]}, 3)[1].tolist() == (
        index.top_k({"user_id": [4]}, 3)[1].tolist()
    )


def test_only_an_index_that_needs_scann_asks_for_it(exported_exact, exported_scann, monkeypatch):
    monkeypatch.setitem(sys.modules, "scann.scann_ops.py", None)
    assert load_index(exported_exact[1]).top_k({"user_id": [4]}, 3)[1].shape == (1, 3)
    with pytest.raises(ImportError, match="needs the package `scann`"):
        load_index(exported_scann[1])
    with pytest.raises(ImportError, match="needs the package `scann`"):
        build_index(make_model(5), kind="scann")


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("variables/variables.data-00000-of-00001", flip_a_byte),
        ("saved_model.pb", lambda path: path.write_bytes(path.read_bytes()[:-1])),
        ("variables/variables.index", lambda path: path.unlink()),
        ("manifest.json", lambda path: path.write_text("{")),
        ("manifest.json", lambda path: path.write_text("[]")),
        ("manifest.json", lambda path: path.write_text('{"format": "other"}')),
        ("manifest.json", lambda path: path.unlink()),
        (
            "manifest.json",
            lambda path: path.write_text(path.read_text().replace('"ks"', '"sk"')),
        ),
    ],
)
def test_a_damaged_export_is_refused_with_the_file_named(exported_exact, tmp_path, name, damage):
    folder = shutil.copytree(exported_exact[1], tmp_path / "copy")
    damage(folder / name)
    with pytest.raises(InputError, match=name):
        load_index(folder)


def test_a_folder_without_an_export_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="`path`: expected an exported index"):
            load_index(path)


@pytest.mark.parametrize("ks", [[], [0], [-3], [3, 3], [61], [2.5], 10, "10", [True]])
def test_bad_ks_are_refused(exported_exact, tmp_path, ks):
    with pytest.raises(InputError, match="^`ks`"):
        export_index(exported_exact[0], tmp_path / "new", ks=ks)
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written_is_refused(exported_exact, tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        for overwrite in (False, True):
            with pytest.raises(InputError, match="^`path`"):
                export_index(exported_exact[0], path, ks=[3], overwrite=overwrite)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_feature_name_that_a_saved_model_cannot_carry_is_refused(tmp_path):
    class Renamed(FakeModel):
        query_signature = {"user-id": tf.TensorSpec([None], tf.int64)}  # noqa: RUF012

    model = Renamed(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)).with_ids([1, 2, 3])
    with pytest.raises(InputError, match="`query_signature`.*user-id"):
        export_index(build_index(model), tmp_path / "new", ks=[3])


def test_only_an_export_is_ever_overwritten(exported_exact, tmp_path):
    index, path = exported_exact
    target = shutil.copytree(path, tmp_path / "index")
    before = (target / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="`path`: expected a new folder"):
        export_index(index, target, ks=[3], check=False)
    assert (target / "manifest.json").read_bytes() == before
    export_index(index, target, ks=[5], check=False, overwrite=True)
    assert load_index(target).manifest["ks"] == [5]
    photos = tmp_path / "photos"
    photos.mkdir()
    with pytest.raises(InputError, match="which is none"):
        export_index(index, photos, ks=[3], check=False, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index", "photos"]


def test_a_linked_export_is_replaced_behind_its_link(exported_exact, tmp_path):
    index, path = exported_exact
    shutil.copytree(path, tmp_path / "v1")
    (tmp_path / "current").symlink_to("v1")
    export_index(index, tmp_path / "current", ks=[5], check=False, overwrite=True)
    assert (tmp_path / "current").is_symlink()
    assert load_index(tmp_path / "v1").manifest["ks"] == [5]


def test_an_export_that_the_other_process_refuses_leaves_nothing(
    exported_exact, tmp_path, monkeypatch
):
    ask = export_module._ask_other_process

    def damage_and_ask(folder, features):
        flip_a_byte(folder / "variables" / "variables.data-00000-of-00001")
        return ask(folder, features)

    monkeypatch.setattr(export_module, "_ask_other_process", damage_and_ask)
    with pytest.raises(ExportError, match=r"variables\.data-00000-of-00001.*SHA-256"):
        export_index(exported_exact[0], tmp_path / "a" / "b", ks=[3])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["vectors", "scores_3", "ids_3", "fails"])
def test_other_answers_fail_the_check_and_keep_the_old_export(
    exported_exact, tmp_path, monkeypatch, part
):
    index, path = exported_exact
    target = shutil.copytree(path, tmp_path / "index")

    def answer_wrongly(folder, features):
        if part == "fails":
            raise KeyboardInterrupt
        vectors = index.embed_query(features)
        scores, ids = index.search(vectors, 3)
        answers = {"vectors": vectors, "scores_3": scores, "ids_3": ids}
        answers[part] = answers[part][:, ::-1]
        return answers

    monkeypatch.setattr(export_module, "_ask_other_process", answer_wrongly)
    with pytest.raises(KeyboardInterrupt if part == "fails" else ExportError):
        export_index(index, target, ks=[3], overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["index"]
    assert load_index(target).manifest["ks"] == [3, 20, 10]


def test_the_check_asks_the_queries_that_the_index_was_given(exported_scann):
    index, _ = exported_scann
    assert sorted(index.sample_features) == ["user_id"]
    assert len(set(index.sample_features["user_id"].tolist())) == 32


@pytest.mark.parametrize(
    ("ids", "scores", "same"),
    [
        ([7, 8, 9], [3, 2, 2], True),
        ([7, 9, 8], [3, 2, 2], True),  # a tie in another order
        ([7, 8, 4], [3, 2, 2], True),  # a tie that k cuts off
        ([4, 8, 9], [3, 2, 2], False),  # another best item
        ([8, 7, 9], [3, 2, 2], False),
        ([7, 8, -1], [3, 2, -np.inf], False),
        ([7, 8, 9], [3, 2, 1.9], False),
    ],
)
def test_answers_are_the_same_up_to_ties(ids, scores, same):
    expected = np.array([[3.0, 2.0, 2.0]]), np.array([[7, 8, 9]])
    received = np.array([scores], float), np.array([ids])
    assert export_module.same_answers(expected, received) is same


def test_scann_below_a_thousand_items_scores_all_of_them():
    assert ScannSettings.rule_of_thumb(999).num_leaves == 1
    vectors = np.random.default_rng(0).normal(size=[999, 3]).astype(np.float32)
    scores, rows = ScannSearch(vectors, ScannSettings.rule_of_thumb(999)).search(
        tf.constant([[1.0, 0, 0]]), 5
    )
    assert rows.numpy()[0].tolist() == np.argsort(-vectors[:, 0])[:5].tolist()
    np.testing.assert_allclose(scores.numpy()[0], np.sort(vectors[:, 0])[::-1][:5], rtol=1e-5)
