"""One string chooses the data: `load("ml-100k:PATH")`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.interactions import Interactions
from tfrs_negatives.data.retrieval_data import RetrievalData, SourceLog
from tfrs_negatives.data.schema import ColumnSpec, Schema
from tfrs_negatives.data.sources.movielens import read_grouplens, read_prepared
from tfrs_negatives.data.sources.synthetic import synthetic
from tfrs_negatives.data.sources.tables import DEFAULT_COLUMNS, ItemTable, read_tables
from tfrs_negatives.data.sources.xmc import WORDS, read_xmc
from tfrs_negatives.data.splits import AS_GIVEN, SPLITS, Parts, validation

TABLES = ("parquet:", "csv:")
SOURCES = (
    "synthetic",
    "movielens/100k",
    "movielens/1m",
    "ml-100k:PATH",
    "lightgcn:PATH",
    "xmc:PATH",
    "parquet:PATH",
    "csv:PATH",
)


def load(
    source: str,
    *,
    split: str | None = None,
    test_fraction: float = 0.2,
    validation_fraction: float | None = None,
    min_rating: float | None = None,
    seed: int = 0,
    data_dir: str | None = None,
    columns: Mapping[str, ColumnSpec] | None = None,
    items: ItemTable | None = None,
) -> RetrievalData:
    """Reads a log, keeps the positives and cuts it into training and test.

    Args:
        source: one of
            `synthetic`, the built-in generator at its default sizes;
            `movielens/100k` or `movielens/1m`, through tensorflow-datasets;
            `ml-100k:PATH`, the folder that GroupLens ships;
            `lightgcn:PATH`, a folder with train.txt and test.txt, each line a user and then items;
            `xmc:PATH`, a folder in the text format of the Extreme Classification Repository, see
            `sources/xmc.py`; of all.txt alone `by_user` makes a test part of new points;
            `parquet:PATH` or `csv:PATH`, a file or a folder of files.
        split: a name in `SPLITS`, or `as_given` for the split that the source comes with; None is
            `as_given` where there is one, otherwise `by_time` where the log has times, otherwise
            `random`.
        test_fraction: share of test for the splits that have a choice.
        validation_fraction: share of the training events that is returned in the place of the test
            part, which is dropped; it is cut off in the way of the split (`splits.validation`).
            None returns the test part.
        min_rating: events with a lower rating are dropped; None keeps all.
        seed: of the split, and of the synthetic generator.
        data_dir: folder of tensorflow-datasets; None is its own default. What is not prepared
            there is downloaded.
        columns: name -> role or `Column`. Of a Parquet or CSV source these are the columns that are
            read, `user_id` and `item_id` for None; another source knows its own, and what is named
            here takes the place of what it says (`Column("query", encoding="left_out")`).
        items: the catalogue of a Parquet or CSV source; None is the items of its log.

    Returns:
        The data. Only the synthetic log with its own split has a `truth`, not its validation part.

    Raises:
        InputError: if the source is unknown, missing or malformed, an item of the log is not in the
            catalogue, nothing is left after the threshold, or a side of the split is empty.

    Example:
        >>> data = load("synthetic", split="by_time", test_fraction=0.1)
        >>> len(data.train), len(data.test), data.truth is None
        (180000, 20000, True)
    """
    found = _read(source, seed, data_dir, columns=columns, items=items)
    if columns and not source.startswith(TABLES):
        found = _declare(found, Schema(columns))
    found = _keep_positives(found, min_rating)
    found.log.item_rows(found.items)
    if split is None:
        split = default_split(found)
    train, test = _cut(found, split, test_fraction, seed)
    name = _short_name(source)
    if validation_fraction is not None:
        train, test = validation(train, fraction=validation_fraction, split=split)
        name += ", validation"
    return RetrievalData(
        train=train,
        test=test,
        items=found.items,
        name=name,
        truth=found.truth if split == AS_GIVEN and validation_fraction is None else None,
        titles=found.titles,
    )


def default_split(found: SourceLog) -> str:
    """Returns the way to cut a log that none is named for: that of the future, where it has one."""
    if found.is_test is not None:
        return AS_GIVEN
    return "random" if found.log.timestamps is None else "by_time"


def _read(
    source: str,
    seed: int,
    data_dir: str | None,
    *,
    columns: Mapping[str, ColumnSpec] | None,
    items: ItemTable | None,
) -> SourceLog:
    if not isinstance(source, str):
        raise bad_input("source", f"one of {', '.join(SOURCES)}", repr(source))
    kind, _, path = source.partition(":")
    if (f"{kind}:PATH" if path else source) not in SOURCES:
        raise bad_input("source", f"one of {', '.join(SOURCES)}", repr(source))
    if path and not Path(path).exists():
        raise bad_input("source", "an existing file or folder", path)
    if kind in ("parquet", "csv"):
        return read_tables(Path(path), kind, columns or DEFAULT_COLUMNS, items=items)
    if items is not None:
        raise bad_input("items", "None: only parquet and csv sources have them", f"{source}")
    if kind == "synthetic":
        return _read_synthetic(seed)
    if kind == "ml-100k":
        return read_grouplens(Path(path))
    if kind == "lightgcn":
        return _read_lightgcn(Path(path))
    if kind == "xmc":
        words = Schema(columns or {}).columns.get(WORDS)
        return read_xmc(Path(path), encoding=None if words is None else words.encoding)
    return read_prepared(kind.removeprefix("movielens/"), data_dir)


def _declare(found: SourceLog, schema: Schema) -> SourceLog:
    """Says of the columns of a source that knows its own what is declared of them."""
    log, items = found.log, found.items
    for role, known in {"query_id": log.query_key, "item_id": items.item_key}.items():
        for name in schema.names(role):
            if name != known:
                raise bad_input(f"columns.{name}", f"{known!r} as the {role} of this source", name)
    for name in schema.names("title", "time", "weight", "label"):
        raise bad_input(f"columns.{name}", "a feature or an id of this source", name)
    of_items = {name: schema.columns[name] for name in schema.names("item_id", "item")}
    of_log = {name: schema.columns[name] for name in schema.features}
    others = {name: column for name, column in items.features.items() if name != items.item_key}
    catalogue = ItemCatalogue(
        items.ids, others, item_key=items.item_key, columns={**items.columns, **of_items}
    )
    log = replace(log, columns={**log.columns, **of_log})
    return replace(found, log=log, items=catalogue)


def _short_name(source: str) -> str:
    kind, _, path = source.partition(":")
    return f"{kind}:{Path(path).name}" if path else kind


def _keep_positives(found: SourceLog, min_rating: float | None) -> SourceLog:
    if min_rating is None:
        return found
    labels = found.log.labels
    if labels is None:
        raise bad_input("min_rating", "None for a log without labels", min_rating)
    kept = labels >= min_rating
    if not kept.any():
        expected = f"a label that some event reaches; the highest is {labels.max()}"
        raise bad_input("min_rating", expected, min_rating)
    return replace(
        found,
        log=found.log.take(kept),
        is_test=None if found.is_test is None else found.is_test[kept],
    )


def _cut(found: SourceLog, split: str, test_fraction: float, seed: int) -> Parts:
    if split == AS_GIVEN:
        if found.is_test is None:
            raise bad_input("split", f"one of {sorted(SPLITS)} for a source without a split", split)
        if found.is_test.all() or not found.is_test.any():
            raise bad_input("split", "events on both sides of the given split", "an empty side")
        return found.log.take(~found.is_test), found.log.take(found.is_test)
    if not isinstance(split, str) or split not in SPLITS:
        raise bad_input("split", f"one of {sorted([*SPLITS, AS_GIVEN])}", repr(split))
    return SPLITS[split](found.log, test_fraction, seed)


def _read_synthetic(seed: int) -> SourceLog:
    data = synthetic(seed=seed)
    train, test = data.train, data.test
    log = Interactions(
        {n: np.concatenate([c, test.query_features[n]]) for n, c in train.query_features.items()},
        np.concatenate([train.item_ids, test.item_ids]),
        query_key=train.query_key,
        timestamps=np.concatenate([train.timestamps, test.timestamps]),
    )
    is_test = np.repeat([False, True], [len(train), len(test)])
    return SourceLog(log, data.items, is_test=is_test, truth=data.truth)


def _read_lightgcn(folder: Path) -> SourceLog:
    train_users, train_items = _read_lists(folder / "train.txt")
    test_users, test_items = _read_lists(folder / "test.txt")
    users = np.concatenate([train_users, test_users])
    item_ids = np.concatenate([train_items, test_items])
    if not len(item_ids):
        raise bad_input("source", "at least one event", f"none in {folder}")
    log = Interactions({"user_id": users}, item_ids, query_key="user_id")
    is_test = np.repeat([False, True], [len(train_items), len(test_items)])
    return SourceLog(log, ItemCatalogue(np.unique(item_ids)), is_test=is_test)


def _read_lists(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the user and the item of each event, [E] int64 each; a line may hold a user alone."""
    if not path.is_file():
        raise bad_input("source", "a folder with train.txt and test.txt", f"no file {path}")
    users, lengths, items = [], [], []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            ids = [int(word) for word in line.split()]
        except ValueError:
            ids = [-1]
        if ids and min(ids) < 0:
            expected = f"ids that are integers not below 0 in line {number}"
            raise bad_input(path.name, expected, line[:60].decode(errors="replace"))
        if ids:
            users.append(ids[0])
            lengths.append(len(ids) - 1)
            items.extend(ids[1:])
    return np.repeat(np.array(users, np.int64), lengths), np.array(items, np.int64)
