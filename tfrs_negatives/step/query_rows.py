"""The queries of a log, kept as state and looked up inside the step."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import EMPTY_ID, Features
from tfrs_negatives.data.catalogue import find_sorted
from tfrs_negatives.data.id_lists import History, query_column, query_keys_of_rows
from tfrs_negatives.data.ids import to_keys

_NAMES = ("query_key", "string_queries", "num_queries", "num_events")


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class QueryRows(tf.keras.layers.Layer):
    """Which row of a table belongs to the query of each row of a batch.

    The config holds only names and sizes; the queries are weights.

    Args:
        log: the training part, of Q queries and E events.

    Raises:
        InputError: if the log is empty or has no `query_key` of integers or strings.

    Example:
        >>> from tfrs_negatives.data import Interactions
        >>> log = Interactions({"user": np.array([8, 3])}, np.array([7, 9]), query_key="user")
        >>> QueryRows(log).rows({"user": tf.constant([8, 5, 3])}, 3).numpy().tolist()
        [1, 2, 0]
    """

    def __init__(self, log: History, **kwargs: Any) -> None:
        query_key, queries = query_column(log, argument="log")
        if not len(queries):
            raise bad_input("log", "at least one event", "an empty log")
        keys = np.unique(to_keys(queries).numpy())
        names = {"query_key": query_key, "string_queries": queries.dtype.kind == "U"}
        sizes = {"num_queries": len(keys), "num_events": len(queries)}
        self._set_up(**{**names, **sizes, **kwargs})
        self.query_keys.assign(keys)

    @classmethod
    def of(cls, log: History | QueryRows) -> QueryRows:
        """Returns the queries of a log, for a part that is built with it or from a configuration.

        A configuration holds them in the place of the log, and their keys are weights.
        """
        return log if isinstance(log, QueryRows) else QueryRows(log)

    def _set_up(self, **kwargs: Any) -> None:
        known = {name: kwargs.pop(name) for name in _NAMES}
        super().__init__(**{"name": "query_rows", "dtype": "float32", **kwargs})
        self.query_key: str = known["query_key"]
        self.string_queries: bool = known["string_queries"]
        self.num_queries: int = known["num_queries"]
        self.num_events: int = known["num_events"]
        fixed: dict[str, Any] = {"trainable": False, "experimental_autocast": False}
        empty = tf.keras.initializers.Constant(EMPTY_ID)
        self.query_keys = self.add_weight(
            "query_keys", [self.num_queries], tf.int64, empty, **fixed
        )

    def rows(self, features: Features, num_rows: int | None) -> tf.Tensor:
        """Finds the query of each row.

        Args:
            features: the batch, with the queries [B] in the column `query_key`.
            num_rows: B, None where it is not known.

        Returns:
            [B] int64 in 0 ... Q - 1, Q for a query that the log does not have.

        Raises:
            InputError: if the batch does not have the column, or not of the log's kind.
        """
        shape = tf.TensorShape([num_rows])
        wanted = query_keys_of_rows(
            features, self.query_key, are_strings=self.string_queries, shape=shape
        )
        place, found = find_sorted(tf.convert_to_tensor(self.query_keys), wanted)
        return tf.where(found, place, self.num_queries)

    def get_config(self) -> dict[str, Any]:
        """Returns names and sizes; the queries are weights."""
        return {**super().get_config(), **{name: getattr(self, name) for name in _NAMES}}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> QueryRows:
        """Builds what `get_config` described, with no queries in it."""
        made = cls.__new__(cls)
        made._set_up(**config)
        return made
