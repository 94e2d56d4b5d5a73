"""All proposals side by side, and the log expected count of the mixture that made them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from tfrs_negatives.step.records import CandidatePool, Candidates, NegativeSource, StepContext
from tfrs_negatives.step.samplers.weighted import Weighted, log_weight_of


class _Proposal(NamedTuple):
    """What one source answered, and which it is."""

    number: int
    source: NegativeSource
    candidates: Candidates


def build_pools(
    sources: Sequence[NegativeSource], context: StepContext, *, corrected: bool
) -> list[CandidatePool]:
    """Asks every source for its columns and joins them.

    Columns that all rows share are corrected with the mixture of the sources that share them, and
    so are the positives. Columns of single rows are chosen, not drawn: each source answers for its
    own.

    Args:
        sources: the sources, whose columns keep this order.
        context: the step so far, B rows.
        corrected: whether the log expected counts are wanted; without, no frequency is needed.

    Returns:
        The pool of the shared columns and that of the rows' own; one of them where only one kind
        was proposed.
    """
    proposals = [
        _Proposal(n, source, source.propose(context._replace(seed=_fold_in(context.seed, n))))
        for n, source in enumerate(sources)
    ]
    shared = [p for p in proposals if p.candidates.ids.shape.rank == 1]
    shared = _compensate(shared, context, corrected=corrected)
    per_row = [p for p in proposals if p.candidates.ids.shape.rank == 2]
    positives = None
    if corrected:
        drawn = [p.source for p in shared]
        positives = mixture_log_expected_count(drawn, context.positive_ids, context)
        # A positive that no source can propose (all are off, or it is outside the catalogue) is
        # left as it is: divided by a count of 0 it would win against anything.
        positives = tf.where(positives > -math.inf, positives, 0.0)
    groups = [group for group in (shared, per_row) if group]
    return [_join(group, context, positives, corrected=corrected) for group in groups]


def _join(
    proposals: Sequence[_Proposal],
    context: StepContext,
    positives: tf.Tensor | None,
    *,
    corrected: bool,
) -> CandidatePool:
    # A source may encode in half precision and another not; the pool has one dtype.
    candidates = [p.candidates for p in proposals]
    dtype, rank = context.query_embeddings.dtype, candidates[0].ids.shape.rank
    vectors = tf.concat([tf.cast(c.embeddings, dtype) for c in candidates], axis=rank - 1)
    ids, filled = (
        tf.concat([getattr(c, field) for c in candidates], axis=-1) for field in ("ids", "filled")
    )
    nobody = [tf.fill(tf.shape(c.ids), -1) for c in candidates]
    own_rows = tf.concat(
        [n if c.own_rows is None else c.own_rows for c, n in zip(candidates, nobody, strict=True)],
        axis=-1,
    )
    widths = [tf.shape(c.ids)[-1:] for c in candidates]
    origin = tf.concat(
        [tf.fill(w, p.number) for w, p in zip(widths, proposals, strict=True)], axis=0
    )
    counts = None
    if corrected and rank == 1:
        counts = mixture_log_expected_count([p.source for p in proposals], ids, context)
    elif corrected:
        # Chosen, not drawn: a weight is no larger count of them, which would take it back.
        sources = [
            p.source.unweighted if isinstance(p.source, Weighted) else p.source for p in proposals
        ]
        own = [
            s.log_expected_count(p.candidates.ids, context)
            for s, p in zip(sources, proposals, strict=True)
        ]
        counts = tf.concat(own, axis=-1)
    weights = _log_weights(proposals, widths, context)
    last = max((n for n, c in enumerate(candidates, 1) if not c.stale), default=0)
    num_fresh = None
    if last < len(candidates):
        num_fresh = tf.reduce_sum(tf.concat([[0], *widths[:last]], axis=0))
    return CandidatePool(
        ids, vectors, filled, own_rows, origin, counts, positives, weights, num_fresh
    )


def _compensate(
    proposals: list[_Proposal], context: StepContext, *, corrected: bool
) -> list[_Proposal]:
    """Scales the gradient of fresh columns by (c_fresh + c_stale) / c_fresh; values stay.

    Of the c columns that hold an item on average only the fresh ones push its embedding, by
    exp(logit) / Z each, where Z is the sum over all. Their mean push is that of the softmax again.
    """
    fresh = [p for p in proposals if not p.candidates.stale]
    missing = [p for p in proposals if p.candidates.compensated]

    def scaled(proposal: _Proposal) -> _Proposal:
        if proposal.candidates.stale or not missing:
            return proposal
        ids = proposal.candidates.ids if corrected else None
        of_fresh, of_missing = (_log_counts(part, ids, context) for part in (fresh, missing))
        # An item that the fresh sources never propose (a positive outside the catalogue of uniform
        # draws) stays as it is.
        factor = tf.where(of_fresh > -math.inf, 1.0 + tf.exp(of_missing - of_fresh), 1.0)
        embeddings = _scale_gradient(proposal.candidates.embeddings, factor[..., None])
        return proposal._replace(candidates=proposal.candidates._replace(embeddings=embeddings))

    return [scaled(p) for p in proposals]


def _scale_gradient(vectors: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    factor = tf.cast(tf.stop_gradient(factor), vectors.dtype)

    @tf.custom_gradient
    def scale(vectors: tf.Tensor) -> tuple[tf.Tensor, Callable[..., tf.Tensor]]:
        return tf.identity(vectors), lambda upstream: upstream * factor

    return scale(vectors)


def _log_counts(
    proposals: Sequence[_Proposal], ids: tf.Tensor | None, context: StepContext
) -> tf.Tensor:
    """Log of how many columns hold each id on average; without ids, of how many there are."""
    if ids is not None:
        return mixture_log_expected_count([p.source for p in proposals], ids, context)
    filled = [tf.reduce_sum(tf.cast(p.candidates.filled, tf.float32)) for p in proposals]
    logs = [
        tf.math.log(n) + log_weight_of(p.source, context)
        for n, p in zip(filled, proposals, strict=True)
    ]
    return tf.reduce_logsumexp(tf.stack(logs))


def _log_weights(
    proposals: Sequence[_Proposal], widths: Sequence[tf.Tensor], context: StepContext
) -> tf.Tensor | None:
    if not any(isinstance(p.source, Weighted) for p in proposals):
        return None
    weights = [log_weight_of(p.source, context) for p in proposals]
    return tf.concat([tf.fill(w, x) for w, x in zip(widths, weights, strict=True)], axis=0)


def mixture_log_expected_count(
    sources: Sequence[NegativeSource], ids: tf.Tensor, context: StepContext
) -> tf.Tensor:
    """How many columns of the whole pool hold each id on average, in nats.

        log c(id) = log sum_s exp(log c_s(id))

    Args:
        sources: the sources of the pool; without any every count is 1.
        ids: [m] int64.
        context: the step so far.

    Returns:
        [m] float32.

    Source: the mixture of Yang et al., WWW 2020, equation 5, as a count instead of a probability;
    one count for all sources is the balance heuristic of multiple importance sampling.
    """
    if not sources:
        return tf.zeros(tf.shape(ids))
    counts = [source.log_expected_count(ids, context) for source in sources]
    return counts[0] if len(counts) == 1 else tf.reduce_logsumexp(tf.stack(counts), axis=0)


def slice_columns(pool: CandidatePool, start: tf.Tensor, width: tf.Tensor) -> CandidatePool:
    """Returns `width` of the shared columns of a pool, from `start` on."""

    def part(column: tf.Tensor) -> tf.Tensor:
        # Begin and size, not begin and end: only so XLA knows the size.
        rest = column.shape.rank - 1
        return tf.slice(column, [start, *[0] * rest], [width, *[-1] * rest])

    whole = {"positive_log_expected_count": None, "num_fresh": None}
    sliced = [None if x is None else part(x) for x in pool._replace(**whole)]
    return CandidatePool(*sliced)._replace(**{name: getattr(pool, name) for name in whole})


def _fold_in(seed: tf.Tensor, number: int) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(seed, number, alg="philox")
