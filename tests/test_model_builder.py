"""What a configuration becomes: masks of the hard recipes, the curriculum of the clusters."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfrs_negatives.core.errors import InputError, bad_input
from tfrs_negatives.data import Interactions, RetrievalData
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.runs.build import build_batches, build_model
from tfrs_negatives.runs.config import load_config
from tfrs_negatives.step.records import Candidates, Sampler

SMALL = ["model.embedding_dim=2", "model.hidden=[4]", "model.output_dim=2"]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    users = np.concatenate([np.arange(80), rng.integers(0, 80, 120)])
    log = Interactions({"user": users}, rng.integers(0, 9, 200), query_key="user")
    return RetrievalData(log, log, ItemCatalogue(np.arange(9)), "small")


def task_of(data, *overrides):
    return build_model(load_config(overrides=[*SMALL, *overrides]), data).task


@pytest.mark.parametrize("recipe", ["ngame", "cross_batch_ngame", "dynamic_negative_sampling"])
def test_hard_recipes_leave_out_the_history(data, recipe):
    (mask,) = task_of(data, f"task.recipe={recipe}").masks
    # Every user of the log is known to it.
    assert (type(mask).__name__, mask.num_queries) == ("KnownPositives", 80)
    both = task_of(data, f"task.recipe={recipe}", "task.masks=[accidental_hits, known_positives]")
    assert [type(mask).__name__ for mask in both.masks] == ["AccidentalHits", "KnownPositives"]


@pytest.mark.parametrize(
    "recipe",
    [pytest.param("cross_batch_ngame", marks=pytest.mark.slow), "dynamic_negative_sampling"],
)
def test_an_expansion_given_back_trains_the_same(data, recipe, tmp_path):
    asked = load_config(overrides=[*SMALL, f"task.recipe={recipe}"])
    (tmp_path / "shown.yaml").write_text(asked.to_yaml())
    losses = []
    for config in (asked, load_config(tmp_path / "shown.yaml")):
        tf.keras.utils.set_random_seed(0)
        model = build_model(config, data)
        batches = data.train.dataset(50, item_key="item_id", seed=0)
        losses.append(model.fit(batches, epochs=2, verbose=0).history["loss"])
    assert losses[0] == losses[1]


def test_what_the_run_provides_reaches_the_parts(data):
    parts = "{popularity: {num_negatives: 3}}, {cross_batch: {capacity: 64, max_drift: 0.5}}"
    task = task_of(data, f"task.negatives=[in_batch, {parts}]", "task.frequency=exact")
    _, popularity, bank = task.negatives
    assert popularity.counts.tolist() == data.train.item_counts(data.items).tolist()
    assert popularity.items is bank.drift.items is data.items
    shares = task.frequency.log_probability(data.items.keys)
    np.testing.assert_allclose(np.exp(shares), popularity.counts / 200, rtol=1e-6)


def test_a_table_of_frequencies_has_four_buckets_an_item_unless_it_says_how_many(data):
    many = RetrievalData(data.train, data.test, ItemCatalogue(np.arange(700)), "many")
    assert task_of(many).frequency.num_buckets == 2800
    assert task_of(data).frequency.num_buckets == 1024
    written = "task.frequency={streaming: {num_buckets: 77, method: interval}}"
    frequency = task_of(data, written).frequency
    assert (frequency.num_buckets, frequency.method) == (77, "interval")


def test_a_part_within_a_part(data):
    inner = "{weighted: {sampler: {uniform: {num_negatives: 5}}, weight: 0.5}}"
    task = task_of(data, f"task.negatives=[in_batch, {inner}]")
    assert (task.negatives[1].weight, task.negatives[1].sampler.num_negatives) == (0.5, 5)


def test_what_the_constructor_refuses_only_here_names_the_whole_key():
    log = Interactions({"user": np.arange(3)}, np.arange(3))
    data = RetrievalData(log, log, ItemCatalogue(np.arange(3)), "no key")
    key = r"`task\.masks\[0\]\.known_positives\.history\.query_key`"
    with pytest.raises(InputError, match=key):
        task_of(data, "task.recipe=dynamic_negative_sampling")
    # Where every event is a query of its own, its positive is all of its history.
    (mask,) = task_of(
        data, "task.recipe=dynamic_negative_sampling", "task.masks=[accidental_hits]"
    ).masks
    assert type(mask).__name__ == "AccidentalHits"


def test_a_run_takes_the_mean_over_the_batch(data):
    assert build_model(load_config(overrides=SMALL), data).task.reduction == "mean"


def test_random_batches_need_no_clusters(data):
    assert build_batches(load_config(), data, item_key="item_id") is None
    random = load_config(overrides=["task.recipe=ngame", "batches.order=random"])
    assert build_batches(random, data, item_key="item_id") is None
    clustered = load_config(overrides=["task.recipe=ngame"])
    assert build_batches(clustered, data, item_key="item_id") is not None


@pytest.mark.parametrize(
    ("epochs", "sizes"), [(4, [1, 2, 4, 8]), (8, [1, 1, 2, 2, 4, 4, 8, 8]), (2, [1, 2])]
)
def test_by_itself_the_size_doubles_until_few_clusters_are_left(data, epochs, sizes):
    # 80 users, at least 10 clusters: three doublings.
    keys = ["batches.order=clustered", f"train.epochs={epochs}"]
    batches = build_batches(load_config(overrides=keys), data, item_key="item_id")
    assert [80 / batches.num_clusters(epoch) for epoch in range(epochs)] == sizes


def test_a_curriculum_of_ones_own(data):
    keys = ["batches.cluster_size=3", "batches.double_every=2", "batches.max_cluster_size=5"]
    config = load_config(overrides=["batches.order=clustered", *keys])
    batches = build_batches(config, data, item_key="item_id")
    assert [batches.cluster_size(epoch) for epoch in range(5)] == [3, 3, 5, 5, 5]


BARE = ["model.hidden=[]", "model.output_dim=null", "model.embedding_dim=4"]


def test_the_learning_rate_falls_to_nothing_over_all_epochs(data):
    keys = ["train.schedule=cosine", "train.epochs=3", "train.batch_size=50"]
    optimizer = build_model(load_config(overrides=[*BARE, *keys]), data).optimizer
    schedule = optimizer._learning_rate
    # 200 events are 4 steps an epoch.
    rates = [float(schedule(step)) for step in (0, 6, 12)]
    assert rates == pytest.approx([0.003, 0.0015, 0.0])


def test_rows_of_length_1(data):
    model = build_model(load_config(overrides=[*BARE, "train.unit_rows=true"]), data)
    model.fit(data.train.dataset(50, item_key="item_id"), verbose=0)
    for tower in (model.query_tower, model.item_tower):
        (table,) = tower.trainable_variables
        lengths = np.linalg.norm(table.numpy(), axis=1)
        # All but the rows of the unknown and of the padding.
        assert np.isclose(lengths, 1, atol=1e-5).sum() == len(lengths) - 2


@pytest.mark.parametrize(
    "wrong",
    ["model.hidden=[4]", "model.output_dim=4", "model.similarity=dot", "train.optimizer=adagrad"],
)
def test_rows_of_length_1_are_refused_elsewhere(wrong):
    with pytest.raises(InputError, match=r"train\.unit_rows"):
        load_config(overrides=[*BARE, "train.unit_rows=true", wrong])


# ------------------------------------------------------------------ parts of one's own


class Newest(Sampler):
    """The newest items of the catalogue: what a user's own module may hold."""

    name = "newest"

    def __init__(self, items: ItemCatalogue, num_negatives: int):
        if num_negatives > len(items):
            raise bad_input("num_negatives", f"at most {len(items)}", num_negatives)
        self.items, self.num_negatives = items, num_negatives

    def sample(self, batch):
        rows = tf.range(len(self.items) - self.num_negatives, len(self.items), dtype=tf.int64)
        vectors = batch.encode_items(self.items.gather(rows))
        return Candidates(self.items.keys_at(rows), vectors, tf.ones_like(rows, tf.bool))

    def log_count(self, ids, batch):
        newest = self.items.rows_of_keys(ids) >= len(self.items) - self.num_negatives
        return tf.where(newest, 0.0, -np.inf)


def test_a_sampler_of_ones_own_is_trained_from_yaml(data, tmp_path):
    path = tmp_path / "run.yaml"
    own = f"{__name__}:Newest"
    path.write_text(f"task: {{negatives: [in_batch, {{{own}: {{num_negatives: 4}}}}]}}\n")
    config = load_config(path, [*SMALL, f"task.negatives.{own}.num_negatives=3"])
    model = build_model(config, data)
    history = model.fit(data.train.dataset(50, item_key="item_id"), epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert model.task.negatives[1].num_negatives == 3
    # What it may be depends on the log, which is not there when the file is read.
    with pytest.raises(InputError, match=r"`task\.negatives\[1\].*:Newest\.num_negatives`.*most 9"):
        task_of(data, f"task.negatives=[in_batch, {{{own}: {{num_negatives: 10}}}}]")


def wide_tower(specs, options):
    """The smallest tower of one's own: ids only, as wide as the section says."""
    (key,) = [spec for spec in specs if spec.name in ("user", "item_id")]
    inputs = tf.keras.Input([], name=key.name, dtype=key.dtype)
    rows = tf.keras.layers.IntegerLookup(vocabulary=key.vocabulary)(inputs)
    vectors = tf.keras.layers.Embedding(len(key.vocabulary) + 1, options.embedding_dim)(rows)
    return tf.keras.Model({key.name: inputs}, vectors)


def test_a_tower_of_ones_own(data):
    keys = [f"model.{side}_tower={__name__}:wide_tower" for side in ("query", "item")]
    model = build_model(load_config(overrides=[*SMALL, *keys]), data)
    assert len(model.item_tower.trainable_variables) == 1
    assert model.item_vectors(data.items.features).shape == (9, 2)
    with pytest.raises(InputError, match=r"`model\.query_tower`"):
        build_model(load_config(overrides=[*SMALL, "model.query_tower=nowhere:tower"]), data)
