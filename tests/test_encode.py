"""Raw columns to vectors: each kind of feature, what is unknown, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.ids import to_keys
from tfrs_negatives.data.schema import Column
from tfrs_negatives.step.task import Retrieval
from tfrs_negatives.towers.build import build_tower
from tfrs_negatives.towers.features import encode_feature, infer_features

D = 5
COLUMNS = {
    "city": np.array(["rome", "bonn", "rome", "[UNK]"]),
    "age": np.array([-2, 40, -1, 7]),
    "height": np.array([1.0, 2.0, 4.0, 5.0], np.float32),
    "position": np.array([[0.0, 9.0], [2.0, 9.0], [4.0, 9.0], [6.0, 9.0]]),
    "genres": np.array([[1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 0, 0]]),
    "tags": np.array([["b", "a"], ["c", ""], ["", ""], ["a", "a"]]),
    "seen": np.array([[3, 5], [7, -1], [-1, -1], [5, 5]]),
}


def vector(name, values, columns=COLUMNS, **options):
    """The vectors of one column, and the model that made them."""
    (spec,) = infer_features({name: columns[name]}, **options)
    model = tf.keras.Model(*encode_feature(spec, D, tower="tower"))
    return model(tf.constant(values)).numpy(), model


def embeddings(model, name):
    return model.get_layer(f"{name}_embedding").get_weights()[0]


def test_kinds_are_inferred():
    kinds = {spec.name: (spec.kind, spec.dtype, spec.width) for spec in infer_features(COLUMNS)}
    assert kinds == {
        "city": ("categorical", "string", None),
        "age": ("categorical", "int64", None),
        "height": ("numeric", "float32", None),
        "position": ("numeric", "float32", 2),
        "genres": ("multi_hot", "float32", 3),
        "tags": ("list", "string", 2),
        "seen": ("list", "int64", 2),
    }


@pytest.mark.parametrize(
    ("name", "unknown"), [("city", ["paris", "oslo", ""]), ("age", [0, 999, -5])]
)
def test_each_known_value_has_its_vector_and_all_unknown_ones_share_another(name, unknown):
    known = np.unique(COLUMNS[name])
    vectors, model = vector(name, np.concatenate([known, unknown]).tolist())
    assert len({tuple(v) for v in vectors[: len(known)]}) == len(known)
    assert len({tuple(v) for v in vectors[len(known) :]}) == 1
    assert tuple(vectors[-1]) not in {tuple(v) for v in vectors[: len(known)]}
    assert {tuple(v) for v in vectors} <= {tuple(row) for row in embeddings(model, name)}


def test_a_numeric_column_has_mean_0_and_variance_1():
    heights, _ = vector("height", [1.0, 3.0, 5.0])
    # Mean 3, variance (4 + 1 + 1 + 4) / 4.
    np.testing.assert_allclose(heights[:, 0], np.array([-2, 0, 2]) / np.sqrt(2.5), rtol=1e-5)
    positions, _ = vector("position", COLUMNS["position"].astype(np.float32))
    np.testing.assert_allclose(positions[:, 0], np.array([-3, -1, 1, 3]) / np.sqrt(5), rtol=1e-5)
    # A constant has no scale: another value is not a million away from it.
    other, _ = vector("position", [[3.0, 9.0], [3.0, 10.0]])
    np.testing.assert_allclose(other[:, 1], [0, 1], atol=1e-6)


def test_a_multi_hot_row_is_the_sum_of_its_vectors():
    vectors, model = vector("genres", [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    table = embeddings(model, "genres")
    np.testing.assert_allclose(vectors, [table[0] + table[2], np.zeros(D)], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "padding", "a", "b", "unknown"),
    [("tags", "", "a", "b", "zz"), ("seen", -1, 3, 7, 999)],
)
def test_a_list_is_the_mean_of_what_it_holds(name, padding, a, b, unknown):
    rows = [[a, b], [a, padding], [padding, b], [padding, padding], [a, a], [unknown, padding]]
    vectors, _ = vector(name, rows)
    both, only_a, only_b, nothing, twice, strange = vectors
    np.testing.assert_allclose(both, (only_a + only_b) / 2, rtol=1e-5)
    np.testing.assert_array_equal(nothing, 0)
    np.testing.assert_allclose(twice, only_a, rtol=1e-6)
    assert np.abs(strange).max() > 0
    assert not np.allclose(strange, only_a)


def test_two_unknown_items_are_no_accidental_hits_of_each_other():
    # They share the vector of the unknown, not an identity.
    vectors, _ = vector("city", ["paris", "oslo", "rome"])
    np.testing.assert_array_equal(vectors[0], vectors[1])
    task = Retrieval(remove_accidental_hits=True, reduction="sum")
    queries = np.zeros((3, D), np.float32)
    loss = task(queries, vectors, candidate_ids=np.array(["paris", "oslo", "rome"]))
    assert float(loss) == pytest.approx(3 * np.log(3), rel=1e-6)
    same = task(queries, vectors, candidate_ids=np.array(["oslo", "oslo", "rome"]))
    assert float(same) == pytest.approx(2 * np.log(2) + np.log(3), rel=1e-6)


# ------------------------------------------------------------------ declared encodings


def declared(encodings):
    return {name: Column("query", encoding=encoding) for name, encoding in encodings.items()}


def test_a_declared_encoding_changes_or_leaves_out_a_column():
    encodings = {"age": "numeric", "genres": "list", "city": "left_out"}
    specs = {spec.name: spec for spec in infer_features(COLUMNS, declared=declared(encodings))}
    assert "city" not in specs
    assert specs["age"].kind == "numeric"
    assert specs["age"].mean == (11.0,)
    assert specs["genres"].vocabulary == (0, 1)
    ages, _ = vector("age", [11], declared=declared({"age": "numeric"}))
    np.testing.assert_allclose(ages, [[0.0]], atol=1e-6)


@pytest.mark.parametrize(
    "encodings",
    [
        {"nothing": "numeric"},
        {"city": "numeric"},
        {"height": "categorical"},
        {"position": "list"},
        {"age": "multi_hot"},
        {"age": "list"},
        {"tags": "categorical"},
        {"tags": "multi_hot"},
    ],
    ids=str,
)
def test_an_encoding_that_does_not_fit_is_an_error_that_names_the_column(encodings):
    (name,) = encodings
    with pytest.raises(InputError, match=name):
        infer_features(COLUMNS, declared=declared(encodings))


@pytest.mark.parametrize("padding", [["", ""], [-1, -1]], ids=str)
def test_a_list_column_that_holds_nothing_is_an_error_that_names_it(padding):
    with pytest.raises(InputError, match="tags"):
        infer_features({"tags": np.array([padding, padding])})


# ------------------------------------------------------------------ towers


def test_a_tower_is_embeddings_relu_layers_and_a_linear_one():
    tower = build_tower(infer_features(COLUMNS), embedding_dim=D, hidden=(7, 6), output_dim=3)
    columns = {name: tf.constant(column) for name, column in COLUMNS.items()}
    assert tower(columns).shape == (4, 3)
    dense = [layer for layer in tower.layers if type(layer) is tf.keras.layers.Dense][1:]
    assert [layer.units for layer in dense] == [7, 6, 3]
    # Five embeddings of D and numbers of width 1 and 2.
    assert dense[0].kernel.shape[0] == 5 * D + 3
    activations = [layer.activation.__name__ for layer in dense]
    assert activations == ["relu", "relu", "linear"]


def test_a_tower_may_end_before_the_linear_layer():
    specs = infer_features({"city": COLUMNS["city"]})
    tower = build_tower(specs, embedding_dim=D, hidden=(), output_dim=None)
    assert tower({"city": tf.constant(["rome"])}).shape == (1, D)


@pytest.mark.parametrize(
    "sizes", [{"embedding_dim": 0}, {"hidden": (4, 0)}, {"output_dim": 0}], ids=str
)
def test_sizes_below_one_are_errors(sizes):
    with pytest.raises(InputError, match="at least 1"):
        build_tower(infer_features({"city": COLUMNS["city"]}), **sizes)


def test_no_feature_is_an_error():
    with pytest.raises(InputError, match="features"):
        build_tower([])


def test_a_saved_tower_gives_the_same_vectors(tmp_path):
    tower = build_tower(infer_features(COLUMNS), embedding_dim=D, hidden=(4,), output_dim=3)
    tower.save(tmp_path / "tower.keras")
    loaded = tf.keras.models.load_model(tmp_path / "tower.keras")
    columns = {name: tf.constant(column) for name, column in COLUMNS.items()}
    np.testing.assert_array_equal(loaded(columns), tower(columns))


# ------------------------------------------------------------------ the catalogue


@pytest.mark.parametrize("ids", [[5, -3, 900, 0], ["b", "c d", "ä", "a"]], ids=["ints", "strings"])
def test_rows_finds_each_id_by_itself_and_by_its_key(ids):
    items = ItemCatalogue(ids)
    asked = [ids[2], ids[0], type(ids[0])(77), ids[3]]
    assert items.rows(asked).numpy().tolist() == [2, 0, -1, 3]
    assert items.rows_of_keys(to_keys(asked), unknown=4).numpy().tolist() == [2, 0, 4, 3]
    np.testing.assert_array_equal(items.keys_at([3, 1]), to_keys([ids[3], ids[1]]))
    table = np.array(asked[:2] * 2).reshape(2, 2)
    assert items.rows(table).numpy().tolist() == [[2, 0], [2, 0]]


@pytest.mark.parametrize(
    "ids", [[-5, -3, -4, -2], [-5, -3, -4, -9], [7]], ids=["dense", "gap", "one"]
)
def test_numbers_without_gaps_are_found_without_a_search(ids):
    items = ItemCatalogue(ids)
    ends = np.iinfo(np.int64)
    asked = [*ids, min(ids) - 1, max(ids) + 1, ends.max, ends.min + 1]
    expected = [*range(len(ids)), -1, -1, -1, -1]
    for mode in (False, True):
        find = tf.function(items.rows, jit_compile=mode)
        assert find(tf.constant(asked, tf.int64)).numpy().tolist() == expected


def test_the_catalogue_goes_through_its_items_in_order():
    items = ItemCatalogue([7, 3, 5], {"size": np.array([1.5, 2.5, 3.5])}, item_key="id")
    batches = [{n: x.numpy().tolist() for n, x in b.items()} for b in items.batches(2)]
    assert batches == [{"size": [1.5, 2.5], "id": [7, 3]}, {"size": [3.5], "id": [5]}]


@pytest.mark.parametrize(
    ("ids", "features", "argument"),
    [
        ([], None, "ids"),
        ([1, 2, 1], None, "ids"),
        ([1.5, 2.5], None, "ids"),
        ([[1, 2]], None, "ids"),
        ([1, -(2**63)], None, "ids"),
        ([1, 2], {"year": np.arange(3)}, "year"),
    ],
)
def test_a_catalogue_that_cannot_be_is_an_error(ids, features, argument):
    with pytest.raises(InputError, match=argument):
        ItemCatalogue(ids, features)


def test_a_catalogue_round_trips_with_its_dtypes():
    items = ItemCatalogue(["b", "a"], {"size": np.array([1, 2], np.float32)}, item_key="t")
    config = tf.keras.utils.serialize_keras_object(items)
    again = tf.keras.utils.deserialize_keras_object(config)
    assert again.features["size"].dtype == np.float32
    assert again.ids.tolist() == ["b", "a"]
    assert again.item_key == "t"
