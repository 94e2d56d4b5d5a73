"""What a run knows of its queries and items, and what each query chose in the training log."""

from __future__ import annotations

import bisect
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions
from tfrs_negatives.data.query_items import QueryItems
from tfrs_negatives.runs import files
from tfrs_negatives.runs.tables import KnownItems, KnownQueries, read_items, read_queries

_log = logging.getLogger(__name__)


class Histories:
    """The events of each query of a log, the latest first where the log has times.

    Args:
        log: E events with a `query_key`.

    Example:
        >>> users = {"user": np.array([1, 2, 1])}
        >>> log = Interactions(users, np.array([7, 8, 9]), "user", np.array([10, 11, 12]))
        >>> Histories(log).of("1")
        ([9, 7], [12, 10])
        >>> Histories(log).of("3")
        ([], [])
    """

    def __init__(self, log: Interactions) -> None:
        features, query_of_event = log.queries()
        times = np.zeros(len(log), np.int64) if log.timestamps is None else log.timestamps
        order = np.lexsort([-times, query_of_event])
        self._items, self._times = log.item_ids, log.timestamps
        self._events = QueryItems(query_of_event[order], order)
        keys = features[log.query_key or ""].astype(str).tolist()
        self._number_of = {key: number for number, key in enumerate(keys)}

    def of(self, query: str) -> tuple[list[Any], list[int] | None]:
        """Returns the items of a query and their times in seconds, None where there are none."""
        events = self._events.of(np.array([self._number_of.get(query, -1)])).rows
        times = None if self._times is None else self._times[events].tolist()
        return self._items[events].tolist(), times


@dataclass(frozen=True)
class RunTables:
    """The tables of a run.

    Attributes:
        items: titles and training counts.
        queries: the features of each known query; None where each event was its own query.
        history: None where the training log cannot be read.
    """

    items: KnownItems
    queries: KnownQueries | None = None
    history: Histories | None = None

    @cached_property
    def _sorted_ids(self) -> list[str]:
        return sorted(self.queries.row_of) if self.queries else []

    def queries_with_prefix(self, prefix: str, limit: int) -> list[str]:
        """Returns the ids of the known queries that begin so, as text, in order."""
        begin = bisect.bisect_left(self._sorted_ids, prefix)
        return [q for q in self._sorted_ids[begin : begin + limit] if q.startswith(prefix)]


def read_tables(folder: Path) -> RunTables:
    """Reads the tables of a run, and its training log where that is still to be had.

    Raises:
        InputError: if `items.parquet` or `queries.parquet` is missing.
    """
    items = read_items(folder)
    try:
        queries = read_queries(folder)
    except InputError:
        if not (folder / files.QUERIES).is_file():
            raise
        return RunTables(items)
    return RunTables(items, queries, _read_history(folder))


def _read_history(folder: Path) -> Histories | None:
    from tfrs_negatives.runs.config import load_config
    from tfrs_negatives.runs.train import load_data

    try:
        return Histories(load_data(load_config(folder / files.CONFIG)).train)
    except Exception as error:
        # Whatever the source raises: recommendations do not need it.
        _log.warning("%s: no histories, its training log cannot be read: %s", folder, error)
        return None
