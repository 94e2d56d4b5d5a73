"""Towers whose activations of a whole batch do not fit: encode in chunks, and encode again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any, NamedTuple

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import Features
from tfrs_negatives.towers.layers import IdDropout

# Where a random layer of Keras keeps how much of it is random.
RATES = ("rate", "stddev", "dropout", "recurrent_dropout")


def encode_in_chunks(tower: tf.keras.Model, features: Features, chunk: int) -> tf.Tensor:
    """Encodes a batch for training, and keeps only the embeddings for the gradient.

    A loss needs all embeddings e_1 .. e_m at once, but a tower no more than one chunk of rows::

        d loss / d v = sum over chunks c of sum over i in c of (d loss / d e_i) (d e_i / d v)

    The forward pass keeps no activations. The backward pass has d loss / d e, encodes each chunk
    again under a tape, and adds up: the gradient of the whole batch, up to rounding, for a second
    forward pass. Embedding tables keep `tf.IndexedSlices`. No gradient flows to the features or to
    frozen layers. At most one chunk of each call is in memory at any time.

    Args:
        tower: features [m, ...] -> embeddings [m, ...], each row from its own row; see
            `check_repeatable`. It is called with `training=True`.
        features: name -> [m, ...], also m = 0.
        chunk: how many rows may be in the tower at once. They are dealt out evenly: 513 rows by
            512 are 257 and 256.

    Returns:
        Embeddings [m, ...] for any tape and optimizer, as `tower(features, training=True)` gives
        them. An `IdDropout` draws anew in each chunk, and the same in the second pass.

    Raises:
        InputError: if the chunk is below 1, or there is no feature to count the rows of.

    Example:
        >>> tower = tf.keras.Sequential([tf.keras.layers.Dense(1, kernel_initializer="ones")])
        >>> with tf.GradientTape() as tape:
        ...     embeddings = encode_in_chunks(tower, tf.constant([[1.0], [2.0], [4.0]]), 2)
        ...     loss = tf.reduce_sum(embeddings**2)
        >>> kernel, bias = tape.gradient(loss, tower.trainable_variables)
        >>> float(kernel[0, 0]), float(bias[0])
        (42.0, 14.0)

    Source: Gao et al., RepL4NLP 2021, section 3.2, as the gradient of one function.
    """
    chunks = _Chunks.of(features, chunk)
    dropouts = [x for x in (tower, *tower.submodules) if isinstance(x, IdDropout)]
    calls = [(layer, layer.count_call()) for layer in dropouts]

    def encode(number: tf.Tensor) -> tf.Tensor:
        with ExitStack() as stack:
            for layer, call in calls:
                stack.enter_context(layer.in_part(call, number))
            return tower(chunks.take(features, number), training=True)

    @tf.custom_gradient
    def encode_all() -> tuple[tf.Tensor, Callable[..., Any]]:
        # A graph holds no activation that no gradient asks for; outside, a tape would hold them.
        with tf.init_scope() if tf.executing_eagerly() else nullcontext():
            embeddings = _concatenate(encode, chunks)

        def gradient(upstream: tf.Tensor, variables: Any = ()) -> tuple[list[Any], list[Any]]:
            # Frozen layers are watched as the others are, but nobody wants their gradients.
            wanted = tower.trainable_variables
            # The gradient of a gather is made dense once, not in each chunk.
            of_chunk = _chunk_gradient(encode, chunks, tf.convert_to_tensor(upstream), wanted)
            # A mirrored variable and its copy on this replica are known by one handle.
            found = dict(
                zip((id(v.handle) for v in wanted), _sum(of_chunk, chunks.count), strict=True)
            )
            return [], [found.get(id(v.handle)) for v in variables]

        return embeddings, gradient

    return encode_all()


class _Chunks(NamedTuple):
    """How m rows are dealt out: `count` chunks of `size` rows, the last filled up with row m - 1.

    Equal sizes keep every shape of the loops static where m is, as XLA needs.
    """

    total: Any
    count: Any
    size: Any

    @classmethod
    def of(cls, features: Features, chunk: int) -> _Chunks:
        if chunk < 1:
            raise bad_input("encode_chunk", "at least 1", chunk)
        columns = tf.nest.flatten(features)
        if not columns:
            raise bad_input("features", "at least one column", "none")
        total = columns[0].shape[0]
        if total is None:
            total = tf.shape(columns[0])[0]
            count = tf.maximum(-(-total // chunk), 1)
        else:
            count = max(-(-total // chunk), 1)
        return cls(total, count, -(-total // count))

    def take(self, columns: Any, number: tf.Tensor) -> Any:
        """Returns the rows [size, ...] of one chunk of each column."""
        rows = tf.minimum(self._rows(number), self.total - 1)
        return tf.nest.map_structure(lambda column: tf.gather(column, rows), columns)

    def take_gradient(self, gradient: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        """Returns [size, ...], 0 for the rows that only fill up."""
        real = tf.reshape(self._rows(number) < self.total, [-1] + [1] * (gradient.shape.rank - 1))
        rows = self.take(gradient, number)
        return tf.where(real, rows, tf.zeros_like(rows))

    def _rows(self, number: tf.Tensor) -> tf.Tensor:
        return number * self.size + tf.range(self.size)


def _loop(step: Callable[..., Any], state: Any, count: Any) -> Any:
    """Runs chunks 1 .. count - 1 one after the other; chunk 0 has told what the state is."""
    return tf.while_loop(
        lambda number, _: number < count,
        lambda number, state: (number + 1, step(number, state)),
        (tf.constant(1), state),
        parallel_iterations=1,
    )[1]


def _concatenate(encode: Callable[[tf.Tensor], tf.Tensor], chunks: _Chunks) -> tf.Tensor:
    first = encode(tf.constant(0))
    parts = _loop(
        lambda number, parts: parts.write(number, encode(number)),
        _array(first, chunks.count),
        chunks.count,
    )
    return tf.ensure_shape(
        parts.concat()[: chunks.total],
        [None if tf.is_tensor(chunks.total) else chunks.total, *first.shape[1:]],
    )


def _chunk_gradient(
    encode: Callable[[tf.Tensor], tf.Tensor],
    chunks: _Chunks,
    upstream: tf.Tensor,
    variables: list[tf.Variable],
) -> Callable[[tf.Tensor], list[Any]]:
    def of_chunk(number: tf.Tensor) -> list[Any]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            embeddings = encode(number)
        rows = chunks.take_gradient(upstream, number)
        return tape.gradient(embeddings, variables, output_gradients=rows)

    return of_chunk


def _sum(of_chunk: Callable[[tf.Tensor], list[Any]], count: Any) -> list[Any]:
    """Adds up gradients over chunks: tensors by adding, slices side by side, None as None."""
    first = of_chunk(tf.constant(0))

    def add(number: tf.Tensor, totals: list[Any]) -> list[Any]:
        return [_add(*pair, number) for pair in zip(totals, of_chunk(number), strict=True)]

    totals = _loop(add, [_start(gradient, count) for gradient in first], count)
    return [_finish(*pair) for pair in zip(totals, first, strict=True)]


def _start(gradient: Any, count: Any) -> Any:
    if isinstance(gradient, tf.IndexedSlices):
        return _array(gradient.values, count), _array(gradient.indices, count)
    return () if gradient is None else gradient


def _add(total: Any, gradient: Any, number: tf.Tensor) -> Any:
    if isinstance(gradient, tf.IndexedSlices):
        values, indices = total
        return values.write(number, gradient.values), indices.write(number, gradient.indices)
    return () if gradient is None else total + gradient


def _finish(total: Any, first: Any) -> Any:
    if isinstance(first, tf.IndexedSlices):
        values, indices = total
        return tf.IndexedSlices(values.concat(), indices.concat(), first.dense_shape)
    return None if first is None else total


def _array(first: tf.Tensor, count: Any) -> tf.TensorArray:
    # Chunks of ragged columns have different numbers of values, which an eager call sees. In
    # a graph these are unknown, and all that is known must stay so for XLA.
    shape = [None, *first.shape[1:]] if tf.executing_eagerly() else first.shape
    array = tf.TensorArray(first.dtype, count, element_shape=shape, infer_shape=False)
    return array.write(0, first)


def check_repeatable(tower: tf.keras.Model) -> None:
    """Refuses a tower that `encode_in_chunks` cannot encode twice, or not in chunks.

    Refused are random layers of Keras with a rate above 0, which draw anew in every call;
    `BatchNormalization` that is not frozen, whose statistics would be of the chunk; layers that
    carry a state from call to call; and losses made of activations, which would count the last
    chunk only. Layers of your own are trusted: each row of their output must follow from its row
    of the input, and from nothing that changes between two calls.

    Args:
        tower: the tower, with all that is inside it.

    Raises:
        InputError: for the first layer of that kind, by name.

    Example:
        >>> tower = tf.keras.Sequential([tf.keras.layers.Dropout(0.1, name="drop")])
        >>> check_repeatable(tower)
        Traceback (most recent call last):
        ...
        tfrs_negatives.InputError: `encode_chunk`: expected layers that can be called twice
        with one result. Received: drop (Dropout), which draws anew in every call
    """
    for layer in (tower, *tower.submodules):
        if isinstance(layer, tf.keras.layers.Layer) and (reason := _what_forbids(layer)):
            rule = "layers that can be called twice with one result"
            raise bad_input(
                "encode_chunk", rule, f"{layer.name} ({type(layer).__name__}), {reason}"
            )


def _what_forbids(layer: tf.keras.layers.Layer) -> str | None:
    layers = tf.keras.layers
    if isinstance(layer, tf.keras.__internal__.layers.BaseRandomLayer):
        rates = [getattr(layer, name) for name in RATES if hasattr(layer, name)]
        if not rates or any(rates):
            return "which draws anew in every call"
    normalizes = isinstance(
        layer, (layers.BatchNormalization, layers.experimental.SyncBatchNormalization)
    )
    if normalizes and layer.trainable:
        return "whose statistics are of the chunk"
    if isinstance(layer, layers.SpectralNormalization) or (
        isinstance(layer, layers.RNN) and layer.stateful
    ):
        return "which carries a state from call to call"
    # `Model.add_loss` of a symbolic tensor becomes a layer that has no public name.
    if getattr(layer, "activity_regularizer", None) or type(layer).__name__ == "AddLoss":
        return "which makes a loss of its activations"
    return None
