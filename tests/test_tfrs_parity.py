"""`Retrieval` in the place of `tfrs.tasks.Retrieval`: same numbers, or better."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs
from replicas import strategy_of

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.step.task import Retrieval

B, D = 6, 4
RNG = np.random.default_rng(0)
QUERIES = RNG.normal(size=(B, D)).astype(np.float32)
HEADS = RNG.normal(size=(B, 3, D)).astype(np.float32)
ITEMS = RNG.normal(size=(B + 3, D)).astype(np.float32)
IDS = np.array([4, 1, 4, 7, 9, 1, 4, 8, 7])
PROBABILITY = RNG.uniform(1e-6, 0.3, size=B + 3).astype(np.float32)
WEIGHTS = RNG.uniform(0, 2, size=B).astype(np.float32)
SCORE_MASK = (RNG.random((B, B + 3)) > 0.4) | np.eye(B, B + 3, dtype=bool)
MEAN = tf.keras.losses.Reduction.SUM_OVER_BATCH_SIZE
CrossEntropy = tf.keras.losses.CategoricalCrossentropy

LOSSES = {
    "default": lambda: None,
    "keras mean": lambda: CrossEntropy(from_logits=True, reduction=MEAN),
    "keras smooth": lambda: CrossEntropy(from_logits=True, label_smoothing=0.1),
}
CONSTRUCTORS = {
    "bare": {},
    "temperature": {"temperature": 0.2},
    "two hard": {"num_hard_negatives": 2},
    "too many hard": {"num_hard_negatives": 100},
    "hits": {"remove_accidental_hits": True},
    "name": {"name": "my_task"},
    "all": {
        "temperature": 0.5,
        "num_hard_negatives": 3,
        "remove_accidental_hits": True,
        "name": "all",
    },
}
CALLS = {
    "bare": {},
    "weights": {"sample_weight": WEIGHTS},
    "probability": {"candidate_sampling_probability": PROBABILITY},
    "strings": {"candidate_ids": np.array([f"item {i}" for i in IDS])},
    "score mask": {"score_mask": SCORE_MASK},
    "all": {
        "sample_weight": WEIGHTS,
        "candidate_sampling_probability": PROBABILITY,
        "score_mask": SCORE_MASK,
    },
}
PER_CANDIDATE = {"candidate_sampling_probability", "candidate_ids"}


def batch_metrics():
    return [
        tf.keras.metrics.TopKCategoricalAccuracy(k=2, name="top_2"),
        tf.keras.metrics.CategoricalAccuracy(name="top_1"),
        tf.keras.metrics.AUC(from_logits=True, name="auc"),
    ]


def build(of_tfrs, loss="default", **arguments):
    kind = tfrs.tasks.Retrieval if of_tfrs else Retrieval
    return kind(
        loss=LOSSES[loss](),
        batch_metrics=batch_metrics(),
        loss_metrics=[tf.keras.metrics.Mean(name="mean_loss")],
        **arguments,
    )


def outcome(task, queries=QUERIES, num_items=B, **call):
    """Loss, both gradients and every metric after two calls."""
    call = {"candidate_ids": IDS, **call}
    call = {name: cut(name, value, num_items) for name, value in call.items()}
    queries, items = tf.constant(queries), tf.constant(ITEMS[:num_items])
    for _ in range(2):
        with tf.GradientTape() as tape:
            tape.watch([queries, items])
            loss = task(queries, items, **call)
    metrics = [m.result() for m in [*batch_metrics_of(task), *loss_metrics_of(task)]]
    return [loss, *tape.gradient(loss, [queries, items]), *metrics]


def cut(name, value, num_items):
    if name == "score_mask":
        return value[:, :num_items]
    return value[:num_items] if name in PER_CANDIDATE and value is not None else value


def batch_metrics_of(task):
    return task._batch_metrics if isinstance(task, tfrs.tasks.Retrieval) else task.batch_metrics


def loss_metrics_of(task):
    return task._loss_metrics if isinstance(task, tfrs.tasks.Retrieval) else task.loss_metrics


def assert_same(theirs, ours):
    for expected, received in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(received, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("constructor", CONSTRUCTORS)
@pytest.mark.parametrize("loss", ["default", "keras mean"])
def test_same_numbers_as_tfrs(loss, constructor, call):
    theirs, ours = (build(x, loss, **CONSTRUCTORS[constructor]) for x in (True, False))
    assert_same(outcome(theirs, **CALLS[call]), outcome(ours, **CALLS[call]))


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
def test_same_numbers_with_extra_candidates(constructor):
    theirs, ours = (build(x, **CONSTRUCTORS[constructor]) for x in (True, False))
    assert_same(
        outcome(theirs, num_items=B + 3, **CALLS["all"]),
        outcome(ours, num_items=B + 3, **CALLS["all"]),
    )


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
def test_same_numbers_with_several_vectors_per_query(constructor):
    theirs, ours = (build(x, **CONSTRUCTORS[constructor]) for x in (True, False))
    assert_same(outcome(theirs, HEADS, **CALLS["all"]), outcome(ours, HEADS, **CALLS["all"]))


# Label smoothing gives a masked column a share of the label, so only compositions without masks.
@pytest.mark.parametrize("constructor", ["bare", "temperature", "two hard", "too many hard"])
@pytest.mark.parametrize("call", ["bare", "weights", "probability"])
def test_same_numbers_with_smoothed_labels(constructor, call):
    theirs, ours = (build(x, "keras smooth", **CONSTRUCTORS[constructor]) for x in (True, False))
    expected = outcome(theirs, **CALLS[call])
    assert_same(expected, outcome(ours, **CALLS[call]))


@pytest.mark.parametrize("switch", ["compute_metrics", "compute_batch_metrics"])
def test_metrics_can_be_switched_off(switch):
    theirs, ours = build(True), build(False)
    theirs.factorized_metrics = [corpus_metric()]
    ours.factorized_metrics = [corpus_metric()]
    results = []
    for task in (theirs, ours):
        numbers = outcome(task, candidate_ids=None, **{switch: False})
        corpus = task.factorized_metrics[0].result()
        results.append([*numbers, *corpus])
    assert_same(*results)
    off = results[1][-2:] if switch == "compute_metrics" else results[1][3:6]
    np.testing.assert_array_equal(off, np.zeros(len(off)))


def corpus_metric(ids=None):
    corpus = tf.data.Dataset.from_tensor_slices(np.concatenate([ITEMS[B:], ITEMS[:B]]))
    if ids is not None:
        corpus = tf.data.Dataset.zip(
            (tf.data.Dataset.from_tensor_slices(np.concatenate([ids[B:], ids[:B]])), corpus)
        )
    return tfrs.metrics.FactorizedTopK(corpus.batch(4), ks=(1, 3))


UNIQUE = np.arange(B + 3) + 20


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize(
    "ids", [None, UNIQUE, UNIQUE.astype(str)], ids=["scores", "ints", "strings"]
)
def test_same_factorized_metrics(ids, several):
    results = []
    for kind in (tfrs.tasks.Retrieval, Retrieval):
        metric = corpus_metric(ids)
        task = kind(metrics=[metric] if several else metric)
        given = None if ids is None else tf.constant(ids[:B])
        task(QUERIES, ITEMS[:B], candidate_ids=given, sample_weight=WEIGHTS)
        results.append([m.result() for m in metric.metrics])
    assert_same(*results)
    assert float(results[0][1]) > 0


def test_same_numbers_in_a_graph_as_positional_arguments():
    arguments = (WEIGHTS, PROBABILITY[:B], IDS[:B], True, True, SCORE_MASK[:, :B])
    theirs, ours = build(True, **CONSTRUCTORS["all"]), build(False, **CONSTRUCTORS["all"])
    losses = [tf.function(lambda t=t: t(QUERIES, ITEMS[:B], *arguments))() for t in (theirs, ours)]
    assert float(losses[1]) == pytest.approx(float(losses[0]), rel=1e-5)


@pytest.mark.parametrize("method", ["__init__", "call"])
def test_arguments_have_the_names_and_the_order_of_tfrs(method):
    theirs = list(inspect.signature(getattr(tfrs.tasks.Retrieval, method)).parameters.values())
    ours = list(inspect.signature(getattr(Retrieval, method)).parameters.values())
    assert [(p.name, p.default) for p in ours[: len(theirs)]] == [
        (p.name, p.default) for p in theirs
    ]
    new = {p.kind for p in ours[len(theirs) :]}
    assert new <= {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}


class Theirs(tfrs.Model):
    def __init__(self, task):
        super().__init__()
        self.users = tf.keras.layers.Embedding(5, 3, embeddings_initializer=initial())
        self.items = tf.keras.layers.Embedding(5, 3, embeddings_initializer=initial())
        self.task = task

    def compute_loss(self, features, training=False):
        users, items = self.users(features["user"]), self.items(features["item"])
        weights = features.get("weight")
        return self.task(users, items, sample_weight=weights, compute_metrics=not training)


def test_it_sits_inside_an_existing_tfrs_model():
    data = tf.data.Dataset.from_tensors({"user": [0, 1, 2], "item": [3, 1, 4]}).repeat(3)
    losses = []
    for task in (tfrs.tasks.Retrieval(), Retrieval()):
        model = Theirs(task)
        model.compile(tf.keras.optimizers.Adagrad(0.5))
        losses.append(model.fit(data, epochs=2, verbose=0).history["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def initial():
    return tf.keras.initializers.RandomNormal(seed=7)


def trained_on(replicas, task, batch):
    """The loss of each of three steps over all replicas, and the weights then."""
    strategy = strategy_of(replicas)
    with strategy.scope():
        model = Theirs(task())
        model.compile(tf.keras.optimizers.SGD(0.5))
        model.users(0), model.items(0)
    parts = strategy.experimental_distribute_values_from_function(
        lambda context: {
            name: np.array_split(column, replicas)[context.replica_id_in_sync_group]
            for name, column in batch.items()
        }
    )
    losses = []
    for _ in range(3):
        logs = strategy.run(model.train_step, args=(parts,))
        losses.append(strategy.reduce("SUM", logs["loss"], axis=None))
    return [losses, *(variable.numpy() for variable in model.trainable_variables)]


@pytest.mark.parametrize("weights", [{}, {"weight": WEIGHTS}], ids=["bare", "weights"])
@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_any_number_of_replicas_trains_as_tfrs_on_one_device(replicas, weights):
    batch = {"user": np.arange(B) % 5, "item": np.array([3, 1, 4, 1, 0, 2]), **weights}
    theirs = trained_on(1, tfrs.tasks.Retrieval, batch)
    ours = trained_on(replicas, Retrieval, batch)
    assert_same(theirs, ours)
    mean = trained_on(1, lambda: Retrieval(reduction="mean"), batch)
    assert np.abs(theirs[1] - mean[1]).max() > 0.01


# -------------------------------------------------------------- where TFRS is wrong


def test_extra_candidates_with_ids_and_factorized_metrics_work_together():
    with pytest.raises(tf.errors.InvalidArgumentError):
        tfrs.tasks.Retrieval(metrics=corpus_metric(UNIQUE))(QUERIES, ITEMS, candidate_ids=UNIQUE)
    metric = corpus_metric(UNIQUE)
    Retrieval(metrics=metric)(QUERIES, ITEMS, candidate_ids=UNIQUE)
    best = np.argsort(-(QUERIES @ ITEMS.T), axis=1)
    expected = [np.mean([i in best[i, :k] for i in range(B)]) for k in (1, 3)]
    np.testing.assert_allclose(metric.result(), expected)


def test_probabilities_below_one_in_a_million_are_told_apart():
    rare, rarer = np.full(B, 1e-7, np.float32), np.full(B, 1e-7, np.float32)
    rarer[2] = 1e-9

    def losses(task):
        return [
            float(task(QUERIES, ITEMS[:B], candidate_sampling_probability=p)) for p in (rare, rarer)
        ]

    same, other = losses(tfrs.tasks.Retrieval()), losses(Retrieval())
    assert same[0] == same[1]
    logits = (QUERIES @ ITEMS[:B].T).astype(np.float64) - np.log(rarer.astype(np.float64))
    expected = np.sum(np.log(np.exp(logits).sum(1)) - np.diag(logits))
    assert other[1] == pytest.approx(expected, rel=1e-5)
    assert other[0] != pytest.approx(other[1], rel=1e-2)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
@pytest.mark.parametrize("constructor", ["hits", "two hard", "all"])
def test_half_precision_gives_the_loss_of_its_numbers(dtype, constructor):
    queries, items = tf.cast(QUERIES, dtype), tf.cast(ITEMS[:B], dtype)
    exact = [tf.cast(x, tf.float32) for x in (queries, items)]
    losses = []
    for pair in ((queries, items), exact):
        metric = corpus_metric(UNIQUE)
        task = Retrieval(metrics=metric, **CONSTRUCTORS[constructor])
        losses.append(task(*pair, candidate_ids=IDS[:B]))
    assert losses[0].dtype == tf.float32
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-6)


def test_no_hard_negatives_keep_them_all_as_tfrs_documents():
    # Its documentation says so of every number that is not positive; its code keeps none.
    task = Retrieval(num_hard_negatives=0)
    expected = tfrs.tasks.Retrieval()(QUERIES, ITEMS[:B])
    assert float(task(QUERIES, ITEMS[:B])) == pytest.approx(float(expected), rel=1e-5)


def test_score_mask_never_hides_the_positive():
    mask = SCORE_MASK[:, :B].copy()
    mask[2, 2] = False
    seen, hidden = (
        Retrieval()(QUERIES, ITEMS[:B], score_mask=m) for m in (SCORE_MASK[:, :B], mask)
    )
    assert float(seen) == float(hidden)


def test_factorized_metrics_beside_a_cosine_are_an_error():
    with pytest.raises(InputError, match="metrics"):
        Retrieval(metrics=corpus_metric(), similarity="cosine")
