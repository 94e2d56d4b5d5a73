"""What a log was understood to be: a line per column, to be read before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tfrs_negatives.data.columns import MISSING_INTEGER
from tfrs_negatives.data.interactions import Interactions
from tfrs_negatives.data.retrieval_data import RetrievalData
from tfrs_negatives.data.schema import ColumnSpec, Schema
from tfrs_negatives.towers.features import FeatureSpec


class ColumnReport(NamedTuple):
    """What one column was understood to be.

    Attributes:
        name: of the column.
        side: "query", "item" or "event".
        role: a role of `Column`; a query feature is `constant` or of the `event`.
        declared: whether the role was declared, and not found.
        type: "integer", "number" or "text", and [W] for several a row.
        encoding: how the tower reads it; None where it does not.
        distinct: how many different values the training part has; None for several a row.
        missing: how many rows have none.
    """

    name: str
    side: str
    role: str
    declared: bool
    type: str
    encoding: str | None
    distinct: int | None
    missing: int


def describe(
    data: RetrievalData,
    queries: Sequence[FeatureSpec] = (),
    items: Sequence[FeatureSpec] = (),
) -> list[ColumnReport]:
    """Says what each column of the training part and of the catalogue was understood to be.

    Args:
        data: the log and its catalogue.
        queries: how the query tower reads its features.
        items: how the item tower reads its features.

    Returns:
        A line per column: query features, item features, what else the log has.

    Example:
        >>> from tfrs_negatives import data as datasets
        >>> for line in describe(datasets.synthetic(60, 200, num_events=600))[:2]:
        ...     print(line.name, line.role, line.type, line.distinct)
        user_id query_id text 59
        age_group constant integer 7
    """
    log = data.train
    of_event = log.event_features
    encodings = [{spec.name: spec.kind for spec in specs} for specs in (queries, items)]
    roles, item_roles = _roles(log.columns), _roles(data.items.columns)
    lines = []
    for name, column in log.query_features.items():
        declared = roles.get(name)
        is_found = declared in (None, "query")
        role = ("event" if name in of_event else "constant") if is_found else str(declared)
        lines.append(_line(name, column, "query", role, not is_found, encodings[0]))
    for name, column in data.items.features.items():
        role = item_roles.get(name, "item")
        lines.append(_line(name, column, "item", role, name in data.items.columns, encodings[1]))
    return lines + _of_events(log)


def _roles(columns: Mapping[str, ColumnSpec]) -> dict[str, str]:
    return {name: column.role for name, column in Schema(columns).columns.items()}


def _of_events(log: Interactions) -> list[ColumnReport]:
    columns = {"time": log.timestamps, "weight": log.weights, "label": log.labels}
    return [
        _line(role, column, "event", role, True, {})
        for role, column in columns.items()
        if column is not None
    ]


def _line(
    name: str,
    column: np.ndarray,
    side: str,
    role: str,
    declared: bool,
    encodings: Mapping[str, str],
) -> ColumnReport:
    kind = {"f": "number", "U": "text"}.get(column.dtype.kind, "integer")
    missing = _missing(column)
    return ColumnReport(
        name,
        side,
        role,
        declared,
        kind if column.ndim == 1 else f"{kind} [{column.shape[1]}]",
        encodings.get(name),
        len(np.unique(column[~missing])) if column.ndim == 1 else None,
        int(missing.sum()),
    )


def _missing(column: np.ndarray) -> np.ndarray:
    """Returns [E] bool; of lists, those that are empty."""
    if column.dtype.kind == "f":
        nothing = np.isnan(column)
    elif column.dtype.kind == "U":
        nothing = np.asarray(column == "")
    else:
        nothing = np.asarray(column == (MISSING_INTEGER if column.ndim == 1 else -1))
    return nothing.reshape(len(column), -1).all(axis=1) if len(column) else nothing


def as_text(data: RetrievalData, lines: Sequence[ColumnReport]) -> str:
    """Returns the lines as a table for people.

    Example:
        >>> from tfrs_negatives import data as datasets
        >>> data = datasets.synthetic(60, 200, num_events=600)
        >>> print(as_text(data, describe(data)[:1]))
        synthetic: 510 training events, 90 test events, 200 items
          column   side   role      type  encoding  distinct  missing
          user_id  query  query_id  text  -         59        0
    """
    title = (
        f"{data.name}: {len(data.train):,} training events, {len(data.test):,} test events, "
        f"{len(data.items):,} items"
    )
    rows = [("column", "side", "role", "type", "encoding", "distinct", "missing")]
    for line in lines:
        role = line.role if line.declared else f"{line.role} (found)"
        distinct = "-" if line.distinct is None else f"{line.distinct:,}"
        encoding, missing = line.encoding or "-", f"{line.missing:,}"
        rows.append((line.name, line.side, role, line.type, encoding, distinct, missing))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    texts = ("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join([title, *(f"  {text.rstrip()}" for text in texts)])
