"""Raw columns to tensors: what kind of feature each column is, and how it becomes a vector."""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import FEATURE_NAME, Columns, FeatureKind
from tfrs_negatives.data.columns import MISSING_INTEGER
from tfrs_negatives.data.roles import as_feature
from tfrs_negatives.data.schema import Column, ColumnSpec, Schema
from tfrs_negatives.towers.layers import (
    MISSING_TEXT,
    NO_TEXT,
    Binned,
    IdDropout,
    MaskedMean,
    MayMiss,
    MeanAndIndicator,
    OrNothing,
    SortedLookup,
)

logger = logging.getLogger("tfrs_negatives")


_LAYERS = ("_embedding", "_bins", "_dropout", "_may_miss", "_scale", "_indicator", "_or_nothing")
"""What the names of the layers of a feature add to its own."""

DEFAULT_BINS = 10
"""The buckets of a binned column where nobody says how many."""


@dataclass(frozen=True)
class FeatureSpec:
    """One column and how to read it.

    Attributes:
        name: name of the column.
        kind: "categorical" (one string or integer), "numeric" (one or W floats), "binned" (one
            number, of which only its bucket counts), "multi_hot" (W numbers, 0 or 1) or "list" (L
            strings or integers, padded with "" or -1).
        dtype: "string", "int64" or "float32".
        width: W or L; None for a column of one value per row.
        vocabulary: the known values of a categorical or list column, sorted.
        mean: [W] of a numeric column, to be subtracted.
        variance: [W] of a numeric column.
        boundaries: between the buckets of a binned column, ascending.
        id_dropout: share of the training rows of a categorical column that are read as out of
            vocabulary, so that its row learns to stand for what is known by other features only.
        may_miss: whether a row may have no value (NaN, "", the smallest int64): a category of its
            own, or the mean and an indicator for a number. A list or a multi-hot row without values
            is an empty one.
    """

    name: str
    kind: FeatureKind
    dtype: str
    width: int | None = None
    vocabulary: tuple[Any, ...] = ()
    mean: tuple[float, ...] = ()
    variance: tuple[float, ...] = ()
    id_dropout: float = 0.0
    may_miss: bool = False
    boundaries: tuple[float, ...] = ()


class Described(Protocol):
    """Features with what is declared of them: a log or a catalogue."""

    @property
    def features(self) -> Columns:
        """Name -> [E, ...]."""

    @property
    def columns(self) -> Mapping[str, ColumnSpec]:
        """Name -> what is declared."""


def infer_features(
    columns: Columns | Described,
    *,
    declared: Mapping[str, ColumnSpec] | None = None,
    id_dropout: Mapping[str, float] | None = None,
) -> list[FeatureSpec]:
    """Decides for each column what it is, and learns its vocabulary or its scale.

    One string or integer per row is categorical, one float numeric. A row of numbers that are all 0
    or 1 is multi-hot, another row of floats numeric, another row of strings or integers a list.
    Pass the columns of the training part only: what is absent here is out of vocabulary later. A
    column of integers that are nearly all different, and not declared as ids, is warned of.

    Args:
        columns: a log, a catalogue, or name -> [E] or [E, W].
        declared: name -> what is declared of a column, such as its `encoding` where the guess is
            wrong ("left_out" leaves it out), beside what a log or a catalogue says.
        id_dropout: name -> share, see `FeatureSpec`; for ids that also occur unseen.

    Returns:
        A spec per column, in the order of the columns.

    Raises:
        InputError: for a declared column that does not exist or that cannot be of that kind, and
            for a list column that holds nothing.

    Example:
        >>> columns = {"city": np.array(["b", "a", "b"]), "age": np.array([1.0, 2.0, 3.0])}
        >>> specs = infer_features(columns)
        >>> [(s.name, s.kind, s.vocabulary) for s in specs]
        [('city', 'categorical', ('a', 'b')), ('age', 'numeric', ())]
    """
    if not isinstance(columns, Mapping):
        declared = {**columns.columns, **(declared or {})}
        columns = columns.features
    schema = Schema(declared or {})
    schema.check_against(columns, where="the features")
    declared, can_miss = schema.columns, schema.may_miss
    columns = {n: as_feature(column, n, may_miss=n in can_miss) for n, column in columns.items()}
    for name in set(id_dropout or {}) - set(columns):
        raise bad_input("id_dropout", f"columns among {sorted(columns)}", repr(name))
    _check_names(list(columns))
    return [
        _spec(name, column, kind, declared.get(name), (id_dropout or {}).get(name, 0.0))
        for name, column in columns.items()
        if (kind := _kind(name, column, declared.get(name))) is not None
    ]


def _check_names(names: list[str]) -> None:
    for name in names:
        if not re.fullmatch(FEATURE_NAME, name):
            raise bad_input("features", "names of letters, digits and _", repr(name))
        for suffix in _LAYERS:
            if name + suffix in names:
                rule = f"no {name + suffix!r} beside {name!r}, which has a layer of that name"
                raise bad_input("features", rule, names)


def _kind(name: str, column: np.ndarray, said: Column | None) -> FeatureKind | None:
    """Returns how the tower reads a column; None where it does not."""
    if said is not None and said.encoding is not None:
        return None if said.encoding == "left_out" else said.encoding
    kind = _guess_kind(column, said)
    if kind == "categorical" and column.dtype.kind in "iu" and not _is_id(said):
        distinct = len(np.unique(column))
        if distinct > max(100, len(column) // 2):
            logger.warning(
                "`%s`: %d different integers in %d rows are read as categories; "
                "declare `encoding: numeric` where they are numbers, or leave the column out",
                *(name, distinct, len(column)),
            )
    return kind


def _is_id(said: Column | None) -> bool:
    return said is not None and said.role in ("query_id", "item_id")


def _guess_kind(column: np.ndarray, said: Column | None) -> FeatureKind:
    if column.ndim == 1:
        return "numeric" if column.dtype.kind == "f" else "categorical"
    if said is not None and said.role == "history":
        return "list"
    if column.dtype.kind in "biuf" and _are_flags(column, said):
        return "multi_hot"
    return "numeric" if column.dtype.kind == "f" else "list"


def _are_flags(column: np.ndarray, said: Column | None) -> bool:
    """Returns whether all rows that have a value are of 0 and 1."""
    if said is not None and said.missing == "own":
        column = column[~(np.isnan(column) | (column == -1)).all(axis=1)]
    return bool(column.size and np.isin(column, (0, 1)).all())


def _spec(
    name: str, column: np.ndarray, kind: FeatureKind, said: Column | None, id_dropout: float
) -> FeatureSpec:
    may_miss = said is not None and said.missing == "own"
    if kind == "multi_hot" and column.ndim == 2 and not _are_flags(column, said):
        raise bad_input(f"features.{name}", "numbers that are 0 or 1 for multi_hot", "others")
    bins = None if said is None else said.bins
    spec = _learn(name, column, kind, may_miss=may_miss, bins=bins or DEFAULT_BINS)
    return replace(spec, id_dropout=id_dropout, may_miss=may_miss)


def _learn(
    name: str, column: np.ndarray, kind: FeatureKind, *, may_miss: bool, bins: int
) -> FeatureSpec:
    is_text, width = column.dtype.kind == "U", column.shape[1] if column.ndim == 2 else None
    if kind in ("numeric", "binned", "multi_hot") and is_text:
        raise bad_input(f"features.{name}", "categorical or list for strings", kind)
    if kind in ("categorical", "list") and column.dtype.kind == "f":
        raise bad_input(f"features.{name}", "numeric or multi_hot for floats", kind)
    if (kind in ("multi_hot", "list")) == (width is None) and kind != "numeric":
        raise bad_input(f"features.{name}", f"a kind that fits shape {column.shape}", kind)
    is_padded = kind == "numeric" and width is not None and column.dtype.kind != "f"
    if is_padded and (column == -1).any():
        rule = "lists of floats for numeric: -1 marks the end of a list of integers"
        raise bad_input(f"features.{name}", rule, f"dtype {column.dtype}")
    if kind == "multi_hot":
        return FeatureSpec(name, kind, "float32", width)
    if kind == "binned":
        return FeatureSpec(name, kind, "float32", boundaries=_boundaries(name, column, bins))
    if kind == "numeric":
        return FeatureSpec(name, kind, "float32", width, (), *_scale(name, column))
    missing = "" if is_text else MISSING_INTEGER
    values = np.unique(column)
    known = values[values != ("" if is_text else -1)] if kind == "list" else values
    if may_miss and kind == "categorical" and missing not in known:
        # It has a row even where the training part lacks nothing: a later one may.
        known = np.sort(np.append(known, missing))
    if not len(known):
        raise bad_input(f"features.{name}", "at least one value", "only padding")
    return FeatureSpec(name, kind, "string" if is_text else "int64", width, tuple(known.tolist()))


def _scale(name: str, column: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and variance of the rows that have a value, [W] each."""
    values = _present(name, column.reshape(len(column), -1))
    mean, variance = values.mean(axis=0), values.var(axis=0)
    # A constant column has nothing to scale by.
    return tuple(mean), tuple(np.where(variance > 0, variance, 1.0))


def _boundaries(name: str, column: np.ndarray, bins: int) -> tuple[float, ...]:
    """Returns the quantiles of the rows that have a value, each once: fewer where values repeat."""
    values = _present(name, column.reshape(-1, 1))
    cuts = np.quantile(values, np.arange(1, bins) / bins)
    # Of equal boundaries all but one would leave an empty bucket, as one at the least value would.
    found = np.unique(cuts.astype(np.float32))
    return tuple(found[found > values.min().astype(np.float32)].tolist())


def _present(name: str, column: np.ndarray) -> np.ndarray:
    """Returns the rows [m, W] float64 that have a value."""
    values = column.astype(np.float64)
    # An integer that is missing is no number; as a number it becomes NaN.
    values[values == MISSING_INTEGER] = np.nan
    values = values[~np.isnan(values).any(axis=1)]
    if not len(values):
        raise bad_input(f"features.{name}", "at least one value", "only missing ones")
    return values


def encode_feature(
    spec: FeatureSpec, embedding_dim: int, *, tower: str
) -> tuple[tf.Tensor, tf.Tensor]:
    """Makes the Keras input of one feature and its vector.

    Args:
        spec: the feature.
        embedding_dim: width of embeddings, D; numeric features keep their own width.
        tower: name of the tower, which with the name of the feature seeds its dropout. Two towers
            that dropped the same rows would tell each other which pairs belong together.

    Returns:
        The symbolic input and the vector [B, D] or [B, W].
    """
    shape = () if spec.width is None else (spec.width,)
    column = given = tf.keras.Input(shape, name=spec.name, dtype=spec.dtype)
    if spec.may_miss:
        given = MayMiss(spec.name, name=f"{spec.name}_may_miss")(column)
    if spec.kind == "numeric":
        values = given[:, None] if spec.width is None else given
        moments = {"mean": spec.mean, "variance": spec.variance}
        scaled = tf.keras.layers.Normalization(**moments, name=f"{spec.name}_scale")(values)
        indicate = MeanAndIndicator(name=f"{spec.name}_indicator")
        return column, indicate(scaled) if spec.may_miss else scaled
    if spec.kind == "multi_hot":
        given = OrNothing(name=f"{spec.name}_or_nothing")(given) if spec.may_miss else given
        sums = tf.keras.layers.Dense(embedding_dim, use_bias=False, name=f"{spec.name}_embedding")
        return column, sums(given)
    if spec.kind in ("categorical", "binned"):
        rows = _lookup(spec)(given)
        if spec.id_dropout:
            seed = zlib.crc32(f"{tower}/{spec.name}".encode())
            rows = IdDropout(spec.id_dropout, seed=seed, name=f"{spec.name}_dropout")(rows)
        return column, _embedding(spec, rows, embedding_dim)
    rows = _lookup(spec, mask=True)(given)
    return column, MaskedMean()([_embedding(spec, rows, embedding_dim), rows])


def _lookup(spec: FeatureSpec, *, mask: bool = False) -> tf.keras.layers.Layer:
    if spec.kind == "binned":
        return Binned(spec.boundaries, name=f"{spec.name}_bins")
    # Row 0 answers for what is not in the vocabulary (row 1 where row 0 is the padding).
    if spec.dtype == "string":
        return tf.keras.layers.StringLookup(
            vocabulary=[word or MISSING_TEXT for word in spec.vocabulary],
            mask_token="" if mask else None,
            oov_token=NO_TEXT,
        )
    return SortedLookup(list(spec.vocabulary), mask_value=-1 if mask else None)


def _embedding(spec: FeatureSpec, rows: tf.Tensor, embedding_dim: int) -> tf.Tensor:
    # Two more rows than words: out of vocabulary, and the padding of lists. Of bins there is one
    # more than boundaries, and the row of what is missing.
    size = len(spec.vocabulary) + len(spec.boundaries) + 2
    return tf.keras.layers.Embedding(size, embedding_dim, name=f"{spec.name}_embedding")(rows)
