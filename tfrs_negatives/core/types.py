"""Names of types and of values that stand for something, without TensorFlow or numpy.

So the command line can answer at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypeAlias,
)

if TYPE_CHECKING:
    import numpy as np


Features: TypeAlias = "Mapping[str, Any]"
Similarity = Literal["dot", "cosine", "euclidean"]
CorrectionPolicy = Literal["both", "negatives"]
FeatureKind = Literal["categorical", "numeric", "binned", "multi_hot", "list"]
Encoding = Literal[FeatureKind, "left_out"]
ColumnType = Literal["integer", "number", "text", "time"]

FEATURE_NAME = "[A-Za-z][A-Za-z0-9_]*"
"""A pattern for the names that Keras layers and the inputs of a SavedModel can carry."""

ValueKind = Literal["bool", "integer", "number", "text", "time"]

WEIGHTS = "sample_weight"
"""The column of a batch that weighs its rows."""

EMPTY_ID = -(2**63)
"""The id of a slot that holds no item (smallest int64). It equals nothing, itself included."""


@dataclass(frozen=True)
class Values:
    """A column of E rows, all of one kind.

    Attributes:
        kind: of the values, or of the elements where the rows are lists.
        array: [E], or [E, W] for lists: int64 (int8 and int64 for bool and flags), float32 or
            float64, strings, or datetime64[us] in UTC. Shorter lists are filled up with -1 or "".
        missing: [E] bool, the rows without a value; what `array` holds there means nothing.
    """

    kind: ValueKind
    array: np.ndarray
    missing: np.ndarray

    @property
    def says_missing(self) -> str:
        """How many rows are without a value, and which is the first, for an error."""
        return f"{int(self.missing.sum())} missing, the first in row {self.first_missing}"

    @property
    def first_missing(self) -> int | None:
        """The first row without a value."""
        return int(self.missing.argmax()) if self.missing.any() else None


Columns: TypeAlias = "Mapping[str, np.ndarray]"
Names: TypeAlias = Sequence[str]
