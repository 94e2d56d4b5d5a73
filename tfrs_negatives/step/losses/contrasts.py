"""Softmax losses without the positive in the denominator: log-sums of how far negatives are ahead.

They have no lower bound of their own. A row with one candidate has a gradient of the same size
however far the positive is ahead, so they are for a bounded similarity, the cosine.
"""

from __future__ import annotations

from typing import Literal, get_args

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.step.losses.counted import counted
from tfrs_negatives.step.losses.log_sums import masked_log_sum_exp, together
from tfrs_negatives.step.records import Batch, Excess, Loss, Scored

Surrogate = Literal["tanh", "arctan", "relu", "exp"]
# The least value of a surrogate: further behind, a candidate has no gradient.
FLOOR = 1e-8


@part("loss")
class BSL(Loss):
    """Bilateral softmax loss: a temperature for the positives and one for the negatives.

        loss_i = c log sum_{j kept} exp(s_ij) - r log(1 / |P_i| sum_{p in P_i} exp(s_ip / r))

    The scores are divided by the temperature of the negatives, that of the task; r is that of the
    positives in units of it. P_i are the row's own positive and the candidates that hold another
    item which a mask knows to be one, as in `DecoupledSoftmax`. A large r is the mean of their
    scores, a small one the best of them, which lets noisy positives go. With one positive r has no
    effect: there only the temperature of the task counts.

    Args:
        positive_temperature: r.
        negative_weight: c, from 1.0 to 1.32 in the published settings. Above 1, lowering all scores
            lowers the loss: that is for cosines, which are bounded.

    Raises:
        InputError: if a number is not positive.

    Example:
        >>> scored = Scored(tf.ones([1]), tf.zeros([1, 3]), tf.ones([1, 3], tf.bool))
        >>> round(float(BSL()(scored)[0]), 4)     # log 3 - 1
        0.0986

    Relations: with r = c = 1 and one positive this is `PSL("exp")`.

    Source: Wu et al., ICDE 2024; the formula of the paper, divided by the temperature of the
        negatives and without the constant log n, is c = 1. Of the modes of its code, "reweight" is
        c without a mask that names positives, "multi" is r = 1 and c with one. There the other
        positives are those of the same user's rows in the batch, here all of the shared candidates
        that the mask knows.
    """

    def __init__(self, positive_temperature: float = 1.0, negative_weight: float = 1.0) -> None:
        given = {"positive_temperature": positive_temperature, "negative_weight": negative_weight}
        for name, value in given.items():
            if not value > 0:
                raise bad_input(name, "a positive number", value)
        self.positive_temperature = float(positive_temperature)
        self.negative_weight = float(negative_weight)

    def __call__(self, scored: Scored, batch: Batch | None = None) -> tf.Tensor:
        """Returns [B] float32; 0 with gradient 0 for a row without negatives."""
        positive = scored.positive_logit
        excess = masked_log_sum_exp(scored.logit, scored.keep, positive=positive)
        loss = self.negative_weight * excess.value - self._lead_of_positives(scored)
        if self.negative_weight != 1:
            loss += (self.negative_weight - 1.0) * positive
        return tf.where(excess.some, loss, 0.0)

    def _lead_of_positives(self, scored: Scored) -> tf.Tensor:
        """Returns [B]: by how much the positives together exceed the row's own."""
        more = scored.more_positives
        if more is None:
            return tf.zeros_like(scored.positive_logit)
        unit = self.positive_temperature
        others = masked_log_sum_exp(
            more.logit / unit, more.marks, positive=scored.positive_logit / unit
        )
        number = 1.0 + tf.reduce_sum(tf.cast(more.marks, tf.float32), axis=1)
        itself = Excess(tf.ones_like(others.some), tf.zeros_like(others.value))
        return unit * (together(itself, others).value - tf.math.log(number))


@part("loss")
class PSL(Loss):
    """Pairwise softmax loss: a tighter function than exp in the place of a 0 or 1 for each pair.

        loss_i = log sum_{j kept} f(d_ij)^(1 / t) / c_j,  d_ij = t (s_ij - s_i+)

    with f(d) = 1 + tanh d, 1 + arctan d, max(0, 1 + d), or exp d. The first three are between exp d
    and the 1 of a pair in the wrong order, so that one pair that is far wrong, a false negative
    perhaps, takes less of the gradient. d is made of the scores before the correction, and the
    expected counts c_j, where they are known, are weights.

    Args:
        surrogate: f. One below 1e-8 counts as that: "relu" has no gradient beyond d = -1, nor has
            "arctan" beyond d = -1.56.
        temperature: t, in units of the task's: with the cosine and a task of temperature 2 t, as
            published, d is half the distance of the cosines, from -1 to 1.

    Raises:
        InputError: if the surrogate is unknown or the temperature not positive.

    Example:
        >>> scored = Scored(tf.ones([1]), tf.constant([[1.0, 1.0]]), tf.ones([1, 2], tf.bool))
        >>> round(float(PSL("tanh", temperature=0.1)(scored)[0]), 4)     # log 2
        0.6931

    Relations: `PSL("exp")` is the softmax without the positive in the denominator, whatever t.

    Source: Yang et al., NeurIPS 2024: t of 0.005 to 0.25, 1,000 uniform candidates.
    """

    def __init__(self, surrogate: Surrogate = "tanh", temperature: float = 0.05) -> None:
        if surrogate not in get_args(Surrogate):
            raise bad_input("surrogate", f"one of {list(get_args(Surrogate))}", repr(surrogate))
        if not temperature > 0:
            raise bad_input("temperature", "a positive number", temperature)
        self.surrogate, self.temperature = surrogate, float(temperature)
        self.folds = surrogate == "exp"

    def __call__(self, scored: Scored, batch: Batch | None = None) -> tf.Tensor:
        """Returns [B] float32; 0 with gradient 0 for a row without negatives."""
        positive = scored.positive_logit
        if self.surrogate == "exp":
            excess = masked_log_sum_exp(scored.logit, scored.keep, positive=positive)
            return self.of_excess(excess, None)
        candidates = counted(scored)
        # The difference that the correction of the positive makes to the row.
        shift = tf.stop_gradient(positive - candidates.positive)
        ahead = tf.where(scored.keep, candidates.score - candidates.positive[:, None], 0.0)
        terms = self._log_surrogate(self.temperature * ahead) / self.temperature
        excess = masked_log_sum_exp(terms + candidates.log_weight, scored.keep, positive=shift)
        return self.of_excess(excess, None)

    def of_excess(self, shared: Excess, own: Excess | None) -> tf.Tensor:
        """The same from log-sums, for "exp"."""
        excess = shared if own is None else together(shared, own)
        return tf.where(excess.some, excess.value, 0.0)

    def _log_surrogate(self, distance: tf.Tensor) -> tf.Tensor:
        if self.surrogate == "tanh":
            # 1 + tanh d = 2 / (1 + exp(-2 d)), which does not round to 0.
            return tf.math.log(2.0) - tf.math.softplus(-2.0 * distance)
        inner = tf.math.atan(distance) if self.surrogate == "arctan" else distance
        return tf.math.log(tf.maximum(1.0 + inner, FLOOR))
