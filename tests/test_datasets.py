from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import ItemTable, load
from tfrs_negatives.data.schema import Column
from tfrs_negatives.towers.features import infer_features

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")


# LightGCN files.


def write_lightgcn(folder: Path, train: str, test: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "train.txt").write_text(train)
    (folder / "test.txt").write_text(test)
    return f"lightgcn:{folder}"


def test_lightgcn_keeps_the_split(tmp_path: Path) -> None:
    source = write_lightgcn(tmp_path / "tiny", "0 5 3\n1 \n2 3 \n", "0 9\n2 5")
    data = load(source)
    assert data.name == "lightgcn:tiny"
    assert data.train.query_features["user_id"].tolist() == [0, 0, 2]
    assert data.train.item_ids.tolist() == [5, 3, 3]
    assert data.test.query_features["user_id"].tolist() == [0, 2]
    assert data.test.item_ids.tolist() == [9, 5]
    assert data.items.ids.tolist() == [3, 5, 9]


def test_lightgcn_may_be_cut_anew(tmp_path: Path) -> None:
    source = write_lightgcn(tmp_path, "0 1 2 3\n1 4 5 6", "0 7 8")
    data = load(source, split="random", test_fraction=0.5)
    assert (len(data.train), len(data.test)) == (4, 4)


@needs_shared
def test_gowalla_has_its_published_sizes() -> None:
    data = load(f"lightgcn:{SHARED / 'gowalla'}")
    assert (len(data.train), len(data.test), len(data.items)) == (810_128, 217_242, 40_981)
    assert len(data.train.queries()[0]["user_id"]) == 29_858


# MovieLens.

RATINGS = "1\t20\t5\t300\n2\t10\t3\t100\n1\t10\t2\t200\n2\t20\t4\t200\n"
USERS = "1|24|M|technician|85711\n2|53|F|other|T8H1N\n"
MOVIES = (
    "10|Café (No. 1) (1996)|01-Jan-1995||http://x|0|1|0|1\n"
    "20|unknown||||1|0|0|0\n"
    "3|Third (1949), The (1950) (V)|01-Jan-1950||http://y|0|0|0|1\n"
)
GENRES = "unknown|0\nChildren's|1\nWestern|2\nAction|3\n\n"


def write_grouplens(folder: Path, **changed: str) -> str:
    files = {"data": RATINGS, "user": USERS, "item": MOVIES, "genre": GENRES, **changed}
    for name, text in files.items():
        (folder / f"u.{name}").write_text(text, encoding="latin-1")
    return f"ml-100k:{folder}"


def test_grouplens_folder(tmp_path: Path) -> None:
    data = load(write_grouplens(tmp_path), split="by_time", test_fraction=0.25)
    train, test = data.train, data.test
    assert train.timestamps.tolist() == [100, 200, 200]
    assert train.query_features["user_id"].tolist() == ["2", "1", "2"]
    assert train.item_ids.tolist() == ["10", "10", "20"]
    assert train.query_features["age"].tolist() == [53, 24, 53]
    assert train.query_features["gender"].tolist() == ["F", "M", "F"]
    assert train.query_features["occupation"].tolist() == ["other", "technician", "other"]
    assert train.query_features["zip_code"].tolist() == ["T8H1N", "85711", "T8H1N"]
    assert (test.item_ids.tolist(), test.query_key) == (["20"], "user_id")
    assert data.items.ids.tolist() == ["3", "10", "20"]
    assert data.titles.tolist() == [
        "Third (1949), The (1950) (V)",
        "Café (No. 1) (1996)",
        "unknown",
    ]
    assert data.items.features["year"].tolist() == [1950, 1996, 0]
    # Action, Children, Unknown: by name, without Western, which no movie has.
    assert data.items.features["genres"].tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]


def test_min_rating_keeps_the_rating_itself(tmp_path: Path) -> None:
    data = load(write_grouplens(tmp_path), split="by_time", test_fraction=0.5, min_rating=4)
    assert [*data.train.item_ids, *data.test.item_ids] == ["20", "20"]


@needs_shared
@pytest.mark.parametrize("split", ["random", "by_user", "leave_last_out", "by_time"])
def test_both_forms_of_movielens_give_equal_data(split: str) -> None:
    folder, prepared = SHARED / "ml-100k", SHARED / "tensorflow_datasets"
    ours = load(f"ml-100k:{folder}", split=split, min_rating=3, seed=4)
    theirs = load("movielens/100k", split=split, min_rating=3, seed=4, data_dir=str(prepared))
    assert len(ours.train) + len(ours.test) == 82_520
    for mine, other in ((ours.train, theirs.train), (ours.test, theirs.test)):
        assert (mine.item_ids == other.item_ids).all()
        assert (mine.timestamps == other.timestamps).all()
        assert set(mine.query_features) == set(other.query_features)
        for name, column in mine.query_features.items():
            assert (column == other.query_features[name]).all(), name
            assert column.dtype == other.query_features[name].dtype, name
    assert set(ours.items.features) == set(theirs.items.features) == {"movie_id", "year", "genres"}
    for name, column in ours.items.features.items():
        assert (column == theirs.items.features[name]).all(), name
        assert column.dtype == theirs.items.features[name].dtype, name
    assert (ours.titles == theirs.titles).all()
    assert ours.items.features["genres"].shape == (1682, 19)


def test_a_failed_download_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")

    def no_network(name: str, data_dir: str) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tfds, "builder", no_network)
    with pytest.raises(InputError, match="`data_dir`: expected a folder with movielens/1m-ratings"):
        load("movielens/1m", data_dir=str(tmp_path))


# Tables.

LOG = {
    "user": ["a", "b", "a", "c", "b"],
    "item": [3, 1, 2, 3, 1],
    "when": [50, 10, 40, 20, 30],
    "stars": [5.0, 4.0, 1.0, 3.0, 5.0],
    "worth": [1, 2, 1, 1, 3],
}
ITEMS = {"id": [1, 2, 3], "name": ["x", "y", "z"], "price": [1.5, 2.5, 3.5], "kind": [4, 5, 4]}
IDS = {"user": "query_id", "item": "item_id"}
COLUMNS = {**IDS, "when": "time", "worth": "weight", "stars": "label"}

Write = Callable[[Any, Path], None]
WRITERS: dict[str, Write] = {"parquet": pq.write_table, "csv": pa_csv.write_csv}


def write_table(path: Path, columns: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[path.suffix[1:]](pa.table(columns), path)
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_table_with_a_catalogue(kind: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / f"log.{kind}", LOG)
    items = write_table(tmp_path / f"items.{kind}", ITEMS)
    table = ItemTable(str(items), {"id": "item_id", "name": "title"})
    options = {"split": "by_time", "test_fraction": 0.3, "min_rating": 3}
    data = load(f"{kind}:{path}", columns=COLUMNS, items=table, **options)
    assert data.train.query_features["user"].tolist() == ["b", "c", "b"]
    assert data.train.item_ids.tolist() == [1, 3, 1]
    assert data.train.weights.tolist() == [2, 1, 3]
    assert data.test.timestamps.tolist() == [50]
    assert data.items.item_key == "item"
    assert data.items.features["item"].tolist() == [1, 2, 3]
    assert data.items.features["price"].dtype == np.float32
    assert data.items.features["kind"].tolist() == [4, 5, 4]
    assert data.titles.tolist() == ["x", "y", "z"]
    assert set(data.items.features) == {"item", "price", "kind"}


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_folder_of_tables_without_a_catalogue(kind: str, tmp_path: Path) -> None:
    for part in (0, 1):
        rows = {name: values[2 * part : 2 * part + 3] for name, values in LOG.items()}
        write_table(tmp_path / "log" / f"part{part}.{kind}", rows)
    data = load(f"{kind}:{tmp_path / 'log'}", columns=IDS, split="by_user", test_fraction=0.4)
    assert len(data.train) + len(data.test) == 6
    assert data.items.ids.tolist() == [1, 2, 3]
    assert list(data.items.features) == ["item"]
    assert data.train.timestamps is None


def test_kinds_of_columns(tmp_path: Path) -> None:
    day = np.array(["1970-01-02", "1970-01-01", "1970-01-03"], "datetime64[D]")
    table = {
        "item_id": ["p", "q", "p"],
        "user_id": pa.array(["u", "v", "u"]).dictionary_encode(),
        "words": [["x", "y"], [], ["z"]],
        "past": [[7, 8], [9], []],
        "flags": pa.array([[1, 0], [0, 0], [1, 1]], pa.list_(pa.int8())),
        "vector": [[0.5, 1.0], [2.0, 3.0], [4.0, 5.0]],
        "member": [True, False, True],
        "time": pa.array(day.astype("datetime64[us]") + np.timedelta64(1_500_000, "us")),
    }
    names = ("words", "past", "flags", "vector", "member")
    path = write_table(tmp_path / "log.parquet", table)
    columns = {"user_id": "query_id", "item_id": "item_id", "time": "time"}
    columns |= dict.fromkeys(names, "query")
    data = load(f"parquet:{path}", columns=columns, split="by_time", test_fraction=0.3)
    features = data.train.query_features
    assert data.train.timestamps.tolist() == [86_401.5, 1.5]
    assert features["user_id"].tolist() == ["u", "v"]
    assert features["words"].tolist() == [["x", "y"], ["", ""]]
    assert features["past"].tolist() == [[7, 8], [9, -1]]
    assert features["flags"].tolist() == [[1, 0], [0, 0]]
    assert features["vector"].tolist() == [[0.5, 1.0], [2.0, 3.0]]
    assert features["member"].tolist() == [1, 0]
    kinds = {name: column.dtype for name, column in features.items()}
    assert (kinds["past"], kinds["flags"], kinds["vector"]) == (np.int64, np.int8, np.float32)
    assert data.test.query_features["past"].tolist() == [[-1, -1]]


WITH_AGE = {**COLUMNS, "age": "query"}
BAD_TABLES = [
    ({"item": [1.5, 2.0, 3.0, 1.0, 2.0]}, {}, "`item`: expected ids .*Received: number 1.5 in row"),
    ({"item": [1, 2, None, 3, 1]}, {}, "`item`: expected an id in every row.*first in row 2"),
    ({"stars": [1.0, float("nan"), 2, 3, 4]}, {}, "`stars`: expected a number in every row.*row 1"),
    ({"stars": list("abcde")}, {}, "`stars`: expected numbers"),
    ({"worth": [1, -2, 1, 1, 1]}, {}, "`weights`: expected no negative weight"),
    ({"when": list("abcde")}, {}, "`when`: expected texts that can be read as time.*'a'"),
    ({"when": [True] * 5}, {}, "`when`: expected dates, times, or seconds"),
    ({"user": [1.0, 2.0, 3.0, 1.0, 1.0]}, {}, "`user`: expected ids.*type: integer"),
    ({"user": [[1], [1], [2], [2], [2]]}, {}, "`user`: expected one id per row"),
    ({"user": [b"\xff"] * 5}, {}, "`user`: expected bytes in UTF-8"),
    ({"age": [[1, -1], [1], [], [2], [2]]}, {}, "`age`: expected no negative number in lists"),
    ({"age": [[1.5, 1.0], [1.0], [], [2.0], [2.0]]}, {}, "`age`: .*lists of numbers with one"),
    ({"age": [[1], [None], [1], [1], [1]]}, {}, "`age`: expected no missing or empty value in a"),
    ({"age": [1.0, 2.0, float("inf"), 1.0, 1.0]}, {}, "`age`: expected finite numbers.*row 2"),
    ({"age": [1.0, 2.0, float("nan"), 1.0, 1.0]}, {}, "`age`: expected a value in .*row 2"),
    ({"age": [1e300] * 5}, {}, "`age`: expected finite numbers of float32"),
    ({"age": np.array([1, 2, 3, 4, 5], "M8[s]")}, {}, "`age`: expected numbers or texts; a date"),
    ({"age": [{"a": 1}] * 5}, {}, "`age`: expected numbers, texts, times, or lists"),
    ({}, {"columns": {"user": "query_id", "sku": "item_id"}}, "`sku`: expected one of the columns"),
    ({}, {"columns": {"who": "query_id", "item": "item_id"}}, "`who`: expected one of the columns"),
    ({}, {"columns": {"user": "query_id"}}, "`columns`: expected a column of the role item_id"),
    ({}, {"columns": {**IDS, "when": "query_id"}}, "`columns`: expected one column of the role"),
    ({}, {"columns": {**IDS, "when": "clock"}}, "`columns.when`: expected one of"),
    ({}, {"columns": None}, "`user_id`: expected one of the columns"),
    ({}, {"min_rating": 6}, "`min_rating`: expected a label that some event reaches.*5.0"),
    ({}, {"split": "as_given"}, "`split`: .*for a source without a split"),
    ({}, {"split": "by_moon"}, "`split`: expected one of .*Received: 'by_moon'"),
    ({}, {"test_fraction": 2.0}, "`test_fraction`: expected a number between 0 and 1"),
    ({}, {"columns": IDS, "min_rating": 3}, "`min_rating`: expected None for a log without labels"),
    ({}, {"columns": IDS, "split": "by_time"}, "`split`: expected a log with timestamps"),
    ({name: values[:0] for name, values in LOG.items()}, {}, "`source`: expected at least one row"),
]


@pytest.mark.parametrize(("changed", "options", "message"), BAD_TABLES)
def test_bad_tables(
    changed: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write_table(tmp_path / "log.parquet", {**LOG, **changed})
    columns = WITH_AGE if "age" in changed else COLUMNS
    with pytest.raises(InputError, match=message):
        load(f"parquet:{path}", **{"columns": columns, **options})


@pytest.mark.parametrize(
    ("changed", "spec", "message"),
    [
        ({"id": [1, 2, 1]}, {}, "`ids`: expected each item once"),
        ({"id": [1, 2, 4]}, {}, "`item_ids`: expected only items of the catalogue.*first is .*3"),
        ({"id": ["1", "2", "3"]}, {}, "`item`: expected ids that are strings, as in the catalogue"),
        ({"price": [1.0, None, 2.0]}, {}, "`price`: expected a value in every row.*row 1"),
        ({"price": [1.0, float("nan"), 2.0]}, {}, "`price`: expected a value in every row.*row 1"),
        ({}, {"columns": {"id": "item_id", "label": "title"}}, "`label`: expected one of the"),
        ({}, {"columns": {"sku": "item_id"}}, "`sku`: expected one of the columns"),
        ({}, {"path": "absent.parquet"}, "`items`: expected an existing file or folder"),
    ],
)
def test_bad_catalogues(
    changed: dict[str, Any], spec: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write_table(tmp_path / "log.parquet", LOG)
    items = write_table(tmp_path / "items.parquet", {**ITEMS, **changed})
    table = ItemTable(**{"path": str(items), "columns": {"id": "item_id"}, **spec})
    with pytest.raises(InputError, match=message):
        load(f"parquet:{path}", columns=IDS, items=table)


def test_a_csv_that_changes_its_mind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item\na,1\nb\n")
    with pytest.raises(InputError, match=r"log.csv`: expected readable csv"):
        load(f"csv:{tmp_path / 'log.csv'}", columns=IDS)


# Sources.


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("netflix", "`source`: expected one of synthetic, .*Received: 'netflix'"),
        ("lightgcn", "`source`: expected one of .*Received: 'lightgcn'"),
        ("lightgcn:", "`source`: expected one of .*Received: 'lightgcn:'"),
        ("synthetic:here", "`source`: expected one of .*Received: 'synthetic:here'"),
        ("ml-100k:/no/such/folder", "`source`: expected an existing file or folder"),
        ("csv:/no/such.csv", "`source`: expected an existing file or folder"),
    ],
)
def test_bad_sources(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(source)


def test_a_table_of_items_belongs_to_tables_only() -> None:
    with pytest.raises(InputError, match=r"`items`: .*only parquet and csv sources have them"):
        load("synthetic", items=ItemTable("items.parquet"))


def test_a_source_that_knows_its_columns_can_be_told_how_a_tower_reads_them(
    tmp_path: Path,
) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text("0 1 2\n1 2 3\n")
    columns = {
        "user_id": Column("query_id", encoding="left_out"),
        "item_id": Column("item_id", encoding="categorical"),
    }
    data = load(f"lightgcn:{tmp_path}", columns=columns)
    assert infer_features(data.train) == []
    assert [spec.kind for spec in infer_features(data.items)] == ["categorical"]
    plain = load(f"lightgcn:{tmp_path}")
    assert [spec.name for spec in infer_features(plain.train)] == ["user_id"]
    assert data.items.ids.tolist() == plain.items.ids.tolist()


@pytest.mark.parametrize(
    "columns", [{"user": "query_id"}, {"user_id": "time"}, {"age": "query"}, {"year": "item"}]
)
def test_columns_that_a_source_does_not_have(columns: dict[str, str], tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text("0 1 2\n1 2 3\n")
    with pytest.raises(InputError, match=next(iter(columns))):
        load(f"lightgcn:{tmp_path}", columns=columns)


def test_the_ids_of_a_table_can_be_left_out_of_the_item_tower(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item\n1,7\n2,8\n1,8\n2,7\n")
    (tmp_path / "items.csv").write_text("movie,year\n7,1990\n8,2000\n")
    columns = {"user": "query_id", "item": Column("item_id", encoding="left_out")}
    table = ItemTable(str(tmp_path / "items.csv"), {"movie": "item_id"})
    data = load(f"csv:{tmp_path / 'log.csv'}", split="random", columns=columns, items=table)
    assert [spec.name for spec in infer_features(data.items)] == ["year"]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("0 1\n1 x", "0 2", "`train.txt`: expected ids .* in line 2. Received: 1 x"),
        ("0 1", "0 2\n\n1 -5", "`test.txt`: expected ids .* in line 3. Received: 1 -5"),
        ("0 1\n1 2.5", "0 2", "`train.txt`: expected ids .* in line 2"),
        ("0 1", "0", "`split`: .*an empty side"),
        ("", "", "`source`: expected at least one event"),
    ],
)
def test_bad_lightgcn_files(train: str, test: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load(write_lightgcn(tmp_path, train, test))


def test_lightgcn_needs_both_files(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("0 1")
    with pytest.raises(
        InputError, match=r"`source`: expected a folder with train.txt and test.txt"
    ):
        load(f"lightgcn:{tmp_path}")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": "1\t2\t3\n"}, "`u.data`: expected 4 fields in line 1"),
        ({"data": "1\t2\t3\tnoon\n"}, "`u.data`: expected integers"),
        ({"data": RATINGS + "9\t10\t3\t100\n"}, "`u.user`: expected every user of u.data.*user 9"),
        ({"data": RATINGS + "1\t99\t3\t100\n"}, "`item_ids`: expected only items of the catalogue"),
        ({"item": MOVIES + "10|Again (1999)||||0|1|0|0\n"}, "`ids`: expected each item once"),
        ({"user": ""}, "`u.user`: expected at least one line"),
    ],
)
def test_bad_grouplens_files(changed: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load(write_grouplens(tmp_path, **changed))


def test_grouplens_needs_all_files(tmp_path: Path) -> None:
    source = write_grouplens(tmp_path)
    (tmp_path / "u.genre").unlink()
    with pytest.raises(InputError, match=r"`source`: expected a folder with u.data.*u.genre"):
        load(source)


def test_ids_that_do_not_fit_into_int64_are_named(tmp_path):
    users = pa.array([2**63 + 5, 1], pa.uint64())
    pq.write_table(pa.table({"user_id": users, "item_id": [1, 2]}), tmp_path / "log.parquet")
    with pytest.raises(InputError, match=r"^`user_id`: expected integers that fit into int64"):
        load(f"parquet:{tmp_path / 'log.parquet'}")
