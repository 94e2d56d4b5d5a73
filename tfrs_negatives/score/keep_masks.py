"""Which columns count as negatives of which row. True keeps; nothing is ever added to a score."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfrs_negatives.types import EMPTY_ID, CandidatePool, Logits, Mask, Part, StepContext, bad_input


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class AccidentalHits(Part):
    """Drops a column that holds the row's own positive item once more, whatever its source.

        keep(i, j) = id_j != id(positive of i), or id_j is empty

    Use it where the positive is not corrected (`correct="negatives"` or None). Under `"both"` the
    copies are what gives the positive its share of the denominator: masked, a popular positive
    counts for 1 / c of itself, and with many draws the softmax is over the other items only.

    Example:
        >>> AccidentalHits().get_config()
        {}

    Source: every in-batch method assumes it; ALG 14.3, rule 1.
    """

    def keep(self, scores: Logits, pool: CandidatePool, context: StepContext) -> tf.Tensor:
        """Returns [B, C] bool."""
        same = pool.ids == context.positive_ids[:, None]
        return ~same | (pool.ids == EMPTY_ID)


def apply_masks(
    scores: Logits,
    pool: CandidatePool,
    context: StepContext,
    masks: Sequence[Mask],
    *,
    score_mask: tf.Tensor | None = None,
) -> Logits:
    """Marks the columns that count: filled, not the row's own positive, and kept by every mask.

    Args:
        scores: [B] and [B, C].
        pool: C columns.
        context: the step so far.
        masks: what else must agree.
        score_mask: [B, n] bool of the caller for the first n columns, n <= C; the rest counts.

    Returns:
        The same scores with `keep` set.

    Raises:
        InputError: if `score_mask` is not boolean.
    """
    rows = tf.range(tf.shape(scores.positive)[0])
    keep = pool.filled & (pool.own_rows != rows[:, None])
    for mask in masks:
        keep &= mask.keep(scores, pool, context)
    if score_mask is not None:
        if score_mask.dtype != tf.bool:
            raise bad_input("score_mask", "booleans", score_mask.dtype.name)
        extra = tf.shape(keep)[1] - tf.shape(score_mask)[1]
        keep &= tf.pad(score_mask, [[0, 0], [0, extra]], constant_values=True)
    return scores._replace(keep=keep)
