"""What every public part must hold, whatever it computes: one list of parts, one list of laws.

A part is tried inside a task that is made of little else, on one small batch.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

import tfrs_negatives
from tfrs_negatives.core.part import Part
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.data import Interactions
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.model.two_tower import TwoTower
from tfrs_negatives.step.frequency import ExactFrequency, StreamingFrequency
from tfrs_negatives.step.losses import (
    BPR,
    BSL,
    CCL,
    GBCE,
    PSL,
    DecoupledSoftmax,
    EasyHardMixture,
    NonSampling,
    PointwiseBCE,
    SampledSoftmax,
    SLAtK,
    SoftmaxOverPositives,
    SoftPartialAUC,
    SoftTopK,
    TripletHinge,
    TripletLogistic,
)
from tfrs_negatives.step.losses.log_sums import masked_log_sum_exp
from tfrs_negatives.step.masks import known_positives
from tfrs_negatives.step.masks.apply import GivenMask
from tfrs_negatives.step.masks.keep import AccidentalHits, ScoreMargin
from tfrs_negatives.step.masks.known_positives import KnownPositives
from tfrs_negatives.step.metrics import KerasLoss
from tfrs_negatives.step.miners import (
    BatchMix,
    Hardest,
    LeastBayesianRisk,
    PositiveMixture,
    RandomOfTop,
    RankedMiner,
    Resample,
    SemiHard,
    WithinPositiveRadius,
)
from tfrs_negatives.step.query_rows import QueryRows
from tfrs_negatives.step.records import Frequency, Loss, Mask, Miner, Sampler, Scored, StepPart
from tfrs_negatives.step.report import StepReport
from tfrs_negatives.step.samplers import (
    AdaptivePool,
    Balanced,
    CrossBatch,
    Explicit,
    IdCache,
    InBatch,
    IndexStream,
    LogUniform,
    MinedUnion,
    Popularity,
    Reinforced,
    RobustMemory,
    Uniform,
    UniformSubset,
    Weighted,
)
from tfrs_negatives.step.samplers.catalogue_draws import CatalogueDraws, CountedDraws
from tfrs_negatives.step.samplers.drift import FeatureDrift
from tfrs_negatives.step.samplers.memory_bank import MemoryBank
from tfrs_negatives.step.samplers.negative_table import NegativeTable
from tfrs_negatives.step.samplers.query_pool import QueryPool
from tfrs_negatives.step.score import Affinity, ItemBias
from tfrs_negatives.step.task import Retrieval

B, D, N = 6, 4, 10
CATALOGUE = ItemCatalogue(np.arange(N))
RNG = np.random.default_rng(2)
QUERIES = RNG.normal(size=(B, D)).astype(np.float32)
ITEMS = RNG.normal(size=(B, D)).astype(np.float32)
CORPUS = RNG.normal(size=(N, D)).astype(np.float32)
IDS = np.array([1, 4, 4, 0, 9, 7])
COUNTS = np.arange(N) + 1.0
# Padded, with the row's positive, a batch item and a copy among them.
REJECTED = np.array([[1, 4, 2], [4, 5, -1], [8, 8, 2], [3, -1, -1], [9, 0, 1], [-1, 6, -1]])
# The same without the rows' own positives, as a mining has it.
SHARED = np.where(IDS[:, None] == REJECTED, -1, REJECTED)
HALVE = tf.keras.optimizers.schedules.ExponentialDecay(1.0, 2, 0.5)
# Users 0 to 2 have chosen their own positive and one more item, the others nothing.
HISTORY = Interactions(
    {"user_id": np.array([0, 0, 1, 1, 2, 2])}, np.array([1, 0, 4, 9, 4, 3]), query_key="user_id"
)


def exact():
    return ExactFrequency(np.arange(N), COUNTS)


def mined(lists=REJECTED):
    log = Interactions({"user_id": np.arange(B)}, IDS, query_key="user_id")
    table = NegativeTable(log, lists.shape[1])
    lists = np.where(lists < 0, EMPTY_ID, lists)
    table.ids.assign(np.concatenate([lists, np.full_like(lists[:1], EMPTY_ID)]))
    return table


def many_cells():
    """The mask as it is where there are too many cells for a table."""
    with mock.patch.object(known_positives, "TABLE_CELLS", 0):
        return KnownPositives(HISTORY, CATALOGUE, static_shapes=True)


# Each public part, in the least composition that uses it. A new part is one more row.
PARTS = {
    "InBatch": lambda: {"negatives": [InBatch()]},
    "Uniform": lambda: {"negatives": [Uniform(CATALOGUE, 5)]},
    "Uniform + batch": lambda: {
        "negatives": [InBatch(), Uniform(CATALOGUE, 5)],
        "frequency": exact(),
    },
    "UniformSubset": lambda: {
        "negatives": [InBatch(), UniformSubset(CATALOGUE, 5, num_items=4, seed=3)],
        "frequency": exact(),
    },
    "Popularity": lambda: {"negatives": [Popularity(CATALOGUE, 5, counts=COUNTS)]},
    "LogUniform": lambda: {"negatives": [LogUniform(CATALOGUE, 5, counts=COUNTS)]},
    "CrossBatch": lambda: {
        "negatives": [InBatch(), CrossBatch(9, probes=CATALOGUE, max_age=2)],
        "frequency": exact(),
    },
    "CrossBatch half": lambda: {
        "negatives": [InBatch(), CrossBatch(9, warmup_steps=1, storage="float16")],
        "frequency": exact(),
        "correct": "negatives",
    },
    "Explicit": lambda: {"negatives": [Explicit("rejected", CATALOGUE)], "correct": None},
    "Explicit + batch": lambda: {
        "negatives": [InBatch(), Explicit("rejected", CATALOGUE)],
        "frequency": exact(),
    },
    "NegativeTable": lambda: {
        "negatives": [InBatch(), Explicit(mined(), CATALOGUE)],
        "frequency": exact(),
    },
    "MinedUnion": lambda: {
        "negatives": [MinedUnion(mined(SHARED), CATALOGUE)],
        "masks": [AccidentalHits()],
        "correct": None,
    },
    "AdaptivePool": lambda: {
        "negatives": [
            AdaptivePool(
                Uniform(CATALOGUE, 7),
                CATALOGUE,
                HISTORY,
                num_negatives=3,
                pool_size=4,
                masks=[KnownPositives(HISTORY, CATALOGUE, static_shapes=True)],
            )
        ],
        "correct": None,
    },
    "Reinforced": lambda: {
        "negatives": [
            InBatch(),
            Reinforced(CATALOGUE, HISTORY, exposed="rejected", num_candidates=4, width=3),
        ],
        "frequency": exact(),
    },
    "RobustMemory": lambda: {
        "negatives": [
            InBatch(),
            RobustMemory(
                Uniform(CATALOGUE, 7),
                CATALOGUE,
                HISTORY,
                pool_size=3,
                warmup_epochs=1,
                masks=[KnownPositives(HISTORY, CATALOGUE, static_shapes=True)],
            ),
        ],
        "frequency": exact(),
    },
    "Balanced": lambda: {
        "negatives": [InBatch(), Balanced(Uniform(CATALOGUE, 5), 0.3, rate=0.4)],
        "frequency": exact(),
    },
    "Balanced own": lambda: {
        "negatives": [InBatch(), Balanced(Explicit("rejected", CATALOGUE), rate=0.4)],
        "frequency": exact(),
    },
    "Weighted": lambda: {
        "negatives": [InBatch(), Weighted(Uniform(CATALOGUE, 5), HALVE)],
        "frequency": exact(),
    },
    "EasyHardMixture": lambda: {
        "negatives": [InBatch(), Weighted(Explicit("rejected", CATALOGUE), 0.5)],
        "frequency": exact(),
        "loss": EasyHardMixture(0.3),
    },
    "IndexStream": lambda: {"negatives": [IndexStream(CATALOGUE, 4)], "correct": "negatives"},
    "StreamingFrequency counts": lambda: {"frequency": StreamingFrequency(64, 2)},
    "StreamingFrequency gaps": lambda: {
        "frequency": StreamingFrequency(64, 2, method="interval", rate=0.5)
    },
    "ExactFrequency": lambda: {"frequency": exact(), "correct": "negatives", "strength": 0.5},
    "Affinity": lambda: {"similarity": "cosine", "temperature": 0.2, "learn_temperature": True},
    "ItemBias": lambda: {"item_bias": ItemBias(np.arange(N), COUNTS)},
    "AccidentalHits": lambda: {"masks": [AccidentalHits()]},
    "AccidentalHits several": lambda: {"masks": [AccidentalHits(more_positives="liked")]},
    "KnownPositives": lambda: {"masks": [KnownPositives(HISTORY, CATALOGUE, static_shapes=True)]},
    "KnownPositives of many cells": lambda: {"masks": [many_cells()]},
    "ScoreMargin": lambda: {"masks": [ScoreMargin(-0.5)]},
    "Hardest": lambda: {"miners": [Hardest(2)]},
    "RandomOfTop": lambda: {"miners": [RandomOfTop(2, 4)]},
    "Resample": lambda: {
        "negatives": [InBatch(), IdCache(CATALOGUE, 5, decay=0.5)],
        "miners": [Resample(12)],
        "masks": [AccidentalHits()],
        "frequency": exact(),
        "correct": "negatives",
    },
    "Resample equal weights": lambda: {
        "miners": [Resample(12, reuse_scores=False)],
        "frequency": exact(),
    },
    "IdCache": lambda: {"negatives": [IdCache(CATALOGUE, 5)], "miners": [Hardest(3)]},
    "BatchMix": lambda: {
        "miners": [BatchMix(7, temperature=0.5)],
        "loss": EasyHardMixture(0.4),
        "frequency": exact(),
    },
    "BatchMix + own": lambda: {
        "negatives": [InBatch(), Explicit("rejected", CATALOGUE), CrossBatch(9)],
        "miners": [BatchMix(7), Hardest(5)],
        "frequency": exact(),
    },
    "PositiveMixture": lambda: {"miners": [PositiveMixture(3, largest_share=0.9)]},
    "PositiveMixture cosine": lambda: {
        "miners": [PositiveMixture(3, similarity="cosine", largest_share=0.9)],
        "masks": [AccidentalHits()],
        "similarity": "cosine",
        "loss": BPR(),
        "correct": None,
    },
    "LeastBayesianRisk": lambda: {
        "negatives": [Uniform(CATALOGUE, 8)],
        "masks": [AccidentalHits()],
        "miners": [LeastBayesianRisk(CATALOGUE, COUNTS, num_candidates=4, k=2, largest_prior=0.5)],
        "loss": BPR(),
        "correct": None,
    },
    "SemiHard": lambda: {"miners": [SemiHard(2.0)]},
    "WithinPositiveRadius": lambda: {
        "miners": [WithinPositiveRadius(farthest="known", slack=2.0), Hardest(3, by="score")],
        "masks": [KnownPositives(HISTORY, CATALOGUE, static_shapes=True)],
        "frequency": exact(),
    },
    "WithinPositiveRadius own": lambda: {
        "negatives": [InBatch(), CrossBatch(9)],
        "miners": [WithinPositiveRadius(slack=2.0, by="logit")],
        "masks": [AccidentalHits()],
        "frequency": exact(),
    },
    "SampledSoftmax": lambda: {"loss": SampledSoftmax()},
    "DecoupledSoftmax": lambda: {
        "loss": DecoupledSoftmax(),
        "masks": [KnownPositives(HISTORY, CATALOGUE, static_shapes=True)],
    },
    "DecoupledSoftmax corrected": lambda: {
        "negatives": [InBatch(), CrossBatch(9)],
        "loss": DecoupledSoftmax(),
        "masks": [AccidentalHits(more_positives="liked")],
        "frequency": exact(),
    },
    "BPR": lambda: {"loss": BPR()},
    "TripletHinge": lambda: {"loss": TripletHinge(1.0)},
    "TripletHinge focus": lambda: {"loss": TripletHinge(1.0, focus=0.5)},
    "TripletLogistic": lambda: {"loss": TripletLogistic(2.0)},
    "PointwiseBCE": lambda: {"loss": PointwiseBCE(2)},
    "SoftmaxOverPositives": lambda: {
        "loss": SoftmaxOverPositives(),
        "masks": [KnownPositives(HISTORY, CATALOGUE, static_shapes=True)],
    },
    "SoftTopK": lambda: {"loss": SoftTopK(2, 0.5)},
    "SoftTopK corrected": lambda: {
        "negatives": [InBatch(), Explicit("rejected", CATALOGUE)],
        "loss": SoftTopK(1, 0.5),
        "frequency": exact(),
    },
    "SLAtK": lambda: {
        "loss": SLAtK(HISTORY, 2, width=4.0),
        "masks": [AccidentalHits(more_positives="liked")],
    },
    "CCL": lambda: {"loss": CCL(-0.2, 2.0), "similarity": "cosine", "frequency": exact()},
    "GBCE": lambda: {"loss": GBCE(0.8), "frequency": exact(), "temperature": 0.2},
    # The gradient of a square grows with the score, so cosines for float16.
    "NonSampling": lambda: {
        "negatives": [Uniform(CATALOGUE, 5)],
        "loss": NonSampling(0.5),
        "similarity": "cosine",
    },
    "BSL": lambda: {
        "loss": BSL(0.5, 1.2),
        "masks": [KnownPositives(HISTORY, CATALOGUE, static_shapes=True)],
        "similarity": "cosine",
    },
    "PSL": lambda: {"loss": PSL("tanh", 0.5), "similarity": "cosine", "frequency": exact()},
    "PSL exp": lambda: {
        "negatives": [InBatch(), Explicit("rejected", CATALOGUE)],
        "loss": PSL("exp"),
        "frequency": exact(),
    },
    "SoftPartialAUC": lambda: {"loss": SoftPartialAUC(0.5), "frequency": exact()},
}
every_part = pytest.mark.parametrize("part", PARTS)

# Graphs take a second each, and XLA seconds. These have every family of parts, and of each family
# those whose operations are their own: draws, a bank with probes, a ragged list, a hash table of
# counts, both forms of the mask, sorts of a miner, the losses.
COMPILED = (
    "Popularity",
    "CrossBatch",
    "EasyHardMixture",
    "MinedUnion",
    "StreamingFrequency gaps",
    "Affinity",
    "ItemBias",
    "AccidentalHits several",
    "KnownPositives of many cells",
    "WithinPositiveRadius",
    "RandomOfTop",
    "Resample",
    "BatchMix + own",
    "LeastBayesianRisk",
    "PositiveMixture cosine",
    "SemiHard",
    "DecoupledSoftmax corrected",
    "TripletHinge focus",
    "PointwiseBCE",
    "SoftTopK corrected",
    "SLAtK",
)


SLOW = pytest.mark.slow
# The others in `make test-all`; all are in a graph in `test_a_batch_of_any_size`.
GRAPHS = [
    pytest.param(part, by_xla, id=f"{name}-{part}", marks=() if part in COMPILED else SLOW)
    for name, by_xla in (("graph", False), ("xla", True))
    for part in PARTS
]


class NobodyCounts(Mask):
    """A mask that leaves no column to any row."""

    def keep(self, scored, batch):
        return tf.zeros_like(scored.keep)


def build(part, **extra):
    parts = PARTS[part]()
    masks = [*parts.get("masks", []), *extra.get("masks", [])]
    return Retrieval(**{"reduction": "mean", **parts, **extra, "masks": masks})


def encode_items(features, corpus=CORPUS):
    return tf.gather(corpus, features["item_id"])


def call(task, queries=QUERIES, items=ITEMS, ids=IDS, corpus=CORPUS, **options):
    return task(
        queries,
        items,
        candidate_ids=ids,
        features={
            "index_items": CATALOGUE.gather(tf.constant([4, 0, 4, 8])),
            "rejected": tf.constant(REJECTED)[: tf.shape(ids)[0]],
            "user_id": tf.range(tf.shape(ids)[0]),
            "liked": tf.stack([(ids + 1) % N, -tf.ones_like(ids)], axis=1),
        },
        encode_items=lambda features: encode_items(features, corpus),
        **{"training": False, **options},
    )


def loss_and_gradients(task, queries=QUERIES, items=ITEMS, ids=IDS, corpus=CORPUS, **options):
    """The loss, and its gradient in the queries, the positives and the corpus."""
    inputs = [tf.convert_to_tensor(x) for x in (queries, items, corpus)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        loss = call(task, inputs[0], inputs[1], ids, inputs[2], **options)
    zero = tf.UnconnectedGradients.ZERO
    gradients = tape.gradient(loss, inputs, unconnected_gradients=zero)
    # The gradient of a gathered corpus is sparse.
    return loss, [tf.convert_to_tensor(g) for g in gradients]


# ------------------------------------------------------------------ the list is complete


# What a part is made of, and what parts have in common: tried through them.
INNER = (
    *(CatalogueDraws, CountedDraws, FeatureDrift, MemoryBank, QueryPool, QueryRows),
    *(RankedMiner, StepReport),
    *(Frequency, GivenMask, KerasLoss, Loss, Mask, Miner, Sampler, StepPart),
)


def public_parts():
    """Every part and layer that a module of the step defines."""
    found = set()
    for folder in ("step", "model"):
        package = importlib.import_module(f"tfrs_negatives.{folder}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            members = inspect.getmembers(importlib.import_module(module.name), inspect.isclass)
            found |= {
                kind
                for name, kind in members
                if kind.__module__ == module.name
                and not name.startswith("_")
                and kind not in INNER
                and issubclass(kind, (Part, tf.keras.layers.Layer))
            }
    return found


def test_every_public_part_is_in_the_list():
    # The task is the frame of every test here; the model has a file of its own.
    listed = {name.split(" ")[0] for name in PARTS} | {Retrieval.__name__, TwoTower.__name__}
    assert {kind.__name__ for kind in public_parts()} == listed


def test_every_public_part_is_a_public_name_and_saves_itself():
    for kind in public_parts():
        # `Affinity` is built by the task, from its own arguments.
        public = {*tfrs_negatives.__all__, *dir(tfrs_negatives.losses), "Affinity"}
        assert kind.__name__ in public
        registered = tf.keras.utils.get_registered_name(kind)
        assert registered == f"tfrs_negatives>{kind.__name__}"


# ------------------------------------------------------------------ numbers


@every_part
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", pytest.param("float32", marks=SLOW)])
def test_any_float_dtype(part, dtype):
    half = [tf.cast(x, dtype) for x in (QUERIES, ITEMS, CORPUS)]
    loss, gradients = loss_and_gradients(build(part), half[0], half[1], corpus=half[2])
    assert loss.dtype == tf.float32
    assert {g.dtype.name for g in gradients} == {dtype}
    # The same rounded numbers in single precision.
    exact_inputs = [tf.cast(x, tf.float32) for x in half]
    expected, exact_gradients = loss_and_gradients(
        build(part), exact_inputs[0], exact_inputs[1], corpus=exact_inputs[2]
    )
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    for received, wanted in zip(gradients, exact_gradients, strict=True):
        np.testing.assert_allclose(tf.cast(received, tf.float32), wanted, rtol=2e-2, atol=2e-3)


@every_part
def test_a_half_precision_policy_changes_no_number(part):
    expected = float(call(build(part), training=True))
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        loss = float(call(build(part), training=True))
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    assert loss == pytest.approx(expected, rel=1e-6)


@every_part
# The scores have both signs.
@pytest.mark.parametrize("scale", [1e2, 1e6, pytest.param(-1e6, marks=SLOW)])
def test_extreme_scores(part, scale):
    # Scores of 1e4 and more in float16 too, where a product of this size is infinite.
    dtype = tf.float16 if abs(scale) < 1e3 else tf.float32
    queries = tf.cast(QUERIES * scale, dtype)
    loss, gradients = loss_and_gradients(
        build(part), queries, tf.cast(ITEMS * 1e2, dtype), corpus=CORPUS * 1e2
    )
    assert np.isfinite(float(loss))
    for gradient in gradients:
        assert np.isfinite(tf.cast(gradient, tf.float32)).all()


@every_part
def test_a_zero_vector_has_a_finite_gradient(part):
    _, gradients = loss_and_gradients(build(part), QUERIES * 0, ITEMS * 0)
    for gradient in gradients:
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("extreme", [1e4, -1e4, 1e37, -1e37])
@pytest.mark.parametrize("mined", [False, True])
def test_extreme_logits(extreme, mined):
    keep = tf.constant([[True, True, False], [False, True, True]])
    values = tf.constant([[0.0, extreme, -extreme], [extreme, extreme, 0.0]])
    positive = tf.constant([0.0, extreme])
    with tf.GradientTape() as tape:
        tape.watch([positive, values])
        logits = Scored(positive, values, keep)
        loss = SampledSoftmax()(Hardest(3).mine(logits, None) if mined else logits)
    gradients = tape.gradient(loss, [positive, values])
    # Row 0: one of 0 and one of `extreme` against 0. Row 1: one of `extreme`, one of 0.
    if extreme > 0:
        np.testing.assert_allclose(loss, [extreme, np.log(2)], rtol=1e-5)
        np.testing.assert_allclose(gradients[0], [-1.0, -0.5], rtol=1e-5)
        np.testing.assert_allclose(gradients[1], [[0, 1, 0], [0, 0.5, 0]], rtol=1e-5)
    else:
        np.testing.assert_allclose(loss, [np.log(2), -extreme], rtol=1e-5)
        np.testing.assert_allclose(gradients[0], [-0.5, -1.0], rtol=1e-5)
        np.testing.assert_allclose(gradients[1], [[0.5, 0, 0], [0, 0, 1]], rtol=1e-5)


def test_the_log_sum_of_an_empty_row_is_zero():
    keep = tf.constant([[False, False], [True, False]])
    values = tf.constant([[3.0, 4.0], [2.0, 9.0]])
    some, margin = masked_log_sum_exp(values, keep, positive=tf.constant([5.0, 0.5]))
    np.testing.assert_array_equal(some, [False, True])
    np.testing.assert_allclose(margin, [0.0, 1.5])


# ------------------------------------------------------------------ rows


@every_part
def test_all_columns_masked_is_loss_zero_and_gradient_zero(part):
    loss, gradients = loss_and_gradients(build(part, masks=[NobodyCounts()]))
    assert float(loss) == 0.0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@every_part
def test_a_masked_row_does_not_touch_the_others(part):
    rows = np.array([0, 1, 3, 4, 5])

    class RowTwoIsEmpty(Mask):
        def keep(self, scored, batch):
            return tf.ones_like(scored.keep) & (tf.range(B) != 2)[:, None]

    def weighted(mask, weights):
        return loss_and_gradients(build(part, masks=mask), sample_weight=weights)

    loss, gradients = weighted([RowTwoIsEmpty()], np.ones(B, np.float32))
    weights = np.isin(np.arange(B), rows).astype(np.float32)
    expected, expected_gradients = weighted([], weights)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    for received, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(received, wanted, atol=1e-7)


@every_part
def test_duplicates_of_the_positive_everywhere(part):
    ids = np.full(B, 4)
    loss, gradients = loss_and_gradients(build(part), ids=ids)
    assert np.isfinite(float(loss))
    task = build(part)
    assert float(loss) > 0 or any(isinstance(mask, AccidentalHits) for mask in task.masks)
    for gradient in gradients:
        assert np.isfinite(gradient).all()


@every_part
def test_one_row(part):
    loss, gradients = loss_and_gradients(build(part), QUERIES[:1], ITEMS[:1], IDS[:1])
    # A bank is empty at first.
    alone = {s.name for s in build(part).negatives} <= {"in_batch", "cross_batch"}
    assert (float(loss) == 0.0) == alone
    for gradient in gradients:
        assert np.isfinite(gradient).all()


# ------------------------------------------------------------------ eager, graph, XLA


@pytest.mark.parametrize(("part", "jit_compile"), GRAPHS)
def test_eager_equals_compiled(part, jit_compile):
    eager, compiled = build(part), build(part)
    step = tf.function(
        lambda q, i: loss_and_gradients(compiled, q, i, training=True), jit_compile=jit_compile
    )
    for _ in range(2):
        expected, expected_gradients = loss_and_gradients(eager, training=True)
        loss, gradients = step(QUERIES, ITEMS)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        for received, wanted in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_allclose(received, wanted, rtol=1e-4, atol=1e-6)
    for received, wanted in zip(compiled.variables, eager.variables, strict=True):
        np.testing.assert_allclose(received, wanted, rtol=1e-6)


@every_part
def test_a_batch_of_any_size(part):
    dynamic, eager = build(part), build(part)
    specs = [tf.TensorSpec([None, D]), tf.TensorSpec([None, D]), tf.TensorSpec([None], tf.int64)]

    @tf.function(input_signature=specs)
    def step(queries, items, ids):
        return call(dynamic, queries, items, ids, training=True)

    for size in (3, B, 1):
        batch = QUERIES[:size], ITEMS[:size], IDS[:size].astype(np.int64)
        expected = call(eager, *batch, training=True)
        np.testing.assert_allclose(step(*batch), expected, rtol=1e-5, atol=1e-7)


@every_part
@pytest.mark.parametrize(
    "budget",
    [pytest.param(48, id="blocks of 2"), pytest.param(200, id="blocks of 8", marks=SLOW)],
)
def test_in_blocks_equals_at_once(part, budget):
    at_once, in_blocks = build(part), build(part, logits_budget=budget)
    for _ in range(3):
        weights = np.arange(B).astype(np.float32)
        expected, expected_gradients = loss_and_gradients(
            at_once, sample_weight=weights, training=True
        )
        loss, gradients = loss_and_gradients(in_blocks, sample_weight=weights, training=True)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        for received, wanted in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_allclose(received, wanted, atol=1e-5)
    for received, wanted in zip(in_blocks.variables, at_once.variables, strict=True):
        np.testing.assert_allclose(received, wanted, rtol=1e-5)


# ------------------------------------------------------------------ save and resume


@every_part
def test_config_round_trip(part):
    task = build(part)
    config = tf.keras.utils.serialize_keras_object(task)
    again = tf.keras.utils.deserialize_keras_object(json.loads(json.dumps(config)))
    assert tf.keras.utils.serialize_keras_object(again) == config
    # What a table holds is in its weights.
    for mine, theirs in zip(again.variables, task.variables, strict=True):
        mine.assign(theirs)
    for _ in range(2):
        assert float(call(again, training=True)) == float(call(task, training=True))


@every_part
def test_saved_and_resumed_is_bit_equal(part, tmp_path):
    def train(task, batches):
        optimizer = tf.keras.optimizers.SGD(0.1)
        losses = []
        for number in batches:
            ids = np.roll(IDS, number)
            with tf.GradientTape() as tape:
                loss = call(task, ids=ids, training=True)
            if task.trainable_variables:
                optimizer.minimize(loss, task.trainable_variables, tape)
            losses.append(float(loss))
        return losses

    task, resumed = build(part), build(part)
    train(task, range(3))
    path = tf.train.Checkpoint(task=task).write(str(tmp_path / "saved"))
    tf.train.Checkpoint(task=resumed).read(path).assert_existing_objects_matched()
    assert train(resumed, range(3, 6)) == train(task, range(3, 6))
    for received, wanted in zip(resumed.variables, task.variables, strict=True):
        np.testing.assert_array_equal(received, wanted)


def test_affinity_alone_round_trips():
    # Inside a task it is built from the task's own arguments.
    affinity = Affinity("cosine", temperature=0.3, item_bias=ItemBias(["a", "b"], [3, 1]))
    config = tf.keras.utils.serialize_keras_object(affinity)
    again = tf.keras.utils.deserialize_keras_object(json.loads(json.dumps(config)))
    vectors, ids = np.array([[3.0, 4.0]], np.float32), tf.constant(["b"])
    expected = [[0.6, 0.8, 0.3 * np.log(0.25)]]
    np.testing.assert_allclose(again.retrieval_vectors(vectors, ids), expected, rtol=1e-6)


# ------------------------------------------------------------------ direction


@every_part
def test_ten_steps_lift_the_positive_above_the_negatives(part):
    start = [0.1 * x for x in (QUERIES, ITEMS, CORPUS)]
    queries, items, corpus = (tf.Variable(x) for x in start)
    task = build(part, reduction="sum")

    def margin():
        scores = queries.numpy() @ np.concatenate([items.numpy(), corpus.numpy()]).T
        own = np.diag(scores[:, :B])
        different = np.concatenate([IDS, np.arange(N)])[None, :] != IDS[:, None]
        return own - np.where(different, scores, 0).sum(axis=1) / different.sum(axis=1)

    before = margin()
    optimizer = tf.keras.optimizers.SGD(0.3)
    for _ in range(10):
        with tf.GradientTape() as tape:
            loss = call(task, queries, items, corpus=corpus, training=True)
        weights = [queries, items, *([corpus] if "in_batch" not in names(task) else [])]
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
    assert (margin() > before).all()
    assert margin().min() > 0


def names(task):
    return [source.name for source in task.negatives]
