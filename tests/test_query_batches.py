"""Batches of queries with all of their positives: the data, the step, the exact counts."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.reference_query_batches import all_positives_terms
from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions, QueryBatches
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.model.two_tower import TwoTower, describe_last_step
from tfrs_negatives.step import losses
from tfrs_negatives.step.frequency import ExactFrequency, StreamingFrequency
from tfrs_negatives.step.losses import BPR
from tfrs_negatives.step.masks.keep import AccidentalHits
from tfrs_negatives.step.masks.known_positives import KnownPositives
from tfrs_negatives.step.miners import Hardest, SemiHard
from tfrs_negatives.step.records import Mask
from tfrs_negatives.step.samplers import CrossBatch, Explicit, InBatch, Uniform
from tfrs_negatives.step.task import Retrieval

USERS, N, E, D = 12, 15, 60, 4
RNG = np.random.default_rng(7)
ITEMS = ItemCatalogue(np.arange(N) + 40)
# Every user has one event at least, the popular items are in many histories.
USER = np.concatenate([np.arange(USERS), RNG.integers(0, USERS, E - USERS)])
ITEM = np.minimum(RNG.geometric(0.15, E) - 1, N - 1) + 40
WEIGHT = np.arange(E, dtype=np.float32) + 1
LOG = Interactions({"user": USER}, ITEM, query_key="user", weights=WEIGHT)


def batches(size=5, **options):
    return QueryBatches(LOG, size, item_key="item_id", **options)


def epoch(data, number=1):
    """The batches of the first epoch, or of several."""
    return list(data.dataset().take(number * data.steps_per_epoch))


def pairs(some):
    """(user, item) of every row of batches."""
    return [
        (int(user), item)
        for batch in some
        for user, ids in zip(batch["user"].numpy(), batch["item_id"].to_list(), strict=True)
        for item in ids
    ]


# ------------------------------------------------------------------ the data


def test_an_epoch_has_every_event_once_and_a_query_in_one_batch():
    some = epoch(batches())
    assert [len(batch["user"]) for batch in some] == [5, 5, 2]
    assert sorted(pairs(some)) == sorted(zip(USER.tolist(), ITEM.tolist(), strict=True))
    users = np.concatenate([batch["user"].numpy() for batch in some])
    assert sorted(users.tolist()) == list(range(USERS))


def test_weights_come_with_their_positives():
    some = epoch(batches())
    weights = np.concatenate([b["sample_weight"].flat_values.numpy() for b in some])
    # A weight is the number of its event.
    of_event = [(int(USER[int(w) - 1]), int(ITEM[int(w) - 1])) for w in weights]
    assert of_event == pairs(some)
    assert sorted(weights.tolist()) == WEIGHT.tolist()


def test_epochs_differ_and_one_seed_is_one_order_from_any_step_on():
    data = batches(max_positives=2, seed=3)
    steps = list(data.dataset().take(9))
    for first in (1, 4, 7):
        later = list(data.dataset(start_step=first).take(2))
        assert pairs(later) == pairs(steps[first : first + 2])
    assert pairs(steps[:3]) != pairs(steps[3:6])
    assert pairs(epoch(batches(seed=4))) != pairs(epoch(batches(seed=5)))


def test_some_positives_are_a_fair_draw_of_the_history():
    data, epochs, sizes = batches(USERS, max_positives=3), 400, np.bincount(USER)
    share = np.minimum(1, 3 / sizes)[USER]
    np.testing.assert_allclose(data.event_shares, share)
    assert data.positives_per_query == pytest.approx(np.minimum(sizes, 3).mean())
    drawn, times = epoch(data, epochs), np.zeros(E)
    for batch in drawn:
        assert batch["item_id"].row_lengths().numpy().max() == 3
        times[batch["sample_weight"].flat_values.numpy().astype(int) - 1] += 1
    deviation = np.sqrt(share * (1 - share) / epochs)
    assert np.all(np.abs(times / epochs - share) <= 4.5 * deviation)


class Spy(InBatch):
    """In-batch, which notes what it expects of every item."""

    def __init__(self):
        self.expected = None

    def log_count(self, ids, batch):
        self.expected = np.exp(super().log_count(tf.constant(ITEMS.keys), batch).numpy())
        return super().log_count(ids, batch)


@pytest.mark.parametrize("most", [None, 2])
def test_the_expected_count_of_an_item_in_a_batch_is_exact(most):
    """The mean over all batches is what in-batch is corrected with, also of a short batch."""
    data, spy = batches(4, max_positives=most), Spy()
    counts = np.bincount(ITEM - 40, data.event_shares, N)
    rate = data.positives_per_query
    frequency = ExactFrequency(ITEMS.ids, counts, positives_per_query=rate)
    epochs, held = (1 if most is None else 200), np.zeros(N)
    for batch in epoch(data, epochs):
        held += np.bincount(batch["item_id"].flat_values.numpy() - 40, minlength=N)
    mean = held / (epochs * data.steps_per_epoch)
    ids, rows = batch["item_id"].flat_values, batch["item_id"].value_rowids()
    Retrieval(negatives=[spy], frequency=frequency)(
        tf.ones([4, D]), tf.ones([len(ids), D]), candidate_ids=ids, query_of_row=rows, training=True
    )
    some = counts > 0
    deviation = 0 if most is None else 5 * np.sqrt(mean[some] / (epochs * data.steps_per_epoch))
    assert np.all(np.abs(mean - spy.expected)[some] <= deviation + 1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: QueryBatches(LOG.take([]), 2, item_key="item_id"), "`log`"),
        (lambda: batches(0), "`batch_size`"),
        (lambda: batches(max_positives=0), "`max_positives`"),
        (lambda: batches().dataset(start_step=-1), "`start_step`"),
        (lambda: QueryBatches(LOG, 2, item_key="user"), "`item_key`"),
        (
            lambda: QueryBatches(Interactions({"user": USER}, ITEM), 2, item_key="item_id"),
            "`log.query_key`",
        ),
        (
            lambda: QueryBatches(
                Interactions({"user": USER, "hour": np.arange(E)}, ITEM, query_key="user"),
                2,
                item_key="item_id",
            ),
            r"\['hour'\], which change",
        ),
    ],
)
def test_what_cannot_be_batched_is_said(change, said):
    with pytest.raises(InputError, match=said):
        change()


# ------------------------------------------------------------------ the step

BATCH = epoch(batches())[0]
IDS, ROWS = BATCH["item_id"].flat_values, BATCH["item_id"].value_rowids()
QUERIES = tf.constant(RNG.normal(size=[5, D]).astype(np.float32))
CORPUS = tf.constant(RNG.normal(size=[N, D]).astype(np.float32))
POSITIVES = tf.gather(CORPUS, IDS - 40)


class KeepAll(Mask):
    """Keeps all, and could read the positive: rows of one query are masked one by one."""

    def keep(self, scored, batch):
        return tf.ones_like(scored.keep)


COMPOSITIONS = {
    "in-batch": dict,
    "corrected": lambda: {"frequency": StreamingFrequency(64, 2)},
    "known": lambda: {"masks": [KnownPositives(LOG, ITEMS)]},
    "uniform": lambda: {"negatives": [Uniform(ITEMS, 7)], "masks": [KnownPositives(LOG, ITEMS)]},
    "mixed": lambda: {
        "negatives": [InBatch(), Uniform(ITEMS, 7)],
        "frequency": ExactFrequency(ITEMS.ids, np.bincount(ITEM - 40, minlength=N)),
        "masks": [KnownPositives(LOG, ITEMS)],
        "correct": "negatives",
    },
    "hits": lambda: {
        "negatives": [InBatch(), Uniform(ITEMS, 7)],
        "masks": [AccidentalHits()],
        "correct": None,
    },
    "pairs": lambda: {"loss": BPR(), "negatives": [Uniform(ITEMS, 7)], "correct": None},
    "hardest": lambda: {"loss": BPR(), "miners": [Hardest(3)]},
    # Whether a copy of the positive is below it would be a matter of rounding.
    "semi-hard": lambda: {
        "miners": [SemiHard(1.0)],
        "masks": [AccidentalHits()],
        "correct": None,
    },
}


def call(task, queries=QUERIES, corpus=CORPUS, *, features=None, weights=None):
    return task(
        queries,
        tf.gather(corpus, IDS - 40),
        sample_weight=weights,
        candidate_ids=IDS,
        features={"user": BATCH["user"], **(features or {})},
        encode_items=lambda f: tf.gather(corpus, f["item_id"] - 40),
        query_of_row=ROWS,
        training=True,
    )


def loss_and_gradients(task):
    with tf.GradientTape() as tape:
        tape.watch([QUERIES, CORPUS])
        loss = call(task)
    return [tf.convert_to_tensor(x) for x in (loss, *tape.gradient(loss, [QUERIES, CORPUS]))]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_the_loss_is_that_of_loops_over_queries_and_positives(name, monkeypatch):
    task, pools = Retrieval(**COMPOSITIONS[name]()), []
    sample = task._sample
    monkeypatch.setattr(task, "_sample", lambda *a: pools.extend(sample(*a)) or pools)
    received = float(call(task))
    histories = [set(ITEM[user == USER].tolist()) for user in BATCH["user"].numpy()]
    expected = all_positives_terms(
        (QUERIES.numpy(), POSITIVES.numpy()),
        ROWS.numpy(),
        IDS.numpy(),
        pool={n: None if x is None else np.asarray(x) for n, x in pools[0]._asdict().items()},
        policy=task.correction.policy,
        known=histories if any(isinstance(m, KnownPositives) for m in task.masks) else None,
        hits=any(isinstance(m, AccidentalHits) for m in task.masks),
        kind=name,
    )
    assert received == pytest.approx(expected.sum(), rel=2e-5)


@pytest.mark.parametrize("name", ["in-batch", "corrected", "known", "uniform", "mixed"])
def test_once_for_each_query_is_what_once_for_each_row_is(name):
    """A mask that may read the positive makes the step score every row."""
    once = loss_and_gradients(Retrieval(**COMPOSITIONS[name]()))
    options = COMPOSITIONS[name]()
    masks = [*options.pop("masks", []), KeepAll()]
    assert_same(once, loss_and_gradients(Retrieval(**options, masks=masks)))


LOSSES = {
    "sampled_softmax": losses.SampledSoftmax,
    "bpr": BPR,
    "soft_top_k": lambda: losses.SoftTopK(3),
    "sl_at_k": lambda: losses.SLAtK(LOG, 3, width=10.0),
    "psl": losses.PSL,
    "non_sampling": lambda: losses.NonSampling(0.1),
    "softmax_over_positives": losses.SoftmaxOverPositives,
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_sees_a_row_for_each_positive(name):
    """With uniform negatives a batch of queries is the plain batch of its rows."""

    def task():
        masks = [KnownPositives(LOG, ITEMS)]
        return Retrieval(LOSSES[name](), negatives=[Uniform(ITEMS, 7)], masks=masks)

    grouped = call(task())
    plain = task()(
        tf.gather(QUERIES, ROWS),
        POSITIVES,
        candidate_ids=IDS,
        features={"user": tf.gather(BATCH["user"], ROWS)},
        encode_items=lambda f: tf.gather(CORPUS, f["item_id"] - 40),
        training=True,
    )
    assert float(grouped) == pytest.approx(float(plain), rel=1e-5)


def test_in_blocks_is_as_at_once():
    small = Retrieval(logits_budget=100, **COMPOSITIONS["mixed"]())
    assert_same(loss_and_gradients(small), loss_and_gradients(Retrieval(**COMPOSITIONS["mixed"]())))


def test_one_positive_for_each_query_is_the_plain_batch():
    ids, items = tf.constant([40, 41, 42, 43, 44]), CORPUS[:5]
    plain, grouped = (
        Retrieval()(QUERIES, items, candidate_ids=ids, training=False, **rows)
        for rows in ({}, {"query_of_row": tf.range(5)})
    )
    assert float(plain) == pytest.approx(float(grouped), rel=1e-6)


def test_weights_count_for_their_positive():
    weights = np.linspace(0.1, 2.0, len(IDS)).astype(np.float32)
    pool = {"ids": IDS.numpy(), "vectors": POSITIVES.numpy(), "own_rows": ROWS.numpy()}
    vectors = QUERIES.numpy(), POSITIVES.numpy()
    terms = all_positives_terms(vectors, ROWS.numpy(), IDS.numpy(), pool=pool, policy=None)
    received = call(Retrieval(), weights=tf.constant(weights))
    assert float(received) == pytest.approx(float(terms @ weights), rel=1e-5)


def test_rejects_of_a_query_are_candidates_of_each_of_its_rows():
    task = Retrieval(negatives=[Explicit("rejected", ITEMS)], correct=None)
    rejected = np.array([41, 42, 43, 44, 45])
    own = np.sum(QUERIES.numpy()[ROWS] * POSITIVES.numpy(), axis=1)
    other = np.sum(QUERIES.numpy() * CORPUS.numpy()[rejected - 40], axis=1)[ROWS]
    received = call(task, features={"rejected": tf.constant(rejected[:, None])})
    assert float(received) == pytest.approx(float(np.logaddexp(0, other - own).sum()), rel=1e-5)


def test_labels_of_keras_have_no_place_for_several_positives():
    task = Retrieval(loss=tf.keras.losses.CategoricalCrossentropy(from_logits=True))
    with pytest.raises(InputError, match="`query_of_row`"):
        call(task)


# ------------------------------------------------------------------ the model


def tower(name, first, size, seed):
    ids = tf.keras.Input((), name=name, dtype=tf.int64)
    start = tf.keras.initializers.RandomNormal(0.0, 1.0, seed=seed)
    table = tf.keras.layers.Embedding(size, D, embeddings_initializer=start)
    return tf.keras.Model(ids, table(ids - first))


def make_model(**options):
    task = Retrieval(reduction="mean", similarity="cosine", temperature=0.2, **options)
    model = TwoTower(tower("user", 0, USERS, 1), tower("item_id", 40, N, 2), ITEMS, task)
    model.compile(tf.keras.optimizers.SGD(0.5))
    return model


def fit(model, data, epochs=3):
    steps = data.steps_per_epoch
    history = model.fit(data.dataset(), steps_per_epoch=steps, epochs=epochs, verbose=0)
    return history.history["loss"]


def test_fit_learns_and_says_what_a_step_was():
    model = make_model(**COMPOSITIONS["mixed"]())
    losses = fit(model, batches())
    assert losses[-1] < losses[0] - 0.1
    text = describe_last_step(model.task)
    assert text.startswith("2 queries")
    assert "uniform 7" in text


@pytest.mark.parametrize("more", [[], [KeepAll()]], ids=["once for each query", "for each row"])
def test_what_is_masked_is_a_share_of_what_could_count(more):
    task = Retrieval(masks=[KnownPositives(LOG, ITEMS), *more])
    call(task)
    rows, all_ids = ROWS.numpy(), IDS.numpy()
    histories = [set(ITEM[user == USER].tolist()) for user in BATCH["user"].numpy()]
    judged = rows if more else np.arange(5)
    others = rows[None, :] != judged[:, None]
    known = np.array([[item in histories[q] for item in all_ids] for q in judged])
    expected = (others & known).sum() / others.sum()
    assert float(task.report.masked_share.result()) == pytest.approx(expected)


def test_the_loss_of_an_epoch_is_the_mean_over_its_positives():
    model, data = make_model(), batches()
    model.optimizer.learning_rate = 0.0
    some = epoch(data)
    means = np.array([float(model.compute_loss(batch)) for batch in some])
    numbers = np.array([len(batch["item_id"].flat_values) for batch in some])
    assert fit(model, data, 1)[0] == pytest.approx(means @ numbers / numbers.sum(), rel=1e-5)


def test_ids_may_be_texts():
    names = np.array([f"i{n}" for n in range(N)])
    log = Interactions({"user": np.array(["a", "b", "a"])}, names[[1, 2, 3]], query_key="user")

    def embed(name, vocabulary):
        ids = tf.keras.Input((), name=name, dtype=tf.string)
        rows = tf.keras.layers.StringLookup(vocabulary=vocabulary)(ids)
        return tf.keras.Model(ids, tf.keras.layers.Embedding(len(vocabulary) + 1, D)(rows))

    items = ItemCatalogue(names)
    task = Retrieval(masks=[KnownPositives(log, items)])
    model = TwoTower(embed("user", ["a", "b"]), embed("item_id", names.tolist()), items, task)
    model.compile("sgd")
    losses = fit(model, QueryBatches(log, 2, item_key="item_id"))
    assert 0 < losses[-1] < losses[0]


def test_two_replicas_are_one():
    def trained(strategy):
        with strategy.scope():
            model = make_model(**COMPOSITIONS["mixed"]())
        fit(model, batches(), epochs=2)
        return [w.numpy() for w in model.trainable_variables]

    one = trained(tf.distribute.get_strategy())
    two = trained(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_bank_is_filled_with_the_positives():
    model = make_model(negatives=[InBatch(), CrossBatch(E)], correct=None)
    fit(model, batches(), epochs=1)
    held = model.task.negatives[1].bank.ids.numpy()
    assert sorted(held.tolist()) == sorted(ITEM.tolist())
