"""One typed record per run: read from YAML, changed by `key=value`, written beside the results."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from tfrs_negatives.core.errors import InputError, bad_input, known_key
from tfrs_negatives.core.types import Similarity
from tfrs_negatives.data.schema import Column, Schema
from tfrs_negatives.data.sources.load import TABLES
from tfrs_negatives.model import recipes  # noqa: F401  (registered)
from tfrs_negatives.model.composition import Composition


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, as YAML 1.2 does; PyYAML follows 1.1, where it is a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str) -> Any:
    """Returns what a text in YAML says, with 1e-3 as a number.

    Raises:
        yaml.YAMLError: if it is not YAML.

    Example:
        >>> parse_yaml("[1e-3, in_batch, null]")
        [0.001, 'in_batch', None]
    """
    return yaml.load(text, _Loader)  # noqa: S506


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

    order: Literal["random", "clustered"] | None = Field(
        None, description="clustered: similar queries together; null: as the recipe says"
    )
    cluster_size: int = Field(1, ge=1, description="queries in a cluster at first; 1: random")
    double_every: int | None = Field(
        None, ge=1, description="epochs after which the size doubles; null: by train.epochs"
    )
    max_cluster_size: int | None = Field(None, ge=1, description="null: min_clusters limits it")
    min_clusters: int = Field(10, ge=1, description="how many remain at least")
    refresh_every: int = Field(5, ge=1, description="epochs after which queries are clustered anew")
    random_share: float = Field(0.0, ge=0, le=1, description="share of events left out of clusters")


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


class IndexConfig(Section):
    """The retrieval index."""

    kind: Literal["auto", "exact", "scann"] = "auto"
    target_recall: float = Field(0.95, gt=0, le=1)
    ks: list[int] = Field([10, 100], min_length=1)
    group_by: str | None = None


class RunConfig(Section):
    """Everything that decides a run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    task: Annotated[
        InstanceOf[Composition],
        BeforeValidator(Composition.read),
        PlainSerializer(lambda task: task.write()),
    ] = Field(default_factory=lambda: Composition.read({}))
    batches: BatchesConfig = BatchesConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    index: IndexConfig = IndexConfig()

    def with_absolute_paths(self) -> RunConfig:
        """Returns the configuration with its data found from any directory."""
        data = self.data.model_copy(deep=True)
        kind, colon, path = data.source.partition(":")
        data.source = f"{kind}:{Path(path).absolute()}" if colon else data.source
        data.data_dir = data.data_dir and str(Path(data.data_dir).absolute())
        if data.items is not None:
            data.items.path = str(Path(data.items.path).absolute())
        return self.model_copy(update={"data": data})

    @property
    def order(self) -> str:
        """Which events meet in a batch, as configured or else as the recipe says."""
        return self.batches.order or self.task.expansion.order

    @model_validator(mode="after")
    def _reads_all(self) -> RunConfig:
        """Refuses keys that nothing would read."""
        idle = sorted(self.batches.model_fields_set - {"order"})
        if self.order == "random" and idle:
            rule = "no such key where the order is random: `batches.order=clustered` reads it"
            raise bad_input(f"batches.{idle[0]}", rule, repr(getattr(self.batches, idle[0])))
        model, train = self.model, self.train
        bare = not model.hidden and model.output_dim is None and model.similarity == "cosine"
        if train.unit_rows and not (bare and train.optimizer == "sparse_adam"):
            rule = "false, but for sparse_adam, a cosine and no layer (hidden=[], output_dim=null)"
            raise bad_input("train.unit_rows", rule, True)
        return self

    @model_serializer(mode="wrap")
    def _resolved(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Writes what is read, every key with its value."""
        tree: dict[str, Any] = handler(self)
        read = tree["batches"] if self.order == "clustered" else {}
        return {**tree, "batches": {**read, "order": self.order}}

    def with_overrides(self, overrides: Sequence[str]) -> RunConfig:
        """Returns the configuration with `section.key=value` applied; raises as `load_config`."""
        asked = {
            name: section.model_dump(exclude_unset=True)
            if isinstance(section, Section)
            else section
            for name, section in self
        }
        return _resolve(asked, overrides)

    def to_yaml(self) -> str:
        """Returns the resolved configuration: the recipe as its parts, each key with its value."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False)


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a configuration.

    Args:
        path: a YAML file; None starts from the defaults.
        overrides: `section.key=value`, the value in YAML.

    Returns:
        The checked configuration.

    Raises:
        InputError: if the file cannot be read, a key is unknown (the nearest name is suggested) or
            a value is out of its range.

    Example:
        >>> load_config(overrides=["train.epochs=3", "model.hidden=[64, 32]"]).model.hidden
        [64, 32]
        >>> load_config(overrides=["train.epoch=3"])
        Traceback (most recent call last):
        ...
        tfrs_negatives.InputError: `train.epoch`: expected a known key, perhaps
        `train.epochs`. Received: 3
    """
    return _resolve({} if path is None else _read(Path(path)), overrides)


def _resolve(tree: dict[str, Any], overrides: Sequence[str]) -> RunConfig:
    # What names a part first: then an argument is that of the part which is there in the end.
    for override in sorted(overrides, key=_depth):
        _apply(tree, override)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise _explain(error) from None


def _depth(override: str) -> int:
    key = override.partition("=")[0]
    return key.count(".") if key.startswith("task.") else 0


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise bad_input("config", "a YAML file", f"{path}, which is no file")
    try:
        tree = parse_yaml(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise bad_input("config", "valid YAML", f"{path}: {reason}") from None
    if not isinstance(tree, dict | None):
        raise bad_input("config", "a mapping of sections", f"{path} with a {type(tree).__name__}")
    return tree or {}


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise bad_input("override", "section.key=value", repr(override))
    try:
        value = parse_yaml(text)
    except yaml.YAMLError:
        raise bad_input("override", "a value in YAML", repr(override)) from None
    # An error names a part as `task.negatives[1]`.
    *sections, name = re.sub(r"\[(\d+)\]", r".\1", key).split(".")
    if sections[:1] == ["task"]:
        task = tree.get("task") or {}
        if sections[1:]:
            path = [*sections[1:], name]
            tree["task"] = Composition.read(task).with_argument(path, value, key=key)
            return
        tree["task"] = task.asked if isinstance(task, Composition) else task
    for section in sections:
        if tree.get(section) is None:
            tree[section] = {}
        tree = tree[section]
        if not isinstance(tree, dict):
            raise bad_input("override", f"a section at {section!r}", repr(override))
    tree[name] = value


def _explain(error: ValidationError) -> Exception:
    """Turns the first finding of pydantic into one sentence."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        return bad_input(key, _nearest(path), first["input"])
    if first["type"] == "value_error":
        text = str(first["ctx"]["error"])
        # One that looks at several keys names the whole key itself.
        return InputError(text if not key or text.startswith(f"`{key}") else f"`{key}`, {text}")
    message = first["msg"].removeprefix("Input should be ")
    return bad_input(key, message, repr(first["input"]))


def _nearest(path: list[str]) -> str:
    model: Any = RunConfig
    for part in path[:-1]:
        annotation = model.model_fields[part].annotation
        model = next((a for a in get_args(annotation) if a is not type(None)), annotation)
    return known_key(path[-1], model.model_fields, ".".join(path[:-1]))
