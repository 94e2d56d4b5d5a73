"""One typed record per run: read from YAML, changed by `key=value`, written beside the results."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    InstanceOf,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from tfrs_negatives.core.errors import InputError, bad_input, known_key
from tfrs_negatives.model import recipes  # noqa: F401  (registered)
from tfrs_negatives.model.composition import Composition
from tfrs_negatives.runs.sections import (
    BatchesConfig,
    DataConfig,
    EvaluationConfig,
    IndexConfig,
    ModelConfig,
    Section,
    TrainConfig,
    keys_read_by,
)


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
        for name in sorted(self.batches.model_fields_set - keys_read_by(self.order)):
            reader = "by_query" if name in keys_read_by("by_query") else "clustered"
            rule = f"no such key where the order is {self.order}: `batches.order={reader}` reads it"
            raise bad_input(f"batches.{name}", rule, repr(getattr(self.batches, name)))
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
        read = {n: x for n, x in tree["batches"].items() if n in keys_read_by(self.order)}
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
