"""An index that changes in place, against brute force over a plain dict of what it should hold."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from retriever_cases import brute_force

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.index import LiveIndex, export_index, load_index
from tfrs_negatives.index.live.index import ReadWriteLock
from tfrs_negatives.index.search.backends import Depth, ScannSettings

WIDTH = 8
# All leaves, all candidates: what ScaNN finds is exact, so only the changes are tested.
EVERYTHING = ScannSettings(num_leaves=20, depths=(Depth(k=10, leaves=20, reorder=5000),))


def make_model(num_items, *, seed=0, scale=1.0):
    """Queries are vectors; an item's vector is that of its row, times `scale`."""
    vectors = np.random.default_rng(seed).normal(size=[num_items, WIDTH]).astype(np.float32)
    table = tf.constant(vectors * np.float32(scale))
    return vectors, SimpleNamespace(
        items=ItemCatalogue(np.arange(num_items), {"row": np.arange(num_items)}),
        similarity="dot",
        query_signature={"vector": tf.TensorSpec([None, WIDTH], tf.float32)},
        query_vectors=lambda features: features["vector"] * np.float32(scale),
        item_vectors=lambda features: tf.gather(table, features["row"]),
    )


def make_live(num_items, **options):
    vectors, model = make_model(num_items)
    index = LiveIndex(model.items.ids, vectors, model=model, **options)
    return index, {item: (vector, None) for item, vector in enumerate(vectors)}


def assert_right(index, items, queries, k, **lists):
    scores, ids = index.search(queries, k, **lists)
    expected_scores, expected_ids = brute_force(items, queries, k, **lists)
    assert scores.shape == ids.shape == (len(queries), k)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(ids, expected_ids)


@pytest.mark.parametrize(("size", "tuned"), [(30, None), (1500, EVERYTHING)])
def test_any_sequence_of_changes_gives_what_brute_force_gives(size, tuned):
    @settings(max_examples=12, deadline=None)
    @given(
        steps=st.lists(st.sampled_from(["upsert", "delete", "query"]), min_size=3, max_size=9),
        seed=st.integers(0, 2**32 - 1),
    )
    def check(steps, seed):
        generator = np.random.default_rng(seed)
        index, items = make_live(size, settings=tuned)
        for step in [*steps, "query"]:
            if step == "upsert":
                ids = generator.choice(2 * size, generator.integers(1, 12), replace=False)
                vectors = generator.normal(size=[len(ids), WIDTH]).astype(np.float32)
                index.upsert(ids, vectors)
                items |= {i: (v, None) for i, v in zip(ids.tolist(), vectors, strict=True)}
            elif step == "delete":
                # One stays: an index of nothing has no k.
                number = min(int(generator.integers(1, 12)), len(items) - 1)
                ids = generator.choice(sorted(items), number, replace=False)
                index.delete(ids)
                items = {item: held for item, held in items.items() if item not in ids.tolist()}
            else:
                queries = generator.normal(size=[3, WIDTH]).astype(np.float32)
                some = [generator.choice(2 * size, n).tolist() for n in (0, 1, 9)]
                k = int(generator.integers(1, 15))
                for lists in ({}, {"exclude": some}, {"allow": some}):
                    assert_right(index, items, queries, min(k, len(items)), **lists)
            assert len(index) == len(items)

    check()


def test_every_item_can_go_and_come_again():
    index, items = make_live(1200, settings=EVERYTHING)
    query = np.ones([1, WIDTH], np.float32)
    order = np.random.default_rng(3).permutation(1200)
    for start in range(0, 1199, 150):
        index.delete(order[start : min(start + 150, 1199)])
    assert index.search(query, 1)[1].tolist() == [[int(order[-1])]]
    index.upsert(order[:500], np.stack([items[item][0] for item in order[:500].tolist()]))
    left = {item: items[item] for item in [*order[:500].tolist(), int(order[-1])]}
    assert_right(index, left, query, 20)


def test_a_change_is_made_whole_or_not_at_all():
    index, items = make_live(40)
    bad = [
        lambda: index.delete([3, 99]),
        lambda: index.delete([3, 3]),
        lambda: index.upsert([3, "a"], np.zeros([2, WIDTH])),
        lambda: index.upsert([3, 3], np.zeros([2, WIDTH])),
        lambda: index.upsert([3], np.zeros([2, WIDTH])),
        lambda: index.upsert([3], np.full([1, WIDTH], np.nan)),
        lambda: index.upsert([-1], np.zeros([1, WIDTH])),
    ]
    for change in bad:
        with pytest.raises(InputError):
            change()
    assert_right(index, items, np.eye(WIDTH, dtype=np.float32), 5)


@pytest.mark.slow
def test_changes_beside_queries_from_eight_threads():
    """10,000 changes by two threads: what came is found at once, what went is not found again."""
    index, _ = make_live(3000)
    errors, done, gone = [], threading.Event(), set()

    def change(first):
        generator = np.random.default_rng(first)
        for number in range(2500):
            item = 100_000 + 2 * number + first
            vector = generator.normal(size=[1, WIDTH]).astype(np.float32)
            vector *= 10 / np.linalg.norm(vector)
            index.upsert([item], vector)
            if number % 25 == 0 and item not in index.search(vector, 20)[1]:
                errors.append(f"{item} not found")
            index.delete([item])
            gone.add(item)

    def query(seed):
        generator = np.random.default_rng(100 + seed)
        while not done.is_set():
            before = set(gone)
            queries = generator.normal(size=[4, WIDTH]).astype(np.float32)
            _, ids = index.search(queries, 10)
            found = before & set(ids.ravel().tolist())
            if ids.shape != (4, 10) or found:
                errors.append(f"{ids.shape}, deleted: {found}")

    def guarded(function, *arguments):
        try:
            function(*arguments)
        except Exception as error:
            errors.append(error)

    writers = [threading.Thread(target=guarded, args=(change, first)) for first in (0, 1)]
    readers = [threading.Thread(target=guarded, args=(query, seed)) for seed in range(8)]
    for thread in [*writers, *readers]:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert errors == []
    assert len(gone) == 5000
    assert len(index) == 3000


def test_a_new_model_is_taken_as_a_whole():
    """Scores of the old model are products of 1 x 1, those of the new one of 3 x 3."""
    index, items = make_live(400)
    _, tripled = make_model(400, scale=3.0)
    query = {"vector": np.ones([1, WIDTH], np.float32)}
    expected = brute_force(items, query["vector"], 5)[0]
    seen, errors, done = set(), [], threading.Event()

    def ask():
        while not done.is_set():
            ratio = index.top_k(query, 5)[0] / expected
            if np.ptp(ratio) > 1e-3:
                errors.append(ratio)
            seen.add(round(float(ratio.mean())))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        index.refresh(tripled, batch_size=64)
        index.refresh(make_model(400)[1], batch_size=64)
    index.refresh(tripled)
    done.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert seen <= {1, 9}
    np.testing.assert_allclose(index.top_k(query, 5)[0], 9 * expected, rtol=1e-4)


def test_a_new_model_must_know_every_item():
    index, items = make_live(40)
    index.upsert([77], np.ones([1, WIDTH]))
    with pytest.raises(InputError, match="`items`: expected features of every item"):
        index.refresh(make_model(40)[1])
    assert_right(
        index,
        {**items, 77: (np.ones(WIDTH, np.float32), None)},
        np.ones([1, WIDTH], np.float32),
        5,
    )


def test_a_snapshot_stays_as_it_was_and_can_be_exported(tmp_path):
    index, items = make_live(300)
    index.delete([5, 6])
    index.upsert([900], np.full([1, WIDTH], 4.0))
    frozen = index.snapshot()
    index.delete([900])
    loaded = load_index(export_index(frozen, tmp_path / "index", ks=[3], check=False))
    held = {item: vector for item, vector in items.items() if item not in (5, 6)}
    held[900] = (np.full(WIDTH, 4.0, np.float32), None)
    queries = np.random.default_rng(5).normal(size=[4, WIDTH]).astype(np.float32)
    for answering in (frozen, loaded):
        assert_right(answering, held, queries, 7)


def test_recall_after_many_changes_and_after_cutting_the_leaves_anew():
    tuned = ScannSettings(num_leaves=55, depths=(Depth(k=10, leaves=16, reorder=200),))
    index, _ = make_live(3000, settings=tuned)
    generator = np.random.default_rng(8)
    # More than are scored by every query because they came last, and elsewhere than the others.
    moved = generator.normal(size=[6000, WIDTH]).astype(np.float32)
    moved[:, 0] += 3
    for start in range(0, 6000, 500):
        index.upsert(np.arange(5000 + start, 5500 + start), moved[start : start + 500])
    index.delete(np.arange(3000))
    queries = generator.normal(size=[200, WIDTH]).astype(np.float32)
    expected = 5000 + np.argsort(-queries @ moved.T, axis=1)[:, :10]

    def recall():
        found = index.search(queries, 10)[1]
        pairs = zip(found.tolist(), expected.tolist(), strict=True)
        return np.mean([len(set(a) & set(b)) / 10 for a, b in pairs])

    before = recall()
    index.rebalance()
    assert before > 0.7
    assert recall() > max(before, 0.9)
    assert len(index) == 6000
    assert index.contains([0, 5, 5000, 10_999]).tolist() == [False, False, True, True]


def test_a_lock_keeps_writers_alone_and_lets_readers_in_together():
    lock, log, inside = ReadWriteLock(), [], threading.Barrier(2, timeout=60)

    def read():
        with lock.reading():
            inside.wait()  # passes only if both are inside

    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in readers:
        thread.start()
    for thread in readers:
        thread.join()
    counter = [0]

    def write():
        for _ in range(200):
            with lock.writing():
                counter[0] += 1
                log.append(counter[0])
                counter[0] -= 1

    writers = [threading.Thread(target=write) for _ in range(4)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    assert set(log) == {1}
    assert len(log) == 800
