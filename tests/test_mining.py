"""Mined negatives: the definition in numpy, no training positive ever, files that are whole."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import index_cases
import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_mining import mine_one
from test_cli import SMALL

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.data import Interactions
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.index import build_index
from tfrs_negatives.mining import MineHardNegatives, MiningRules, mine_hard_negatives, rules
from tfrs_negatives.mining.mine import _Searcher
from tfrs_negatives.model.two_tower import TwoTower
from tfrs_negatives.step.masks.keep import ScoreMargin
from tfrs_negatives.step.records import Scored
from tfrs_negatives.step.samplers import Explicit, InBatch
from tfrs_negatives.step.samplers.negative_table import NegativeTable
from tfrs_negatives.step.task import Retrieval

N = 50
MODEL = index_cases.make_model(N)
TEXT_MODEL = index_cases.make_model(N, string_ids=True, string_users=True)


def make_log(model=MODEL, seed=0, num_events=300):
    """A log with repeated events; users 3 and 4 leave one item, and none."""
    rng = np.random.default_rng(seed)
    users = rng.integers(5, 25, num_events)
    rows = rng.integers(0, N, num_events)
    users = np.concatenate([users, users[:20], np.full(N - 1, 3), np.full(N, 4)])
    rows = np.concatenate([rows, rows[:20], np.arange(N - 1), np.arange(N)])
    order = rng.permutation(len(users))
    users, rows = users[order], rows[order]
    if model.lookup is not None:
        users = np.array([f"u{user}" for user in users])
    return Interactions({"user_id": users, "age": rows * 1.0}, model.items.ids[rows], "user_id")


LOG = make_log()


def read(path):
    """Query -> (ids, ranks, scores, positive score)."""
    table = pq.read_table(path).to_pydict()
    key = pq.read_schema(path).metadata[b"query_key"].decode()
    columns = (table[name] for name in ("ids", "ranks", "scores", "positive_score"))
    return dict(zip(table[key], zip(*columns, strict=True), strict=True))


def vectors_of(model, user):
    query = model.query_vectors({"user_id": tf.constant([user])}).numpy()[0]
    return query.astype(np.float64), model.item_table.numpy().astype(np.float64)


def positives_of(log, model, user):
    ids = log.item_ids[log.query_features["user_id"] == user]
    return set(model.items.rows(ids).numpy().tolist())


def assert_as_defined(path, model, log, *, catalogue=None, rank_range=(1, 100), num=4, **options):
    found = read(path)
    allowed = set(range(N))
    if catalogue is not None:
        allowed = set(model.items.rows(catalogue.ids).numpy().tolist())
    assert list(found) == np.unique(log.query_features["user_id"]).tolist()
    for user, (ids, ranks, scores, positive_score) in found.items():
        wanted, wanted_score, _ = mine_one(
            *vectors_of(model, user),
            positives_of(log, model, user),
            allowed=allowed,
            rank_range=rank_range,
            relative_margin=options.get("relative_margin"),
            num=num,
        )
        assert ids == [model.items.ids[row] for row, _, _ in wanted]
        assert ranks == [rank for _, rank, _ in wanted]
        assert scores == pytest.approx([score for _, _, score in wanted], rel=1e-5, abs=1e-5)
        assert positive_score == pytest.approx(wanted_score, rel=1e-5, abs=1e-5)


def assert_adds_up(summary, path):
    assert set(summary.dropped) == set(rules.DROPS)
    assert min(summary.dropped.values()) >= 0
    assert summary.retrieved == summary.kept + sum(summary.dropped.values())
    lists = [ids for ids, *_ in read(path).values()]
    assert summary.queries == len(lists)
    assert summary.kept == sum(map(len, lists))
    assert summary.empty == sum(not ids for ids in lists)


# ------------------------------------------------------------------ the definition


@pytest.mark.parametrize("model", [MODEL, TEXT_MODEL], ids=["integers", "strings"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num": 9},
        {"rank_range": (1, 1)},
        {"rank_range": (3, 7), "num": 3},
        {"rank_range": (10, 10_000), "num": 20},
        {"relative_margin": 0.0},
        {"relative_margin": 0.3, "num": 8},
        {"relative_margin": -0.8, "num": 8, "rank_range": (2, 30)},
    ],
    ids=str,
)
def test_the_definition_in_numpy(model, options, tmp_path):
    log = LOG if model is MODEL else make_log(model)
    out = tmp_path / "mined.parquet"
    summary = mine_hard_negatives(model, log, out=out, **options)
    assert_as_defined(out, model, log, **options)
    assert_adds_up(summary, out)
    lists = [ids for ids, *_ in read(out).values()]
    assert summary.short == sum(len(ids) < options.get("num", 4) for ids in lists)


def test_a_margin_is_the_one_of_the_training_step():
    rng = np.random.default_rng(0)
    positive, scores = (rng.normal(size=s).astype(np.float32) for s in (20, (20, 30)))
    for margin in (0.4, 0.0, -1.5):
        found = rules.Found(
            scores,
            np.ones([20, 30], int),
            np.zeros([20, 30], bool),
            np.ones([20, 30], bool),
            positive,
            np.arange(20),
        )
        chosen, _, _ = rules.apply_rules(found, MiningRules(relative_margin=margin, num=30))
        mask = ScoreMargin(relative=margin).keep(Scored(None, None, None, positive, scores), None)
        np.testing.assert_array_equal(chosen, mask)


def test_items_outside_the_catalogue_keep_their_ranks_and_are_counted(tmp_path):
    catalogue = ItemCatalogue(np.append(MODEL.items.ids[::3], [10_000]))
    out = tmp_path / "mined.parquet"
    options = {"rank_range": (2, 12), "num": 3}
    summary = mine_hard_negatives(MODEL, LOG, catalogue, out=out, **options)
    assert_as_defined(out, MODEL, LOG, catalogue=catalogue, **options)
    assert summary.dropped["outside_catalogue"] > 0
    assert_adds_up(summary, out)


def test_who_has_chosen_the_best_items_gets_the_next(tmp_path):
    users = np.arange(1, 31)
    _, ranking = build_index(MODEL).top_k({"user_id": users}, N)
    chosen = [ranking[place, :user] for place, user in enumerate(users)]
    log = Interactions({"user_id": np.repeat(users, users)}, np.concatenate(chosen), "user_id")
    out = tmp_path / "mined.parquet"
    mine_hard_negatives(MODEL, log, out=out, rank_range=(2, 3))
    for user, (ids, *_) in read(out).items():
        assert ids == ranking[user - 1, user + 1 : user + 3].tolist()


def test_who_has_chosen_everything_has_no_negative(tmp_path):
    mine_hard_negatives(MODEL, LOG, out=tmp_path / "mined.parquet", num=30)
    found = read(tmp_path / "mined.parquet")
    assert found[3][0] == [MODEL.items.ids[-1]]
    assert found[4][0] == []


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    events=st.integers(1, 400),
    choose=st.sampled_from(["top", "random"]),
)
def test_no_negative_is_a_training_positive(seed, events, choose, tmp_path_factory):
    log = make_log(seed=seed, num_events=events)
    out = tmp_path_factory.mktemp("mined") / "mined.parquet"
    summary = mine_hard_negatives(MODEL, log, out=out, num=N, choose=choose, rank_range=(1, N))
    pairs = set(zip(log.query_features["user_id"].tolist(), log.item_ids.tolist(), strict=True))
    mined = [(user, item) for user, (ids, *_) in read(out).items() for item in ids]
    assert pairs.isdisjoint(mined)
    # And every other item is one: with all ranks and no margin nothing else is dropped.
    assert len(set(mined)) == len(mined) == N * len(read(out)) - len(pairs)
    assert summary.kept == len(mined)


def test_events_without_a_query_key_are_queries_of_their_own(tmp_path):
    log = replace(LOG, query_key=None)
    out = tmp_path / "mined.parquet"
    mine_hard_negatives(MODEL, log, out=out, num=5)
    found = read(out)
    assert list(found) == list(range(len(log)))
    for number in (0, 17, len(log) - 1):
        user = log.query_features["user_id"][number]
        positives = set(MODEL.items.rows(log.item_ids[[number]]).numpy().tolist())
        options = {"allowed": set(range(N)), "rank_range": (1, 100), "relative_margin": None}
        wanted, score, _ = mine_one(*vectors_of(MODEL, user), positives, num=5, **options)
        assert found[number][0] == [MODEL.items.ids[row] for row, _, _ in wanted]
        assert found[number][3] == pytest.approx(score, rel=1e-5)


# ------------------------------------------------------------------ choice and chunks


def test_random_choice_is_of_all_that_is_left_and_in_the_order_of_ranks(tmp_path):
    options = {"rank_range": (2, 30), "relative_margin": None}
    taken = set()
    for seed in range(6):
        out = tmp_path / f"{seed}.parquet"
        mine_hard_negatives(MODEL, LOG, out=out, num=3, choose="random", seed=seed, **options)
        for user, (ids, ranks, *_) in read(out).items():
            positives = positives_of(LOG, MODEL, user)
            *_, left = mine_one(
                *vectors_of(MODEL, user), positives, allowed=set(range(N)), num=3, **options
            )
            rank_of = {MODEL.items.ids[row]: rank for row, rank, _ in left}
            assert len(ids) == min(3, len(left))
            assert ranks == sorted(set(ranks)) == [rank_of[item] for item in ids]
            taken |= set(ranks)
    # Six draws of three from 29 ranks for each of 22 users leave none out.
    assert taken == set(range(2, 31))
    assert read(tmp_path / "0.parquet") != read(tmp_path / "1.parquet")


def test_random_choice_is_uniform_and_of_each_query_its_own():
    many, k = 3000, 30
    shape = [many, k]
    found = rules.Found(
        np.zeros(shape, np.float32),
        np.ones(shape, int),
        np.zeros(shape, bool),
        np.ones(shape, bool),
        np.zeros(many, np.float32),
        np.arange(many) - 1000,
    )
    chosen, ranks, _ = rules.apply_rules(found, MiningRules(choose="random", num=3))
    assert (chosen.sum(axis=1) == 3).all()
    assert (ranks == np.arange(k) + 1).all()
    # Each rank is taken by a tenth of the queries: 300, give or take 16.
    assert np.abs(chosen.sum(axis=0) - 300).max() < 5 * 16.5
    assert len({row.tobytes() for row in chosen}) > 1000


def make_larger_log(model):
    """Histories from one item to many."""
    rng = np.random.default_rng(0)
    users = rng.choice(40, 900, p=rng.dirichlet(np.full(40, 0.5)))
    rows = rng.integers(0, len(model.items), 900)
    return Interactions({"user_id": users}, model.items.ids[rows], query_key="user_id")


@pytest.mark.parametrize("choose", ["top", "random"])
def test_the_size_of_the_chunks_changes_nothing(choose, tmp_path):
    model = index_cases.make_model(1200)
    log, index = make_larger_log(model), build_index(model)
    options = {"index": index, "choose": choose, "rank_range": (2, 20), "relative_margin": -9.0}
    summaries, files = [], []
    for size in (1, 7, 10_000):
        out = tmp_path / f"{size}.parquet"
        summaries.append(mine_hard_negatives(model, log, out=out, batch_size=size, **options))
        files.append(read(out))
    assert list(files[0]) == list(files[1]) == list(files[2])
    for user, (ids, ranks, scores, positive) in files[0].items():
        for other in (files[1][user], files[2][user]):
            assert (ids, ranks) == other[:2]
            assert scores == pytest.approx(other[2], rel=1e-5)
            assert positive == pytest.approx(other[3], rel=1e-5)
    assert len({json.dumps({**asdict(s), "seconds": 0}) for s in summaries}) == 1
    assert min(summaries[0].dropped["margin"], summaries[0].kept) > 30
    assert pq.ParquetFile(tmp_path / "7.parquet").num_row_groups > 1


def test_a_scann_index_finds_most_of_it_and_no_positive(tmp_path):
    model = index_cases.make_model(1200)
    log, index = make_larger_log(model), build_index(model, kind="scann", recall_k=30)
    found = []
    for index_or_none in (index, None):
        out = tmp_path / "mined.parquet"
        summary = mine_hard_negatives(
            model, log, out=out, index=index_or_none, rank_range=(3, 30), num=20, batch_size=16
        )
        assert_adds_up(summary, out)
        found.append({(user, item) for user, (ids, *_) in read(out).items() for item in ids})
    pairs = set(zip(log.query_features["user_id"].tolist(), log.item_ids.tolist(), strict=True))
    assert pairs.isdisjoint(found[0])
    assert len(found[0] & found[1]) > 0.8 * len(found[1])


def test_columns_without_an_item_are_never_negatives(tmp_path):
    ids = np.arange(1000) + 1
    index = index_cases.index_with_a_small_leaf(ids)
    log = Interactions({"user_id": np.zeros(3, int)}, ids[[100, 101, 900]], query_key="user_id")
    out = tmp_path / "mined.parquet"
    # The index finds the 60 items of one leaf, and nothing behind them.
    summary = mine_hard_negatives(
        index.model, log, out=out, index=index, num=90, rank_range=(1, 90)
    )
    mined, ranks, scores, _ = read(out)[0]
    assert summary.retrieved == 60
    assert sorted(mined) == (ids[100:160][2:]).tolist()
    assert ranks == list(range(1, 59))
    assert np.isfinite(scores).all()
    assert_adds_up(summary, out)


# ------------------------------------------------------------------ the file


def test_the_file_says_what_it_is(tmp_path):
    out = tmp_path / "new" / "mined.parquet"
    summary = mine_hard_negatives(MODEL, LOG, out=out, num=2, relative_margin=0.05)
    metadata = pq.read_metadata(out).metadata
    assert json.loads(metadata[b"summary"]) == asdict(summary)
    stated = json.loads(metadata[b"settings"])
    assert stated["rank_range"] == [1, 100]
    assert stated["relative_margin"] == 0.05
    assert stated["index"] == "exact"
    names = ["user_id", "ids", "ranks", "scores", "positive_score"]
    assert pq.read_schema(out).names == names
    types = [str(t) for t in pq.read_schema(out).types]
    assert types == [
        "int64",
        "list<element: int64>",
        "list<element: int32>",
        "list<element: float>",
        "float",
    ]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("before", [None, "old"])
def test_what_is_interrupted_leaves_nothing(error, before, monkeypatch, tmp_path):
    folder = tmp_path / "new"
    if before is not None:
        folder.mkdir()
        (folder / "mined.parquet").write_text(before)
    mine, calls = _Searcher.mine, []

    def fail_at_the_third(self, chunk, rules):
        calls.append(chunk)
        if len(calls) == 3:
            raise error
        return mine(self, chunk, rules)

    monkeypatch.setattr(_Searcher, "mine", fail_at_the_third)
    with pytest.raises(error):
        mine_hard_negatives(MODEL, LOG, out=folder / "mined.parquet", batch_size=5)
    if before is None:
        assert not list(tmp_path.iterdir())
    else:
        assert [path.name for path in folder.iterdir()] == ["mined.parquet"]
        assert (folder / "mined.parquet").read_text() == before


def other_items():
    return replace(LOG, item_ids=LOG.item_ids + 1000)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"rank_range": (0, 5)}, "rank_range"),
        ({"rank_range": (6, 5)}, "rank_range"),
        ({"rank_range": (1, 2, 3)}, "rank_range"),
        ({"num": 0}, "num"),
        ({"seed": -1}, "seed"),
        ({"choose": "best"}, "choose"),
        ({"relative_margin": float("nan")}, "relative_margin"),
        ({"batch_size": 0}, "batch_size"),
        ({"log": LOG.take(np.arange(0))}, "log"),
        ({"log": other_items()}, "item_ids"),
        ({"catalogue": TEXT_MODEL.items}, "catalogue"),
        ({"index": build_index(TEXT_MODEL)}, "index"),
    ],
    ids=lambda case: str(case)[:30],
)
def test_bad_arguments_are_named(options, argument, tmp_path):
    options = {"log": LOG, **options}
    with pytest.raises(InputError, match=f"^`{argument}`"):
        mine_hard_negatives(MODEL, out=tmp_path / "mined.parquet", **options)
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    for out in (Path(), tmp_path, tmp_path / "file" / "mined.parquet"):
        with pytest.raises(InputError, match=r"^`out`"):
            mine_hard_negatives(MODEL, LOG, out=out)


# ------------------------------------------------------------------ between epochs


def make_two_tower(table, items):
    def tower(name, rows):
        ids = tf.keras.Input((), name=name, dtype=tf.int64)
        start = tf.keras.initializers.RandomNormal(seed=rows)
        return tf.keras.Model(ids, tf.keras.layers.Embedding(rows, 8, start)(ids))

    sources = [InBatch(), Explicit(table, items)]
    task = Retrieval(negatives=sources, correct=None, reduction="mean")
    model = TwoTower(tower("user_id", 40), tower("item_id", 60), items, task)
    model.compile(tf.keras.optimizers.Adagrad(0.1))
    return model


def make_training_log():
    rng = np.random.default_rng(1)
    users = {"user_id": rng.integers(0, 20, 200)}
    return Interactions(users, rng.integers(0, N, 200), query_key="user_id")


def test_fit_mines_anew_and_trains_with_what_it_found(tmp_path, caplog):
    caplog.set_level("INFO", "tfrs_negatives")
    log, items = make_training_log(), ItemCatalogue(np.arange(N))
    table = NegativeTable(log, 3)
    model = make_two_tower(table, items)
    filled, at_end = [], []

    class Watch(tf.keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            # The columns that the last step had of the table.
            filled.append(float(self.model.task.report.candidates.numpy()[1]))

        def on_epoch_end(self, epoch, logs=None):
            at_end.append(table.ids.numpy())

    miner = MineHardNegatives(
        table, log, folder=tmp_path, first_epoch=2, every_epochs=2, rank_range=(2, 9)
    )
    history = model.fit(
        log.stream(50, item_key="item_id"),
        steps_per_epoch=4,
        epochs=5,
        callbacks=[miner, Watch()],
        verbose=0,
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "epoch_0002.parquet",
        "epoch_0004.parquet",
    ]
    assert history.history["mined_negatives"] == [3.0, 3.0]
    assert [bool((ids == EMPTY_ID).all()) for ids in at_end] == [True, False, False, False, False]
    assert (at_end[1] == at_end[2]).all()
    assert (at_end[1] != at_end[3]).any()
    lines = [r.getMessage() for r in caplog.records if "negatives for 20 queries" in r.getMessage()]
    assert [line.split(":")[0] for line in lines] == ["epoch 2", "epoch 4"]
    mined = read(tmp_path / "epoch_0004.parquet")
    for row, user in enumerate(mined):
        assert at_end[4][row].tolist() == mined[user][0]
    assert (at_end[4][-1] == EMPTY_ID).all()
    # Three of each row from the first step after epoch 2 on, and none before.
    assert filled == [0.0] * 8 + [3.0] * 12


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"every_epochs": 0}, "every_epochs"),
        ({"first_epoch": 0}, "first_epoch"),
        ({"rank_range": (5, 1)}, "rank_range"),
        ({"num": 3}, "mining"),
        ({"margin": 0.1}, "mining"),
        ({"build_index": "hnsw"}, "build_index"),
        ({"batch_size": 0}, "batch_size"),
    ],
    ids=str,
)
def test_what_is_wrong_is_found_before_training(options, argument):
    log = make_training_log()
    with pytest.raises(InputError, match=f"^`{argument}`"):
        MineHardNegatives(NegativeTable(log), log, folder="nowhere", **options)


def test_a_table_of_another_model_and_a_folder_that_cannot_be_made_are_found_too(tmp_path):
    log = make_training_log()
    table = NegativeTable(log)
    (tmp_path / "file").touch()
    callback = MineHardNegatives(table, log, folder=tmp_path / "file" / "mined")
    callback.set_model(SimpleNamespace(submodules=[NegativeTable(log)]))
    with pytest.raises(InputError, match=r"^`table`: expected one that an `Explicit` of the model"):
        callback.on_train_begin()
    callback.set_model(SimpleNamespace(submodules=[table]))
    with pytest.raises(InputError, match=r"^`folder`: expected a folder that can be written"):
        callback.on_train_begin()


# ------------------------------------------------------------------ the command line


def test_mine_a_run(call, log_file, tmp_path):
    run = tmp_path / "run"
    source = f"data.source=csv:{log_file}"
    assert call("train", "--out", run, source, *SMALL)[0] == 0
    code, out, _ = call("mine", run, "--ranks", 2, 20, "--num", 3, "--json")
    record = json.loads(out)
    assert (code, record["wrote"]) == (0, str(run / "hard_negatives.parquet"))
    assert record["kept"] == sum(
        len(ids) for ids, *_ in read(run / "hard_negatives.parquet").values()
    )
    code, _, err = call("mine", run)
    assert (code, "--overwrite" in err) == (2, True)
    code, out, _ = call(
        "mine", run, "--overwrite", "--relative-margin", "0.1", "--choose", "random"
    )
    assert code == 0
    assert "dropped by margin" in out
    code, _, err = call("mine", run, "--out", tmp_path / "x.parquet", "--ranks", 5, 2)
    assert (code, "`rank_range`" in err) == (2, True)
    assert not (tmp_path / "x.parquet").exists()
