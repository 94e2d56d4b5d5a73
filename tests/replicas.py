"""Strategies for tests: of any size, and the one with collectives that a process has room for."""

from __future__ import annotations

import functools

import tensorflow as tf


@functools.cache
def strategy_with_collectives():
    # A second one would number its collectives as the first did.
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def strategy_of(replicas):
    if replicas == 1:
        return tf.distribute.get_strategy()
    # Without collectives: these must run in one order, which eager threads do not keep.
    devices = [f"CPU:{number}" for number in range(replicas)]
    operations = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=operations)
