"""Which rows are in which batch: a function of the step and the seed alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input


def check_batch_size(batch_size: Any) -> None:
    """Raises `InputError` unless it is an integer of at least 1."""
    if not isinstance(batch_size, (int, np.integer)):
        raise bad_input("batch_size", "an integer", repr(batch_size))
    if batch_size < 1:
        raise bad_input("batch_size", "at least 1", batch_size)


def check_start_step(start_step: int) -> None:
    """Raises `InputError` unless it is the number of a step."""
    if start_step < 0:
        raise bad_input("start_step", "at least 0", start_step)


def shuffled(positions: tf.Tensor, num_events: int, *, seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """Positions [m] in the order of an epoch -> row numbers [m], a permutation of all rows."""
    # The cipher uses few low bits of each of the three words of its key, so plain numbers for seed
    # and epoch would repeat after 256 epochs. With the 4 rounds of
    # `tf.random.experimental.index_shuffle` a few orders are hardly shuffled.
    key = tf.random.stateless_uniform(
        [3], tf.stack([tf.constant(seed, tf.int64), epoch]), None, None, tf.int32, alg="philox"
    )
    last = tf.constant(num_events - 1, positions.dtype)
    return tf.raw_ops.RandomIndexShuffle(index=positions, seed=key, max_index=last, rounds=8)
