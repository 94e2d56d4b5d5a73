"""The door for columns and ids: what comes in by hand, and what it must be, by hand."""

from __future__ import annotations

import datetime
import decimal
import math

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import tensorflow as tf

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.columns import read_column
from tfrs_negatives.data.ids import as_ids, to_keys
from tfrs_negatives.data.roles import as_feature, as_numbers, as_times, as_type

IDS = [
    ([7, 8], [7, 8]),
    (np.array([7, 8], np.uint8), [7, 8]),
    (np.array([7, 2**63 - 1], np.uint64), [7, 2**63 - 1]),
    (pd.Series([7, 8, 9])[[False, True, True]], [8, 9]),
    (pd.Series([7, 8], dtype="Int64"), [7, 8]),
    (pl.Series([7, 8], dtype=pl.UInt32), [7, 8]),
    ([decimal.Decimal(7), decimal.Decimal(8)], [7, 8]),
    (pa.array([7, 8]), [7, 8]),
    (pa.chunked_array([[7], [8]]), [7, 8]),
    (tf.constant([7, 8]), [7, 8]),
    (("a", "b"), ["a", "b"]),
    (np.array(["a", "b"], object), ["a", "b"]),
    (np.array([b"a", b"bc"]), ["a", "bc"]),
    (["Zoë".encode(), b"b"], ["Zoë", "b"]),
    (tf.constant(["Zoë", "b"]), ["Zoë", "b"]),
    (pd.Series(["a", "b"], dtype="category"), ["a", "b"]),
    (pd.Series(["007", "08"]), ["007", "08"]),
    (pl.Series(["a", "b"], dtype=pl.Categorical), ["a", "b"]),
    (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
    ([], []),
]


@pytest.mark.parametrize(("given", "ids"), IDS, ids=lambda case: type(case).__name__)
def test_ids_of_every_container(given, ids):
    found = as_ids(given, "user")
    assert found.tolist() == ids
    assert found.dtype == np.int64 if ids and isinstance(ids[0], int) else found.dtype.kind == "U"


NO_IDS = [
    (np.array([2**63 + 5, 1], np.uint64), "fit into int64. Received: 9223372036854775813 in row 0"),
    (pd.Series([1, 2**63], dtype="uint64"), "fit into int64. Received: 9223372036854775808 in row"),
    ([2**63], "fit into int64. Received: 9223372036854775808"),
    ([-(2**63) - 1], "fit into int64. Received: -9223372036854775809"),
    (
        [20000001.0, 20000000.0],
        "integers or texts. Received: number 20000001.0 in row 0.*type: int",
    ),
    (pd.Series([1, None]), "integers or texts. Received: number 1.0 in row 0"),
    ([1, None], "an id in every row. Received: 1 missing, the first in row 1"),
    (["a", math.nan], "an id in every row. Received: 1 missing, the first in row 1"),
    (["a", ""], "an id in every row. Received: 1 missing, the first in row 1"),
    ([None, None], "an id in every row. Received: 2 missing, the first in row 0"),
    ([True, False], "integers or texts. Received: bool 1 in row 0"),
    ([True, 1], "one kind of value. Received: truth value in row 0, integer in row 1"),
    (["a", 1], "one kind of value. Received: text in row 0, integer in row 1"),
    (["a", b"b"], "one kind of value. Received: text in row 0, bytes in row 1"),
    (pd.Series([1, "a"], dtype=object), "one kind of value. Received: integer in row 0, text"),
    ([b"\xff"], "bytes in UTF-8"),
    (["a\0b"], "text without NUL characters. Received: one in row 0"),
    ([[1], [2]], "one id per row"),
    (np.array([[1], [2]]), "one id per row"),
    (np.ones((1, 1, 1)), "one value or one list per row"),
    ([datetime.date(2020, 1, 1)], "integers or texts. Received: time 2020-01-01"),
    ([{"a": 1}], "numbers, texts, times, or lists"),
    (np.array([1j]), "values of one kind"),
    (np.array([1], "timedelta64[s]"), "numbers, texts, times, or lists"),
    ("abc", "a column, one value per row. Received: 'abc'"),
    (7, "a column, one value per row"),
    ({1, 2}, "a column, one value per row"),
    ((i for i in range(2)), "a column, one value per row. Received: generator"),
    (tf.constant(7), "a column, one value per row"),
]


@pytest.mark.parametrize(("given", "message"), NO_IDS, ids=lambda case: type(case).__name__)
def test_what_is_no_id_names_column_and_row(given, message):
    with pytest.raises(InputError, match=rf"^`user`: expected .*{message}"):
        as_ids(given, "user")


@pytest.mark.parametrize("reserved", [-1, -(2**63)])
def test_an_item_has_no_reserved_id(reserved):
    with pytest.raises(InputError, match=rf"`ids`: .*reserved.*{reserved} in row 1"):
        ItemCatalogue([7, reserved])
    assert as_ids([7, reserved], "user").tolist() == [7, reserved]  # a query is never padding


def test_texts_and_bytes_have_one_key():
    assert to_keys(as_ids([b"a"], "x")).numpy().tolist() == to_keys(["a"]).numpy().tolist()


def test_unsigned_keys_outside_int64_are_refused_in_and_out_of_a_graph():
    large = tf.constant([1, 2**63 + 5], tf.uint64)
    with pytest.raises(InputError, match=r"fit into int64. Received: 9223372036854775813"):
        to_keys(large)
    with pytest.raises(tf.errors.InvalidArgumentError, match="fit into int64"):
        tf.function(to_keys)(large)
    assert tf.function(to_keys)(large[:1]).numpy().tolist() == [1]


FEATURES = [
    ([True, False], [1, 0], np.int64),
    (pd.Series([True, False], dtype="boolean"), [1, 0], np.int64),
    ([1, 2.5], [1.0, 2.5], np.float32),
    (np.array([1, 2], np.float16), [1.0, 2.0], np.float32),
    ([decimal.Decimal("1.5")], [1.5], np.float32),
    (pl.Series([[1, 2], [3]]), [[1, 2], [3, -1]], np.int64),
    (pd.Series([np.array([1, 2]), np.array([3])]), [[1, 2], [3, -1]], np.int64),
    (tf.ragged.constant([["a"], [], ["b", "c"]]), [["a", ""], ["", ""], ["b", "c"]], None),
    (np.array([[0, 1]], np.int8), [[0, 1]], np.int8),
]


@pytest.mark.parametrize(
    ("given", "values", "dtype"), FEATURES, ids=lambda case: type(case).__name__
)
def test_features_of_every_container(given, values, dtype):
    found = as_feature(given, "age")
    assert found.tolist() == values
    assert dtype is None or found.dtype == dtype


MISSING = [
    (["a", None], ["a", ""]),
    ([7, None], [7, -(2**63)]),
    ([1.5, None], [1.5, math.nan]),
    ([1.5, math.nan], [1.5, math.nan]),
    (pd.Series([True, None], dtype="boolean"), [1, -(2**63)]),
    (np.ma.array([7, 8], mask=[False, True]), [7, -(2**63)]),
    ([[1, 2], None], [[1, 2], [-1, -1]]),
    ([[1.5, 2.5], None], [[1.5, 2.5], [math.nan, math.nan]]),
    ([["a"], None], [["a"], [""]]),
    ([[0, 1], None], [[0, 1], [-1, -1]]),
]


@pytest.mark.parametrize(("given", "values"), MISSING, ids=lambda case: type(case).__name__)
def test_a_missing_value_is_declared_or_an_error(given, values):
    np.testing.assert_array_equal(as_feature(given, "age", may_miss=True), values)
    with pytest.raises(InputError, match=r"^`age`: .*`missing: own`.*the first in row 1"):
        as_feature(given, "age")


TIMES = [
    ([3, 1], [3, 1]),
    ([3.0, 1.0], [3, 1]),
    ([1.25, 1.5], [1.25, 1.5]),
    (["1970-01-02", "1970-01-01"], [86400, 0]),
    (["1970-01-01T00:00:09", "1970-01-01 00:00:10"], [9, 10]),
    (["1970-01-01T02:00:00+02:00", "1970-01-01T00:00:01Z"], [0, 1]),
    (np.array([1500, 2000], "datetime64[ms]"), [1.5, 2.0]),
    (pd.to_datetime(pd.Series(["1970-01-01 00:00:00.25"])), [0.25]),
    (pd.Series([pd.Timestamp("1970-01-01 02:00", tz="Europe/Berlin")]), [3600]),
    (pl.Series([datetime.date(1970, 1, 2)]), [86400]),
    ([datetime.datetime(1970, 1, 1, 0, 1)], [60]),
    ([datetime.datetime(1969, 12, 31, 23, 59, 59, 500000)], [-0.5]),
]


@pytest.mark.parametrize(("given", "seconds"), TIMES, ids=lambda case: type(case).__name__)
def test_times_are_seconds(given, seconds):
    assert as_times(given, "when").tolist() == seconds


NO_TIMES = [
    (["9", "10"], "can be read as time. Received: '9' in row 0"),
    (["1970-01-01", "soon"], "can be read as time. Received: 'soon' in row 1"),
    (["1970-01-01T00:00:00Z", "1970-01-01T00:00:00"], "with a zone and times without one"),
    ([True], "dates, times, or seconds. Received: bool"),
    ([1.0, math.inf], "finite numbers. Received: inf in row 1"),
    ([1.0, math.nan], "a time in every row. Received: 1 missing, the first in row 1"),
    (np.array(["NaT"], "datetime64[s]"), "a time in every row"),
    (np.array([[1], [2]]), "a time per row. Received: lists"),
]


@pytest.mark.parametrize(("given", "message"), NO_TIMES, ids=lambda case: type(case).__name__)
def test_what_is_no_time_is_named(given, message):
    with pytest.raises(InputError, match=rf"^`when`: expected .*{message}"):
        as_times(given, "when")


@pytest.mark.parametrize("given", [["a"], [None], [math.inf], [1e300], [[1]]])
def test_what_is_no_number_is_named(given):
    with pytest.raises(InputError, match=r"^`weight`: expected"):
        as_numbers(given, "weight")


TYPES = [
    ([7.0, 8.0], "integer", [7, 8]),
    (["007", "8"], "integer", [7, 8]),
    ([True], "integer", [1]),
    ([7, 8], "number", [7.0, 8.0]),
    (["1.5", "-2e3"], "number", [1.5, -2000.0]),
    ([7, 8], "text", ["7", "8"]),
    ([-(2**60)], "text", [str(-(2**60))]),
    ([[7, 8], [9]], "text", [["7", "8"], ["9", ""]]),
]


@pytest.mark.parametrize(("given", "wanted", "values"), TYPES)
def test_a_declared_type_is_read_or_refused(given, wanted, values):
    assert as_type(read_column(given, "x"), "x", wanted).array.tolist() == values


@pytest.mark.parametrize(
    ("given", "wanted", "message"),
    [
        ([7.5], "integer", "whole numbers.*7.5 in row 0"),
        ([2.0**53], "integer", "whole numbers"),
        (np.array([2**24], np.float32), "integer", "whole numbers below 16777216"),
        (["7", "x"], "integer", "can be read as integer. Received: 'x' in row 1"),
        (["x"], "number", "can be read as number. Received: 'x' in row 0"),
        ([1.5], "text", "can be read as text. Received: number"),
        ([datetime.date(2020, 1, 1)], "integer", "can be read as integer. Received: time"),
    ],
)
def test_what_a_declared_type_cannot_be(given, wanted, message):
    with pytest.raises(InputError, match=rf"^`x`: expected .*{message}"):
        as_type(read_column(given, "x"), "x", wanted)


def test_a_missing_value_stays_missing_in_another_type():
    values = as_type(read_column(pd.Series([7.0, None]), "x"), "x", "integer")
    assert (values.array[0], values.missing.tolist()) == (7, [False, True])
    values = as_type(read_column(["7", None], "x"), "x", "integer")
    assert (values.array[0], values.missing.tolist()) == (7, [False, True])
