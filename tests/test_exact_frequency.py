"""Shares of known counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from frequency_helpers import keys, probability

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.data.ids import to_keys
from tfrs_negatives.step.frequency import ExactFrequency


def test_exact_shares():
    layer = ExactFrequency([30, 10, 20], [6, 1, 3])
    np.testing.assert_allclose(probability(layer, 10, 20, 30, 10), [0.1, 0.3, 0.6, 0.1], rtol=1e-6)


def test_exact_zero_counts_and_unknown_ids_have_half_an_event():
    layer = ExactFrequency([1, 2], [0, 50])
    np.testing.assert_allclose(
        probability(layer, 1, 2, 3, EMPTY_ID), [0.01, 1, 0.01, 0.01], rtol=1e-6
    )


def test_exact_takes_strings_and_fractions():
    layer = ExactFrequency(["b", "a"], [2.5, 7.5])
    answer = np.exp(layer.log_probability(to_keys(["a", "b"])))
    np.testing.assert_allclose(answer, [0.75, 0.25], rtol=1e-6)


def test_exact_does_not_learn():
    layer = ExactFrequency([1, 2], [1, 3])
    layer.update(keys(1, 1, 1, 1))
    np.testing.assert_allclose(probability(layer, 1), 0.25, rtol=1e-6)


def test_exact_config_round_trip():
    layer = ExactFrequency(["x", "y"], [1, 4], name="known")
    again = tf.keras.utils.deserialize_keras_object(tf.keras.utils.serialize_keras_object(layer))
    assert isinstance(again, ExactFrequency)
    assert again.name == "known"
    ids = to_keys(["y", "x", "z"])
    np.testing.assert_array_equal(layer.log_probability(ids), again.log_probability(ids))


@pytest.mark.parametrize(
    ("argument", "ids", "counts"),
    [
        ("counts", [1, 2], [1, -1]),
        ("counts", [1, 2], [0, 0]),
        ("counts", [1, 2], [1, math.nan]),
        ("counts", [1, 2], [1, math.inf]),
        ("counts", [1, 2], [1]),
        ("counts", [1, 2], [[1, 2]]),
        ("ids", [1, 1], [1, 2]),
        ("ids", [], []),
    ],
)
def test_exact_bad_input(argument, ids, counts):
    with pytest.raises(InputError, match=f"`{argument}`: expected"):
        ExactFrequency(ids, counts)
