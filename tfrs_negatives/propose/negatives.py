"""The sources of negatives: who proposes candidates, and how often it does.

A source answers two questions. `propose` gives this step's columns; `log_expected_count(ids)` says
how many of its columns hold each id on average. The second is asked for the ids of *all* columns,
because a column is corrected with the count of the mixture, whichever source it came from.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tfrs_negatives.encode.catalogue import ItemCatalogue, to_keys
from tfrs_negatives.types import Candidates, Part, StepContext, bad_input


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class InBatch(Part):
    """The positives of the other rows of the batch.

    The expected count of an item is n q, for n columns drawn from the stream of positives with
    probability q each. Extra candidate rows that the caller passes to the task are columns of the
    same stream.

    Example:
        >>> InBatch().name
        'in_batch'

    Source: Yi et al., RecSys 2019, section 3.
    """

    name = "in_batch"
    needs_frequency = True

    def propose(self, context: StepContext) -> Candidates:
        """Returns the items of the batch [n, D]; the first B are the positives of their rows."""
        num_items = tf.shape(context.item_ids)[0]
        num_rows = tf.shape(context.query_embeddings)[0]
        columns = tf.range(num_items)
        own_rows = tf.where(columns < num_rows, columns, -1)
        filled = tf.ones([num_items], tf.bool)
        return Candidates(context.item_ids, context.item_embeddings, filled, own_rows)

    def log_expected_count(self, ids: tf.Tensor, context: StepContext) -> tf.Tensor:
        """Returns log(n q) [m] float32."""
        num_items = tf.cast(tf.shape(context.item_ids)[0], tf.float32)
        return tf.math.log(num_items) + context.log_probability(ids)


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class Uniform(Part):
    """Items drawn uniformly from the catalogue, with replacement, in the graph.

    Their features run through the item tower with gradient, so items without any event learn too.
    The expected count of every item of the catalogue is n / N; an id outside it is never proposed.

    Args:
        items: the catalogue to draw from.
        num_negatives: how many columns, n.

    Raises:
        InputError: if `num_negatives` is below 1.

    Example:
        >>> Uniform(ItemCatalogue([1, 2, 3, 4]), 2).num_negatives
        2

    Source: Yang et al., WWW 2020, section 3 (the index data of mixed negative sampling).
    """

    name = "uniform"
    needs_frequency = False

    def __init__(self, items: ItemCatalogue, num_negatives: int) -> None:
        if num_negatives < 1:
            raise bad_input("num_negatives", "at least 1", num_negatives)
        self.items, self.num_negatives = items, num_negatives

    def propose(self, context: StepContext) -> Candidates:
        """Returns `num_negatives` columns, other items at every step."""
        # One algorithm by name: XLA and other devices would each choose their own.
        rows = tf.random.stateless_uniform(
            [self.num_negatives], context.seed, 0, len(self.items), tf.int64, alg="philox"
        )
        return _encode(self.items.keys_at(rows), self.items.gather(rows), context)

    def log_expected_count(self, ids: tf.Tensor, context: StepContext) -> tf.Tensor:
        """Returns log(n / N) [m] float32, -inf outside the catalogue."""
        return _uniform_log_count(ids, self.items, math.log(self.num_negatives))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        items = tf.keras.utils.serialize_keras_object(self.items)
        return {"items": items, "num_negatives": self.num_negatives}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Uniform:
        """Builds the source that `get_config` described."""
        return cls(**tf.keras.utils.deserialize_keras_object(config))


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class IndexStream(Part):
    """The same uniform items from a second `tf.data` stream, as the paper feeds them.

    Choose it over `Uniform` where item features are too large to sit in the graph. The batch holds
    a dict of item features [n, ...] under `key`; `attach` puts it there.

    Args:
        items: the catalogue that the stream shuffles.
        num_negatives: how many items the stream adds to each batch, n.
        key: the batch column that holds their features.

    Raises:
        InputError: if `num_negatives` is below 1, or a batch does not have the column.

    Example:
        >>> source = IndexStream(ItemCatalogue([1, 2, 3]), 2)
        >>> train = tf.data.Dataset.from_tensor_slices({"user_id": [5, 6]}).batch(1)
        >>> next(iter(source.attach(train)))["index_items"]["item_id"].shape
        TensorShape([2])

    Source: Yang et al., WWW 2020, section 3.2.
    """

    name = "index_stream"
    needs_frequency = False

    def __init__(
        self, items: ItemCatalogue, num_negatives: int, *, key: str = "index_items"
    ) -> None:
        if num_negatives < 1:
            raise bad_input("num_negatives", "at least 1", num_negatives)
        self.items, self.num_negatives, self.key = items, num_negatives, key

    def attach(self, dataset: tf.data.Dataset, *, seed: int = 0) -> tf.data.Dataset:
        """Returns the data set with `num_negatives` shuffled items beside each batch."""
        index = tf.data.Dataset.range(len(self.items)).shuffle(len(self.items), seed=seed)
        index = index.repeat().batch(self.num_negatives, drop_remainder=True)
        joined = tf.data.Dataset.zip((dataset, index.map(self.items.gather)))
        return joined.map(lambda batch, items: {**batch, self.key: items})

    def propose(self, context: StepContext) -> Candidates:
        """Returns the columns that came with the batch."""
        if self.key not in context.features:
            names = sorted(context.features)
            raise bad_input(f"features[{self.key!r}]", "items of `IndexStream.attach`", names)
        features = context.features[self.key]
        return _encode(to_keys(features[self.items.item_key]), features, context)

    def log_expected_count(self, ids: tf.Tensor, context: StepContext) -> tf.Tensor:
        """Returns log(n / N) [m] float32, -inf outside the catalogue."""
        columns = tf.shape(context.features[self.key][self.items.item_key])[0]
        return _uniform_log_count(ids, self.items, tf.math.log(tf.cast(columns, tf.float32)))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        items = tf.keras.utils.serialize_keras_object(self.items)
        return {"items": items, "num_negatives": self.num_negatives, "key": self.key}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> IndexStream:
        """Builds the source that `get_config` described."""
        return cls(**tf.keras.utils.deserialize_keras_object(config))


def _encode(keys: tf.Tensor, features: Any, context: StepContext) -> Candidates:
    embeddings = context.encode_items(features)
    num_columns = tf.shape(keys)[0]
    filled = tf.ones([num_columns], tf.bool)
    return Candidates(keys, embeddings, filled, tf.fill([num_columns], -1))


def _uniform_log_count(ids: tf.Tensor, items: ItemCatalogue, log_columns: Any) -> tf.Tensor:
    inside = items.rows(ids) >= 0
    return tf.where(inside, log_columns - math.log(len(items)), -math.inf)
