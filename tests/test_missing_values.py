"""Features without a value: declared, in the towers, in a saved model, in an index."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import tensorflow as tf

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.schema import Column
from tfrs_negatives.towers.build import build_tower
from tfrs_negatives.towers.features import infer_features
from tfrs_negatives.towers.signature import FeatureSignature, check_features, may_miss

OWN = Column("query", missing="own")
COLUMNS = {"age": OWN, "city": OWN, "visits": OWN, "vector": OWN, "past": OWN}
ROWS = {
    "age": [20.0, None, 40.0, 60.0],
    "city": ["a", "b", None, "a"],
    "visits": [3, None, 5, 3],
    "vector": [[1.0, 2.0], [3.0, 4.0], None, [5.0, 9.0]],
    "past": [[1, 2], None, [3], [1]],
}


@pytest.fixture(scope="module")
def log():
    return Interactions(ROWS, [7, 8, 9, 7], columns=COLUMNS)


@pytest.fixture(scope="module")
def specs(log):
    return {spec.name: spec for spec in infer_features(log)}


def test_scale_and_vocabulary_are_of_what_is_there(specs):
    ages = np.array([20.0, 40.0, 60.0])
    np.testing.assert_allclose(specs["age"].mean, ages.mean())
    np.testing.assert_allclose(specs["age"].variance, ages.var())
    vectors = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]])
    np.testing.assert_allclose(specs["vector"].mean, vectors.mean(axis=0))
    assert specs["city"].vocabulary == ("", "a", "b")
    assert specs["visits"].vocabulary == (-(2**63), 3, 5)
    assert specs["past"].vocabulary == (1, 2, 3)


def test_a_number_without_a_value_is_the_mean_and_an_indicator(specs):
    tower = build_tower([specs["age"]], hidden=[], output_dim=None)
    vectors = tower({"age": tf.constant([20.0, np.nan, 40.0])}).numpy()
    deviation = np.std([20.0, 40.0, 60.0])
    expected = [[-20 / deviation, 0], [0, 1], [0, 0]]
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_a_row_of_numbers_without_values_is_the_mean_and_one_indicator(specs):
    tower = build_tower([specs["vector"]], hidden=[], output_dim=None)
    vectors = tower({"vector": tf.constant([[np.nan, np.nan], [3.0, 5.0]])}).numpy()
    np.testing.assert_allclose(vectors, [[0, 0, 1], [0, 0, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "missing", "known", "unknown"),
    [("city", "", "a", "elsewhere"), ("visits", -(2**63), 3, 4)],
)
def test_a_category_without_a_value_has_a_row_of_its_own(specs, name, missing, known, unknown):
    tower = build_tower([specs[name]], hidden=[], output_dim=None)
    rows = tower({name: tf.constant([missing, known, unknown])}).numpy()
    assert not np.allclose(rows[0], rows[1])
    assert not np.allclose(rows[0], rows[2])  # neither out of vocabulary


def test_the_row_is_there_where_the_training_part_lacks_nothing():
    log = Interactions({"city": ["a", "b"]}, [7, 8], columns={"city": OWN})
    assert infer_features(log)[0].vocabulary == ("", "a", "b")


def test_a_list_without_a_value_is_an_empty_one(specs):
    tower = build_tower([specs["past"]], hidden=[], output_dim=None)
    vectors = tower({"past": tf.constant([[-1, -1], [1, -1]])}).numpy()
    assert not vectors[0].any()
    assert vectors[1].any()


def test_a_missing_value_of_one_row_leaves_the_others_and_every_gradient_finite(specs, log):
    tower = build_tower(list(specs.values()), embedding_dim=4, hidden=[8], output_dim=3)
    batch = {name: tf.constant(column) for name, column in log.query_features.items()}
    with tf.GradientTape() as tape:
        vectors = tower(batch)
        loss = tf.reduce_sum(vectors**2)
    assert np.isfinite(vectors.numpy()).all()
    for gradient in tape.gradient(loss, tower.trainable_variables):
        assert np.isfinite(tf.convert_to_tensor(gradient).numpy()).all()


def test_a_tower_with_missing_values_is_saved_and_loaded(specs, log, tmp_path):
    tower = build_tower(list(specs.values()), embedding_dim=4, hidden=[8], output_dim=3)
    tower.save(tmp_path / "tower.keras")
    batch = {name: tf.constant(column) for name, column in log.query_features.items()}
    loaded = tf.keras.models.load_model(tmp_path / "tower.keras")
    np.testing.assert_array_equal(loaded(batch), tower(batch))


def test_a_missing_number_is_one_under_mixed_precision(specs):
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        tower = build_tower([specs["age"]], hidden=[], output_dim=None)
        vectors = tf.cast(tower({"age": tf.constant([np.nan])}), tf.float32)
        assert vectors.numpy().tolist() == [[0.0, 1.0]]
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")


def test_a_log_keeps_what_is_declared_when_rows_are_taken(log):
    taken = log.take(np.array([1]))
    assert np.isnan(taken.query_features["age"][0])
    assert [spec.may_miss for spec in infer_features(log)] == [True] * 5
    assert taken.columns == log.columns


def test_a_catalogue_keeps_what_is_declared_through_its_config():
    columns = {"price": Column("item", missing="own"), "maker": Column("item", missing="own")}
    items = ItemCatalogue(["a", "b"], {"price": [1.5, None], "maker": [None, "m"]}, columns=columns)
    again = ItemCatalogue.from_config(items.get_config())
    assert again.columns == items.columns
    np.testing.assert_array_equal(again.features["price"], np.float32([1.5, np.nan]))
    assert again.features["maker"].tolist() == ["", "m"]
    with pytest.raises(InputError, match=r"`price`: .*missing: own.*first in row 1"):
        ItemCatalogue(["a", "b"], {"price": [1.5, float("nan")]})


SIGNATURE = FeatureSignature(
    {
        "age": tf.TensorSpec([None], tf.float32),
        "city": tf.TensorSpec([None], tf.string),
        "visits": tf.TensorSpec([None], tf.int64),
        "user": tf.TensorSpec([None], tf.int64),
    },
    may_miss=["age", "city", "visits"],
)
QUERY = {"age": [20.5], "city": ["a"], "visits": [3], "user": [1]}


def test_a_query_may_say_null_where_that_is_declared():
    nothing = {name: [None] for name in ("age", "city", "visits")}
    tensors = check_features({**QUERY, **nothing}, SIGNATURE)
    assert np.isnan(tensors["age"].numpy()[0])
    assert (tensors["city"].numpy()[0], tensors["visits"].numpy()[0]) == (b"", -(2**63))
    stored = check_features({**QUERY, "age": np.float32([np.nan])}, SIGNATURE)
    assert np.isnan(stored["age"].numpy()[0])


@pytest.mark.parametrize("wrong", [{"user": [None]}, {"age": [float("inf")]}, {"age": ["x"]}])
def test_and_nowhere_else(wrong):
    with pytest.raises(InputError, match=rf"`features\['{next(iter(wrong))}'\]`"):
        check_features({**QUERY, **wrong}, SIGNATURE)
    assert may_miss({"age": tf.TensorSpec([None])}) == frozenset()


def test_integers_that_are_nearly_all_different_are_reported(caplog):
    prices = np.arange(400) * 7
    with caplog.at_level(logging.WARNING, logger="tfrs_negatives"):
        infer_features({"price": prices})
    assert "`price`: 400 different integers in 400 rows" in caplog.text


@pytest.mark.parametrize(
    "declared",
    [
        {"price": Column("query_id")},
        {"price": Column("item_id")},
        {"price": Column("query", encoding="numeric")},
        {"price": Column("query", encoding="categorical")},
    ],
)
def test_what_is_declared_is_not_reported(declared, caplog):
    with caplog.at_level(logging.WARNING, logger="tfrs_negatives"):
        (spec,) = infer_features({"price": np.arange(400)}, declared=declared)
    assert caplog.text == ""
    assert spec.kind == (declared["price"].encoding or "categorical")


def test_ids_of_a_log_and_a_catalogue_are_not_reported(caplog):
    log = Interactions({"user": np.arange(400)}, np.arange(400), query_key="user")
    with caplog.at_level(logging.WARNING, logger="tfrs_negatives"):
        infer_features(log)
        infer_features(ItemCatalogue(np.arange(400)))
    assert caplog.text == ""
