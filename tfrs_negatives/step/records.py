"""The records that pass between the stages of a training step, and what each stage promises.

Letters used for shapes everywhere in this package:

    B  queries of the batch          C  candidates of the pool
    D  width of a vector             N  items of the catalogue
    H  query vectors per query       E  rows (events) of a log
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import Part
from tfrs_negatives.core.types import EMPTY_ID, Features


class Queries(NamedTuple):
    """The Q queries of a batch in which a query has a row for each of its positives.

    Attributes:
        vectors: [Q, D] or [Q, H, D] float32.
        features: the raw batch, [Q, ...].
        of_rows: [B] int32, the query of each row.
    """

    vectors: tf.Tensor
    features: Features
    of_rows: tf.Tensor


def _no_task(_candidates: Candidates) -> tuple[tf.Tensor, tf.Tensor]:
    raise bad_input("batch.score", "the batch of a task, because a part asks for scores", None)


class Batch(NamedTuple):
    """What a training step knows before any negative is proposed.

    Under a distribution strategy the queries are those of this replica and the items those of all:
    every replica has the same candidates.

    Attributes:
        queries: [B, D] float32, or [B, H, D] for queries of several vectors; that of each row.
        positives: [B, D] float32, the positive of each query.
        positive_ids: [B] int64, `EMPTY_ID` where unknown.
        items: [n, D] float32, the positives of all queries of all replicas, and more items of the
            same stream where the caller has them.
        item_ids: [n] int64.
        own_rows: [n] int32, the row of this replica whose positive each item is, -1 for none;
            where `grouped`, the query. It is no negative there.
        expected_items: scalar float32, how many items a batch like this has on average: n, or what
            the frequency knows of it where `grouped`.
        num_queries: scalar int32, the rows of all replicas.
        sample_weight: [B] the weight of each row, or None.
        features: the raw batch, for parts that read a column of it.
        step: scalar int64, the number of training steps so far, this one included.
        seed: [2] int32, differs by task seed, step and part, not by replica.
        log_probability: ids [m] -> natural log of the probability that one draw of the positive
            stream yields this id, [m] float32. Raises where the task has no estimator.
        encode_items: item features -> vectors [m, D]. Raises where the task was given none.
        encode_probes: the same as in inference, for measurements; no gradient is taken.
        grouped: the queries, where one may have several rows; None where each has one.
        score: candidates -> scores as those of the pool are made, of the positives [B] and of the
            candidates [B, n]. Raises outside of a task.
        number: of the part that was given this, see `for_part`; a sampler's is that in `Scored`.
    """

    queries: tf.Tensor
    positives: tf.Tensor
    positive_ids: tf.Tensor
    items: tf.Tensor
    item_ids: tf.Tensor
    own_rows: tf.Tensor
    expected_items: tf.Tensor
    num_queries: tf.Tensor
    sample_weight: tf.Tensor | None
    features: Features
    step: tf.Tensor
    seed: tf.Tensor
    log_probability: Callable[[tf.Tensor], tf.Tensor]
    encode_items: Callable[[Features], tf.Tensor]
    encode_probes: Callable[[Features], tf.Tensor]
    grouped: Queries | None = None

    @property
    def owners(self) -> tf.Tensor:
        """What `own_rows` calls each row, [B] int32: its number, or that of its query."""
        return tf.range(tf.shape(self.queries)[0]) if self.grouped is None else self.grouped.of_rows

    def of_queries(self) -> Batch:
        """Returns the batch with a row for each query, for what asks nothing of a positive."""
        if self.grouped is None:
            return self
        vectors, features, _ = self.grouped
        nobody = tf.fill(tf.shape(vectors)[:1], tf.constant(EMPTY_ID, tf.int64))
        unknown = {"positives": tf.zeros_like(vectors), "positive_ids": nobody}
        return self._replace(queries=vectors, features=features, grouped=None, **unknown)

    score: Callable[[Candidates], tuple[tf.Tensor, tf.Tensor]] = _no_task
    number: int = -1

    @property
    def several_vectors(self) -> bool:
        """Whether a query has several vectors, of which the best one counts."""
        return self.queries.shape.rank == 3

    def for_part(self, number: int) -> Batch:
        """Returns the same with a seed of its own for one of the parts that draw."""
        seed = tf.random.experimental.stateless_fold_in(self.seed, number, alg="philox")
        return self._replace(seed=seed, number=number)


def is_per_row(ids: tf.Tensor) -> bool:
    """Returns whether ids are of candidates of each row, [B, n], not of shared ones, [n]."""
    return ids.shape.rank == 2


class Candidates(NamedTuple):
    """What one sampler proposes: n candidates, the same for all rows or others for each row.

    Attributes:
        ids: [n] int64, or [B, n] for candidates of each row; `EMPTY_ID` for one without identity.
        vectors: [n, D] or [B, n, D]; gradient flows unless the sampler stopped it.
        valid: [n] or [B, n] bool, False for a slot that holds nothing and must never count.
        own_rows: [n] int32, the row of which this candidate *is* the positive, -1 for none; None
            where no candidate is anybody's.
        log_weight: scalar float32 in nats, added to the logits of all of them; None is 0.
        log_count: [B, n] float32 in nats, of candidates of each row only: these are chosen and not
            drawn, so that no mixture knows how many hold an id. None is 0, a count of one.
        has_gradient: whether the vectors are of this step. Those of the past get none.
        compensated: whether those with a gradient take over what these cannot have.
    """

    ids: tf.Tensor
    vectors: tf.Tensor
    valid: tf.Tensor
    own_rows: tf.Tensor | None = None
    log_weight: tf.Tensor | None = None
    log_count: tf.Tensor | None = None
    has_gradient: bool = True
    compensated: bool = False

    @property
    def per_row(self) -> bool:
        """Whether each row has candidates of its own."""
        return is_per_row(self.ids)


class Pool(NamedTuple):
    """Candidates side by side, with the log expected count of the mixture that made them.

    All C candidates are shared by all rows, or all are the rows' own; a step has at most one pool
    of each kind. The last axis is the candidates, so one expression serves both and also a block of
    them: `pool.ids == batch.positive_ids[:, None]` is [B, C].

    Attributes:
        ids: [C] int64 for shared candidates, [B, C] for those of each row; the same holds below.
        vectors: [C, D] or [B, C, D].
        valid: [C] or [B, C] bool.
        own_rows: [C] or [B, C] int32, see `Candidates`; -1 for none.
        sampler: [C] int32, the number of the sampler of each candidate.
        log_count: [C] or [B, C] float32 in nats, the log of how many candidates hold this id on
            average; None where no correction is made.
        positive_log_count: [B] float32, the same for the positive of each row.
        log_weight: [C] float32 in nats, added to the logits; None where no sampler is weighted.
        num_fresh: scalar int32; from this candidate on none has a gradient. None where all have.
        per_row: whether the candidates are the rows' own.
        has_own: whether each row's positive is among the candidates.
    """

    ids: tf.Tensor
    vectors: tf.Tensor
    valid: tf.Tensor
    own_rows: tf.Tensor
    sampler: tf.Tensor
    log_count: tf.Tensor | None = None
    positive_log_count: tf.Tensor | None = None
    log_weight: tf.Tensor | None = None
    num_fresh: tf.Tensor | None = None
    per_row: bool = False
    has_own: bool = False


class MorePositives(NamedTuple):
    """The shared candidates that hold another positive of a row, as the masks know it.

    Attributes:
        marks: [B, C] bool, True for one candidate of each such item.
        logit: [B, C] float32, corrected as a positive is.
        score: [B, C] float32, before the correction.
    """

    marks: tf.Tensor
    logit: tf.Tensor
    score: tf.Tensor


class Scored(NamedTuple):
    """The candidates with their scores, each row's positive apart from what it competes with.

    A miner returns one with fewer candidates or other ones, then of each row: [B, K]. A record of
    less is enough for what reads less: all fields but the first three may be None.

    Attributes:
        positive_logit: [B] float32, after the correction.
        logit: [B, C] float32.
        keep: [B, C] bool; False for a candidate that does not count in this row.
        positive_score: [B] float32, before the correction.
        score: [B, C] float32.
        ids: [C] int64, or the shape of `logit`; the same holds below.
        sampler: int32, the number of the sampler of each candidate.
        log_count: float32 in nats; None where nothing is corrected.
        own_rows: int32, the row whose positive each candidate is, -1 for none.
        per_row: bool, True for the candidates of single rows, False for the shared ones.
        more_positives: other positives of the row among the candidates; None where no mask knows
            any.
        num_kept: scalar float32, how many candidates the masks left over all rows.
        has_own: whether each row's positive is in a column of its own, which does not count.
        vectors: [C, D] or [B, C, D], as the samplers gave them; None beside candidates of the other
            kind and once some were taken.
    """

    positive_logit: tf.Tensor
    logit: tf.Tensor
    keep: tf.Tensor
    positive_score: tf.Tensor | None = None
    score: tf.Tensor | None = None
    ids: tf.Tensor | None = None
    sampler: tf.Tensor | None = None
    log_count: tf.Tensor | None = None
    own_rows: tf.Tensor | None = None
    per_row: tf.Tensor | bool = False
    more_positives: MorePositives | None = None
    num_kept: tf.Tensor | None = None
    has_own: bool = False
    vectors: tf.Tensor | None = None

    def take(self, places: tf.Tensor) -> Scored:
        """Returns some candidates of each row, [B, K] places with repetition."""
        shape, parts = tf.shape(self.logit), {}
        for name in ("logit", "keep", "score", "ids", "sampler", "log_count", "per_row"):
            field = getattr(self, name)
            if field is not None:
                whole = tf.broadcast_to(field, shape)
                parts[name] = tf.gather(whole, places, batch_dims=1)
        return self._replace(**parts, own_rows=None, has_own=False, vectors=None)

    @property
    def some(self) -> tf.Tensor:
        """Returns [B] bool: whether a row has any negative."""
        return tf.reduce_any(self.keep, axis=1)


class Excess(NamedTuple):
    """By how much the log-sum of each row's negatives exceeds its positive.

    Attributes:
        some: [B] bool, whether the row has a negative at all.
        value: [B] float32, log-sum-exp of the negatives - logit of the positive; 0 where it has
            none.
    """

    some: tf.Tensor
    value: tf.Tensor


class StepPart(Part):
    """What all families have in common.

    Attributes:
        reads_scores: whether `update` reads single scores, which are then all there at once.
    """

    reads_scores = False

    def update(self, batch: Batch, scored: Scored) -> None:
        """Learns from a training step once its loss is known; the same on every replica.

        Args:
            batch: the step; its seed is that of `sample`, its number that of the part.
            scored: the candidates that the loss was made of. Where nobody reads single scores they
                may never have been there: only `ids`, `sampler`, `log_count` and `own_rows` are.
        """
        del batch, scored  # TensorFlow warns of a function whose body is only words


class Sampler(StepPart):
    """Where negatives come from. A sampler proposes and knows how often; it never filters.

    Attributes:
        name: in logs and configurations.
        needs_frequency: whether `log_count` asks `batch.log_probability`.
        starts_empty: whether it has nothing to propose in the first step.
    """

    name: str
    needs_frequency = False
    starts_empty = False

    def sample(self, batch: Batch) -> Candidates:
        """Returns this sampler's candidates for one step."""
        raise NotImplementedError

    def log_count(self, ids: tf.Tensor, batch: Batch) -> tf.Tensor:
        """Returns float32, the shape of ids: log of the mean number of candidates with each id."""
        raise NotImplementedError


class Frequency(Part):
    """How probable each item is in the stream of positives.

    Attributes:
        positives_per_query: how many positives a query brings to a batch on average, where that is
            known and batches are of queries; None: as many as it brought.
    """

    positives_per_query: float | None = None

    def update(self, ids: tf.Tensor) -> None:
        """Counts one batch of ids [m] int64; ids equal to `EMPTY_ID` are ignored."""
        raise NotImplementedError

    def log_probability(self, ids: tf.Tensor) -> tf.Tensor:
        """Returns [m] float32: natural log of the probability of each id in one draw."""
        raise NotImplementedError


class Mask(StepPart):
    """Which candidates may count as negatives of a row. A mask filters; it never proposes.

    Attributes:
        names_positives: whether what it drops holds a positive of the row, for this reason only.
        in_blocks: whether it may be asked for a part of the candidates.
        by_query: whether rows of one query keep the same, so that it may be asked once for each
            query: then it reads nothing of a row's positive.
    """

    names_positives = False
    in_blocks = True
    by_query = False

    def keep(self, scored: Scored, batch: Batch) -> tf.Tensor:
        """Returns [B, C] bool, True where the candidate stays."""
        raise NotImplementedError


class Miner(StepPart):
    """Chooses among the candidates that the masks left, or makes others of them.

    Attributes:
        by_candidate: whether each candidate is judged alone, from its numbers and those of the
            positive: then a miner may be asked for a part of them, and changes `keep` only.
    """

    by_candidate = False

    def mine(self, scored: Scored, batch: Batch) -> Scored:
        """Returns the chosen candidates, of static width where that can be."""
        raise NotImplementedError


class Loss(StepPart):
    """Scored candidates to one number per row.

    Attributes:
        folds: whether log-sums are enough (`of_excess`), so that the candidates may come in blocks.
    """

    folds = False

    def __call__(self, scored: Scored, batch: Batch | None = None) -> tf.Tensor:
        """Returns [B] float32; 0 with gradient 0 for a row without any negative."""
        raise NotImplementedError

    def of_excess(self, shared: Excess, own: Excess | None) -> tf.Tensor:
        """Returns [B] float32 from the shared candidates and each row's own, None without these."""
        raise NotImplementedError
