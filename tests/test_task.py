"""The training step against the slow reference, composition by composition."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import tensorflow as tf
from small_batch import (
    BATCH_IDS,
    CATALOGUE,
    COUNTS,
    DIM,
    DRAWN,
    ITEMS,
    NUM_ROWS,
    QUERIES,
    SCORE_MASK,
    WEIGHTS,
    Drawn,
    Q,
    build,
    count_of,
    encode_items,
    exact_frequency,
    item_bias,
    pool_of,
    run,
)

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.model.two_tower import describe_last_step
from tfrs_negatives.step.frequency import StreamingFrequency
from tfrs_negatives.step.losses import SampledSoftmax
from tfrs_negatives.step.masks.keep import AccidentalHits
from tfrs_negatives.step.miners import Hardest
from tfrs_negatives.step.records import Scored
from tfrs_negatives.step.samplers import CrossBatch, InBatch, Uniform
from tfrs_negatives.step.task import Retrieval

BIAS = {100 + i: np.log(max(count, 0.5) / COUNTS.sum()) for i, count in enumerate(COUNTS)}
MIXTURE = {"negatives": [InBatch(), Drawn(DRAWN)]}
# name: (arguments of the task, of the call, options of the reference, drawn rows)
COMPOSITIONS = {
    "plain": ({}, {}, {}, ()),
    "temperature": ({"temperature": 0.3}, {}, {"temperature": 0.3}, ()),
    "cosine": (
        {"similarity": "cosine", "temperature": 0.2},
        {},
        {"similarity": "cosine", "temperature": 0.2},
        (),
    ),
    "euclidean": (
        {"similarity": "euclidean", "temperature": 0.7},
        {},
        {"similarity": "euclidean", "temperature": 0.7},
        (),
    ),
    "everything euclidean": (
        {
            **MIXTURE,
            "frequency": exact_frequency,
            "masks": [AccidentalHits()],
            "miners": [Hardest(3)],
            "similarity": "euclidean",
            "temperature": 0.5,
            "item_bias": item_bias,
        },
        {"sample_weight": WEIGHTS},
        {
            "policy": "both",
            "count": count_of(NUM_ROWS, len(DRAWN)),
            "accidental_hits": True,
            "k": 3,
            "similarity": "euclidean",
            "temperature": 0.5,
            "bias": BIAS,
            "weights": WEIGHTS,
        },
        DRAWN,
    ),
    "bias": (
        {"item_bias": item_bias, "temperature": 0.5},
        {},
        {"bias": BIAS, "temperature": 0.5},
        (),
    ),
    "sum": ({"reduction": "sum"}, {}, {"reduction": "sum"}, ()),
    "weights": ({}, {"sample_weight": WEIGHTS}, {"weights": WEIGHTS}, ()),
    "hits": ({"masks": [AccidentalHits()]}, {}, {"accidental_hits": True}, ()),
    "hardest": ({"miners": [Hardest(2)]}, {}, {"k": 2}, ()),
    "score mask": ({}, {"score_mask": SCORE_MASK}, {"score_mask": SCORE_MASK}, ()),
    "logq both": (
        {"frequency": exact_frequency},
        {},
        {"policy": "both", "count": count_of(NUM_ROWS)},
        (),
    ),
    "logq negatives": (
        {"frequency": exact_frequency, "correct": "negatives"},
        {},
        {"policy": "negatives", "count": count_of(NUM_ROWS)},
        (),
    ),
    "half strength both": (
        {"frequency": exact_frequency, "strength": 0.5},
        {},
        {"policy": "both", "strength": 0.5, "count": count_of(NUM_ROWS)},
        (),
    ),
    "half strength": (
        {"frequency": exact_frequency, "correct": "negatives", "strength": 0.5},
        {},
        {"policy": "negatives", "strength": 0.5, "count": count_of(NUM_ROWS)},
        (),
    ),
    "uncorrected": ({"frequency": exact_frequency, "correct": None}, {}, {}, ()),
    "probability": (
        {"correct": "negatives"},
        {"candidate_sampling_probability": Q[BATCH_IDS[:NUM_ROWS] - 100]},
        {"policy": "negatives", "count": count_of(NUM_ROWS)},
        (),
    ),
    "mixture": (
        {**MIXTURE, "frequency": exact_frequency},
        {},
        {"policy": "both", "count": count_of(NUM_ROWS, len(DRAWN))},
        DRAWN,
    ),
    "mixture negatives": (
        {**MIXTURE, "frequency": exact_frequency, "correct": "negatives"},
        {},
        {"policy": "negatives", "count": count_of(NUM_ROWS, len(DRAWN))},
        DRAWN,
    ),
    "everything": (
        {
            **MIXTURE,
            "frequency": exact_frequency,
            "correct": "negatives",
            "strength": 0.7,
            "masks": [AccidentalHits()],
            "miners": [Hardest(3)],
            "similarity": "cosine",
            "temperature": 0.25,
            "item_bias": item_bias,
        },
        {"sample_weight": WEIGHTS, "score_mask": SCORE_MASK},
        {
            "policy": "negatives",
            "strength": 0.7,
            "count": count_of(NUM_ROWS, len(DRAWN)),
            "accidental_hits": True,
            "k": 3,
            "similarity": "cosine",
            "temperature": 0.25,
            "bias": BIAS,
            "weights": WEIGHTS,
            "score_mask": SCORE_MASK,
        },
        DRAWN,
    ),
}


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_loss_equals_the_reference(name):
    arguments, call, options, drawn = COMPOSITIONS[name]
    expected = reference.retrieval_loss(QUERIES, pool_of(drawn=drawn), **options)
    assert float(run(build(arguments), **call)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["cosine", "logq negatives", "everything", "everything euclidean"])
def test_gradient_equals_central_differences_of_the_reference(name):
    arguments, call, options, drawn = COMPOSITIONS[name]
    queries = tf.constant(QUERIES)
    task = build(arguments)
    with tf.GradientTape() as tape:
        tape.watch(queries)
        loss = task(
            queries,
            ITEMS[:NUM_ROWS],
            candidate_ids=BATCH_IDS[:NUM_ROWS],
            encode_items=encode_items,
            training=False,
            **call,
        )
    expected = reference.numerical_gradient(
        lambda q: reference.retrieval_loss(q, pool_of(drawn=drawn), **options), QUERIES
    )
    np.testing.assert_allclose(tape.gradient(loss, queries), expected, atol=2e-5)


@pytest.mark.parametrize("policy", ["both", "negatives", None])
def test_extra_candidates_are_columns_of_the_same_stream(policy):
    mask = np.ones((NUM_ROWS, len(BATCH_IDS)), bool)
    mask[1, 6] = False
    options = {"masks": [AccidentalHits()], "correct": policy, "reduction": "mean"}
    task = Retrieval(frequency=exact_frequency(), **options)
    expected = reference.retrieval_loss(
        QUERIES,
        pool_of(len(BATCH_IDS)),
        policy=policy,
        count=count_of(len(BATCH_IDS)),
        accidental_hits=True,
        score_mask=mask,
    )
    loss = run(task, num_items=len(BATCH_IDS), score_mask=tf.constant(mask))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("similarity", ["dot", "cosine", "euclidean"])
def test_best_vector_of_a_query_counts(similarity):
    queries = np.random.default_rng(3).normal(size=(NUM_ROWS, 3, DIM)).astype(np.float32)
    options = {"similarity": similarity, "temperature": 0.4, "reduction": "mean"}
    task = Retrieval(**options)
    expected = reference.retrieval_loss(queries, pool_of(), **options)
    assert float(run(task, queries=queries)) == pytest.approx(expected, rel=1e-5)


def test_unfilled_columns_never_count():
    filled = [True, False, True, False, True, True]
    task = Retrieval(
        negatives=[InBatch(), Drawn(DRAWN, filled)], frequency=exact_frequency(), reduction="mean"
    )
    columns = pool_of(drawn=DRAWN)
    pool = [
        column._replace(filled=column.owner >= 0 or filled[j - NUM_ROWS])
        for j, column in enumerate(columns)
    ]
    count = count_of(NUM_ROWS, len(DRAWN))
    expected = reference.retrieval_loss(QUERIES, pool, policy="both", count=count)
    assert float(run(task)) == pytest.approx(expected, rel=1e-5)


def test_sources_without_the_batch_compete_with_the_positive_alone():
    task = Retrieval(negatives=[Drawn(DRAWN)], correct="negatives", reduction="mean")
    losses = []
    for row, query in enumerate(QUERIES):
        own, *drawn = pool_of(drawn=DRAWN)[row : row + 1] + pool_of(drawn=DRAWN)[NUM_ROWS:]
        count = count_of(0, len(DRAWN))
        losses.append(
            reference.row_loss(
                0, query, [own._replace(owner=0), *drawn], policy="negatives", count=count
            )
        )
    assert float(run(task)) == pytest.approx(reference.reduced(losses), rel=1e-5)


def test_score_mask_never_lands_on_the_columns_of_another_source():
    task = Retrieval(negatives=[Drawn(DRAWN), InBatch()], frequency=exact_frequency())
    with pytest.raises(InputError, match="score_mask"):
        run(task, score_mask=SCORE_MASK)


def test_frequency_learns_in_training_only():
    task = Retrieval(frequency=StreamingFrequency(256))
    run(task)
    assert int(task.frequency.step) == int(task.step) == 0
    run(task, training=True)
    assert int(task.frequency.step) == int(task.step) == 1
    share = np.exp(task.frequency.log_probability(tf.constant([103], tf.int64)))
    np.testing.assert_allclose(share, 2 / 5, rtol=1e-5)


def test_learned_temperature_starts_where_it_is_told_and_moves():
    options = {"temperature": 0.2, "reduction": "mean"}
    fixed, learned = Retrieval(**options), Retrieval(**options, learn_temperature=True)
    with tf.GradientTape() as tape:
        loss = run(learned)
    assert float(loss) == pytest.approx(float(run(fixed)), rel=1e-5)
    (weight,) = learned.trainable_variables
    expected = reference.numerical_gradient(
        lambda t: reference.retrieval_loss(QUERIES, pool_of(), temperature=float(np.exp(t))),
        np.log(0.2),
    )
    assert float(tape.gradient(loss, weight)) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(("push", "bound"), [(-1.0, 0.01), (1.0, 1.0)])
def test_learned_temperature_stays_in_its_range_and_can_leave_its_bound(push, bound):
    affinity = Retrieval(temperature=0.2, learn_temperature=True).affinity
    optimizer = tf.keras.optimizers.SGD(10.0)
    optimizer.apply_gradients([(tf.constant(-push), affinity.log_temperature)])
    assert float(affinity.temperature) == pytest.approx(bound, rel=1e-5)
    with tf.GradientTape() as tape:
        temperature = affinity.temperature
    back = tape.gradient(temperature, affinity.log_temperature)
    assert float(back) == pytest.approx(bound, rel=1e-5)
    tf.keras.optimizers.SGD(1.0).apply_gradients([(tf.constant(push), affinity.log_temperature)])
    assert float(affinity.temperature) == pytest.approx(bound * np.exp(-push), rel=1e-4)


def test_large_logits_lose_nothing_but_their_common_part():
    logits = Scored(tf.fill([1], 27e4), tf.fill([1, 3], 27e4), tf.ones([1, 3], tf.bool))
    assert float(SampledSoftmax()(logits)[0]) == pytest.approx(np.log(4.0), rel=1e-6)


def test_report_says_what_the_step_was_made_of():
    task = Retrieval(
        negatives=[InBatch(), Drawn(DRAWN)],
        frequency=exact_frequency(),
        masks=[AccidentalHits()],
        correct="negatives",
        strength=0.5,
        temperature=0.2,
        similarity="cosine",
    )
    run(task, training=True)
    # Rows 0 and 2 lose one batch column and two drawn ones each, and row 3 one drawn column; of
    # 5 x 11 columns 5 are the rows' own.
    assert describe_last_step(task) == (
        "5 queries, 11 candidates (in_batch 5, drawn 6), masked 14.00%, replicas 1, "
        "correction negatives x 0.5, cosine / 0.2"
    )


def test_report_counts_extra_candidates_as_nobodys_positive():
    task = Retrieval(masks=[AccidentalHits()])
    run(task, num_items=len(BATCH_IDS), training=True)
    # Item 103 is in columns 0, 2 and 5: rows 0 and 2 lose two each, of 5 x 7 - 5.
    assert "7 candidates (in_batch 7), masked 13.33%" in describe_last_step(task)


# ------------------------------------------------------------------ a graph of TensorFlow 1


def in_session(task, tensors, feed=None, runs=1):
    """The values of tensors, run so many times in the graph they are in."""
    metrics = [m for part in [task, *task.negatives] for m in getattr(part, "metrics", [])]
    variables = {id(v): v for part in [task, *metrics] for v in part.variables}
    with tf.compat.v1.Session() as session:
        session.run([v.initializer for v in variables.values()])
        return [session.run(tensors, feed) for _ in range(runs)]


# A catalogue is made eagerly, so these have none.
@pytest.mark.parametrize(
    "name", ["plain", "cosine", "sum", "weights", "hits", "hardest", "score mask", "probability"]
)
def test_loss_and_gradient_in_a_graph_of_tensorflow_1(name):
    arguments, call, options, drawn = COMPOSITIONS[name]
    call = {**call, "candidate_ids": BATCH_IDS[:NUM_ROWS]}
    eager = tf.constant(QUERIES)
    with tf.GradientTape() as tape:
        tape.watch(eager)
        loss = build(arguments)(eager, ITEMS[:NUM_ROWS], **call)
    expected_slope = tape.gradient(loss, eager)
    with tf.Graph().as_default():
        task, queries = build(arguments), tf.constant(QUERIES)
        loss = task(queries, tf.constant(ITEMS[:NUM_ROWS]), **call)
        ((received, slope),) = in_session(task, [loss, tf.gradients(loss, queries)[0]])
    expected = reference.retrieval_loss(QUERIES, pool_of(drawn=drawn), **options)
    assert received == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-5, atol=1e-6)


def test_a_graph_of_tensorflow_1_moves_all_state_with_rows_of_unknown_number():
    def composition():
        sources = [InBatch(), CrossBatch(10)]
        masks = [AccidentalHits()]
        return Retrieval(negatives=sources, frequency=StreamingFrequency(64), masks=masks)

    def state(task):
        table, bank = task.frequency, task.negatives[1].bank
        return [task.step, table.table, table.last_step, bank.ids, task.report.candidates]

    eager, rows = composition(), np.array([*BATCH_IDS[: NUM_ROWS - 1], EMPTY_ID])
    expected = [float(run(eager, candidate_ids=rows, training=True)) for _ in range(3)]
    with tf.Graph().as_default():
        task = composition()
        queries, items = (tf.compat.v1.placeholder(tf.float32, [None, DIM]) for _ in range(2))
        ids = tf.compat.v1.placeholder(tf.int64, [None])
        loss = task(queries, items, candidate_ids=ids, training=True)
        feed = {queries: QUERIES, items: ITEMS[:NUM_ROWS], ids: rows}
        with tf.control_dependencies([loss]):
            after = [tf.identity(variable) for variable in state(task)]
        runs = in_session(task, [loss, *after], feed, runs=3)
    assert [float(loss) for loss, *_ in runs] == pytest.approx(expected, rel=1e-5)
    for received, wanted in zip(runs[-1][1:], state(eager), strict=True):
        np.testing.assert_allclose(received, wanted, rtol=1e-5)


BAD = {
    "negatives": ({"negatives": []}, {}),
    "correct": ({"correct": "positives"}, {}),
    "strength": ({"strength": 1.5}, {}),
    "reduction": ({"reduction": "none"}, {}),
    "similarity": ({"similarity": "euclid"}, {}),
    "temperature": ({"temperature": 0.0}, {}),
    "frequency": ({"negatives": [InBatch(), Uniform(CATALOGUE, 2)]}, {}),
    "candidate_ids": ({"remove_accidental_hits": True}, {"candidate_ids": None}),
    "candidate_embeddings": ({}, {"num_items": 3}),
    "score_mask": ({}, {"score_mask": np.ones((5, 5), np.float32)}),
    "candidate_sampling_probability": (
        {"negatives": [Uniform(CATALOGUE, 2)]},
        {"candidate_sampling_probability": np.ones(5, np.float32) / 5},
    ),
    "training": ({"negatives": [Uniform(CATALOGUE, 2)]}, {"training": None}),
    "encode_items": ({"negatives": [Uniform(CATALOGUE, 2)]}, {"encode_items": None}),
    "k": ({"miners": lambda: [Hardest(0)]}, {}),
    "num_negatives": ({"negatives": lambda: [Uniform(CATALOGUE, 0)]}, {}),
}


@pytest.mark.parametrize("argument", BAD)
def test_errors_name_the_argument(argument):
    arguments, call = BAD[argument]
    with pytest.raises(InputError, match=f"^`{argument}"):
        run(build(arguments), **call)


def test_ids_of_another_length_are_an_error():
    with pytest.raises(InputError, match="candidate_ids"):
        run(Retrieval(), candidate_ids=np.arange(4))


def test_learned_temperature_outside_its_range_is_an_error():
    with pytest.raises(InputError, match="temperature"):
        Retrieval(temperature=2.0, learn_temperature=True)
