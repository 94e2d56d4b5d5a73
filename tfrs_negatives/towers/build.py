"""Tensors to embeddings [B, D]: the towers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.towers.features import FeatureSpec, encode_feature


def build_tower(
    features: Sequence[FeatureSpec],
    *,
    embedding_dim: int = 32,
    hidden: Sequence[int] = (512,),
    output_dim: int | None = 128,
    name: str = "tower",
) -> tf.keras.Model:
    """Builds a tower: an embedding per feature, concatenation, ReLU layers, a linear layer.

    Args:
        features: what the tower reads, each from the column of its name.
        embedding_dim: width of each feature's embedding.
        hidden: widths of the ReLU layers.
        output_dim: width of the last, linear layer, D; None ends with the layer before it.
        name: name of the Keras model.

    Returns:
        A functional model from a dict of columns [B, ...] to embeddings [B, D].

    Raises:
        InputError: if there is no feature, or a size is below 1.

    Example:
        >>> tower = build_tower([FeatureSpec("city", "categorical", "string", None, ("a", "b"))])
        >>> tower({"city": tf.constant(["a", "elsewhere"])}).shape
        TensorShape([2, 128])

    Source: the sizes are those of the thesis behind cross-batch NGAME.
    """
    if not features:
        raise bad_input("features", "at least one feature", "none")
    for size in (embedding_dim, *hidden, 1 if output_dim is None else output_dim):
        if size < 1:
            raise bad_input("tower sizes", "at least 1", size)
    encoded = [encode_feature(spec, embedding_dim, tower=name) for spec in features]
    vectors = [vector for _, vector in encoded]
    # Named after the tower: a feature may be called `dense`.
    join = tf.keras.layers.Concatenate(name=f"{name}_features")
    vector = vectors[0] if len(vectors) == 1 else join(vectors)
    for number, width in enumerate(hidden):
        relu = tf.keras.layers.Dense(width, activation="relu", name=f"{name}_hidden_{number}")
        vector = relu(vector)
    if output_dim is not None:
        vector = tf.keras.layers.Dense(output_dim, name=f"{name}_output")(vector)
    columns = {spec.name: column for spec, (column, _) in zip(features, encoded, strict=True)}
    return tf.keras.Model(columns, vector, name=name)


def id_vectors(features: Sequence[FeatureSpec], options: Any) -> tf.keras.Model:
    """Builds a tower of one vector for each value of its only feature, without any layer.

    For `model.item_tower: "tfrs_negatives.towers.build:id_vectors"` of a configuration.

    Args:
        features: the id; other features have `encoding: left_out`.
        options: the section `model`; the vectors are as wide as the output of the other tower.

    Returns:
        A functional model from the column to its vectors [B, D].

    Raises:
        InputError: if there are more features.

    Example:
        >>> from types import SimpleNamespace
        >>> options = SimpleNamespace(embedding_dim=8, hidden=[1024], output_dim=128)
        >>> tower = id_vectors([FeatureSpec("item", "categorical", "int64", None, (7, 9))], options)
        >>> tower({"item": tf.constant([9])}).shape
        TensorShape([1, 128])
    """
    if len(features) != 1:
        rule = "the id alone: the other columns have `encoding: left_out`"
        raise bad_input("features", rule, [spec.name for spec in features])
    widths = [options.embedding_dim, *options.hidden, options.output_dim]
    width = next(width for width in reversed(widths) if width is not None)
    return build_tower(features, embedding_dim=width, hidden=(), output_dim=None, name="item_tower")


def columns_read(function: Callable[..., Any], specs: Mapping[str, Any]) -> list[str]:
    """Finds out which columns a function of a dict of columns reads, from its graph.

    Args:
        function: name -> [m, ...] to a tensor.
        specs: name -> `tf.TypeSpec` of every column there is.

    Returns:
        The names of the columns that its result depends on.

    Example:
        >>> specs = {name: tf.TensorSpec([None], tf.float64) for name in ("city", "age")}
        >>> columns_read(lambda columns: columns["age"] + 1, specs)
        ['age']
    """
    traced = tf.function(function, autograph=False).get_concrete_function(dict(specs))
    needed, found = list(traced.outputs), set()
    while needed:
        operation = needed.pop().op
        if operation not in found:
            found.add(operation)
            needed += operation.inputs
    # A graph takes the entries of a dict in the order of their names, composites in parts.
    tensors = iter(traced.inputs)
    parts = {n: [next(tensors) for _ in _parts_of(specs[n])] for n in sorted(specs)}
    return [name for name in specs if any(tensor.op in found for tensor in parts[name])]


def _parts_of(spec: Any) -> list[Any]:
    parts: list[Any] = tf.nest.flatten(spec, expand_composites=True)
    return parts
