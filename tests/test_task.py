"""The training step against the slow reference, composition by composition."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import tensorflow as tf

from tfrs_negatives.encode.catalogue import ItemCatalogue
from tfrs_negatives.propose.frequency import ExactFrequency, StreamingFrequency
from tfrs_negatives.propose.negatives import InBatch, IndexStream, Uniform
from tfrs_negatives.score.affinity import ItemBias
from tfrs_negatives.score.keep_masks import AccidentalHits
from tfrs_negatives.train.hard_negatives import Hardest
from tfrs_negatives.train.losses import SampledSoftmax
from tfrs_negatives.train.task import Retrieval
from tfrs_negatives.types import Candidates, InputError, Logits, Part

NUM_ROWS, DIM, NUM_ITEMS = 5, 4, 12
CATALOGUE = ItemCatalogue(np.arange(NUM_ITEMS) + 100)
# Item 103 is the positive of two rows and one of the extra rows: hits must be told from others.
BATCH_IDS = np.array([103, 101, 103, 107, 110, 103, 111])
Q = np.random.default_rng(1).dirichlet(np.full(NUM_ITEMS, 0.7)) + 0.01
Q /= Q.sum()
DRAWN = [3, 3, 0, 7, 11, 4]  # rows of the catalogue, the positive of rows 0 and 2 twice
RNG = np.random.default_rng(0)
QUERIES = RNG.normal(size=(NUM_ROWS, DIM)).astype(np.float32)
ITEMS = RNG.normal(size=(len(BATCH_IDS), DIM)).astype(np.float32)
# Other numbers than `ITEMS`: the positive comes from the batch, a drawn item from the item tower.
CORPUS = RNG.normal(size=(NUM_ITEMS, DIM)).astype(np.float32)
WEIGHTS = np.array([0.5, 2.0, 0.0, 1.0, 3.0], np.float32)
COUNTS = np.arange(NUM_ITEMS) * 3.0
SCORE_MASK = RNG.random((NUM_ROWS, NUM_ROWS)) > 0.4


class Drawn(Part):
    """Proposes the items it is told to, as if they had been drawn uniformly."""

    name = "drawn"
    needs_frequency = False

    def __init__(self, rows, filled=None):
        self.rows = tf.constant(rows)
        self.filled = tf.constant([True] * len(rows) if filled is None else filled)

    def propose(self, context):
        vectors = context.encode_items(CATALOGUE.gather(self.rows))
        nobody = tf.fill([len(self.rows)], -1)
        return Candidates(CATALOGUE.keys_at(self.rows), vectors, self.filled, nobody)

    def log_expected_count(self, ids, context):
        return tf.fill(tf.shape(ids), np.float32(np.log(len(self.rows) / NUM_ITEMS)))


def exact_frequency():
    return ExactFrequency(CATALOGUE.ids, Q * 1e6)


def item_bias():
    return ItemBias(CATALOGUE.ids, COUNTS)


def encode_items(features):
    return tf.gather(CORPUS, features["item_id"] - 100)


def run(task, *, queries=QUERIES, num_items=NUM_ROWS, **call):
    ids = BATCH_IDS[:num_items]
    call = {"candidate_ids": ids, "encode_items": encode_items, **call}
    return task(tf.constant(queries), tf.constant(ITEMS[:num_items]), **call)


def pool_of(num_items=NUM_ROWS, drawn=()):
    batch = reference.batch_columns(BATCH_IDS[:num_items], ITEMS[:num_items], NUM_ROWS)
    return [*batch, *(reference.Column(100 + row, CORPUS[row]) for row in drawn)]


def count_of(num_items=0, num_drawn=0):
    def count(item):
        in_batch = reference.in_batch_count(Q[item - 100], num_items)
        return in_batch + reference.uniform_count(NUM_ITEMS, num_drawn)

    return count


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
    "bias": ({"item_bias": item_bias, "temperature": 0.5}, {}, {"bias": BIAS, "temperature": 0.5}, ()),
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


def build(arguments):
    # Layers are built anew for each test: they hold variables.
    return Retrieval(**{n: a() if callable(a) else a for n, a in arguments.items()})


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_loss_equals_the_reference(name):
    arguments, call, options, drawn = COMPOSITIONS[name]
    expected = reference.retrieval_loss(QUERIES, pool_of(drawn=drawn), **options)
    assert float(run(build(arguments), **call)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["cosine", "logq negatives", "everything"])
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
    task = Retrieval(frequency=exact_frequency(), correct=policy, masks=[AccidentalHits()])
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


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_best_vector_of_a_query_counts(similarity):
    queries = np.random.default_rng(3).normal(size=(NUM_ROWS, 3, DIM)).astype(np.float32)
    task = Retrieval(similarity=similarity, temperature=0.4)
    options = {"similarity": similarity, "temperature": 0.4}
    expected = reference.retrieval_loss(queries, pool_of(), **options)
    assert float(run(task, queries=queries)) == pytest.approx(expected, rel=1e-5)


def test_unfilled_columns_never_count():
    filled = [True, False, True, False, True, True]
    task = Retrieval(negatives=[InBatch(), Drawn(DRAWN, filled)], frequency=exact_frequency())
    columns = pool_of(drawn=DRAWN)
    pool = [
        column._replace(filled=column.owner >= 0 or filled[j - NUM_ROWS])
        for j, column in enumerate(columns)
    ]
    count = count_of(NUM_ROWS, len(DRAWN))
    expected = reference.retrieval_loss(QUERIES, pool, policy="both", count=count)
    assert float(run(task)) == pytest.approx(expected, rel=1e-5)


def test_sources_without_the_batch_compete_with_the_positive_alone():
    task = Retrieval(negatives=[Drawn(DRAWN)], correct="negatives")
    losses = []
    for row, query in enumerate(QUERIES):
        own, *drawn = pool_of(drawn=DRAWN)[row : row + 1] + pool_of(drawn=DRAWN)[NUM_ROWS:]
        count = count_of(0, len(DRAWN))
        losses.append(
            reference.row_loss(0, query, [own._replace(owner=0), *drawn], policy="negatives", count=count)
        )
    assert float(run(task)) == pytest.approx(reference.reduced(losses), rel=1e-5)


def test_score_mask_never_lands_on_the_columns_of_another_source():
    task = Retrieval(negatives=[Drawn(DRAWN), InBatch()], frequency=exact_frequency())
    with pytest.raises(InputError, match="score_mask"):
        run(task, score_mask=SCORE_MASK)


def test_uniform_draws_what_the_seed_says_and_other_items_at_each_step():
    source, seen = Uniform(CATALOGUE, 6), []

    def record(features):
        seen.append((features["item_id"].numpy() - 100).tolist())
        return encode_items(features)

    for seed in (5, 5, 6):
        task = Retrieval(negatives=[InBatch(), source], frequency=exact_frequency(), seed=seed)
        for _ in range(2):
            drawn_loss = run(task, encode_items=record, training=True)
            count = count_of(NUM_ROWS, 6)
            expected = reference.retrieval_loss(
                QUERIES, pool_of(drawn=seen[-1]), policy="both", count=count
            )
            assert float(drawn_loss) == pytest.approx(expected, rel=1e-5)
    assert seen[:2] == seen[2:4]
    assert len({tuple(draw) for draw in seen}) == 4


def test_two_sources_of_one_kind_draw_differently():
    seen = []

    def record(features):
        seen.append(features["item_id"].numpy().tolist())
        return encode_items(features)

    run(Retrieval(negatives=[Uniform(CATALOGUE, 8), Uniform(CATALOGUE, 8)]), encode_items=record)
    assert seen[0] != seen[1]


def test_uniform_draws_every_item_equally_often():
    counts = np.zeros(NUM_ITEMS)

    def record(features):
        np.add.at(counts, features["item_id"].numpy() - 100, 1)
        return encode_items(features)

    task = Retrieval(negatives=[Uniform(CATALOGUE, 600)], correct=None)
    for _ in range(10):
        run(task, encode_items=record, training=True)
    expected = 6000 / NUM_ITEMS
    # The 99.99th percentile of chi squared with 11 degrees of freedom is 37.4.
    assert ((counts - expected) ** 2 / expected).sum() < 37.4


def test_an_item_outside_the_catalogue_is_never_a_uniform_draw():
    batch_ids = np.array([103, 999, 103, 107, 110])
    frequency = ExactFrequency([999, *CATALOGUE.ids], [5e5, *(Q * 5e5)])
    task = Retrieval(negatives=[InBatch(), Drawn(DRAWN)], frequency=frequency)
    only_batch = Retrieval(negatives=[InBatch(), Uniform(CATALOGUE, 6)], frequency=frequency)
    context_count = {
        name: source.log_expected_count(tf.constant(batch_ids), None).numpy()
        for name, source in {"uniform": only_batch.negatives[1]}.items()
    }
    assert context_count["uniform"][1] == -np.inf
    np.testing.assert_allclose(context_count["uniform"][[0, 2]], np.log(6 / NUM_ITEMS), rtol=1e-6)
    loss = run(only_batch, candidate_ids=batch_ids)
    assert np.isfinite(float(loss))
    assert np.isfinite(float(run(task, candidate_ids=batch_ids)))


def test_index_stream_proposes_the_items_of_the_batch_column():
    source = IndexStream(CATALOGUE, 6)
    task = Retrieval(negatives=[InBatch(), source], frequency=exact_frequency())
    stream = CATALOGUE.gather(tf.constant(DRAWN))
    loss = run(task, features={"index_items": stream})
    count = count_of(NUM_ROWS, 6)
    expected = reference.retrieval_loss(QUERIES, pool_of(drawn=DRAWN), policy="both", count=count)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError, match="index_items"):
        run(task)


def test_index_stream_goes_through_the_catalogue_in_random_order():
    users = tf.data.Dataset.from_tensor_slices({"user_id": np.arange(8)}).batch(2)
    batches = list(IndexStream(CATALOGUE, 3).attach(users, seed=1))
    assert [b["user_id"].numpy().tolist() for b in batches] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    streamed = np.concatenate([b["index_items"]["item_id"] for b in batches])
    assert sorted(streamed) == CATALOGUE.ids.tolist()
    assert streamed.tolist() != CATALOGUE.ids.tolist()


def test_frequency_learns_in_training_only():
    task = Retrieval(frequency=StreamingFrequency(256))
    run(task)
    assert int(task.frequency.step) == int(task.step) == 0
    run(task, training=True)
    assert int(task.frequency.step) == int(task.step) == 1
    share = np.exp(task.frequency.log_probability(tf.constant([103], tf.int64)))
    np.testing.assert_allclose(share, 2 / 5, rtol=1e-5)


def test_learned_temperature_starts_where_it_is_told_and_moves():
    fixed, learned = Retrieval(temperature=0.2), Retrieval(temperature=0.2, learn_temperature=True)
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
    logits = Logits(tf.fill([1], 27e4), tf.fill([1, 3], 27e4), tf.ones([1, 3], tf.bool))
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
    assert task.describe_last_step() == (
        "5 queries, 11 columns (in_batch 5, drawn 6), masked 14.00%, replicas 1, "
        "correction negatives x 0.5, cosine / 0.2"
    )


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
