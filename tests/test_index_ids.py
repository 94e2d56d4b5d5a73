"""Ids that callers hand to an index, in any container."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from index_cases import make_model

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.index import build_index, vectors_to_parquet
from tfrs_negatives.index.retriever import check_item_ids, check_lists

INTEGERS = [
    [5, 7],
    (5, 7),
    np.array([5, 7], np.int32),
    np.array([5, 7], np.uint64),
    pd.Series([4, 5, 7])[1:],
    pl.Series([5, 7]),
    pa.array([5, 7]),
    tf.constant([5, 7]),
    [np.int64(5), np.uint8(7)],
]
TEXTS = [
    ["Zoë", "b"],
    ["Zoë".encode(), b"b"],
    np.array(["Zoë", "b"]),
    np.array(["Zoë".encode(), b"b"], object),
    pd.Series(["Zoë", "b"]),
    pl.Series(["Zoë", "b"]),
    tf.constant(["Zoë", "b"]),
]


@pytest.mark.parametrize("ids", INTEGERS, ids=lambda ids: type(ids).__name__)
def test_integers_of_every_container(ids):
    assert check_lists(ids, 1, argument="exclude", padding=-1).tolist() == [[5, 7]]
    assert check_lists([ids, [3]], 2, argument="exclude", padding=-1).tolist() == [[5, 7], [3, -1]]
    assert check_item_ids(ids, -1).tolist() == [5, 7]


@pytest.mark.parametrize("ids", TEXTS, ids=lambda ids: type(ids).__name__)
def test_texts_of_every_container(ids):
    assert check_lists(ids, 1, argument="exclude", padding="").tolist() == [["Zoë", "b"]]
    assert check_item_ids(ids, "").tolist() == ["Zoë", "b"]


@pytest.mark.parametrize(
    ("ids", "padding"),
    [
        ([5.0], -1),
        ([True], -1),
        (["5"], -1),
        ([5], ""),
        ([2**63], -1),
        (np.array([2**63], np.uint64), -1),
        ([b"\xff"], ""),
        (["a\0"], ""),
        ([None], -1),
        ([float("nan")], ""),
        (pd.Series([5, None]), -1),
        ([[5], 7], -1),
        (5, -1),
        ("a", ""),
        ({"a": 1}, ""),
    ],
)
def test_what_is_no_id_of_the_index_is_refused(ids, padding):
    with pytest.raises(InputError, match=r"^`exclude`: expected"):
        check_lists(ids, 2, argument="exclude", padding=padding)


@pytest.mark.parametrize(("reserved", "padding"), [(-1, -1), (-(2**63), -1), ("", "")])
def test_no_item_is_changed_under_a_reserved_id(reserved, padding):
    with pytest.raises(InputError, match="`ids`: expected no item with the id of 'no item'"):
        check_item_ids([reserved], padding)


def test_vectors_are_written_beside_ids_of_any_container(tmp_path):
    path = vectors_to_parquet(tmp_path / "v.parquet", np.array([b"a", b"b"], object), np.eye(2))
    assert pq.read_table(path)["id"].to_pylist() == ["a", "b"]
    with pytest.raises(InputError, match="`ids`: expected ids that are integers or texts"):
        vectors_to_parquet(tmp_path / "w.parquet", [1.0, 2.0], np.eye(2))
    assert not (tmp_path / "w.parquet").exists()


# ------------------------------------------------------------------ lists of which nothing is known


@pytest.mark.parametrize(("name", "ids"), [("exclude", [900, 901]), ("allow", [[900], [901]])])
def test_a_list_of_which_nothing_is_known_is_said_once(name, ids, caplog):
    index = build_index(make_model(20))
    queries = {"user_id": np.arange(2)}
    with caplog.at_level(logging.WARNING, logger="tfrs_negatives"):
        for _ in range(2):
            index.top_k(queries, 3, **{name: ids})
    assert caplog.text.count(f"`{name}`: none of its ids is an item of the index: [900, 901]") == 1


def test_a_list_of_which_something_is_known_is_not_remarkable(caplog):
    index = build_index(make_model(20))
    known = index.model.items.ids[:1].tolist()
    with caplog.at_level(logging.WARNING, logger="tfrs_negatives"):
        index.top_k({"user_id": np.arange(1)}, 3, exclude=[*known, 900], allow=[])
    assert "none of its ids" not in caplog.text
