"""The tables of a run: `queries.parquet` and `items.parquet`, and the look-ups in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tfrs_negatives.core.errors import InputError, bad_input
from tfrs_negatives.core.files import draft_of
from tfrs_negatives.runs import files


class UnknownId(InputError):
    """Nothing is known under this id."""


@dataclass(frozen=True)
class KnownQueries:
    """The queries of the training log.

    Attributes:
        key: the feature that is their id, such as "user_id".
        columns: name -> [Q, ...], the features of each.
        row_of: id as text -> row.
    """

    key: str
    columns: Mapping[str, np.ndarray]
    row_of: Mapping[str, int]

    def take(self, wanted: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns name -> [q, ...]: the features of some queries.

        Args:
            wanted: q ids, as text.

        Raises:
            UnknownId: if one is no query of the training log.

        Example:
            >>> queries = KnownQueries("user", {"user": np.array([7, 8])}, {"7": 0, "8": 1})
            >>> queries.take(["8", "7"])["user"].tolist()
            [8, 7]
        """
        for query in wanted:
            if query not in self.row_of:
                known = ", ".join(list(self.row_of)[:3])
                expected = f"a {self.key} of the training log, such as {known}"
                raise UnknownId(str(bad_input("query", expected, repr(query))))
        rows = [self.row_of[query] for query in wanted]
        return {name: column[rows] for name, column in self.columns.items()}


def read_queries(folder: Path) -> KnownQueries:
    """Reads the queries of a run.

    Raises:
        InputError: if the run has no such table, or its log has no `query_key`.
    """
    columns, key = read_keyed(folder / files.QUERIES)
    if key is None:
        raise bad_input("run", "a run of a log with a query_key", folder)
    row_of = {query: row for row, query in enumerate(columns[key].astype(str).tolist())}
    return KnownQueries(key, columns, row_of)


class KnownItems:
    """The items of the training corpus.

    Args:
        columns: `id`, `training_events` and, where the items have names, `title`, [N] each.

    Example:
        >>> columns = {"id": np.array([5, 9]), "training_events": np.array([30, 2])}
        >>> items = KnownItems(columns)
        >>> items.training_events(9), items.training_events(1), items.title(9)
        (2, None, None)
    """

    def __init__(self, columns: Mapping[str, np.ndarray]) -> None:
        self.columns = columns
        self._row_of = {item: row for row, item in enumerate(columns["id"].tolist())}

    def title(self, item: Any) -> str | None:
        """Returns the name of an item for display; None where it has none or is unknown."""
        known = item in self._row_of and "title" in self.columns
        return str(self.columns["title"][self._row_of[item]]) if known else None

    def training_events(self, item: Any) -> int | None:
        """Returns how many training events an item has; None for an unknown one."""
        known = item in self._row_of
        return int(self.columns["training_events"][self._row_of[item]]) if known else None


def read_items(folder: Path) -> KnownItems:
    """Reads the items of a run.

    Raises:
        InputError: if the run has no such table.
    """
    return KnownItems(read_columns(folder / files.ITEMS))


def write_columns(path: Path, columns: Mapping[str, np.ndarray], **metadata: str) -> None:
    """Writes arrays [E] or [E, W] as a Parquet file; a row of several values becomes a list."""
    table = pa.table(
        {n: pa.array(c.tolist() if c.ndim > 1 else c) for n, c in columns.items()}
    ).replace_schema_metadata(metadata)
    draft = draft_of(path)
    pq.write_table(table, draft)
    draft.rename(path)


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays that `write_columns` wrote."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise bad_input("run", f"a run folder with {path.name}", path.parent) from error
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def read_keyed(path: Path) -> tuple[dict[str, np.ndarray], str | None]:
    """Reads the arrays and, where they have one, the name of the column that names the query."""
    columns = read_columns(path)
    return columns, pq.read_schema(path).metadata[b"query_key"].decode() or None
