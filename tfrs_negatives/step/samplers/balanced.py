"""A sampler whose weight follows its share of the loss."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.core.replicas import all_rows
from tfrs_negatives.step.records import Batch, Sampler, Scored
from tfrs_negatives.step.samplers.weighted import Weighted


@part("sampler")
class Balanced(Weighted):
    """Candidates whose weight moves until they have a given share of what the negatives push.

    Of the softmax over the negatives of a row, the candidates of this sampler have a part p_i. It
    is also their part of the gradient of `SampledSoftmax` in the logits of negatives. After each
    step the weight w of `Weighted` moves so that the mean part becomes the share t::

        log w += rate (logit t - logit mean_i p_i),    |log w| <= log(limit)

    With one kind of row the distance of log w from the fixed point shrinks by the factor 1 - rate
    a step. Rows count that have candidates of this sampler and of others, after masks and miners.

    Args:
        sampler: any sampler, beside others.
        share: what part of the push it is to have, t; with n samplers 1 / n is equal shares.
        rate: how fast; at 1 it follows each batch.
        limit: the largest weight, and 1 / limit the smallest.

    Raises:
        InputError: if a number is out of its range.

    Example:
        >>> from tfrs_negatives.step.samplers.catalogue_draws import Uniform
        >>> from tfrs_negatives.data.catalogue import ItemCatalogue
        >>> Balanced(Uniform(ItemCatalogue([1, 2]), 64), share=0.3).name
        'uniform'

    Relations: a rate of 0 is the sampler itself. Where candidates are the rows' own, whose mass at
        weight 1 is A beside R of the others in every row, the fixed point is w = t R / ((1 - t) A).

    Source: the future work of Yang et al., WWW 2020, that the mixing ratio be learned from the
        data. The rule is of this package.
    """

    def __init__(
        self,
        sampler: Sampler,
        share: float = 0.5,
        *,
        rate: float = 0.05,
        limit: float = 1000.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(sampler, 1.0, **kwargs)
        if not 0 < share < 1:
            raise bad_input("share", "a number between 0 and 1", share)
        if not 0 <= rate <= 1:
            raise bad_input("rate", "a number in [0, 1]", rate)
        if not 1 <= limit < math.inf:
            raise bad_input("limit", "a finite number of at least 1", limit)
        self.share, self.rate, self.limit = share, rate, limit
        self.reads_scores = True

    def build(self, input_shape: Any) -> None:
        """Makes the weight; the task and a loaded file may both ask."""
        if self.built:
            return
        fixed: dict[str, Any] = {"trainable": False, "experimental_autocast": False}
        self.log_weight = self.add_weight("log_weight", [], tf.float32, "zeros", **fixed)
        super().build(input_shape)

    def update(self, batch: Batch, scored: Scored) -> None:
        """Moves the weight towards the share, and lets the sampler learn from the step."""
        super().update(batch, scored)
        part, some = _part_of(batch.number, scored)
        part, some = all_rows(part), all_rows(some)
        number = tf.reduce_sum(tf.cast(some, tf.float32))
        mean = tf.reduce_sum(tf.where(some, part, 0.0)) / tf.maximum(number, 1.0)
        mean = tf.clip_by_value(mean, 1e-6, 1 - 1e-6)
        move = math.log(self.share / (1 - self.share)) - tf.math.log(mean / (1 - mean))
        moved = self.log_weight + tf.where(number > 0, self.rate * move, 0.0)
        largest = math.log(self.limit)
        self.log_weight.assign(tf.clip_by_value(moved, -largest, largest))

    def _log_weight(self, batch: Batch) -> tf.Tensor:
        return tf.convert_to_tensor(self.log_weight)


def _part_of(number: int, scored: Scored) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns [B]: the part of one sampler in the softmax of the negatives; which rows have one."""
    mine = tf.broadcast_to(tf.equal(scored.sampler, number), tf.shape(scored.keep))
    logit = tf.where(scored.keep, tf.stop_gradient(scored.logit), tf.float32.min)
    mass = tf.where(scored.keep & mine, tf.nn.softmax(logit), 0.0)
    part = tf.reduce_sum(mass, axis=1)
    some = tf.reduce_any(scored.keep & mine, axis=1) & tf.reduce_any(scored.keep & ~mine, axis=1)
    return part, some & tf.math.is_finite(part)
