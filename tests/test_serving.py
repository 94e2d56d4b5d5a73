"""The endpoints, what is in service, and who may ask."""

import asyncio
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from serving_cases import (
    ITEM_IDS,
    NUM_ITEMS,
    USERS,
    FakeIndex,
    deploy,
    events,
    open_fake,
    write_export,
    write_run,
)

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.index.live.delta import DeltaIndex
from tfrs_negatives.serve.app import LOOPBACK_NAMES, create_app
from tfrs_negatives.serve.deployment import Deployment, KeptItem


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "first")


@contextmanager
def client_of(*deployments, **options):
    app = create_app(deployments, look_every=0.02, **options)
    with TestClient(app, base_url="http://localhost") as client:
        yield client


@pytest.fixture
def deployment(run_folder):
    return deploy(run_folder)


@pytest.fixture
def client(deployment):
    with client_of(deployment) as client:
        yield client


def best(user, k, *, index=None, without=(), among=None):
    """ids and scores, worked out from the vectors of the index."""
    index = index or FakeIndex()
    scores = {i: float(v @ index.users[int(user[1:])]) for i, v in index.vectors.items()}
    kept = [i for i in scores if i not in without and (among is None or i in among)]
    ids = sorted(kept, key=lambda item: -scores[item])[:k]
    return ids, [scores[item] for item in ids]


def ids_of(answer):
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["items"]]


def recommend(client, **body):
    return client.post("/recommend", json=body)


# ------------------------------------------------------------------ recommendations


@pytest.mark.parametrize("query", [{"query_id": "u3"}, {"features": {"user": "u3", "age": 23}}])
def test_the_best_items_of_a_query_by_its_id_or_its_features(client, deployment, query):
    answer = recommend(client, **query, k=4).json()
    ids, scores = best("u3", 4)
    assert [item["id"] for item in answer["items"]] == ids
    assert [item["rank"] for item in answer["items"]] == [1, 2, 3, 4]
    np.testing.assert_allclose([item["score"] for item in answer["items"]], scores, rtol=1e-5)
    first = answer["items"][0]
    assert first["title"] == f"<b>Film & {ids[0]}</b>"
    assert first["training_events"] == ids[0] - ITEM_IDS[0]
    assert (answer["run"], answer["k"], answer["found"]) == ("first", 4, 4)
    export = deployment.served.export
    assert answer["export"] == {"created": "export 0", "checksum": export.checksum}


def test_k_is_ten_without_being_said(client):
    assert len(ids_of(recommend(client, query_id="u0"))) == 10


def test_filters(client):
    top = best("u5", 6)[0]
    assert ids_of(recommend(client, query_id="u5", k=3, exclude=top[:3])) == top[3:]
    allowed = [top[5], top[1], 999]
    answer = recommend(client, query_id="u5", k=3, allow=allowed)
    assert ids_of(answer) == [top[1], top[5]]
    # What the filters leave is less than k: columns without an item are not sent.
    assert answer.json()["found"] == 2
    group = [item for item in ITEM_IDS.tolist() if item % 3 == 1]
    expected = best("u5", 5, among=group, without=top[:1])[0]
    answer = recommend(client, query_id="u5", k=5, allow_groups=[1], exclude=top[:1])
    assert ids_of(answer) == expected
    assert ids_of(recommend(client, query_id="u5", k=3, allow=[])) == []
    assert ids_of(recommend(client, query_id="u5", k=3, exclude=[])) == top[:3]


def test_the_history_is_left_out_where_that_is_asked_for(client, deployment):
    seen = deployment.served.tables.history.of("u4")[0]
    # Of the log, without the few events that the split keeps for the test.
    assert set(seen) <= {item for user, item, _ in events() if user == "u4"}
    assert len(seen) >= 4
    everything = ids_of(recommend(client, query_id="u4", k=NUM_ITEMS))
    assert set(everything) >= set(seen)
    rest = ids_of(recommend(client, query_id="u4", k=NUM_ITEMS, exclude_seen=True))
    assert rest == [item for item in everything if item not in seen]


def test_string_ids(tmp_path):
    folder = write_run(tmp_path / "strings", padding_id="")
    with client_of(deploy(folder)) as client:
        top = ids_of(recommend(client, query_id="u1", k=3))
        assert all(item.startswith("i/") for item in top)
        assert ids_of(recommend(client, query_id="u1", k=1, exclude=[top[0]])) == [top[1]]
        assert client.delete("/items", params={"id": top[0]}).status_code == 200
        assert ids_of(recommend(client, query_id="u1", k=2)) == top[1:]
        answer = recommend(client, query_id="u1", exclude=[5])
        assert answer.status_code == 422
        assert "`exclude`: expected strings, as the index has. Received: 5" in answer.text


# ------------------------------------------------------------------ batches


def test_concurrent_requests_form_batches_and_each_gets_its_own_answer(deployment):
    index = deployment.served.index
    index.hold()
    bodies = [{"query_id": user, "k": 1 + n % 7} for n, user in enumerate(USERS)]
    bodies[3]["exclude"] = best("u3", 2)[0]
    bodies[4]["allow"] = best("u4", 9)[0][5:]
    bodies[5]["allow_groups"] = [0, 2]
    bodies[6]["k"] = NUM_ITEMS + 1
    bodies[7] = {"features": {"user": "u7"}}

    answers = asyncio.run(ask_together(deployment, bodies))
    for n, (user, body, answer) in enumerate(zip(USERS, bodies, answers, strict=True)):
        if n in (6, 7):
            assert answer.status_code == 422, answer.text
            continue
        groups = body.get("allow_groups")
        among = body.get("allow") or (groups and [i for i in ITEM_IDS.tolist() if i % 3 in groups])
        expected = best(user, body["k"], without=body.get("exclude", []), among=among)[0]
        assert ids_of(answer) == expected
    # All but the first went together; those with a list of allowed items or groups are a kind each.
    assert sorted(index.sizes) == [1, 1, 1, 15]


async def ask_together(deployment, bodies):
    """The first one occupies the thread until all others wait."""
    app = create_app([deployment])
    index = deployment.served.index
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        tasks = [asyncio.create_task(client.post("/recommend", json=bodies[0]))]
        while not index.started.is_set():
            await asyncio.sleep(0.001)
        tasks += [asyncio.create_task(client.post("/recommend", json=body)) for body in bodies[1:]]
        batcher = app.state.services.runs[deployment.name].batcher
        while batcher.num_waiting < len(bodies) - 1:
            await asyncio.sleep(0.001)
        index.gate.set()
        return await asyncio.gather(*tasks)


def test_a_search_that_fails_for_one_does_not_fail_its_neighbours(deployment):
    index = deployment.served.index
    index.hold()
    index.poison = 2
    original = index.search

    def search(vectors, k, **filters):
        if len(vectors) > 1:
            raise RuntimeError("together they cannot be searched")
        return original(vectors, k, **filters)

    index.search = search
    answers = asyncio.run(ask_together(deployment, [{"query_id": user} for user in USERS[:5]]))
    assert [answer.status_code for answer in answers] == [200, 200, 500, 200, 200]
    assert answers[2].json() == {"detail": "the service failed; its log says more"}
    for user, answer in zip(USERS, answers, strict=False):
        if user != "u2":
            assert ids_of(answer) == best(user, 10)[0]


def test_overload_is_503_and_says_when_to_come_again(deployment):
    index = deployment.served.index
    index.hold()
    # All requests that are accepted may wait as long as this test takes.
    with client_of(deployment, max_queue=1, timeout=600) as client, ThreadPoolExecutor(2) as pool:
        accepted = [pool.submit(recommend, client, query_id="u1")]
        assert index.started.wait(60)
        accepted.append(pool.submit(recommend, client, query_id="u1"))
        batcher = client.app.state.services.runs["first"].batcher
        while not batcher.num_waiting:
            time.sleep(0.001)
        answer = recommend(client, query_id="u2")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert "1 requests wait" in answer.json()["detail"]
        index.gate.set()
        assert [answer.result().status_code for answer in accepted] == [200, 200]
        assert recommend(client, query_id="u2").status_code == 200
        assert 'status="503"} 1.0' in client.get("/metrics").text


def test_a_request_that_waits_too_long_is_503(deployment):
    index = deployment.served.index
    index.hold()
    with client_of(deployment, timeout=0.05) as client:
        # The search does not end before this answer is there.
        answer = recommend(client, query_id="u1")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert "no answer within 0.05 s" in answer.json()["detail"]
        index.gate.set()


# ------------------------------------------------------------------ items


def test_items_come_and_go(client):
    far = {"id": 7, "features": {"place": (10 * FakeIndex().users[3]).tolist()}}
    answer = client.put("/items", json={"items": [far]})
    assert answer.status_code == 200, answer.text
    assert {n: answer.json()[n] for n in ("changed", "upserted", "deleted")} == {
        "changed": 1,
        "upserted": 1,
        "deleted": 0,
    }
    found = recommend(client, query_id="u3", k=2).json()["items"]
    assert found[0]["id"] == 7
    assert (found[0]["title"], found[0]["training_events"]) == (None, None)
    second = found[1]["id"]
    answer = client.delete("/items", params={"id": [7, second]})
    assert (answer.json()["upserted"], answer.json()["deleted"]) == (0, 1)
    assert ids_of(recommend(client, query_id="u3", k=1)) == best("u3", 1, without=[second])[0]
    gone = client.delete("/items", params={"id": [second]})
    assert gone.status_code == 404
    assert gone.json()["detail"] == f"`id`: expected an item of the index. Received: {second}"


def test_an_unknown_id_takes_nothing_out(client):
    assert client.delete("/items", params={"id": [100, 1]}).status_code == 404
    assert 100 in ids_of(recommend(client, query_id="u3", k=NUM_ITEMS))


def test_groups_of_new_items(client):
    place = (10 * FakeIndex().users[3]).tolist()
    items = [{"id": 7, "features": {"place": place}, "group": 9}]
    assert client.put("/items", json={"items": items}).status_code == 200
    assert ids_of(recommend(client, query_id="u3", k=3, allow_groups=[9])) == [7]
    items[0] |= {"id": 8, "group": None}
    assert client.put("/items", json={"items": items}).status_code == 200
    assert ids_of(recommend(client, query_id="u3", k=3, allow_groups=[9])) == [7]


def test_one_wrong_item_changes_nothing(client):
    items = [
        {"id": 7, "features": {"place": [1, 2]}},
        {"id": 8, "features": {"place": [1, 2, 3]}},
    ]
    answer = client.put("/items", json={"items": items})
    assert answer.status_code == 422
    assert "`features['place']`: expected float32 of shape (None, 2)" in answer.json()["detail"]
    assert 7 not in ids_of(recommend(client, query_id="u3", k=NUM_ITEMS))


def test_an_item_without_room_changes_nothing(run_folder):
    deployment = Deployment(
        run_folder, "first", open_index=lambda path: DeltaIndex(open_fake(path), capacity=1)
    )
    deployment.load()
    items = {7: KeptItem({"place": [1, 2]}), 8: KeptItem({"place": [1, 2]}, group=4)}
    with pytest.raises(InputError, match="at most 1 changed items"):
        deployment.upsert(items)
    assert not deployment.served.index.contains([7, 8]).any()


def test_the_id_among_the_features_must_be_that_of_the_item(client):
    items = [{"id": 7, "features": {"place": [1, 2], "item": 8}}]
    answer = client.put("/items", json={"items": items})
    assert answer.status_code == 422
    assert "the id of the item, 7. Received: 8" in answer.json()["detail"]


# ------------------------------------------------------------------ exports that take over


def await_swap(deployment, count=1):
    for _ in range(6000):
        if deployment.num_swaps + deployment.num_refused >= count:
            return
        threading.Event().wait(0.01)
    raise AssertionError("no look for another export")


def test_another_export_takes_over_under_load_without_failure_or_mixture(tmp_path):
    folder = write_run(tmp_path / "first")
    deployment = deploy(folder)

    async def main():
        app = create_app([deployment], look_every=0.005)
        transport = httpx.ASGITransport(app=app)
        answers, done = [], asyncio.Event()
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):

            async def keep_asking(user):
                while not done.is_set():
                    answers.append(await client.post("/recommend", json={"query_id": user, "k": 5}))

            async def keep_exporting():
                while not answers:
                    await asyncio.sleep(0.001)
                for n in range(1, 6):
                    await asyncio.to_thread(write_export, folder / "index", offset=1000 * n, seed=n)
                    while deployment.num_swaps < n:
                        await asyncio.sleep(0.005)
                    count = len(answers)
                    while len(answers) < count + 16:
                        await asyncio.sleep(0.001)
                done.set()

            await asyncio.gather(keep_exporting(), *(keep_asking(user) for user in USERS[:8]))
        return answers

    answers = asyncio.run(main())
    assert {answer.status_code for answer in answers} == {200}
    seen = set()
    for answer in (answer.json() for answer in answers):
        number = int(answer["export"]["created"].removeprefix("export ")) // 1000
        seen.add(number)
        # Scores of an export lie within 100 of its offset, those of all others beyond.
        assert all(abs(item["score"] - 1000 * number) < 100 for item in answer["items"])
    assert seen == set(range(6))
    assert (deployment.num_swaps, deployment.num_refused) == (5, 0)


def test_changes_are_done_again_on_the_next_export(tmp_path):
    folder = write_run(tmp_path / "first")
    deployment = deploy(folder)
    place = (10 * FakeIndex().users[3]).tolist()
    deployment.upsert({7: KeptItem({"place": place}), 8: KeptItem({"place": place}, group=5)})
    deployment.upsert({9: KeptItem({"place": place})})
    deployment.delete(["101", "9"])
    write_export(folder / "index", offset=50, seed=3)
    deployment.refresh()
    index = deployment.served.index
    assert index.offset == 50
    assert index.contains([7, 8, 9, 101, 102]).tolist() == [True, True, False, False, True]
    assert index.groups[8] == 5
    np.testing.assert_allclose(index.vectors[7], place)
    assert (index.num_upserted, index.num_deleted) == (2, 1)


def test_a_deleted_item_may_come_back(tmp_path):
    folder = write_run(tmp_path / "first")
    deployment = deploy(folder)
    deployment.delete(["101"])
    deployment.upsert({101: KeptItem({"place": [1, 2]})})
    write_export(folder / "index", seed=3)
    deployment.refresh()
    assert deployment.served.index.contains([101]).all()


def test_a_damaged_export_is_refused_by_name_and_the_old_one_stays(tmp_path, caplog):
    folder = write_run(tmp_path / "first")
    deployment = deploy(folder)
    before = deployment.served
    with client_of(deployment) as client:
        other = tmp_path / "other"
        write_export(other, offset=9)
        content = bytearray((other / "vectors.npz").read_bytes())
        content[len(content) // 2] ^= 1
        (other / "vectors.npz").write_bytes(content)
        (folder / "index").rename(tmp_path / "old")
        other.rename(folder / "index")
        await_swap(deployment)
        assert deployment.served is before
        assert recommend(client, query_id="u1").json()["export"]["created"] == "export 0"
        assert client.get("/ready").status_code == 200
        text = client.get("/metrics").text
        assert 'tfrs_negatives_refused_exports_total{run="first"} 1.0' in text
        assert 'tfrs_negatives_export_swaps_total{run="first"} 0.0' in text
        # It is reported once, and looked at again when its files are others.
        threading.Event().wait(0.1)
        assert deployment.num_refused == 1
        content[len(content) // 2] ^= 1
        (folder / "index" / "vectors.npz").write_bytes(content)
        await_swap(deployment, 2)
        assert recommend(client, query_id="u1").json()["export"]["created"] == "export 9"
    refused = [r.getMessage() for r in caplog.records if "refused" in r.getMessage()]
    assert len(refused) == 1
    assert str(folder / "index" / "vectors.npz") in refused[0]
    assert "SHA-256" in refused[0]


def test_an_export_without_an_answer_is_refused(tmp_path, caplog):
    folder = write_run(tmp_path / "first")
    deployment = deploy(folder)
    write_export(folder / "index", offset=np.nan)
    deployment.refresh()
    assert (deployment.num_swaps, deployment.num_refused) == (0, 1)
    assert "an export that finds an item for a known query" in caplog.text


def test_no_export_for_a_moment_is_none_to_refuse(tmp_path):
    folder = write_run(tmp_path / "first")
    deployment = deploy(folder)
    (folder / "index").rename(tmp_path / "away")
    deployment.refresh()
    (folder / "index").mkdir()
    deployment.refresh()
    assert (deployment.num_swaps, deployment.num_refused) == (0, 0)
    (folder / "index").rmdir()
    (tmp_path / "away").rename(folder / "index")
    deployment.refresh()
    assert (deployment.num_swaps, deployment.num_refused) == (0, 0)


def test_an_export_that_goes_away_while_it_is_read_is_none_to_refuse(tmp_path):
    folder = write_run(tmp_path / "first")
    deployment = deploy(folder)
    write_export(folder / "index", offset=1)

    def replaced_meanwhile(path):
        write_export(path, offset=2)
        raise InputError("gone")

    kept, deployment._open_index = deployment._open_index, replaced_meanwhile
    deployment.refresh()
    assert deployment.num_refused == 0
    deployment._open_index = kept
    deployment.refresh()
    assert deployment.served.index.offset == 2


# ------------------------------------------------------------------ what else there is to ask


def test_what_is_served(client, deployment):
    (run,) = client.get("/runs").json()["runs"]
    assert (run["name"], run["num_items"]) == ("first", NUM_ITEMS)
    assert (run["has_queries"], run["has_history"]) == (True, True)
    assert run["query_features"] == {"user": "string ()", "age": "int64 ()"}
    assert run["item_features"] == {"item": "int64 ()", "place": "float32 (2,)"}


def test_known_queries_by_how_they_begin(client):
    found = client.get("/queries", params={"prefix": "u1", "limit": 3}).json()
    assert found == {"run": "first", "key": "user", "queries": ["u1", "u10", "u11"]}
    assert client.get("/queries", params={"prefix": "x"}).json()["queries"] == []
    assert len(client.get("/queries", params={"limit": 100}).json()["queries"]) == len(USERS)


def test_a_history_has_its_latest_events_first(client):
    history = client.get("/history", params={"query_id": "u4", "limit": 3}).json()
    times = {(user, item): time for user, item, time in events()}
    assert history["total"] >= 4
    assert len(history["events"]) == 3
    found = [event["time"] for event in history["events"]]
    assert found == sorted(found, reverse=True)
    assert [times["u4", event["id"]] for event in history["events"]] == found


def test_a_run_whose_log_is_gone_has_no_history(tmp_path, caplog):
    folder = write_run(tmp_path / "first")
    (folder / "events.csv").unlink()
    with client_of(deploy(folder)) as client:
        assert client.get("/runs").json()["runs"][0]["has_history"] is False
        assert recommend(client, query_id="u1").status_code == 200
        answer = recommend(client, query_id="u1", exclude_seen=True)
        assert answer.status_code == 422
        assert "training log" in answer.json()["detail"]
        assert client.get("/history", params={"query_id": "u1"}).status_code == 422
    assert "its training log cannot be read" in caplog.text


def test_two_runs_side_by_side(tmp_path, run_folder):
    second = deploy(write_run(tmp_path / "second", seed=5, offset=1), "second")
    with client_of(deploy(run_folder), second) as client:
        assert [run["name"] for run in client.get("/runs").json()["runs"]] == ["first", "second"]
        answer = recommend(client, query_id="u2", run="second", k=3)
        assert answer.json()["run"] == "second"
        assert ids_of(answer) == best("u2", 3, index=second.served.index)[0]
        assert recommend(client, query_id="u2", k=3).json()["run"] == "first"
        other = client.get("/history", params={"query_id": "u2", "run": "third"})
        assert other.status_code == 404
        assert "one of ['first', 'second']" in other.json()["detail"]


def test_before_an_export_is_loaded(run_folder):
    with client_of(Deployment(run_folder, "first")) as client:
        assert client.get("/health").json() == {"status": "alive"}
        for answer in (
            client.get("/ready"),
            recommend(client, query_id="u1"),
            client.put("/items", json={"items": [{"id": 1, "features": {}}]}),
            client.get("/queries"),
        ):
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
            assert "is being loaded" in answer.json()["detail"]
        assert 'tfrs_negatives_ready{run="first"} 0.0' in client.get("/metrics").text


def test_metrics(client):
    for n in range(3):
        recommend(client, query_id=f"u{n}")
    recommend(client, query_id="nobody")
    client.get("/nothing/here")
    client.put("/items", json={"items": [{"id": 7, "features": {"place": [0, 0]}}]})
    client.delete("/items", params={"id": 100})
    text = client.get("/metrics").text
    lines = dict(re.findall(r"^(tfrs_negatives_\S+) (\S+)$", text, re.MULTILINE))
    name = 'tfrs_negatives_requests_total{method="%s",route="%s",status="%s"}'
    assert lines[name % ("POST", "/recommend", 200)] == "3.0"
    assert lines[name % ("POST", "/recommend", 404)] == "1.0"
    assert lines[name % ("none", "none", 404)] == "1.0"
    assert lines['tfrs_negatives_request_seconds_count{route="/recommend"}'] == "4.0"
    assert lines['tfrs_negatives_batch_size_count{run="first"}'] == "4.0"
    assert lines['tfrs_negatives_batch_size_bucket{le="1.0",run="first"}'] == "4.0"
    expected = {
        "ready": 1,
        "queue_length": 0,
        "items": NUM_ITEMS,
        "upserted_items": 1,
        "deleted_items": 1,
        "export_swaps_total": 0,
        "refused_exports_total": 0,
    }
    found = {n: float(lines[f'tfrs_negatives_{n}{{run="first"}}']) for n in expected}
    assert found == expected


# ------------------------------------------------------------------ who may ask


def test_a_token_is_needed_but_for_health_and_the_page(deployment):
    with client_of(deployment, token="s3cret") as client:  # noqa: S106
        for path in ("/health", "/", "/page.js", "/page.css", "/icon.svg"):
            assert client.get(path).status_code == 200
        for path in ("/ready", "/metrics", "/runs", "/queries", "/openapi.json", "/nothing"):
            answer = client.get(path)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert "token" in answer.json()["detail"]
        for wrong in ("s3cret", "Bearer s3cre", "Bearer s3crets", "bearer s3cret", "Basic s3cret"):
            headers = {"Authorization": wrong}
            assert client.post("/recommend", json={}, headers=headers).status_code == 401
        assert (
            client.get("/ready", headers={"Authorization": "Bearer \xe9".encode()}).status_code
            == 401
        )
        right = {"Authorization": "Bearer s3cret"}
        assert client.get("/ready", headers=right).status_code == 200
        body = {"query_id": "u1"}
        assert client.post("/recommend", json=body, headers=right).status_code == 200


def test_only_names_of_this_machine_where_only_it_may_ask(deployment):
    with client_of(deployment, hosts=LOOPBACK_NAMES) as client:
        for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1"):
            assert client.get("/ready", headers={"Host": host}).status_code == 200, host
        for host in ("rebound.example", "localhost.rebound.example", "127.0.0.1.example:8000", ""):
            assert client.get("/ready", headers={"Host": host}).status_code == 400, host


def test_headers_of_every_answer(client):
    for path in ("/", "/ready", "/nothing"):
        headers = client.get(path).headers
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in headers
    page = client.get("/").text
    assert not re.findall(r"(?:src|href)=\"(?!/)", page)
    assert "innerHTML" not in client.get("/page.js").text


def test_the_description_of_the_endpoints_needs_no_other_host(client):
    description = client.get("/openapi.json").json()
    assert set(description["paths"]) == {
        "/recommend",
        "/items",
        "/runs",
        "/queries",
        "/history",
        "/health",
        "/ready",
        "/metrics",
    }
    assert client.get("/docs").status_code == 404
    assert "http" not in json.dumps(description).replace("httpx", "")
