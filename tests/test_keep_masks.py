"""The masks against the slow reference: known positives, several positives, score margins."""

from __future__ import annotations

import json
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import reference_masks as reference
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.data import Interactions
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.ids import to_keys
from tfrs_negatives.step.masks import known_positives
from tfrs_negatives.step.masks.keep import AccidentalHits, ScoreMargin
from tfrs_negatives.step.masks.known_positives import KnownPositives
from tfrs_negatives.step.records import Batch, Scored

NUM_ITEMS = 9
ITEM_IDS = [int(i) for i in np.random.default_rng(0).permutation(NUM_ITEMS) * 7 - 14]
ITEMS = ItemCatalogue(np.array(ITEM_IDS))
NAMED_ITEMS = ItemCatalogue([f"item {i}" for i in range(NUM_ITEMS)])
OUTSIDE = 1000
USERS = [-5, 0, 3, 2**40]
STRANGER = 77
settings.register_profile("masks", max_examples=40, deadline=None)
drawn = settings(settings.get_profile("masks"))


def scored_of(positive, score, ids=None, dtype=np.float32):
    """Candidates of which a mask may read the ids, shared by the rows or their own."""
    positive, score = (tf.cast(tf.constant(x, tf.float32), dtype) for x in (positive, score))
    keep = tf.ones_like(score, tf.bool)
    if ids is not None:
        ids = to_keys(np.asarray(ids)) if np.size(ids) else tf.zeros(np.shape(ids), tf.int64)
    return Scored(positive, score, keep, positive, score, ids)


def batch_of(features, positive_ids=()):
    ids = tf.constant(np.asarray(positive_ids, np.int64))
    nothing = dict.fromkeys(Batch._fields)
    return Batch(**{**nothing, "positive_ids": ids, "features": features})


def log_of(queries, items, key="user"):
    kind = str if any(isinstance(i, str) for i in items) else np.int64
    return Interactions({key: np.array(queries)}, np.array(items, kind), query_key=key)


def known(mask, queries, ids):
    """What the mask keeps for these queries and columns."""
    shape = [len(queries), np.shape(ids)[-1]]
    batch = batch_of({mask.query_key: tf.constant(queries)}, np.zeros(len(queries)))
    return mask.keep(scored_of(np.zeros(shape[0]), np.zeros(shape), ids), batch)


def expected(queries, items, rows, columns):
    chosen = reference.known_pairs(queries, items)
    return reference.cell_by_cell(
        lambda query, item: reference.keeps_known(chosen, query, item), rows, columns
    )


events = st.lists(st.tuples(st.sampled_from(USERS), st.sampled_from(ITEM_IDS)), max_size=40)
some_rows = st.lists(st.sampled_from([*USERS, STRANGER, EMPTY_ID]), min_size=1, max_size=6)
item = st.sampled_from([*ITEM_IDS, OUTSIDE, EMPTY_ID])
shared_columns = st.lists(item, min_size=1, max_size=14)
every_way = pytest.mark.parametrize("way", ["dynamic", "static", "table"])


def mask_of(log, items, way):
    """The mask, made for many cells or for few."""
    with mock.patch.object(known_positives, "TABLE_CELLS", 2**20 if way == "table" else 0):
        return KnownPositives(log, items, static_shapes=way == "static")


# ------------------------------------------------------------------ known positives


@every_way
@drawn
@given(events, some_rows, shared_columns)
def test_a_known_positive_is_never_kept_and_all_else_is(way, log, rows, columns):
    queries, items = [q for q, _ in log], [i for _, i in log]
    history = Interactions(
        {"user": np.array(queries, np.int64)}, np.array(items, np.int64), query_key="user"
    )
    mask = mask_of(history, ITEMS, way)
    np.testing.assert_array_equal(
        known(mask, rows, columns), expected(queries, items, rows, columns)
    )
    own = [list(np.roll(columns, number)) for number in range(len(rows))]
    own = [[int(i) for i in row] for row in own]
    np.testing.assert_array_equal(known(mask, rows, own), expected(queries, items, rows, own))


@every_way
def test_strings_and_other_integer_types(way):
    queries, items = ["u", "v", "u"], ["item 3", "item 3", "item 0"]
    rows, columns = ["v", "u", "w", ""], ["item 0", "item 3", "item 8", "item 3", "elsewhere"]
    mask = mask_of(log_of(queries, items), NAMED_ITEMS, way)
    wanted = expected(queries, items, rows, columns)
    np.testing.assert_array_equal(known(mask, rows, columns), wanted)
    np.testing.assert_array_equal(known(mask, rows, [columns] * 4), wanted)
    history = Interactions({"user": np.array([3, 5], np.uint8)}, np.array([0, 7]), query_key="user")
    mask = mask_of(history, ITEMS, way)
    np.testing.assert_array_equal(
        known(mask, np.array([5, 3], np.int32), [0, 7]), [[True, False], [False, True]]
    )


def long_histories(rng, num_queries=30, num_items=50):
    """Histories of 0 to 50 events, the last query's the longest, and a batch with duplicates."""
    lengths = np.arange(num_queries) * 50 // (num_queries - 1)
    queries = np.repeat(np.arange(num_queries), lengths)
    items = rng.integers(0, num_items, len(queries)) * 3
    rows = rng.integers(0, num_queries + 2, 17)
    columns = rng.integers(-1, num_items + 1, 40) * 3
    return queries, items, rows, columns, ItemCatalogue(np.arange(num_items) * 3)


@every_way
def test_blocks_of_the_columns_are_the_columns_of_the_whole(way):
    queries, items, rows, columns, catalogue = long_histories(np.random.default_rng(1))
    mask = mask_of(log_of(queries, items), catalogue, way)
    whole = known(mask, rows, columns)
    np.testing.assert_array_equal(
        whole, expected(queries.tolist(), items.tolist(), rows.tolist(), columns.tolist())
    )
    assert 0.05 < 1 - whole.numpy().mean() < 0.95
    for width in (1, 7, 40):
        blocks = [known(mask, rows, columns[s : s + width]) for s in range(0, 40, width)]
        np.testing.assert_array_equal(tf.concat(blocks, axis=1), whole)


@every_way
def test_columns_of_each_row_are_a_loop_over_the_rows(way):
    queries, items, rows, columns, catalogue = long_histories(np.random.default_rng(2))
    mask = mask_of(log_of(queries, items), catalogue, way)
    own = np.stack([np.roll(columns, number)[:11] for number in range(len(rows))])
    loop = [known(mask, rows[n : n + 1], own[n])[0] for n in range(len(rows))]
    np.testing.assert_array_equal(known(mask, rows, own), loop)


@pytest.mark.parametrize("rank", [1, 2])
@every_way
def test_known_positives_in_a_graph_and_under_xla(way, rank):
    queries, items, rows, columns, catalogue = long_histories(np.random.default_rng(3))
    mask = mask_of(log_of(queries, items), catalogue, way)
    ids = columns if rank == 1 else np.stack([np.roll(columns, n) for n in range(len(rows))])
    eager = known(mask, rows, ids)
    shape = [None] * rank
    signature = [tf.TensorSpec([None], tf.int64), tf.TensorSpec(shape, tf.int64)]
    graph = tf.function(mask.dropped_cells, input_signature=signature)
    np.testing.assert_array_equal(~graph(rows, ids), eager)
    if way != "dynamic":
        compiled = tf.function(mask.dropped_cells, jit_compile=True)
        np.testing.assert_array_equal(~compiled(tf.constant(rows), tf.constant(ids)), eager)


@every_way
@pytest.mark.parametrize("named", [False, True])
def test_known_positives_survive_their_config(way, named):
    if named:
        history, catalogue = log_of(["u", "v", "u"], ["item 3", "item 3", "item 0"]), NAMED_ITEMS
        rows, columns = ["v", "u", "w"], [f"item {i}" for i in range(NUM_ITEMS)]
    else:
        queries, items, rows, columns, catalogue = long_histories(np.random.default_rng(4))
        history = log_of(queries, items)
    mask = mask_of(history, catalogue, way)
    config = json.loads(json.dumps(tf.keras.utils.serialize_keras_object(mask)))
    again = tf.keras.utils.deserialize_keras_object(config)
    assert again.static_shapes == (way == "static")
    np.testing.assert_array_equal(known(again, rows, columns), known(mask, rows, columns))
    assert tf.keras.utils.serialize_keras_object(again) == config


def test_a_repeated_event_is_stored_once():
    once = KnownPositives(log_of([1, 2], [0, 7]), ITEMS).get_config()
    often = KnownPositives(log_of([1, 2, 1, 1], [0, 7, 0, 0]), ITEMS).get_config()
    assert often == once


def test_what_the_history_must_have():
    with pytest.raises(InputError, match=r"history.item_ids.*the first is .*1000"):
        KnownPositives(log_of([1, 1, 1], [0, OUTSIDE, 2000]), ITEMS)
    with pytest.raises(InputError, match=r"history.item_ids.*integers, as in the catalogue"):
        KnownPositives(log_of([1], ["item 1"]), ITEMS)
    with pytest.raises(InputError, match=r"history.item_ids.*strings, as in the catalogue"):
        KnownPositives(log_of([1], [0]), NAMED_ITEMS)
    with pytest.raises(InputError, match=r"history.query_key"):
        KnownPositives(Interactions({"user": np.array([1])}, np.array([0])), ITEMS)
    for queries in (np.array([1.0]), np.array([[1]])):
        # No `Interactions`, which refuses such queries itself.
        features = {"user": queries}
        history = SimpleNamespace(query_features=features, item_ids=np.array([0]), query_key="user")
        with pytest.raises(InputError, match=r"history.query_features\['user'\].*integers or"):
            KnownPositives(history, ITEMS)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"name": tf.constant([1])}, r"^`features\['user'\]`.*\['name'\]"),
        ({"user": tf.constant(["1"])}, r"^`features\['user'\]`: expected integers"),
        ({"user": tf.constant([1.0])}, r"^`features\['user'\]`: expected integers"),
        ({"user": tf.constant([1, 2])}, r"^`features\['user'\]`: expected shape"),
        ({"user": tf.constant([[1]])}, r"^`features\['user'\]`: expected shape"),
    ],
)
def test_what_the_batch_must_have(features, message):
    mask = KnownPositives(log_of([1], [0]), ITEMS)
    with pytest.raises(InputError, match=message):
        mask.keep(scored_of([0.0], [[0.0]], [0]), batch_of(features, [0]))


def test_integers_where_the_history_has_strings():
    mask = KnownPositives(log_of(["1"], [0]), ITEMS)
    with pytest.raises(InputError, match="expected strings"):
        known(mask, [1], [0])


# ------------------------------------------------------------------ several positives


def several(mask, positive_ids, more, columns):
    shape = [len(positive_ids), np.shape(columns)[-1]]
    batch = batch_of({"more": more}, positive_ids)
    return mask.keep(scored_of(np.zeros(shape[0]), np.zeros(shape), columns), batch)


def hits_expected(positive_ids, more, columns):
    rows = [{own, *others} for own, others in zip(positive_ids, more, strict=True)]
    return reference.cell_by_cell(reference.keeps_several, rows, columns)


rows_with_more = st.lists(
    st.tuples(st.sampled_from(ITEM_IDS), st.lists(st.sampled_from([1, 2, *ITEM_IDS]), max_size=4)),
    min_size=1,
    max_size=5,
)


@drawn
@given(rows_with_more, shared_columns, st.sampled_from([-1, EMPTY_ID]))
def test_every_positive_of_a_row_is_tested(rows, columns, padding):
    own, more = [o for o, _ in rows], [m for _, m in rows]
    columns = [*columns, -1]
    mask = AccidentalHits(more_positives="more")
    wanted = hits_expected(own, more, columns)
    padded = tf.constant([[*m, *[padding] * (5 - len(m))] for m in more], tf.int64)
    np.testing.assert_array_equal(several(mask, own, padded, columns), wanted)
    ragged = tf.ragged.constant(more, tf.int64, ragged_rank=1)
    np.testing.assert_array_equal(several(mask, own, ragged, columns), wanted)
    np.testing.assert_array_equal(several(mask, own, padded, [columns] * len(own)), wanted)


def test_one_positive_a_row_without_the_column():
    keep = several(AccidentalHits(), [7, 0], None, [7, 0, EMPTY_ID, 7])
    np.testing.assert_array_equal(keep, [[False, True, True, False], [True, False, True, True]])
    both_empty = several(AccidentalHits(), [EMPTY_ID], None, [EMPTY_ID, 7])
    np.testing.assert_array_equal(both_empty, [[True, True]])


@pytest.mark.parametrize("make", [tf.constant, tf.ragged.constant])
def test_several_positives_by_name(make):
    more = [["b", ""], ["a", "c"]] if make is tf.constant else [["b"], ["a", "c"]]
    own = to_keys(["a", "a"]).numpy()
    keep = several(AccidentalHits(more_positives="more"), own, make(more), ["a", "b", "c", ""])
    np.testing.assert_array_equal(keep, [[False, False, True, True], [False, True, False, True]])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_several_positives_compiled_and_in_blocks(jit_compile):
    mask, own = AccidentalHits(more_positives="more"), [0, 7, -7]
    more = tf.constant([[7, 14, -1], [-1, -1, -1], [0, 7, 21]])
    columns = [0, 7, 14, 21, -7, 7, EMPTY_ID]
    wanted = several(mask, own, more, columns)
    function = tf.function(lambda m: several(mask, own, m, columns), jit_compile=jit_compile)
    np.testing.assert_array_equal(function(more), wanted)
    blocks = [several(mask, own, more, columns[s : s + 3]) for s in range(0, 7, 3)]
    np.testing.assert_array_equal(tf.concat(blocks, axis=1), wanted)


@pytest.mark.parametrize(
    "more",
    [
        tf.constant([1, 2]),
        tf.constant([[[1]], [[2]]]),
        tf.constant([[1], [2], [3]]),
        tf.constant([[1.0], [2.0]]),
        tf.ragged.constant([[[1]], [[2], [3]]]),
    ],
)
def test_more_positives_of_another_shape_are_an_error(more):
    with pytest.raises(InputError, match=r"^`features\['more'\]`"):
        several(AccidentalHits(more_positives="more"), [1, 2], more, [1, 2])


def test_more_positives_that_are_not_in_the_batch_are_an_error():
    with pytest.raises(InputError, match=r"^`features\['others'\]`.*\['more'\]"):
        several(AccidentalHits(more_positives="others"), [1], tf.constant([[1]]), [1])


# ------------------------------------------------------------------ score margins

numbers = st.floats(-8, 8, width=16)
margins = st.one_of(st.none(), st.sampled_from([-0.5, 0.0, 0.25, 1.0]))


@pytest.mark.parametrize("dtype", [tf.float32, tf.float16, tf.bfloat16])
@drawn
@given(st.lists(numbers, min_size=1, max_size=4), st.lists(numbers, max_size=8), margins, margins)
def test_a_margin_of_the_positive(dtype, positives, scores, absolute, relative):
    if absolute is None and relative is None:
        absolute = 0.5
    logits = scored_of(positives, [scores] * len(positives), dtype=dtype)
    # The numbers as this dtype holds them.
    exact = [tf.cast(x, tf.float32).numpy().tolist() for x in logits[:2]]
    wanted = [
        [reference.keeps_margin(own, score, absolute, relative) for score in row]
        for own, row in zip(*exact, strict=True)
    ]
    keep = ScoreMargin(absolute, relative).keep(logits, None)
    np.testing.assert_array_equal(keep, np.array(wanted, bool).reshape(keep.shape))


def test_the_sign_of_the_margins():
    logits = scored_of([2.0, -2.0], [[1.5, 2.0, 2.1], [-2.5, -2.0, -1.9]])
    far = [[True, False, False], [True, False, False]]
    above = [[True, True, True], [True, True, True]]
    for margin, wanted in ((0.1, far), (-0.1, above)):
        np.testing.assert_array_equal(ScoreMargin(margin).keep(logits, None), wanted)
        by_share = ScoreMargin(relative=margin).keep(logits, None)
        np.testing.assert_array_equal(by_share, wanted)


def test_a_margin_is_not_rounded_away():
    # float16 has a step of 4 at 4096, so that 4096 - 0.25 is 4096 there.
    half = scored_of([4096.0], [[4096.0, 4092.0]], dtype=tf.float16)
    np.testing.assert_array_equal(ScoreMargin(0.25).keep(half, None), [[False, True]])
    single = scored_of([1.0001], [[1.00005, 1.00015]])
    np.testing.assert_array_equal(ScoreMargin(0.0).keep(single, None), [[True, False]])


def test_a_score_that_is_nan_stays_to_be_seen():
    logits = scored_of([1.0, np.nan], [[np.nan, 2.0], [0.0, 0.0]])
    keep = ScoreMargin(0.0).keep(logits, None)
    np.testing.assert_array_equal(keep, [[True, False], [True, True]])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_margin_compiled_has_no_gradient(jit_compile):
    mask = ScoreMargin(0.2, relative=0.3)
    positive, negatives = tf.constant([1.0, -1.0]), tf.random.stateless_normal([2, 9], [1, 2])

    @tf.function(jit_compile=jit_compile)
    def run(positive, negatives):
        with tf.GradientTape() as tape:
            tape.watch([positive, negatives])
            keep = mask.keep(Scored(None, None, None, positive, negatives), None)
            kept = tf.reduce_sum(tf.cast(keep, tf.float32))
        return keep, tape.gradient(
            kept, [positive, negatives], unconnected_gradients=tf.UnconnectedGradients.ZERO
        )

    keep, gradients = run(positive, negatives)
    np.testing.assert_array_equal(
        keep, mask.keep(Scored(None, None, None, positive, negatives), None)
    )
    assert keep.numpy().any()
    assert not keep.numpy().all()
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({}, "absolute"),
        ({"absolute": float("nan")}, "absolute"),
        ({"absolute": 0.1, "relative": float("nan")}, "relative"),
        ({"relative": float("inf")}, "relative"),
    ],
)
def test_margins_that_are_no_numbers_are_an_error(arguments, name):
    with pytest.raises(InputError, match=f"^`{name}`"):
        ScoreMargin(**arguments)


@pytest.mark.parametrize(
    "mask", [ScoreMargin(0.1), ScoreMargin(relative=-0.2), AccidentalHits(more_positives="more")]
)
def test_plain_masks_survive_their_config(mask):
    config = json.loads(json.dumps(tf.keras.utils.serialize_keras_object(mask)))
    assert vars(tf.keras.utils.deserialize_keras_object(config)) == vars(mask)
