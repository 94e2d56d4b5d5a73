"""The metrics that TFRS knows, on the logits and the embeddings of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfrs_negatives.step.losses import one_hot_labels
from tfrs_negatives.step.records import CandidatePool, Logits, StepContext


def labels_and_scores(
    logits: Logits, pools: Sequence[CandidatePool], *, batch_first: bool, mined: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """Lays logits out as TFRS does: [B, C] where the batch stands first, else [B, 1 + C].

    Args:
        logits: after the miners.
        pools: the columns of the step.
        batch_first: whether the first source is the batch.
        mined: whether a miner has chosen.

    Returns:
        One-hot labels and logits.
    """
    if not batch_first or len(pools) > 1:
        return one_hot_labels(logits, own_rows=None)
    if not mined:
        return one_hot_labels(logits, own_rows=pools[0].own_rows)
    # A miner that kept all C columns has left the row's own one, which is masked, at the end.
    labels, scores = one_hot_labels(logits, own_rows=None)
    width = tf.shape(pools[0].ids)[0]
    return labels[:, :width], scores[:, :width]


def update_factorized_metrics(
    metrics: Sequence[Any],
    context: StepContext,
    ids: tf.Tensor | None,
    sample_weight: tf.Tensor | None,
) -> None:
    """Updates metrics over the corpus with the positives only: they have no place for more."""
    rows = tf.shape(context.query_embeddings)[0]
    for metric in metrics:
        metric.update_state(
            context.query_embeddings,
            context.positive_embeddings,
            true_candidate_ids=None if ids is None else ids[:rows],
            sample_weight=sample_weight,
        )
