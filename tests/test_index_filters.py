"""What filters leave, against a brute-force search over what they leave, in memory and exported."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from index_cases import NUM_USERS, make_model

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.index import build_index, export_index, load_index
from tfrs_negatives.index.saved.export import same_answers
from tfrs_negatives.index.search.backends import Depth, ScannSettings
from tfrs_negatives.index.search.filters import FilteredSearch, is_in

NUM_ITEMS = 1500
# Whole corpus: ScaNN then finds what an exact search finds, so that only the filters are tested.
EVERYTHING = ScannSettings(num_leaves=30, depths=(Depth(k=10, leaves=30, reorder=NUM_ITEMS),))
GROUPS = np.random.default_rng(1).choice(
    ["drama", "comedy", "rare", "single"], NUM_ITEMS, p=[0.7, 0.28, 0.019, 0.001]
)


def make_index(kind, *, string_ids=False, **options):
    model = make_model(NUM_ITEMS, string_ids=string_ids)
    chosen = {"settings": EVERYTHING} if kind == "scann" else {}
    return build_index(model, kind=kind, group_by=GROUPS, **{**chosen, **options})


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    """By name: exact and ScaNN, in memory and as an export."""
    found = {kind: make_index(kind, string_ids=kind == "scann") for kind in ("exact", "scann")}
    for kind in ("exact", "scann"):
        path = tmp_path_factory.mktemp("filters") / kind
        export_index(found[kind], path, ks=[5, 20], check=False)
        found[f"{kind} export"] = load_index(path)
    return found


@pytest.fixture(params=["exact", "scann", "exact export", "scann export"])
def named(request, indexes):
    return indexes[request.param], indexes[request.param.split()[0]]


def brute_force(index, users, k, *, exclude=None, allow=None, allow_groups=None):
    """One query and one item at a time, in float64."""
    items = index.model.item_table.numpy().astype(np.float64)
    answers = []
    for place, user in enumerate(users):
        query = index.model.user_table.numpy().astype(np.float64)[user]
        pairs = []
        for row, item in enumerate(index.ids.tolist()):
            if exclude is not None and item in exclude[place]:
                continue
            if allow is not None and item not in allow[place]:
                continue
            if allow_groups is not None and GROUPS[row] not in allow_groups[place]:
                continue
            pairs.append((-float(query @ items[row]), item))
        best = sorted(pairs)[:k]
        missing = k - len(best)
        answers.append(
            (
                [-score for score, _ in best] + [-np.inf] * missing,
                [item for _, item in best] + [index.padding_id] * missing,
            )
        )
    return np.array([a[0] for a in answers]), np.array([a[1] for a in answers])


def assert_same(index, reference, users, k, **lists):
    scores, ids = index.top_k({"user_id": users}, k, **lists)
    expected_scores, expected_ids = brute_force(reference, users, k, **lists)
    assert scores.shape == ids.shape == (len(users), k)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-4, atol=1e-5)
    # Rounding may exchange two that score the same in float32.
    assert same_answers((expected_scores, expected_ids), (scores, ids))


def draw_lists(index, generator, num_queries, sizes):
    ids = index.ids
    return [
        generator.choice(ids, min(int(size), len(ids)), replace=False).tolist() for size in sizes
    ]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_filters_give_what_brute_force_gives(indexes, data):
    name = data.draw(st.sampled_from(sorted(indexes)))
    index, reference = indexes[name], indexes[name.split()[0]]
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    users = generator.integers(0, NUM_USERS, data.draw(st.integers(1, 4))).tolist()
    k = data.draw(st.sampled_from([1, 3, 10, 50, NUM_ITEMS]))
    lists = {}
    for argument, most in (("exclude", 1000), ("allow", 1500)):
        if data.draw(st.booleans(), label=argument):
            sizes = [data.draw(st.integers(0, most)) for _ in users]
            lists[argument] = draw_lists(reference, generator, len(users), sizes)
    if data.draw(st.booleans(), label="allow_groups"):
        names = st.lists(st.sampled_from(["drama", "comedy", "rare", "single", "none"]), max_size=3)
        lists["allow_groups"] = [data.draw(names) for _ in users]
    assert_same(index, reference, users, k, **lists)


def test_the_best_items_are_excluded_and_the_next_ones_come(named):
    index, reference = named
    _, best = index.top_k({"user_id": [3, 8]}, 400)
    assert_same(index, reference, [3, 8], 20, exclude=best[:, :380].tolist())
    _, rest = index.top_k({"user_id": [3, 8]}, 20, exclude=best[:, :380])
    np.testing.assert_array_equal(rest, best[:, 380:])


def test_one_list_is_for_all_queries(named):
    index, reference = named
    users, few = [3, 8, 21], reference.ids[40:60].tolist()
    for lists in ({"exclude": few}, {"allow": few}, {"allow": few, "exclude": few[:15]}):
        each = {name: [ids] * 3 for name, ids in lists.items()}
        expected = brute_force(reference, users, 10, **each)
        for given_lists in (lists, each):
            scores, ids = index.top_k({"user_id": users}, 10, **given_lists)
            np.testing.assert_array_equal(ids, expected[1])
            np.testing.assert_allclose(scores, expected[0], rtol=1e-4, atol=1e-5)
    _, ids = index.top_k({"user_id": users}, 10, allow_groups=["rare"])
    assert (
        ids.tolist() == brute_force(reference, users, 10, allow_groups=[["rare"]] * 3)[1].tolist()
    )


def test_nothing_is_allowed_by_an_empty_list_and_everything_by_none(named):
    index, _ = named
    plain = index.top_k({"user_id": [3, 8]}, 4)
    for name in ("allow", "allow_groups"):
        scores, ids = index.top_k({"user_id": [3, 8]}, 4, **{name: []})
        assert np.isneginf(scores).all()
        assert (ids == index.padding_id).all()
        scores, ids = index.top_k({"user_id": [3, 8]}, 4, **{name: [[], []]})
        assert np.isneginf(scores).all()
    for nothing in ([], [[], []], None):
        np.testing.assert_array_equal(
            index.top_k({"user_id": [3, 8]}, 4, exclude=nothing)[1], plain[1]
        )


def test_unknown_and_repeated_ids_change_nothing(named):
    index, reference = named
    strange = "item 99999" if reference.padding_id == "" else 99999
    some = reference.ids[:30].tolist()
    messy = [*some, strange, *some, reference.padding_id]
    for name in ("exclude", "allow"):
        expected = index.top_k({"user_id": [5]}, 40, **{name: some})
        received = index.top_k({"user_id": [5]}, 40, **{name: messy})
        np.testing.assert_array_equal(expected[1], received[1])


def test_a_broken_query_finds_nothing_whatever_the_filter(named):
    index, reference = named
    queries = reference.model.user_table.numpy()[[1, 2]].copy()
    answer = index.functions[0]
    queries[1, 0] = np.nan
    dtype = tf.string if reference.padding_id == "" else tf.int64
    some = tf.constant([reference.ids[:9].tolist()], dtype)
    for lists in ([some, None, None], [some, some, None]):
        scores = answer(tf.constant(queries), tf.constant(4), *lists)["scores"].numpy()
        assert np.isneginf(scores[1]).all()


def test_scann_fetches_more_where_a_filter_takes_away():
    """Two leaves of thirty hold less than k of what is left: an exact pass must complete it."""
    few = ScannSettings(num_leaves=30, depths=(Depth(k=1000, leaves=1, reorder=1000),))
    index = make_index("scann", settings=few)
    scores, _ = index.top_k({"user_id": [3]}, 60)
    assert np.isfinite(scores).all()
    reference = make_index("exact")
    first, last = reference.ids[:1460].tolist(), reference.ids[40:].tolist()
    for lists in (
        {"allow_groups": [["single"], ["rare"]]},
        {"exclude": [first, last]},
        {"exclude": [last[:9], first[:9]], "allow_groups": [["rare"], ["single", "rare"]]},
    ):
        assert_same(index, reference, [3, 8], 60, **lists)


def test_as_many_candidates_are_fetched_as_lists_take_away(monkeypatch):
    # Without the exact pass, whose work this is to spare.
    monkeypatch.setattr(FilteredSearch, "_complete", lambda self, q, k, lists, found: found[:2])
    index, reference = make_index("scann"), make_index("exact")
    _, best = index.top_k({"user_id": [3, 8]}, 400)
    for lists in (
        {"exclude": best[:, :390].tolist()},
        {"allow_groups": [["drama"], ["drama", "rare"]]},
    ):
        assert_same(index, reference, [3, 8], 10, **lists)


def test_what_is_excluded_costs_no_recall():
    """The best are taken away, as a history is: what is left must be found as well as they were."""
    model = make_model(6000, width=16)
    index = build_index(model, kind="scann", target_recall=0.9)
    exact = build_index(model, kind="exact")
    queries = np.random.default_rng(4).normal(size=[300, 16]).astype(np.float32)
    _, best = exact.search(queries, 520)
    for excluded in (0, 10, 100, 500):
        _, found = index.search(queries, 10, exclude=best[:, :excluded])
        expected = best[:, excluded : excluded + 10]
        pairs = zip(found.tolist(), expected.tolist(), strict=True)
        shares = [len(set(a) & set(b)) / 10 for a, b in pairs]
        # Three standard errors below the target.
        assert np.mean(shares) > 0.9 - 3 * np.std(shares) / np.sqrt(300)


@pytest.mark.parametrize("kind", ["exact", "scann"])
def test_long_lists_on_a_large_corpus(kind):
    model = make_model(120_000, width=4)
    whole = ScannSettings(num_leaves=20, depths=(Depth(k=10, leaves=20, reorder=20_000),))
    index = build_index(model, kind=kind, settings=whole if kind == "scann" else None)
    items, queries = model.item_table.numpy(), model.user_table.numpy()[[4, 9]]
    scores = queries @ items.T

    @settings(max_examples=4, deadline=None)
    @given(
        allowed=st.integers(1, 100_000),
        excluded=st.integers(0, 1000),
        seed=st.integers(0, 2**32 - 1),
    )
    def check(allowed, excluded, seed):
        generator = np.random.default_rng(seed)
        some = generator.choice(120_000, allowed, replace=False)
        best = np.argsort(-scores, axis=1)[:, :excluded]
        for rows in (np.broadcast_to(some, [2, allowed]), np.arange(120_000)[None].repeat(2, 0)):
            left = [np.setdiff1d(a, b) for a, b in zip(rows, best, strict=True)]
            expected = [np.sort(scores[n][r])[::-1][:10] for n, r in enumerate(left)]
            allow = {"allow": index.ids[some]} if rows.shape[1] == allowed else {}
            found, ids = index.search(queries, 10, exclude=index.ids[best], **allow)
            assert found.shape == ids.shape == (2, 10)
            for row, wanted in enumerate(expected):
                np.testing.assert_allclose(found[row, : len(wanted)], wanted, rtol=1e-5)
                assert np.isneginf(found[row, len(wanted) :]).all()

    check()


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"exclude": 5}, "`exclude`: expected a list of ids, or one for each query. Received: 5"),
        ({"exclude": "abc"}, "`exclude`: expected a list of ids"),
        ({"exclude": ["a"]}, "`exclude`: expected integers, as the index has. Received: 'a'"),
        ({"exclude": [1.0]}, "`exclude`: expected integers"),
        ({"exclude": [True]}, "`exclude`: expected integers"),
        ({"exclude": [None]}, "`exclude`: expected integers"),
        ({"exclude": [2**63]}, "`exclude`: expected integers of 64 bits"),
        ({"allow": [[1], [2], [3]]}, "`allow`: expected 2 lists, one per query. Received: 3 lists"),
        ({"allow": [[1], 2]}, "`allow`: expected ids, or a list for each query"),
        ({"allow": [[["x"]], []]}, "`allow`: expected integers"),
        ({"allow_groups": [3]}, "`allow_groups`: expected strings"),
    ],
)
def test_bad_lists_are_named(indexes, lists, message):
    for name in ("exact", "exact export"):
        with pytest.raises(InputError, match=message.replace("[", r"\[")):
            indexes[name].top_k({"user_id": [1, 2]}, 3, **lists)


def test_groups_must_have_been_indexed():
    index = build_index(make_model(20))
    with pytest.raises(InputError, match="`allow_groups`: expected None: the index was built"):
        index.top_k({"user_id": [1]}, 3, allow_groups=["a"])


@pytest.mark.parametrize("group_by", ["color", np.zeros(19, int), np.zeros(20), np.zeros([20, 2])])
def test_groups_are_a_value_of_each_item(group_by):
    with pytest.raises(InputError, match=r"^`group_by`"):
        build_index(make_model(20), group_by=group_by)


def test_groups_may_be_a_feature_of_integers():
    model = make_model(20)
    index = build_index(model, group_by="row")
    ids = index.top_k({"user_id": [1]}, 3, allow_groups=[4, 7, -9])[1]
    assert set(ids[0].tolist()) == {int(model.items.ids[4]), int(model.items.ids[7]), -1}


def test_the_signatures_filter_as_the_index_does(indexes):
    index, export = indexes["scann"], indexes["scann export"]
    users = {"user_id": [3, 8]}
    _, best = index.top_k(users, 12)
    scores, ids = export.call("with_exclusions", users, exclude=best[:, :7].astype(object))
    expected = index.top_k(users, 20, exclude=best[:, :7])
    np.testing.assert_array_equal(ids, expected[1])
    np.testing.assert_allclose(scores, expected[0], rtol=1e-5)
    nothing = np.zeros([2, 0], object)
    for signature, name, lists in (
        ("with_allowed", "allow", best[:, ::2]),
        ("with_allowed_groups", "allow_groups", np.array([["rare", ""], ["comedy", "rare"]])),
    ):
        received = export.call(
            signature, users, exclude=nothing.astype("S1"), **{name: lists.astype(object)}
        )
        expected = index.top_k(users, 20, **{name: lists})
        np.testing.assert_array_equal(received[1], expected[1])


def test_items_that_were_never_seen_are_embedded(indexes):
    for name in ("exact", "exact export"):
        index, model = indexes[name], indexes["exact"].model
        assert sorted(index.item_signature) == ["row"]
        np.testing.assert_allclose(
            index.embed_item({"row": [3, 70]}), model.item_table.numpy()[[3, 70]], rtol=1e-6
        )
        assert index.contains([int(model.items.ids[9]), 99999, -1]).tolist() == [True, False, False]


def test_membership():
    values = np.random.default_rng(0).integers(-1, 6, [5, 40])
    lists = np.random.default_rng(1).integers(-1, 6, [5, 3])
    found = is_in(tf.constant(values, tf.int32), tf.constant(lists, tf.int32)).numpy()
    for row, (row_values, wanted) in enumerate(zip(values, lists, strict=True)):
        expected = [v != -1 and v in wanted.tolist() for v in row_values.tolist()]
        assert found[row].tolist() == expected
    assert not is_in(tf.constant(values, tf.int32), tf.zeros([5, 0], tf.int32)).numpy().any()


# ------------------------------------------------------------------ other processes

_ANSWER_ALONE = """
import sys
BLOCKED = {blocked}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
"""


def run(code, *arguments):
    root = str(Path(__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": root, "TF_CPP_MIN_LOG_LEVEL": "3", "PATH": ""},
        check=False,
    )


@pytest.mark.slow
def test_an_exact_export_needs_nothing_but_tensorflow(indexes, tmp_path):
    """As in TensorFlow Serving: no ScaNN, nothing of this package, only operations of its own."""
    path = export_index(indexes["exact"], tmp_path / "stock", ks=[5], check=False)
    assert load_index(path).manifest["custom_ops"] == []
    code = _ANSWER_ALONE.format(blocked={"scann", "tfrs_negatives", "tensorflow_recommenders"})
    code += """
import tensorflow as tf
served = tf.saved_model.load(sys.argv[1]).signatures
users = tf.constant([3, 8], tf.int64)
print(served["serving_default"](user_id=users)["ids"].numpy().tolist())
best = served["serving_default"](user_id=users)["ids"]
print(served["with_exclusions"](user_id=users, exclude=best)["ids"].numpy().tolist())
"""
    done = run(code, path)
    assert done.returncode == 0, done.stderr
    _, best = indexes["exact"].top_k({"user_id": [3, 8]}, 10)
    assert done.stdout.splitlines() == [str(best[:, :5].tolist()), str(best[:, 5:].tolist())]


@pytest.mark.slow
def test_a_moved_export_needs_tensorflow_scann_and_this_module(indexes, tmp_path):
    path = export_index(indexes["scann"], tmp_path / "first", ks=[5], check=False)
    moved = path.rename(tmp_path / "moved")
    others = {
        "tensorflow_recommenders",
        "tensorflow_datasets",
        "pyarrow",
        "pydantic",
        "yaml",
        "typer",
        "rich",
        "matplotlib",
        "sklearn",
    }
    code = _ANSWER_ALONE.format(blocked=others)
    code += """
from tfrs_negatives.index import load_index
index = load_index(sys.argv[1])
print(index.top_k({"user_id": [3, 8]}, 7, exclude=["item 5"])[1].tolist())
"""
    done = run(code, moved)
    assert done.returncode == 0, done.stderr
    expected = indexes["scann"].top_k({"user_id": [3, 8]}, 7, exclude=["item 5"])[1]
    assert done.stdout.strip() == str(expected.tolist())
