"""All masks together: which candidates count, and which of them hold another positive."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.replicas import place_of_rows
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.data.catalogue import first_of_each
from tfrs_negatives.step.correction import added
from tfrs_negatives.step.records import Batch, Mask, MorePositives, Pool, Scored


def apply_masks(
    scored: Scored,
    masks: Sequence[Mask],
    batch: Batch,
    pool: Pool,
    positive_offset: tf.Tensor | None,
) -> Scored:
    """Marks what every mask keeps.

    Args:
        scored: the candidates of one pool; `keep` is False for empty slots and the row's own.
        masks: what must agree.
        batch: the step.
        pool: where the candidates are from.
        positive_offset: [C] in nats, what is added to the score of another positive; None: nothing.

    Returns:
        The same with `keep`, and with `more_positives` where a mask names positives.
    """
    keep, named = kept_by(masks, scored, batch)
    # Candidates of single rows are named as negatives: one that is a positive is a mistake there.
    if named is not None and not pool.per_row:
        marks = named & _other_items_once(pool, batch.positive_ids)
        more = MorePositives(marks, added(scored.score, positive_offset), scored.score)
        scored = scored._replace(more_positives=more)
    return scored._replace(keep=keep)


def kept_by(
    masks: Sequence[Mask], scored: Scored, batch: Batch
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Asks every mask.

    Returns:
        What all of them keep of `scored.keep`, [B, C] bool; and what those that name positives
        drop, [B, C] bool, None where none does.

    Raises:
        InputError: if a mask answers with anything but booleans.
    """
    keep, named = scored.keep, None
    for mask in masks:
        kept = tf.convert_to_tensor(mask.keep(scored, batch))
        if kept.dtype != tf.bool:
            raise bad_input(f"masks: {type(mask).__name__}.keep", "booleans", kept.dtype.name)
        keep &= kept
        if mask.names_positives:
            named = ~kept if named is None else named | ~kept
    return keep, named


class GivenMask(Mask):
    """The `score_mask` of a caller, for the candidates of this replica that it gave.

    Args:
        mask: [B, n] bool for the first n shared candidates, n <= C; the rest counts.

    Raises:
        InputError: if it is not boolean.
    """

    in_blocks = False

    def __init__(self, mask: tf.Tensor) -> None:
        if mask.dtype != tf.bool:
            raise bad_input("score_mask", "booleans", mask.dtype.name)
        first, _ = place_of_rows(tf.shape(mask)[1])
        self.mask = tf.pad(mask, [[0, 0], [first, 0]], constant_values=True)

    def keep(self, scored: Scored, batch: Batch) -> tf.Tensor:
        """Returns [B, C] bool."""
        if not scored.has_own:  # The rows' own candidates are nothing that the caller gave.
            return tf.ones_like(scored.keep)
        extra = tf.shape(scored.logit)[1] - tf.shape(self.mask)[1]
        return tf.pad(self.mask, [[0, 0], [0, extra]], constant_values=True)


def _other_items_once(pool: Pool, positive_ids: tf.Tensor) -> tf.Tensor:
    """Returns [B, C] bool: the first valid candidate of each item but the row's own positive."""
    ids = tf.where(pool.valid, pool.ids, EMPTY_ID)
    another = tf.not_equal(ids, EMPTY_ID) & tf.not_equal(ids, positive_ids[:, None])
    return first_of_each(ids) & another
