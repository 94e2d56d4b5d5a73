"""What the stages after training need of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import tensorflow as tf

from tfrs_negatives.core.types import Features, Similarity
from tfrs_negatives.data.catalogue import ItemCatalogue


class RetrievalModel(Protocol):
    """What evaluation and the index need of a model: vectors whose inner product is the score.

    Both towers answer in the *retrieval space*, where a plain inner product ranks as the score of
    the model does: normalised where the similarity is cosine, and one dimension wider where it is
    euclidean or there is an item bias.
    """

    items: ItemCatalogue

    @property
    def similarity(self) -> Similarity:
        """The similarity the model was trained with."""

    @property
    def query_signature(self) -> Mapping[str, tf.TypeSpec]:
        """Name -> `tf.TensorSpec` ([None, ...]) of every feature that the query tower reads.

        Of a ragged feature it is a `tf.RaggedTensorSpec`.
        """

    def query_vectors(self, features: Features) -> tf.Tensor:
        """Returns [B, D] float32 from a dict of query features, each [B, ...]."""

    def item_vectors(self, features: Features) -> tf.Tensor:
        """Returns [m, D] float32 from item features as `ItemCatalogue.gather` gives them."""
