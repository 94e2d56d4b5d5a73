"""Requests that are wrong in every way: an answer of 4xx that says what is wrong, never 5xx."""

import json

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, checks
from serving_cases import NUM_ITEMS, deploy, write_run

from tfrs_negatives.serve.app import create_app


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("malformed") / "first")
    return create_app([deploy(folder)])


@pytest.fixture(scope="module")
def client(app):
    # An error inside is to be an answer of 500 here, which the tests then see.
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


GOOD = {"user": "u1", "age": 21}
RECOMMEND = {
    "nothing": {},
    "both queries": {"query_id": "u1", "features": GOOD},
    "a null query": {"query_id": None},
    "an unknown query": {"query_id": "nobody"},
    "a query of another kind": {"query_id": 3.5},
    "a list for a query": {"query_id": ["u1"]},
    "a feature too few": {"features": {"user": "u1"}},
    "a feature too many": {"features": {**GOOD, "height": 1}},
    "no features": {"features": {}},
    "a list for features": {"features": ["u1", 21]},
    "a number for a string": {"features": {**GOOD, "user": 1}},
    "a string for a number": {"features": {**GOOD, "age": "21"}},
    "a fraction for an integer": {"features": {**GOOD, "age": 2.5}},
    "true for an integer": {"features": {**GOOD, "age": True}},
    "null for a feature": {"features": {**GOOD, "age": None}},
    "a list for a feature": {"features": {**GOOD, "age": [21]}},
    "an object for a feature": {"features": {**GOOD, "age": {"years": 21}}},
    "an integer beyond 64 bits": {"features": {**GOOD, "age": 2**63}},
    "an integer of a thousand digits": {"features": {**GOOD, "age": 10**1000}},
    "k of 0": {"query_id": "u1", "k": 0},
    "a negative k": {"query_id": "u1", "k": -1},
    "k beyond the corpus": {"query_id": "u1", "k": NUM_ITEMS + 1},
    "k beyond all limits": {"query_id": "u1", "k": 10**30},
    "k of a half": {"query_id": "u1", "k": 0.5},
    "k as text": {"query_id": "u1", "k": "3"},
    "k as true": {"query_id": "u1", "k": True},
    "k of null": {"query_id": "u1", "k": None},
    "a number for a list": {"query_id": "u1", "exclude": 7},
    "text for a list": {"query_id": "u1", "exclude": "100"},
    "ids of another kind": {"query_id": "u1", "exclude": ["100"]},
    "fractions for ids": {"query_id": "u1", "allow": [100.5]},
    "true for an id": {"query_id": "u1", "allow": [True]},
    "null for an id": {"query_id": "u1", "allow": [None]},
    "lists in a list": {"query_id": "u1", "allow": [[100]]},
    "an id beyond 64 bits": {"query_id": "u1", "exclude": [2**63]},
    "too many ids": {"query_id": "u1", "exclude": [1] * 100_001},
    "an object for groups": {"query_id": "u1", "allow_groups": {"a": 1}},
    "an unknown field": {"query_id": "u1", "limit": 3},
    "text for true": {"query_id": "u1", "exclude_seen": "yes"},
    "the history of nobody": {"features": GOOD, "exclude_seen": True},
    "an unknown run": {"query_id": "u1", "run": "second"},
    "a number for a run": {"query_id": "u1", "run": 1},
    "a list for a body": [],
    "text for a body": "u1",
    "null for a body": None,
}
ITEMS = {
    "no items": {"items": []},
    "an item without an id": {"items": [{"features": {"place": [1, 2]}}]},
    "an item without features": {"items": [{"id": 7}]},
    "the id of no item": {"items": [{"id": -1, "features": {"place": [1, 2]}}]},
    "an id as text": {"items": [{"id": "7", "features": {"place": [1, 2]}}]},
    "an item twice": {"items": [{"id": 7, "features": {"place": [1, 2]}}] * 2},
    "a vector of another width": {"items": [{"id": 7, "features": {"place": [1]}}]},
    "text in a vector": {"items": [{"id": 7, "features": {"place": ["a", "b"]}}]},
    "a ragged vector": {"items": [{"id": 7, "features": {"place": [[1], [1, 2]]}}]},
    "an unknown feature": {"items": [{"id": 7, "features": {"place": [1, 2], "x": 1}}]},
    "too many items": {"items": [{"id": n, "features": {"place": [1, 2]}} for n in range(5000)]},
}
RAW = {
    "no body": b"",
    "no JSON": b"{",
    "two documents": b"{} {}",
    "no text": b'\xff\xfe{"query_id": "u1"}',
    "not a number": b'{"features": {"user": "u1", "age": NaN}}',
    "infinity": b'{"features": {"user": "u1", "age": Infinity}}',
    "a number too large": b'{"features": {"user": "u1", "age": 1e999}}',
    "half a character": b'{"query_id": "\\ud800"}',
    "brackets without end": b"[" * 100_000,
    "brackets in brackets": b'{"features": ' + b"[" * 5000 + b"]" * 5000 + b"}",
}


def assert_refused(answer, *statuses):
    assert answer.status_code in (statuses or range(400, 500)), answer.text[:300]
    detail = answer.json()["detail"]
    assert isinstance(detail, str)
    assert 5 < len(detail) < 2000


@pytest.mark.parametrize("name", RECOMMEND)
def test_malformed_requests_for_items(client, name):
    assert_refused(client.post("/recommend", json=RECOMMEND[name]), 404, 422)


@pytest.mark.parametrize("name", ITEMS)
def test_malformed_changes_of_items(client, name):
    before = client.get("/runs").json()["runs"][0]["num_items"]
    assert_refused(client.put("/items", json=ITEMS[name]), 413, 422)
    assert client.get("/runs").json()["runs"][0]["num_items"] == before


@pytest.mark.parametrize("name", RAW)
def test_bodies_that_are_no_json(client, name):
    headers = {"Content-Type": "application/json"}
    # No body at all lacks its fields; all others are refused before a field is looked at.
    status = 400 if RAW[name] else 422
    assert_refused(client.post("/recommend", content=RAW[name], headers=headers), status)


def test_bodies_of_another_kind_or_size(client):
    body = json.dumps({"query_id": "u1"})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/xml", ""):
        answer = client.post("/recommend", content=body, headers={"Content-Type": kind})
        assert_refused(answer, 415)
    long = b'{"query_id": "' + b"u" * 40_000_000 + b'"}'
    headers = {"Content-Type": "application/json"}
    assert_refused(client.post("/recommend", content=long, headers=headers), 413)
    chunks = (long[start : start + 2**20] for start in range(0, len(long), 2**20))
    assert_refused(client.post("/recommend", content=chunks, headers=headers), 413)


@pytest.mark.parametrize(
    ("method", "address"),
    [
        ("GET", "/recommend"),
        ("DELETE", "/recommend"),
        ("POST", "/health"),
        ("PATCH", "/items"),
        ("GET", "/items"),
        ("GET", "/nothing"),
        ("GET", "/../config.yaml"),
        ("GET", "/queries?limit=0"),
        ("GET", "/queries?limit=many"),
        ("GET", "/queries?unknown=1"),
        ("GET", "/queries?run=second"),
        ("GET", "/history"),
        ("GET", "/history?query_id=nobody"),
        ("GET", f"/history?query_id={'u' * 5000}"),
        ("DELETE", "/items"),
        ("DELETE", "/items?id="),
        ("DELETE", "/items?id=abc"),
        ("DELETE", "/items?id=12345"),
        ("DELETE", f"/items?id={2**70}"),
    ],
)
def test_wrong_methods_addresses_and_parameters(client, method, address):
    assert_refused(client.request(method, address))


def test_after_all_that_it_still_answers(client):
    answer = client.post("/recommend", json={"query_id": "u1", "k": 3})
    assert answer.status_code == 200
    assert len(answer.json()["items"]) == 3


def test_the_service_keeps_to_its_description(tmp_path):
    """What schemathesis makes of the description, right and wrong, is answered as described."""
    folder = write_run(tmp_path / "first")
    # A service of its own: each case starts and stops it.
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app([deploy(folder)]))
    tried = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)

        @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes]))
        def check(case):
            case.call_and_validate(
                checks=[checks.not_a_server_error, checks.response_schema_conformance]
            )

        check()
        tried.add((operation.method.upper(), operation.path))
    assert {("POST", "/recommend"), ("PUT", "/items"), ("DELETE", "/items")} <= tried
    assert len(tried) >= 9
