"""The exported index: as in memory, in another process, refused where damaged, never half there."""

import json
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf
from index_cases import NUM_USERS, FakeModel, index_with_a_small_leaf, make_model

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.index import ExportError, build_index, export_index, load_index
from tfrs_negatives.index.saved import export as export_module


@pytest.fixture(scope="module")
def exported_exact(tmp_path_factory):
    model = make_model(60)
    index = build_index(model)
    path = tmp_path_factory.mktemp("made") / "not yet there" / "exact"
    # Another process checks the one of ScaNN below, and the commands' own.
    assert export_index(index, path, ks=[3, 20, 10], check=False) == path
    return index, path


@pytest.fixture(scope="module")
def loaded_exact(exported_exact):
    return load_index(exported_exact[1])


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


@pytest.mark.parametrize("k", [0, -1, 61, 2.0, True, None, "3"])
def test_a_bad_k_is_refused_in_memory_and_loaded(exported_exact, loaded_exact, k):
    for answering in (exported_exact[0], loaded_exact):
        with pytest.raises(
            InputError, match=r"^`k`: expected a positive integer, at most the 60 items"
        ):
            answering.top_k({"user_id": [1]}, k)


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
def test_bad_features_are_refused_in_memory_and_loaded(
    exported_exact, loaded_exact, features, message
):
    for answering in (exported_exact[0], loaded_exact):
        with pytest.raises(InputError, match=message):
            answering.top_k(features, 3)


def test_an_export_answers_as_the_index_in_memory(exported):
    index, path = exported
    loaded = load_index(path)
    users = ["u1", "nobody", "u39"] if index.kind == "scann" else [1, 0, 39]
    for batch in (users, users[:1], np.array(users), []):
        for k in (1, 3, 4, 10, 60):
            scores, ids = loaded.top_k({"user_id": batch}, k)
            expected_scores, expected_ids = index.top_k({"user_id": batch}, k)
            assert scores.shape == ids.shape == (len(batch), k)
            assert ids.dtype.kind == expected_ids.dtype.kind
            np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
            np.testing.assert_array_equal(ids, expected_ids)
    vectors = index.model.user_table.numpy()[[1, 0, 39]]
    np.testing.assert_allclose(loaded.embed_query({"user_id": users}), vectors, rtol=1e-6)


def test_no_graph_is_traced_for_another_shape(exported_exact):
    index, path = exported_exact
    loaded = load_index(path)
    answer, contains = loaded._module.answer, loaded._module.contains
    vectors = np.ones([3, loaded.width], np.float32)
    ids = index.ids.tolist()
    for size in range(1, 4):
        loaded.search(vectors[:size], size, exclude=ids[:size])
        loaded.search(vectors[:size], size, allow=ids[:size])
        loaded.contains(ids[:size])
    # A service would keep a trace for each number of queries and length of a list.
    assert answer.experimental_get_tracing_count() == 0
    assert contains.experimental_get_tracing_count() == 0


def test_an_export_has_named_signatures(exported_exact):
    index, path = exported_exact
    signatures = tf.saved_model.load(str(path)).signatures
    answering = {"serving_default", "top_3", "top_10", "top_20", "with_exclusions", "with_allowed"}
    assert set(signatures) == answering | {"embed_query", "embed_item"}
    answer = signatures["serving_default"](user_id=tf.constant([5], tf.int64))
    assert set(answer) == {"scores", "ids"}
    assert answer["ids"].numpy().tolist() == index.top_k({"user_id": [5]}, 3)[1].tolist()
    assert signatures["top_20"].structured_outputs["scores"].shape.as_list() == [None, 20]


def test_an_export_declares_what_it_could_not_fill(tmp_path):
    index = index_with_a_small_leaf(np.arange(1000))
    loaded = load_index(export_index(index, tmp_path / "padded", ks=[100], check=False))
    scores, ids = loaded.top_k({"user_id": [0]}, 100)
    assert ids.tolist() == [[*range(159, 99, -1)] + [-1] * 40]
    assert np.isneginf(scores[0, 60:]).all()


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
        {
            "name": "user_id",
            "dtype": "string" if scann else "int64",
            "shape": [None],
            "may_miss": False,
        }
    ]
    assert manifest["item_features"] == [
        {"name": "row", "dtype": "int64", "shape": [None], "may_miss": False}
    ]
    assert manifest["sweep"] == index.sweep
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
    # Ids, their keys and rows; the vectors, and the table that the item tower makes them of.
    assert shapes == [(NUM_USERS, 8), *[(60,)] * 3, *[(60, 8)] * 2]


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


def test_a_truncated_file_is_told_from_a_changed_one(exported_exact, tmp_path):
    file = shutil.copytree(exported_exact[1], tmp_path / "copy") / "saved_model.pb"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(InputError, match=f"expected {size} bytes. Received: {size - 7} bytes"):
        load_index(tmp_path / "copy")


def test_a_folder_without_an_export_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="`path`: expected an exported index"):
            load_index(path)


@pytest.mark.parametrize("ks", [[], [0], [-3], [3, 3], [61], [2.5], 10, "10", [True]])
def test_bad_ks_are_refused(exported_exact, tmp_path, ks):
    with pytest.raises(InputError, match=r"^`ks`"):
        export_index(exported_exact[0], tmp_path / "new", ks=ks)
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written_is_refused(exported_exact, tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        for overwrite in (False, True):
            with pytest.raises(InputError, match=r"^`path`"):
                export_index(exported_exact[0], path, ks=[3], overwrite=overwrite)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_feature_name_that_a_saved_model_cannot_carry_is_refused(tmp_path):
    class Renamed(FakeModel):
        query_signature = {"user-id": tf.TensorSpec([None], tf.int64)}  # noqa: RUF012

    model = Renamed(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)).with_ids([1, 2, 3])
    with pytest.raises(InputError, match=r"`query_signature`.*user-id"):
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


@pytest.mark.slow
def test_an_export_that_the_other_process_refuses_leaves_nothing(
    exported_exact, tmp_path, monkeypatch
):
    ask = export_module._ask_other_process

    def damage_and_ask(folder, *features):
        flip_a_byte(folder / "variables" / "variables.data-00000-of-00001")
        return ask(folder, *features)

    monkeypatch.setattr(export_module, "_ask_other_process", damage_and_ask)
    with pytest.raises(ExportError, match=r"variables\.data-00000-of-00001.*SHA-256"):
        export_index(exported_exact[0], tmp_path / "a" / "b", ks=[3])
    assert not list(tmp_path.iterdir())


# `test_answers_are_the_same_up_to_ties` has other scores too.
@pytest.mark.parametrize(
    "part",
    [
        "vectors",
        "item_vectors",
        pytest.param("scores_3", marks=pytest.mark.slow),
        "ids_3",
        pytest.param("scores_rest", marks=pytest.mark.slow),
        "ids_rest",
        "fails",
    ],
)
def test_other_answers_fail_the_check_and_keep_the_old_export(
    exported_exact, tmp_path, monkeypatch, part
):
    index, path = exported_exact
    target = shutil.copytree(path, tmp_path / "index")

    def answer_wrongly(folder, features, items):
        if part == "fails":
            raise KeyboardInterrupt
        vectors = index.embed_query(features)
        scores, ids = index.search(vectors, 3)
        rest = index.search(vectors, 3, exclude=ids[:, ::2])
        answers = {
            "vectors": vectors,
            "item_vectors": index.embed_item(items),
            "scores_3": scores,
            "ids_3": ids,
            "scores_rest": rest[0],
            "ids_rest": rest[1],
        }
        answers[part] = answers[part][:, ::-1]
        return answers

    monkeypatch.setattr(export_module, "_ask_other_process", answer_wrongly)
    with pytest.raises(KeyboardInterrupt if part == "fails" else ExportError):
        export_index(index, target, ks=[3], overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["index"]
    assert contents(target) == contents(path)


def contents(folder):
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {p.relative_to(folder): p.read_bytes() for p in files}


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
