"""All candidates side by side, and the log expected count of the mixture that made them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.step.records import Batch, Candidates, Pool, Sampler


class _Answer(NamedTuple):
    """What one sampler answered, and which it is."""

    number: int
    sampler: Sampler
    candidates: Candidates

    @property
    def width(self) -> tf.Tensor:
        """How many candidates it gave to a row, [1] int32."""
        return tf.shape(self.candidates.ids)[-1:]

    def filled(self, field: tf.Tensor | None, otherwise: float) -> tf.Tensor:
        """Returns a number of each candidate [n], given for all of them or for none."""
        return tf.fill(self.width, otherwise if field is None else field)


def sample_pools(samplers: Sequence[Sampler], batch: Batch, *, counted: bool) -> list[Pool]:
    """Asks every sampler for its candidates and joins them.

    Candidates that all rows share are corrected with the mixture of the samplers that share them,
    and so are the positives. Candidates of single rows are chosen, not drawn: they have the count
    that their sampler gave them, of one if it gave none.

    Args:
        samplers: whose candidates keep this order.
        batch: the step, B rows.
        counted: whether the log counts are wanted; without, no frequency is needed.

    Returns:
        The pool of the shared candidates and that of the rows' own; one of them where only one kind
        was proposed.
    """
    answers = [_answer(n, sampler, batch) for n, sampler in enumerate(samplers)]
    shared = [a for a in answers if not a.candidates.per_row]
    shared = _compensate(shared, batch, counted=counted)
    per_row = [a for a in answers if a.candidates.per_row]
    positives = None
    if counted:
        positives = mixture_log_count([a.sampler for a in shared], batch.positive_ids, batch)
        # A positive that no sampler can propose (all are off, or it is outside the catalogue) is
        # left as it is: divided by a count of 0 it would win against anything.
        positives = tf.where(positives > -math.inf, positives, 0.0)
    pools = []
    for group in (shared, per_row):
        if group:
            pool = _join(group, batch)
            counts = _log_count(group, pool, batch) if counted else None
            pools.append(pool._replace(log_count=counts, positive_log_count=positives))
    return pools


def _answer(number: int, sampler: Sampler, batch: Batch) -> _Answer:
    candidates = sampler.sample(batch.for_part(number))
    label = f"negatives[{number}] ({sampler.name})"
    for name, dtype in (("ids", tf.int64), ("valid", tf.bool)):
        received = getattr(candidates, name).dtype
        if received != dtype:
            raise bad_input(f"{label}: {name}", dtype.name, received.name)
    given = {"valid": candidates.valid.shape, "vectors": candidates.vectors.shape[:-1]}
    for name, shape in given.items():
        if not shape.is_compatible_with(candidates.ids.shape):
            raise bad_input(
                f"{label}: {name}", f"one for each of ids {candidates.ids.shape}", shape
            )
    return _Answer(number, sampler, candidates)


def _log_count(answers: Sequence[_Answer], pool: Pool, batch: Batch) -> tf.Tensor:
    """Of candidates that were drawn, that of the mixture; of chosen ones, what they came with."""
    if not pool.per_row:
        return mixture_log_count([a.sampler for a in answers], pool.ids, batch)
    all_of = [a.candidates for a in answers]
    given = [tf.zeros(tf.shape(c.ids)) if c.log_count is None else c.log_count for c in all_of]
    return tf.concat(given, axis=-1)


def _join(answers: Sequence[_Answer], batch: Batch) -> Pool:
    # A sampler may encode in half precision and another not; the pool has one dtype.
    all_of = [a.candidates for a in answers]
    dtype, per_row = batch.queries.dtype, all_of[0].per_row
    nobody = [tf.fill(tf.shape(c.ids), -1) if c.own_rows is None else c.own_rows for c in all_of]
    fresh = max((n for n, c in enumerate(all_of, 1) if c.has_gradient), default=0)
    widths = tf.concat([a.width for a in answers], axis=0)
    weighted = any(c.log_weight is not None for c in all_of)
    weights = [a.filled(a.candidates.log_weight, 0.0) for a in answers]
    return Pool(
        ids=tf.concat([c.ids for c in all_of], axis=-1),
        vectors=tf.concat([tf.cast(c.vectors, dtype) for c in all_of], axis=int(per_row)),
        valid=tf.concat([c.valid for c in all_of], axis=-1),
        own_rows=tf.concat(nobody, axis=-1),
        sampler=tf.concat([tf.fill(a.width, a.number) for a in answers], axis=0),
        log_weight=tf.concat(weights, axis=0) if weighted else None,
        num_fresh=tf.reduce_sum(widths[:fresh]) if fresh < len(all_of) else None,
        per_row=per_row,
        has_own=any(c.own_rows is not None for c in all_of),
    )


def _compensate(answers: list[_Answer], batch: Batch, *, counted: bool) -> list[_Answer]:
    """Scales the gradient of fresh candidates by (c_fresh + c_past) / c_fresh; values stay.

    Of the c candidates that hold an item on average only the fresh ones push its vector, by
    exp(logit) / Z each, where Z is the sum over all. Their mean push is that of the softmax again.
    """
    fresh = [a for a in answers if a.candidates.has_gradient]
    missing = [a for a in answers if a.candidates.compensated]

    def scaled(answer: _Answer) -> _Answer:
        candidates = answer.candidates
        if not (candidates.has_gradient and missing):
            return answer
        ids = candidates.ids if counted else None
        of_fresh, of_missing = (_log_counts(part, ids, batch) for part in (fresh, missing))
        # An item that the fresh samplers never propose (a positive outside the catalogue of uniform
        # draws) stays as it is.
        factor = tf.where(of_fresh > -math.inf, 1.0 + tf.exp(of_missing - of_fresh), 1.0)
        vectors = _scale_gradient(candidates.vectors, factor[..., None])
        return answer._replace(candidates=candidates._replace(vectors=vectors))

    return [scaled(a) for a in answers]


def _scale_gradient(vectors: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    factor = tf.cast(tf.stop_gradient(factor), vectors.dtype)

    @tf.custom_gradient
    def scale(vectors: tf.Tensor) -> tuple[tf.Tensor, Callable[..., tf.Tensor]]:
        return tf.identity(vectors), lambda upstream: upstream * factor

    return scale(vectors)


def _log_counts(answers: Sequence[_Answer], ids: tf.Tensor | None, batch: Batch) -> tf.Tensor:
    """Log of how many candidates hold each id on average; without ids, of how many there are."""
    if ids is not None:
        return mixture_log_count([a.sampler for a in answers], ids, batch)
    numbers = [tf.reduce_sum(tf.cast(a.candidates.valid, tf.float32)) for a in answers]
    weights = [a.candidates.log_weight for a in answers]
    logs = [
        tf.math.log(n) + (0.0 if weight is None else weight)
        for n, weight in zip(numbers, weights, strict=True)
    ]
    return tf.reduce_logsumexp(tf.stack(logs))


def mixture_log_count(samplers: Sequence[Sampler], ids: tf.Tensor, batch: Batch) -> tf.Tensor:
    """How many candidates of the whole pool hold each id on average, in nats.

        log c(id) = log sum_s exp(log c_s(id))

    Args:
        samplers: those of the pool; without any every count is 1.
        ids: [m] int64.
        batch: the step.

    Returns:
        [m] float32.

    Source: the mixture of Yang et al., WWW 2020, equation 5, as a count instead of a probability;
    one count for all samplers is the balance heuristic of multiple importance sampling.
    """
    if not samplers:
        return tf.zeros(tf.shape(ids))
    counts = [sampler.log_count(ids, batch) for sampler in samplers]
    return counts[0] if len(counts) == 1 else tf.reduce_logsumexp(tf.stack(counts), axis=0)


def slice_pool(pool: Pool, start: tf.Tensor, width: tf.Tensor) -> Pool:
    """Returns `width` of the shared candidates of a pool, from `start` on."""

    def part(field: tf.Tensor) -> tf.Tensor:
        # Begin and size, not begin and end: only so XLA knows the size.
        rest = field.shape.rank - 1
        return tf.slice(field, [start, *[0] * rest], [width, *[-1] * rest])

    names = ("ids", "vectors", "valid", "own_rows", "sampler", "log_count", "log_weight")
    fields = {name: getattr(pool, name) for name in names}
    sliced: dict[str, Any] = {n: None if x is None else part(x) for n, x in fields.items()}
    return pool._replace(**sliced)
