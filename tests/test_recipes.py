"""The recipes: which parts they are made of."""

import numpy as np
import pytest
import tensorflow as tf

from tfrs_negatives import losses
from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.model.recipes import (
    adaptive_importance_resampling,
    batch_importance_resampling,
    batch_mix,
    bayesian_negative_sampling,
    cache_augmented_resampling,
    cross_batch_negative_sampling,
    cross_batch_ngame,
    dynamic_negative_sampling,
    frequency_table,
    in_batch,
    mixed_cross_batch_negative_sampling,
    mixed_negative_sampling,
    ngame,
    reinforced_negative_sampling,
    sampled_softmax_mlp,
    simplified_robust,
    uniform_negative_sampling,
)
from tfrs_negatives.step.masks.keep import AccidentalHits
from tfrs_negatives.step.masks.known_positives import KnownPositives
from tfrs_negatives.step.miners import (
    BatchMix,
    Hardest,
    LeastBayesianRisk,
    Resample,
    WithinPositiveRadius,
)

ITEMS = ItemCatalogue(list(range(3000)))


def test_sources():
    assert [source.name for source in in_batch(ITEMS).negatives] == ["in_batch"]
    sources = mixed_negative_sampling(ITEMS, num_uniform=7).negatives
    assert [source.name for source in sources] == ["in_batch", "uniform"]
    assert sources[1].num_negatives == 7


def test_uniform_draws_need_no_correction_and_no_frequency():
    task = uniform_negative_sampling(ITEMS, num_uniform=9)
    assert [source.name for source in task.negatives] == ["uniform"]
    assert task.negatives[0].num_negatives == 9
    assert task.frequency is None
    assert task.correction.policy is None
    assert [type(mask) for mask in task.masks] == [AccidentalHits]


@pytest.mark.parametrize(
    ("correct", "masks"), [("both", []), ("negatives", [AccidentalHits]), (None, [AccidentalHits])]
)
def test_copies_of_the_positive_stay_only_where_it_is_corrected(correct, masks):
    for recipe in (in_batch, mixed_negative_sampling):
        assert [type(mask) for mask in recipe(ITEMS, correct=correct).masks] == masks


LOG = Interactions({"user": np.array([1, 2])}, np.array([7, 9]), query_key="user")


def test_hard_recipes_leave_out_what_the_query_has_chosen():
    for recipe in (ngame, cross_batch_ngame):
        task = recipe(ITEMS, history=LOG, slack=2.5)
        assert [type(mask) for mask in task.masks] == [KnownPositives]
        assert [(type(miner), miner.slack) for miner in task.miners] == [
            (WithinPositiveRadius, 2.5)
        ]
        assert task.correction.policy == "both"
    assert [source.name for source in cross_batch_ngame(ITEMS, history=LOG).negatives] == [
        "in_batch",
        "cross_batch",
    ]


def test_the_hinge_of_ngame_is_two_options():
    loss = losses.TripletHinge(3.0, focus=1.0)
    task = ngame(ITEMS, history=LOG, correct=None, miners=[Hardest(10)], loss=loss)
    assert task.loss_function is loss
    assert [type(miner) for miner in task.miners] == [Hardest]


def test_dynamic_negative_sampling_takes_m_of_n():
    task = dynamic_negative_sampling(ITEMS, num_hardest=3, num_uniform=50)
    assert [(source.name, source.num_negatives) for source in task.negatives] == [("uniform", 50)]
    assert [miner.k for miner in task.miners] == [3]
    assert isinstance(task.loss_function, losses.BPR)
    assert [type(mask) for mask in task.masks] == [AccidentalHits]
    known = dynamic_negative_sampling(ITEMS, history=LOG)
    assert [type(mask) for mask in known.masks] == [KnownPositives]


def test_resampling_is_of_the_batch_or_of_batch_and_cache():
    task = batch_importance_resampling(ITEMS, num_resampled=9, reuse_scores=False)
    assert [source.name for source in task.negatives] == ["in_batch"]
    assert [(type(m), m.num, m.reuse_scores) for m in task.miners] == [(Resample, 9, False)]
    assert [type(mask) for mask in task.masks] == [AccidentalHits]
    assert task.correction.policy == "negatives"
    cached = cache_augmented_resampling(ITEMS, num_cached=5, cache_share=0.25, decay=0.5)
    batch, cache = cached.negatives
    assert (batch.name, batch.weight, cache.name, cache.weight) == (
        "in_batch", 0.75, "id_cache", 0.25,
    )  # fmt: skip
    assert (cache.sampler.num_negatives, cache.sampler.decay) == (5, 0.5)
    assert cached.miners[0].reuse_scores


def test_without_a_share_of_the_cache_it_is_batch_importance_resampling():
    rng = np.random.default_rng(0)
    vectors, ids = rng.normal(size=(2, 8, 4)).astype(np.float32), rng.integers(0, 3000, 8)

    def losses_of(task):
        call = {"candidate_ids": ids, "encode_items": lambda _: tf.ones([16, 4])}
        return [float(task(*vectors, training=True, **call)) for _ in range(3)]

    settings = {"num_resampled": 5, "similarity": "dot", "temperature": 1.0}
    without = cache_augmented_resampling(ITEMS, num_cached=16, cache_share=0.0, **settings)
    some = cache_augmented_resampling(ITEMS, num_cached=16, cache_share=0.1, **settings)
    expected = losses_of(batch_importance_resampling(ITEMS, **settings))
    assert losses_of(without) == pytest.approx(expected, rel=1e-6)
    assert losses_of(some) != pytest.approx(expected, rel=1e-3)


def test_mixtures_have_their_share_of_the_loss():
    task = batch_mix(ITEMS, num_mixed=7, mixed_share=0.3, mixing_temperature=0.5)
    assert [(type(m), m.num, m.temperature) for m in task.miners] == [(BatchMix, 7, 0.5)]
    assert task.loss_function.hard_share == 0.3
    assert [source.name for source in task.negatives] == ["in_batch"]


def test_bayesian_negatives_know_the_history_and_the_popularity():
    task = bayesian_negative_sampling(ITEMS, history=LOG, num_uniform=6, num_candidates=4)
    assert [(source.name, source.num_negatives) for source in task.negatives] == [("uniform", 6)]
    assert [type(mask) for mask in task.masks] == [KnownPositives]
    (miner,) = task.miners
    assert (type(miner), miner.num_candidates, miner.unbias_weight) == (LeastBayesianRisk, 4, 5.0)
    # One event each of items 7 and 9.
    assert np.flatnonzero(miner.counts).tolist() == [7, 9]
    with pytest.raises(InputError, match="counts"):
        bayesian_negative_sampling(ITEMS, history=None)


def test_pools_of_queries_need_a_log_and_keep_its_items_out():
    task = adaptive_importance_resampling(ITEMS, history=LOG, pool_size=9, num_proposals=30)
    (pool,) = task.negatives
    assert (pool.pool_size, pool.proposals.num_negatives, pool.num_negatives) == (9, 30, 5)
    assert [type(mask) for mask in pool.masks + task.masks] == [KnownPositives] * 2
    assert isinstance(task.loss_function, losses.BPR)
    with pytest.raises(InputError, match="`history`"):
        adaptive_importance_resampling(ITEMS)


@pytest.mark.parametrize(
    "recipe",
    [
        in_batch,
        uniform_negative_sampling,
        mixed_negative_sampling,
        cross_batch_negative_sampling,
        mixed_cross_batch_negative_sampling,
        lambda items, **options: ngame(items, history=LOG, **options),
        lambda items, **options: cross_batch_ngame(items, history=LOG, **options),
        dynamic_negative_sampling,
        batch_importance_resampling,
        cache_augmented_resampling,
        batch_mix,
        lambda items, **options: bayesian_negative_sampling(items, history=LOG, **options),
        lambda items, **options: sampled_softmax_mlp(items, history=LOG, **options),
        lambda items, **options: adaptive_importance_resampling(items, history=LOG, **options),
        lambda items, **options: simplified_robust(items, history=LOG, **options),
        lambda items, **options: reinforced_negative_sampling(items, history=LOG, **options),
    ],
)
def test_recipes_take_the_mean_over_the_batch(recipe):
    assert recipe(ITEMS).reduction == "mean"
    assert recipe(ITEMS, reduction="sum").reduction == "sum"


def test_options_win_over_the_recipe():
    task = in_batch(ITEMS, masks=[AccidentalHits()], temperature=0.3, similarity="dot")
    assert [type(mask) for mask in task.masks] == [AccidentalHits]
    assert (task.affinity.temperature, task.affinity.similarity) == (0.3, "dot")


def test_the_table_has_four_buckets_per_item():
    assert frequency_table(ITEMS).num_buckets == 12_000
    assert frequency_table(ItemCatalogue([1])).num_buckets == 1024
