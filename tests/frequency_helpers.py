"""What the tests of the frequency estimators share."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

METHODS = ("decayed_count", "interval")


def keys(*ids):
    return tf.constant(ids, tf.int64)


def probability(layer, *ids):
    return np.exp(layer.log_probability(keys(*ids)).numpy().astype(np.float64))


def hit(layer, batch_size, *ids):
    """The probability of being in a batch, from the probability of one draw."""
    return 1 - (1 - probability(layer, *ids)) ** batch_size


def slots(layer, ids):
    return layer._slots(tf.constant(ids, tf.int64)).numpy()


def feed(layer, batches):
    """Updates with every row of [steps, B] in one graph."""

    @tf.function
    def loop(stream):
        for ids in stream:
            layer.update(ids)

    loop(tf.constant(batches, tf.int64))
    return layer


def state(layer):
    return [v.numpy() for v in (layer.table, layer.last_step, layer.step, layer.draws)]
