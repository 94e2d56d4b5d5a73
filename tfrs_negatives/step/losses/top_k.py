"""Losses that ask for a place among the best k of a row."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.step.losses.counted import LOWEST, Counted, counted
from tfrs_negatives.step.records import Batch, Loss, Scored

# Of an interval of 1,000 they leave less than float32 resolves there.
HALVINGS = 32


@part("loss")
class SoftTopK(Loss):
    """Minus the log of how much the positive is among the best k of its row.

        loss_i = -log sigmoid(slope (s_i+ - t_i))
        t_i:     sigmoid(slope (s_i+ - t_i)) + sum_{j kept} 1 / c_j sigmoid(slope (s_ij - t_i)) = k

    The threshold t moves with the scores: its gradient is that of the equation which defines it. A
    positive that is safely among the k has nothing left to learn, wherever among them. A large
    slope counts places, a small one spreads the gradient. The scores are divided by the temperature
    already, so at 0.05 a slope of 2 is one of 40 on the cosine.

    The scores are those before the correction. Where expected counts c_j are known, k is a number
    of items of the catalogue; where they are not, and for candidates of single rows, a number of
    candidates. In a row where the items that its candidates and the positive stand for are no more
    than k there is no threshold: its loss is 0. Mask the copies of the positive.

    Args:
        k: the length of the list.
        slope: of the sigmoid, in units of 1 / score.

    Raises:
        InputError: if k is below 1 or the slope not positive.

    Example:
        >>> scored = Scored(tf.zeros([1]), tf.zeros([1, 3]), tf.ones([1, 3], tf.bool))
        >>> round(float(SoftTopK(k=1)(scored)[0]), 4)     # log 4: one place for four
        1.3863

    Source: Gupta et al., ICLR 2024 (DEXML: k = 5, slope 2, temperature 0.05). There up to k
        positives of a query share a row; here a row has one, and the others that a mask knows are
        left out.
    """

    def __init__(self, k: int = 5, slope: float = 2.0) -> None:
        if k < 1:
            raise bad_input("k", "at least 1", k)
        if not slope > 0:
            raise bad_input("slope", "a positive number", slope)
        self.k, self.slope = k, float(slope)

    def __call__(self, scored: Scored, batch: Batch | None = None) -> tf.Tensor:
        """Returns [B] float32; 0 with gradient 0 for a row without negatives, or without t."""
        candidates = counted(scored)
        ahead = candidates.score - candidates.positive[:, None]
        places = self.slope * tf.where(scored.keep, ahead, 0.0)
        above, defined = soft_threshold(tf.stop_gradient(places), candidates.weights, self.k)
        shares = _shares_of_slope(places - above[:, None], -above, candidates)
        # The value of the threshold, with the gradient that the equation gives it.
        moved = tf.reduce_sum(shares * (places - tf.stop_gradient(places)), axis=1)
        return tf.where(defined & scored.some, tf.math.softplus(above + moved), 0.0)


def soft_threshold(places: tf.Tensor, weights: tf.Tensor, k: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds the threshold that k items are above, an item at 0 and others, softly counted.

        sigmoid(-t) + sum_j weight_j sigmoid(place_j - t) = k

    Args:
        places: [B, C].
        weights: [B, C], 0 for one that does not count.
        k: how many.

    Returns:
        t, [B] float32, and [B] bool, whether there is one: k is below the sum of all weights.
    """
    total = 1.0 + tf.reduce_sum(weights, axis=1)
    # Not `>`: a score that is NaN must reach the loss and be seen there.
    defined = ~(total <= k)

    def surplus(threshold: tf.Tensor) -> tf.Tensor:
        counted_above = tf.reduce_sum(weights * tf.sigmoid(places - threshold[:, None]), axis=1)
        return counted_above + tf.sigmoid(-threshold) - k

    inside = tf.where(weights > 0, places, 0.0)
    # With all at one place each would have the share k / total.
    share = tf.minimum(tf.where(defined, k / total, 0.5), 1.0 - 1e-7)
    shift = tf.math.log(1.0 - share) - tf.math.log(share)
    low = tf.minimum(tf.reduce_min(inside, axis=1), 0.0) + shift
    high = tf.maximum(tf.reduce_max(inside, axis=1), 0.0) + shift
    return halved(surplus, low, high), defined


def halved(surplus: Callable[[tf.Tensor], tf.Tensor], low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """Finds where a falling function is 0, by halving, without gradient.

    Args:
        surplus: [B] -> [B].
        low: [B], where it is at least 0; else the answer is this.
        high: [B], where it is at most 0; else the answer is this.

    Returns:
        [B] float32. Where the function is 0 along an interval, the first such place that is met.

    Example:
        >>> root = halved(lambda x: 2.0 - x, tf.constant([-1.0]), tf.constant([4.0]))
        >>> round(float(root[0]), 5)
        2.0
    """

    def halve(number: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, ...]:
        middle = 0.5 * low + 0.5 * high
        value = surplus(middle)
        return number + 1, tf.where(value >= 0, middle, low), tf.where(value <= 0, middle, high)

    inside = (0, tf.stop_gradient(low), tf.stop_gradient(high))
    _, low, high = tf.while_loop(
        lambda number, *_: number < HALVINGS, halve, inside, maximum_iterations=HALVINGS
    )
    return tf.stop_gradient(0.5 * low + 0.5 * high)


def _shares_of_slope(places: tf.Tensor, own: tf.Tensor, candidates: Counted) -> tf.Tensor:
    """Returns [B, C]: how much of the threshold's movement is each candidate's, no gradient.

    Args:
        places: [B, C] above the threshold.
        own: [B], the same of the positive, which has the rest.
        candidates: which count, and their weights.
    """
    slopes = tf.where(candidates.keep, candidates.log_weight + _log_slope(places), LOWEST)
    # A softmax of logarithms: far from the threshold all slopes would be 0.
    shares = tf.nn.softmax(tf.concat([_log_slope(own)[:, None], slopes], axis=1))
    return tf.stop_gradient(shares[:, 1:])


def _log_slope(x: tf.Tensor) -> tf.Tensor:
    """Returns the log of the slope of a sigmoid, log(sigmoid(x) sigmoid(-x))."""
    return -tf.math.softplus(x) - tf.math.softplus(-x)
