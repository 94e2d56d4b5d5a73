"""Negatives that the data names for each row."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfrs_negatives.encode.catalogue import ItemCatalogue, to_keys
from tfrs_negatives.types import EMPTY_ID, Candidates, Part, StepContext, bad_input


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class Explicit(Part):
    """The items of a batch column, negatives of their own row only.

    For what a later stage knows: items that retrieval proposed and ranking rejected, impressions
    without a click, negatives mined offline. They are chosen, not drawn, so they have no expected
    count: each counts as one item, exp(score), whatever the correction of the shared columns.
    `Weighted` makes them count more or less, `losses.EasyHardMixture` gives them a fixed share.

    Args:
        column: the batch column, [B, n] ids padded with -1, "" or the reserved value, or a
            `tf.RaggedTensor`.
        items: the catalogue with their features.

    Raises:
        InputError: if a batch does not have the column, or it has another shape or other ids than
            the catalogue.

    Example:
        >>> Explicit("rejected", ItemCatalogue(["a", "b"])).column
        'rejected'

    Source: ALG 14.1, ranking-stage rejects.
    """

    name = "explicit"
    needs_frequency = False

    def __init__(self, column: str, items: ItemCatalogue) -> None:
        self.column, self.items = column, items

    def propose(self, context: StepContext) -> Candidates:
        """Returns columns [B, n]: each row its own."""
        ids, padding = self._ids(context)
        rows = self.items.rows(ids)
        known = tf.debugging.assert_equal(
            padding | (rows >= 0), True, f"`{self.column}`: expected only items of the catalogue."
        )
        with tf.control_dependencies([known] if known is not None else []):
            features = self.items.gather(tf.maximum(tf.reshape(rows, [-1]), 0))
        embeddings = context.encode_items(features)
        shape = tf.concat([tf.shape(rows), tf.shape(embeddings)[1:]], axis=0)
        embeddings = tf.reshape(embeddings, shape)
        filled = rows >= 0
        keys = tf.where(filled, to_keys(ids), EMPTY_ID)
        return Candidates(keys, embeddings, filled)

    def log_expected_count(self, ids: tf.Tensor, context: StepContext) -> tf.Tensor:
        """Returns 0 for every column: each is one item."""
        return tf.zeros(tf.shape(ids))

    def _ids(self, context: StepContext) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the ids [B, n] and which are padding."""
        ids = context.features.get(self.column)
        if ids is None:
            raise bad_input("batch", f"a column {self.column!r}", sorted(context.features))
        if isinstance(ids, tf.RaggedTensor):
            ids = ids.to_tensor(default_value="" if ids.dtype == tf.string else EMPTY_ID)
        ids = tf.convert_to_tensor(ids)
        num_rows = context.query_embeddings.shape[0]
        if not ids.shape.is_compatible_with([num_rows, None]):
            rule = f"a column {self.column!r} of shape [{num_rows}, n], n ids per row"
            raise bad_input("batch", rule, ids.shape)
        if ids.dtype == tf.string:
            return ids, ids == ""
        ids = tf.cast(ids, tf.int64)
        return ids, (ids == -1) | (ids == EMPTY_ID)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        items = tf.keras.utils.serialize_keras_object(self.items)
        return {"column": self.column, "items": items}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Explicit:
        """Builds the source that `get_config` described."""
        return cls(**tf.keras.utils.deserialize_keras_object(config))
