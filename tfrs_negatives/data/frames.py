"""Frames and data sets to columns, and columns to the parts of a log or a catalogue by a schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import Values
from tfrs_negatives.data.columns import read_column
from tfrs_negatives.data.ids import check_ids
from tfrs_negatives.data.roles import as_type, feature_of, numbers_of, times_of
from tfrs_negatives.data.schema import Schema

_BATCH = 4096


def frame_columns(frame: Any, schema: Schema) -> dict[str, Any]:
    """Returns the columns that a schema names of a pandas or polars frame.

    Raises:
        InputError: if it is no frame, lacks a column or has one twice.
    """
    frame = frame.collect() if hasattr(frame, "collect") else frame  # a lazy one of polars
    names = getattr(frame, "column_names", None) or getattr(frame, "columns", None)
    if names is None:
        raise bad_input("frame", "a frame with named columns", type(frame).__name__)
    names = [*names]
    schema.check_against(names, where="the frame")
    twice = [name for name in schema.columns if names.count(name) > 1]
    if twice:
        received = f"{names.count(twice[0])} in the frame"
        raise bad_input(twice[0], "one column of this name", received)
    return {name: frame[name] for name in schema.columns}


def dataset_columns(dataset: tf.data.Dataset, schema: Schema) -> dict[str, Any]:
    """Reads the columns that a schema names of a data set of dicts, to its end.

    Raises:
        InputError: if its elements are no dicts or lack a column, or it has no end.
    """
    spec = getattr(dataset, "element_spec", None)
    if not isinstance(spec, Mapping):
        expected = "a tf.data.Dataset of dicts, name -> value"
        raise bad_input("dataset", expected, spec if spec is not None else type(dataset).__name__)
    schema.check_against(spec, where="the data set")
    for name in schema.columns:
        if not isinstance(spec[name], (tf.TensorSpec, tf.RaggedTensorSpec)):
            raise bad_input(name, "dense or ragged tensors", type(spec[name]).__name__)
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise bad_input("dataset", "a data set that ends", "one without end")
    chosen = dataset.map(lambda element: {name: element[name] for name in schema.columns})
    if spec[schema.item_key].shape.rank == 0:
        chosen = chosen.ragged_batch(_BATCH)
    parts: dict[str, list[Any]] = {name: [] for name in schema.columns}
    for batch in chosen:
        for name, column in batch.items():
            parts[name].append(_rows_of(column, name))
    return {name: _joined(columns) for name, columns in parts.items()}


def _rows_of(column: Any, name: str) -> Any:
    if isinstance(column, tf.RaggedTensor):
        return column.to_list()
    if not isinstance(column, tf.Tensor):
        raise bad_input(name, "dense or ragged tensors", type(column).__name__)
    return column.numpy()


def _joined(columns: list[Any]) -> Any:
    arrays = [column for column in columns if isinstance(column, np.ndarray)]
    if len(arrays) == len(columns) and len({array.shape[1:] for array in arrays}) == 1:
        return np.concatenate(arrays)
    return [row for column in columns for row in column]


def log_arguments(found: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """Returns the arguments of `Interactions` for the columns of a table.

    Args:
        found: name -> column of any container, those of the schema at least.
        schema: what they mean.

    Raises:
        InputError: if a column is not what it is declared to be.
    """
    roles = ("item_id", "time", "weight", "label")
    values = _typed({name: found[name] for name in schema.names(*roles)}, schema)
    parts: dict[str, Any] = {
        # Read there, by what is declared; the others here, where their columns have names.
        "query_features": {name: found[name] for name in schema.features},
        "item_ids": check_ids(values[schema.item_key], schema.item_key, are_items=True),
        "query_key": schema.query_key,
        "columns": {name: schema.columns[name] for name in schema.features},
    }
    readers = {"time": times_of, "weight": numbers_of, "label": numbers_of}
    for role, argument in (("time", "timestamps"), ("weight", "weights"), ("label", "labels")):
        name = schema.only(role)
        parts[argument] = None if name is None else readers[role](values[name], name)
    return parts


def item_arguments(found: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """Returns the arguments of `ItemCatalogue` for the columns of a table of items.

    Args:
        found: name -> column of any container.
        schema: what they mean; features have the role `item`.

    Raises:
        InputError: if a column is not what it is declared to be.
    """
    names = schema.names("item")
    values = _typed({n: found[n] for n in (schema.item_key, *names)}, schema)
    return {
        "ids": check_ids(values[schema.item_key], schema.item_key, are_items=True),
        "features": {
            name: feature_of(values[name], name, may_miss=name in schema.may_miss) for name in names
        },
        "columns": {name: schema.columns[name] for name in names},
    }


def _typed(found: Mapping[str, Any], schema: Schema) -> dict[str, Values]:
    return {
        name: as_type(read_column(column, name), name, schema.columns[name].type)
        for name, column in found.items()
        if name in schema.columns
    }
