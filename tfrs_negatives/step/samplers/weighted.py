"""A source that counts more or less than its columns, by a number or by a schedule."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.step.records import Candidates, NegativeSource, RememberingSource, StepContext

Schedule = tf.keras.optimizers.schedules.LearningRateSchedule


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class Weighted(tf.keras.layers.Layer):
    """Columns of weight w, constant or a function of the step.

    A column of weight w contributes w exp(score) to the denominator, and w times its expected count
    to that of the mixture, so that the estimate stays unbiased for any weights::

        c_j = sum_s w_s c_s(j),     logit_j of source s = score_j - log c_j + log w_s

    With weight 0 the source is off. A schedule moves the share of the denominator that comes from a
    source: warm up without hard negatives, or fade the memory bank in.

    Args:
        source: any source.
        weight: at least 0, or a schedule of `tf.keras.optimizers.schedules` over training steps.

    Raises:
        InputError: if a constant weight is negative or not finite.

    Example:
        >>> from tfrs_negatives.step.samplers.in_batch import InBatch
        >>> fade_in = tf.keras.optimizers.schedules.PolynomialDecay(0.0, 1000, 1.0)
        >>> Weighted(InBatch(), fade_in).name
        'in_batch'

    Relations: weight 1 is the source itself, weight 0 a task without it, and a weight of a weighted
        source the product. A common weight of all sources cancels under `correct="negatives"`;
        under "both" or None every negative counts w times against the positive. Columns of single
        rows have no expected count: w exp(score) is what they contribute under any correction.
    """

    def __init__(
        self,
        source: NegativeSource,
        weight: float | tf.keras.optimizers.schedules.LearningRateSchedule,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"name": source.name, "dtype": "float32", **kwargs})
        if not isinstance(weight, Schedule) and not 0 <= weight < math.inf:
            raise bad_input("weight", "a finite number of at least 0, or a schedule", weight)
        self.source, self.weight = source, weight
        self.needs_frequency = source.needs_frequency

    def build(self, input_shape: Any) -> None:
        """Makes the state of the source, where it has one."""
        if isinstance(self.source, tf.keras.layers.Layer):
            self.source.build(input_shape)
        super().build(input_shape)

    @property
    def unweighted(self) -> NegativeSource:
        """The source without any weight."""
        return self.source.unweighted if isinstance(self.source, Weighted) else self.source

    def log_weight(self, context: StepContext) -> tf.Tensor:
        """Returns log w of this step, scalar float32."""
        weight = self.weight(context.step) if isinstance(self.weight, Schedule) else self.weight
        own = tf.math.log(tf.cast(weight, tf.float32))
        return own + log_weight_of(self.source, context)

    def propose(self, context: StepContext) -> Candidates:
        """Returns the columns of the source, all of them empty while the weight is 0."""
        candidates = self.source.propose(context)
        on = self.log_weight(context) > -math.inf
        return candidates._replace(filled=candidates.filled & on)

    def log_expected_count(self, ids: tf.Tensor, context: StepContext) -> tf.Tensor:
        """Returns log(w c), float32, the shape of ids."""
        return self.log_weight(context) + self.unweighted.log_expected_count(ids, context)

    def remember(self, context: StepContext) -> None:
        """Lets the source take in the batch, whatever its weight."""
        if isinstance(self.source, RememberingSource):
            self.source.remember(context)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        weight = self.weight
        if isinstance(weight, Schedule):
            weight = tf.keras.optimizers.schedules.serialize(weight)
        source = tf.keras.utils.serialize_keras_object(self.source)
        return {**super().get_config(), "source": source, "weight": weight}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Weighted:
        """Builds the layer that `get_config` described."""
        config = dict(config)
        if isinstance(config["weight"], dict):
            config["weight"] = tf.keras.optimizers.schedules.deserialize(config["weight"])
        config["source"] = tf.keras.utils.deserialize_keras_object(config["source"])
        return cls(**config)


def log_weight_of(source: NegativeSource, context: StepContext) -> tf.Tensor | float:
    """Returns the log weight of any source in this step, 0 where it has none."""
    return source.log_weight(context) if isinstance(source, Weighted) else 0.0
