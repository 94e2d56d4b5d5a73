"""Parquet and CSV, one file or a folder of them, to the columns that a schema names."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.dataset as pa_dataset

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.data.arrow import ARROW_TYPES, cast_texts
from tfrs_negatives.data.schema import Column, Schema

logger = logging.getLogger("tfrs_negatives")

# An integer as it is printed: "007" and "+7" are texts, whose zeros and signs mean something.
_INTEGER = "^(0|-?[1-9][0-9]*)$"
_NUMBER = r"^-?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$|^-?inf$"
_BOOL = "^(true|false|True|False|TRUE|FALSE)$"
_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9:.]+)?(Z|[-+][0-9]{2}(:?[0-9]{2})?)?$"

_NOTHING = pa.array(["", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "null", "NULL", "None"])
"""What stands for no number in a column of numbers; in a column of texts only "" does."""


def read_table(
    path: Path, kind: str, schema: Schema, *, others: bool = False
) -> dict[str, pa.ChunkedArray]:
    """Reads the columns that a schema names.

    Args:
        path: a file or a folder of files.
        kind: "parquet" or "csv".
        schema: the columns.
        others: whether the columns that the schema does not name are read too.

    Returns:
        Name -> column, in the order of the files.

    Raises:
        InputError: if a file is missing or unreadable, has no row or lacks a column.
    """
    if not path.exists():
        raise bad_input("source", "an existing file or folder", path)
    try:
        dataset = pa_dataset.dataset(path, format=_format(kind))
        schema.check_against(dataset.schema.names, where=str(path))
        names = list(dataset.schema.names if others else schema.columns)
        unread = [name for name in dataset.schema.names if name not in names]
        if unread:
            logger.info("%s: columns that are not read: %s", path, ", ".join(unread))
        types = _one_type_each(dataset, names, kind)
        dataset = pa_dataset.dataset(path, format=_format(kind, types), schema=types)
        table = dataset.to_table(columns=names)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise bad_input(str(path), f"readable {kind}", reason) from error
    if not table.num_rows:
        raise bad_input("source", "at least one row", f"none in {path}")
    columns = {name: table[name] for name in names}
    if kind == "parquet":
        return columns
    return {
        name: _of_texts(column, name, schema.columns.get(name, Column("item")))
        for name, column in columns.items()
    }


def _of_texts(texts: pa.ChunkedArray, name: str, said: Column) -> pa.ChunkedArray:
    if said.type == "text" or said.role == "title":
        return texts
    if said.type in ("integer", "number"):
        return pc.if_else(pc.is_in(texts, value_set=_NOTHING), None, texts)
    return texts if said.type else infer_type(texts, name)


def _one_type_each(dataset: pa_dataset.Dataset, names: list[str], kind: str) -> pa.Schema:
    """Returns a type for each column that the values of all files keep; CSV is read as texts."""
    if kind == "csv":
        return pa.schema([(name, pa.large_string()) for name in dataset.schema.names])
    schemas = [fragment.physical_schema for fragment in dataset.get_fragments()]
    fields = []
    for name in names:
        found = {schema.field(name).type for schema in schemas if name in schema.names}
        fields.append(pa.field(name, _common_type(found - {pa.null()}, name)))
    return pa.schema(fields)


def _common_type(found: set[pa.DataType], name: str) -> pa.DataType:
    if len(found) <= 1:
        return next(iter(found), pa.null())
    types = pa.types
    alike = (
        types.is_integer,
        types.is_floating,
        _is_text,
        lambda t: types.is_timestamp(t) and t.tz is None,
        lambda t: types.is_timestamp(t) and t.tz is not None,
    )
    if not any(all(is_one(kind) for kind in found) for is_one in alike):
        raise bad_input(name, "one type in all files", ", ".join(sorted(map(str, found))))
    if all(map(_is_text, found)):
        return pa.large_string()
    schemas = [pa.schema([(name, kind)]) for kind in found]
    return pa.unify_schemas(schemas, promote_options="permissive").field(name).type


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _format(kind: str, texts: pa.Schema | None = None) -> Any:
    if kind == "parquet":
        return pa_dataset.ParquetFileFormat()
    convert = None
    if texts is not None:
        convert = pa_csv.ConvertOptions(
            column_types=texts,
            strings_can_be_null=True,
            null_values=[""],
            quoted_strings_can_be_null=True,
        )
    # A text in quotes may have a line break in it.
    parse = pa_csv.ParseOptions(newlines_in_values=True)
    return pa_dataset.CsvFileFormat(parse_options=parse, convert_options=convert)


def infer_type(texts: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Reads a column of texts as what all of them are: integers, numbers, truth values, times.

    Args:
        texts: as they stand in a file; nulls are missing values.
        name: of the column, for errors.

    Raises:
        InputError: for integers outside int64.

    Example:
        >>> infer_type(pa.chunked_array([["7", "08"]]), "zip").to_pylist()
        ['7', '08']
        >>> infer_type(pa.chunked_array([["7", "nan", "8"]]), "age").to_pylist()
        [7, None, 8]
    """
    numbers = pc.if_else(pc.is_in(texts, value_set=_NOTHING), None, texts)
    if _all_match(numbers, _INTEGER):
        try:
            return numbers.cast(pa.int64())
        except pa.ArrowInvalid as error:
            expected = "integers that fit into int64, or `type: text`"
            raise bad_input(name, expected, str(error).splitlines()[0]) from None
    if _all_match(numbers, _NUMBER):
        return numbers.cast(pa.float64())
    if _all_match(numbers, _BOOL):
        return pc.equal(pc.utf8_lower(numbers), "true")
    if _all_match(texts, _TIME):
        times = (cast_texts(texts, kind) for kind in ARROW_TYPES["time"])
        return next((time for time in times if time is not None), texts)
    return texts


def _all_match(texts: pa.ChunkedArray, pattern: str) -> bool:
    matches = pc.match_substring_regex(texts, pattern)
    return texts.null_count < len(texts) and pc.all(matches, skip_nulls=True).as_py()
