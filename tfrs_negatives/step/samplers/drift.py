"""How far the item tower has moved since it was last measured, on a fixed set of probe items."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import Part
from tfrs_negatives.core.types import Features
from tfrs_negatives.data.catalogue import ItemCatalogue

DriftMeasure = Literal["relative", "sum"]


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class FeatureDrift(Part, tf.keras.layers.Layer):
    """Feature drift of probe items y between two measurements, at t' and at t.

        relative    mean_y ||g_t(y) - g_t'(y)||^2 / mean_y ||g_t(y)||^2
        sum         sum_y  ||g_t(y) - g_t'(y)||^2

    The relative drift means the same for any number of probes and any length of the embeddings;
    the sum is that of the thesis, over the whole catalogue.

    Args:
        items: the catalogue.
        num_probes: how many of its items are probes, chosen once; all of them where it has fewer.
        measure: "relative" or "sum".
        seed: chooses the probes.

    Raises:
        InputError: if `num_probes` is below 1 or the measure is unknown.

    Example:
        >>> drift = FeatureDrift(ItemCatalogue([3, 4]))
        >>> drift.build([None, 2])
        >>> for vectors in ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 2.0]]):
        ...     drift.measure_now(lambda features: tf.constant(vectors))
        >>> float(drift.value)   # one probe moved by 1; the squared lengths are 1 and 4
        0.2...

    Source: Wang et al., SIGIR 2021 and the thesis, section 3.3, as a sum. We differ: the
        default is relative, because a sum grows with the catalogue and the vectors.
    """

    def __init__(
        self,
        items: ItemCatalogue,
        *,
        num_probes: int = 2048,
        measure: DriftMeasure = "relative",
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"name": "feature_drift", "dtype": "float32", **kwargs})
        if num_probes < 1:
            raise bad_input("num_probes", "at least 1", num_probes)
        if measure not in get_args(DriftMeasure):
            raise bad_input("measure", f"one of {list(get_args(DriftMeasure))}", repr(measure))
        self.items, self.num_probes = items, num_probes
        self.measure, self.seed = measure, seed
        order = np.random.Generator(np.random.PCG64(seed)).permutation(len(items))
        self._rows = np.sort(order[:num_probes])

    def build(self, input_shape: Any) -> None:
        """Makes the state for embeddings [..., D]."""
        fixed: dict[str, Any] = {"trainable": False, "experimental_autocast": False}
        unknown = tf.keras.initializers.Constant(np.nan)
        shape = [len(self._rows), tf.TensorShape(input_shape)[-1]]
        self.vectors = self.add_weight("vectors", shape, tf.float32, unknown, **fixed)
        self.value = self.add_weight("value", [], tf.float32, unknown, **fixed)
        super().build(input_shape)

    def measure_now(self, encode: Callable[[Features], tf.Tensor]) -> None:
        """Compares the probes with those of the last measurement; the first only keeps them.

        Args:
            encode: item features -> embeddings [m, D], as in inference.
        """
        new = tf.cast(encode(self.items.gather(tf.constant(self._rows))), tf.float32)
        new = tf.stop_gradient(new)
        moved = tf.reduce_sum(tf.square(new - self.vectors))
        if self.measure == "relative":
            moved /= tf.maximum(tf.reduce_sum(tf.square(new)), 1e-12)
        # Not a number until there are two measurements: nothing is below any threshold then.
        self.value.assign(moved)
        self.vectors.assign(new)
