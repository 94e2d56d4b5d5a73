"""A column in its role: a feature, a time, a weight. What the role cannot be is an error."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import ColumnType, ValueKind, Values
from tfrs_negatives.data.columns import MISSING_INTEGER, read_column


def as_feature(
    values: Any, name: str, *, may_miss: bool = False, wanted: ColumnType | None = None
) -> np.ndarray:
    """Turns a column into a feature of a tower.

    Args:
        values: [E] or lists of one kind, in any container.
        name: of the column, for errors.
        may_miss: whether a row may have no value. Such a row holds NaN, "", the smallest int64, or
            a list of padding, and `FeatureSpec.may_miss` gives it a row of its own.
        wanted: the type that is declared for it, see `as_type`.

    Returns:
        [E] or [E, W] of int64 (int8 for flags), float32 or strings.

    Raises:
        InputError: for a missing value that is not declared, a number that is not finite in
            float32, or a date.

    Example:
        >>> as_feature([True, False], "member").tolist()
        [1, 0]
        >>> as_feature([1.5, None], "age", may_miss=True).tolist()
        [1.5, nan]
        >>> as_feature([1.5, None], "age")
        Traceback (most recent call last):
        ...
        tfrs_negatives.InputError: `age`: expected a value in every row, or `missing: own`.
        Received: 1 missing, the first in row 1
    """
    read = as_type(read_column(values, name), name, wanted)
    return feature_of(read, name, may_miss=may_miss)


def feature_of(values: Values, name: str, *, may_miss: bool = False) -> np.ndarray:
    """Returns the feature of a column that is read; see `as_feature`."""
    if values.kind == "time":
        rule = "numbers or texts; a date is a `time`, or made into numbers first"
        raise bad_input(name, rule, "dates or times")
    if values.first_missing is not None and not may_miss:
        raise bad_input(name, "a value in every row, or `missing: own`", values.says_missing)
    array = values.array
    if values.kind == "number":
        array = _finite_float32(values, name)
    if array.ndim == 1 and values.first_missing is not None:
        array = array.copy()
        array[values.missing] = _FILLERS.get(values.kind, MISSING_INTEGER)
    return array


_FILLERS: dict[ValueKind, Any] = {"number": np.nan, "text": ""}


def _finite_float32(values: Values, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        array = values.array.astype(np.float32)
    present = np.isfinite(array) | values.missing.reshape(-1, *[1] * (array.ndim - 1))
    if not present.all():
        wrong = np.argwhere(~present)[0]
        received = f"{values.array[tuple(wrong)]} in row {wrong[0]}"
        raise bad_input(name, "finite numbers of float32", received)
    return array


def as_times(values: Any, name: str) -> np.ndarray:
    """Turns a column into times.

    Args:
        values: [E] dates, times, ISO 8601 texts, or numbers, which are seconds.
        name: of the column, for errors.

    Returns:
        [E] seconds since 1970 in UTC: int64 where all are whole, else float64, which tells apart
        what differs by a microsecond. A time without a zone is read as UTC.

    Raises:
        InputError: if a row has none, or is something else.

    Example:
        >>> as_times(["1970-01-01T00:01:00", "1970-01-02"], "when").tolist()
        [60, 86400]
        >>> as_times(np.array([1500], "datetime64[ms]"), "when").tolist()
        [1.5]
    """
    return times_of(read_column(values, name), name)


def times_of(values: Values, name: str) -> np.ndarray:
    """Returns the times of a column that is read; see `as_times`."""
    _check_plain(values, name, "a time")
    if values.kind == "text":
        values = as_type(values, name, "time")
    if values.kind == "time":
        micros = values.array.astype(np.int64)
        return micros / 1e6 if (micros % 1_000_000).any() else micros // 1_000_000
    if values.kind not in ("integer", "number"):
        raise bad_input(name, "dates, times, or seconds", values.kind)
    seconds = _finite(values, name).astype(np.float64 if values.kind == "number" else np.int64)
    exact = (np.trunc(seconds) == seconds) & (np.abs(seconds) < 2**53)
    whole = values.kind == "number" and bool(exact.all())
    return seconds.astype(np.int64) if whole else seconds


def as_numbers(values: Any, name: str) -> np.ndarray:
    """Returns a column of weights or labels as [E] float32.

    Raises:
        InputError: if a row has none, or is no finite number.

    Example:
        >>> as_numbers([1, 2], "weight").dtype
        dtype('float32')
    """
    return numbers_of(read_column(values, name), name)


def numbers_of(values: Values, name: str) -> np.ndarray:
    """Returns the numbers of a column that is read; see `as_numbers`."""
    _check_plain(values, name, "a number")
    if values.kind not in ("integer", "number", "bool"):
        raise bad_input(name, "numbers", values.kind)
    return _finite_float32(replace(values, array=_finite(values, name)), name)


def _check_plain(values: Values, name: str, what: str) -> None:
    if values.array.ndim != 1:
        raise bad_input(name, f"{what} per row", f"lists, shape {list(values.array.shape)}")
    if values.first_missing is not None:
        raise bad_input(name, f"{what} in every row", values.says_missing)


def _finite(values: Values, name: str) -> np.ndarray:
    if values.kind == "number" and not np.isfinite(values.array).all():
        row = int((~np.isfinite(values.array)).argmax())
        raise bad_input(name, "finite numbers", f"{values.array[row]} in row {row}")
    return values.array


# ------------------------------------------------------------------ declared types


def as_type(values: Values, name: str, wanted: ColumnType | None) -> Values:
    """Turns a column into the type that is declared for it.

    Args:
        values: the column.
        name: of the column, for errors.
        wanted: "integer" (also of floats without a fraction and of texts), "number", "text" (also
            of integers) or "time" (of ISO 8601 texts); None changes nothing.

    Returns:
        The column; what was missing still is.

    Raises:
        InputError: if a value cannot be of that type, with its row.

    Example:
        >>> as_type(read_column([7.0, 8.0], "user"), "user", "integer").array.tolist()
        [7, 8]
        >>> as_type(read_column([7, 8], "zip"), "zip", "text").array.tolist()
        ['7', '8']
    """
    if wanted is None or values.kind == wanted:
        return values
    if wanted == "integer" and values.kind == "bool":
        return replace(values, kind="integer")
    if wanted == "number" and values.kind in ("integer", "bool"):
        return replace(values, kind="number", array=_numbers_of_integers(values, name))
    if wanted == "text" and values.kind == "integer":
        return replace(values, kind="text", array=_texts_of(values.array))
    if wanted == "integer" and values.kind == "number":
        return replace(values, kind="integer", array=_whole(values, name))
    if wanted != "text" and values.kind == "text" and values.array.ndim == 1:
        from tfrs_negatives.data.arrow import parse_texts

        parsed = parse_texts(values, name, wanted)
        read = read_column(parsed, name)
        return replace(read, missing=values.missing | read.missing)
    raise bad_input(name, f"a column that can be read as {wanted}", values.kind)


def _texts_of(integers: np.ndarray) -> np.ndarray:
    texts = np.array([str(v) for v in integers.ravel().tolist()], np.str_)
    texts = texts.reshape(integers.shape)
    # In lists -1 is what fills up the shorter ones.
    return np.where(integers == -1, "", texts) if integers.ndim == 2 else texts


def _whole(values: Values, name: str) -> np.ndarray:
    present = ~values.missing.reshape(-1, *[1] * (values.array.ndim - 1))
    # Above 2^53 (2^24 in float32) two integers may have become one number.
    limit = 2**24 if values.array.dtype == np.float32 else 2**53
    wrong = present & ((np.trunc(values.array) != values.array) | (np.abs(values.array) >= limit))
    if wrong.any():
        place = tuple(np.argwhere(wrong)[0])
        expected = f"whole numbers below {limit}, which a float holds exactly"
        raise bad_input(name, expected, f"{values.array[place]} in row {place[0]}")
    return np.where(present, values.array, -1).astype(np.int64)


def _numbers_of_integers(values: Values, name: str) -> np.ndarray:
    array = values.array.astype(np.float64)
    if array.ndim == 2 and (array[~values.missing] == -1).any():
        # Which may be a number, or the end of a shorter list.
        raise bad_input(name, "lists of numbers with one length, none of them -1", "others")
    array[values.missing] = np.nan
    return array
