"""Requests and answers, and how much may be asked for.

What a request says beyond its schema is refused, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator
from typing_extensions import Self

MAX_BODY_BYTES = 8 * 2**20
"""A list of `MAX_IDS` ids fits."""

MAX_IDS = 100_000
"""Ids in each of `exclude`, `allow` and `allow_groups`."""

MAX_K = 1000

MAX_ITEMS_PER_CALL = 1000
"""Items in one upsert or deletion: the item tower encodes them in one piece."""

MAX_CHANGED_ITEMS = 10_000
"""Items upserted since the start. They are searched exactly, so they have to stay few."""

MAX_LISTED = 100
"""Ids that a search for queries lists."""

MAX_HISTORY = 1000
"""Events of a history that are shown, the latest."""

MAX_TEXT = 1000
"""Characters of an id or a prefix in the address."""

Id: TypeAlias = int | str

# What a feature has to be is in the signature of the export, not in the schema.
Feature = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [{"type": name} for name in ("string", "number", "boolean", "array")],
            "description": "One value, without a batch axis.",
        }
    ),
]


class Body(BaseModel):
    """What a client sends: no unknown fields, and no number for a string or the reverse."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Parameters(BaseModel):
    """The parameters in an address."""

    model_config = ConfigDict(extra="forbid")

    run: str | None = Field(None, description="Which run, by name; the first.")


class Recommend(Body):
    """One query, and what its answer may consist of."""

    features: dict[str, Feature] | None = Field(
        None, description="The features of the query; or `query_id`."
    )
    query_id: Id | None = Field(None, description="The id of a query of the training log.")
    k: int = Field(10, ge=1, le=MAX_K, description="How many items, at most the corpus.")
    exclude: list[Id] | None = Field(
        None, max_length=MAX_IDS, description="Items that are not to come back."
    )
    allow: list[Id] | None = Field(
        None, max_length=MAX_IDS, description="Items of which alone the answer may consist."
    )
    allow_groups: list[Id] | None = Field(
        None, max_length=MAX_IDS, description="Groups of which one must be the item's."
    )
    exclude_seen: bool = Field(
        False, description="Leave out what the known query chose in the training log."
    )
    run: str | None = Field(None, description="Which run, by name; the first.")

    @model_validator(mode="after")
    def _one_query(self) -> Self:
        if (self.features is None) == (self.query_id is None):
            raise ValueError("expected either `features` or `query_id`")
        if self.exclude_seen and self.query_id is None:
            raise ValueError("expected `query_id` with `exclude_seen`: whose history?")
        return self


class Export(BaseModel):
    """Which export answered."""

    created: str | None = Field(description="When it was made.")
    checksum: str = Field(description="SHA-256 of its manifest.")


class Item(BaseModel):
    """An item, with what the run knows of it."""

    id: Id
    title: str | None = None
    training_events: int | None = Field(None, description="None for an item added since.")


class RankedItem(Item):
    """An item of an answer."""

    rank: int
    score: float


class Recommendation(BaseModel):
    """The best items that the filters leave: `found` may be less than k."""

    run: str
    export: Export
    k: int
    found: int
    items: list[RankedItem]


class NewItem(Body):
    """An item to add, or to replace."""

    id: Id
    features: dict[str, Feature] = Field(
        description="Those that the item tower reads; the id itself may be left out."
    )
    group: Id | None = Field(
        None, description="What `allow_groups` filters by. Without it the item is in no group."
    )


class Upsert(Body):
    """Items to add or to replace, until the process ends."""

    items: list[NewItem] = Field(min_length=1, max_length=MAX_ITEMS_PER_CALL)
    run: str | None = Field(None, description="Which run, by name; the first.")


class Changed(BaseModel):
    """What became of a change of the items."""

    run: str
    export: Export
    changed: int = Field(description="Items of this call.")
    upserted: int = Field(description="Items that stand in for the export, or beside it, now.")
    deleted: int = Field(description="Items of the export that are gone now.")


class Deletion(Parameters):
    """Items to take out, until the process ends."""

    id: list[Annotated[str, Field(max_length=MAX_TEXT)]] = Field(
        min_length=1, max_length=MAX_ITEMS_PER_CALL, description="Once for each item."
    )


class FindQueries(Parameters):
    """A search among the known queries."""

    prefix: str = Field("", max_length=MAX_TEXT, description="How the id begins.")
    limit: int = Field(20, ge=1, le=MAX_LISTED)


class Queries(BaseModel):
    """Known queries, by id as text, in order."""

    run: str
    key: str = Field(description="The feature that is the id.")
    queries: list[str]


class ShowHistory(Parameters):
    """Whose history."""

    query_id: str = Field(max_length=MAX_TEXT)
    limit: int = Field(50, ge=1, le=MAX_HISTORY)


class Event(Item):
    """An item that a query chose."""

    time: int | None = Field(None, description="Seconds since 1970, where the log has times.")


class Events(BaseModel):
    """What a query chose in the training log, the latest first."""

    run: str
    query_id: str
    total: int
    events: list[Event]


class ServedRun(BaseModel):
    """A run that is served."""

    name: str
    export: Export
    num_items: int
    has_queries: bool
    has_history: bool
    query_features: dict[str, str] = Field(description="name: dtype and shape.")
    item_features: dict[str, str] = Field(description="name: dtype and shape.")


class Runs(BaseModel):
    """The runs that are served, the first is the one that answers where none is named."""

    runs: list[ServedRun]


class Status(BaseModel):
    """Whether the service does what was asked about."""

    status: str


class Problem(BaseModel):
    """Why there is no answer, in a sentence."""

    detail: str
