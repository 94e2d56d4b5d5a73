from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from evaluation_cases import from_scores, log

from tfrs_negatives.data import RetrievalData
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.evaluation import evaluate
from tfrs_negatives.evaluation.held_out import hold_out
from tfrs_negatives.evaluation.summary import summarize
from tfrs_negatives.runs.config import load_config
from tfrs_negatives.runs.train import load_data

pytest.importorskip("implicit", reason="the extra `peers` is not installed")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks" / "quality"))

peer_models, peers = importlib.import_module("peer_models"), importlib.import_module("peers")

SHARED = ROOT.parent / "shared" / "data"
SIZES = {"embedding_dim": 8, "hidden": [], "output_dim": None}
SMALL = {
    "als": {"factors": 8, "alpha": 10, "regularization": 1.0, "iterations": 15},
    "bpr": {"factors": 8, "learning_rate": 0.1, "iterations": 300},
    "tfrs_tuned": {"sizes": SIZES, "batch_size": 40, "epochs": 20, "temperature": 1.0},
}
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")


@pytest.fixture(scope="module")
def ml100k():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        path = ROOT / "benchmarks/quality/configs/ml100k_thesis_in_batch_logq.yaml"
        return load_data(load_config(path))


def random_events(seed, *, num_users, num_items, num_events):
    rng = np.random.default_rng(seed)
    cells = rng.choice(num_users * num_items, num_events, replace=False)
    return np.stack(np.divmod(cells, num_items), axis=1)


# Ranking without vectors.


@pytest.mark.parametrize("levels", [2, 1000])
@pytest.mark.parametrize("chunk", [7, 100])
def test_a_ranking_by_scores_is_that_of_evaluate(levels, chunk, monkeypatch):
    monkeypatch.setattr(peer_models, "ROWS", chunk)
    scores = np.random.default_rng(levels).integers(0, levels, (30, 20)).astype(np.float32)
    model = from_scores(scores)
    events = random_events(0, num_users=30, num_items=20, num_events=400)
    # Users without a test event, and users who have seen almost everything.
    test, seen = log(*events[:120]), log(*events[120:], *[[0, item] for item in range(18)])
    expected = evaluate(model, test, ks=[1, 3, 20], exclude=seen, train=seen)
    held_out = hold_out(test, model.items, exclude=seen)
    ranks = peer_models.rank_by_scores(
        lambda features: scores[features["user_id"] - 100],
        held_out,
        ks=[1, 3, 20],
        num_items=20,
    )
    found = summarize(held_out, ranks, item_counts=seen.item_counts(model.items))
    assert found.counts == expected.counts
    assert found.metrics == pytest.approx(expected.metrics, abs=1e-12)


@needs_shared
def test_ease_on_movielens_is_ranked_as_by_evaluate(ml100k):
    model = peer_models.Ease(ml100k.train, ml100k.items, {"regularization": 400}, 0)

    class OneHot:
        items, similarity, query_signature = ml100k.items, "dot", {}

        def query_vectors(self, features):
            return model.scores(features)

        def item_vectors(self, features):
            return tf.one_hot(self.items.rows(features["movie_id"]), len(self.items))

    ks = [1, 10, 100]
    expected = evaluate(OneHot(), ml100k.test, ks=ks, exclude=ml100k.train, train=ml100k.train)
    found = peer_models.measure(model, ml100k, ks=ks)
    assert found.metrics == pytest.approx(expected.metrics, abs=1e-6)
    # The most popular items alone reach half of it.
    assert found.metrics["recall_at_10"] > 0.2


# The models.


@pytest.mark.parametrize("num_users", [12, 40])
@pytest.mark.parametrize(("chunk", "largest"), [(5, 100), (100, 7)])
def test_ease_is_the_closed_form(num_users, chunk, largest, monkeypatch):
    monkeypatch.setattr(peer_models, "ROWS", chunk)
    monkeypatch.setattr(peer_models, "LAPACK_ROWS", largest)
    events = random_events(1, num_users=num_users, num_items=25, num_events=150)
    items = ItemCatalogue(100 + np.arange(25))
    model = peer_models.Ease(log(*events), items, {"regularization": 3.0}, 0)
    seen = np.zeros([num_users, 25])
    seen[tuple(events.T)] = 1
    inverse = np.linalg.inv(seen.T @ seen + 3.0 * np.eye(25))
    weights = np.eye(25) - inverse / np.diag(inverse)
    assert np.abs(np.diag(weights)).max() < 1e-12
    features = {"user_id": 100 + np.arange(num_users)[::-1]}
    np.testing.assert_allclose(model.scores(features), seen[::-1] @ weights, atol=2e-5)
    assert not model.scores({"user_id": np.array([99])}).any()


def clubs(num_clubs=4, size=6):
    """Every user has chosen two thirds of the items of one club and will choose the others."""
    users, places = np.divmod(np.arange(30 * size), size)
    events = np.stack([users, users % num_clubs + num_clubs * places], axis=1)
    is_test = (users // num_clubs + places) % 3 == 0
    ids = 100 + np.random.default_rng(0).permutation(num_clubs * size)
    return RetrievalData(log(*events[~is_test]), log(*events[is_test]), ItemCatalogue(ids), "clubs")


# EASE has its closed form above, and both kinds of BPR are one training.
@pytest.mark.parametrize("method", ["als", "bpr", "tfrs_tuned"])
def test_every_peer_learns_who_belongs_where(method):
    settings = {**peers.METHODS[method].base["gowalla"], **SMALL[method]}
    data = clubs()
    model = peer_models.MODELS[method](data.train, data.items, settings, 0)
    assert peer_models.measure(model, data, ks=[2]).metrics["recall_at_2"] > 0.95


@pytest.mark.parametrize("method", ["als", "bpr"])
def test_factors_rank_as_implicit_does(method, monkeypatch):
    trained = []
    name = {"als": "AlternatingLeastSquares", "bpr": "BayesianPersonalizedRanking"}[method]
    make = getattr(peer_models, name)
    monkeypatch.setattr(
        peer_models, name, lambda **options: trained.append(make(**options)) or trained[0]
    )
    events = random_events(2, num_users=40, num_items=30, num_events=500)
    items = ItemCatalogue(100 + np.arange(30)[::-1])
    data = RetrievalData(log(*events[:400]), log(*events[400:]), items, "random")
    settings = {**peers.METHODS[method].base["gowalla"], "factors": 8}
    model = peer_models.MODELS[method](data.train, items, settings, 3)
    matrix = peer_models.Histories(data.train, items).matrix[:40]
    listed, _ = trained[0].recommend(np.arange(40), matrix, N=5)
    wanted = [set(29 - events[400:][events[400:, 0] == user, 1]) for user in range(40)]
    recalls = [
        len(w & set(rows)) / len(w) for w, rows in zip(wanted, listed.tolist(), strict=True) if w
    ]
    found = peer_models.measure(model, data, ks=[5]).metrics["recall_at_5"]
    assert found == pytest.approx(np.mean(recalls), abs=1e-9)


def test_a_user_without_training_events_is_ranked_too():
    events = random_events(3, num_users=20, num_items=15, num_events=150)
    items = ItemCatalogue(100 + np.arange(15))
    settings = {**peers.METHODS["bpr"].base["gowalla"], "factors": 4}
    model = peer_models.train_bpr(log(*events), items, settings, 0)
    vectors = model.query_vectors({"user_id": np.array([100, 999])}).numpy()
    # Of an unknown user only the bias counts, and popularity where it has a weight.
    assert vectors[1].tolist() == [0.0] * 4 + [1.0, 1.0]
    assert np.abs(vectors[0, :4]).min() > 0


def test_popularity_is_added_to_the_scores_of_bpr():
    events = random_events(4, num_users=20, num_items=15, num_events=90)
    items, train = ItemCatalogue(100 + np.arange(16)[::-1]), log(*events)
    plain = {**peers.METHODS["bpr"].base["gowalla"], "factors": 4}
    users = {"user_id": np.arange(100, 120)}
    scores = []
    for settings in (plain, {**plain, "log_popularity": 0.5}):
        model = peer_models.train_bpr(train, items, settings, 0)
        scores.append(model.query_vectors(users) @ tf.transpose(model.item_vectors(items.features)))
    counts = np.bincount(events[:, 1], minlength=16)[::-1]
    added = 0.5 * np.log(np.maximum(counts, 1))
    np.testing.assert_allclose(scores[1] - scores[0], np.tile(added, (20, 1)), atol=1e-5)


def summed_softmax(users, items, rows, probability, settings):
    if settings["normalize"]:
        users, items = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (users, items))
    logits = users @ items.T / settings["temperature"]
    if settings["candidate_sampling_probability"]:
        logits -= np.log(probability)[rows]
    if settings["remove_accidental_hits"]:
        logits[(rows == rows[:, None]) & ~np.eye(len(rows), dtype=bool)] = -np.inf
    return np.sum(np.log(np.exp(logits).sum(axis=1)) - np.diag(logits))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_loss_of_the_tutorial_is_the_summed_softmax(normalize, corrected, masked):
    settings = {
        "normalize": normalize,
        "temperature": 0.5,
        "remove_accidental_hits": masked,
        "candidate_sampling_probability": corrected,
    }
    data = clubs()
    counts = np.arange(1, 1 + len(data.items))
    tf.keras.utils.set_random_seed(0)
    towers = [
        peer_models.build_tower(peer_models.infer_features(columns), **SIZES)
        for columns in (data.train.query_features, data.items.features)
    ]
    for tower in towers:
        # Far from 0, where all logits are alike.
        tower.set_weights([weight * 20 for weight in tower.get_weights()])
    model = peer_models.TutorialModel(*towers, data.items, counts, settings)
    batch = {"user_id": tf.constant([100, 101, 104]), "item_id": tf.constant([104, 105, 104])}
    users, items = (t({n: batch[n]}).numpy() for t, n in zip(towers, batch, strict=True))
    rows = data.items.rows(batch["item_id"]).numpy()
    expected = summed_softmax(users, items, rows, counts / counts.sum(), settings)
    np.testing.assert_allclose(model.compute_loss(batch, training=True), expected, rtol=1e-4)


# The choice of settings.


def test_each_stage_begins_with_the_best_so_far_and_never_sees_the_test(monkeypatch):
    data = clubs()
    stages = [peers.over(a=(1, 2, 3)), peers.over(b=(5, 4)), peers.over(a=(4,))]
    fake = peers.Method("none", {"gowalla": {"a": 0, "b": 0}}, {"gowalla": stages})
    monkeypatch.setitem(peers.METHODS, "fake", fake)
    seen = []

    def train_and_measure(method, config, cut, settings, seed):
        seen.append(cut)
        value = settings["b"] - (settings["a"] - 2) ** 2
        return {"seed": seed, "test": {"recall_at_20": value}, "seconds": 0.0}

    monkeypatch.setattr(peers, "_train_and_measure", train_and_measure)
    grid = peers.try_settings("fake", "gowalla", None, data)
    tried = [(point["settings"]["a"], point["settings"]["b"]) for point in grid]
    assert tried == [(1, 0), (2, 0), (3, 0), (2, 5), (2, 4), (4, 5)]
    assert [point["held_out"] for point in grid] == [-1, 0, -1, 5, 4, 1]
    for cut in seen:
        assert len(cut.test) == round(0.1 * len(data.train))
        assert pairs_of(cut.train) | pairs_of(cut.test) == pairs_of(data.train)
        assert not pairs_of(cut.train) & pairs_of(cut.test)


def pairs_of(events):
    users = events.query_features["user_id"].tolist()
    return set(zip(users, events.item_ids.tolist(), strict=True))


def test_a_result_holds_the_settings_that_were_best(monkeypatch):
    config = load_config(
        ROOT / "benchmarks/quality/configs/gowalla_in_batch_logq.yaml", ["evaluation.ks=[2,20]"]
    )
    events = random_events(4, num_users=40, num_items=60, num_events=900)
    items = ItemCatalogue(100 + np.arange(60))
    data = RetrievalData(log(*events[:700]), log(*events[700:]), items, "random")
    monkeypatch.setattr(peers, "_load", lambda _, seed: (config, replace(data, name=str(seed))))
    stages = {"gowalla": [peers.over(regularization=(1e-2, 1.0, 1e2))]}
    monkeypatch.setitem(peers.METHODS, "ease", peers.METHODS["ease"]._replace(stages=stages))
    result = peers.run_peer("ease", "gowalla", [4, 5])
    assert [(run["seed"], run["data"]) for run in result["runs"]] == [(4, "4"), (5, "5")]
    grid = {p["settings"]["regularization"]: p["held_out"] for p in result["config"]["grid"]}
    chosen = result["config"]["chosen"]
    assert grid[chosen["regularization"]] == max(grid.values()) > min(grid.values())
    model = peer_models.Ease(data.train, items, chosen, 0)
    expected = peer_models.measure(model, data, ks=[2, 20]).metrics
    assert result["runs"][1]["test"] == result["mean"] == expected
    assert set(result["deviation"].values()) == {0.0}
