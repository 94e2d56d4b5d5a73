"""Negatives mined for each query, kept as state and looked up inside the step."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import EMPTY_ID, Features
from tfrs_negatives.data.id_lists import History
from tfrs_negatives.data.ids import to_keys
from tfrs_negatives.step.query_rows import QueryRows

logger = logging.getLogger("tfrs_negatives")


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class NegativeTable(QueryRows):
    """The mined negatives of each query of a log, to be given to `Explicit`.

        ids of row i = the list of the query of row i; nothing for a query that is not known

    The lookup happens in the step, so a step uses what was loaded last. A batch column of mined ids
    would be read ahead by the data pipeline, and be that of the last mining for a while.

    The lists are weights, 8 (Q + 1) num + 8 Q bytes: they are saved and restored with the model,
    and are the same on all replicas. The config holds only names and sizes. At first every list is
    empty, and `Explicit` is off; the padding is encoded all the same.

    Args:
        log: whose Q queries may get negatives, the training part.
        num: how many negatives a query may have.

    Raises:
        InputError: if `num` is below 1, or the log is empty or has no `query_key` of integers or
            strings.

    Example:
        >>> from tfrs_negatives.data import Interactions
        >>> log = Interactions({"user": np.array(["u", "v"])}, np.array([7, 9]), query_key="user")
        >>> table = NegativeTable(log, num=2)
        >>> table.ids_of_rows({"user": tf.constant(["v", "new", "u"])}, 3).shape.as_list()
        [3, 2]

    Relations: the same as `Explicit` of a batch column that holds the same lists.

    Source: ANCE (Xiong et al., ICLR 2021) writes them to files that the trainer reads; here they
        are state.
    """

    def __init__(self, log: History, num: int = 4, **kwargs: Any) -> None:
        super().__init__(log, num=num, **kwargs)

    def _set_up(self, **kwargs: Any) -> None:
        num = kwargs.pop("num")
        if num < 1:
            raise bad_input("num", "at least 1", num)
        super()._set_up(**{"name": "negative_table", **kwargs})
        self.num, queries = num, self.num_queries
        fixed: dict[str, Any] = {"trainable": False, "experimental_autocast": False}
        empty = tf.keras.initializers.Constant(EMPTY_ID)
        # The last row is that of queries that are not known.
        self.ids = self.add_weight("ids", [queries + 1, num], tf.int64, empty, **fixed)

    def ids_of_rows(self, features: Features, num_rows: int | None) -> tf.Tensor:
        """Finds the negatives of each row.

        Args:
            features: the batch, with the queries [B] in the column `query_key`.
            num_rows: B, None where it is not known.

        Returns:
            [B, num] int64 keys of items, `EMPTY_ID` where there is none.

        Raises:
            InputError: if the batch does not have the column, or not of the log's kind.
        """
        return tf.gather(self.ids, self.rows(features, num_rows))

    def load(self, path: str | Path) -> int:
        """Takes the lists of a file in the place of all that the table has.

        A list longer than `num` loses its end, the worse ranks.

        Args:
            path: a Parquet file of `mine_hard_negatives`.

        Returns:
            How many queries of the file the table does not know; they are left out, with a warning.

        Raises:
            InputError: if the file cannot be read, or is of another query key or other queries.
        """
        queries, lists = self._read(Path(path))
        own, keys = self.query_keys.numpy(), to_keys(queries).numpy()
        place = np.minimum(np.searchsorted(own, keys), self.num_queries - 1)
        known = own[place] == keys
        lengths = lists.value_lengths().to_numpy()
        starts = np.cumsum(lengths) - lengths
        row = np.repeat(np.arange(len(lists)), lengths)
        column = np.arange(len(row)) - np.repeat(starts, lengths)
        fits = known[row] & (column < self.num)
        ids = np.full(self.ids.shape, EMPTY_ID)
        ids[place[row[fits]], column[fits]] = to_keys(_array(lists.flatten())).numpy()[fits]
        self.ids.assign(ids)
        unknown = int((~known).sum())
        if unknown:
            logger.warning("%s: %d of %d queries are not in the table", path, unknown, len(keys))
        return unknown

    def _read(self, path: Path) -> tuple[np.ndarray, pa.ListArray]:
        """Returns the queries [F] and the lists of ids of a file."""
        try:
            name = (pq.read_metadata(path).metadata or {}).get(b"query_key", b"").decode()
            table = pq.read_table(path, columns=[name, "ids"])
        except (OSError, pa.ArrowException) as error:
            raise bad_input("path", "a file that `mine_hard_negatives` wrote", path) from error
        if name != self.query_key:
            received = f"{path} with the queries {name!r}"
            raise bad_input("path", f"a file with the queries {self.query_key!r}", received)
        queries = _array(table[name].combine_chunks())
        if (queries.dtype.kind == "U") != self.string_queries:
            expected = "strings" if self.string_queries else "integers"
            rule = f"{expected} in the column {name!r}, as in the log"
            raise bad_input("path", rule, f"{path} with dtype {queries.dtype}")
        return queries, table["ids"].combine_chunks()

    def get_config(self) -> dict[str, Any]:
        """Returns names and sizes; the lists are weights."""
        return {**super().get_config(), "num": self.num}


def _array(values: pa.Array) -> np.ndarray:
    """Integers or strings of Arrow, also none of them, as numpy has them."""
    is_text = pa.types.is_string(values.type)
    return np.array(values.to_pylist(), str) if is_text else values.to_numpy().astype(np.int64)
