"""Mined negatives that all rows share: a step against a loop, the draws, and a whole training."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from reference_xmc import union_loss

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.data import Interactions
from tfrs_negatives.data.catalogue import ItemCatalogue, first_of_each
from tfrs_negatives.mining import dexml
from tfrs_negatives.model.two_tower import TwoTower
from tfrs_negatives.step.masks.keep import AccidentalHits
from tfrs_negatives.step.masks.known_positives import KnownPositives
from tfrs_negatives.step.samplers import InBatch, MinedUnion
from tfrs_negatives.step.samplers.negative_table import NegativeTable
from tfrs_negatives.step.task import Retrieval

B, D, N = 7, 4, 20
RNG = np.random.default_rng(3)
CATALOGUE = ItemCatalogue(np.arange(N) + 100)
CORPUS = RNG.normal(size=(N, D)).astype(np.float32)
QUERIES = RNG.normal(size=(B, D)).astype(np.float32)
# Query 5 has two rows, item 104 is the positive of three.
USERS = np.array([5, 1, 2, 5, 3, 4, 0])
IDS = np.array([104, 101, 104, 109, 112, 104, 100])
HISTORY = Interactions(
    {"user_id": np.array([5, 5, 1, 2, 3, 3, 4, 0, 0])},
    np.array([104, 109, 101, 104, 112, 101, 104, 100, 107]),
    query_key="user_id",
)
# Lists with another row's positive (101), with one item for two queries (115), and none for 2.
LISTS = {0: [115], 1: [115], 3: [116, 117, 118, 119], 4: [101], 5: [113, 114, 107]}


def table_of(lists=LISTS, num=4):
    table = NegativeTable(HISTORY, num)
    ids = np.full(table.ids.shape, EMPTY_ID)
    for query, own in lists.items():
        ids[query, : len(own)] = own
    table.ids.assign(ids)
    return table


def run(task, *, queries=QUERIES, ids=IDS, corpus=CORPUS, training=True, seen=None):
    items = tf.gather(corpus, ids - 100)

    def encode(features):
        if seen is not None:
            seen.append(features["item_id"].numpy().tolist())
        return tf.gather(corpus, features["item_id"] - 100)

    return task(
        *(queries, items),
        candidate_ids=ids,
        features={"user_id": tf.constant(USERS)},
        encode_items=encode,
        training=training,
    )


def task_of(table, *, masks, **options):
    options = {"temperature": 0.5, "correct": None, "reduction": "mean", **options}
    return Retrieval(negatives=[MinedUnion(table, CATALOGUE)], masks=masks, **options)


@pytest.mark.parametrize("known", [False, True], ids=["hits only", "known positives"])
def test_a_step_equals_the_loop(known):
    chosen = {q: set() for q in range(6)}
    for query, item in zip(HISTORY.query_features["user_id"], HISTORY.item_ids, strict=True):
        chosen[int(query)].add(int(item))
    masks = [KnownPositives(HISTORY, CATALOGUE) if known else AccidentalHits()]
    task, drawn = task_of(table_of(), masks=masks), set()
    for _ in range(6):
        seen = []
        loss = run(task, seen=seen)
        # Row 2 has no list: what is encoded in its place does not count.
        picks = [None if USERS[row] == 2 else item for row, item in enumerate(seen[-1])]
        for row, pick in enumerate(picks):
            assert pick is None or pick in LISTS[USERS[row]]
        drawn.add(tuple(picks))
        expected = union_loss(
            QUERIES.astype(np.float64),
            CORPUS[IDS - 100].astype(np.float64),
            IDS.tolist(),
            picks,
            {100 + n: vector.astype(np.float64) for n, vector in enumerate(CORPUS)},
            [chosen[user] if known else set() for user in USERS],
            0.5,
        )
        assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5)
    assert len(drawn) > 3  # another pick in every step


def test_the_gradient_reaches_a_mined_item_once_for_all_rows():
    corpus = tf.Variable(CORPUS)
    table = table_of({0: [115], 1: [115]})
    task = task_of(table, masks=[KnownPositives(HISTORY, CATALOGUE)], reduction="sum")
    with tf.GradientTape() as tape:
        loss = run(task, corpus=corpus)
    gradient = tf.convert_to_tensor(tape.gradient(loss, corpus)).numpy()[15]
    # By hand: every row is pushed by the one candidate 115, in proportion to its softmax.
    pushed = np.zeros(D)
    for row, query in enumerate(QUERIES.astype(np.float64)):
        user = int(USERS[row])
        own = HISTORY.item_ids[HISTORY.query_features["user_id"] == user]
        pool = ({*IDS.tolist(), 115} - set(own.tolist())) | {int(IDS[row])}
        weight = {i: np.exp(query @ CORPUS[i - 100].astype(np.float64) / 0.5) for i in pool}
        pushed += weight[115] / sum(weight.values()) * query / 0.5
    np.testing.assert_allclose(gradient, pushed, rtol=1e-4)


def test_picks_are_uniform_over_the_list():
    counts = dict.fromkeys(LISTS[3], 0)
    task = task_of(table_of(), masks=[AccidentalHits()])
    for _ in range(400):
        seen = []
        run(task, seen=seen)
        counts[seen[-1][4]] += 1
    # The 99.99th percentile of chi squared with 3 degrees of freedom is 21.1.
    assert sum((n - 100) ** 2 / 100 for n in counts.values()) < 21.1


def test_an_empty_table_gives_the_batch_and_each_of_its_items_once():
    masks = [AccidentalHits()]
    distinct = np.array([104, 101, 105, 109, 112, 106, 100])
    for ids, equal in ((distinct, True), (IDS, False)):
        union = run(task_of(table_of({}), masks=masks), ids=ids)
        batch = run(
            Retrieval(
                negatives=[InBatch()],
                masks=masks,
                temperature=0.5,
                correct=None,
                reduction="mean",
            ),
            ids=ids,
        )
        assert (float(union) == pytest.approx(float(batch), rel=1e-6)) == equal


def test_a_table_that_is_loaded_later_is_used_by_a_traced_step():
    table = table_of({})
    task = task_of(table, masks=[AccidentalHits()])
    step = tf.function(lambda: run(task))
    before = float(step())
    table.ids.assign(table_of().ids)
    assert float(step()) > before  # more negatives


def test_it_does_not_correct():
    task = task_of(table_of(), masks=[], correct="both")
    with pytest.raises(InputError, match="`correct`: expected None beside mined_union"):
        run(task)


def test_an_item_outside_the_catalogue_stops_the_step():
    task = task_of(table_of({1: [999]}), masks=[AccidentalHits()])
    with pytest.raises(tf.errors.InvalidArgumentError, match="only items of the catalogue"):
        run(task)


def test_several_vectors_of_a_query():
    two = np.stack([QUERIES, -QUERIES], axis=1)
    assert np.isfinite(float(run(task_of(table_of(), masks=[AccidentalHits()]), queries=two)))


def test_the_first_of_each_id():
    ids = RNG.integers(0, 9, 40)
    expected = [i not in ids[:n] for n, i in enumerate(ids)]
    assert first_of_each(tf.constant(ids)).numpy().tolist() == expected


# ------------------------------------------------------------------ a training


def model_of(task, items):
    def tower(name, rows, seed):
        ids = tf.keras.Input((), name=name, dtype=tf.int64)
        start = tf.keras.initializers.RandomNormal(seed=seed)
        table = tf.keras.layers.Embedding(rows, 8, embeddings_initializer=start)
        return tf.keras.Model({name: ids}, table(ids))

    model = TwoTower(tower("user_id", 30, 1), tower("item_id", len(items), 2), items, task)
    model.compile(tf.keras.optimizers.Adam(0.05))
    return model


def test_mined_negatives_begin_with_their_epoch(tmp_path):
    rng = np.random.default_rng(0)
    items = ItemCatalogue(np.arange(40))
    users = np.repeat(np.arange(30), 5)
    log = Interactions({"user_id": users}, rng.integers(0, 40, 150), query_key="user_id")
    options = {"first_epoch": 3, "every_epochs": 2, "shortlist": 10}
    task, mining = dexml(items, log, folder=tmp_path, **options)
    model, filled = model_of(task, items), []

    class Watch(tf.keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            lists = mining.table.ids.numpy()[:-1]
            filled.append(bool((lists != EMPTY_ID).all()))
            for user, own in enumerate(lists):
                assert not set(own.tolist()) & set(log.item_ids[users == user].tolist())

    history = model.fit(
        log.dataset(32, item_key="item_id"), epochs=6, verbose=0, callbacks=[mining, Watch()]
    )
    assert filled == [False, False, True, True, True, True]
    assert history.history["mined_negatives"] == [10, 10, 10]  # after epochs 2, 4 and 6
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["epoch_0002.parquet", "epoch_0004.parquet", "epoch_0006.parquet"]


def test_the_recipe_is_these_parts(tmp_path):
    task, mining = dexml(CATALOGUE, HISTORY, folder=tmp_path, decoupled=False, temperature=0.2)
    assert [type(part) for part in task.negatives + task.masks] == [MinedUnion, AccidentalHits]
    assert task.negatives[0].table is mining.table
    assert (mining.first_epoch, mining.every_epochs, mining.table.num) == (5, 5, 100)
    assert task.correction.policy is None
    with pytest.raises(InputError, match="`first_epoch`: expected at least 2"):
        dexml(CATALOGUE, HISTORY, folder=tmp_path, first_epoch=1)
