"""Dropped ids: how many, which, and that two towers never drop in step."""

import numpy as np
import tensorflow as tf

from tfrs_negatives.towers.build import build_tower
from tfrs_negatives.towers.features import FeatureSpec, IdDropout

ROWS = tf.range(1, 4001, dtype=tf.int64)


def dropped_rows(tower, name):
    """Which rows of a batch of one and the same id a tower reads as unknown."""
    ids = {name: tf.fill([4000], tf.constant(1, tf.int64))}
    vectors = tower(ids, training=True).numpy()
    unknown = tower({name: tf.constant([99], tf.int64)}).numpy()
    return np.isclose(vectors, unknown).all(axis=1)


def id_tower(name, feature):
    spec = FeatureSpec(feature, "categorical", "int64", None, (1, 2, 3), id_dropout=0.3)
    return build_tower([spec], embedding_dim=4, hidden=(), output_dim=None, name=name)


def test_the_share_is_dropped_in_training_and_none_elsewhere():
    layer = IdDropout(0.3)
    assert abs((layer(ROWS, training=True).numpy() == 0).mean() - 0.3) < 0.03
    np.testing.assert_array_equal(layer(ROWS, training=False), ROWS)
    np.testing.assert_array_equal(layer(ROWS), ROWS)
    assert int(layer.calls) == 1


def test_what_is_kept_is_unchanged():
    out = IdDropout(0.3)(ROWS, training=True).numpy()
    np.testing.assert_array_equal(out[out != 0], ROWS.numpy()[out != 0])


def test_draws_differ_by_call_and_repeat_by_seed():
    layer, twin, other = IdDropout(0.5), IdDropout(0.5), IdDropout(0.5, seed=1)
    first, second = layer(ROWS, training=True).numpy(), layer(ROWS, training=True).numpy()
    assert (first != second).mean() > 0.4
    np.testing.assert_array_equal(twin(ROWS, training=True), first)
    assert (other(ROWS, training=True).numpy() != first).mean() > 0.4


def test_the_draws_of_two_towers_are_independent():
    # With equal draws the unknown users would meet the unknown items in every positive pair, and
    # the model would learn that instead of the items' features.
    users = dropped_rows(id_tower("query_tower", "user_id"), "user_id")
    items = dropped_rows(id_tower("item_tower", "item_id"), "item_id")
    same_name = dropped_rows(id_tower("item_tower", "user_id"), "user_id")
    assert abs(users.mean() - 0.3) < 0.03
    assert abs(np.corrcoef(users, items)[0, 1]) < 0.06
    assert abs(np.corrcoef(users, same_name)[0, 1]) < 0.06


def test_the_position_in_the_stream_is_saved(tmp_path):
    tower = id_tower("item_tower", "item_id")
    dropped_rows(tower, "item_id")
    tower.save(tmp_path / "tower.keras")
    again = tf.keras.models.load_model(tmp_path / "tower.keras")
    expected, received = dropped_rows(tower, "item_id"), dropped_rows(again, "item_id")
    np.testing.assert_array_equal(received, expected)
