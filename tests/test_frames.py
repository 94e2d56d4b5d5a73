"""One log from every container: what plain Python reads of the same rows, or an error that names
the column."""

from __future__ import annotations

import csv
import datetime
import math
import random
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions
from tfrs_negatives.data.schema import Column

COLUMNS = ("user", "item", "time", "age", "city", "visits", "weight", "label")
CONTAINERS = ("csv", "parquet", "pandas", "polars", "tf.data", "tf.data batches")


def schema(kind):
    ids = "integer" if kind is int else "text"
    return {
        "user": Column("query_id", type=ids),
        "item": Column("item_id", type=ids),
        "time": Column("time"),
        "age": Column("query", type="number", missing="own"),
        "city": Column("query", type="text", missing="own"),
        "visits": Column("query", type="integer", missing="own"),
        "weight": "weight",
        "label": "label",
    }


@st.composite
def tables(draw):
    """Rows as a person would write them down: None where nothing is known."""
    kind = draw(st.sampled_from([int, str]))
    letters = st.text("aé7 0.n,\"'\n-", min_size=1, max_size=5).filter(lambda t: t.strip() == t)
    id_ = st.integers(-(2**63) + 1, 2**63 - 1).filter(lambda i: i != -1) if kind is int else letters
    second = st.integers(0, 4 * 10**9)
    micro = st.integers(0, 999_999)
    when = {
        "seconds": second,
        "fractions": second.map(lambda s: s + 0.25),
        "times": st.builds(lambda s, u: utc(s) + datetime.timedelta(microseconds=u), second, micro),
    }[draw(st.sampled_from(["seconds", "fractions", "times"]))]
    row = st.fixed_dictionaries(
        {
            "user": id_,
            "item": id_,
            "time": when,
            "age": st.none() | st.floats(-1e6, 1e6, width=32),
            "city": st.none() | letters,
            "visits": st.none() | st.integers(-(2**50), 2**50),
            "weight": st.integers(0, 5),
            "label": st.sampled_from([1.0, 2.5, 5.0]),
        }
    )
    return kind, draw(st.lists(row, min_size=1, max_size=6))


def utc(seconds):
    return datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)


def as_csv(rows, folder):
    path = Path(folder, "log.csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in rows:
            values = [row[name] for name in COLUMNS]
            cells = [v.isoformat() if isinstance(v, datetime.datetime) else v for v in values]
            writer.writerow(["" if v is None else v for v in cells])
    return path


def column(rows, name):
    return [row[name] for row in rows]


def as_pandas(rows):
    """The dtypes that pandas itself would choose, or a user: they say the same."""
    rng = random.Random(len(rows))
    frame = pd.DataFrame({name: column(rows, name) for name in rows[0]})
    if rng.random() < 0.5:
        frame["visits"] = pd.array(column(rows, "visits"), dtype="Int64")
    if rng.random() < 0.5:
        frame["city"] = frame["city"].astype(rng.choice(["category", "string"]))
    frame.index = rng.sample(range(100), len(rows))
    return frame[rng.sample(list(frame), len(frame.columns))]


def as_dataset(rows, batch):
    """Tensors have no None: a number is NaN, a text empty."""
    fill = {"age": math.nan, "visits": math.nan, "city": ""}
    columns = {
        name: [fill[name] if v is None else v for v in column(rows, name)]
        if name in fill
        else column(rows, name)
        for name in rows[0]
    }
    columns["visits"] = np.array(columns["visits"], np.float64)
    if isinstance(columns["time"][0], datetime.datetime):
        columns["time"] = [v.isoformat() for v in columns["time"]]
    elif isinstance(columns["time"][0], float):
        columns["time"] = np.array(columns["time"], np.float64)
    if isinstance(columns["user"][0], int):
        columns |= {name: np.array(columns[name], np.int64) for name in ("user", "item")}
    dataset = tf.data.Dataset.from_tensor_slices(columns)
    return dataset.batch(2) if batch else dataset


def read(container, rows, columns):
    if container == "pandas":
        return Interactions.from_pandas(as_pandas(rows), columns)
    if container == "polars":
        return Interactions.from_polars(pl.DataFrame(rows, infer_schema_length=None), columns)
    if container.startswith("tf.data"):
        return Interactions.from_dataset(as_dataset(rows, "batches" in container), columns)
    with tempfile.TemporaryDirectory() as folder:
        if container == "csv":
            return Interactions.from_csv(as_csv(rows, folder), columns)
        path = Path(folder, "log.parquet")
        pq.write_table(pa.Table.from_pylist(rows), path)
        return Interactions.from_parquet(path, columns)


def check(log, rows):
    """Against the rows, value by value, in Python's own types."""
    assert log.item_ids.tolist() == column(rows, "item")
    features = log.query_features
    assert features["user"].tolist() == column(rows, "user")
    ages = [math.nan if v is None else float(np.float32(v)) for v in column(rows, "age")]
    np.testing.assert_array_equal(features["age"].astype(np.float64), ages)
    assert features["city"].tolist() == [v or "" for v in column(rows, "city")]
    assert features["visits"].tolist() == [
        -(2**63) if v is None else v for v in column(rows, "visits")
    ]
    times = [
        (v - utc(0)) / datetime.timedelta(seconds=1) if isinstance(v, datetime.datetime) else v
        for v in column(rows, "time")
    ]
    np.testing.assert_allclose(log.timestamps.astype(np.float64), times, rtol=0, atol=5e-7)
    assert log.weights.tolist() == column(rows, "weight")
    assert log.labels.tolist() == column(rows, "label")


@pytest.mark.parametrize("container", CONTAINERS)
@settings(max_examples=40, deadline=None)
@given(table=tables())
def test_every_container_gives_the_log_that_python_reads(container, table):
    kind, rows = table
    check(read(container, rows, schema(kind)), rows)


def with_fault(rows, name, value, place):
    rows = [dict(row) for row in rows]
    rows[place % len(rows)][name] = value
    return rows


FAULTS = [
    ("user", None, CONTAINERS[:4]),
    ("item", None, CONTAINERS[:4]),
    ("time", None, CONTAINERS[:4]),
    ("weight", None, CONTAINERS[:4]),
    ("label", math.inf, CONTAINERS),
    ("label", math.nan, CONTAINERS),
    ("weight", -1, CONTAINERS),
    ("age", math.inf, CONTAINERS),
]


@pytest.mark.parametrize("container", CONTAINERS)
@settings(max_examples=25, deadline=None)
@given(table=tables(), fault=st.sampled_from(FAULTS), place=st.integers(0, 5))
def test_one_wrong_value_anywhere_is_an_error_that_names_its_column(container, table, fault, place):
    (kind, rows), (name, value, able) = table, fault
    if container not in able or (len(rows) == 1 and value is None):
        return  # it has no way to hold the fault
    with pytest.raises(InputError) as caught:
        read(container, with_fault(rows, name, value, place), schema(kind))
    assert str(caught.value).startswith((f"`{name}`", f"`{name}s`")), caught.value


@pytest.mark.parametrize("container", CONTAINERS)
def test_kinds_are_inferred_alike_where_nothing_is_declared(container):
    rows = [
        {"user": "u1", "item": 7, "time": 3, "age": 1.5, "city": "a", "visits": 2.5,
         "weight": 1, "label": 1.0},
        {"user": "u2", "item": 9, "time": 4, "age": 2.0, "city": "b", "visits": 3.5,
         "weight": 2, "label": 2.0},
    ]  # fmt: skip
    roles = ("query_id", "item_id", "time", "query", "query", "query", "weight", "label")
    log = read(container, rows, dict(zip(COLUMNS, roles, strict=True)))
    kinds = {name: c.dtype.kind for name, c in log.query_features.items()}
    assert kinds == {"user": "U", "age": "f", "city": "U", "visits": "f"}
    assert (log.item_ids.dtype, log.timestamps.dtype) == (np.int64, np.int64)


def test_ragged_columns_of_a_data_set_become_lists():
    rows = [{"user": 1, "item": 7, "past": [5, 6]}, {"user": 2, "item": 5, "past": []}]
    columns = {"user": "query_id", "item": "item_id", "past": "history"}
    ragged = tf.data.Dataset.from_tensor_slices(
        {"user": [1, 2], "item": [7, 5], "past": tf.ragged.constant([[5, 6], []], dtype=tf.int64)}
    )
    for dataset in (ragged, ragged.batch(1)):
        log = Interactions.from_dataset(dataset, columns)
        assert log.query_features["past"].tolist() == [[5, 6], [-1, -1]]
    for frame in (pd.DataFrame(rows), pl.DataFrame(rows)):
        log = Interactions.from_pandas(frame, columns)
        assert log.query_features["past"].tolist() == [[5, 6], [-1, -1]]


IDS = {"user": "query_id", "item": "item_id"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Interactions.from_pandas({"user": [1]}, IDS), "`frame`: expected a frame"),
        (
            lambda: Interactions.from_pandas(pd.DataFrame({"user": [1]}), IDS),
            "`item`: expected one of the columns",
        ),
        (
            lambda: Interactions.from_pandas(
                pd.DataFrame([[1, 2, 3]], columns=["user", "item", "item"]), IDS
            ),
            "`item`: expected one column of this name.*2 in the frame",
        ),
        (lambda: Interactions.from_dataset([{"user": 1}], IDS), "`dataset`: expected a tf.data"),
        (
            lambda: Interactions.from_dataset(tf.data.Dataset.range(3), IDS),
            "`dataset`: expected a tf.data.Dataset of dicts",
        ),
        (
            lambda: Interactions.from_dataset(
                tf.data.Dataset.from_tensors({"user": [1], "item": [2]}).repeat(), IDS
            ),
            "`dataset`: expected a data set that ends",
        ),
        (
            lambda: Interactions.from_dataset(
                tf.data.Dataset.from_tensors({"user": [1]}), IDS
            ),
            "`item`: expected one of the columns",
        ),
        (lambda: Interactions.from_parquet("no/such", IDS), "`source`: expected an existing file"),
        (lambda: Interactions.from_pandas(pd.DataFrame(), ["user"]), "`columns`: expected a map"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_one_sentence(make, message):
    with pytest.raises(InputError, match=message):
        make()
