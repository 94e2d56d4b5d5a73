"""Logs and catalogues from Parquet and CSV, one file or a folder of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.columns import read_column
from tfrs_negatives.data.frames import item_arguments, log_arguments
from tfrs_negatives.data.groups import event_of_each
from tfrs_negatives.data.ids import check_same_kind, id_kind
from tfrs_negatives.data.interactions import Interactions
from tfrs_negatives.data.retrieval_data import SourceLog
from tfrs_negatives.data.roles import as_type
from tfrs_negatives.data.schema import Column, ColumnSpec, Schema
from tfrs_negatives.data.table_files import read_table

DEFAULT_COLUMNS: dict[str, ColumnSpec] = {"user_id": "query_id", "item_id": "item_id"}


@dataclass(frozen=True)
class ItemTable:
    """Where the catalogue is, in the same format as the log.

    Attributes:
        path: a file or a folder of files.
        columns: name -> role or `Column`: `item_id`, `item` for a feature, `title`. Where none is
            the `item_id`, it is the column named as in the log; where none is of the role `item`,
            all others are.
    """

    path: str
    columns: Mapping[str, ColumnSpec] = field(default_factory=dict)


def read_tables(
    path: Path, kind: str, columns: Mapping[str, ColumnSpec], *, items: ItemTable | None = None
) -> SourceLog:
    """Reads a log and its catalogue.

    Args:
        path: a file or a folder of files.
        kind: "parquet" or "csv".
        columns: what the columns of the log mean, by name. Columns of the role `item` or `title`
            describe the items, each as its latest event has it.
        items: the catalogue; None is the items of the log.

    Returns:
        The log in the order of the files.

    Raises:
        InputError: if a file or column is missing, or is not what it is declared to be.
    """
    schema = Schema(columns)
    if items is None:
        found = read_table(path, kind, schema)
        log = Interactions(**log_arguments(found, schema))
        catalogue, titles = _items_of_log(log, found, schema)
        return SourceLog(log, catalogue, titles=titles)
    of_items = schema.names("item", "title")
    if of_items:
        raise bad_input(of_items[0], "a column of the table of items, as there is one", "the log's")
    if not Path(items.path).exists():
        raise bad_input("items", "an existing file or folder", items.path)
    schema, item_schema = _with_one_kind_of_ids(path, kind, schema, items)
    log = Interactions(**log_arguments(read_table(path, kind, schema), schema))
    catalogue, titles = _read_items(kind, items.path, item_schema, schema)
    check_same_kind(
        schema.item_key, id_kind(log.item_ids), id_kind(catalogue.ids), other_name="the catalogue"
    )
    return SourceLog(log, catalogue, titles=titles)


def _with_one_kind_of_ids(
    path: Path, kind: str, schema: Schema, items: ItemTable
) -> tuple[Schema, Schema]:
    """Returns both schemas; ids of a CSV that are texts on one side are texts on both."""
    item_schema = Schema(items.columns)
    for name, column in item_schema.columns.items():
        if column.role not in ("item_id", "item", "title"):
            expected = "one of item_id, item and title in a table of items"
            raise bad_input(f"items.columns.{name}", expected, repr(column.role))
    if item_schema.only("item_id") is None:
        item_schema = item_schema.having(schema.item_key, Column("item_id"))
    schemas = [schema, item_schema]
    declared = any(s.columns[s.item_key].type for s in schemas)
    if kind == "csv" and not declared:
        files = zip([path, Path(items.path)], schemas, strict=True)
        if "text" in {_kind_of_ids(file, Schema({s.item_key: "item_id"})) for file, s in files}:
            schemas = [s.with_type(s.item_key, "text") for s in schemas]
    return schemas[0], schemas[1]


def _kind_of_ids(path: Path, schema: Schema) -> str:
    return read_column(read_table(path, "csv", schema)[schema.item_key], schema.item_key).kind


def _read_items(
    kind: str, path: str, schema: Schema, log_schema: Schema
) -> tuple[ItemCatalogue, np.ndarray | None]:
    found = read_table(Path(path), kind, schema, others=not schema.names("item"))
    for name in found:
        if name not in schema.columns:
            schema = schema.having(name, Column("item"))
    arguments, title = item_arguments(found, schema), schema.only("title")
    titles = None if title is None else _texts(found[title], title)
    return _catalogue(arguments, log_schema), titles


def _catalogue(arguments: Mapping[str, Any], log_schema: Schema) -> ItemCatalogue:
    key = log_schema.item_key
    columns = {**arguments["columns"], key: log_schema.columns[key]}
    return ItemCatalogue(**{**arguments, "columns": columns}, item_key=key)


def _texts(column: Any, name: str) -> np.ndarray:
    # A title is for display: it may be missing.
    values = as_type(read_column(column, name), name, "text")
    return np.where(values.missing, "", values.array)


def _items_of_log(
    log: Interactions, found: Mapping[str, Any], schema: Schema
) -> tuple[ItemCatalogue, np.ndarray | None]:
    """Describes each item of a log as its latest event does."""
    arguments, title = item_arguments(found, schema), schema.only("title")
    ids, item_of_event = np.unique(log.item_ids, return_inverse=True)
    latest = event_of_each(item_of_event, log.timestamps, moment="last")
    features = {name: column[latest] for name, column in arguments["features"].items()}
    items = _catalogue({**arguments, "ids": ids, "features": features}, schema)
    titles = None if title is None else _texts(found[title], title)[latest]
    return items, titles
