"""Losses that judge each candidate on its own."""

from __future__ import annotations

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.step.losses.counted import counted
from tfrs_negatives.step.losses.pairs import mean_over_kept
from tfrs_negatives.step.records import Batch, Loss, Scored


@part("loss")
class PointwiseBCE(Loss):
    """Binary cross-entropy of each candidate on its own: the positive is 1, negatives are 0.

        loss_i = log(1 + exp(-s_i+)) + n mean_{j kept} log(1 + exp(s_ij))

    which is the mean over all ways to draw n of the kept candidates. The logits are those of a
    candidate being a positive in a sample with n negatives for each, not in the world.

    Args:
        negatives_per_positive: n, how much the negatives weigh.

    Raises:
        InputError: if n is not positive.

    Example:
        >>> scored = Scored(tf.zeros([1]), tf.zeros([1, 5]), tf.ones([1, 5], tf.bool))
        >>> round(float(PointwiseBCE(2)(scored)[0]), 4)     # 3 log 2
        2.0794

    Source: He et al., WWW 2017 (NCF), equation 7, which draws the n negatives.
    """

    def __init__(self, negatives_per_positive: float = 3) -> None:
        if not negatives_per_positive > 0:
            raise bad_input("negatives_per_positive", "a positive number", negatives_per_positive)
        self.negatives_per_positive = negatives_per_positive

    def __call__(self, scored: Scored, batch: Batch | None = None) -> tf.Tensor:
        """Returns [B] float32; 0 with gradient 0 for a row without negatives."""
        negatives = tf.where(scored.keep, scored.logit, 0.0)
        mean = mean_over_kept(tf.math.softplus(negatives), scored.keep)
        some = tf.reduce_any(scored.keep, axis=1)
        own = tf.where(some, tf.math.softplus(-scored.positive_logit), 0.0)
        return own + self.negatives_per_positive * mean


@part("loss")
class GBCE(Loss):
    """Generalised binary cross-entropy, which takes back the overconfidence of sampled negatives.

        loss_i = (beta log(1 + exp(-s_i+)) + n mean_{j kept} log(1 + exp(s_ij))) / (n + 1)
        beta   = 1 - t (1 - a)

    with n the candidates that count, a the share of the catalogue that is drawn and t how much of
    its effect is taken back: at the optimum an item of probability P has the sigmoid

        P beta / (P beta + (1 - P) a)

    which is P for t = 1, and tends to 1 with few negatives for t = 0. That holds for uniform draws.
    The scores are those before the correction. Expected counts, where they are known, weigh the
    mean, by 1 / count: it is then that of uniform draws. Mask the copies of the positive.

    Args:
        sampling_rate: a, n / (N - 1), in (0, 1].
        calibration: t, in [0, 1].

    Raises:
        InputError: if a number is outside its range.

    Example:
        >>> scored = Scored(tf.zeros([1]), tf.zeros([1, 3]), tf.ones([1, 3], tf.bool))
        >>> loss = GBCE(sampling_rate=0.5, calibration=1.0)
        >>> round(float(loss(scored)[0]), 4)     # (0.5 + 3) / 4 log 2
        0.6065

    Relations: t = 0 and n = 1 is half of `PointwiseBCE(1)`.

    Source: Petrov and Macdonald, RecSys 2023 (gSASRec: n = 256, t = 0.75).
    """

    def __init__(self, sampling_rate: float, calibration: float = 0.75) -> None:
        if not 0 < sampling_rate <= 1:
            raise bad_input("sampling_rate", "a number in (0, 1]", sampling_rate)
        if not 0 <= calibration <= 1:
            raise bad_input("calibration", "a number in [0, 1]", calibration)
        self.sampling_rate, self.calibration = float(sampling_rate), float(calibration)

    def __call__(self, scored: Scored, batch: Batch | None = None) -> tf.Tensor:
        """Returns [B] float32; 0 with gradient 0 for a row without negatives."""
        candidates, own = counted(scored), 1.0 - self.calibration * (1.0 - self.sampling_rate)
        number = tf.reduce_sum(tf.cast(scored.keep, tf.float32), axis=1)
        total = own * tf.math.softplus(-candidates.positive)
        total += number * candidates.mean(tf.math.softplus(candidates.score))
        return tf.where(scored.some, total / (number + 1.0), 0.0)


@part("loss")
class CCL(Loss):
    """Cosine contrastive loss: pull the positive to 1, push only what is above a margin.

        loss_i = max(0, 1 - s_i+) + weight mean_{j kept} max(0, s_ij - margin)

    For similarity "cosine" and temperature 1, so that the scores are cosines. A candidate below the
    margin has gradient 0, so it wants many candidates, some hundreds or thousands of uniform ones.
    The scores are those before the correction. Expected counts, where they are known, weigh the
    mean, by 1 / count.

    Args:
        margin: of the cosine, in [-1, 1).
        weight: of all negatives together.

    Raises:
        InputError: if a number is outside its range.

    Example:
        >>> scored = Scored(tf.constant([0.8]), tf.constant([[0.7, 0.1]]), tf.ones([1, 2], tf.bool))
        >>> round(float(CCL(margin=0.5, weight=10.0)(scored)[0]), 4)     # 0.2 + 10 (0.2 + 0) / 2
        1.2

    Source: Mao et al., CIKM 2021 (SimpleX), equation 2; margins of 0.4 to 0.9 and weights of 10 to
        1,000 there.
    """

    def __init__(self, margin: float, weight: float) -> None:
        if not -1 <= margin < 1:
            raise bad_input("margin", "a cosine in [-1, 1)", margin)
        if not weight > 0:
            raise bad_input("weight", "a positive number", weight)
        self.margin, self.weight = float(margin), float(weight)

    def __call__(self, scored: Scored, batch: Batch | None = None) -> tf.Tensor:
        """Returns [B] float32; 0 with gradient 0 for a row without negatives."""
        candidates = counted(scored)
        own = tf.where(scored.some, tf.nn.relu(1.0 - candidates.positive), 0.0)
        return own + self.weight * candidates.mean(tf.nn.relu(candidates.score - self.margin))


@part("loss")
class NonSampling(Loss):
    """Squared error over the whole catalogue: 1 for the positive, 0 for every other item.

        loss_i = w sum_{j other items} s_ij^2 + s_i+^2 - 2 s_i+

    which is (s_i+ - 1)^2 + w sum s_ij^2 but for a constant, and the published
    w sum_{j all items} s_ij^2 + (1 - w) s_i+^2 - 2 s_i+. Over all rows the first sum of that is
    <U^T U, V^T V> of the queries U and the items V. Here it is a sum over the pool: exact for a
    pool that holds each item once, and unbiased for any other whose expected counts are known,
    since a candidate weighs 1 / count. Without counts the sum is that of the pool.

    For similarity "dot" or "cosine" and temperature 1: the scores, those before the correction, are
    wanted at 0 and 1. Copies of the positive are left out, with and without `AccidentalHits`.

    Args:
        weight: w, what an item that was not chosen counts beside one that was. The sum is paid in
            each row, so by a query once for each of its events; in ENMF once per query.

    Raises:
        InputError: if the weight is not positive.

    Example:
        >>> scored = Scored(tf.ones([1]), tf.constant([[2.0, 1.0]]), tf.ones([1, 2], tf.bool))
        >>> round(float(NonSampling(0.1)(scored)[0]), 4)     # 0.1 (4 + 1) + 1 - 2
        -0.5

    Source: Chen et al., TOIS 2020 (ENMF: w of 0.001 to 5, dropout and Adagrad); the baseline "MSE +
        gramian" of Yi et al., RecSys 2019. A mask of known positives takes them out of the sum,
        which neither has.
    """

    def __init__(self, weight: float) -> None:
        if not weight > 0:
            raise bad_input("weight", "a positive number", weight)
        self.weight = float(weight)

    def __call__(self, scored: Scored, batch: Batch | None = None) -> tf.Tensor:
        """Returns [B] float32; 0 with gradient 0 for a row without negatives."""
        candidates = counted(scored)
        weights = candidates.weights
        if batch is not None and scored.ids is not None:
            weights = tf.where(_is_copy(scored.ids, batch.positive_ids), 0.0, weights)
        total = self.weight * tf.reduce_sum(weights * tf.square(candidates.score), axis=1)
        positive = candidates.positive
        return tf.where(scored.some, total + tf.square(positive) - 2.0 * positive, 0.0)


def _is_copy(ids: tf.Tensor, positive_ids: tf.Tensor) -> tf.Tensor:
    """Returns [B, C] bool: whether a candidate holds the positive of the row once more."""
    known = tf.not_equal(positive_ids, EMPTY_ID)
    return tf.equal(ids, positive_ids[:, None]) & known[:, None]
