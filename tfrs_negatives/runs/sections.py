"""The sections of a configuration: what each key is, its default and its range."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    ValidationInfo,
    field_validator,
)

from tfrs_negatives.core.errors import bad_input, known_key
from tfrs_negatives.core.types import Similarity
from tfrs_negatives.data.schema import Column, Schema
from tfrs_negatives.data.sources.load import TABLES


class Section(BaseModel):
    """A part of the configuration; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _as_column(spec: Any) -> Any:
    """Reads `user: query_id` as `user: {role: query_id}`."""
    if isinstance(spec, str):
        return Column(spec)  # type: ignore[arg-type]  # it is checked there
    if not isinstance(spec, dict):
        return spec
    known = [part.name for part in fields(Column)]
    for name in spec:
        if name not in known:
            raise bad_input(str(name), known_key(str(name), known), spec[name])
    if "role" not in spec:
        raise bad_input("role", "a role, such as query", "none")
    return Column(**spec)


ColumnConfig = Annotated[Column, BeforeValidator(_as_column)]


class ItemTableConfig(Section):
    """Where the catalogue of a Parquet or CSV log is."""

    path: str
    columns: dict[str, ColumnConfig] = Field(
        {},
        description="name: role, of item_id, item and title; none is item: all others are",
    )


class DataConfig(Section):
    """Which log, and how it is cut."""

    source: str = Field("synthetic", description="synthetic, movielens/100k, ml-100k:PATH, ...")
    split: Literal["as_given", "random", "by_user", "leave_last_out", "by_time"] | None = Field(
        None, description="null: as the source gives it, else by_time where it has times"
    )
    test_fraction: float = Field(0.2, gt=0, lt=1)
    validation_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the training events that takes the place of the test part, to choose "
        "settings on, cut off in the way of the split; null: the test part",
    )
    min_rating: float | None = Field(None, description="events with a lower label are dropped")
    data_dir: str | None = Field(None, description="where tensorflow-datasets keeps its data")
    columns: dict[str, ColumnConfig] | None = Field(
        None,
        description="name: role, name: {role, type, encoding, missing}, or name: null to leave it "
        "out; null: user_id and item_id of parquet and csv sources, what others say themselves",
    )
    items: ItemTableConfig | None = Field(
        None, description="the catalogue of parquet and csv sources; null: the items of the log"
    )

    @field_validator("columns", mode="before")
    @classmethod
    def _without_null(cls, columns: Any, info: ValidationInfo) -> Any:
        # So that an override can leave out a column of a file: `data.columns.age=null`.
        if not isinstance(columns, dict):
            return columns
        left_out = [name for name, spec in columns.items() if spec is None]
        if left_out and not str(info.data.get("source")).startswith(TABLES):
            rule = "a role with `encoding: left_out`, as the source has its own columns"
            raise bad_input(f"data.columns.{left_out[0]}", rule, None)
        return {name: spec for name, spec in columns.items() if spec is not None}

    @field_validator("columns")
    @classmethod
    def _one_of_each(cls, columns: dict[str, Column] | None) -> dict[str, Column] | None:
        return None if columns is None else dict(Schema(columns).columns)


class ModelConfig(Section):
    """The two towers and the score."""

    embedding_dim: int = Field(32, ge=1)
    hidden: list[int] = [512]
    output_dim: int | None = Field(
        128, ge=1, description="null: the last hidden layer is the output"
    )
    id_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of user and item ids read as unknown in training"
    )
    query_tower: str | None = Field(
        None,
        description="package.module:function of one's own, which is given the feature specs and "
        "this section, and returns the tower; null: the layers above",
    )
    item_tower: str | None = Field(None, description="the same for items")
    similarity: Similarity = "cosine"
    temperature: float = Field(0.1, gt=0)
    learn_temperature: bool = False
    item_bias: bool = False


class BatchesConfig(Section):
    """Which events meet in a batch."""

    order: Literal["random", "clustered", "by_query"] | None = Field(
        None,
        description="clustered: similar queries together; by_query: train.batch_size queries, each "
        "with all of its positives; null: as the recipe says",
    )
    max_positives: int | None = Field(
        None, ge=1, description="by_query: positives of a query in an epoch at most; null: all"
    )
    cluster_size: int = Field(1, ge=1, description="queries in a cluster at first; 1: random")
    double_every: int | None = Field(
        None, ge=1, description="epochs after which the size doubles; null: by train.epochs"
    )
    max_cluster_size: int | None = Field(None, ge=1, description="null: min_clusters limits it")
    min_clusters: int = Field(10, ge=1, description="how many remain at least")
    refresh_every: int = Field(5, ge=1, description="epochs after which queries are clustered anew")
    random_share: float = Field(0.0, ge=0, le=1, description="share of events left out of clusters")


def keys_read_by(order: str) -> set[str]:
    """Returns the keys of the section `batches` that an order reads."""
    own = {"random": set(), "by_query": {"max_positives"}}
    clustered = set(BatchesConfig.model_fields) - {"order", "max_positives"}
    return {"order"} | own.get(order, clustered)


class TrainConfig(Section):
    """How long and how fast."""

    epochs: int = Field(6, ge=1)
    batch_size: int = Field(2048, ge=1)
    resample_threshold: float | None = Field(None, gt=0, description="thins items of larger share")
    resample_exponent: float | None = Field(None, ge=0, description="events by count ^ exponent")
    optimizer: Literal["adagrad", "sparse_adam"] = "sparse_adam"
    learning_rate: float = Field(0.003, gt=0)
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="cosine: the learning rate falls to 0 over all epochs"
    )
    unit_rows: bool = Field(
        False,
        description="sparse_adam keeps embedding rows at length 1; for a cosine, no layer above",
    )
    seed: int = Field(0, ge=0, lt=2**31)
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = Field(
        "float32", description="of the towers; scores and losses are float32"
    )
    strategy: Literal["mirrored"] | None = Field(
        None, description="mirrored: all GPUs of this machine, or all its logical CPUs"
    )
    jit_compile: bool = Field(
        False, description="compile the step with XLA; needs integer ids and whole batches only"
    )
    encode_chunk: int | None = Field(
        None, ge=1, description="rows in a tower at once, where a batch does not fit; null: all"
    )
    logits_budget: int = Field(
        2**27, ge=4, description="bytes of logits at once; beyond, blocks are computed twice"
    )
    checkpoint_every_steps: int | None = Field(
        1000, ge=1, description="what a kill may cost; null: only the end of each epoch is saved"
    )


class EvaluationConfig(Section):
    """What is measured on the test part."""

    ks: list[int] = Field([10, 100], min_length=1)
    exclude_seen: bool = Field(
        True, description="leave training items out of a query's ranking, where queries have a key"
    )
    every_epochs: int | None = Field(None, ge=1, description="null: only after the last epoch")
    propensity: list[PositiveFloat] | None = Field(
        None, min_length=2, max_length=2, description="a and b of psp_at_k; null leaves it out"
    )


class IndexConfig(Section):
    """The retrieval index."""

    kind: Literal["auto", "exact", "scann"] = "auto"
    target_recall: float = Field(0.95, gt=0, le=1)
    ks: list[int] = Field([10, 100], min_length=1)
    group_by: str | None = None
