"""Raw columns to tensors: what kind of feature each column is, and how it becomes a vector."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import tensorflow as tf

from tfrs_negatives.encode.across_replicas import replica_number
from tfrs_negatives.encode.catalogue import ItemCatalogue
from tfrs_negatives.types import FEATURE_NAME, Columns, FeatureKind, bad_input

# The name of the unknown in a lookup of strings, which no column holds: numpy strips it.
NO_TEXT = "\0"


@dataclass(frozen=True)
class FeatureSpec:
    """One column and how to read it.

    Attributes:
        name: name of the column.
        kind: "categorical" (one string or integer), "numeric" (one or W floats), "multi_hot" (W
            numbers, 0 or 1) or "list" (L strings or integers, padded with "" or -1).
        dtype: "string", "int64" or "float32".
        width: W or L; None for a column of one value per row.
        vocabulary: the known values of a categorical or list column, sorted.
        mean: [W] of a numeric column, to be subtracted.
        variance: [W] of a numeric column.
        id_dropout: share of the training rows of a categorical column that are read as out of
            vocabulary, so that its row learns to stand for what is known by other features only.
    """

    name: str
    kind: FeatureKind
    dtype: str
    width: int | None = None
    vocabulary: tuple[Any, ...] = ()
    mean: tuple[float, ...] = ()
    variance: tuple[float, ...] = ()
    id_dropout: float = 0.0


def infer_features(
    columns: Columns,
    overrides: Mapping[str, FeatureKind | None] | None = None,
    *,
    id_dropout: Mapping[str, float] | None = None,
) -> list[FeatureSpec]:
    """Decides for each column what it is, and learns its vocabulary or its scale.

    One string or integer per row is categorical, one float numeric. A row of numbers that are all 0
    or 1 is multi-hot, another row of floats numeric, another row of strings or integers a list.
    Pass the columns of the training part only: what is absent here is out of vocabulary later.

    Args:
        columns: name -> [E] or [E, W].
        overrides: name -> kind, where the guess is wrong; None leaves the column out.
        id_dropout: name -> share, see `FeatureSpec`; for ids that also occur unseen.

    Returns:
        A spec per column, in the order of the columns.

    Raises:
        InputError: for an override of a column that does not exist or that cannot be of that kind,
            and for a list column that holds nothing.

    Example:
        >>> columns = {"city": np.array(["b", "a", "b"]), "age": np.array([1.0, 2.0, 3.0])}
        >>> specs = infer_features(columns)
        >>> [(s.name, s.kind, s.vocabulary) for s in specs]
        [('city', 'categorical', ('a', 'b')), ('age', 'numeric', ())]
    """
    overrides = overrides or {}
    for name, kind in overrides.items():
        if name not in columns:
            raise bad_input("features", f"columns among {sorted(columns)}", repr(name))
        if kind not in (*get_args(FeatureKind), None):
            raise bad_input(
                f"features.{name}", f"one of {list(get_args(FeatureKind))} or null", repr(kind)
            )
    for name in columns:
        if not re.fullmatch(FEATURE_NAME, name):
            raise bad_input("features", "names of letters, digits and _", repr(name))
    kinds = {name: overrides.get(name, _guess_kind(column)) for name, column in columns.items()}
    specs = [_spec(name, columns[name], kind) for name, kind in kinds.items() if kind is not None]
    return [replace(spec, id_dropout=(id_dropout or {}).get(spec.name, 0.0)) for spec in specs]


def _guess_kind(column: np.ndarray) -> FeatureKind:
    if column.ndim == 1:
        return "numeric" if column.dtype.kind == "f" else "categorical"
    if column.dtype.kind in "biuf" and np.isin(column, (0, 1)).all():
        return "multi_hot"
    return "numeric" if column.dtype.kind == "f" else "list"


def _spec(name: str, column: np.ndarray, kind: FeatureKind) -> FeatureSpec:
    is_text, width = column.dtype.kind == "U", column.shape[1] if column.ndim == 2 else None
    if kind in ("numeric", "multi_hot") and is_text:
        raise bad_input(f"features.{name}", "categorical or list for strings", kind)
    if kind in ("categorical", "list") and column.dtype.kind == "f":
        raise bad_input(f"features.{name}", "numeric or multi_hot for floats", kind)
    if (kind in ("multi_hot", "list")) == (width is None) and kind != "numeric":
        raise bad_input(f"features.{name}", f"a kind that fits shape {column.shape}", kind)
    if kind == "multi_hot":
        return FeatureSpec(name, kind, "float32", width)
    if kind == "numeric":
        values = column.astype(np.float64).reshape(len(column), -1)
        mean, variance = values.mean(axis=0), values.var(axis=0)
        # A constant column has nothing to scale by.
        variance = np.where(variance > 0, variance, 1.0)
        return FeatureSpec(name, kind, "float32", width, (), tuple(mean), tuple(variance))
    values = np.unique(column)
    known = values[values != ("" if is_text else -1)] if kind == "list" else values
    if not len(known):
        raise bad_input(f"features.{name}", "at least one value", "only padding")
    return FeatureSpec(name, kind, "string" if is_text else "int64", width, tuple(known.tolist()))


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
    column = tf.keras.Input(shape, name=spec.name, dtype=spec.dtype)
    if spec.kind == "numeric":
        values = column[:, None] if spec.width is None else column
        return column, tf.keras.layers.Normalization(mean=spec.mean, variance=spec.variance)(values)
    if spec.kind == "multi_hot":
        sums = tf.keras.layers.Dense(embedding_dim, use_bias=False, name=f"{spec.name}_embedding")
        return column, sums(column)
    if spec.kind == "categorical":
        rows = _lookup(spec)(column)
        if spec.id_dropout:
            seed = zlib.crc32(f"{tower}/{spec.name}".encode())
            rows = IdDropout(spec.id_dropout, seed=seed, name=f"{spec.name}_dropout")(rows)
        return column, _embedding(spec, rows, embedding_dim)
    rows = _lookup(spec, mask=True)(column)
    return column, MaskedMean()([_embedding(spec, rows, embedding_dim), rows])


def _lookup(spec: FeatureSpec, *, mask: bool = False) -> tf.keras.layers.Layer:
    # Row 0 answers for what is not in the vocabulary (row 1 where row 0 is the padding).
    if spec.dtype == "string":
        return tf.keras.layers.StringLookup(
            vocabulary=list(spec.vocabulary), mask_token="" if mask else None, oov_token=NO_TEXT
        )
    return SortedLookup(list(spec.vocabulary), mask_value=-1 if mask else None)


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class SortedLookup(tf.keras.layers.Layer):
    """Integers to rows: 0 for what is not in the vocabulary, then the vocabulary in its order.

    In place of `tf.keras.layers.IntegerLookup`, whose hash table XLA cannot compile.

    Args:
        vocabulary: distinct integers, ascending.
        mask_value: the padding of lists, which becomes row 0 and moves all others on by one; None
            knows no padding.

    Example:
        >>> SortedLookup([3, 7])(tf.constant([7, 3, 5])).numpy().tolist()
        [2, 1, 0]
        >>> SortedLookup([3, 7], mask_value=-1)(tf.constant([7, -1, 5])).numpy().tolist()
        [3, 0, 1]
    """

    def __init__(
        self, vocabulary: Sequence[int], *, mask_value: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**{"dtype": "int64", **kwargs})
        self.vocabulary, self.mask_value = list(vocabulary), mask_value
        self.items = ItemCatalogue(self.vocabulary)

    def call(self, values: tf.Tensor) -> tf.Tensor:
        """Takes integers [...]; returns rows [...] int64."""
        values = tf.cast(values, tf.int64)
        rows = self.items.rows(values) + 1
        if self.mask_value is None:
            return rows
        return tf.where(tf.equal(values, self.mask_value), tf.zeros_like(rows), rows + 1)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        own = {"vocabulary": self.vocabulary, "mask_value": self.mask_value}
        return {**super().get_config(), **own}


def _embedding(spec: FeatureSpec, rows: tf.Tensor, embedding_dim: int) -> tf.Tensor:
    # Two more rows than words: out of vocabulary, and the padding of lists.
    size = len(spec.vocabulary) + 2
    return tf.keras.layers.Embedding(size, embedding_dim, name=f"{spec.name}_embedding")(rows)


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class MaskedMean(tf.keras.layers.Layer):
    """Mean of the vectors of a padded list; the zero vector for an empty one.

    Example:
        >>> vectors, rows = tf.constant([[[1.0], [3.0], [9.0]]]), tf.constant([[4, 5, 0]])
        >>> MaskedMean()([vectors, rows]).numpy().tolist()
        [[2.0]]
    """

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        """Takes vectors [B, L, D] and row numbers [B, L], 0 for padding; returns [B, D]."""
        vectors, rows = inputs
        present = tf.cast(rows != 0, vectors.dtype)[:, :, None]
        count = tf.maximum(tf.reduce_sum(present, axis=1), 1.0)
        return tf.reduce_sum(vectors * present, axis=1) / count


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class IdDropout(tf.keras.layers.Layer):
    """Reads a share of the ids as out of vocabulary, in training only.

    Without it the row of unknown ids is never trained by positives: with in-batch negatives it
    keeps its random start, with uniform ones it learns that what is unknown is never chosen.

    Args:
        rate: the share, in [0, 1).
        seed: of the draws, which differ by call.

    Raises:
        InputError: if the rate is outside [0, 1).

    Example:
        >>> rows = tf.ones([1000], tf.int64)
        >>> dropped = IdDropout(0.25)(rows, training=True).numpy()
        >>> 0.2 < float((dropped == 0).mean()) < 0.3
        True
        >>> bool((IdDropout(0.25)(rows).numpy() == 1).all())
        True

    Source: Volkovs et al., NeurIPS 2017 (DropoutNet), on ids instead of whole vectors.
    """

    def __init__(self, rate: float, *, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise bad_input("id_dropout", "a number in [0, 1)", rate)
        self.rate, self.seed = rate, seed
        zero = tf.keras.initializers.Zeros()
        self.calls = self.add_weight("calls", [], tf.int64, zero, trainable=False)
        self._part: tuple[tf.Tensor, tf.Tensor] | None = None

    def count_call(self) -> tf.Tensor:
        """Counts a call that is made in parts, inside `in_part`; returns its number."""
        call = self.calls + 1
        self.calls.assign(call)
        return call

    @contextmanager
    def in_part(self, call: tf.Tensor, part: tf.Tensor) -> Iterator[None]:
        """Inside, the layer draws for one part of a call, as often as asked, and counts nothing.

        Args:
            call: scalar int64, what `count_call` returned.
            part: scalar int32, the number of the part; each draws for itself.

        Example:
            >>> layer, rows = IdDropout(0.5), tf.ones([100], tf.int64)
            >>> call, draws = layer.count_call(), []
            >>> for part in (0, 1, 0):
            ...     with layer.in_part(call, tf.constant(part)):
            ...         draws.append(layer(rows, training=True).numpy().tolist())
            >>> draws[0] == draws[2], draws[0] == draws[1], int(layer.calls)
            (True, False, 1)
        """
        before, self._part = self._part, (call, part)
        try:
            yield
        finally:
            self._part = before

    def call(self, rows: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Takes and returns row numbers [m] int64; row 0 is out of vocabulary."""
        if not training:
            return rows
        # Rows of different parts and replicas are different rows of one batch.
        call, part = self._part or (self.count_call(), tf.constant(0))
        seed = tf.stack([tf.constant(self.seed, tf.int64), call])
        for number in (part, replica_number()):
            seed = tf.random.experimental.stateless_fold_in(seed, number, alg="philox")
        drop = tf.random.stateless_uniform(tf.shape(rows), seed, alg="philox") < self.rate
        return tf.where(drop, tf.zeros_like(rows), rows)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
