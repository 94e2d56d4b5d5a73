"""The table of mined negatives: lookups, files, saving, replicas, and training that goes on."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from replicas import strategy_with_collectives
from small_batch import CATALOGUE, exact_frequency, run

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.data import Interactions
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.ids import to_keys
from tfrs_negatives.mining import MineHardNegatives, mine_hard_negatives
from tfrs_negatives.model.two_tower import TwoTower
from tfrs_negatives.runs.checkpoints import Checkpoints
from tfrs_negatives.step.samplers import Explicit, InBatch, Weighted
from tfrs_negatives.step.samplers.negative_table import NegativeTable
from tfrs_negatives.step.task import Retrieval

N, USERS = 30, 12
ITEMS = ItemCatalogue(np.arange(N))
# Not sorted, and with repetitions.
KEYS = {
    "integers": np.array([7, -3, 7, 50, 2**40]),
    "strings": np.array(["u", "b", "u", "zz", "é"]),
}
EMPTY = [EMPTY_ID, EMPTY_ID]


def log_of(queries):
    return Interactions({"user_id": queries}, np.zeros(len(queries), int), query_key="user_id")


def write(path, queries, lists, *, query_key="user_id"):
    """A file as a mining writes it, of which the table reads two columns."""
    columns = {query_key: pa.array(queries), "ids": pa.array(lists)}
    pq.write_table(pa.table(columns).replace_schema_metadata({"query_key": query_key}), path)
    return path


def look_up(table, queries, *, jit_compile=None):
    find = tf.function(lambda q: table.ids_of_rows({"user_id": q}, None), jit_compile=jit_compile)
    return find(tf.constant(queries)).numpy().tolist()


# ------------------------------------------------------------------ lookups


@pytest.mark.parametrize("kind", KEYS)
def test_each_query_has_its_list_and_an_unknown_one_nothing(kind, tmp_path):
    a, b, c, d = KEYS[kind][[0, 1, 3, 4]].tolist()
    other = {"integers": [8, 2**62, -(2**62)], "strings": ["", "v", "uu"]}[kind]
    table = NegativeTable(log_of(KEYS[kind]), num=2)
    assert look_up(table, [a, *other]) == [EMPTY] * 4
    path = write(tmp_path / "mined.parquet", [d, a, b], [[5], [1, 2], [7, 8, 9]])
    assert table.load(path) == 0
    lists = {a: [1, 2], b: [7, 8], c: EMPTY, d: [5, EMPTY_ID]}
    for query, wanted in lists.items():
        assert look_up(table, [query]) == [wanted]
    assert look_up(table, [b, *other, d, b]) == [lists[b], *[EMPTY] * 3, lists[d], lists[b]]
    # What is loaded takes the place of all that was there.
    table.load(write(path, [c], [[3, 4]]))
    assert look_up(table, [a, b, c, d]) == [EMPTY, EMPTY, [3, 4], EMPTY]


def test_compiled_by_xla(tmp_path):
    table = NegativeTable(log_of(KEYS["integers"]), num=2)
    table.load(write(tmp_path / "mined.parquet", [7, 50], [[1, 2], [3]]))
    wanted = [[3, EMPTY_ID], EMPTY, [1, 2]]
    assert look_up(table, [50, 51, 7], jit_compile=True) == wanted


def test_strings_become_the_keys_of_the_catalogue(tmp_path):
    items = ItemCatalogue(["x", "y", "z"])
    table = NegativeTable(log_of(KEYS["strings"]), num=2)
    table.load(write(tmp_path / "mined.parquet", ["b", "u"], [["z"], ["y", "x"]]))
    rows = items.rows_of_keys(look_up(table, ["u", "b"]))
    assert rows.numpy().tolist() == [[1, 0], [2, -1]]


def test_queries_that_the_table_does_not_know_are_counted(tmp_path, caplog):
    table = NegativeTable(log_of(np.array([1, 2])), num=2)
    path = write(tmp_path / "mined.parquet", [0, 1, 3], [[5, 6], [7, 8], [9, 9]])
    assert table.load(path) == 2
    assert "2 of 3 queries" in caplog.text
    assert look_up(table, [0, 1, 2, 3]) == [EMPTY, [7, 8], EMPTY, EMPTY]


def corrected(*sources):
    return Retrieval(negatives=list(sources), frequency=exact_frequency(), reduction="mean")


def test_a_table_is_a_column_with_the_same_lists(tmp_path):
    lists = [[100, 103], [102], [], [107, 105, 105], [111, 100, 104]]
    users = np.array([40, 20, 10, 50, 30])
    table = NegativeTable(log_of(users), num=3)
    table.load(write(tmp_path / "mined.parquet", users, lists))
    losses = []
    for column in (table, "rejected"):
        source = Weighted(Explicit(column, CATALOGUE), 0.5)
        task = corrected(InBatch(), source)
        features = {"user_id": tf.constant(users), "rejected": tf.ragged.constant(lists)}
        losses.append(float(run(task, features=features)))
    assert losses[0] == losses[1]
    without = corrected(InBatch())
    assert losses[0] > float(run(without)) + 0.01


def test_an_empty_table_is_a_source_that_is_off():
    users = np.arange(5)
    source = Explicit(NegativeTable(log_of(users)), CATALOGUE)
    task = corrected(InBatch(), source)
    without = corrected(InBatch())
    loss = float(run(task, features={"user_id": tf.constant(users)}))
    assert loss == pytest.approx(float(run(without)), rel=1e-6)


# ------------------------------------------------------------------ errors


def no_key():
    return Interactions({"user_id": np.array([1])}, np.array([0]))


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: NegativeTable(no_key()), "log.query_key"),
        (lambda: NegativeTable(log_of(np.array([], int))), "log"),
        (lambda: NegativeTable(log_of(np.array([0.5]))), "user_id"),
        (lambda: NegativeTable(log_of(np.array([1])), num=0), "num"),
    ],
)
def test_bad_arguments_are_named(make, argument):
    with pytest.raises(InputError, match=f"^`{argument}`"):
        make()


@pytest.mark.parametrize(
    ("features", "says"),
    [
        ({"user": [1]}, "the query of each row"),
        ({"user_id": ["1", "2"]}, "integers"),
        ({"user_id": [[1], [2]]}, "one per row"),
    ],
)
def test_a_batch_without_the_queries_is_an_error(features, says):
    table = NegativeTable(log_of(np.array([1])))
    with pytest.raises(InputError, match=says):
        table.ids_of_rows({name: tf.constant(column) for name, column in features.items()}, None)


def test_files_of_something_else_are_errors(tmp_path):
    table = NegativeTable(log_of(np.array([1])))
    path = tmp_path / "mined.parquet"
    cases = {
        "wrote": [lambda: None, lambda: path.write_text("no"), lambda: write(path, [1], [[2]])],
        "'item'": [lambda: write(path, [1], [[2]], query_key="item")],
        "integers in the column": [lambda: write(path, ["1"], [[2]])],
    }
    for says, makers in cases.items():
        for make in makers[:2]:
            make()
            with pytest.raises(InputError, match=says):
                table.load(path)
    pq.write_table(pa.table({"user_id": [1], "ids": [[2]]}), path)
    with pytest.raises(InputError, match=r"^`path`"):
        table.load(path)
    assert look_up(table, [1]) == [[EMPTY_ID] * 4]


# ------------------------------------------------------------------ training


def make_log():
    rng = np.random.default_rng(3)
    users = {"user_id": rng.integers(0, USERS, 90) + 5}
    return Interactions(users, rng.integers(0, N, 90), query_key="user_id")


LOG = make_log()


def make_model(seed=0, **options):
    def tower(name, rows, seed):
        start = tf.keras.initializers.RandomNormal(stddev=0.5, seed=seed)
        ids = tf.keras.Input((), name=name, dtype=tf.int64)
        return tf.keras.Model(ids, tf.keras.layers.Embedding(rows, 6, start)(ids))

    table = NegativeTable(LOG, 2)
    sources = [InBatch(), Weighted(Explicit(table, ITEMS), 0.5)]
    task = Retrieval(negatives=sources, correct=None, reduction="mean")
    towers = tower("user_id", USERS + 5, seed + 1), tower("item_id", N, seed + 2)
    model = TwoTower(*towers, ITEMS, task)
    model.compile(tf.keras.optimizers.Adagrad(0.3), **options)
    return model, table


def fit(model, *callbacks, epochs, start=0):
    stream = LOG.stream(30, item_key="item_id", start_step=start)
    model.fit(stream, steps_per_epoch=3, epochs=epochs, callbacks=list(callbacks), verbose=0)


def mine(model, table, folder):
    mine_hard_negatives(model, LOG, out=folder / "mined.parquet", num=table.num)
    table.load(folder / "mined.parquet")


def test_the_config_is_small_and_the_weights_hold_the_rest(tmp_path):
    queries = np.arange(5000)
    table = NegativeTable(log_of(queries), num=3)
    table.load(write(tmp_path / "mined.parquet", queries, [[q % 7] for q in queries.tolist()]))
    config = json.dumps(tf.keras.utils.serialize_keras_object(table))
    assert len(config) < 500
    again = tf.keras.utils.deserialize_keras_object(json.loads(config))
    again.set_weights(table.get_weights())
    assert look_up(again, [13, 5000]) == look_up(table, [13, 5000])
    assert look_up(again, [13])[0][0] == 13 % 7


def test_a_saved_model_has_its_table(tmp_path):
    model, table = make_model()
    mine(model, table, tmp_path)
    model.save(tmp_path / "model.keras")
    again = tf.keras.models.load_model(tmp_path / "model.keras")
    restored = again.task.negatives[1].sampler.column
    np.testing.assert_array_equal(restored.ids, table.ids)
    np.testing.assert_array_equal(restored.query_keys, table.query_keys)
    assert (table.ids.numpy() != EMPTY_ID).any()
    batch = next(iter(LOG.stream(30, item_key="item_id")))
    assert float(again.compute_loss(batch)) == float(model.compute_loss(batch))


def test_the_table_is_not_trained():
    model, table = make_model()
    assert not table.trainable_weights
    assert [w.shape.as_list() for w in model.trainable_variables] == [[USERS + 5, 6], [N, 6]]


def test_resumed_training_has_the_table_and_needs_no_file(tmp_path):
    def callbacks(table, name):
        miner = MineHardNegatives(
            table, LOG, folder=tmp_path / name, choose="random", rank_range=(1, 10)
        )
        return miner, Checkpoints(tmp_path / f"{name}_checkpoints")

    # Without graphs, which would take longer to trace than to run.
    model, table = make_model(run_eagerly=True)
    whole = callbacks(table, "whole")
    whole[1].restore(model)
    fit(model, *whole, epochs=4)

    killed, old_table = make_model(run_eagerly=True)
    first = callbacks(old_table, "parts")
    first[1].restore(killed)
    fit(killed, *first, epochs=2)
    for path in (tmp_path / "parts").iterdir():
        path.unlink()
    resumed, new_table = make_model(seed=7, run_eagerly=True)
    rest = callbacks(new_table, "parts")
    start = rest[1].restore(resumed)
    np.testing.assert_array_equal(new_table.ids, old_table.ids)
    assert start == 6
    fit(resumed, *rest, epochs=4, start=start)
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == [
        "epoch_0003.parquet",
        "epoch_0004.parquet",
    ]
    np.testing.assert_array_equal(new_table.ids, table.ids)
    for received, wanted in zip(
        resumed.trainable_variables, model.trainable_variables, strict=True
    ):
        np.testing.assert_array_equal(received, wanted)


@pytest.mark.slow
def test_replicas_change_nothing_and_have_the_same_table(tmp_path):
    def train(strategy, folder):
        with strategy.scope():
            model, table = make_model(run_eagerly=strategy.num_replicas_in_sync == 1)
        fit(model, MineHardNegatives(table, LOG, folder=folder, rank_range=(1, 5)), epochs=2)
        return model, [x.numpy() for x in strategy.experimental_local_results(table.ids)]

    model, copies = train(strategy_with_collectives(), tmp_path / "two")
    expected, (ids,) = train(tf.distribute.get_strategy(), tmp_path / "one")
    assert len(copies) == 2
    for copy in copies:
        np.testing.assert_array_equal(copy, ids)
    assert (ids != EMPTY_ID).any()
    for received, wanted in zip(
        model.trainable_variables, expected.trainable_variables, strict=True
    ):
        np.testing.assert_allclose(received.numpy(), wanted.numpy(), atol=1e-5)


def test_an_item_outside_the_catalogue_stops_the_step(tmp_path):
    table = NegativeTable(log_of(np.arange(5)), num=1)
    table.load(write(tmp_path / "mined.parquet", [2], [[9999]]))
    task = Retrieval(negatives=[InBatch(), Explicit(table, CATALOGUE)], correct=None)
    with pytest.raises(tf.errors.InvalidArgumentError, match="negative_table"):
        run(task, features={"user_id": tf.range(5)})
    assert to_keys([9999]).numpy().tolist() == [9999]
