"""Columns as users bring them, to arrays of one kind: the only place that knows containers.

A column may be a list, a numpy array, a pandas or polars series, an Arrow array or a tensor. Rows
are counted by position; the index of a pandas series is not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

import numpy as np

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import Values
from tfrs_negatives.data._checks import check_texts, int64_of

MISSING_INTEGER = -(2**63)
"""What stands for a missing integer (smallest int64). NaN stands for a number, "" for a text."""


def read_column(column: Any, name: str) -> Values:
    """Turns a column of any container into an array of one kind.

    Args:
        column: E rows, each a truth value, a number, a text, bytes in UTF-8, a date, a time, a list
            of these, or nothing (None, NaN, NaT, a null, the empty text).
        name: of the column, for errors.

    Returns:
        The values. Categories are read as what they stand for, decimals without a fraction as
        integers.

    Raises:
        InputError: for a mixture of kinds, integers outside int64, bytes that are no UTF-8, a text
            with a NUL (numpy cuts them off), or kinds that no feature has.

    Example:
        >>> read_column(["a", None, b"b".decode()], "city").missing.tolist()
        [False, True, False]
        >>> read_column([1, "a"], "city")
        Traceback (most recent call last):
        ...
        tfrs_negatives.InputError: `city`: expected one kind of value. Received: integer in
        row 0, text in row 1
    """
    if callable(getattr(column, "numpy", None)) and not hasattr(column, "nrows"):
        column = _of_tensor(column)
    num_rows(column, name)
    if isinstance(column, np.ndarray) and not isinstance(column, np.ma.MaskedArray):
        plain = _plain_array(column, name)
        if plain is not None:
            return plain
    # An index is loaded and asked without pyarrow.
    from tfrs_negatives.data.arrow import read_container

    values = read_container(column, name)
    return replace(values, array=int64_of(values.array, name))


def num_rows(column: Any, name: str) -> int:
    """Returns the number of rows of a column.

    Raises:
        InputError: if it has none, such as a single value.
    """
    if isinstance(column, (str, bytes)) or getattr(column, "shape", None) == ():
        raise bad_input(name, "a column, one value per row", repr(column))
    if isinstance(column, (Set, Mapping)) or hasattr(column, "columns"):
        received = f"a {type(column).__name__}"
        raise bad_input(name, "a column, one value per row in a fixed order", received)
    try:
        return int(column.nrows()) if hasattr(column, "nrows") else len(column)
    except TypeError:
        raise bad_input(name, "a column, one value per row", type(column).__name__) from None


def _plain_array(array: np.ndarray, name: str) -> Values | None:
    """Returns what needs no conversion; None for what only Arrow can read."""
    if array.ndim not in (1, 2):
        raise bad_input(name, "one value or one list per row", f"shape {list(array.shape)}")
    kind, full = array.dtype.kind, np.zeros(len(array), bool)
    if kind == "b":
        return Values("bool", array.astype(np.int64), full)
    if kind in "iu":
        return Values("integer", int64_of(array, name), full)
    if kind == "f":
        floats = array if array.dtype == np.float32 else array.astype(np.float64)
        return Values("number", floats, _rows_of_nan(array, name))
    if kind == "U":
        check_texts(array, name)
        return Values("text", array, array == "" if array.ndim == 1 else full)
    if kind in "mM":
        return _times(array, name)
    return None


def _of_tensor(tensor: Any) -> Any:
    array = tensor.numpy()
    # numpy has no such number of its own.
    is_half = getattr(array, "dtype", None) is not None and array.dtype.name == "bfloat16"
    return array.astype(np.float32) if is_half else array


def _rows_of_nan(array: np.ndarray, name: str) -> np.ndarray:
    missing = np.isnan(array)
    if array.ndim == 1:
        return missing
    some, whole = missing.any(axis=1), missing.all(axis=1) & (array.shape[1] > 0)
    if (some & ~whole).any():
        row = int((some & ~whole).argmax())
        raise bad_input(name, "no NaN in a list of numbers", f"one in row {row}")
    return np.asarray(whole)


def _times(array: np.ndarray, name: str) -> Values:
    if array.ndim == 2 or array.dtype.kind == "m":
        received = f"{array.dtype} of shape {list(array.shape)}"
        raise bad_input(name, "numbers, texts, times, or lists of numbers or texts", received)
    micros, missing = array.astype("datetime64[us]"), np.isnat(array)
    if np.datetime_data(array.dtype)[0] not in ("ns", "ps", "fs", "as"):
        wrapped = (micros.astype(array.dtype) != array) & ~missing
        if wrapped.any():
            row = int(wrapped.argmax())
            raise bad_input(name, "times between the years -290307 and 294247", f"row {row}")
    return Values("time", micros, missing)


def row_numbers(rows: Any, num_events: int) -> np.ndarray:
    """Returns which rows are meant: a mask [E] or row numbers [m], of any container.

    Raises:
        InputError: if it is neither, or a number is none of a row.
    """
    array = np.arange(num_events)[rows] if isinstance(rows, slice) else np.asarray(rows)
    if array.dtype == object:  # a nullable mask; a missing entry is an error below
        array = np.asarray(read_column(rows, "rows").array, bool)
    array = array if array.size else array.astype(np.int64)
    is_mask = array.dtype.kind == "b"
    if array.ndim != 1 or array.dtype.kind not in "biu" or (is_mask and len(array) != num_events):
        received = f"{array.dtype} of shape {list(array.shape)}"
        raise bad_input("rows", f"a mask of {num_events} events, or row numbers", received)
    if not is_mask and array.size and not -num_events <= array.min() <= array.max() < num_events:
        received = f"{array.min()} to {array.max()}"
        raise bad_input("rows", f"row numbers below {num_events}", received)
    return array
