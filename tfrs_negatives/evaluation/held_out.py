"""What is to be found: the test queries, their held-out items, and the items they have seen."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.interactions import Interactions
from tfrs_negatives.data.query_items import QueryItems

_log = logging.getLogger("tfrs_negatives")


@dataclass(frozen=True)
class HeldOut:
    """The queries that have something left to find.

    Attributes:
        query_features: name -> [Q, ...].
        relevant: the held-out pairs, without those that are excluded.
        seen: the pairs that may not be recommended.
        num_skipped_queries: test queries all of whose items are excluded.
        num_excluded_pairs: distinct held-out pairs that are excluded.
    """

    query_features: Mapping[str, np.ndarray]
    relevant: QueryItems
    seen: QueryItems
    num_skipped_queries: int
    num_excluded_pairs: int

    @property
    def num_queries(self) -> int:
        """Q, the number of queries that are evaluated."""
        return len(next(iter(self.query_features.values())))


def hold_out(test: Interactions, items: ItemCatalogue, *, exclude: Interactions | None) -> HeldOut:
    """Groups the test events by query and takes the excluded pairs out.

    Args:
        test: E events; equal events count once, weights are ignored.
        items: the corpus of N items.
        exclude: the log of seen items, or None.

    Raises:
        InputError: if the test is empty or nothing of it is left, if a log holds an item that is
            not in the catalogue, or if the two logs do not name their queries alike.
    """
    if not len(test):
        raise bad_input("test", "at least one event", "an empty log")
    # As of the first event: the later ones may know, in a history, what is to be found.
    features, query_of_event = test.queries(moment="first")
    held_out = QueryItems.distinct(query_of_event, test.item_rows(items))
    hidden = QueryItems(held_out.queries[:0], held_out.rows[:0])
    if exclude is not None:
        queries, events = _match_queries(test, features, exclude)
        hidden = QueryItems.distinct(queries, exclude.take(events).item_rows(items))
    wanted = held_out.where(~hidden.holds(*held_out))
    if not len(wanted.rows):
        raise bad_input(
            "exclude", "a log that leaves something to find", f"all {len(held_out.rows)} test pairs"
        )
    kept = np.unique(wanted.queries)
    return HeldOut(
        query_features={name: column[kept] for name, column in features.items()},
        relevant=wanted.of(kept),
        seen=hidden.of(kept),
        num_skipped_queries=len(np.unique(query_of_event)) - len(kept),
        num_excluded_pairs=len(held_out.rows) - len(wanted.rows),
    )


def _match_queries(
    test: Interactions, features: Mapping[str, np.ndarray], exclude: Interactions
) -> tuple[np.ndarray, np.ndarray]:
    """Returns query numbers and event rows of the events of `exclude` that have a test query."""
    key = test.query_key
    if key is None:
        raise bad_input("exclude", "None, as the test log has no query_key", "a log")
    if key not in exclude.query_features:
        raise bad_input("exclude", f"a log with {key!r}", sorted(exclude.query_features))
    known, theirs = features[key], exclude.query_features[key]
    if (known.dtype.kind == "U") != (theirs.dtype.kind == "U"):
        raise bad_input("exclude", f"{key!r} of dtype {known.dtype}", f"dtype {theirs.dtype}")
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known, theirs, sorter=order)
    queries = order[np.minimum(place, len(known) - 1)]
    events = np.flatnonzero(known[queries] == theirs)
    if not len(events):
        _log.warning("`exclude`: none of its %d events is of a test query, by %r", len(theirs), key)
    return queries[events], events
