"""Masks from ids and scores. True keeps; nothing is ever added to a score."""

from __future__ import annotations

import math

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.data.id_lists import keys_of_rows
from tfrs_negatives.step.records import Batch, Mask, Scored


@part("mask")
class AccidentalHits(Mask):
    """Drops a candidate that holds the row's own positive item once more, whatever its sampler.

        keep(i, j) = id_j != id(positive of i), or id_j is empty

    Use it where the positive is not corrected (`correct="negatives"` or None). Under `"both"` the
    copies are what gives the positive its share of the denominator: masked, a popular positive
    counts for 1 / c of itself, and with many draws the softmax is over the other items only.

    Args:
        more_positives: name of a batch column with more positives of each row, every one of which
            is tested: [B, P] integers or strings, filled up with -1, "" or `EMPTY_ID`, or a
            `tf.RaggedTensor`. Time grows with P, memory does not.

    Raises:
        InputError: if a batch lacks the column, or it is not [B, P] integers or strings.

    Example:
        >>> AccidentalHits(more_positives="also_bought").get_config()
        {'more_positives': 'also_bought'}

    Source: `remove_accidental_hits` of TensorFlow, for several positives; every in-batch method
        assumes it.
    """

    names_positives = True

    def __init__(self, *, more_positives: str | None = None) -> None:
        self.more_positives = more_positives

    def keep(self, scored: Scored, batch: Batch) -> tf.Tensor:
        """Returns [B, C] bool."""
        others = _holds_another(scored.ids, batch.positive_ids)
        if self.more_positives is None:
            return others
        more = keys_of_rows(batch.features, self.more_positives, batch.positive_ids.shape[0])

        # One [B, C] at a time: all comparisons at once would be [B, C, P].
        def one_more(number: tf.Tensor, others: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return number + 1, others & _holds_another(scored.ids, more[:, number])

        count = tf.shape(more)[1]
        return tf.while_loop(lambda number, _: number < count, one_more, (0, others))[1]


@part("mask")
class ScoreMargin(Mask):
    """Drops a candidate that scores too close to the row's positive, or above it.

        keep(i, j) = score_ij <= score_i+ - absolute
                     and score_ij <= score_i+ - relative |score_i+|

    A candidate that the model itself takes for as good as the positive is a likely false negative.
    A margin below zero lets a candidate score that much above the positive. The scores are those
    before the correction, similarity / temperature plus item bias, so `absolute` is in nats: a
    margin m of the similarity is m / temperature here.

    Args:
        absolute: distance that a negative must keep, in the unit of the scores.
        relative: the same as a share of the positive's size; 0.05 asks for 95% of a positive score.

    Raises:
        InputError: if neither is given, or one is not finite.

    Example:
        >>> score, own = tf.constant([[1.0, 1.9, 2.5]]), tf.constant([2.0])
        >>> scored = Scored(own, score, tf.ones([1, 3], tf.bool), own, score)
        >>> ScoreMargin(relative=0.1).keep(scored, None).numpy()
        array([[ True, False, False]])

    Source: `mine_hard_negatives` of sentence-transformers, arguments `absolute_margin` and
        `relative_margin`. There it chooses hard negatives once, here in a step.
    """

    def __init__(self, absolute: float | None = None, relative: float | None = None) -> None:
        if absolute is None and relative is None:
            raise bad_input("absolute", "a number, or one for `relative`", None)
        for name, margin in (("absolute", absolute), ("relative", relative)):
            if margin is not None and not math.isfinite(margin):
                raise bad_input(name, "a finite number", margin)
        self.absolute, self.relative = absolute, relative

    def keep(self, scored: Scored, batch: Batch) -> tf.Tensor:
        """Returns [B, C] bool, without gradient."""
        # In float32: half precision would round the margin away beside a large score.
        positive = tf.cast(scored.positive_score, tf.float32)
        # Both count, so the larger distance does.
        distances = [] if self.absolute is None else [tf.fill(tf.shape(positive), self.absolute)]
        if self.relative is not None:
            distances.append(self.relative * tf.abs(positive))
        limit = positive - tf.reduce_max(tf.stack(distances), axis=0)
        # Not `<=`: a score that is NaN must reach the loss and be seen there.
        return ~(tf.cast(scored.score, tf.float32) > limit[:, None])


def _holds_another(held: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """Returns [B, C] bool: whether the candidate holds another id than the row's, [B]."""
    # The empty id equals nothing, itself included: a row that has it asks for what no candidate
    # holds. So one pass over [B, C] is enough, and such passes are what a mask costs.
    nowhere = tf.reduce_max(held) + 1
    return tf.not_equal(held, tf.where(tf.equal(ids, EMPTY_ID), nowhere, ids)[:, None])
