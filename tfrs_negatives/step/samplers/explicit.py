"""Negatives that are known for each row."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfrs_negatives.core.part import part
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.id_lists import keys_of_rows
from tfrs_negatives.step.records import Batch, Candidates, Sampler
from tfrs_negatives.step.samplers.negative_table import NegativeTable
from tfrs_negatives.step.samplers.of_rows import candidates_of_rows


@part("sampler")
class Explicit(Sampler, tf.keras.layers.Layer):
    """The items of a batch column or of a table, negatives of their own row only.

    For what a later stage knows: items that retrieval proposed and ranking rejected, impressions
    without a click, negatives mined offline. They are chosen, not drawn, so they have no expected
    count: each counts as one item, exp(score), whatever the correction of the shared candidates.
    `Weighted` makes them count more or less, `losses.EasyHardMixture` gives them a fixed share.

    Args:
        column: the batch column, [B, n] ids filled up with -1, "" or `EMPTY_ID`, or a
            `tf.RaggedTensor`; or a `NegativeTable`, whose lists are found by the query of the row.
        items: the catalogue with their features.

    Raises:
        InputError: if a batch does not have the column, or it has another shape or other ids than
            the catalogue.

    Example:
        >>> Explicit("rejected", ItemCatalogue(["a", "b"])).column
        'rejected'

    Source: Huang et al., KDD 2020 (embedding-based retrieval in Facebook search), hard negatives.
    """

    def __init__(self, column: str | NegativeTable, items: ItemCatalogue, **kwargs: Any) -> None:
        super().__init__(**{"name": "explicit", "dtype": "float32", **kwargs})
        self.column, self.items = column, items

    def sample(self, batch: Batch) -> Candidates:
        """Returns candidates [B, n]: each row its own."""
        keys, label = self._keys(batch)
        return candidates_of_rows(keys, self.items, batch, label=label)

    def _keys(self, batch: Batch) -> tuple[tf.Tensor, str]:
        num_rows = batch.queries.shape[0]
        if isinstance(self.column, NegativeTable):
            return self.column.ids_of_rows(batch.features, num_rows), self.column.name
        kind = self.items.id_kind
        return keys_of_rows(batch.features, self.column, num_rows, kind=kind), self.column
