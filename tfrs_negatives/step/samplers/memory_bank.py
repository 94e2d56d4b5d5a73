"""A ring of the items of past batches, with their ids and ages."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import Part
from tfrs_negatives.core.types import EMPTY_ID

Storage = Literal["float32", "float16", "bfloat16"]
NEVER = -1


class BankContents(NamedTuple):
    """What the bank holds, slot by slot.

    Attributes:
        ids: [M] int64, `EMPTY_ID` in an empty slot.
        vectors: [M, D] float32.
        ages: [M] int64, in batches: 1 for what the last batch pushed.
        valid: [M] bool, False for an empty slot.
    """

    ids: tf.Tensor
    vectors: tf.Tensor
    ages: tf.Tensor
    valid: tf.Tensor


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class MemoryBank(Part, tf.keras.layers.Layer):
    """The last M items of the stream of batches, first in, first out.

    Memory: M (D s + 16) bytes for s bytes a number.

    Args:
        capacity: how many items, M.
        storage: dtype of the stored embeddings. Half precision halves the memory; what is read is
            float32 again.

    Raises:
        InputError: if the capacity is below 1, the storage is unknown, or a batch is larger than
            the capacity.

    Example:
        >>> bank = MemoryBank(3)
        >>> bank.build([None, 1])
        >>> bank.push(tf.constant([5, 6], tf.int64), tf.constant([[0.5], [0.6]]))
        >>> bank.push(tf.constant([7, 8], tf.int64), tf.constant([[0.7], [0.8]]))
        >>> bank.read().ids.numpy().tolist(), bank.read().ages.numpy().tolist()
        ([8, 6, 7], [1, 2, 1])

    Source: Wang et al., SIGIR 2021.
    """

    def __init__(self, capacity: int, *, storage: Storage = "float32", **kwargs: Any) -> None:
        super().__init__(**{"name": "memory_bank", "dtype": "float32", **kwargs})
        if capacity < 1:
            raise bad_input("capacity", "at least 1", capacity)
        if storage not in get_args(Storage):
            raise bad_input("storage", f"one of {list(get_args(Storage))}", repr(storage))
        self.capacity, self.storage = capacity, storage

    def build(self, input_shape: Any) -> None:
        """Makes the state for embeddings [..., D]."""
        fixed: dict[str, Any] = {"trainable": False, "experimental_autocast": False}
        constant, slots = tf.keras.initializers.Constant, [self.capacity]
        shape, storage = [*slots, tf.TensorShape(input_shape)[-1]], self._kept_dtype
        self.ids = self.add_weight("ids", slots, tf.int64, constant(EMPTY_ID), **fixed)
        self.vectors = self.add_weight("vectors", shape, storage, constant(0), **fixed)
        self.steps = self.add_weight("steps", slots, tf.int64, constant(NEVER), **fixed)
        self.step = self.add_weight("step", [], tf.int64, constant(0), **fixed)
        self.next_slot = self.add_weight("next_slot", [], tf.int64, constant(0), **fixed)
        super().build(input_shape)

    @property
    def _kept_dtype(self) -> tf.DType:
        # HDF5, and with it a saved model, knows no bfloat16: the bank keeps its bits.
        return tf.uint16 if self.storage == "bfloat16" else tf.as_dtype(self.storage)

    def read(self) -> BankContents:
        """Returns all M slots as they are before the next batch is pushed."""
        valid = tf.not_equal(self.steps, NEVER)
        ages = self.step + 1 - self.steps
        vectors = tf.bitcast(self.vectors, self.storage)
        return BankContents(
            tf.convert_to_tensor(self.ids), tf.cast(vectors, tf.float32), ages, valid
        )

    def push(self, ids: tf.Tensor, vectors: tf.Tensor) -> None:
        """Puts the items of one batch in the place of the oldest.

        An embedding that is not finite (an overflow of half precision towers) leaves its slot
        empty: it would spoil every step until it has gone round.

        Args:
            ids: [n] int64, n up to the capacity.
            vectors: [n, D].
        """
        count = self._checked_size(ids)
        limit = tf.as_dtype(self.storage).max
        finite = tf.reduce_all(tf.math.is_finite(vectors), axis=-1)
        vectors = tf.where(finite[:, None], tf.cast(vectors, tf.float32), 0.0)
        vectors = tf.cast(tf.clip_by_value(vectors, -limit, limit), self.storage)
        self.step.assign_add(1)
        slots = tf.math.floormod(self.next_slot + tf.range(count), self.capacity)
        steps = tf.where(finite, self.step, NEVER)
        self.ids.scatter_update(tf.IndexedSlices(tf.where(finite, ids, EMPTY_ID), slots))
        kept = tf.bitcast(vectors, self._kept_dtype)
        self.vectors.scatter_update(tf.IndexedSlices(kept, slots))
        self.steps.scatter_update(tf.IndexedSlices(steps, slots))
        self.next_slot.assign(tf.math.floormod(self.next_slot + count, self.capacity))

    def _checked_size(self, ids: tf.Tensor) -> tf.Tensor:
        rule = f"at least the {ids.shape[0]} items of a batch"
        if ids.shape[0] is not None and ids.shape[0] > self.capacity:
            raise bad_input("capacity", rule, self.capacity)
        count = tf.shape(ids, tf.int64)[0]
        if ids.shape[0] is None:
            message = "`capacity`: expected at least the items of a batch"
            tf.debugging.assert_less_equal(count, tf.constant(self.capacity, tf.int64), message)
        return count
