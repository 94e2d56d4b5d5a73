"""CSV as it is written, and catalogues beside or inside the log."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions, ItemTable, load
from tfrs_negatives.data.schema import Column

IDS = {"user": "query_id", "item": "item_id"}


@pytest.fixture
def csv(tmp_path):
    def write(text, name="log.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("quote", ["", '"'])
def test_ids_keep_their_leading_zeros(csv, quote):
    rows = "\n".join(f"{quote}{user}{quote},{item}" for user, item in [("007", "08"), ("7", "8")])
    log = Interactions.from_csv(csv(f"user,item\n{rows}\n"), IDS)
    assert log.query_features["user"].tolist() == ["007", "7"]
    assert log.item_ids.tolist() == ["08", "8"]


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["7", "-3", "0"], [7, -3, 0]),
        (["7", "+3"], ["7", "+3"]),
        (["7", "1_000"], ["7", "1_000"]),
        (["7", " 8"], ["7", " 8"]),
        (["1.50", "2"], [1.5, 2.0]),
        (["1.5", "01.5"], ["1.5", "01.5"]),
        (["1e3", ".5"], [1000.0, 0.5]),
        (["true", "False"], [1, 0]),
        (["true", "1"], ["true", "1"]),
        (["NA", "nothing"], ["NA", "nothing"]),
        (['"a,b"', '"c""d"'], ["a,b", 'c"d']),
        (['"a\nb"', "c"], ["a\nb", "c"]),
        (["Zoë", "日本"], ["Zoë", "日本"]),
    ],
)
def test_a_column_is_what_all_its_cells_are(csv, cells, values):
    text = "user,item,x\n" + "".join(f"u,i{n},{cell}\n" for n, cell in enumerate(cells))
    log = Interactions.from_csv(csv(text), {**IDS, "x": "query"})
    assert log.query_features["x"].tolist() == values


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["7", ""], "`x`: .*missing: own.*1 missing, the first in row 1"),
        (["7", "NaN"], "`x`: .*missing: own.*1 missing, the first in row 1"),
        (["7.5", "NA"], "`x`: .*missing: own.*1 missing, the first in row 1"),
        (["a", ""], "`x`: .*missing: own.*1 missing, the first in row 1"),
        (["a", '""'], "`x`: .*missing: own.*1 missing, the first in row 1"),
        (["", ""], "`x`: .*missing: own.*2 missing, the first in row 0"),
        (["1", "inf"], "`x`: expected finite numbers.*row 1"),
        (["2020-01-01", "2020-01-02"], "`x`: .*a date is a `time`"),
        (["9223372036854775808", "1"], "`x`: expected integers that fit into int64, or `type: t"),
    ],
)
def test_what_no_feature_can_be_is_named(csv, cells, message):
    text = "user,item,x\n" + "".join(f"u,i{n},{cell}\n" for n, cell in enumerate(cells))
    with pytest.raises(InputError, match=message):
        Interactions.from_csv(csv(text), {**IDS, "x": "query"})


def test_numbers_for_ids_are_refused_and_a_declared_type_reads_them(csv):
    path = csv("user,item\n1.10,1\n1.1,2\n")  # two users
    with pytest.raises(InputError, match="`user`: expected ids that are integers or texts"):
        Interactions.from_csv(path, IDS)
    log = Interactions.from_csv(path, {**IDS, "user": Column("query_id", type="text")})
    assert log.query_features["user"].tolist() == ["1.10", "1.1"]


def test_fractions_of_seconds_decide_a_split(csv):
    rows = ["1,7,2024-01-01T00:00:00.900", "1,8,2024-01-01T00:00:00.100"]
    path = csv("user,item,time\n" + "\n".join(rows) + "\n")
    data = load(f"csv:{path}", columns={**IDS, "time": "time"}, test_fraction=0.5)
    assert (data.train.item_ids.tolist(), data.test.item_ids.tolist()) == ([8], [7])


def test_numbers_for_times_are_ordered_as_numbers(csv):
    path = csv("user,item,time\n1,7,10\n1,8,9\n")
    data = load(f"csv:{path}", columns={**IDS, "time": "time"}, test_fraction=0.5)
    assert data.test.item_ids.tolist() == [7]


@pytest.mark.parametrize(("log_ids", "item_ids"), [("78", ["7", "A", "8"]), ("7A", "7A8")])
def test_ids_are_texts_on_both_sides_where_one_side_has_texts(csv, log_ids, item_ids):
    log = csv("user,item\n" + "".join(f"{n},{i}\n" for n, i in enumerate(log_ids)))
    items = csv("item,price\n" + "".join(f"{i},1.5\n" for i in item_ids), "items.csv")
    data = load(f"csv:{log}", columns=IDS, items=ItemTable(str(items)), test_fraction=0.5)
    assert data.items.ids.tolist() == list(item_ids)
    assert sorted([*data.train.item_ids, *data.test.item_ids]) == sorted(log_ids)


def test_zeros_of_one_side_are_not_lost_on_the_other(csv):
    log = csv("user,item\n1,7\n2,8\n")
    items = csv("item\n007\n7\n8\n", "items.csv")
    data = load(f"csv:{log}", columns=IDS, items=ItemTable(str(items)), test_fraction=0.5)
    assert data.items.ids.tolist() == ["007", "7", "8"]


def test_items_are_described_by_their_latest_event(tmp_path):
    rows = {
        "user": [1, 2, 1, 3],
        "item": ["b", "a", "b", "b"],
        "time": [5, 1, 9, 9],
        "price": [1.0, 2.0, None, 4.0],
        "name": ["B", "A", "B2", "B3"],
    }
    pq.write_table(pa.table(rows), tmp_path / "log.parquet")
    columns = {**IDS, "time": "time", "price": Column("item", missing="own"), "name": "title"}
    data = load(f"parquet:{tmp_path / 'log.parquet'}", columns=columns, test_fraction=0.5)
    assert data.items.ids.tolist() == ["a", "b"]
    assert data.items.features["price"].tolist() == [2.0, 4.0]
    assert data.titles.tolist() == ["A", "B3"]
    assert data.items.item_key == "item"


def test_items_are_described_in_one_place(tmp_path):
    pq.write_table(pa.table({"user": [1], "item": [7], "price": [1.0]}), tmp_path / "log.parquet")
    pq.write_table(pa.table({"item": [7]}), tmp_path / "items.parquet")
    with pytest.raises(InputError, match="`price`: expected a column of the table of items"):
        load(
            f"parquet:{tmp_path / 'log.parquet'}",
            columns={**IDS, "price": "item"},
            items=ItemTable(str(tmp_path / "items.parquet")),
        )


def test_named_features_are_all_that_is_read_of_a_table_of_items(tmp_path, caplog):
    pq.write_table(
        pa.table({"user": [1, 2], "item": [7, 8], "x": [1, 2]}), tmp_path / "log.parquet"
    )
    items = pa.table({"sku": [7, 8], "price": [1.0, 2.0], "link": ["u", "v"]})
    pq.write_table(items, tmp_path / "items.parquet")
    table = ItemTable(str(tmp_path / "items.parquet"), {"sku": "item_id", "price": "item"})
    with caplog.at_level(logging.INFO, logger="tfrs_negatives"):
        data = load(
            f"parquet:{tmp_path / 'log.parquet'}", columns=IDS, items=table, test_fraction=0.5
        )
    assert set(data.items.features) == {"item", "price"}
    assert "log.parquet: columns that are not read: x" in caplog.text
    assert "items.parquet: columns that are not read: link" in caplog.text


def test_a_time_decides_the_split_where_the_log_has_one(tmp_path):
    rows = {"user": [1, 2, 3, 4], "item": [1, 2, 3, 4], "time": [4, 3, 2, 1]}
    pq.write_table(pa.table(rows), tmp_path / "log.parquet")
    source = f"parquet:{tmp_path / 'log.parquet'}"
    by_time = load(source, columns={**IDS, "time": "time"}, test_fraction=0.25)
    assert by_time.test.item_ids.tolist() == [1]
    at_random = {
        tuple(load(source, columns=IDS, test_fraction=0.25, seed=seed).test.item_ids)
        for seed in range(8)
    }
    assert len(at_random) > 1


def test_a_validation_part_of_a_log_with_times_is_of_the_latest_training_events(tmp_path):
    rows = {"user": np.arange(20), "item": np.arange(20), "time": np.arange(20)[::-1]}
    pq.write_table(pa.table(rows), tmp_path / "log.parquet")
    data = load(
        f"parquet:{tmp_path / 'log.parquet'}",
        columns={**IDS, "time": "time"},
        test_fraction=0.2,
        validation_fraction=0.25,
    )
    assert sorted(data.test.timestamps) == [12, 13, 14, 15]
    assert sorted(data.train.timestamps) == list(range(12))
