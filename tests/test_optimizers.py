"""`SparseAdam` against Adam written out row by row."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import tensorflow as tf

from tfrs_negatives.model.optimizers import SparseAdam

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(6, 3)).astype(np.float32)
# Row 1 twice in one step, row 0 in some steps only, rows 2 and 5 never.
ROWS = [[1, 4, 1], [0, 1], [3, 4], [1, 1, 0]]
VALUES = [RNG.normal(size=(len(rows), 3)).astype(np.float32) for rows in ROWS]


def summed(rows, values):
    return {row: values[np.array(rows) == row].sum(axis=0) for row in set(rows)}


def apply_sparse(optimizer, table):
    for rows, values in zip(ROWS, VALUES, strict=True):
        optimizer.apply_gradients([(tf.IndexedSlices(values, rows, TABLE.shape), table)])


@pytest.mark.parametrize("options", [{}, {"beta_1": 0.5, "beta_2": 0.8, "epsilon": 1e-3}])
@pytest.mark.parametrize("in_graph", [False, True])
def test_rows_with_a_gradient_take_the_step_of_adam(options, in_graph):
    table, optimizer = tf.Variable(TABLE), SparseAdam(0.1, **options)
    optimizer.build([table])
    run = tf.function(apply_sparse) if in_graph else apply_sparse
    run(optimizer, table)
    steps = [summed(rows, values) for rows, values in zip(ROWS, VALUES, strict=True)]
    expected = reference.adam_rows(TABLE, steps, rate=0.1, **options)
    np.testing.assert_allclose(table, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(table.numpy()[[2, 5]], TABLE[[2, 5]])


@pytest.mark.parametrize("in_graph", [False, True])
def test_unit_rows_end_each_step_at_length_1(in_graph):
    table, optimizer = tf.Variable(TABLE), SparseAdam(0.1, unit_rows=True)
    optimizer.build([table])
    run = tf.function(apply_sparse) if in_graph else apply_sparse
    run(optimizer, table)
    # Adam's moments do not read the row, so its step is that without the sphere.
    expected = TABLE.copy()
    for number in range(1, len(ROWS) + 1):
        steps = [summed(rows, values) for rows, values in zip(ROWS, VALUES, strict=True)]
        after, before = (
            reference.adam_rows(np.zeros_like(TABLE), steps[:n], rate=0.1)
            for n in (number, number - 1)
        )
        moved = list(set(ROWS[number - 1]))
        expected[moved] += (after - before)[moved]
        expected[moved] /= np.linalg.norm(expected[moved], axis=1, keepdims=True)
    np.testing.assert_allclose(table, expected, rtol=1e-5, atol=1e-6)
    lengths = np.linalg.norm(table.numpy(), axis=1)
    np.testing.assert_allclose(lengths[[0, 1, 3, 4]], 1, rtol=1e-6)
    np.testing.assert_array_equal(table.numpy()[[2, 5]], TABLE[[2, 5]])
    bias = tf.Variable([3.0, 4.0])
    optimizer = SparseAdam(0.1, unit_rows=True)
    optimizer.apply_gradients([(tf.IndexedSlices([1.0], [0], [2]), bias)])
    np.testing.assert_allclose(bias, [2.9, 4.0], rtol=1e-5)


def test_a_row_without_a_gradient_stays_where_it_is():
    # Adam of Keras moves a row for as long as its moments last.
    moved = {}
    for kind in (SparseAdam, tf.keras.optimizers.Adam):
        table, optimizer = tf.Variable(TABLE), kind(0.1)
        optimizer.apply_gradients([(tf.IndexedSlices(VALUES[0], ROWS[0], TABLE.shape), table)])
        before = table.numpy()[1]
        optimizer.apply_gradients([(tf.IndexedSlices(VALUES[2], ROWS[2], TABLE.shape), table)])
        moved[kind] = np.abs(table.numpy()[1] - before).max()
    assert moved[SparseAdam] == 0.0
    assert moved[tf.keras.optimizers.Adam] > 1e-3


def test_dense_gradients_take_the_step_of_keras():
    gradients = RNG.normal(size=(5, *TABLE.shape)).astype(np.float32)
    tables = []
    for kind in (SparseAdam, tf.keras.optimizers.Adam):
        table, optimizer = tf.Variable(TABLE), kind(0.05, clipnorm=1.0, weight_decay=0.01)
        for gradient in gradients:
            optimizer.apply_gradients([(tf.constant(gradient), table)])
        tables.append(table.numpy())
    np.testing.assert_array_equal(*tables)


def test_every_row_in_every_step_is_the_adam_of_keras():
    tables = []
    for kind in (SparseAdam, tf.keras.optimizers.Adam):
        table, optimizer = tf.Variable(TABLE), kind(0.05)
        for values in (TABLE, TABLE + 1, TABLE * 2, -TABLE):
            gradient = tf.IndexedSlices(values[::-1].copy(), np.arange(6)[::-1], TABLE.shape)
            optimizer.apply_gradients([(gradient, table)])
        tables.append(table.numpy())
    np.testing.assert_allclose(*tables, rtol=1e-5)


def test_a_schedule_is_read_at_each_step():
    schedule = tf.keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.1, 0.0])
    table, optimizer = tf.Variable(TABLE), SparseAdam(schedule)
    gradient = tf.IndexedSlices(VALUES[0], ROWS[0], TABLE.shape)
    positions = []
    for _ in range(4):
        optimizer.apply_gradients([(gradient, table)])
        positions.append(table.numpy())
    assert np.abs(positions[0] - TABLE).max() > 0.05
    np.testing.assert_array_equal(positions[3], positions[2])


def test_config_round_trip_and_refusal():
    optimizer = SparseAdam(0.2, beta_1=0.7)
    config = tf.keras.optimizers.serialize(optimizer)
    again = tf.keras.optimizers.deserialize(config)
    assert isinstance(again, SparseAdam)
    assert again.get_config() == optimizer.get_config()
    with pytest.raises(ValueError, match="amsgrad"):
        SparseAdam(amsgrad=True)
