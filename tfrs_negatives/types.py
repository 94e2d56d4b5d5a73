"""The records and protocols that pass between the stages of a training step.

Letters used for shapes everywhere in this package:

    B  queries of the batch          C  columns of the candidate pool
    D  width of an embedding         N  items of the catalogue
    H  query vectors per query       E  rows (events) of a log

This module imports neither TensorFlow nor numpy, so that the command line can answer at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf
    from typing_extensions import Self

    from tfrs_negatives.encode.catalogue import ItemCatalogue

Features: TypeAlias = "Mapping[str, Any]"
Similarity = Literal["dot", "cosine"]
CorrectionPolicy = Literal["both", "negatives"]
FeatureKind = Literal["categorical", "numeric", "multi_hot", "list"]

FEATURE_NAME = "[A-Za-z][A-Za-z0-9_]*"
"""A pattern for the names that Keras layers and the inputs of a SavedModel can carry."""

EMPTY_ID = -(2**63)
"""The id of a slot that holds no item (smallest int64). It equals nothing, itself included."""


class InputError(ValueError):
    """Something from outside is wrong; the message names what, what was expected, what came.

    The command line turns it into one line on standard error and exit code 2.
    """

    # Keras wraps an error inside a layer in a page of call arguments, unless it bears this mark.
    _keras_call_info_injected = True


def bad_input(argument: str, expected: str, received: object) -> InputError:
    """Returns the error of one wrong argument, in the form that every error of this package has.

    Args:
        argument: name of the argument, column, file or configuration key.
        expected: what would have been right.
        received: what came instead.

    Example:
        >>> raise bad_input("num_negatives", "a positive integer", -3)
        Traceback (most recent call last):
        ...
        tfrs_negatives.types.InputError: `num_negatives`: expected a positive integer. Received: -3
    """
    return InputError(f"`{argument}`: expected {expected}. Received: {received}")


class Part:
    """A stateless part of a composition: Keras rebuilds it from its constructor's arguments."""

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Builds the part that `get_config` described."""
        return cls(**config)


class Candidates(NamedTuple):
    """What one source proposes: n columns.

    Attributes:
        ids: [n] int64, `EMPTY_ID` where a column has no identity.
        embeddings: [n, D], gradient flows unless the source stopped it.
        filled: [n] bool, False for a slot that holds nothing and must never count.
        own_rows: [n] int32, the batch row of which this column *is* the positive; -1 for none.
    """

    ids: tf.Tensor
    embeddings: tf.Tensor
    filled: tf.Tensor
    own_rows: tf.Tensor


class CandidatePool(NamedTuple):
    """All proposals side by side, with the log expected count of the mixture that made them.

    Attributes:
        ids: [C] int64.
        embeddings: [C, D].
        filled: [C] bool.
        own_rows: [C] int32, see `Candidates`.
        origin: [C] int32, the number of the source of each column.
        log_expected_count: [C] float32 in nats, the log of how many columns of the pool hold this
            id on average; None where no correction is made.
        positive_log_expected_count: [B] float32, the same for the positive of each row.
    """

    ids: tf.Tensor
    embeddings: tf.Tensor
    filled: tf.Tensor
    own_rows: tf.Tensor
    origin: tf.Tensor
    log_expected_count: tf.Tensor | None
    positive_log_expected_count: tf.Tensor | None


class Logits(NamedTuple):
    """Scores of a batch: each row's positive apart from the columns it competes with.

    Attributes:
        positive: [B] float32.
        negatives: [B, C] float32, or [B, K] after a miner has chosen K columns per row.
        keep: bool, shape of `negatives`; False for a column that does not count in this row.
    """

    positive: tf.Tensor
    negatives: tf.Tensor
    keep: tf.Tensor


class StepContext(NamedTuple):
    """What a training step knows before any negative is proposed.

    Attributes:
        query_embeddings: [B, D], or [B, H, D] for queries of several vectors.
        item_embeddings: [n, D], n >= B; the first B rows are the positives of the queries.
        item_ids: [n] int64, `EMPTY_ID` where unknown.
        features: the raw batch, for sources that read a column of it.
        seed: [2] int32, differs by task seed and step; a source folds its own number into it.
        log_probability: ids [m] -> natural log of the probability that one draw of the positive
            stream yields this id, [m] float32. Raises where the task has no estimator.
        encode_items: item features -> embeddings [m, D]. Raises where the task was given none.
    """

    query_embeddings: tf.Tensor
    item_embeddings: tf.Tensor
    item_ids: tf.Tensor
    features: Features
    seed: tf.Tensor
    log_probability: Callable[[tf.Tensor], tf.Tensor]
    encode_items: Callable[[Features], tf.Tensor]


class NegativeSource(Protocol):
    """Where negatives come from. A source proposes and knows how often; it never filters."""

    name: str
    needs_frequency: bool

    def propose(self, context: StepContext) -> Candidates:
        """Returns this source's columns for one step."""

    def log_expected_count(self, ids: tf.Tensor, context: StepContext) -> tf.Tensor:
        """Returns [m] float32: log of the mean number of columns here that hold each id."""

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""


class FrequencyEstimator(Protocol):
    """How probable each item is in the stream of positives."""

    def update(self, ids: tf.Tensor) -> None:
        """Counts one batch of ids [m] int64; ids equal to `EMPTY_ID` are ignored."""

    def log_probability(self, ids: tf.Tensor) -> tf.Tensor:
        """Returns [m] float32: natural log of the probability of each id in one draw."""


class Mask(Protocol):
    """Which columns may count as negatives of a row. A mask filters; it never proposes."""

    def keep(self, scores: Logits, pool: CandidatePool, context: StepContext) -> tf.Tensor:
        """Returns [B, C] bool, True where the column stays."""


class Miner(Protocol):
    """Chooses among the columns that the masks left."""

    def mine(self, logits: Logits) -> Logits:
        """Returns the logits of the chosen columns, with a static width."""


class LossFunction(Protocol):
    """Logits to one number per row."""

    def __call__(self, logits: Logits) -> tf.Tensor:
        """Returns [B] float32; 0 for a row without any negative."""


class RetrievalModel(Protocol):
    """What evaluation and the index need of a model: vectors whose inner product is the score.

    Both towers answer in the *retrieval space*, where the score of the model is a plain inner
    product: normalised where the similarity is cosine, and one dimension wider where there is an
    item bias.
    """

    items: ItemCatalogue

    @property
    def similarity(self) -> Similarity:
        """The similarity the model was trained with."""

    @property
    def query_signature(self) -> Mapping[str, tf.TensorSpec]:
        """Name -> `tf.TensorSpec` ([None, ...]) of every feature that the query tower reads."""

    def query_vectors(self, features: Features) -> tf.Tensor:
        """Returns [B, D] float32 from a dict of query features, each [B, ...]."""

    def item_vectors(self, features: Features) -> tf.Tensor:
        """Returns [m, D] float32 from item features as `ItemCatalogue.gather` gives them."""


Columns: TypeAlias = "Mapping[str, np.ndarray]"
Names: TypeAlias = Sequence[str]
