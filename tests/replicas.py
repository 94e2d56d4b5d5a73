"""The one strategy with collectives that a process of tests has room for."""

from __future__ import annotations

import functools

import tensorflow as tf


@functools.cache
def strategy_with_collectives():
    # A second one would number its collectives as the first did.
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
