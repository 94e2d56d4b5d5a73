"""Cross-batch NGAME on a toy log, step by step beside the slow version of the thesis."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import reference
import reference_batching
import reference_cross_batch_ngame as thesis
import tensorflow as tf
from reference_sources import Bank, drift, probed_steps

from tfrs_negatives.clustering import ClusteredBatches, doubling
from tfrs_negatives.clustering.clusters import MEANS_STEPS, POWER_STEPS, cluster_bounds
from tfrs_negatives.data import Interactions
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.model.two_tower import TwoTower
from tfrs_negatives.step.frequency import ExactFrequency
from tfrs_negatives.step.masks.known_positives import KnownPositives
from tfrs_negatives.step.miners import WithinPositiveRadius
from tfrs_negatives.step.samplers import CrossBatch, InBatch
from tfrs_negatives.step.task import Retrieval

NUM_USERS, NUM_ITEMS, DIM, BATCH, CAPACITY = 16, 12, 3, 8, 20
TEMPERATURE, RATE, EPOCHS, MAX_DRIFT = 0.5, 0.4, 6, 0.6
RNG = np.random.default_rng(3)
PAIRS = sorted(
    {(u, (u // 4 * 3 + int(i)) % NUM_ITEMS) for u in range(16) for i in RNG.integers(0, 5, 5)}
)
LOG = Interactions(
    {"user_id": np.array([u for u, _ in PAIRS])},
    np.array([i for _, i in PAIRS]),
    query_key="user_id",
)
ITEMS = ItemCatalogue(np.arange(NUM_ITEMS))
COUNTS = np.bincount(LOG.item_ids, minlength=NUM_ITEMS) + 1.0
KNOWN = {user: {i for u, i in PAIRS if u == user} for user in range(NUM_USERS)}


def tower(name, size, seed):
    ids = tf.keras.Input((), name=name, dtype=tf.int64)
    start = tf.keras.initializers.RandomNormal(seed=seed)
    table = tf.keras.layers.Embedding(size, DIM, embeddings_initializer=start, name="table")
    return tf.keras.Model(ids, table(ids), name=f"{name}_tower")


class SeenMiner(WithinPositiveRadius):
    """Keeps the columns that it chose where a test can see them, call by call."""

    def __init__(self, **options):
        super().__init__(**options)
        self.kept = []

    def mine(self, scored, batch):
        mined = super().mine(scored, batch)
        self.kept.append(mined.keep.numpy())
        return mined


@pytest.fixture
def run():
    steps = -(-len(LOG) // BATCH)
    batches = ClusteredBatches(
        LOG,
        BATCH,
        item_key="item_id",
        cluster_size=doubling(2, every=2),
        refresh_every=1,
        min_clusters=2,
    )
    bank = CrossBatch(
        CAPACITY,
        probes=ITEMS,
        num_probes=NUM_ITEMS,
        drift="sum",
        max_drift=MAX_DRIFT,
        probe_every=steps,
        compensate=False,
    )
    task = Retrieval(
        negatives=[InBatch(), bank],
        frequency=ExactFrequency(ITEMS.ids, COUNTS),
        masks=[KnownPositives(LOG, ITEMS)],
        miners=[SeenMiner()],
        similarity="cosine",
        temperature=TEMPERATURE,
        reduction="mean",
    )
    model = TwoTower(tower("user_id", NUM_USERS, 1), tower("item_id", NUM_ITEMS, 2), ITEMS, task)
    model.compile(tf.keras.optimizers.SGD(RATE))
    return model, batches, bank, steps


def test_every_step_is_that_of_the_thesis(run):
    model, batches, source, steps = run
    table = {
        name: model.get_layer(f"{name}_tower").get_layer("table") for name in ("user_id", "item_id")
    }
    bank, measured, moved = Bank(CAPACITY), None, np.nan
    due = probed_steps([1] * steps * EPOCHS, steps)
    gates, empty, step = [], 0, 0
    for epoch in range(EPOCHS):
        # [2] All users are embedded and clustered anew, in clusters of growing size.
        batches.refresh(model, epoch)
        check_clusters(batches, table["user_id"].embeddings.numpy(), epoch)
        for rows in batches.rows(start_step=epoch * steps):
            step += 1
            pairs = [PAIRS[row] for row in rows.numpy()]
            users, items = (table[name].embeddings.numpy() for name in ("user_id", "item_id"))
            gate = bool(moved <= MAX_DRIFT)
            options = {
                "known": KNOWN,
                "gate_is_open": gate,
                "share": COUNTS / COUNTS.sum(),
                "temperature": TEMPERATURE,
            }
            stored = [(slot.item, slot.vector) for slot in bank.queue]
            expected, hard = thesis.step_loss(pairs, users, items, stored, **options)
            model.reset_metrics()
            batch = {"user_id": tf.constant([u for u, _ in pairs], tf.int64)}
            batch["item_id"] = tf.constant([i for _, i in pairs], tf.int64)
            model.task.miners[0].kept.clear()
            logs = model.train_step(batch)
            assert float(logs["loss"]) == pytest.approx(expected, rel=1e-5)
            # The gradient asks once more, for the columns that are not stale.
            check_choice(model.task.miners[0].kept[0], hard, len(pairs))
            empty += sum(not (row.in_batch or row.cross_batch) for row in hard)
            gates.append(gate)
            # [11] Read before the batch is pushed; and [8], the drift of all items.
            bank.push([i for _, i in pairs], [items[i] for _, i in pairs])
            if step in due:
                if measured is not None:
                    moved = drift(measured, items, "sum")
                measured = items
            assert float(source.drift.value) == pytest.approx(moved, rel=1e-4, nan_ok=True)
        check_descent(pairs, users, items, stored, table, options)
    # Both sides of the gate were seen, and rows without any hard negative too.
    assert True in gates
    assert False in gates
    assert empty > 0


def check_clusters(batches, users, epoch):
    number = batches.num_clusters(epoch)
    bounds, order = cluster_bounds(NUM_USERS, number), batches.state.sequence.numpy()
    received = [set(order[a:b].tolist()) for a, b in itertools.pairwise(bounds)]
    start = np.random.Generator(np.random.PCG64(batches.seed)).normal(size=DIM)
    vectors = np.stack([thesis.unit(user) for user in users])
    expected = reference_batching.clusters(
        vectors, number, start, power_steps=POWER_STEPS, means_steps=MEANS_STEPS
    )
    # Which half of a node stands first depends on the sign of a direction that has none.
    assert sorted(map(sorted, received)) == sorted(map(sorted, expected))


def check_choice(kept, hard, num_rows):
    """H_IN of every row, column by column, and how many H_CB has."""
    for row, (columns, chosen) in enumerate(zip(kept, hard, strict=True)):
        assert np.flatnonzero(columns[:num_rows]).tolist() == chosen.in_batch, row
        # The bank is a ring: its slots are in another order than those of a queue.
        assert int(columns[num_rows:].sum()) == len(chosen.cross_batch), row


def check_descent(pairs, users, items, stored, table, options):
    """[12] The last step went down the slope of the slow loss, of items and of users."""
    for name, before in (("item_id", items), ("user_id", users)):

        def loss(x, name=name):
            vectors = {"user_id": users, "item_id": items, name: x}
            return thesis.step_loss(
                pairs, vectors["user_id"], vectors["item_id"], stored, **options
            )[0]

        slope = reference.numerical_gradient(loss, before)
        moved = (before - table[name].embeddings.numpy()) / RATE
        np.testing.assert_allclose(moved, slope, atol=2e-4)
