"""Items of past batches as negatives, against a queue and loops over the whole of several steps."""

from __future__ import annotations

import numpy as np
import pytest
import reference_sources as reference
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import EMPTY, batch_columns, numerical_gradient

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.model.two_tower import TwoTower
from tfrs_negatives.step.frequency import ExactFrequency
from tfrs_negatives.step.losses import SampledSoftmax
from tfrs_negatives.step.masks.keep import AccidentalHits
from tfrs_negatives.step.masks.known_positives import KnownPositives
from tfrs_negatives.step.records import Loss
from tfrs_negatives.step.samplers import CrossBatch, InBatch, Weighted
from tfrs_negatives.step.samplers.drift import FeatureDrift
from tfrs_negatives.step.task import Retrieval

N, D, B, M = 9, 3, 4, 10
CATALOGUE = ItemCatalogue(np.arange(N) * 5)
Q = np.arange(1, N + 1) / np.arange(1, N + 1).sum()
CLOSE = {"rel": 1e-5, "abs": 1e-6}


def frequency():
    return ExactFrequency(CATALOGUE.ids, Q * 1e6)


def share(item):
    return Q[item // 5]


def batches(number, size=B, seed=0):
    """Queries, vectors and ids of so many batches; ids come again and again."""
    rng = np.random.default_rng(seed)
    for _ in range(number):
        queries, vectors = rng.normal(size=[2, size, D]).astype(np.float32)
        yield queries, vectors, rng.integers(0, N, size) * 5


def task_of(source, *more, **options):
    options = {"frequency": frequency(), "reduction": "mean", **options}
    return Retrieval(negatives=[*more, source], **options)


def with_batch(source, **options):
    return task_of(source, InBatch(), **options)


def step(task, batch, *, training=True, **call):
    queries, vectors, ids = batch
    return float(task(queries, vectors, candidate_ids=ids, training=training, **call))


def gauge(source, name):
    (metric,) = [m for m in source.gauges if m.name == name]
    return float(metric.result())


def expected_loss(batch, bank, *, in_batch=True, column_vectors=None, **options):
    """The loss of one step: the columns of the batch and of the bank, both of the one stream.

    The vectors of the batch are positives and columns; `column_vectors` moves the columns alone.
    """
    queries, vectors, ids = batch
    own = batch_columns(ids, vectors, len(ids))
    fresh = own if column_vectors is None else batch_columns(ids, column_vectors, len(ids))
    columns = [*(fresh if in_batch else []), *bank]
    terms = [reference.Term(c, len(columns) * share(c.item)) for c in columns]
    counts = [max(len(columns), 1) * share(item) for item in ids]
    return reference.step_loss(queries, own, terms, counts=counts, **options)


# ------------------------------------------------------------------ the step


def losses_and_references(source, number=6, *, used=lambda step: True, max_age=None, **options):
    """Loss and expected loss of each step; `used` says from which steps on the bank counts."""
    task, bank = with_batch(source, **options), reference.Bank(source.bank.capacity)
    policy = options.get("correct", "both")
    for number_of_step, batch in enumerate(batches(number), start=1):
        stored = bank.columns(max_age) if used(number_of_step) else []
        yield step(task, batch), expected_loss(batch, stored, policy=policy)
        bank.push(batch[2], batch[1])


@pytest.mark.parametrize("policy", ["both", "negatives", None])
def test_every_step_reads_the_batches_before_it(policy):
    for loss, expected in losses_and_references(CrossBatch(M), correct=policy):
        assert loss == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("budget", [2**24, 4 * B * 3], ids=["at once", "in blocks"])
@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("compensate", [True, False])
@pytest.mark.parametrize("policy", ["both", None])
def test_gradients_are_those_of_the_loops(budget, in_batch, compensate, policy):
    source = CrossBatch(M, compensate=compensate)
    more = [InBatch()] if in_batch else []
    task = task_of(source, *more, logits_budget=budget, correct=policy)
    bank, options = reference.Bank(M), {"in_batch": in_batch, "policy": policy}
    for queries, vectors, ids in batches(4):
        inputs = tf.constant(queries), tf.constant(vectors)
        with tf.GradientTape() as tape:
            tape.watch([*inputs, source.bank.vectors] if task.built else inputs)
            loss = task(*inputs, candidate_ids=ids, training=True)
        watched = [*inputs, source.bank.vectors]
        *gradients, past = tape.gradient(loss, watched)
        assert past is None or not np.any(tf.convert_to_tensor(past))
        stored = bank.columns()

        def of_queries(x, rest=(vectors, ids), stored=stored):
            return expected_loss((x, *rest), stored, **options)

        def of_positives(x, batch=(queries, vectors, ids), stored=stored):
            moved = batch[0], x, batch[2]
            return expected_loss(moved, stored, column_vectors=batch[1], **options)

        def of_columns(x, batch=(queries, vectors, ids), stored=stored):
            return expected_loss(batch, stored, column_vectors=x, **options)

        # Each fresh column stands for all columns of the stream, most of which get no gradient.
        factor = (B + len(stored)) / B if compensate else 1.0
        by_item = numerical_gradient(of_positives, vectors)
        by_item += factor * numerical_gradient(of_columns, vectors)
        wanted = numerical_gradient(of_queries, queries), by_item
        for place, x in enumerate(inputs):
            received = tf.zeros_like(x) if gradients[place] is None else gradients[place]
            np.testing.assert_allclose(received, wanted[place], atol=2e-5)
        bank.push(ids, vectors)


def test_only_accidental_hits_mask_the_copies_of_a_positive_in_the_bank():
    for masks in ([], [AccidentalHits()]):
        task, bank = with_batch(CrossBatch(M), masks=masks), reference.Bank(M)
        differs = []
        for batch in batches(6):
            expected, other = (
                expected_loss(batch, bank.columns(), policy="both", accidental_hits=hits)
                for hits in (bool(masks), not masks)
            )
            assert step(task, batch) == pytest.approx(expected, **CLOSE)
            differs.append(expected != pytest.approx(other, rel=1e-3))
            bank.push(batch[2], batch[1])
        assert sum(differs) >= 4


@pytest.mark.parametrize("policy", ["both", "negatives", None])
@pytest.mark.parametrize("hits_masked", [True, False])
def test_a_bank_with_just_this_batch_is_in_batch(policy, hits_masked):
    rng = np.random.default_rng(2)
    queries, vectors = rng.normal(size=[2, B, D]).astype(np.float32)
    batch = queries, vectors, np.array([0, 40, 15, 25])
    options = {"correct": policy, "masks": [AccidentalHits()] if hits_masked else []}
    in_batch = task_of(InBatch(), loss=Rows(), **options)
    step(in_batch, batch)
    alone = task_of(CrossBatch(B), loss=Rows(), **options)
    # An empty bank: no row has anybody to compete with.
    assert step(alone, batch) == 0.0
    step(alone, batch)
    wanted = np.exp(in_batch.loss_function.rows.numpy().astype(float))
    if not hits_masked:
        # The row's own item is one more column here: exp(loss) is 1 + the sum of exp(l_j - l_+),
        # and that of this column is 1, or 1 / c where the positive is not corrected.
        own = [1 / (B * share(item)) if policy == "negatives" else 1.0 for item in batch[2]]
        wanted = wanted + own
    np.testing.assert_allclose(np.exp(alone.loss_function.rows), wanted, rtol=1e-5)


class Rows(Loss):
    """The sampled softmax, which keeps what it was given and what it answered."""

    def __call__(self, scored, batch=None):
        self.scored, self.rows = scored, SampledSoftmax()(scored)
        return self.rows


def test_batch_and_bank_have_the_log_count_of_their_sum():
    task = with_batch(CrossBatch(M), loss=Rows(), correct="negatives")
    plain = with_batch(CrossBatch(M), loss=Rows(), correct=None)
    used = 0
    for batch in batches(5):
        step(task, batch)
        step(plain, batch)
        counts = plain.loss_function.scored.logit - task.loss_function.scored.logit
        ids = [*batch[2]]
        np.testing.assert_allclose(
            np.exp(counts[:, :B]), [[(B + used) * share(i) for i in ids]] * B, rtol=1e-4
        )
        used = min(used + B, M)


# ------------------------------------------------------------------ when the bank is used


@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_the_bank_is_used_after_the_warm_up(warmup):
    source = CrossBatch(M, warmup_steps=warmup)
    fills = []
    for loss, expected in losses_and_references(source, used=lambda step: step > warmup):
        fills.append(gauge(source, "bank_fill"))
        assert loss == pytest.approx(expected, **CLOSE)
    # The first step has nothing to read in any case.
    first = max(warmup + 1, 2)
    filled = [0.4, 0.8, 1.0, 1.0, 1.0]
    wanted = [0.0] * (first - 1) + filled[first - 2 :]
    assert fills == pytest.approx(wanted)


@pytest.mark.parametrize("max_age", [1, 2, 3])
def test_items_that_are_too_old_are_not_used(max_age):
    source = CrossBatch(M, max_age=max_age)
    for loss, expected in losses_and_references(source, max_age=max_age):
        assert loss == pytest.approx(expected, **CLOSE)
    # Of 10 slots 4 are of the last batch, 4 of the one before, 2 of the one before that.
    assert gauge(source, "bank_fill") == pytest.approx([0.4, 0.8, 1.0][max_age - 1])
    assert gauge(source, "bank_age") == pytest.approx([1.0, 1.5, (4 + 8 + 6) / 10][max_age - 1])


def test_the_gate_opens_while_the_item_tower_moves_slowly():
    rng = np.random.default_rng(5)
    table = rng.normal(size=[N, D])
    # Step 4 jumps; all else crawls.
    tables = [table + 0.001 * t + (2.0 if t >= 4 else 0.0) for t in range(1, 8)]
    source = CrossBatch(M, max_drift=0.01, probes=CATALOGUE, probe_every=1)
    task, bank = with_batch(source), reference.Bank(M)
    measured, opened = [np.nan], []
    for t, batch in enumerate(batches(7), start=1):
        # What the step before has measured decides.
        is_open = measured[-1] <= 0.01
        now = tables[t - 1].astype(np.float32)
        loss = step(task, batch, encode_items=encoder(now))
        assert gauge(source, "bank_drift") == pytest.approx(measured[-1], rel=1e-4, nan_ok=True)
        opened.append(gauge(source, "bank_fill") > 0)
        expected = expected_loss(batch, bank.columns() if is_open else [], policy="both")
        assert loss == pytest.approx(expected, **CLOSE)
        assert opened[-1] == is_open
        bank.push(batch[2], batch[1])
        before = tables[t - 2].astype(np.float32) if t > 1 else now * np.nan
        measured.append(reference.drift(before, now, "relative"))
    # Two measurements are needed, and the step after the jump is without.
    assert opened == [False, False, True, True, False, True, True]


def encoder(table, seen=None):
    def encode(features):
        rows = features["item_id"] // 5
        if seen is not None:
            seen.append(rows.numpy().tolist())
        return tf.gather(table, rows)

    return encode


# ------------------------------------------------------------------ drift and probes


@pytest.mark.parametrize("measure", ["relative", "sum"])
@pytest.mark.parametrize("num_probes", [1, 4, 100])
def test_drift_is_that_of_the_loops(measure, num_probes):
    layer = FeatureDrift(CATALOGUE, num_probes=num_probes, measure=measure, seed=3)
    layer.build(D)
    tables = np.random.default_rng(6).normal(size=[4, N, D]).astype(np.float32)
    seen = []
    for number, table in enumerate(tables):
        layer.measure_now(encoder(table, seen))
        rows = seen[0]
        if number == 0:
            assert np.isnan(layer.value)
        else:
            wanted = reference.drift(tables[number - 1][rows], table[rows], measure)
            assert float(layer.value) == pytest.approx(wanted, rel=1e-5)
    assert seen == [rows] * 4
    assert len(set(rows)) == min(num_probes, N)
    again = FeatureDrift.from_config(layer.get_config())
    again.build(D)
    again.measure_now(encoder(tables[0], seen))
    assert seen[-1] == rows
    others = FeatureDrift(CATALOGUE, num_probes=4, seed=4)
    others.build(D)
    others.measure_now(encoder(tables[0], seen))
    assert seen[-1] != rows


@pytest.mark.parametrize(("every", "interval"), [(None, M), (1, 1), (3, 3)])
@pytest.mark.parametrize("sizes", [[4] * 8, [1, 10, 3, 3, 3, 3, 9, 1, 2]])
def test_probes_are_measured_once_around_the_bank(every, interval, sizes):
    source, seen, due = CrossBatch(M, probes=CATALOGUE, probe_every=every), [], []
    task = with_batch(source)
    for number, size in enumerate(sizes, start=1):
        (batch,) = batches(1, size, seed=number)
        before = len(seen)
        step(task, batch, encode_items=encoder(np.eye(N, D, dtype=np.float32), seen))
        if len(seen) > before:
            due.append(number)
    passed = sizes if every is None else [1] * len(sizes)
    assert due == reference.probed_steps(passed, interval)


@pytest.mark.parametrize("kind", ["function", "model"])
def test_probes_are_encoded_as_in_inference(kind):
    flat = tf.keras.Sequential([tf.keras.layers.Dense(D, use_bias=False), Noise()])
    inputs = tf.keras.Input((), name="item_id", dtype=tf.int64)
    outputs = flat(tf.keras.layers.Lambda(lambda x: tf.cast(x[:, None], tf.float32))(inputs))
    model = tf.keras.Model({"item_id": inputs}, outputs)
    encode = model if kind == "model" else lambda f, training=True: model(f, training=training)
    source = CrossBatch(M, probes=CATALOGUE, probe_every=1)
    task = with_batch(source)
    for batch in batches(3):
        step(task, batch, encode_items=encode)
    # The tower has not moved: only its noise in training would have.
    assert float(source.drift.value) == 0.0


class Noise(tf.keras.layers.Layer):
    """Another result at every call in training."""

    def call(self, inputs, training=None):
        return inputs + tf.random.normal(tf.shape(inputs)) if training else inputs


# ------------------------------------------------------------------ inside a model


ITEMS = ItemCatalogue(np.arange(N))
USERS = np.tile(np.arange(4), 4)
CHOSEN = np.random.default_rng(3).integers(0, N, 16)


def embedding(name, rows, seed):
    ids = tf.keras.Input((), name=name, dtype=tf.int64)
    start = tf.keras.initializers.RandomNormal(stddev=0.5, seed=seed)
    table = tf.keras.layers.Embedding(rows, D, embeddings_initializer=start)
    return tf.keras.Model({name: ids}, table(ids))


def model_of(source, **options):
    task = with_batch(source, **options)
    model = TwoTower(embedding("user_id", 4, 1), embedding("item_id", N, 2), ITEMS, task)
    model.compile(tf.keras.optimizers.Adagrad(0.1), run_eagerly=True)
    return model


def data(size=4):
    columns = {"user_id": USERS, "item_id": CHOSEN}
    return tf.data.Dataset.from_tensor_slices(columns).batch(size)


GAUGES = {"bank_fill", "bank_age", "bank_drift"}


def test_the_training_logs_have_the_gauges_and_those_of_evaluation_not():
    model = model_of(CrossBatch(20, probes=ITEMS, probe_every=1))
    first = model.fit(data(), validation_data=data(), verbose=0).history
    # Before the fourth push: three batches of 4 in 20 slots, 3, 2 and 1 steps old.
    assert first["bank_fill"] == pytest.approx([12 / 20])
    assert first["bank_age"] == pytest.approx([2.0])
    assert first["bank_drift"][0] > 0
    assert not {f"val_{name}" for name in GAUGES} & set(first)
    assert not GAUGES & set(model.evaluate(data(), verbose=0, return_dict=True))
    second = model.fit(data(), verbose=0).history
    assert second["bank_fill"] == pytest.approx([1.0])
    assert second["bank_age"] == pytest.approx([3.0])
    without = model_of(CrossBatch(20)).fit(data(), verbose=0).history
    assert {"bank_fill", "bank_age"} <= set(without)
    assert "bank_drift" not in without


def test_evaluation_leaves_everything_alone():
    source = CrossBatch(M, probes=CATALOGUE, probe_every=1)
    task, bank = with_batch(source), reference.Bank(M)
    encode = encoder(np.eye(N, D, dtype=np.float32))
    for batch in batches(3):
        step(task, batch, encode_items=encode)
        bank.push(batch[2], batch[1])
    before = [v.numpy() for v in task.variables]
    for batch in batches(3, seed=9):
        # The bank is read.
        loss = step(task, batch, training=False, encode_items=None)
        assert loss == pytest.approx(expected_loss(batch, bank.columns(), policy="both"), **CLOSE)
    for received, wanted in zip(task.variables, before, strict=True):
        np.testing.assert_array_equal(received, wanted)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_saved_model_has_the_bank_and_goes_on_bit_for_bit(tmp_path, weighted):
    def source():
        source = CrossBatch(
            7, probes=ITEMS, num_probes=5, max_drift=10.0, storage="bfloat16", max_age=2
        )
        return Weighted(source, 0.5) if weighted else source

    def bank_in(model):
        return model.task.negatives[1].sampler if weighted else model.task.negatives[1]

    model = model_of(source(), masks=[AccidentalHits()])
    model.fit(data(), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    resumed = model_of(source(), masks=[AccidentalHits()])
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
    tf.train.Checkpoint(model=resumed).read(path).assert_existing_objects_matched()
    bank = bank_in(model)
    # In the middle of a round, with a measured drift: 16 items have passed 7 slots.
    assert int(bank.bank.next_slot) == 16 % 7
    assert np.isfinite(bank.drift.value)
    loaded.run_eagerly = True
    for other in (loaded, resumed):
        kept = bank_in(other)
        assert len(kept.variables) == len(bank.variables) >= 8
        for received, wanted in zip(kept.variables, bank.variables, strict=True):
            np.testing.assert_array_equal(received, wanted)
    losses = [m.fit(data(), epochs=1, verbose=0).history["loss"] for m in (model, loaded, resumed)]
    assert losses[0] == losses[1] == losses[2]


# ------------------------------------------------------------------ known positives


@settings(max_examples=6, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, N - 1)), min_size=1, max_size=20),
    st.integers(0, 2**16),
)
def test_known_positives_in_the_bank_are_never_negatives(events, seed):
    users, items = (np.array(x) for x in zip(*events, strict=True))
    known = {(user, item * 5) for user, item in events}
    history = Interactions({"user": users}, items * 5, query_key="user")
    source, bank = CrossBatch(M), reference.Bank(M)
    masks = [KnownPositives(history, CATALOGUE)]
    task = with_batch(source, loss=Rows(), masks=masks, correct="negatives")
    rng = np.random.default_rng(seed)
    for queries, vectors, ids in batches(3, seed=seed):
        rows = rng.integers(0, 5, B)
        stored = source.bank.ids.numpy() if task.built else np.full(M, EMPTY)
        step(task, (queries, vectors, ids), features={"user": tf.constant(rows)})
        # In any order of the slots; a batch column also never is a negative of its own row.
        wanted = [
            [(u, i) not in known and j != row for j, i in enumerate(ids)]
            + [(u, i) not in known and i != EMPTY for i in stored]
            for row, u in enumerate(rows)
        ]
        np.testing.assert_array_equal(task.loss_function.scored.keep, wanted)
        assert sorted(i for i in stored if i != EMPTY) == sorted(c.item for c in bank.columns())
        bank.push(ids, vectors)


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("capacity", {"capacity": 0}),
        ("storage", {"storage": "int8"}),
        ("warmup_steps", {"warmup_steps": -1}),
        ("max_drift", {"max_drift": 0.0, "probes": CATALOGUE}),
        ("max_drift", {"max_drift": float("nan"), "probes": CATALOGUE}),
        ("probes", {"max_drift": 0.1}),
        ("num_probes", {"probes": CATALOGUE, "num_probes": 0}),
        ("measure", {"probes": CATALOGUE, "drift": "mean"}),
        ("probe_every", {"probes": CATALOGUE, "probe_every": 0}),
        ("max_age", {"max_age": 0}),
    ],
)
def test_errors_name_the_argument(argument, options):
    with pytest.raises(InputError, match=f"^`{argument}`"):
        CrossBatch(**{"capacity": M, **options})


def test_what_a_step_must_have():
    (batch,) = batches(1, size=M + 1)
    with pytest.raises(InputError, match=r"^`capacity`"):
        step(with_batch(CrossBatch(M)), batch)
    (batch,) = batches(1)
    with pytest.raises(InputError, match=r"^`encode_items`"):
        step(with_batch(CrossBatch(M, probes=CATALOGUE)), batch)
    with pytest.raises(InputError, match=r"^`training`"):
        step(with_batch(CrossBatch(M)), batch, training=None)
    with pytest.raises(InputError, match=r"^`frequency`"):
        Retrieval(negatives=[InBatch(), CrossBatch(M)])
