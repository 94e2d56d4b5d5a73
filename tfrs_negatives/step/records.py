"""The records and protocols that pass between the stages of a training step.

Letters used for shapes everywhere in this package:

    B  queries of the batch          C  columns of the candidate pool
    D  width of an embedding         N  items of the catalogue
    H  query vectors per query       E  rows (events) of a log
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import tensorflow as tf

from tfrs_negatives.core.types import Features


class Candidates(NamedTuple):
    """What one source proposes: n columns, the same for all rows or others for each row.

    Attributes:
        ids: [n] int64, or [B, n] for columns of each row; `EMPTY_ID` where a column has no
            identity.
        embeddings: [n, D] or [B, n, D], gradient flows unless the source stopped it.
        filled: [n] or [B, n] bool, False for a slot that holds nothing and must never count.
        own_rows: [n] int32, the row of which this column *is* the positive, -1 for none; None where
            no column is anybody's.
        stale: whether the embeddings are of the past, so that no gradient is wanted.
        compensated: whether the fresh columns take over the gradient that these cannot have.
    """

    ids: tf.Tensor
    embeddings: tf.Tensor
    filled: tf.Tensor
    own_rows: tf.Tensor | None = None
    stale: bool = False
    compensated: bool = False


class CandidatePool(NamedTuple):
    """Proposals side by side, with the log expected count of the mixture that made them.

    All C columns are shared by all rows, or all are the rows' own; a step has at most one pool of
    each kind. The last axis is the columns, so one expression serves both and also a block of the
    columns: `pool.ids == context.positive_ids[:, None]` is [B, C].

    Attributes:
        ids: [C] int64 for shared columns, [B, C] for those of each row; the same holds below.
        embeddings: [C, D] or [B, C, D].
        filled: [C] or [B, C] bool.
        own_rows: [C] or [B, C] int32, see `Candidates`; -1 for none.
        origin: [C] int32, the number of the source of each column.
        log_expected_count: [C] or [B, C] float32 in nats, the log of how many columns hold this id
            on average; None where no correction is made.
        positive_log_expected_count: [B] float32, the same for the positive of each row.
        log_weight: [C] float32 in nats, added to the logits; None where no source is weighted.
        num_fresh: scalar int32; from this column on all are stale. None where none is.
    """

    ids: tf.Tensor
    embeddings: tf.Tensor
    filled: tf.Tensor
    own_rows: tf.Tensor
    origin: tf.Tensor
    log_expected_count: tf.Tensor | None
    positive_log_expected_count: tf.Tensor | None
    log_weight: tf.Tensor | None = None
    num_fresh: tf.Tensor | None = None


class MorePositives(NamedTuple):
    """The shared columns that hold another positive of a row, as the masks know it.

    Attributes:
        marks: [B, C] bool, True for one column of each such item.
        logits: [B, C] float32, corrected.
        scores: [B, C] float32, before the correction.
    """

    marks: tf.Tensor
    logits: tf.Tensor
    scores: tf.Tensor


class Logits(NamedTuple):
    """Scores of a batch: each row's positive apart from the columns it competes with.

    Attributes:
        positive: [B] float32.
        negatives: [B, C] float32, or [B, K] after a miner has chosen K columns per row.
        keep: bool, shape of `negatives`; False for a column that does not count in this row.
        explicit: bool, [C], or the shape of `negatives` after a miner; True for the columns of each
            row (`Explicit`), False for the shared ones.
        positive_score: [B] float32 before the correction; None where none was made.
        scores: float32, shape of `negatives`, the same for the negatives.
        more_positives: other positives of the row among the columns; None where no mask knows any.
    """

    positive: tf.Tensor
    negatives: tf.Tensor
    keep: tf.Tensor
    explicit: tf.Tensor | bool = False
    positive_score: tf.Tensor | None = None
    scores: tf.Tensor | None = None
    more_positives: MorePositives | None = None


class Margin(NamedTuple):
    """By how much the log-sum of each row's negatives exceeds its positive.

    Attributes:
        some: [B] bool, whether the row has a negative at all.
        value: [B] float32, log-sum-exp of the negatives - logit of the positive; 0 where it has
            none.
    """

    some: tf.Tensor
    value: tf.Tensor


class StepContext(NamedTuple):
    """What a training step knows before any negative is proposed.

    Under a distribution strategy the queries are those of this replica and the items those of all:
    every replica has the same columns.

    Attributes:
        query_embeddings: [B, D], or [B, H, D] for queries of several vectors.
        positive_embeddings: [B, D], the positive of each query.
        positive_ids: [B] int64, `EMPTY_ID` where unknown.
        item_embeddings: [n, D], the positives of all queries of all replicas, and more items of the
            same stream where the caller has them.
        item_ids: [n] int64.
        own_rows: [n] int32, the row of this replica whose positive each item is, -1 for none.
        num_queries: scalar int32, the rows of all replicas.
        features: the raw batch, for sources and masks that read a column of it.
        step: scalar int64, the number of training steps so far, this one included.
        seed: [2] int32, differs by task seed and step, not by replica; a source folds its own
            number into it.
        log_probability: ids [m] -> natural log of the probability that one draw of the positive
            stream yields this id, [m] float32. Raises where the task has no estimator.
        encode_items: item features -> embeddings [m, D]. Raises where the task was given none.
        encode_probes: the same as in inference, for measurements; no gradient is taken.
    """

    query_embeddings: tf.Tensor
    positive_embeddings: tf.Tensor
    positive_ids: tf.Tensor
    item_embeddings: tf.Tensor
    item_ids: tf.Tensor
    own_rows: tf.Tensor
    num_queries: tf.Tensor
    features: Features
    step: tf.Tensor
    seed: tf.Tensor
    log_probability: Callable[[tf.Tensor], tf.Tensor]
    encode_items: Callable[[Features], tf.Tensor]
    encode_probes: Callable[[Features], tf.Tensor]


class NegativeSource(Protocol):
    """Where negatives come from. A source proposes and knows how often; it never filters."""

    name: str
    needs_frequency: bool

    def propose(self, context: StepContext) -> Candidates:
        """Returns this source's columns for one step."""

    def log_expected_count(self, ids: tf.Tensor, context: StepContext) -> tf.Tensor:
        """Returns float32, the shape of ids: log of the mean number of columns with each id."""

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""


@runtime_checkable
class RememberingSource(NegativeSource, Protocol):
    """A source that learns from the batch once the step has used what it proposed."""

    def remember(self, context: StepContext) -> None:
        """Takes in one training batch, the same on every replica."""


class FrequencyEstimator(Protocol):
    """How probable each item is in the stream of positives."""

    def update(self, ids: tf.Tensor) -> None:
        """Counts one batch of ids [m] int64; ids equal to `EMPTY_ID` are ignored."""

    def log_probability(self, ids: tf.Tensor) -> tf.Tensor:
        """Returns [m] float32: natural log of the probability of each id in one draw."""


class Mask(Protocol):
    """Which columns may count as negatives of a row. A mask filters; it never proposes.

    A mask that drops a column only because it holds a positive of the row says so with an attribute
    `names_positives = True`.
    """

    def keep(self, scores: Logits, pool: CandidatePool, context: StepContext) -> tf.Tensor:
        """Returns [B, C] bool, True where the column stays."""


class Miner(Protocol):
    """Chooses among the columns that the masks left.

    A miner that decides column by column, from its numbers and those of the positive, says so with
    an attribute `is_filter = True`: it may be asked for a block of the columns.
    """

    def mine(self, logits: Logits, context: StepContext) -> Logits:
        """Returns the logits of the chosen columns, with a static width."""


class LossFunction(Protocol):
    """Logits to one number per row."""

    def __call__(self, logits: Logits) -> tf.Tensor:
        """Returns [B] float32; 0 for a row without any negative."""


@runtime_checkable
class SoftmaxLoss(LossFunction, Protocol):
    """A loss that needs no single logit, only their log-sums."""

    def of_margins(self, shared: Margin, own: Margin | None) -> tf.Tensor:
        """Returns [B] float32 from the shared columns and each row's own, None without these."""
