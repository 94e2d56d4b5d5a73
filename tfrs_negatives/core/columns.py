"""Columns as users bring them, to arrays of one kind: the only place that knows containers.

A column may be a list, a numpy array, a pandas or polars series, an Arrow array or a tensor. Rows
are counted by position; the index of a pandas series is not read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tfrs_negatives.types import Values, bad_input

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
        tfrs_negatives.types.InputError: `city`: expected one kind of value. Received: integer in
        row 0, text in row 1
    """
    num_rows(column, name)
    if isinstance(column, np.ndarray) and not isinstance(column, np.ma.MaskedArray):
        plain = _plain_array(column, name)
        if plain is not None:
            return plain
    # An index is loaded and asked without pyarrow.
    from tfrs_negatives.core.arrow import read_container

    values = read_container(column, name)
    return replace(values, array=_int64(values.array, name))


def num_rows(column: Any, name: str) -> int:
    """Returns the number of rows of a column.

    Raises:
        InputError: if it has none, such as a single value.
    """
    if isinstance(column, (str, bytes, set)) or getattr(column, "shape", None) == ():
        raise bad_input(name, "a column, one value per row", repr(column))
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
        return Values("integer", _int64(array, name), full)
    if kind == "f":
        missing = np.isnan(array).reshape(len(array), -1)
        if array.ndim == 2 and (missing.any(axis=1) & ~missing.all(axis=1)).any():
            row = int((missing.any(axis=1) & ~missing.all(axis=1)).argmax())
            raise bad_input(name, "no NaN in a list of numbers", f"one in row {row}")
        floats = array if array.dtype == np.float32 else array.astype(np.float64)
        return Values("number", floats, missing.all(axis=1) if array.size else full)
    if kind == "U":
        return Values("text", array, array == "" if array.ndim == 1 else full)
    if kind == "M" and array.ndim == 1:
        return Values("time", array.astype("datetime64[us]"), np.isnat(array))
    return None


def _int64(array: np.ndarray, name: str) -> np.ndarray:
    """Returns integers as int64 (flags stay int8), and everything else as it is."""
    if array.dtype.kind not in "iu" or (array.dtype == np.int8 and array.ndim == 2):
        return array
    if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
        row = int(np.argwhere(array > np.iinfo(np.int64).max)[0][0])
        raise bad_input(name, "integers that fit into int64", f"{array[row]} in row {row}")
    return array.astype(np.int64, copy=False)
