"""Faults that an attack on the door found, each with the right value worked out by hand."""

from __future__ import annotations

import datetime as dt
import logging

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions, ItemTable, load, splits
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.columns import read_column
from tfrs_negatives.data.ids import as_ids
from tfrs_negatives.data.retrieval_data import RetrievalData
from tfrs_negatives.data.roles import as_feature, as_times, as_type
from tfrs_negatives.data.schema import Column, Schema
from tfrs_negatives.runs.describe import describe
from tfrs_negatives.towers.build import build_tower
from tfrs_negatives.towers.features import infer_features

IDS = {"user": "query_id", "item": "item_id"}


def vectors_of(values, column):
    """What a tower of this one feature makes of it, without any layer above."""
    log = Interactions({"x": values}, np.arange(len(values)), columns={"x": column})
    tower = build_tower(infer_features(log), hidden=[], output_dim=None)
    return tower({"x": tf.constant(log.query_features["x"])}).numpy()


# ------------------------------------------------------------------ missing values in a tower


@pytest.mark.parametrize(
    "values",
    [
        pd.array([3, None, 5], dtype="Int64"),
        [3, None, 5],
        [3.0, None, 5.0],
        pl.Series([3, None, 5]),
    ],
)
def test_a_missing_integer_that_is_read_as_a_number_is_the_mean(values):
    column = Column("query", encoding="numeric", missing="own")
    np.testing.assert_allclose(vectors_of(values, column), [[-1, 0], [0, 1], [1, 0]], atol=1e-6)


def test_a_row_of_numbers_that_is_missing_is_no_row_of_padding():
    column = Column("query", type="number", missing="own")
    vectors = vectors_of([[3, 4], None, [5, 8]], column)
    np.testing.assert_allclose(vectors, [[-1, -1, 0], [0, 0, 1], [1, 1, 0]], atol=1e-6)


@pytest.mark.parametrize("values", [[[3, 4], [5]], [[3, 4], None]])
def test_padding_is_never_a_number(values):
    with pytest.raises(InputError, match="-1 marks the end"):
        vectors_of(values, Column("query", encoding="numeric", missing="own"))


@pytest.mark.parametrize("number", [int, float])
def test_flags_that_are_missing_are_none_at_all(number):
    rows = [[number(0), number(1)], None, [number(1), number(1)]]
    log = Interactions({"x": rows}, [7, 8, 9], columns={"x": Column("query", missing="own")})
    (spec,) = infer_features(log)
    assert (spec.kind, spec.width) == ("multi_hot", 2)
    tower = build_tower([spec], hidden=[], output_dim=None)
    vectors = tower({"x": tf.constant(log.query_features["x"])}).numpy()
    assert not vectors[1].any()
    assert vectors[0].any()


@pytest.mark.parametrize("values", [[[5, 1]], [[0.5, 1.0]], [[0, 1], [1]]])
def test_multi_hot_is_of_zeros_and_ones(values):
    with pytest.raises(InputError, match="numbers that are 0 or 1 for multi_hot"):
        vectors_of(values, Column("query", encoding="multi_hot"))


def test_a_history_of_the_items_0_and_1_is_a_history():
    past = {"past": [[1], [0], None]}
    log = Interactions(past, [0, 1, 0], columns={"past": Column("history", missing="own")})
    assert log.query_features["past"].tolist() == [[1], [0], [-1]]
    (spec,) = infer_features(log)
    assert (spec.kind, spec.vocabulary) == ("list", (0, 1))
    texts = Column("history", type="text", missing="own")
    log = Interactions(past, ["0", "1", "0"], columns={"past": texts})
    assert log.query_features["past"].tolist() == [["1"], ["0"], [""]]


def test_a_history_that_is_missing_is_no_item():
    frame = pd.DataFrame({"user": [1, 2], "item": [7, 0], "past": [[7.0], None]})
    columns = {**IDS, "past": Column("history", type="integer", missing="own")}
    log = Interactions.from_pandas(frame, columns)
    assert log.query_features["past"].tolist() == [[7], [-1]]


def test_histories_that_are_all_empty_are_of_the_kind_of_the_items():
    for ids in ([7, 8], ["a", "b"]):
        log = Interactions({"past": [[], []]}, ids, columns={"past": "history"})
        assert log.query_features["past"].shape == (2, 0)
        assert log.query_features["past"].dtype.kind == ("i" if ids == [7, 8] else "U")


# ------------------------------------------------------------------ times


def test_a_date_does_not_cut_the_times_beside_it():
    for mixed in ([dt.date(2020, 1, 1), dt.datetime(2020, 1, 1, 12)],
                  [dt.datetime(2020, 1, 1, 12), dt.date(2020, 1, 1)]):  # fmt: skip
        with pytest.raises(InputError, match="`t`: expected one kind of value"):
            as_times(mixed, "t")


@pytest.mark.parametrize(
    "times",
    [
        np.array([10**15], "datetime64[s]"),
        np.array([2 * 10**8], "datetime64[D]"),
        pa.array([10**15], pa.timestamp("s")),
    ],
)
def test_a_time_that_microseconds_cannot_hold_is_refused(times):
    with pytest.raises(InputError, match="`t`: expected times"):
        as_times(times, "t")


def test_large_numbers_stay_in_order():
    assert as_times([1e20, 1e19, 1.0], "t").tolist() == [1e20, 1e19, 1.0]


def test_nanoseconds_of_a_text_are_cut_to_microseconds():
    assert as_times(["1970-01-01 00:00:00.250000123"], "t").tolist() == [0.25]


@pytest.mark.parametrize(
    "values",
    [np.array([["2020-01-01"]], "datetime64[ns]"), [np.array(["2020-01-01"], "datetime64[ns]")]],
)
def test_dates_in_lists_are_no_integers(values):
    with pytest.raises(InputError, match="`x`: expected"):
        as_feature(values, "x")


# ------------------------------------------------------------------ containers


def test_lists_of_unsigned_integers():
    for values in (
        pl.Series([[1, 2], [3]], dtype=pl.List(pl.UInt32)),
        pa.array([[1, 2], [3]], pa.list_(pa.uint64())),
    ):
        assert as_feature(values, "x").tolist() == [[1, 2], [3, -1]]
    with pytest.raises(InputError, match="fit into int64"):
        as_feature(pa.array([[2**63], []], pa.list_(pa.uint64())), "x")


def test_a_dense_batch_of_texts_is_read_back():
    log = Interactions({"past": [["a", "b"], ["a"]]}, ["a", "b"], columns={"past": "history"})
    batches = log.dataset(2, item_key="item", shuffle=False)
    again = Interactions.from_dataset(batches, {"past": "history", "item": "item_id"})
    assert again.query_features["past"].tolist() == [["a", "b"], ["a", ""]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array(["a", "b"], pa.string_view()), ["a", "b"]),
        (tf.Variable([1, 2]), [1, 2]),
        (tf.constant([1.5], tf.bfloat16), [1.5]),
        ([np.int8(1), np.uint64(2)], [1, 2]),
        (np.array([], np.float32), []),
        (pd.Series([1.5, 2.5], dtype=object), [1.5, 2.5]),
    ],
)
def test_containers_that_broke_deep_inside(values, expected):
    assert as_feature(values, "x").tolist() == expected


@pytest.mark.parametrize(
    "values",
    [
        {0: "a", 1: "b"},
        frozenset([1, 2]),
        [{1}, {2}],
        pd.DataFrame({"a": [1], "b": [2]}),
        pl.DataFrame({"a": [1], "b": [2]}),
        pl.Series([1, 2], dtype=pl.Int128),
        pd.cut(pd.Series([1, 2]), 2),
        np.array(["a\0b"]),
        np.array(["a\ud800"]),
    ],
)
def test_what_is_no_column_is_one_sentence(values):
    with pytest.raises(InputError, match="`x`: expected"):
        as_feature(values, "x")


def test_one_long_text_does_not_fill_the_memory():
    texts = ["a"] * 50_000 + ["b" * 20_000]
    with pytest.raises(InputError, match=r"`x`: expected rows of similar lengths.*row 50000"):
        as_feature(texts, "x")
    with pytest.raises(InputError, match="`x`: expected rows of similar lengths"):
        as_feature([[1]] * 20_000 + [list(range(20_000))], "x")


def test_frames_that_are_lazy_or_arrow_are_frames():
    frame = pl.DataFrame({"user": [1, 2], "item": [7, 8]})
    for given in (frame.lazy(), frame.to_arrow()):
        assert Interactions.from_polars(given, IDS).item_ids.tolist() == [7, 8]


# ------------------------------------------------------------------ declared types


def test_a_declared_type_is_read_by_the_constructors_too():
    log = Interactions({"x": [7.0, 8.0]}, [1, 2], columns={"x": Column("query", type="integer")})
    assert log.query_features["x"].dtype == np.int64
    users = {"u": Column("query_id", type="integer")}
    assert Interactions({"u": [7.0, 8.0]}, [1, 2], "u", columns=users).query_features[
        "u"
    ].tolist() == [7, 8]
    items = ItemCatalogue([1, 2], {"zip": [7, 8]}, columns={"zip": Column("item", type="text")})
    assert items.features["zip"].tolist() == ["7", "8"]


def test_truth_values_may_be_numbers():
    values = as_type(read_column([True, False], "x"), "x", "number")
    assert (values.kind, values.array.tolist()) == ("number", [1.0, 0.0])


def test_hexadecimal_is_no_integer():
    with pytest.raises(InputError, match="'0x10' in row 0"):
        as_type(read_column(["0x10"], "x"), "x", "integer")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Column("history", encoding="numeric"),
        lambda: Column("item_id", type="number"),
        lambda: Schema({None: "query"}),
        lambda: Interactions({0: [1]}, [7]),
        lambda: Interactions([[1]], [7]),
    ],
)
def test_declarations_that_cannot_be(wrong):
    with pytest.raises(InputError):
        wrong()


# ------------------------------------------------------------------ files


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pa.array([dt.date(1970, 1, 2)]), pa.array([dt.datetime(1970, 1, 2, 0, 0, 1)])),
        (pa.array([7]), pa.array(["007"])),
        (pa.array([7]), pa.array([dt.datetime(1970, 1, 1)])),
        (pa.array([True]), pa.array([5])),
        (pa.array([1.5]), pa.array(["a"])),
    ],
)
def test_files_of_other_types_are_not_cast_to_the_first(tmp_path, first, second):
    for number, column in enumerate((first, second)):
        pq.write_table(pa.table({"item": [7], "x": column}), tmp_path / f"{number}.parquet")
    with pytest.raises(InputError, match="`x`: expected one type in all files"):
        Interactions.from_parquet(tmp_path, {"item": "item_id", "x": "query"})


@pytest.mark.parametrize(
    ("first", "second", "values"),
    [
        (pa.array([7], pa.int32()), pa.array([2**40]), [7, 2**40]),
        (pa.array(["a"]), pa.array(["b"]).dictionary_encode(), ["a", "b"]),
        (pa.array([1.5], pa.float32()), pa.array([2.5]), [1.5, 2.5]),
    ],
)
def test_files_of_one_kind_keep_their_values(tmp_path, first, second, values):
    for number, column in enumerate((first, second)):
        pq.write_table(pa.table({"item": [7], "x": column}), tmp_path / f"{number}.parquet")
    log = Interactions.from_parquet(tmp_path, {"item": "item_id", "x": "query"})
    assert log.query_features["x"].tolist() == values


def test_titles_are_texts_as_they_stand_in_the_file(tmp_path):
    (tmp_path / "log.csv").write_text("user,item\n1,7\n2,8\n3,9\n")
    (tmp_path / "items.csv").write_text("item,name\n7,1.50\n8,\n9,NA\n")
    table = ItemTable(str(tmp_path / "items.csv"), {"name": "title"})
    data = load(f"csv:{tmp_path / 'log.csv'}", columns=IDS, items=table, test_fraction=0.4)
    assert data.titles.tolist() == ["1.50", "", "NA"]


def test_a_declared_number_may_be_na_in_a_csv(tmp_path):
    (tmp_path / "log.csv").write_text("user,item,age\n1,7,NA\n2,8,nan\n3,9,20.5\n")
    columns = {**IDS, "age": Column("query", type="number", missing="own")}
    ages = Interactions.from_csv(tmp_path / "log.csv", columns).query_features["age"]
    np.testing.assert_array_equal(ages, np.float32([np.nan, np.nan, 20.5]))


def test_a_table_of_items_has_no_queries(tmp_path):
    (tmp_path / "log.csv").write_text("user,item\n1,7\n2,8\n")
    (tmp_path / "items.csv").write_text("item,age\n7,1\n8,2\n")
    table = ItemTable(str(tmp_path / "items.csv"), {"age": "query"})
    with pytest.raises(InputError, match=r"`items.columns.age`: expected one of item_id, item"):
        load(f"csv:{tmp_path / 'log.csv'}", columns=IDS, items=table)


# ------------------------------------------------------------------ a log in use


def small():
    return Interactions({"user": [1, 2, 1]}, [7, 8, 9], query_key="user", weights=[1, 2, 3])


@pytest.mark.parametrize(
    ("rows", "items"),
    [
        ([], []),
        (slice(1, None), [8, 9]),
        ([-1], [9]),
        (pd.Series([True, False, True], dtype="boolean"), [7, 9]),
        (np.array([True, False, True], object), [7, 9]),
        (range(2), [7, 8]),
    ],
)
def test_rows_are_taken_by_any_container(rows, items):
    assert small().take(rows).item_ids.tolist() == items


@pytest.mark.parametrize("rows", [[True], [3], [-4], [0.5], 1, [[0, 1]], "ab"])
def test_what_is_no_row_is_refused(rows):
    with pytest.raises(InputError, match="`rows`: expected"):
        small().take(rows)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: small().dataset(0, item_key="item"),
        lambda: small().stream(2.0, item_key="item"),
        lambda: small().dataset(2, item_key="sample_weight"),
        lambda: small().queries(moment="middle"),
        lambda: splits.validation(small(), fraction=0.3, split="nope"),
        lambda: splits.random(small(), test_fraction="0.2"),
        lambda: splits.random(small(), test_fraction=0.4, seed=-1),
        lambda: infer_features(small(), id_dropout={"nobody": 0.5}),
        lambda: infer_features({"city": ["a"], "city_embedding": [1.5]}),
        lambda: ItemCatalogue([7, 8], {"item_id": [1, 2]}),
        lambda: Interactions.from_csv(["log.csv"], IDS),
        lambda: load(5),
    ],
)
def test_settings_that_were_taken_silently_or_broke_deep_inside(wrong):
    with pytest.raises(InputError):
        wrong()


def test_an_empty_log_is_a_log():
    log = Interactions({"age": np.array([], np.float32)}, [])
    assert (len(log), len(log.take([]))) == (0, 0)
    assert as_ids([], "user").tolist() == []


def test_a_feature_may_be_named_as_a_layer():
    specs = infer_features({"normalization": [1.5, 2.5], "dense": ["a", "b"]})
    assert sorted(build_tower(specs, hidden=[4], output_dim=2).input_names) == [
        "dense",
        "normalization",
    ]


def test_missing_lists_are_counted():
    log = Interactions({"past": [[7], []]}, [7, 8], columns={"past": "history"})
    lines = describe(RetrievalData(log, log, ItemCatalogue([7, 8]), "mine"))
    assert lines[0].missing == 1


def test_plain_lists_are_features_too(caplog):
    with caplog.at_level(logging.WARNING, logger="tfrs_negatives"):
        kinds = [
            spec.kind for spec in infer_features({"a": [1.5, 2.5], "b": pl.Series(["x", "y"])})
        ]
    assert kinds == ["numeric", "categorical"]
