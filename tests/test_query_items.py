"""Which items each query has, against sets of pairs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tfrs_negatives.data.query_items import QueryItems

pairs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=20)


def make(events):
    return QueryItems.distinct(*np.array(events, np.int64).reshape(-1, 2).T)


def listed(items):
    return list(zip(items.queries.tolist(), items.rows.tolist(), strict=True))


@given(pairs)
def test_each_pair_is_there_once_sorted(events):
    assert listed(make(events)) == sorted(set(events))


@given(pairs, st.lists(st.integers(0, 7), max_size=6))
def test_the_pairs_of_some_queries_are_numbered_in_their_order(events, chunk):
    wanted = [(n, r) for n, query in enumerate(chunk) for q, r in sorted(set(events)) if q == query]
    assert listed(make(events).of(np.array(chunk, np.int64))) == wanted


@given(pairs)
def test_it_holds_its_pairs_and_no_others(events):
    queries, rows = np.arange(7)[:, None], np.arange(-2, 5)
    wanted = [[(query, row) in events for row in range(-2, 5)] for query in range(7)]
    assert make(events).holds(queries, rows).tolist() == wanted


@given(pairs)
def test_some_of_the_pairs(events):
    items = make(events)
    kept = items.where(items.rows > 2)
    assert listed(kept) == [pair for pair in sorted(set(events)) if pair[1] > 2]
