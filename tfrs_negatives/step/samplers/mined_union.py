"""Mined negatives that all rows share, beside the positives of the batch."""

from __future__ import annotations

from typing import Any, NoReturn

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.core.replicas import all_rows, encode_together, row_draws
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.data.catalogue import ItemCatalogue, first_of_each
from tfrs_negatives.step.records import Batch, Candidates, Sampler
from tfrs_negatives.step.samplers.negative_table import NegativeTable
from tfrs_negatives.step.samplers.of_rows import rows_of_known


@part("sampler")
class MinedUnion(Sampler, tf.keras.layers.Layer):
    """The positives of the batch and one mined item of each row, every item once, for all rows.

        candidates = {positive of i} with {uniform pick from the list of i},    i of all replicas

    An item mined for one row is a negative of all of them, so B rows cost B more encoded items and
    give each row up to 2 B - 1 negatives. Nobody knows how often a mining proposes an item, so
    there is nothing to correct with: `correct=None`. An item that is the positive of several rows,
    or picked by several, is one candidate; the copies take their places as empty slots. While the
    table is empty these are the in-batch negatives, each item once.

    A mined item may be a positive of *another* row: mask it with `KnownPositives`, or at least the
    rows' own positives with `AccidentalHits`.

    Args:
        table: the mined items of each query; `MineHardNegatives` fills it.
        items: the catalogue with their features.

    Raises:
        InputError: if the task corrects, or a batch does not have the queries of the table.

    Example:
        >>> import numpy as np
        >>> from tfrs_negatives.data import Interactions
        >>> log = Interactions({"user": np.array([1, 2])}, np.array([7, 9]), query_key="user")
        >>> MinedUnion(NegativeTable(log, num=100), ItemCatalogue([7, 8, 9])).table.num
        100

    Relations: with an empty table and no item twice in a batch this is `InBatch`; `Explicit` gives
        the items of a table to their own row only, all of them at every step.

    Source: Gupta et al., ICLR 2024 (DEXML), hard negatives. We differ: a row is a (query, item)
        event, where a step of theirs has each query once, with one of its positives.
    """

    def __init__(self, table: NegativeTable, items: ItemCatalogue, **kwargs: Any) -> None:
        super().__init__(**{"name": "mined_union", "dtype": "float32", **kwargs})
        self.table, self.items = table, items

    def sample(self, batch: Batch) -> Candidates:
        """Returns candidates [n + B], of the n items and B rows of all replicas."""
        picks = all_rows(self._pick(batch))
        rows = rows_of_known(self.items, picks, self.table.name)
        vectors = encode_together(
            tf.maximum(rows, 0), lambda share: batch.encode_items(self.items.gather(share))
        )
        ids = tf.concat([batch.item_ids, picks], axis=0)
        # An item without an identity equals no other.
        valid = first_of_each(ids) | tf.equal(ids, EMPTY_ID)
        valid &= tf.concat([tf.ones_like(batch.own_rows, tf.bool), rows >= 0], axis=0)
        return Candidates(
            ids,
            tf.concat([batch.items, tf.cast(vectors, batch.items.dtype)], axis=0),
            valid,
            own_rows=tf.concat([batch.own_rows, tf.fill(tf.shape(rows), -1)], axis=0),
        )

    def log_count(self, ids: tf.Tensor, batch: Batch) -> NoReturn:
        """Refuses: how often a mining proposes an item is not known."""
        raise bad_input("correct", f"None beside {self.name}, whose counts nobody knows", "another")

    def _pick(self, batch: Batch) -> tf.Tensor:
        """Returns one mined item of each row of this replica, [B] int64, `EMPTY_ID` without any."""
        lists = self.table.ids_of_rows(batch.features, batch.queries.shape[0])
        draws = row_draws(tf.shape(lists)[0], self.table.num, batch.seed)
        place = tf.argmax(
            tf.where(tf.equal(lists, EMPTY_ID), tf.constant(-1.0, draws.dtype), draws), axis=1
        )
        return tf.gather(lists, place, batch_dims=1)
