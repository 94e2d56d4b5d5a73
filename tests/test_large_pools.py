"""The log-sum-exp in blocks is that of loops over rows and columns, in value and in gradient."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.step.blocks import chunked_log_sum_exp, columns_within
from tfrs_negatives.step.losses.log_sums import masked_log_sum_exp

D = 3
# Rows, columns, block: equal blocks, a rest, one block, a block too wide, blocks of one.
SIZES = [(4, 6, 3), (3, 7, 3), (2, 5, 5), (3, 4, 9), (4, 3, 1)]
MODES = ["eager", "graph", "dynamic", "xla"]


def draw(num_rows, num_columns, seed=0):
    """Queries, columns, shift, positive and keep; the first row of several keeps nothing."""
    rng = np.random.default_rng(seed)
    shapes = [num_rows, D], [num_columns, D], [num_columns], [num_rows]
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    keep = rng.random([num_rows, num_columns]) < 0.6
    keep[:1] &= num_rows == 1
    return arrays, keep


def slow(queries, columns, shift, positive, keep, upstream):
    """Whether anything is kept, values, and the gradients of sum_i upstream_i value_i."""
    queries, columns, shift = (x.astype(np.float64) for x in (queries, columns, shift))
    some, values = np.zeros(len(queries), bool), np.zeros(len(queries))
    gradients = [np.zeros_like(x, np.float64) for x in (queries, columns, shift, positive)]
    for i in range(len(queries)):
        kept = [j for j in range(len(columns)) if keep[i, j]]
        if not kept:
            continue
        logits = [queries[i] @ columns[j] + shift[j] for j in kept]
        total = sum(np.exp(x - max(logits)) for x in logits)
        some[i], values[i] = True, max(logits) + np.log(total) - positive[i]
        for j, logit in zip(kept, logits, strict=True):
            share = upstream[i] * np.exp(logit - max(logits)) / total
            gradients[0][i] += share * columns[j]
            gradients[1][j] += share * queries[i]
            gradients[2][j] += share
        gradients[3][i] = -upstream[i]
    return some, values, gradients


def upstream_of(num_rows):
    return np.arange(1, num_rows + 1, dtype=np.float32)


def by_mask(keep):
    """The `keep` argument that answers from a [B, C] mask."""
    keep = tf.convert_to_tensor(keep)

    def block(start, logits):
        return tf.slice(keep, [0, start], tf.shape(logits))

    return block


def differentiated(
    queries, columns, shift, positive, keep, block_width, stale_from=None, **options
):
    inputs = [queries, columns, shift, positive]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        (some, value), num_kept = chunked_log_sum_exp(
            *inputs[:3],
            keep=by_mask(keep),
            positive=positive,
            block_width=block_width,
            stale_from=stale_from,
            **options,
        )
        loss = tf.reduce_sum(value * tf.cast(1 + tf.range(tf.shape(value)[0]), tf.float32))
    if keep is not None:
        tf.debugging.assert_equal(num_kept, tf.reduce_sum(tf.cast(keep, tf.float32)))
    return some, value, tape.gradient(loss, inputs)


def run(mode, arrays, keep, block_width, stale_from=None, **options):
    inputs = [tf.constant(x) for x in (*arrays, keep)]
    if mode == "eager":
        return differentiated(*inputs, block_width, stale_from, **options)
    shapes = [[None, D], [None, D], [None], [None], [None, None]]
    step = tf.function(
        lambda *inputs: differentiated(*inputs, block_width, stale_from, **options),
        input_signature=[tf.TensorSpec(s, x.dtype) for s, x in zip(shapes, inputs, strict=True)]
        if mode == "dynamic"
        else None,
        jit_compile=mode == "xla",
    )
    return step(*inputs)


def assert_same(received, expected, **tolerance):
    np.testing.assert_array_equal(received[0], expected[0])
    np.testing.assert_allclose(received[1], expected[1], **tolerance)
    for ours, wanted in zip(received[2], expected[2], strict=True):
        np.testing.assert_allclose(ours, wanted, **tolerance)


CLOSE = {"rtol": 1e-5, "atol": 1e-5}


# ------------------------------------------------------------------ numbers


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("short_by", [0, 1], ids=["remembered", "once more"])
@pytest.mark.parametrize(("num_rows", "num_columns", "block_width"), SIZES)
def test_it_is_the_log_sum_of_the_loops(mode, num_rows, num_columns, block_width, short_by):
    arrays, keep = draw(num_rows, num_columns)
    budget = 4 * num_rows * num_columns - short_by
    received = run(mode, arrays, keep, block_width, byte_budget=budget)
    assert_same(received, slow(*arrays, keep, upstream_of(num_rows)), **CLOSE)


@settings(max_examples=30, deadline=None)
@given(
    num_rows=st.integers(1, 5),
    num_columns=st.integers(1, 12),
    block_width=st.integers(1, 14),
    seed=st.integers(0, 2**31),
)
def test_any_size(num_rows, num_columns, block_width, seed):
    arrays, keep = draw(num_rows, num_columns, seed)
    received = run("eager", arrays, keep, block_width)
    assert_same(received, slow(*arrays, keep, upstream_of(num_rows)), **CLOSE)


def test_sizes_change_from_call_to_call():
    specs = [tf.TensorSpec(s) for s in ([None, D], [None, D], [None], [None])]
    specs.append(tf.TensorSpec([None, None], tf.bool))
    step = tf.function(lambda *inputs: differentiated(*inputs, 4), input_signature=specs)
    for num_rows, num_columns in [(2, 12), (5, 3), (1, 4), (3, 9), (2, 0), (0, 5), (4, 13)]:
        arrays, keep = draw(num_rows, num_columns, seed=num_columns)
        expected = slow(*arrays, keep, upstream_of(num_rows))
        assert_same(step(*arrays, keep), expected, **CLOSE)
    assert step.experimental_get_tracing_count() == 1


def test_it_is_the_dense_log_sum_of_a_larger_pool():
    # Logits to about 40, most of the weight in few columns, which the blocks meet in any order.
    rng = np.random.default_rng(1)
    queries, columns = (tf.constant(rng.normal(size=[n, 16]), tf.float32) for n in (64, 500))
    queries *= 3.0
    shift, positive = tf.constant(rng.normal(size=500), tf.float32), tf.fill([64], 20.0)
    keep = tf.constant(rng.random([64, 500]) < 0.9)
    inputs = [queries, columns, shift, positive]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        logits = tf.matmul(queries, columns, transpose_b=True) + shift
        some, value = masked_log_sum_exp(logits, keep, positive=positive)
        loss = tf.reduce_sum(value * upstream_of(64))
    expected = some, value, tape.gradient(loss, inputs)
    for block_width in (37, 100):
        received = differentiated(*inputs, keep, block_width)
        # The gradient of row i is i times that of one row.
        assert_same(received, expected, rtol=1e-5, atol=64 * 1e-5)


def test_without_a_mask_every_column_is_kept():
    arrays, keep = draw(4, 7)
    everything = slow(*arrays, np.ones_like(keep), upstream_of(4))
    (some, value), num_kept = chunked_log_sum_exp(
        *arrays[:3], keep=None, positive=arrays[3], block_width=3
    )
    assert some.numpy().all()
    assert float(num_kept) == 4 * 7
    np.testing.assert_allclose(value, everything[1], rtol=1e-5)


@pytest.mark.parametrize("extreme", [1e4, -1e4, 1e37, -1e37])
@pytest.mark.parametrize(("mode", "block_width"), [("eager", 1), ("eager", 3), ("xla", 2)])
def test_extreme_logits(extreme, mode, block_width):
    keep = np.array([[True, True, False], [False, True, True], [False, True, False]])
    # The logits are 0, extreme, -extreme in every row; the row's positive is what competes.
    columns = np.array([[0, 0, 0], [extreme, 0, 0], [-extreme, 0, 0]], np.float32)
    arrays = [np.eye(3, dtype=np.float32)[[0, 0, 0]], columns, np.zeros(3, np.float32)]
    positive = np.array([0, extreme, extreme], np.float32)
    some, value, gradients = run(mode, [*arrays, positive], keep, block_width)
    assert some.numpy().all()
    for gradient in gradients:
        assert np.isfinite(gradient).all()
    if extreme > 0:
        np.testing.assert_allclose(value, [extreme, 0, 0], rtol=1e-6)
        by_query = [extreme, 2 * extreme, 3 * extreme]
        np.testing.assert_allclose(gradients[0][:, 0], by_query, rtol=1e-6)
        np.testing.assert_allclose(gradients[2], [0, 6, 0], rtol=1e-6)
    else:
        np.testing.assert_allclose(value, [0, -2 * extreme, 0], rtol=1e-6)
        by_query = [0, -2 * extreme, 3 * extreme]
        np.testing.assert_allclose(gradients[0][:, 0], by_query, rtol=1e-6)
        np.testing.assert_allclose(gradients[2], [1, 3, 2], rtol=1e-6)


def test_a_constant_on_all_logits_goes_into_the_value_alone():
    # The peak is near 2^14; a value that was rounded there would differ by thousandths.
    (queries, columns, shift, positive), keep = draw(4, 7)
    grid = np.float32(2.0**-9)
    shift, positive = (np.round(x / grid) * grid for x in (shift, positive))
    queries, columns = np.zeros_like(queries), np.zeros_like(columns)
    near = run("eager", [queries, columns, shift, positive], keep, 2)
    far = run("eager", [queries, columns, shift + 2**14, positive + 2**14], keep, 2)
    np.testing.assert_allclose(far[1], near[1], atol=1e-6)
    np.testing.assert_allclose(far[2][2], near[2][2], atol=1e-6)


# ------------------------------------------------------------------ rows and columns left out


@pytest.mark.parametrize("mode", MODES)
def test_a_row_without_columns_is_zero_and_touches_nothing(mode):
    arrays, keep = draw(4, 7)
    keep[2] = False
    some, value, gradients = run(mode, arrays, keep, 3)
    np.testing.assert_array_equal(some, [False, True, False, True])
    np.testing.assert_array_equal(value.numpy()[[0, 2]], [0, 0])
    np.testing.assert_array_equal(gradients[0].numpy()[[0, 2]], np.zeros([2, D]))
    np.testing.assert_array_equal(gradients[3].numpy()[[0, 2]], [0, 0])
    rows = [1, 3]
    alone = [arrays[0][rows], *arrays[1:3], arrays[3][rows]]
    expected = slow(*alone, keep[rows], upstream_of(4)[rows])
    for place in (1, 2):
        np.testing.assert_allclose(gradients[place], expected[2][place], **CLOSE)


@pytest.mark.parametrize("first", range(7))
def test_a_row_may_keep_its_first_column_late(first):
    # Columns before it are masked and have much larger logits, those after it smaller ones.
    (queries, columns, _, positive), keep = draw(2, 7)
    shift = np.float32([60.0 if j < first else -5.0 * j for j in range(7)])
    keep[:] = np.arange(7) >= first
    arrays = [queries, columns, shift, positive]
    expected = slow(*arrays, keep, upstream_of(2))
    for block_width in (1, 2, 3):
        assert_same(run("eager", arrays, keep, block_width), expected, **CLOSE)


def test_a_masked_column_may_have_any_logit():
    arrays, keep = draw(3, 6)
    keep[:, [1, 4]] = False
    expected = slow(*arrays, keep, upstream_of(3))
    arrays[2][[1, 4]] = np.inf, -np.inf
    assert_same(run("eager", arrays, keep, 2), expected, **CLOSE)


def test_what_is_not_a_number_is_not_hidden():
    arrays, keep = draw(3, 6)
    arrays[0][1] = np.nan
    some, value, _ = run("eager", arrays, keep, 2)
    np.testing.assert_array_equal(some, [False, True, True])
    np.testing.assert_array_equal(np.isnan(value), [False, True, False])


@pytest.mark.parametrize("mode", ["eager", "xla"])
@pytest.mark.parametrize("stale_from", [0, 1, 3, 5, 7])
def test_stale_columns_count_and_get_no_gradient(mode, stale_from):
    arrays, keep = draw(4, 7)
    expected = slow(*arrays, keep, upstream_of(4))
    for place in (1, 2):
        expected[2][place][stale_from:] = 0
    assert_same(run(mode, arrays, keep, 3, stale_from), expected, **CLOSE)


def test_where_the_stale_columns_begin_may_be_a_tensor():
    arrays, keep = draw(4, 7)
    expected = slow(*arrays, keep, upstream_of(4))
    for place in (1, 2):
        expected[2][place][5:] = 0
    inputs = [tf.constant(x) for x in (*arrays, keep)]
    step = tf.function(lambda stale_from: differentiated(*inputs, 3, stale_from))
    assert_same(step(tf.constant(5)), expected, **CLOSE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("budget", [0, 2**20])
@pytest.mark.parametrize("masked", [False, True])
def test_a_column_does_not_count_in_the_row_whose_positive_it_is(mode, budget, masked):
    arrays, keep = draw(4, 7)
    own_rows = np.array([-1, 2, -1, 0, 3, -1, 1])
    keep = keep if masked else np.ones_like(keep)
    inputs = [tf.constant(x) for x in arrays]

    def step(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            (some, value), num_kept = chunked_log_sum_exp(
                *inputs[:3],
                keep=by_mask(keep) if masked else None,
                positive=inputs[3],
                own_rows=tf.constant(own_rows, tf.int32),
                block_width=3,
                byte_budget=budget,
            )
            loss = tf.reduce_sum(value * upstream_of(4))
        return some, value, tape.gradient(loss, inputs), num_kept

    if mode != "eager":
        specs = (
            [tf.TensorSpec([None] * x.shape.rank) for x in inputs] if mode == "dynamic" else None
        )
        if specs:
            specs[0], specs[1] = tf.TensorSpec([None, D]), tf.TensorSpec([None, D])
        step = tf.function(step, input_signature=specs, jit_compile=mode == "xla")
    *received, num_kept = step(*inputs)
    others = keep & (own_rows != np.arange(4)[:, None])
    assert_same(received, slow(*arrays, others, upstream_of(4)), **CLOSE)
    assert float(num_kept) == others.sum()


@pytest.mark.parametrize("budget", [0, 2**20])
def test_a_shift_that_does_not_learn_changes_no_other_gradient(budget):
    arrays, keep = draw(4, 7)
    some, value, gradients = run("graph", arrays, keep, 3, learns_shift=False, byte_budget=budget)
    expected = slow(*arrays, keep, upstream_of(4))
    assert gradients[2] is None
    del gradients[2], expected[2][2]
    assert_same((some, value, gradients), expected, **CLOSE)


# ------------------------------------------------------------------ what the caller sees


def test_keep_is_asked_for_each_block_with_its_logits():
    (queries, columns, shift, positive), _ = draw(2, 7)
    asked = []

    def keep(start, logits):
        asked.append((int(start), logits.numpy()))
        return logits > 0

    with tf.GradientTape() as tape:
        tape.watch(inputs := tf.constant(queries))
        (_, value), _ = chunked_log_sum_exp(
            inputs, columns, shift, keep=keep, positive=positive, block_width=3
        )
    tape.gradient(value, inputs)
    assert [start for start, _ in asked] == [0, 3, 6] * 2
    logits = queries @ columns.T + shift
    for start, block in asked:
        np.testing.assert_allclose(block, logits[:, start : start + 3], rtol=1e-5)
    expected = slow(queries, columns, shift, positive, logits > 0, upstream_of(2))
    np.testing.assert_allclose(value, expected[1], rtol=1e-5, atol=1e-6)


def test_a_bias_is_trained_through_the_shift():
    arrays, keep = draw(4, 7)
    items = np.array([2, 0, 2, 1, 2, 0, 4])
    table = tf.Variable(np.linspace(-1, 1, 5), dtype=tf.float32)
    with tf.GradientTape() as tape:
        shift = tf.gather(table, items) - 0.5
        (_, value), _ = chunked_log_sum_exp(
            *arrays[:2], shift, keep=by_mask(keep), positive=arrays[3], block_width=3
        )
        loss = tf.reduce_sum(value * upstream_of(4))
    biased = [*arrays[:2], table.numpy()[items] - 0.5, arrays[3]]
    by_column = slow(*biased, keep, upstream_of(4))[2][2]
    expected = [by_column[items == item].sum() for item in range(5)]
    received = tf.convert_to_tensor(tape.gradient(loss, table))
    np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_towers_learn_the_same_through_two_pools_of_one_step(jit_compile):
    rng = np.random.default_rng(3)
    features = tf.constant(rng.normal(size=[6, 4]), tf.float32)
    bank = tf.constant(rng.normal(size=[5, D]), tf.float32)
    ids, bank_ids = tf.constant([1, 2, 2, 3, 4, 5]), tf.Variable([3, 9, 2, 8, 7], trainable=False)
    tower = tf.keras.layers.Dense(D, kernel_initializer=tf.keras.initializers.GlorotUniform(1))
    tower(features)

    def loss(log_sum_exp):
        items, queries = tower(features), tower(features[::-1])
        positive = tf.reduce_sum(queries * items, axis=1)
        total = 0.0
        for columns, column_ids in [(items, ids), (bank, bank_ids.read_value())]:
            some, margin = log_sum_exp(queries, columns, column_ids, positive)
            total += tf.reduce_mean(tf.where(some, tf.math.softplus(margin), 0.0))
        return total

    def dense(queries, columns, column_ids, positive):
        logits = tf.matmul(queries, columns, transpose_b=True)
        kept = (column_ids[None] != ids[:, None]) & (logits < positive[:, None] + 1.0)
        return masked_log_sum_exp(logits, kept, positive=positive)

    def chunked(queries, columns, column_ids, positive):
        def keep(start, logits):
            block_ids = tf.slice(column_ids, [start], [tf.shape(logits)[1]])
            # Of the scores too, which the towers' variables have a part in.
            return (block_ids[None] != ids[:, None]) & (logits < positive[:, None] + 1.0)

        shift = tf.zeros([columns.shape[0]])
        return chunked_log_sum_exp(
            queries, columns, shift, keep=keep, positive=positive, block_width=4
        )[0]

    @tf.function(jit_compile=jit_compile)
    def gradients(log_sum_exp):
        with tf.GradientTape() as tape:
            value = loss(log_sum_exp)
        return value, tape.gradient(value, tower.trainable_variables)

    expected, received = gradients(dense), gradients(chunked)
    np.testing.assert_allclose(received[0], expected[0], rtol=1e-5)
    for ours, wanted in zip(received[1], expected[1], strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-6)


def test_a_second_derivative_is_refused():
    arrays, keep = draw(2, 5)
    queries = tf.constant(arrays[0])
    with tf.GradientTape() as outer:
        outer.watch(queries)
        with tf.GradientTape() as inner:
            inner.watch(queries)
            (_, value), _ = chunked_log_sum_exp(
                queries, *arrays[1:3], keep=by_mask(keep), positive=arrays[3], block_width=2
            )
        first = inner.gradient(value, queries)
    with pytest.raises(LookupError, match="second derivative"):
        outer.gradient(first, queries)


# ------------------------------------------------------------------ memory


def test_no_step_holds_more_than_a_block():
    num_rows, num_columns, block_width = 40, 90, 8
    arrays, _ = draw(num_rows, num_columns)

    def differentiate(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            (_, value), _ = chunked_log_sum_exp(
                *inputs,
                keep=lambda start, logits: logits < 9,
                positive=arrays[3],
                block_width=block_width,
            )
        return tape.gradient(value, inputs)

    graph = tf.function(differentiate).get_concrete_function(*arrays[:3]).graph
    graphs = [graph, *(function.graph for function in graph._functions.values())]
    operations = [op for each in graphs for op in each.get_operations()]
    # The condition of a loop has the state as placeholders without a shape, and does not read it.
    kinds = {op.type for op in operations}
    sizes = [
        x.shape.num_elements() for op in operations if op.type != "Placeholder" for x in op.outputs
    ]
    assert len(graphs) >= 5
    assert None not in sizes
    assert max(sizes) == num_columns * (D + 1) > num_rows * block_width
    # What a loop keeps for its own derivative goes onto such a list.
    assert "TensorListPushBack" not in kinds


@pytest.mark.parametrize("num_rows", [1, 3, 256, 4096])
@pytest.mark.parametrize("byte_budget", [3, 4, 2**16, 2**24, 2**24 + 4096, 10**8])
def test_a_block_fits_its_budget(num_rows, byte_budget):
    width = columns_within(byte_budget, num_rows)
    assert 4 * num_rows * width <= byte_budget < 4 * num_rows * (width + 9)
    assert width == 0 or width % 512 != 0


@pytest.mark.parametrize("block_width", [0, -3])
def test_a_block_of_no_columns_is_refused(block_width):
    arrays, keep = draw(2, 5)
    with pytest.raises(InputError, match="block_width"):
        run("eager", arrays, keep, block_width)
