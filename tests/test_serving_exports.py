"""Real exports in service: changes meet the item tower of the export that takes over."""

import threading
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from index_cases import NUM_USERS, make_model

from tfrs_negatives.index import build_index, export_index
from tfrs_negatives.runs.tables import write_columns
from tfrs_negatives.serve.answers import answer_batch
from tfrs_negatives.serve.app import create_app
from tfrs_negatives.serve.deployment import Deployment, KeptItem
from tfrs_negatives.serve.schemas import Recommend

NUM_ITEMS, NEW = 60, 999


def export_of(model, folder):
    export_index(build_index(model), folder / "index", ks=[3], check=False, overwrite=True)


def score(model, user, row):
    return float(model.item_table[row].numpy() @ model.user_table[user].numpy())


@pytest.fixture(scope="module")
def models():
    # The rows of an item's features are others than that of its id.
    return make_model(NUM_ITEMS, seed=0), make_model(NUM_ITEMS, seed=1)


@pytest.fixture
def deployment(models, tmp_path):
    users = {"user_id": np.arange(NUM_USERS)}
    write_columns(tmp_path / "queries.parquet", users, query_key="user_id")
    ids = np.sort(models[0].items.ids)
    write_columns(tmp_path / "items.parquet", {"id": ids, "training_events": ids})
    export_of(models[0], tmp_path)
    deployment = Deployment(tmp_path, "first")
    deployment.load()
    return deployment


def ranking(deployment, user):
    request = Recommend(query_id=user, k=NUM_ITEMS)
    (answer,) = answer_batch(deployment.served, [request])
    return {item.id: item.score for item in answer.items}


def test_upserts_are_encoded_anew_and_deletions_stay(models, deployment):
    old, new = models
    gone = int(old.items.ids[4])
    deployment.upsert({NEW: KeptItem({"row": 7})})
    deployment.delete([str(gone)])
    before = ranking(deployment, 5)
    assert before[NEW] == pytest.approx(score(old, 5, 7), abs=1e-5)
    assert gone not in before

    export_of(new, deployment.folder)
    deployment.refresh()
    assert (deployment.num_swaps, deployment.num_refused) == (1, 0)
    after = ranking(deployment, 5)
    assert after[NEW] == pytest.approx(score(new, 5, 7), abs=1e-5)
    assert abs(after[NEW] - before[NEW]) > 0.1
    assert gone not in after
    rows = {int(item): row for row, item in enumerate(new.items.ids)}
    expected = {i: score(new, 5, rows[i]) for i in after if i != NEW}
    assert len(expected) == NUM_ITEMS - 1
    for item, value in expected.items():
        assert after[item] == pytest.approx(value, abs=1e-5)


def test_a_damaged_export_is_refused_with_the_file_named(models, deployment, caplog):
    before = ranking(deployment, 5)
    export_of(models[1], deployment.folder)
    file = next((deployment.folder / "index" / "variables").glob("variables.data*"))
    file.write_bytes(file.read_bytes()[:-1])
    deployment.refresh()
    assert (deployment.num_swaps, deployment.num_refused) == (0, 1)
    assert str(file) in caplog.text
    assert ranking(deployment, 5) == before
    deployment.refresh()
    assert deployment.num_refused == 1


def test_requests_of_all_lengths_in_one_batch(models, deployment):
    ids = [int(item) for item in models[0].items.ids]
    requests = [
        Recommend(query_id=user, k=1 + user % 9, exclude=ids[: 3 * user]) for user in range(12)
    ]
    for user, answer in enumerate(answer_batch(deployment.served, requests)):
        left = {i: score(models[0], user, row) for row, i in enumerate(ids) if row >= 3 * user}
        expected = sorted(left, key=left.get, reverse=True)[: 1 + user % 9]
        assert [item.id for item in answer.items] == expected


def test_a_query_passes_the_modules_that_the_page_lists(deployment):
    root = Path(__file__).parents[1]
    page = (root / "docs" / "architecture.md").read_text()
    section = page.split("## An HTTP query to ids")[1].split("\n## ")[0]
    hops = [
        line.split("`")[1]
        for line in section.splitlines()
        if line[:3] in {f"| {n}" for n in range(1, 8)}
    ]
    looked_up = {name for name in section.split("`")[1::2] if "/" in name} - set(hops)
    deployment.upsert({NEW: KeptItem({"row": 7})})
    body = {"query_id": 3, "k": 5, "exclude": [NEW]}
    passed = []

    def record(frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(root / "tfrs_negatives"):
            passed.append(path.relative_to(root / "tfrs_negatives").with_suffix("").as_posix())

    threading.setprofile(record)
    try:
        with TestClient(create_app([deployment], look_every=3600)) as client:
            client.post("/recommend", json=body)  # traces graphs
            passed.clear()
            assert len(client.post("/recommend", json=body).json()["items"]) == 5
    finally:
        threading.setprofile(None)
    first = list(dict.fromkeys(passed))
    assert [name for name in first if name in hops] == hops
    assert set(first) - set(hops) <= looked_up
