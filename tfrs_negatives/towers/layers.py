"""The layers between a raw column and its embedding: look-ups, missing values, dropout of ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.replicas import replica_number
from tfrs_negatives.data.catalogue import KeyTable
from tfrs_negatives.data.columns import MISSING_INTEGER

# The name of the unknown in a lookup of strings, which no column holds: numpy strips it.
NO_TEXT = "\0"
# The name of "no value" there, which no column holds either: "" would be taken for the unknown.
MISSING_TEXT = "\0missing"


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
        self.table = KeyTable(np.array(self.vocabulary, np.int64))

    def call(self, values: tf.Tensor) -> tf.Tensor:
        """Takes integers [...]; returns rows [...] int64."""
        values = tf.cast(values, tf.int64)
        rows = self.table.rows(values, unknown=-1) + 1
        if self.mask_value is None:
            return rows
        return tf.where(tf.equal(values, self.mask_value), tf.zeros_like(rows), rows + 1)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        own = {"vocabulary": self.vocabulary, "mask_value": self.mask_value}
        return {**super().get_config(), **own}


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class MayMiss(tf.keras.layers.Layer):
    """Marks a feature of which a query or an item may have no value.

    An index reads it off the tower: there a null is accepted for this feature, and for no other. A
    text that is empty gets the name under which a lookup has it, a missing integer that is read as
    a number becomes NaN; nothing else is changed.

    Args:
        feature: name of the input.

    Example:
        >>> MayMiss("age")(tf.constant([1.5])).numpy().tolist()
        [1.5]
    """

    def __init__(self, feature: str, **kwargs: Any) -> None:
        super().__init__(**{"dtype": None, **kwargs, "autocast": False})
        self.feature = feature

    def call(self, values: tf.Tensor) -> tf.Tensor:
        """Takes and returns values [B, ...]."""
        if values.dtype == tf.string and values.shape.rank == 1:
            return tf.where(tf.equal(values, ""), MISSING_TEXT, values)
        if values.dtype.is_floating:
            # A missing integer that is read as a number.
            return tf.where(tf.equal(values, float(MISSING_INTEGER)), np.nan, values)
        return tf.identity(values)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "feature": self.feature}


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class MeanAndIndicator(tf.keras.layers.Layer):
    """Numbers whose mean is 0, where a missing one becomes the mean, and whether it was missing.

    Example:
        >>> MeanAndIndicator()(tf.constant([[0.5], [float("nan")]])).numpy().tolist()
        [[0.5, 0.0], [0.0, 1.0]]
    """

    def call(self, values: tf.Tensor) -> tf.Tensor:
        """Takes [B, W], a row all NaN where it is missing; returns [B, W + 1]."""
        missing = tf.math.is_nan(values)
        filled = tf.where(missing, tf.zeros_like(values), values)
        return tf.concat([filled, tf.cast(missing[:, :1], values.dtype)], axis=1)


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class Binned(tf.keras.layers.Layer):
    """Numbers to rows: 0 for a missing one, then a row for each bucket between the boundaries.

        row = 1 + how many boundaries are not above the number

    Args:
        boundaries: ascending; a number that equals one is in the bucket above it.

    Example:
        >>> Binned([2.0, 5.0])(tf.constant([1.0, 2.0, 9.0, float("nan")])).numpy().tolist()
        [1, 2, 3, 0]
    """

    def __init__(self, boundaries: Sequence[float], **kwargs: Any) -> None:
        # Half precision would move numbers over a boundary.
        super().__init__(**{"dtype": None, **kwargs, "autocast": False})
        self.boundaries = [float(boundary) for boundary in boundaries]

    def call(self, values: tf.Tensor) -> tf.Tensor:
        """Takes [B] float32; returns rows [B] int64."""
        reached = values[:, None] >= tf.constant(self.boundaries, values.dtype)
        rows = 1 + tf.reduce_sum(tf.cast(reached, tf.int64), axis=1)
        return tf.where(tf.math.is_nan(values), tf.zeros_like(rows), rows)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "boundaries": self.boundaries}


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class OrNothing(tf.keras.layers.Layer):
    """Flags, where a row without values (NaN, or -1) is one of which none is set.

    Example:
        >>> OrNothing()(tf.constant([[0.0, 1.0], [float("nan")] * 2, [-1.0, -1.0]])).numpy()
        array([[0., 1.],
               [0., 0.],
               [0., 0.]], dtype=float32)
    """

    def call(self, flags: tf.Tensor) -> tf.Tensor:
        """Takes and returns [B, W]."""
        return tf.where(flags > 0, flags, tf.zeros_like(flags))


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
