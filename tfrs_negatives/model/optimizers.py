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

    Args:
        learning_rate: a number or a Keras schedule.
        unit_rows: whether rows with a gradient end each step at length 1. For embedding tables
            under a cosine with no layer above them: there only the direction counts, each step is
            at a right angle to the row and lengthens it, and so all later steps turn it less and
            less, whatever the learning rate. On the sphere a schedule says how fast a row turns.
            Tables are variables of two dimensions whose gradient is sparse.
        name: name of the optimizer.

    Raises:
        ValueError: with `amsgrad=True`, which has no lazy form here.

    Example:
        >>> table = tf.Variable([[1.0], [1.0]])
        >>> gradient = tf.IndexedSlices(tf.constant([[3.0]]), tf.constant([1]))
        >>> SparseAdam(0.5).apply_gradients([(gradient, table)]) is None
        False
        >>> table.numpy().round(3).tolist()
        [[1.0], [0.5]]

    Source: Kingma and Ba, ICLR 2015, algorithm 1, on the rows of the gradient; Heo et al., ICLR
        2021 (AdamP), section 2, for how weights without a scale grow, which is prevented here by
        putting them back.
    """

    def __init__(
        self,
        learning_rate: float | tf.keras.optimizers.schedules.LearningRateSchedule = 0.001,
        *,
        unit_rows: bool = False,
        name: str = "SparseAdam",
        **kwargs: object,
    ) -> None:
        if kwargs.get("amsgrad"):
            raise ValueError("`amsgrad`: expected False. Received: True")
        super().__init__(learning_rate, name=name, **kwargs)
        self.unit_rows = unit_rows

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
        change /= tf.sqrt(v) + self.epsilon
        if self.unit_rows and variable.shape.rank == 2:
            moved = tf.math.l2_normalize(tf.gather(variable, rows) - change, axis=1)
            variable.scatter_update(tf.IndexedSlices(moved, rows))
        else:
            variable.scatter_sub(tf.IndexedSlices(change, rows))

    def get_config(self) -> dict[str, object]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "unit_rows": self.unit_rows}
