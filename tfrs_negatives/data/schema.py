"""What the columns of a log and of a catalogue mean: declared once, for every container and file.

Imports neither TensorFlow nor numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import ColumnType, Encoding

Role = Literal[
    "query_id", "item_id", "query", "constant", "event", "history", "item", "title", "time",
    "weight", "label",
]  # fmt: skip
Missing = Literal["error", "own"]

QUERY_ROLES = ("query_id", "query", "constant", "event", "history")
ONE_OF_EACH = ("query_id", "item_id", "title", "time", "weight", "label")
CAN_MISS = ("query", "constant", "event", "history", "item")


@dataclass(frozen=True)
class Column:
    """What one column means.

    Attributes:
        role: what it is for:
            `query_id` says which events belong together, `item_id` what was chosen;
            `query` is a feature of the query, found from the data to be `constant` (the same in all
            events of a query) or of the `event` (true at its moment only), and may be declared as
            either;
            `history` is the list of items that came before the event, a feature of the event;
            `item` is a feature of the item and `title` its name for display;
            `time` orders the events; `weight` weighs them; `label` is compared with `min_rating`.
        type: "integer", "number", "text" or "time"; None takes the column as it is.
        encoding: how the tower reads a feature, "left_out" where it does not; None is inferred
            (`tfn.infer_features`).
        missing: "error", or "own": a row without a value is a category of its own, also beside
            bins, a number without a value the mean and an indicator.
        bins: how many buckets of about as many rows each the encoding "binned" cuts a number into,
            at least 2; fewer come out where one value has the rows of several. None is 10.

    Raises:
        InputError: if a setting is unknown or not for this role.

    Example:
        >>> Column("query", missing="own").missing
        'own'
        >>> Column("item_id", missing="own")
        Traceback (most recent call last):
        ...
        tfrs_negatives.InputError: `missing`: expected 'error' for the role item_id. Received:
        'own'
    """

    role: Role
    type: ColumnType | None = None
    encoding: Encoding | None = None
    missing: Missing = "error"
    bins: int | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("role", self.role, get_args(Role)),
            ("type", self.type, (*get_args(ColumnType), None)),
            ("encoding", self.encoding, (*get_args(Encoding), None)),
            ("missing", self.missing, get_args(Missing)),
        ):
            if value not in known:
                raise bad_input(name, f"one of {[*known]}", repr(value))
        fits = type(self.bins) is int and self.bins >= 2 and self.encoding == "binned"
        if self.bins is not None and not fits:
            raise bad_input("bins", "at least 2, for the encoding binned", repr(self.bins))
        if self.missing == "own" and self.role not in CAN_MISS:
            raise bad_input("missing", f"'error' for the role {self.role}", "'own'")
        if self.role == "history" and self.encoding not in (None, "list", "left_out"):
            raise bad_input("encoding", "list for a history", repr(self.encoding))
        if self.role in ("query_id", "item_id") and self.type not in (None, "integer", "text"):
            raise bad_input("type", f"integer or text for the role {self.role}", repr(self.type))
        if self.encoding is not None and self.role not in (*QUERY_ROLES, "item_id", "item"):
            raise bad_input("encoding", f"none for the role {self.role}", repr(self.encoding))


ColumnSpec: TypeAlias = "Role | Column"


@dataclass(frozen=True)
class Schema:
    """What the columns of a table mean, by name. A column that is not named is not read.

    Args:
        columns: name -> role, or `Column` where there is more to say.

    Raises:
        InputError: for an unknown role, or two columns of a role that only one can have.

    Example:
        >>> schema = Schema({"user": "query_id", "movie": "item_id", "age": Column("query")})
        >>> schema.query_key, schema.item_key, schema.features
        ('user', 'movie', ('user', 'age'))
    """

    columns: Mapping[str, Column] = field(default_factory=dict)

    def __init__(self, columns: Mapping[str, ColumnSpec]) -> None:
        if not isinstance(columns, Mapping):
            raise bad_input("columns", "a mapping of column names to roles", repr(columns))
        for name in columns:
            if not isinstance(name, str):
                raise bad_input("columns", "names that are texts", repr(name))
        specs = {name: _as_column(name, spec) for name, spec in columns.items()}
        object.__setattr__(self, "columns", specs)
        for role in ONE_OF_EACH:
            names = self.names(role)
            if len(names) > 1:
                raise bad_input("columns", f"one column of the role {role}", names)

    def names(self, *roles: str) -> tuple[str, ...]:
        """Returns the columns of some roles, in the order of the schema."""
        return tuple(name for name, column in self.columns.items() if column.role in roles)

    def only(self, role: str) -> str | None:
        """Returns the column of a role that at most one has."""
        return next(iter(self.names(role)), None)

    @property
    def item_key(self) -> str:
        """The column of the item ids.

        Raises:
            InputError: if there is none.
        """
        name = self.only("item_id")
        if name is None:
            raise bad_input("columns", "a column of the role item_id", sorted(self.columns))
        return name

    @property
    def query_key(self) -> str | None:
        """The column that says which events belong together."""
        return self.only("query_id")

    @property
    def features(self) -> tuple[str, ...]:
        """The columns that the query tower may read."""
        return self.names(*QUERY_ROLES)

    @property
    def may_miss(self) -> frozenset[str]:
        """The columns whose rows may be without a value."""
        return frozenset(n for n, column in self.columns.items() if column.missing == "own")

    def having(self, name: str, column: ColumnSpec) -> Schema:
        """Returns the schema with one column more, or another meaning of one."""
        return Schema({**self.columns, name: column})

    def with_type(self, name: str, wanted: ColumnType) -> Schema:
        """Returns the schema with another type of a column."""
        return self.having(name, replace(self.columns[name], type=wanted))

    def type_of(self, name: str) -> ColumnType | None:
        """Returns the declared type of a column; None where none is."""
        return self.columns[name].type if name in self.columns else None

    def check_against(self, known: Iterable[str], *, where: str) -> None:
        """Refuses a declared column that a table does not have.

        Raises:
            InputError: with the columns that it has.
        """
        known = list(known)
        for name in self.columns:
            if name not in known:
                raise bad_input(name, f"one of the columns {known} of {where}", repr(name))


def _as_column(name: str, spec: Any) -> Column:
    if isinstance(spec, Column):
        return spec
    if not isinstance(spec, str) or spec not in get_args(Role):
        raise bad_input(
            f"columns.{name}", f"one of {list(get_args(Role))}, or a Column", repr(spec)
        )
    return Column(spec)  # type: ignore[arg-type]
