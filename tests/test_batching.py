"""Batches of similar queries: every event once, the state of a resumed run, hardness."""

from __future__ import annotations

import contextlib
import logging

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from replicas import strategy_with_collectives

from tfrs_negatives.clustering import ClusteredBatches, RefreshClusters, doubling
from tfrs_negatives.clustering.epoch_order import clustered_order
from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.model.two_tower import TwoTower
from tfrs_negatives.runs.checkpoints import Checkpoints

NUM_USERS, NUM_ITEMS, NUM_EVENTS = 40, 30, 500
ITEMS = ItemCatalogue(np.arange(NUM_ITEMS))


def random_log(num_events=NUM_EVENTS, num_users=NUM_USERS, seed=0):
    rng = np.random.default_rng(seed)
    # A few users have most of the events.
    users = np.minimum(rng.geometric(0.1, num_events) - 1, num_users - 1)
    users[:num_users] = np.arange(num_users)[:num_events]
    return Interactions(
        {"user_id": users}, rng.integers(0, NUM_ITEMS, num_events), query_key="user_id"
    )


def embedding_tower(name, size):
    ids = tf.keras.Input((), name=name, dtype=tf.int64)
    return tf.keras.Model(ids, tf.keras.layers.Embedding(size, 8)(ids), name=f"{name}_tower")


def build_model(seed=0):
    tf.keras.utils.set_random_seed(seed)
    model = TwoTower(
        embedding_tower("user_id", NUM_USERS), embedding_tower("item_id", NUM_ITEMS), ITEMS
    )
    model.compile(tf.keras.optimizers.Adagrad(0.1))
    return model


class Vectors:
    """A model whose query vectors are given."""

    def __init__(self, vectors):
        self.query_signature = {"user_id": tf.TensorSpec([None], tf.int64)}
        self.vectors = tf.constant(vectors, tf.float32)

    def query_vectors(self, features):
        return tf.gather(self.vectors, features["user_id"])


class KeepOrders(ClusteredBatches):
    """Writes down which events each batch that was trained on held."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def _batches_of_epoch(self):
        # At the beginning: what is read ahead may be read when the next epoch is already announced.
        epoch = self.next_step // self.steps_per_epoch
        for rows in super()._batches_of_epoch():
            self.seen.append((epoch, rows.tolist()))
            yield rows


# ------------------------------------------------------------------ schedule


def test_doubling():
    size = doubling(3, every=2, most=10)
    assert [size(epoch) for epoch in range(8)] == [3, 3, 6, 6, 10, 10, 10, 10]
    assert [doubling()(epoch) for epoch in (29, 30)] == [1, 2]
    assert doubling(every=1)(20) == 2**20


# ------------------------------------------------------------------ order


@settings(max_examples=60, deadline=None)
@given(
    num_events=st.integers(1, 300),
    num_queries=st.integers(1, 40),
    num_clusters=st.integers(1, 40),
    piece_size=st.integers(1, 50),
    random_share=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 5),
)
def test_every_event_once(num_events, num_queries, num_clusters, piece_size, random_share, seed):
    rng = np.random.default_rng(seed)
    query_of_event = rng.integers(0, num_queries, num_events)
    order = clustered_order(
        query_of_event,
        rng.integers(0, num_clusters, num_queries),
        piece_size=piece_size,
        random_share=random_share,
        seed=(seed,),
    )
    assert np.sort(order).tolist() == list(range(num_events))


def pieces_of(order, cluster_of_event, piece_size):
    """Cuts an order into its pieces: as long as the cluster stays, and each of even size."""
    sizes = np.bincount(cluster_of_event)
    begin, pieces = 0, []
    while begin < len(order):
        cluster = cluster_of_event[order[begin]]
        number = -(-sizes[cluster] // piece_size)
        end = begin
        while end < len(order) and cluster_of_event[order[end]] == cluster:
            end += 1
        pieces.append((cluster, number, order[begin:end]))
        begin = end
    return pieces


def test_pieces_are_of_one_cluster_and_even():
    rng = np.random.default_rng(0)
    query_of_event = rng.integers(0, 200, 3000)
    cluster_of_query = np.arange(200) % 20
    order = clustered_order(
        query_of_event, cluster_of_query, piece_size=10, random_share=0.0, seed=(1,)
    )
    cluster = cluster_of_query[query_of_event]
    sizes = np.bincount(cluster)
    for number, pieces, rows in pieces_of(order, cluster, 10):
        # Two pieces of a cluster may happen to be neighbours.
        size = sizes[number] / pieces
        assert any(
            len(rows) in (k * int(size), *range(k * int(size), k * int(size + 1) + 1))
            for k in range(1, 5)
        )
    # Random events would have neighbours of their own cluster in 1 of 20 cases.
    assert np.mean(cluster[order[1:]] == cluster[order[:-1]]) > 0.85


def test_a_piece_has_as_few_events_of_one_query_as_can_be():
    # One cluster of 4 queries with 10 events each and pieces of 4: 10 pieces, each query once.
    query_of_event = np.repeat(np.arange(4), 10)
    order = clustered_order(
        query_of_event, np.zeros(4, int), piece_size=4, random_share=0.0, seed=(0,)
    )
    for piece in query_of_event[order].reshape(10, 4):
        assert sorted(piece) == [0, 1, 2, 3]


def test_other_queries_meet_in_another_epoch():
    query_of_event, clusters = np.arange(64), np.zeros(64, int)
    orders = [
        clustered_order(query_of_event, clusters, piece_size=4, random_share=0.0, seed=(0, epoch))
        for epoch in range(2)
    ]
    pairs = [{frozenset(piece) for piece in order.reshape(16, 4).tolist()} for order in orders]
    assert pairs[0] != pairs[1]


def test_the_random_share_stands_alone():
    query_of_event = np.repeat(np.arange(100), 20)
    clusters = np.arange(100) // 10
    near = []
    for share in (0.0, 0.5, 1.0):
        order = clustered_order(
            query_of_event, clusters, piece_size=20, random_share=share, seed=(0,)
        )
        cluster = clusters[query_of_event[order]]
        near.append(np.mean(cluster[1:] == cluster[:-1]))
    # A share s alone leaves about (1 - s) of the neighbours; by chance 1 in 10.
    assert near[0] > 0.9
    assert 0.3 < near[1] < 0.95 * near[0]
    assert near[2] == pytest.approx(0.1, abs=0.03)


# ------------------------------------------------------------------ batches


def refreshed(batches, epoch, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(NUM_USERS, 4))
    batches.refresh(Vectors(vectors), epoch)
    return batches


@pytest.mark.parametrize("batch_size", [1, 7, 64, 499, 500, 501])
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_an_epoch_has_every_event_once_with_what_belongs_to_it(batch_size, share):
    log = random_log()
    batches = ClusteredBatches(
        log, batch_size, item_key="item_id", cluster_size=8, min_clusters=2, random_share=share
    )
    refreshed(batches, 0)
    dataset = batches.dataset()
    assert int(dataset.cardinality()) == batches.steps_per_epoch == -(-NUM_EVENTS // batch_size)
    found = [
        pair
        for batch in dataset
        for pair in zip(batch["user_id"].numpy(), batch["item_id"].numpy(), strict=True)
    ]
    users = log.query_features["user_id"]
    assert sorted(found) == sorted(zip(users, log.item_ids, strict=True))
    sizes = [len(batch["item_id"]) for batch in dataset]
    assert set(sizes[:-1]) <= {batch_size}


@pytest.mark.parametrize("start_step", [0, 1, 5, 7, 8, 13])
def test_a_start_step_goes_on_where_the_epochs_would_be(start_step):
    whole = refreshed(ClusteredBatches(random_log(), 64, item_key="item_id", cluster_size=8), 0)
    steps = whole.steps_per_epoch
    assert steps == 8
    expected = []
    for epoch in range(2):
        expected += [rows.numpy().tolist() for rows in whole.rows(start_step=epoch * steps)]
    begun = [rows.numpy().tolist() for rows in whole.rows(start_step=start_step)]
    epoch = start_step // steps * steps
    # What is left of the epoch, and then what came before.
    assert begun == expected[start_step : epoch + steps] + expected[epoch:start_step]


def test_clusters_of_one_query_are_a_random_order():
    batches = ClusteredBatches(random_log(), 64, item_key="item_id", cluster_size=1)
    orders = [batches.order(epoch) for epoch in range(2)]
    assert not batches.is_due(0)
    assert (orders[0] != orders[1]).any()
    assert sorted(orders[0]) == list(range(NUM_EVENTS))


def test_when_clusters_are_due():
    batches = ClusteredBatches(
        random_log(),
        64,
        item_key="item_id",
        cluster_size=lambda epoch: [1, 2, 2, 4, 4, 2, 2, 2][epoch],
        refresh_every=4,
        min_clusters=2,
    )
    due = []
    for epoch in range(8):
        if batches.is_due(epoch):
            refreshed(batches, epoch)
            due.append(epoch)
    # The first clusters, the fourth epoch after the beginning, and none is finer than at epoch 4.
    assert due == [1, 4, 5]
    assert [batches.num_clusters(epoch) for epoch in (0, 1, 3)] == [NUM_USERS, 20, 10]


def test_min_clusters_limits_the_size():
    batches = ClusteredBatches(
        random_log(), 64, item_key="item_id", cluster_size=1000, min_clusters=6
    )
    assert batches.num_clusters(0) == 6


def test_larger_clusters_are_neighbours_put_together():
    # Users on a line, in any order: 8 clusters of 5 neighbours each, then 4 of 10.
    place = np.random.default_rng(0).permutation(40)
    log = Interactions({"user_id": np.arange(40)}, np.arange(40) % NUM_ITEMS, query_key="user_id")
    batches = ClusteredBatches(
        log, 10, item_key="item_id", cluster_size=lambda e: 5 * (1 + e), min_clusters=2
    )
    batches.refresh(Vectors(place[:, None]), 0)
    for epoch, size in ((0, 5), (1, 10)):
        pieces = place[batches.order(epoch)].reshape(-1, size)
        groups = {tuple(sorted(piece)) for piece in pieces.tolist()}
        assert groups == {tuple(range(i, i + size)) for i in range(0, 40, size)}


def test_events_without_a_query_key_are_their_own_queries():
    log = random_log()
    batches = ClusteredBatches(
        Interactions(log.query_features, log.item_ids), 64, item_key="item_id", cluster_size=4
    )
    assert batches.num_queries == NUM_EVENTS


def test_weights_come_along():
    log = random_log()
    weighted = Interactions(
        log.query_features,
        log.item_ids,
        query_key="user_id",
        weights=np.arange(NUM_EVENTS, dtype=np.float32),
    )
    batches = ClusteredBatches(weighted, 64, item_key="item_id", cluster_size=1)
    weights = np.concatenate([batch["sample_weight"] for batch in batches.dataset()])
    assert np.sort(weights).tolist() == list(range(NUM_EVENTS))


def test_features_are_read_by_row_from_a_log_on_disk(tmp_path):
    log, columns = random_log(), {}
    for name, column in {**log.query_features, "item_id": log.item_ids}.items():
        np.save(tmp_path / f"{name}.npy", column)
        columns[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    on_disk = Interactions({"user_id": columns["user_id"]}, columns["item_id"], "user_id")

    def read(rows):
        values = tf.numpy_function(
            lambda at: [column[at] for column in columns.values()], [rows], [tf.int64] * 2
        )
        return dict(zip(columns, values, strict=True))

    batches = refreshed(ClusteredBatches(on_disk, 64, **options()), 0)
    in_memory = refreshed(ClusteredBatches(log, 64, **options()), 0)
    for received, expected in zip(batches.rows().map(read), in_memory.dataset(), strict=True):
        for name in expected:
            np.testing.assert_array_equal(received[name], expected[name])


# ------------------------------------------------------------------ training


def options(**more):
    return {
        "item_key": "item_id",
        "cluster_size": doubling(2, every=2),
        "refresh_every": 2,
        "min_clusters": 4,
        **more,
    }


def test_fit_sees_every_event_once_per_epoch_in_clusters_of_growing_size(caplog):
    batches = KeepOrders(random_log(), 64, **options())
    model = build_model()
    with caplog.at_level(logging.INFO, logger="tfrs_negatives"):
        history = model.fit(
            batches.dataset(),
            steps_per_epoch=batches.steps_per_epoch,
            epochs=5,
            callbacks=[RefreshClusters(batches)],
            verbose=0,
        ).history
    for epoch in range(5):
        rows = [row for number, batch in batches.seen for row in batch if number == epoch]
        assert sorted(rows) == list(range(NUM_EVENTS))
    assert history["cluster_size"] == [2, 2, 4, 4, 8]
    lines = [r.getMessage() for r in caplog.records if "clusters" in r.getMessage()]
    assert lines == [
        "epoch 1: 40 queries in 20 clusters",
        "epoch 3: 40 queries in 10 clusters",
        "epoch 5: 40 queries in 5 clusters",
    ]


def test_a_second_fit_goes_on_with_the_next_epoch():
    batches = KeepOrders(random_log(), 64, **options())
    model = build_model()
    for _ in range(2):
        model.fit(
            batches.dataset(),
            steps_per_epoch=batches.steps_per_epoch,
            callbacks=[RefreshClusters(batches)],
            verbose=0,
        )
    assert [number for number, _ in batches.seen] == [0] * 8 + [1] * 8


def fit(batches, model, *, steps=None, epochs=1, start_step=None):
    model.fit(
        batches.dataset(start_step=start_step),
        steps_per_epoch=steps or batches.steps_per_epoch,
        epochs=epochs,
        callbacks=[RefreshClusters(batches)],
        verbose=0,
    )


def test_another_model_and_a_new_beginning_have_new_clusters():
    batches = ClusteredBatches(random_log(), 64, **options(cluster_size=4, refresh_every=99))
    first, second = build_model(0), build_model(1)
    sequences = []
    for model, start_step in ((first, None), (second, None), (second, None), (second, 0)):
        fit(batches, model, start_step=start_step)
        sequences.append(batches.state.sequence.numpy().tolist())
    of_first, of_second, again, anew = sequences
    assert of_first != of_second == again != anew
    assert batches.next_step == batches.steps_per_epoch


def test_nothing_is_embedded_for_an_epoch_that_does_not_come():
    batches = ClusteredBatches(random_log(), 64, **options(refresh_every=1))
    fit(batches, build_model(), epochs=2)
    assert int(batches.state.epoch) == 1


def test_training_without_any_cluster_says_so(caplog):
    batches = ClusteredBatches(random_log(), 64, item_key="item_id", cluster_size=doubling())
    fit(batches, build_model())
    assert "no epoch of this training has clusters of more than one query" in caplog.text


def test_the_same_epoch_again_says_so(caplog):
    batches = ClusteredBatches(random_log(), 64, item_key="item_id", cluster_size=1)
    for _ in batches.rows():
        pass
    assert not caplog.records
    for _ in batches.rows():
        pass
    assert "is `RefreshClusters` among the callbacks?" in caplog.text


def test_steps_that_are_no_whole_epoch_are_an_error():
    batches = ClusteredBatches(random_log(), 64, **options())
    with pytest.raises(InputError, match="`steps_per_epoch`: expected 8, a whole epoch"):
        fit(batches, build_model(), steps=3)


class Kill(tf.keras.callbacks.Callback):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.steps_done.numpy()) == self.step:
            raise KeyboardInterrupt


# In the first epoch, at its end, and long after it.
@pytest.mark.parametrize(
    "killed_at",
    [5, 8, 19],
)
@pytest.mark.slow
def test_a_killed_run_resumes_bit_equal(tmp_path, killed_at):
    def train(folder, kill=None):
        model, batches = build_model(), KeepOrders(random_log(), 64, **options())
        checkpoints = Checkpoints(folder, every_steps=3, track={"clusters": batches.state})
        start = checkpoints.restore(model)
        with contextlib.suppress(KeyboardInterrupt):
            model.fit(
                batches.dataset(start_step=start),
                steps_per_epoch=batches.steps_per_epoch,
                epochs=4,
                callbacks=[RefreshClusters(batches), checkpoints, *([Kill(kill)] if kill else [])],
                verbose=0,
            )
        return model, batches, start

    whole, batches, _ = train(tmp_path / "whole")
    train(tmp_path / "killed", killed_at)
    resumed, again, start = train(tmp_path / "killed")
    steps = batches.steps_per_epoch
    assert killed_at - 3 <= start <= killed_at
    for received, expected in zip(resumed.variables, whole.variables, strict=True):
        np.testing.assert_array_equal(received, expected)
    np.testing.assert_array_equal(again.state.sequence, batches.state.sequence)
    # What was left of the epochs, batch by batch. What is read ahead goes round in the first one.
    for epoch in {number for number, _ in again.seen}:
        expected, received = (
            [rows for number, rows in log.seen if number == epoch] for log in (batches, again)
        )
        place = expected.index(received[0])
        assert received[: len(expected) - place] == expected[place:]
    assert {number for number, _ in again.seen} == set(range(start // steps, 4))


def test_replicas_divide_a_batch_as_it_stands():
    batches = refreshed(ClusteredBatches(random_log(), 64, **options()), 0)
    strategy = strategy_with_collectives()
    whole = [batch["item_id"].numpy() for batch in batches.dataset()]
    divided = strategy.experimental_distribute_dataset(batches.dataset())
    for batch, expected in zip(divided, whole, strict=True):
        parts = strategy.experimental_local_results(batch["item_id"])
        np.testing.assert_array_equal(np.concatenate(parts), expected)


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size`: expected at least 1. Received: 0"),
        ({"cluster_size": 0}, "`cluster_size`: expected at least 1. Received: 0"),
        ({"refresh_every": 0}, "`refresh_every`: expected at least 1. Received: 0"),
        ({"min_clusters": 0}, "`min_clusters`: expected at least 1. Received: 0"),
        ({"seed": -1}, "`seed`: expected at least 0. Received: -1"),
        ({"random_share": 1.5}, "`random_share`: expected a number in [0, 1]. Received: 1.5"),
        (
            {"log": random_log().take(np.arange(0))},
            "`log`: expected at least one event. Received: none",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError) as error:
        ClusteredBatches(
            **{"log": random_log(), "batch_size": 4, "item_key": "item_id", **arguments}
        )
    assert str(error.value) == message


def test_bad_calls():
    batches = ClusteredBatches(random_log(), 64, item_key="item_id", cluster_size=4)
    with pytest.raises(InputError, match="expected `RefreshClusters`, to cluster the queries"):
        batches.order(0)
    with pytest.raises(InputError, match=r"`start_step`: expected at least 0\. Received: -1"):
        batches.dataset(start_step=-1)
    with pytest.raises(InputError, match=r"`every`: expected at least 1\. Received: 0"):
        doubling(every=0)
    zero = ClusteredBatches(random_log(), 64, item_key="item_id", cluster_size=lambda _: 0)
    with pytest.raises(InputError, match=r"`cluster_size\(0\)`: expected at least 1\. Received: 0"):
        zero.order(0)
    callback = RefreshClusters(batches)
    callback.set_params({"steps": 8, "epochs": 1})
    callback.set_model(tf.keras.Sequential([tf.keras.layers.Dense(1)]))
    with pytest.raises(InputError, match="`model`: expected a RetrievalModel with query_vectors"):
        callback.on_train_begin()
