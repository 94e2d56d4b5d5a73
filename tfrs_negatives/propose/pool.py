"""All proposals side by side, and the log expected count of the mixture that made them."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfrs_negatives.types import CandidatePool, NegativeSource, StepContext


def build_pool(
    sources: Sequence[NegativeSource], context: StepContext, *, corrected: bool
) -> CandidatePool:
    """Asks every source for its columns and joins them.

    Args:
        sources: the sources, whose columns keep this order.
        context: the step so far, B rows.
        corrected: whether the log expected counts are wanted; without, no frequency is needed.

    Returns:
        The pool of all C columns.
    """
    proposals = [
        source.propose(context._replace(seed=_fold_in(context.seed, number)))
        for number, source in enumerate(sources)
    ]
    # A source may encode in half precision and another not; the pool has one dtype.
    dtype = context.query_embeddings.dtype
    embeddings = [tf.cast(p.embeddings, dtype) for p in proposals]
    ids, filled, own_rows = (
        tf.concat([getattr(p, field) for p in proposals], axis=0)
        for field in ("ids", "filled", "own_rows")
    )
    origin = tf.concat([tf.zeros_like(p.own_rows) + n for n, p in enumerate(proposals)], axis=0)
    columns = positives = None
    if corrected:
        positive_ids = context.item_ids[: tf.shape(context.query_embeddings)[0]]
        columns = mixture_log_expected_count(sources, ids, context)
        positives = mixture_log_expected_count(sources, positive_ids, context)
    vectors = tf.concat(embeddings, axis=0)
    return CandidatePool(ids, vectors, filled, own_rows, origin, columns, positives)


def mixture_log_expected_count(
    sources: Sequence[NegativeSource], ids: tf.Tensor, context: StepContext
) -> tf.Tensor:
    """How many columns of the whole pool hold each id on average, in nats.

        log c(id) = log sum_s exp(log c_s(id))

    Args:
        sources: the sources of the pool.
        ids: [m] int64.
        context: the step so far.

    Returns:
        [m] float32.

    Source: the mixture of Yang et al., WWW 2020, equation 5, as a count instead of a probability;
    one count for all sources is the balance heuristic of multiple importance sampling.
    """
    counts = [source.log_expected_count(ids, context) for source in sources]
    return counts[0] if len(counts) == 1 else tf.reduce_logsumexp(tf.stack(counts), axis=0)


def _fold_in(seed: tf.Tensor, number: int) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(seed, number, alg="philox")
