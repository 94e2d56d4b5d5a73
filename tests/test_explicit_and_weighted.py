"""Columns of single rows, weights of sources, and the loss that keeps easy and hard apart."""

from __future__ import annotations

import json

import numpy as np
import pytest
import reference_sources as reference
import tensorflow as tf
from reference import Column, numerical_gradient
from small_batch import (
    BATCH_IDS,
    CATALOGUE,
    CORPUS,
    DRAWN,
    NUM_ITEMS,
    NUM_ROWS,
    QUERIES,
    Drawn,
    Q,
    encode_items,
    exact_frequency,
    pool_of,
    run,
)

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.step.losses import EasyHardMixture, SampledSoftmax
from tfrs_negatives.step.masks.keep import AccidentalHits
from tfrs_negatives.step.records import Loss, Scored
from tfrs_negatives.step.samplers import (
    CrossBatch,
    Explicit,
    InBatch,
    Popularity,
    Uniform,
    Weighted,
)
from tfrs_negatives.step.task import Retrieval

# Nothing, one's own positive (row 0 has 103), an item of the batch, and one twice.
REJECTED = [[100, 103], [102], [], [107, 105, 105], [111, 100, 104]]
PADDED = np.array([[*row, *[-1] * (3 - len(row))] for row in REJECTED])
FEATURES = {"rejected": tf.constant(PADDED)}


def explicit(items=CATALOGUE):
    return Explicit("rejected", items)


def task_of(*negatives, **options):
    options = {"frequency": exact_frequency(), "reduction": "mean", **options}
    return Retrieval(negatives=list(negatives), **options)


def loss_of(*negatives, features=FEATURES, call=None, **options):
    return float(run(task_of(*negatives, **options), features=features, **(call or {})))


def own_terms(weight=1.0, corpus=CORPUS):
    """The columns of each row: one item each, of no expected count."""
    return [
        [reference.Term(Column(item, corpus[item - 100]), 1.0, weight) for item in row]
        for row in REJECTED
    ]


def count_in_batch(item):
    return NUM_ROWS * Q[item - 100]


def batch_terms(weight=1.0, count=count_in_batch):
    return [reference.Term(c, count(c.item), weight) for c in pool_of()]


def expected_loss(terms, own, *, policy, counts=None):
    counts = counts or [count_in_batch(item) for item in BATCH_IDS[:NUM_ROWS]]
    return reference.step_loss(
        QUERIES, pool_of(), terms, own_terms=own, counts=counts, policy=policy
    )


policies = pytest.mark.parametrize("policy", ["both", "negatives", None])
close = {"rel": 1e-5}


# ------------------------------------------------------------------ weights


@policies
@pytest.mark.parametrize("weight", [0.01, 3.0])
def test_a_weight_of_the_rows_own_columns_holds_under_any_correction(policy, weight):
    loss = loss_of(InBatch(), Weighted(explicit(), weight), correct=policy)
    expected = expected_loss(batch_terms(), own_terms(weight), policy=policy)
    assert loss == pytest.approx(expected, **close)


@policies
def test_the_weight_of_a_weighted_source_is_the_product(policy):
    for source in (lambda: Drawn(DRAWN), explicit):
        twice = loss_of(InBatch(), Weighted(Weighted(source(), 0.5), 0.3), correct=policy)
        once = loss_of(InBatch(), Weighted(source(), 0.15), correct=policy)
        assert twice == pytest.approx(once, **close)


@policies
def test_a_source_that_is_off_is_not_there(policy):
    for others in ([explicit], [lambda: Drawn(DRAWN)], [lambda: Drawn(DRAWN), explicit]):
        off = [Weighted(InBatch(), 0.0), *(make() for make in others)]
        without = loss_of(*(make() for make in others), correct=policy)
        assert without > 0.1
        assert loss_of(*off, correct=policy) == pytest.approx(without, **close)


@policies
def test_a_positive_that_no_source_proposes_still_competes(policy):
    ids = np.array([999, *BATCH_IDS[1:NUM_ROWS]])
    loss = loss_of(Uniform(CATALOGUE, 4), correct=policy, call={"candidate_ids": ids})
    drawn = {}

    def record(features):
        drawn["ids"] = features["item_id"].numpy()
        return encode_items(features)

    source = Uniform(CATALOGUE, 4)
    call = {"candidate_ids": ids, "encode_items": record}
    assert loss_of(source, correct=policy, call=call) == loss
    terms = [reference.Term(Column(i, CORPUS[i - 100]), 4 / NUM_ITEMS) for i in drawn["ids"]]
    # Item 999 has no count: its positive is left as it is.
    counts = [1.0, *[4 / NUM_ITEMS] * (NUM_ROWS - 1)]
    assert loss == pytest.approx(expected_loss(terms, None, policy=policy, counts=counts), **close)


@policies
def test_weight_one_is_the_source(policy):
    for source in (lambda: Drawn(DRAWN), explicit):
        plain = loss_of(InBatch(), source(), correct=policy)
        weighted = loss_of(Weighted(InBatch(), 1.0), Weighted(source(), 1), correct=policy)
        assert weighted == pytest.approx(plain, rel=1e-6)


@policies
@pytest.mark.parametrize("budget", [2**24, 4 * NUM_ROWS * 4], ids=["at once", "in blocks"])
def test_constant_weights_are_those_of_the_reference(policy, budget):
    sources = [Weighted(InBatch(), 0.4), Weighted(Drawn(DRAWN), 2.5), explicit()]
    loss = loss_of(*sources, correct=policy, logits_budget=budget)

    def count(item):
        return 0.4 * NUM_ROWS * Q[item - 100] + 2.5 * len(DRAWN) / NUM_ITEMS

    drawn = [reference.Term(Column(100 + r, CORPUS[r]), count(100 + r), 2.5) for r in DRAWN]
    counts = [count(item) for item in BATCH_IDS[:NUM_ROWS]]
    terms = [*batch_terms(0.4, count), *drawn]
    expected = expected_loss(terms, own_terms(), policy=policy, counts=counts)
    assert loss == pytest.approx(expected, **close)


def test_a_common_weight_cancels_where_the_positive_is_left_alone():
    for sources in ([InBatch], [InBatch, lambda: Drawn(DRAWN)]):
        plain = loss_of(*(make() for make in sources), correct="negatives")
        weighted = [Weighted(make(), 7.0) for make in sources]
        assert loss_of(*weighted, correct="negatives") == pytest.approx(plain, **close)


@pytest.mark.parametrize("policy", ["both", None])
def test_a_common_weight_multiplies_the_negatives_against_the_positive(policy):
    kept = Rows()
    loss_of(InBatch(), loss=kept, correct=policy)
    plain = np.expm1(kept.rows.numpy().astype(float))
    loss_of(Weighted(InBatch(), 7.0), loss=kept, correct=policy)
    np.testing.assert_allclose(np.expm1(kept.rows), 7 * plain, rtol=1e-4)


class Rows(Loss):
    """The sampled softmax, which keeps what it answered for each row."""

    def __call__(self, scored, batch=None):
        self.rows = SampledSoftmax()(scored)
        return self.rows


@pytest.mark.parametrize("weights", [(0.2, 3.0), (4.0, 0.1), (1.0, 0.0)])
def test_the_denominator_is_that_of_the_catalogue_for_any_weights(weights):
    counts = np.arange(NUM_ITEMS) ** 2
    sources = Uniform(CATALOGUE, 1500), Popularity(CATALOGUE, 1500, counts=counts, exponent=1)
    weighted = [Weighted(s, w) for s, w in zip(sources, weights, strict=True)]
    kept = Rows()
    task = task_of(*weighted, correct="negatives", loss=kept)
    estimates = []
    for _ in range(16):
        run(task, training=True)
        # loss = log(1 + sum / exp(score of the positive)).
        estimates.append(np.expm1(kept.rows.numpy().astype(float)))
    for row, query in enumerate(QUERIES):
        own = np.exp(float(query @ pool_of()[row].vector))
        received = [own * estimate[row] for estimate in estimates]
        wanted = sum(np.exp(float(query.astype(float) @ vector)) for vector in CORPUS)
        error = np.std(received) / np.sqrt(len(received))
        assert abs(np.mean(received) - wanted) < 4.5 * error
        assert error < 0.03 * wanted


def test_a_schedule_gives_the_weight_of_each_step():
    schedule = tf.keras.optimizers.schedules.PolynomialDecay(0.0, 4, 1.0)
    faded, fixed = task_of(InBatch(), Weighted(Drawn(DRAWN), schedule)), []
    for weight in (0.25, 0.5, 0.75, 1.0, 1.0):
        # Steps count from 1; an evaluation has the weight of the last step.
        for training in (True, False):
            fixed = run(task_of(InBatch(), Weighted(Drawn(DRAWN), weight)))
            assert float(run(faded, training=training)) == pytest.approx(float(fixed), **close)


def test_a_schedule_of_zero_is_off_and_its_source_learns_all_the_same():
    steps = tf.keras.optimizers.schedules.PiecewiseConstantDecay([3], [0.0, 2.0])
    source = CrossBatch(2 * NUM_ROWS)
    task = task_of(InBatch(), Weighted(source, steps), correct="negatives")
    plain = loss_of(InBatch(), correct="negatives")
    for _ in range(3):
        assert float(run(task, training=True)) == pytest.approx(plain, **close)
    # From the fourth step on the bank, which is full by then, counts twice.
    assert int(source.bank.step) == 3
    count = [(NUM_ROWS + 2 * 2 * NUM_ROWS) * Q[i - 100] for i in BATCH_IDS[:NUM_ROWS]]
    batch = [reference.Term(c, n) for c, n in zip(pool_of(), count, strict=True)]
    bank = [term._replace(column=term.column._replace(owner=-1), weight=2.0) for term in batch]
    expected = expected_loss([*batch, *bank, *bank], None, policy="negatives")
    assert float(run(task, training=True)) == pytest.approx(expected, **close)
    assert "bank_fill" in {metric.name for metric in task.metrics}


def test_the_state_and_the_config_of_a_weighted_source_are_saved(tmp_path):
    def make():
        schedule = tf.keras.optimizers.schedules.ExponentialDecay(1.0, 2, 0.5)
        return task_of(InBatch(), Weighted(CrossBatch(7), schedule))

    task, again = make(), make()
    for number in range(3):
        run(task, training=True)
        if not number:
            run(again, training=True)
    path = tf.train.Checkpoint(task=task).write(str(tmp_path / "task"))
    tf.train.Checkpoint(task=again).read(path).assert_existing_objects_matched()
    assert int(again.negatives[1].sampler.bank.step) == 3
    assert float(run(again, training=True)) == float(run(task, training=True))
    config = json.loads(json.dumps(tf.keras.utils.serialize_keras_object(task)))
    built = tf.keras.utils.deserialize_keras_object(config)
    fresh = make()
    for _ in range(3):
        assert float(run(built, training=True)) == float(run(fresh, training=True))


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_weight_that_is_no_weight_is_an_error(weight):
    with pytest.raises(InputError, match=r"^`weight`"):
        Weighted(InBatch(), weight)


# ------------------------------------------------------------------ columns of single rows

NAMES = [f"n{i}" for i in range(NUM_ITEMS)]
NAMED = ItemCatalogue(NAMES)
NAMED_ROWS = [[NAMES[item - 100] for item in row] for row in REJECTED]
FORMS = {
    "-1": (PADDED, CATALOGUE),
    "int32": (PADDED.astype(np.int32), CATALOGUE),
    "empty ids": (np.where(PADDED == -1, EMPTY_ID, PADDED), CATALOGUE),
    "holes": (np.insert(PADDED, [0, 1], -1, axis=1), CATALOGUE),
    "ragged": (tf.ragged.constant(REJECTED, tf.int64), CATALOGUE),
    "names": (np.array([[*row, *[""] * (3 - len(row))] for row in NAMED_ROWS]), NAMED),
    "ragged names": (tf.ragged.constant(NAMED_ROWS), NAMED),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alone", [True, False])
def test_every_form_of_the_column_is_the_reference(form, alone):
    column, items = FORMS[form]

    def encode(features):
        return tf.gather(CORPUS, items.rows(features["item_id"]))

    sources = [explicit(items)] if alone else [InBatch(), explicit(items)]
    task = task_of(*sources, correct=None, frequency=None)
    features = {"rejected": column if "ragged" in form else tf.constant(column)}
    # The batch names its items as the catalogue does.
    ids = BATCH_IDS[:NUM_ROWS]
    ids = [NAMES[item - 100] for item in ids] if items is NAMED else ids
    loss = float(run(task, features=features, encode_items=encode, candidate_ids=ids))
    expected = expected_loss([] if alone else batch_terms(), own_terms(), policy=None)
    assert loss == pytest.approx(expected, **close)


@policies
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("budget", [2**24, 4 * NUM_ROWS * 2], ids=["at once", "in blocks"])
def test_the_order_of_the_sources_shifts_nothing(policy, order, budget):
    sources = [InBatch(), Drawn(DRAWN), explicit()][::order]

    def count(item):
        return NUM_ROWS * Q[item - 100] + len(DRAWN) / NUM_ITEMS

    drawn = [reference.Term(Column(100 + r, CORPUS[r]), count(100 + r)) for r in DRAWN]
    counts = [count(item) for item in BATCH_IDS[:NUM_ROWS]]
    for hits in (False, True):
        masks = [AccidentalHits()] if hits else []
        loss = loss_of(*sources, correct=policy, masks=masks, logits_budget=budget)
        total = reference.step_loss(
            QUERIES,
            pool_of(),
            [*batch_terms(1.0, count), *drawn],
            own_terms=own_terms(),
            counts=counts,
            policy=policy,
            accidental_hits=hits,
        )
        assert loss == pytest.approx(total, **close)


def test_a_score_mask_is_of_the_batch_columns_alone():
    mask = np.ones((NUM_ROWS, NUM_ROWS), bool)
    mask[0] = False
    loss = loss_of(InBatch(), explicit(), correct=None, call={"score_mask": tf.constant(mask)})
    rows = [
        reference.step_loss(
            [query],
            [pool_of()[row]._replace(owner=0)],
            [
                term._replace(column=term.column._replace(owner=-1))
                for j, term in enumerate(batch_terms())
                if mask[row][j] and j != row
            ],
            own_terms=[own_terms()[row]],
        )
        for row, query in enumerate(QUERIES)
    ]
    assert loss == pytest.approx(np.mean(rows), **close)


def test_two_columns_of_the_batch_are_more_columns():
    features = {"rejected": PADDED[:, :1], "shown": tf.constant(PADDED[:, 1:])}
    sources = [explicit(), InBatch(), Explicit("shown", CATALOGUE)]
    loss = loss_of(*sources, features=features)
    assert loss == pytest.approx(loss_of(InBatch(), explicit()), **close)


def test_the_gradient_of_a_rejected_item_comes_from_its_own_row_alone():
    corpus = tf.constant(CORPUS)

    def gradient(weights):
        with tf.GradientTape() as tape:
            tape.watch(corpus)
            loss = run(
                task_of(InBatch(), explicit(), correct="negatives"),
                encode_items=lambda f: tf.gather(corpus, f["item_id"] - 100),
                features=FEATURES,
                sample_weight=weights,
            )
        return tf.convert_to_tensor(tape.gradient(loss, corpus)).numpy()

    for row, rejected in enumerate(REJECTED):
        touched = np.abs(gradient(np.eye(NUM_ROWS, dtype=np.float32)[row])).max(axis=1) > 0
        assert {100 + int(i) for i in np.flatnonzero(touched)} == set(rejected)

    def moved(table):
        return expected_loss(batch_terms(), own_terms(corpus=table), policy="negatives")

    received = gradient(np.ones(NUM_ROWS, np.float32))
    np.testing.assert_allclose(received, numerical_gradient(moved, CORPUS), atol=2e-5)


@pytest.mark.parametrize("in_graph", [False, True])
def test_an_unknown_id_is_an_error_at_run_time(in_graph):
    task = task_of(explicit())

    def step(column):
        return run(task, features={"rejected": column})

    bad = np.where(PADDED == 105, 500, PADDED)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`rejected`: expected only items"):
        (tf.function(step, autograph=False) if in_graph else step)(tf.constant(bad))


BAD_COLUMNS = {
    "missing": {},
    "one dimension": {"rejected": tf.constant([100] * NUM_ROWS)},
    "three dimensions": {"rejected": tf.constant([[[100]]] * NUM_ROWS)},
    "another number of rows": {"rejected": tf.constant([[100]] * (NUM_ROWS + 1))},
    "ragged of another number": {"rejected": tf.ragged.constant([[100]] * (NUM_ROWS - 1))},
    "ragged of three dimensions": {"rejected": tf.ragged.constant([[[100]]] * NUM_ROWS)},
    "numbers": {"rejected": tf.constant([[100.0]] * NUM_ROWS)},
}


@pytest.mark.parametrize("case", BAD_COLUMNS)
def test_a_wrong_column_is_an_error_that_names_it(case):
    with pytest.raises(InputError, match=r"^`features\['rejected'\]`"):
        loss_of(InBatch(), explicit(), features=BAD_COLUMNS[case])


# ------------------------------------------------------------------ easy and hard


def mixed(positive, easy, hard, share):
    """The package's loss of one row."""
    keep = tf.ones([1, len(easy) + len(hard)], tf.bool)
    explicit_columns = tf.constant([False] * len(easy) + [True] * len(hard), tf.bool)
    negatives = tf.constant([[*easy, *hard]], tf.float32)
    logits = Scored(tf.constant([positive]), negatives, keep, per_row=explicit_columns)
    return float(EasyHardMixture(share)(logits)[0])


ROWS_OF_LOGITS = [
    (0.5, [1.0, -2.0, 3.0], [0.1, 2.0]),
    (-1.0, [0.3], []),
    (1.0, [], [0.2, -4.0]),
    (2.0, [], []),
    (0.0, [30.0, 30.0], [-30.0]),
]


@pytest.mark.parametrize("share", [0, 0.3, 0.5, 1])
@pytest.mark.parametrize("row", ROWS_OF_LOGITS)
def test_easy_and_hard_losses_have_their_share(row, share):
    expected = reference.easy_hard_loss(*row, share)
    assert mixed(*row, share) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_closed_forms_of_the_mixture():
    # Seven easy ones as good as the positive are log 8, three hard ones log 4.
    assert mixed(0.0, [0.0] * 7, [0.0] * 3, 0.5) == pytest.approx((3 + 2) / 2 * np.log(2))
    assert mixed(0.0, [0.0] * 7, [0.0] * 3, 0) == pytest.approx(3 * np.log(2))
    assert mixed(0.0, [0.0] * 7, [0.0] * 3, 1) == pytest.approx(2 * np.log(2))
    # However many easy ones there are, the hard ones keep their share.
    many = mixed(0.0, [0.0] * 7, [0.0] * 3, 0.25) - 0.75 * 3 * np.log(2)
    assert mixed(0.0, [0.0] * 8191, [0.0] * 3, 0.25) - 0.75 * 13 * np.log(2) == pytest.approx(many)


def test_rows_of_different_kinds_in_one_batch_with_masked_columns():
    keep = tf.constant([[True, False, True, False], [True] * 4, [False] * 2 + [True] * 2])
    negatives = tf.random.stateless_normal([3, 4], [1, 2])
    positive = tf.constant([0.2, -0.4, 0.1])
    explicit_columns = tf.constant([False, False, True, True])
    losses = EasyHardMixture(0.3)(Scored(positive, negatives, keep, per_row=explicit_columns))
    for row, loss in enumerate(losses.numpy()):
        easy, hard = (
            [float(negatives[row, j]) for j in pair if keep[row, j]] for pair in ((0, 1), (2, 3))
        )
        expected = reference.easy_hard_loss(float(positive[row]), easy, hard, 0.3)
        assert loss == pytest.approx(expected, rel=1e-5)
    # After a miner every row has its own choice of columns.
    of_rows = tf.tile(explicit_columns[None], [3, 1])
    again = EasyHardMixture(0.3)(Scored(positive, negatives, keep, per_row=of_rows))
    np.testing.assert_allclose(again, losses)


@policies
@pytest.mark.parametrize("budget", [2**24, 4 * NUM_ROWS * 2], ids=["at once", "in blocks"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_mixture_inside_a_task(policy, budget, share):
    options = {"correct": policy, "logits_budget": budget, "loss": EasyHardMixture(share)}
    losses = []
    for row, query in enumerate(QUERIES):
        count = count_in_batch(BATCH_IDS[row])
        positive, easy = reference.row_logits(
            row, query, pool_of()[row], batch_terms(), policy=policy, count=count
        )
        _, hard = reference.row_logits(
            row, query, pool_of()[row], own_terms(0.5)[row], policy=policy
        )
        losses.append(reference.easy_hard_loss(positive, easy, hard, share))
    sources = [InBatch(), Weighted(explicit(), 0.5)]
    assert loss_of(*sources, **options) == pytest.approx(np.mean(losses), **close)
    # Without columns of single rows it is the sampled softmax.
    plain = loss_of(InBatch(), correct=policy)
    assert loss_of(InBatch(), **options) == pytest.approx(plain, **close)


@pytest.mark.parametrize("share", [-0.01, 1.01, float("nan")])
def test_a_share_outside_its_range_is_an_error(share):
    with pytest.raises(InputError, match=r"^`hard_share`"):
        EasyHardMixture(share)
