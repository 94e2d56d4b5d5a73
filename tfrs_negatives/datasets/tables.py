"""Logs and catalogues from Parquet and CSV, one file or a folder of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pa_dataset

from tfrs_negatives.datasets.interactions import Interactions, SourceLog
from tfrs_negatives.encode.catalogue import ItemCatalogue
from tfrs_negatives.types import bad_input


@dataclass(frozen=True)
class ItemTable:
    """Where the catalogue is, in the same format as the log.

    Attributes:
        path: a file or a folder of files.
        item_id: the column of the ids.
        features: the columns that the item tower may read; None is all but the id and the title.
        title: the column of the names for display, or None.
    """

    path: str
    item_id: str = "item_id"
    features: tuple[str, ...] | None = None
    title: str | None = None


@dataclass(frozen=True)
class LogColumns:
    """What the columns of a log mean.

    Attributes:
        item_id: the column of the item ids, and the name under which the item tower finds them.
        query: the columns that describe the query.
        query_key: the query column that says which events belong together; None where each event is
            a query of its own.
        timestamp: a column of dates, of times, or of integer seconds.
        weight: a column of example weights.
        rating: a column that `min_rating` is compared with.
        items: the catalogue; None is the items of the log, without features.
    """

    item_id: str = "item_id"
    query: tuple[str, ...] = ("user_id",)
    query_key: str | None = "user_id"
    timestamp: str | None = None
    weight: str | None = None
    rating: str | None = None
    items: ItemTable | None = None


def read_tables(path: Path, kind: str, columns: LogColumns) -> SourceLog:
    """Reads a log and its catalogue.

    Numbers become int64 or float32, strings stay strings. A column of lists becomes [E, L]: lists
    of equal length as they are (int8 stays int8, the form of a multi-hot column), others filled up
    with -1 or the empty string.

    Args:
        path: a file or a folder of files.
        kind: "parquet" or "csv".
        columns: what the columns mean.

    Returns:
        The log in the order of the files, with its ratings where a column of them is named.

    Raises:
        InputError: if a file or column is missing, of a wrong type, or holds empty values.
    """
    if columns.item_id in columns.query:
        raise bad_input("query", f"no column {columns.item_id!r}, the item id", columns.query)
    extra = [name for name in (columns.timestamp, columns.weight, columns.rating) if name]
    table = _read(path, kind, [columns.item_id, *columns.query, *extra])
    item_ids = _ids(table, columns.item_id)
    log = Interactions(
        query_features={name: _values(table, name) for name in columns.query},
        item_ids=item_ids,
        query_key=columns.query_key,
        timestamps=_seconds(table, columns.timestamp) if columns.timestamp else None,
        weights=_numbers(table, columns.weight) if columns.weight else None,
    )
    ratings = _numbers(table, columns.rating) if columns.rating else None
    if columns.items is None:
        return SourceLog(log, ItemCatalogue(np.unique(item_ids), item_key=columns.item_id), ratings)
    items, titles = _read_items(kind, columns.items, columns.item_id)
    if items.ids.dtype.kind != item_ids.dtype.kind:
        expected = f"the type of the ids of the catalogue, {items.ids.dtype}"
        raise bad_input(columns.item_id, expected, item_ids.dtype)
    return SourceLog(log, items, ratings, titles=titles)


def _read_items(
    kind: str, spec: ItemTable, item_key: str
) -> tuple[ItemCatalogue, np.ndarray | None]:
    if not Path(spec.path).exists():
        raise bad_input("items", "an existing file or folder", spec.path)
    others = None if spec.features is None else [*spec.features, *filter(None, [spec.title])]
    table = _read(Path(spec.path), kind, None if others is None else [spec.item_id, *others])
    names = spec.features
    if names is None:
        names = tuple(n for n in table.column_names if n not in (spec.item_id, spec.title))
    features = {name: _values(table, name) for name in names}
    titles = None if spec.title is None else _values(table, spec.title).astype(str)
    return ItemCatalogue(_ids(table, spec.item_id), features, item_key=item_key), titles


def _read(path: Path, kind: str, names: Iterable[str] | None) -> pa.Table:
    try:
        dataset = pa_dataset.dataset(path, format=kind)
        wanted = None if names is None else list(dict.fromkeys(names))
        for name in wanted or []:
            if name not in dataset.schema.names:
                raise bad_input(name, f"one of the columns {dataset.schema.names} of {path}", name)
        table = dataset.to_table(columns=wanted)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise bad_input(str(path), f"readable {kind}", reason) from error
    if not table.num_rows:
        raise bad_input("source", "at least one row", f"none in {path}")
    return table


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise bad_input(name, f"one of the columns {table.column_names}", name)
    column = table[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise bad_input(name, "no empty value", f"{column.null_count}, the first in row {row}")
    return column


def _values(table: pa.Table, name: str) -> np.ndarray:
    column = _column(table, name)
    if _is_list(column.type):
        return _dense(name, column)
    return _plain(name, column)


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _plain(name: str, column: Any) -> np.ndarray:
    """Turns numbers and strings into int64, int8, float32 or unicode, [E]."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array(column.to_pylist(), dtype=np.str_)
    if pa.types.is_int8(kind):
        return column.to_numpy()
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return _int64(name, column)
    if not pa.types.is_floating(kind):
        raise bad_input(name, "numbers, strings, or lists of them", kind)
    values = np.asarray(column.to_numpy(), np.float32)
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise bad_input(name, "finite numbers", f"{values[wrong[0]]} in row {wrong[0]}")
    return values


def _dense(name: str, column: pa.ChunkedArray) -> np.ndarray:
    """Turns lists into [E, L]."""
    lengths = pc.list_value_length(column).to_numpy()
    flat = pc.list_flatten(column)
    if flat.null_count:
        raise bad_input(name, "no empty value in a list", f"{flat.null_count} of them")
    values = _plain(name, flat)
    width = int(lengths.max(initial=0))
    if (lengths == width).all():
        return values.reshape(len(lengths), width)
    if values.dtype.kind == "f":
        expected = "lists of numbers with one length"
        raise bad_input(name, expected, f"lengths {lengths.min()} to {width}")
    if values.dtype.kind == "i" and values.min(initial=0) < 0:
        expected = "no negative number in lists of unequal length, where -1 marks the end"
        raise bad_input(name, expected, values.min())
    filler = "" if values.dtype.kind == "U" else -1
    dense = np.full((len(lengths), width), filler, values.dtype)
    dense[np.arange(width) < lengths[:, None]] = values
    return dense


def _ids(table: pa.Table, name: str) -> np.ndarray:
    ids = _values(table, name)
    if ids.dtype.kind not in "iU" or ids.ndim != 1:
        raise bad_input(name, "integers or strings", f"{table[name].type}")
    return ids


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    numbers = _values(table, name)
    if numbers.dtype.kind not in "if" or numbers.ndim != 1:
        raise bad_input(name, "numbers", f"{table[name].type}")
    return numbers.astype(np.float32)


def _seconds(table: pa.Table, name: str) -> np.ndarray:
    column = _column(table, name)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return column.to_numpy().astype("datetime64[s]").astype(np.int64)
    if not pa.types.is_integer(column.type):
        raise bad_input(name, "dates, times or integer seconds", column.type)
    return _int64(name, column)


def _int64(name: str, column: Any) -> np.ndarray:
    try:
        return column.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise bad_input(name, "integers that fit into int64", error) from None
