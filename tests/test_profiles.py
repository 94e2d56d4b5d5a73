"""What describes a query, which features change with the event, and what may not leak."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions, splits
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.retrieval_data import RetrievalData
from tfrs_negatives.data.schema import Column
from tfrs_negatives.runs.describe import as_text, describe

events = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 99)), min_size=1, max_size=12
)


@settings(max_examples=80, deadline=None)
@given(rows=events, has_times=st.booleans())
def test_a_query_is_described_by_its_latest_event_and_evaluated_by_its_first(rows, has_times):
    frame = pd.DataFrame(rows, columns=["user", "time", "mood"])
    log = Interactions(
        {"user": frame["user"], "mood": frame["mood"]},
        np.arange(len(frame)),
        query_key="user",
        timestamps=frame["time"] if has_times else None,
    )
    ordered = frame.sort_values("time", kind="stable") if has_times else frame
    for moment in ("first", "last"):
        profiles, query_of_event = log.queries(moment=moment)
        expected = getattr(ordered.groupby("user"), moment)()["mood"]
        assert profiles["user"].tolist() == expected.index.tolist()
        assert profiles["mood"].tolist() == expected.tolist()
        assert (profiles["user"][query_of_event] == frame["user"].to_numpy()).all()
    changes = frame.groupby("user")["mood"].nunique().max() > 1
    assert log.event_features == (("mood",) if changes else ())


def test_without_a_query_key_every_event_is_described_by_itself():
    log = Interactions({"mood": [1, 2]}, [7, 8])
    profiles, query_of_event = log.queries()
    assert (profiles["mood"].tolist(), query_of_event.tolist()) == ([1, 2], [0, 1])
    assert log.event_features == ()


def test_a_history_is_of_the_event_and_its_latest_is_the_profile():
    log = Interactions(
        {"user": ["u", "u", "v"], "past": [[], [7], []]},
        [7, 8, 7],
        query_key="user",
        timestamps=[1, 2, 1],
        columns={"past": "history"},
    )
    assert log.event_features == ("past",)
    assert log.queries()[0]["past"].tolist() == [[7], [-1]]


@pytest.mark.parametrize(
    ("past", "message"),
    [
        ([["7"], ["8"]], "expected ids that are integers, as in item_ids. Received: strings"),
        ([7, 8], "expected a list of item ids per row"),
        ([[1.5], [2.5]], "expected a list of item ids per row"),
    ],
)
def test_a_history_holds_ids_as_the_items_have(past, message):
    with pytest.raises(InputError, match=f"`past`: {message}"):
        Interactions({"past": past}, [7, 8], columns={"past": "history"})


def test_what_is_declared_constant_may_not_change():
    features = {"user": ["u", "u"], "age": [20, 21]}
    Interactions(features, [7, 8], "user", columns={"age": "query"})
    with pytest.raises(InputError, match=r"`age`: .*as it is declared constant"):
        Interactions(features, [7, 8], "user", columns={"age": "constant"})


def test_a_missing_value_is_as_constant_as_any_other():
    log = Interactions(
        {"user": ["u", "u"], "age": [None, None], "size": [1.5, None]},
        [7, 8],
        "user",
        columns={"age": Column("query", missing="own"), "size": Column("query", missing="own")},
    )
    assert log.event_features == ("size",)


# ------------------------------------------------------------------ leaks


def test_a_query_feature_named_as_the_item_is_not_overwritten_by_the_positive():
    log = Interactions({"item_id": [5, 6]}, [7, 8])  # the seed item of "more like this"
    with pytest.raises(InputError, match=r"`item_key`: .*'item_id'.*which it would replace"):
        log.dataset(2, item_key="item_id")
    with pytest.raises(InputError, match="`item_key`"):
        log.stream(2, item_key="item_id")
    batch = next(iter(log.dataset(2, item_key="positive", shuffle=False)))
    assert batch["item_id"].numpy().tolist() == [5, 6]
    assert batch["positive"].numpy().tolist() == [7, 8]


def test_no_feature_may_weigh_the_rows_by_its_name():
    with pytest.raises(InputError, match=r"`query_features`: .*'sample_weight'"):
        Interactions({"sample_weight": [1, 2]}, [7, 8])


def test_rows_of_a_filtered_frame_are_counted_by_position():
    frame = pd.DataFrame({"user": [1, 1, 2], "item": [7, 8, 9]})[1:]
    log = Interactions({"user": frame["user"]}, frame["item"], query_key="user")
    assert log.queries()[0]["user"].tolist() == [1, 2]
    assert log.take(np.array([1])).item_ids.tolist() == [9]
    assert log.take([True, False]).item_ids.tolist() == [8]
    batch = next(iter(log.dataset(2, item_key="item", shuffle=False)))
    assert batch["item"].numpy().tolist() == [8, 9]


# ------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"u": [1]}, [7, 8]), "`u`: expected 2 rows, one per event. Received: 1 rows"),
        (({"u": [1, 2]}, [[7], [8]]), "`item_ids`: expected one id per row"),
        (({"u": [1, 2]}, [7, -1]), "`item_ids`: expected no id with the reserved values"),
        (({"u": [1, 2]}, [7.0, 8.0]), "`item_ids`: expected ids"),
        (({"u": [1.5, 2.5]}, [7, 8], "u"), "`u`: expected ids"),
        (({"u": [1, 2]}, [7, 8], "v"), "`query_key`: expected one of"),
        (({"u": [1, 2]}, [7, 8], None, ["a", "b"]), "`timestamps`: expected texts"),
        (({"u": [1, 2]}, [7, 8], None, None, [1, np.nan]), "`weights`: expected a number"),
        (({"u": [1, 2]}, [7, 8], None, None, ["a", "b"]), "`weights`: expected numbers"),
        (({"u": [1, 2]}, [7, 8], None, None, [1, -1]), "`weights`: expected no negative"),
        (({"u": [1, 2]}, [7, 8], None, None, None, [1, None]), "`labels`: expected a number"),
        (({"u": [1, None]}, [7, 8]), "`u`: expected a value in every row"),
        (({"u": [1, 2]}, [7, 8], None, None, None, None, {"w": "query"}), "`w`: expected one of"),
    ],
)
def test_a_malformed_log_is_one_sentence(arguments, message):
    with pytest.raises(InputError, match=message):
        Interactions(*arguments)


# ------------------------------------------------------------------ validation parts


def log_of(size=40, users=8):
    rng = np.random.default_rng(3)
    return Interactions(
        {"user": rng.integers(0, users, size)},
        np.arange(size),
        query_key="user",
        timestamps=rng.permutation(size),
    )


def test_settings_for_the_future_are_chosen_on_the_latest_training_events():
    train, _ = splits.by_time(log_of(), test_fraction=0.25)
    rest, chosen = splits.validation(train, fraction=0.2, split="by_time")
    assert sorted(chosen.timestamps) == sorted(train.timestamps)[-6:]
    assert rest.timestamps.max() < chosen.timestamps.min()


def test_settings_for_new_users_are_chosen_on_other_users():
    train, _ = splits.by_user(log_of(), test_fraction=0.25, seed=1)
    rest, chosen = splits.validation(train, fraction=0.3, split="by_user")
    assert not set(rest.query_features["user"]) & set(chosen.query_features["user"])
    assert len(set(chosen.query_features["user"])) == 2  # .3 of 6


def test_settings_for_the_next_event_are_chosen_on_last_events():
    train, _ = splits.leave_last_out(log_of())
    rest, chosen = splits.validation(train, fraction=0.1, split="leave_last_out")
    frame = pd.DataFrame({"user": train.query_features["user"], "time": train.timestamps})
    last = frame.groupby("user")["time"].max()
    assert len(chosen) == round(0.1 * len(train))
    for user, time in zip(chosen.query_features["user"], chosen.timestamps, strict=True):
        assert time == last[user]
        assert user in rest.query_features["user"]
    all_last, fraction = len(last), 0.9
    _, most = splits.validation(train, fraction=fraction, split="leave_last_out")
    assert len(most) <= all_last  # there are no more


# ------------------------------------------------------------------ the printed schema


def test_the_schema_says_what_was_found_and_what_was_declared():
    log = Interactions(
        {"user": ["u", "u", "v"], "age": [20, 20, 30], "mood": [1.5, 2.5, None], "past": [[1]] * 3},
        [7, 8, 7],
        query_key="user",
        timestamps=[1, 2, 3],
        columns={"mood": Column("query", missing="own"), "past": "history"},
    )
    data = RetrievalData(log, log, ItemCatalogue([7, 8], {"year": [1990, 1995]}), "mine")
    lines = {line.name: line for line in describe(data)}
    assert {name: (line.role, line.declared) for name, line in lines.items()} == {
        "user": ("query_id", True),
        "age": ("constant", False),
        "mood": ("event", False),
        "past": ("history", True),
        "item_id": ("item_id", True),
        "year": ("item", False),
        "time": ("time", True),
    }
    assert (lines["mood"].missing, lines["mood"].distinct, lines["mood"].type) == (1, 2, "number")
    assert (lines["past"].type, lines["past"].distinct) == ("integer [1]", None)
    text = as_text(data, list(lines.values()))
    assert "mine: 3 training events, 3 test events, 2 items" in text
    assert "event (found)" in text


def test_what_a_log_hands_out_cannot_be_set():
    with pytest.raises(dataclasses.FrozenInstanceError):
        log_of().item_ids = np.arange(3)


def test_a_tensor_of_weights_weighs():
    log = Interactions({"u": [1, 2]}, [7, 8], weights=tf.constant([1.0, 2.0]))
    batch = next(iter(log.dataset(2, item_key="item", shuffle=False)))
    assert batch["sample_weight"].numpy().tolist() == [1.0, 2.0]
