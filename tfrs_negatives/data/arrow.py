"""Containers to Arrow, and Arrow to arrays of one kind: all that needs pyarrow."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import ColumnType, Values
from tfrs_negatives.data._checks import check_width, int64_of


def read_container(column: Any, name: str) -> Values:
    """Reads a column of any container; see `core.columns.read_column`.

    Args:
        column: E rows; NaN, None and the like are missing.
        name: of the column, for errors.

    Returns:
        The values; unsigned integers still are.

    Raises:
        InputError: for what no column can be.
    """
    if getattr(column, "ndim", 1) == 2 and getattr(column, "dtype", None) is not None:
        return _of_table(np.asarray(column), name)
    try:
        return _of_arrow(_to_arrow(column, name), name)
    except (pa.ArrowException, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise bad_input(name, "numbers, texts, times, or lists of them", reason) from None


def _of_table(array: np.ndarray, name: str) -> Values:
    """Reads rows of one length, [E, W], of objects or bytes; "" fills up rows of texts."""
    flat = _of_arrow(_from_rows(array.ravel().tolist(), name), name)
    missing = flat.missing & (flat.kind != "text")
    if missing.any():
        row = int(missing.argmax()) // max(array.shape[1], 1)
        raise bad_input(name, "no missing value in a list", f"one in row {row}")
    return Values(flat.kind, flat.array.reshape(array.shape), np.zeros(len(array), bool))


# ------------------------------------------------------------------ containers -> Arrow


def _to_arrow(column: Any, name: str) -> pa.Array:
    """Reads any container; NaN becomes a null."""
    if isinstance(column, (pa.Array, pa.ChunkedArray)):
        return _one_chunk(column)
    if type(column).__module__.partition(".")[0] == "polars":
        return _one_chunk(column.to_arrow())
    if hasattr(column, "to_list") and hasattr(column, "row_splits"):  # tf.RaggedTensor
        return _from_rows(column.to_list(), name)
    if isinstance(column, np.ndarray):
        return _array(column, name)
    if hasattr(column, "iloc"):  # pandas
        return _array(column, name)
    return _from_rows(list(column), name)


def _array(column: Any, name: str) -> pa.Array:
    if column.dtype == np.dtype(object):
        return _from_rows(column.tolist(), name)
    try:
        return _one_chunk(pa.array(column, from_pandas=True))
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise bad_input(name, "values of one kind", " ".join(str(error).split())) from None


def _from_rows(rows: list[Any], name: str) -> pa.Array:
    """Reads Python values, whose kinds Arrow would mix up: it takes True for 1."""
    rows = [_plain(row) for row in rows]
    _check_one_kind(rows, name)
    try:
        return pa.array(rows, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        largest = max((v for v in _flat(rows) if isinstance(v, int)), key=abs, default=0)
        if abs(largest) >= 2**63:
            raise bad_input(name, "integers that fit into int64", largest) from None
        raise bad_input(name, "values of one kind", " ".join(str(error).split())) from None


def _plain(row: Any) -> Any:
    if isinstance(row, np.ndarray) and row.dtype.kind in "mM":
        return row.astype(f"{row.dtype.kind}8[us]").tolist()  # of "ns" it would be integers
    return row.tolist() if isinstance(row, (np.ndarray, np.number)) else row


def _flat(rows: list[Any]) -> Iterable[Any]:
    for row in rows:
        yield from row if isinstance(row, (list, tuple)) else [row]


_PYTHON_KINDS: tuple[tuple[tuple[type, ...], str], ...] = (
    ((bool, np.bool_), "truth value"),
    ((int, np.integer), "integer"),
    ((float, np.floating, decimal.Decimal), "number"),
    ((str,), "text"),
    ((bytes,), "bytes"),
    ((datetime.datetime, np.datetime64), "time"),
    ((datetime.date,), "date"),
    ((list, tuple), "list"),
)


def _check_one_kind(rows: list[Any], name: str) -> None:
    first: dict[str, int] = {}
    for position, row in enumerate(rows):
        if _is_nothing(row):
            continue
        kind = next((k for types, k in _PYTHON_KINDS if isinstance(row, types)), None)
        first.setdefault(kind or type(row).__name__, position)
        if isinstance(row, (set, frozenset)):
            raise bad_input(name, "values in a fixed order", f"a set in row {position}")
    if first.keys() <= {"integer", "number"} or len(first) <= 1:
        lists = [row for row in rows if isinstance(row, (list, tuple))]
        if lists and not any(isinstance(v, (list, tuple)) for row in lists for v in row):
            _check_one_kind([v for row in lists for v in row], f"{name}, elements")
        return
    received = ", ".join(f"{kind} in row {row}" for kind, row in first.items())
    raise bad_input(name, "one kind of value", received)


def _is_nothing(value: Any) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, np.floating)) and math.isnan(value)


def _one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return column


# ------------------------------------------------------------------ Arrow -> numpy


def _of_arrow(column: pa.Array, name: str) -> Values:
    if pa.types.is_dictionary(column.type):
        column = _one_chunk(column.cast(column.type.value_type))
    if _is_list(column.type):
        return _of_lists(column, name)
    reader = next((read for fits, read in _READERS if fits(column.type)), None)
    if reader is None:
        raise bad_input(name, "numbers, texts, times, or lists of them", column.type)
    missing = column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
    values: Values = reader(column, missing, name)
    return values


def _of_bools(column: pa.Array, missing: np.ndarray, _name: str) -> Values:
    array = column.fill_null(False).to_numpy(zero_copy_only=False)
    return Values("bool", array.astype(np.int64), missing)


def _of_integers(column: pa.Array, missing: np.ndarray, name: str) -> Values:
    array = column.fill_null(0).to_numpy(zero_copy_only=False)
    return Values("integer", array, missing)


def _of_floats(column: pa.Array, missing: np.ndarray, _name: str) -> Values:
    array = column.to_numpy(zero_copy_only=False)
    floats = array if array.dtype == np.float32 else array.astype(np.float64)
    return Values("number", floats, missing)


def _of_decimals(column: pa.Array, missing: np.ndarray, name: str) -> Values:
    if column.type.scale > 0:
        return _of_floats(column.cast(pa.float64()), missing, name)
    try:
        return _of_integers(column.cast(pa.int64()), missing, name)
    except pa.ArrowInvalid:
        raise bad_input(name, "integers that fit into int64", column.type) from None


def _of_texts(column: pa.Array, missing: np.ndarray, name: str) -> Values:
    column = column.cast(pa.large_string()).fill_null("")
    check_width(pc.utf8_length(column).to_numpy(zero_copy_only=False), name, bytes_each=4)
    has_nul = pc.match_substring(column, "\0")
    if pc.any(has_nul).as_py():
        row = pc.index(has_nul, True).as_py()
        raise bad_input(name, "text without NUL characters", f"one in row {row}")
    array = np.array(column.to_pylist(), dtype=np.str_)
    return Values("text", array, missing | (array == ""))


def _of_bytes(column: pa.Array, missing: np.ndarray, name: str) -> Values:
    try:
        return _of_texts(column.cast(pa.large_binary()).cast(pa.large_string()), missing, name)
    except pa.ArrowInvalid:
        row = next(i for i, value in enumerate(column.to_pylist()) if not _is_utf8(value))
        raise bad_input(name, "bytes in UTF-8", f"others in row {row}") from None


def _is_utf8(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _of_times(column: pa.Array, missing: np.ndarray, name: str) -> Values:
    finer = pa.types.is_timestamp(column.type) and column.type.unit == "ns"
    try:
        micros = column.cast(pa.timestamp("us"), safe=not finer)
    except pa.ArrowInvalid as error:
        raise bad_input(name, "times that microseconds can hold", error) from None
    return Values("time", micros.to_numpy(zero_copy_only=False).astype("datetime64[us]"), missing)


_READERS: tuple[tuple[Callable[[Any], bool], Callable[..., Values]], ...] = (
    (pa.types.is_boolean, _of_bools),
    (pa.types.is_integer, _of_integers),
    (pa.types.is_floating, _of_floats),
    (pa.types.is_decimal, _of_decimals),
    (
        lambda t: (
            pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t)
        ),
        _of_texts,
    ),
    (
        lambda t: (
            pa.types.is_binary(t)
            or pa.types.is_large_binary(t)
            or pa.types.is_fixed_size_binary(t)
            or pa.types.is_binary_view(t)
        ),
        _of_bytes,
    ),
    (lambda t: pa.types.is_timestamp(t) or pa.types.is_date(t), _of_times),
    # A column that holds nothing at all has no kind of its own.
    (pa.types.is_null, lambda c, missing, _name: Values("text", np.full(len(c), ""), missing)),
)


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _of_lists(column: pa.Array, name: str) -> Values:
    """Turns lists into [E, W]."""
    missing = column.is_null().to_numpy(zero_copy_only=False)
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    is_int8 = pa.types.is_int8(column.type.value_type)
    check_width(lengths, name, bytes_each=8)
    elements = _of_arrow(_one_chunk(pc.list_flatten(column)), name)
    if elements.kind == "time" or elements.array.ndim > 1:
        raise bad_input(name, "lists of numbers or texts", column.type)
    if elements.missing.any():
        row = int(np.repeat(np.arange(len(lengths)), lengths)[elements.first_missing])
        raise bad_input(name, "no missing or empty value in a list", f"one in row {row}")
    width, full = int(lengths.max(initial=0)), lengths[~missing]
    even = bool((full == width).all())
    array = int64_of(elements.array, name)
    array = array.astype(np.int8) if is_int8 and even else array
    dense = np.full((len(lengths), width), _padding(elements, name, missing, full), array.dtype)
    dense[np.arange(width) < lengths[:, None]] = array
    return Values(elements.kind, dense, missing)


def _padding(elements: Values, name: str, missing: np.ndarray, lengths: np.ndarray) -> Any:
    """Returns what fills up the shorter lists, and the rows without one."""
    even = len(lengths) == 0 or bool((lengths == lengths[0]).all())
    array = elements.array
    if elements.kind == "text":
        return ""
    if elements.kind == "number":
        if not even:
            received = f"lengths {lengths.min()} to {lengths.max()}"
            raise bad_input(name, "lists of numbers with one length", received)
        return np.nan
    if (not even or missing.any()) and array.min(initial=0) < 0:
        expected = "no negative number in lists of unequal length, where -1 marks the end"
        raise bad_input(name, expected, array.min())
    return -1


# ------------------------------------------------------------------ texts -> other types


def parse_texts(values: Values, name: str, wanted: ColumnType) -> pa.Array:
    """Reads texts as another type.

    Args:
        values: a column of texts, [E].
        name: of the column, for errors.
        wanted: "integer", "number" or "time".

    Returns:
        The column in that type.

    Raises:
        InputError: with the first text that is none.
    """
    texts = pa.array(values.array, mask=values.missing)
    for kind in ARROW_TYPES[wanted]:
        if (cast := cast_texts(texts, kind)) is not None:
            return cast
    row = _first_unreadable(texts, wanted)
    received = "times with a zone and times without one"
    if row is not None:
        received = f"{texts[row].as_py()!r} in row {row}"
    raise bad_input(name, f"texts that can be read as {wanted}", received)


def _first_unreadable(texts: pa.Array, wanted: ColumnType) -> int | None:
    """Returns the first row that is of no kind of the type, a thousand rows at a time."""
    for start in range(0, len(texts), 1000):
        part = texts[start : start + 1000]
        if not _fits(part, wanted):
            wrong = [row for row in range(len(part)) if not _fits(part[row : row + 1], wanted)]
            if wrong:
                return start + wrong[0]
    return None


def _fits(text: pa.Array, wanted: ColumnType) -> bool:
    return any(cast_texts(text, kind) is not None for kind in ARROW_TYPES[wanted])


def cast_texts(texts: Any, kind: pa.DataType) -> Any:
    """Returns texts, an array or a chunked one, as another type; None where one of them is none."""
    # Arrow would read "0x10" as sixteen.
    if pa.types.is_integer(kind):
        decimal_only = pc.match_substring_regex(texts, "^-?[0-9]+$")
        if pc.all(decimal_only, skip_nulls=True).as_py() is False:
            return None
    try:
        return texts.cast(kind)
    except pa.ArrowInvalid:
        return None


ARROW_TYPES: dict[ColumnType, tuple[pa.DataType, ...]] = {
    "integer": (pa.int64(),),
    "number": (pa.float64(),),
    # With a zone in every row, or in none; a text of nanoseconds is read as such and cut after.
    "time": tuple(pa.timestamp(unit, zone) for unit in ("us", "ns") for zone in (None, "UTC")),
}
