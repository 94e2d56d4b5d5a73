"""Tensors to embeddings [B, D]: the towers."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfrs_negatives.encode.features import FeatureSpec, encode_feature
from tfrs_negatives.types import bad_input


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

    Source: the sizes are those of the thesis behind cross-batch NGAME (ALG 15.5).
    """
    if not features:
        raise bad_input("features", "at least one feature", "none")
    for size in (embedding_dim, *hidden, 1 if output_dim is None else output_dim):
        if size < 1:
            raise bad_input("tower sizes", "at least 1", size)
    encoded = [encode_feature(spec, embedding_dim, tower=name) for spec in features]
    vectors = [vector for _, vector in encoded]
    vector = vectors[0] if len(vectors) == 1 else tf.keras.layers.Concatenate()(vectors)
    for width in hidden:
        vector = tf.keras.layers.Dense(width, activation="relu")(vector)
    if output_dim is not None:
        vector = tf.keras.layers.Dense(output_dim)(vector)
    columns = {spec.name: column for spec, (column, _) in zip(features, encoded, strict=True)}
    return tf.keras.Model(columns, vector, name=name)
