"""An Adam whose step touches only the rows that have a gradient."""

from __future__ import annotations

import tensorflow as tf


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class SparseAdam(tf.keras.optimizers.Adam):
    """Adam with lazy moments for embedding tables.

    A row without a gradient keeps its moments and its value; a row with one takes the usual step,
    with the bias correction of the global step. `tf.keras.optimizers.Adam` decays the moments of
    whole tables and moves every row at every step, which dominates the time at a million rows.
    Dense variables take the usual step. The arguments are those of `tf.keras.optimizers.Adam`.

    Raises:
        ValueError: with `amsgrad=True`, which has no lazy form here.

    Example:
        >>> table = tf.Variable([[1.0], [1.0]])
        >>> gradient = tf.IndexedSlices(tf.constant([[3.0]]), tf.constant([1]))
        >>> SparseAdam(0.5).apply_gradients([(gradient, table)]) is None
        False
        >>> table.numpy().round(3).tolist()
        [[1.0], [0.5]]

    Source: Kingma and Ba, ICLR 2015, algorithm 1, on the rows of the gradient.
    """

    def __init__(self, learning_rate: float = 0.001, *, name: str = "SparseAdam", **kwargs: object):
        if kwargs.get("amsgrad"):
            raise ValueError("`amsgrad`: expected False. Received: True")
        super().__init__(learning_rate, name=name, **kwargs)

    def update_step(self, gradient: tf.Tensor | tf.IndexedSlices, variable: tf.Variable) -> None:
        """Applies one gradient; Keras has added up duplicate rows of `tf.IndexedSlices` before."""
        if not isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable)
            return
        number = self._index_dict[self._var_key(variable)]
        momentum, velocity = self._momentums[number], self._velocities[number]
        rows, values = gradient.indices, gradient.values
        step = tf.cast(self.iterations + 1, variable.dtype)
        scale = tf.sqrt(1.0 - tf.pow(self.beta_2, step)) / (1.0 - tf.pow(self.beta_1, step))
        m = self.beta_1 * tf.gather(momentum, rows) + (1.0 - self.beta_1) * values
        v = self.beta_2 * tf.gather(velocity, rows) + (1.0 - self.beta_2) * tf.square(values)
        momentum.scatter_update(tf.IndexedSlices(m, rows))
        velocity.scatter_update(tf.IndexedSlices(v, rows))
        change = tf.cast(self.learning_rate, variable.dtype) * scale * m
        variable.scatter_sub(tf.IndexedSlices(change / (tf.sqrt(v) + self.epsilon), rows))
