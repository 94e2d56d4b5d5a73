"""A sampler that counts more or less than its candidates, by a number or by a schedule."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.step.records import Batch, Candidates, Sampler, Scored

Schedule = tf.keras.optimizers.schedules.LearningRateSchedule


@part("sampler")
class Weighted(Sampler, tf.keras.layers.Layer):
    """Candidates of weight w, constant or a function of the step.

    A candidate of weight w contributes w exp(score) to the denominator, and w times its expected
    count to that of the mixture, so that the estimate stays unbiased for any weights::

        c_j = sum_s w_s c_s(j),     logit_j of sampler s = score_j - log c_j + log w_s

    With weight 0 the sampler is off. A schedule moves the share of the denominator that comes from
    it: warm up without hard negatives, or fade the memory bank in.

    Args:
        sampler: any sampler.
        weight: at least 0, or a schedule of `tf.keras.optimizers.schedules` over training steps.

    Raises:
        InputError: if a constant weight is negative or not finite.

    Example:
        >>> from tfrs_negatives.step.samplers.in_batch import InBatch
        >>> fade_in = tf.keras.optimizers.schedules.PolynomialDecay(0.0, 1000, 1.0)
        >>> Weighted(InBatch(), fade_in).name
        'in_batch'

    Relations: weight 1 is the sampler itself, weight 0 a task without it, and a weight of a
        weighted sampler the product. A common weight of all samplers cancels under
        `correct="negatives"`; under "both" or None every negative counts w times against the
        positive. Candidates of single rows are in no mixture: w exp(score) is what they contribute
        under any correction.
    """

    def __init__(
        self,
        sampler: Sampler,
        weight: float | tf.keras.optimizers.schedules.LearningRateSchedule,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"name": sampler.name, "dtype": "float32", **kwargs})
        if not isinstance(weight, Schedule) and not 0 <= weight < math.inf:
            raise bad_input("weight", "a finite number of at least 0, or a schedule", weight)
        self.sampler, self.weight = sampler, weight
        for name in ("needs_frequency", "reads_scores", "starts_empty"):
            setattr(self, name, getattr(sampler, name))

    @property
    def items(self) -> Any:
        """The catalogue of the sampler, None where it knows none."""
        return getattr(self.sampler, "items", None)

    def build(self, input_shape: Any) -> None:
        """Makes the state of the sampler, where it has one."""
        if isinstance(self.sampler, tf.keras.layers.Layer):
            self.sampler.build(input_shape)
        super().build(input_shape)

    def sample(self, batch: Batch) -> Candidates:
        """Returns the candidates of the sampler, none of them valid while the weight is 0."""
        given, log_weight = self.sampler.sample(batch), self._log_weight(batch)
        valid = given.valid & (log_weight > -math.inf)
        if given.log_weight is not None:
            log_weight += given.log_weight
        return given._replace(valid=valid, log_weight=log_weight)

    def log_count(self, ids: tf.Tensor, batch: Batch) -> tf.Tensor:
        """Returns log(w c), float32, the shape of ids."""
        return self._log_weight(batch) + self.sampler.log_count(ids, batch)

    def update(self, batch: Batch, scored: Scored) -> None:
        """Lets the sampler learn from the step, whatever its weight."""
        self.sampler.update(batch, scored)

    def _log_weight(self, batch: Batch) -> tf.Tensor:
        weight = self.weight(batch.step) if isinstance(self.weight, Schedule) else self.weight
        return tf.math.log(tf.cast(weight, tf.float32))
