"""Numbers by their bucket: hand-counted boundaries, rows and what is missing."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import yaml

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions, RetrievalData
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.schema import Column
from tfrs_negatives.index import build_index
from tfrs_negatives.runs.build import build_model
from tfrs_negatives.runs.config import RunConfig, load_config
from tfrs_negatives.towers.build import build_tower
from tfrs_negatives.towers.features import infer_features
from tfrs_negatives.towers.layers import Binned


def learned(values, bins=4, **declared):
    column = Column("query", encoding="binned", bins=bins, **declared)
    log = Interactions({"age": values}, np.arange(len(values)) + 7, columns={"age": column})
    return infer_features(log)[0]


def rows_of(spec, values):
    return Binned(spec.boundaries)(tf.constant(values, tf.float32)).numpy().tolist()


def test_each_bucket_has_as_many_training_rows():
    # In any order; two values fall into each of four buckets.
    spec = learned([8.0, 1.0, 6.0, 3.0, 2.0, 7.0, 4.0, 5.0])
    assert spec.boundaries == (2.75, 4.5, 6.25)
    assert rows_of(spec, [1, 2, 3, 4, 5, 6, 7, 8]) == [1, 1, 2, 2, 3, 3, 4, 4]
    # Beyond what was seen the last bucket goes on; a boundary is in the bucket above it.
    assert rows_of(spec, [-99, 99, np.inf, 4.5, 4.4999]) == [1, 4, 4, 3, 2]
    assert len(learned(np.arange(100.0), bins=None).boundaries) == 9


def test_a_value_with_the_rows_of_several_buckets_has_one():
    spec = learned([0.0] * 6 + [1.0, 2.0])
    # Quarters at 0, 0 and 0.25: below the first boundary nobody would be.
    assert spec.boundaries == (0.25,)
    assert rows_of(spec, [0, 1, 2]) == [1, 2, 2]
    assert learned([3.0, 3.0, 3.0]).boundaries == ()


def test_what_is_missing_has_a_bucket_of_its_own_and_moves_no_boundary():
    values = [None, 1.0, 2.0, 3.0, 4.0, None]
    spec = learned(values, bins=2, missing="own")
    assert spec.boundaries == (2.5,)
    assert rows_of(spec, [np.nan, 1.0, 4.0]) == [0, 1, 2]
    tower = build_tower([spec], embedding_dim=3, hidden=[], output_dim=None)
    missing, low, also_low, high = tower({"age": tf.constant([np.nan, 1.0, 2.0, 4.0])}).numpy()
    np.testing.assert_array_equal(low, also_low)
    assert not np.allclose(missing, low)
    assert not np.allclose(missing, high)
    assert not np.allclose(low, high)


def test_integers_are_binned_too_and_a_missing_one_is_no_number():
    spec = learned([5, None, 1, 9, 13], bins=2, missing="own")
    assert spec.boundaries == (7.0,)
    tower = build_tower([spec], embedding_dim=3, hidden=[], output_dim=None)
    (table,) = tower.get_weights()
    rows = tower({"age": tf.constant([-(2**63), 1, 9, 7])}).numpy()
    np.testing.assert_array_equal(rows, table[[0, 1, 2, 2]])


def test_half_precision_moves_no_number_over_a_boundary():
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        tower = build_tower([learned([1000.1, 1000.2, 1000.3, 1000.4])], hidden=[], output_dim=None)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    rows = tower({"age": tf.constant([1000.1, 1000.2, 1000.3, 1000.4])}).numpy()
    assert len(np.unique(rows, axis=0)) == 4


@pytest.mark.parametrize(
    ("values", "bins", "argument"),
    [
        (["a", "b"], 4, "features.age"),
        ([[1.0, 2.0], [3.0, 4.0]], 4, "features.age"),
        ([1.0, 2.0], 1, "bins"),
        ([1.0, 2.0], "4", "bins"),
    ],
)
def test_bad_input(values, bins, argument):
    with pytest.raises(InputError, match=f"`{argument}`"):
        learned(values, bins=bins)
    with pytest.raises(InputError, match="`bins`: expected at least 2, for the encoding binned"):
        Column("query", encoding="numeric", bins=4)


def test_a_run_learns_the_boundaries_of_the_training_part_and_saves_them(tmp_path):
    ages = np.arange(40.0)
    columns = {"age": Column("query", encoding="binned", bins=4, missing="own")}
    train, test = (
        Interactions(
            {"user": np.arange(40), "age": a}, np.arange(40) % 5 + 7, "user", columns=columns
        )
        for a in (np.where(ages == 3, np.nan, ages), ages + 1e6)
    )
    small = ["model.embedding_dim=2", "model.hidden=[4]", "model.output_dim=2"]
    items = ItemCatalogue(np.arange(5) + 7)
    model = build_model(load_config(overrides=small), RetrievalData(train, test, items, "small"))
    (layer,) = [x for x in model.query_tower.layers if isinstance(x, Binned)]
    assert layer.boundaries == np.quantile(np.delete(ages, 3), [0.25, 0.5, 0.75]).tolist()
    model.fit(train.dataset(20, item_key="item_id"), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    asked = {"user": tf.constant([0, 1], tf.int64), "age": tf.constant([np.nan, 30.0])}
    np.testing.assert_array_equal(loaded.query_vectors(asked), model.query_vectors(asked))
    # In an index a null is accepted, and is what was missing.
    scores, _ = build_index(loaded).top_k({"user": [0, 1], "age": [None, 30.0]}, k=5)
    vectors = loaded.item_vectors(items.features).numpy()
    expected = np.sort(loaded.query_vectors(asked).numpy() @ vectors.T, axis=1)[:, ::-1]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_a_configuration_says_how_many():
    key = "data.columns={age: {role: query, encoding: binned, bins: 3}}"
    config = load_config(overrides=[key])
    assert config.data.columns["age"].bins == 3
    again = RunConfig.model_validate(yaml.safe_load(config.to_yaml()))
    assert again.data.columns == config.data.columns
