"""The ring of past items against a queue."""

from __future__ import annotations

import numpy as np
import pytest
import reference_sources as reference
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import EMPTY

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.step.samplers.memory_bank import MemoryBank

D = 2


def bank_of(capacity, **options):
    bank = MemoryBank(capacity, **options)
    bank.build(D)
    return bank


def stream(sizes, seed=0):
    """Batches of these sizes, with ids that come again."""
    rng = np.random.default_rng(seed)
    for size in sizes:
        yield rng.integers(0, 30, size), rng.normal(size=[size, D]).astype(np.float32)


def assert_holds(bank, queue, pushed):
    """The bank, read from its oldest slot on, is the queue behind the slots never used."""
    oldest = pushed % bank.capacity
    ids, vectors, ages, filled = (np.roll(x, -oldest, axis=0) for x in bank.read())
    unused = bank.capacity - len(queue.queue)
    held = [stored.item != EMPTY for stored in queue.queue]
    np.testing.assert_array_equal(filled, [False] * unused + held)
    np.testing.assert_array_equal(ids, [EMPTY] * unused + [s.item for s in queue.queue])
    for place, stored in enumerate(queue.queue, start=unused):
        if stored.item != EMPTY:
            np.testing.assert_array_equal(vectors[place], stored.vector)
            assert ages[place] == queue.age(stored)


cases = st.integers(1, 7).flatmap(
    lambda m: st.tuples(st.just(m), st.lists(st.integers(0, m), max_size=8))
)


@settings(max_examples=25, deadline=None)
@given(cases)
@example((5, [5, 5, 5]))
@example((5, [3, 3, 3, 3]))
@example((4, [0, 1, 0, 4, 1]))
@example((1, [1, 0, 1]))
def test_the_first_in_is_the_first_out(case):
    capacity, sizes = case
    bank, queue, pushed = bank_of(capacity), reference.Bank(capacity), 0
    assert_holds(bank, queue, pushed)
    for ids, vectors in stream(sizes):
        bank.push(tf.constant(ids), tf.constant(vectors))
        queue.push(ids, vectors)
        pushed += len(ids)
        assert_holds(bank, queue, pushed)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_a_graph_for_batches_of_any_size(storage, jit_compile):
    bank, queue, pushed = bank_of(5, storage=storage), reference.Bank(5), 0
    signature = [tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, D])]
    # XLA has no assertion and no unknown shape: it compiles each size.
    push = tf.function(
        bank.push,
        input_signature=None if jit_compile else signature,
        jit_compile=jit_compile,
    )
    read = tf.function(bank.read, jit_compile=jit_compile)
    for ids, vectors in stream([2, 5, 0, 1, 4] if not jit_compile else [2, 5, 4]):
        vectors = tf.cast(tf.cast(vectors, storage), tf.float32).numpy()
        push(tf.constant(ids), tf.constant(vectors))
        queue.push(ids, vectors)
        pushed += len(ids)
        assert_holds(bank, queue, pushed)
    assert [x.dtype for x in read()] == [tf.int64, tf.float32, tf.int64, tf.bool]


# (binary digits, largest number, smallest step) of each dtype.
FORMATS = {
    "float32": (24, (2 - 2.0**-23) * 2.0**127, 2.0**-149),
    "float16": (11, 65504.0, 2.0**-24),
    "bfloat16": (8, (2 - 2.0**-7) * 2.0**127, 2.0**-133),
}


@pytest.mark.parametrize("storage", FORMATS)
def test_storage_rounds_and_clips(storage):
    bits, largest, smallest = FORMATS[storage]
    extremes = [7e4, -7e4, 65519.0, 65535.0, 3.4028e38, -3.4028e38, 0.0, 1 + 2.0**-8, 3e-7, 1 / 3]
    numbers = np.concatenate([extremes, np.random.default_rng(1).normal(size=30) * 50])
    numbers = numbers.astype(np.float32).reshape(-1, D)
    bank = bank_of(len(numbers), storage=storage)
    bank.push(tf.range(len(numbers), dtype=tf.int64), tf.constant(numbers))
    expected = [
        [reference.rounded(float(x), bits, largest, smallest) for x in row] for row in numbers
    ]
    contents = bank.read()
    assert contents.valid.numpy().all()
    np.testing.assert_array_equal(contents.vectors, np.array(expected, np.float32))
    assert bank.vectors.dtype.size == (4 if storage == "float32" else 2)


@pytest.mark.parametrize("storage", FORMATS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_vector_that_is_no_number_leaves_its_slot_empty(storage, dtype):
    bank, queue = bank_of(4, storage=storage), reference.Bank(4)
    vectors = [[1.0, 2.0], [np.nan, 1.0], [0.5, np.inf], [-np.inf, 0.0], [4.0, 8.0]]
    for rows in ([0, 1], [2, 3, 4]):
        ids, batch = np.array(rows) + 10, np.array(vectors)[rows]
        bank.push(tf.constant(ids), tf.cast(batch, dtype))
        queue.push(ids, batch)
    assert_holds(bank, queue, 5)
    assert np.isfinite(bank.read().vectors).all()
    # The slot of a good item that a bad one took over is empty too, and is filled again.
    bank.push(tf.constant([20, 21, 22], tf.int64), tf.ones([3, D], dtype))
    queue.push([20, 21, 22], np.ones([3, D]))
    assert_holds(bank, queue, 8)


def test_restored_in_the_middle_of_a_round_it_goes_on(tmp_path):
    bank, again, queue, pushed = bank_of(5), bank_of(5), reference.Bank(5), 0
    for number, (ids, vectors) in enumerate(stream([3, 4, 2, 5, 1])):
        for one in (bank, again) if number > 1 else (bank,):
            one.push(tf.constant(ids), tf.constant(vectors))
        queue.push(ids, vectors)
        pushed += len(ids)
        if number == 1:
            path = tf.train.Checkpoint(bank=bank).write(str(tmp_path / "bank"))
            tf.train.Checkpoint(bank=again).read(path).assert_existing_objects_matched()
        if number >= 1:
            assert_holds(again, queue, pushed)
    for received, wanted in zip(again.variables, bank.variables, strict=True):
        np.testing.assert_array_equal(received, wanted)
    copy = MemoryBank.from_config(bank_of(3, storage="float16").get_config())
    assert (copy.capacity, copy.storage) == (3, "float16")
    assert not bank.trainable_variables


@pytest.mark.parametrize(
    ("argument", "options"),
    [("capacity", {"capacity": 0}), ("storage", {"capacity": 3, "storage": "float64"})],
)
def test_errors_name_the_argument(argument, options):
    with pytest.raises(InputError, match=f"^`{argument}`"):
        MemoryBank(**options)


def test_a_batch_larger_than_the_bank_is_an_error():
    bank = bank_of(3)
    with pytest.raises(InputError, match=r"^`capacity`: expected at least the 4 items"):
        bank.push(tf.range(4, dtype=tf.int64), tf.ones([4, D]))
    assert_holds(bank, reference.Bank(3), 0)
    signature = [tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, D])]
    push = tf.function(bank.push, input_signature=signature)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`capacity`"):
        push(tf.range(4, dtype=tf.int64), tf.ones([4, D]))
    push(tf.range(3, dtype=tf.int64), tf.ones([3, D]))
    assert bank.read().valid.numpy().all()
