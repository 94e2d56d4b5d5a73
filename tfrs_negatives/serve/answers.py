"""A batch of requests -> their answers, all from one export."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.index.arguments import check_features, check_k, check_lists
from tfrs_negatives.runs.tables import KnownItems, KnownQueries
from tfrs_negatives.serve.deployment import Snapshot
from tfrs_negatives.serve.schemas import Export, RankedItem, Recommend, Recommendation


class _Checked(NamedTuple):
    """A request that the index can take, as arrays; features are [1, ...]."""

    features: dict[str, np.ndarray]
    k: int
    exclude: Sequence[Any]
    allow: Sequence[Any] | None
    allow_groups: Sequence[Any] | None

    @property
    def kind(self) -> Hashable:
        """Requests of one kind can go together: the same filters, features of one shape."""
        shapes = tuple(column.shape for column in self.features.values())
        return self.allow is None, self.allow_groups is None, shapes


def answer_batch(
    snapshot: Snapshot, requests: Sequence[Recommend]
) -> list[Recommendation | Exception]:
    """Answers requests that came together.

    Each is checked alone before it joins the others. Should a search fail all the same, each of its
    requests is tried once more by itself: nobody fails for what a neighbour asked.

    Args:
        snapshot: what answers all of them.
        requests: n of them.

    Returns:
        n answers, or what was wrong with the request.
    """
    answers: list[Recommendation | Exception] = [RuntimeError("no answer")] * len(requests)
    groups: dict[Hashable, dict[int, _Checked]] = {}
    for place, request in enumerate(requests):
        try:
            checked = _check(snapshot, request)
        except Exception as error:
            answers[place] = error
        else:
            groups.setdefault(checked.kind, {})[place] = checked
    for group in groups.values():
        for place, answer in zip(group, _search(snapshot, list(group.values())), strict=True):
            answers[place] = answer
    return answers


def known_queries(snapshot: Snapshot) -> KnownQueries:
    """Returns the known queries of a run.

    Raises:
        InputError: if its log has no `query_key`.
    """
    if snapshot.tables.queries is None:
        raise bad_input("query_id", "the features of a query, as the log has no query_key", "an id")
    return snapshot.tables.queries


def history_of(snapshot: Snapshot, query: str) -> tuple[list[Any], list[int] | None]:
    """Returns the items that a known query chose and when, the latest first.

    Raises:
        InputError: if the query is unknown, or the training log could not be read.
    """
    known_queries(snapshot).take([query])
    if snapshot.tables.history is None:
        raise bad_input("history", "a run whose training log can be read", snapshot.run)
    return snapshot.tables.history.of(query)


def _check(snapshot: Snapshot, request: Recommend) -> _Checked:
    index, seen = snapshot.index, []
    if request.query_id is None:
        given = {n: [v] for n, v in (request.features or {}).items()}
        tensors = check_features(given, index.query_signature)
        features = {name: tensor.numpy() for name, tensor in tensors.items()}
    else:
        # Of the run's own table: these are checked with the batch.
        known = known_queries(snapshot).take([str(request.query_id)])
        features = {name: known[name] for name in index.query_signature}
        if request.exclude_seen:
            seen = history_of(snapshot, str(request.query_id))[0]
    lists = {"exclude": request.exclude, "allow": request.allow}
    for name, ids in lists.items():
        check_lists(ids, 1, argument=name, padding=index.padding_id)
    return _Checked(
        features,
        check_k(request.k, len(index), f"at most {len(index)}, the items of the index"),
        [*(request.exclude or []), *seen],
        request.allow,
        request.allow_groups,
    )


def _search(
    snapshot: Snapshot, requests: Sequence[_Checked]
) -> Sequence[Recommendation | Exception]:
    try:
        return _search_together(snapshot, requests)
    except Exception as error:
        if len(requests) == 1:
            return [error]
        return [_search(snapshot, [request])[0] for request in requests]


def _search_together(snapshot: Snapshot, requests: Sequence[_Checked]) -> list[Recommendation]:
    first = requests[0]
    excludes = [request.exclude for request in requests]
    scores, ids = snapshot.index.top_k(
        {n: np.concatenate([r.features[n] for r in requests]) for n in first.features},
        max(request.k for request in requests),
        exclude=excludes if any(excludes) else None,
        allow=None if first.allow is None else [r.allow for r in requests],
        allow_groups=None if first.allow_groups is None else [r.allow_groups for r in requests],
    )
    return [
        _answer(snapshot, request.k, row_ids[: request.k], row_scores[: request.k])
        for request, row_ids, row_scores in zip(requests, ids, scores, strict=True)
    ]


def _answer(snapshot: Snapshot, k: int, ids: np.ndarray, scores: np.ndarray) -> Recommendation:
    found = np.isfinite(scores)
    pairs = zip(ids[found].tolist(), scores[found].tolist(), strict=True)
    ranked = [
        RankedItem(**describe(snapshot.tables.items, item), rank=rank, score=score)
        for rank, (item, score) in enumerate(pairs, 1)
    ]
    return Recommendation(
        run=snapshot.run, export=export_of(snapshot), k=k, found=len(ranked), items=ranked
    )


def describe(items: KnownItems, item: Any) -> dict[str, Any]:
    """Returns the fields of `schemas.Item`."""
    return {
        "id": item,
        "title": items.title(item),
        "training_events": items.training_events(item),
    }


def export_of(snapshot: Snapshot) -> Export:
    """Returns the export as an answer names it."""
    return Export(created=snapshot.export.created, checksum=snapshot.export.checksum)
