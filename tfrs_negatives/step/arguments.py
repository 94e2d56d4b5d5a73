"""The arguments of a part that a configuration may write, typed by the constructor's signature."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import numpy as np
from pydantic import BaseModel, ConfigDict, create_model

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import Family
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.id_lists import History
from tfrs_negatives.step.records import Frequency, Loss, Mask, Miner, Sampler

FAMILIES: dict[type, Family] = {
    Sampler: "sampler",
    Frequency: "frequency",
    Mask: "mask",
    Miner: "miner",
    Loss: "loss",
}


class Run(NamedTuple):
    """What a run knows that no file says.

    Attributes:
        items: the catalogue of N items.
        log: the training log; None where there is none.
        counts: [N] the training events of each item; None where they are unknown.
        positives_per_query: how many a query brings to a batch on average, where batches are of
            queries; None elsewhere.
    """

    items: ItemCatalogue
    log: History | None = None
    counts: np.ndarray | None = None
    positives_per_query: float | None = None


PROVIDED: dict[str, Callable[[Run], Any]] = {
    "items": lambda run: run.items,
    "probes": lambda run: run.items,
    "ids": lambda run: run.items.ids,
    "counts": lambda run: run.counts,
    "positives_per_query": lambda run: run.positives_per_query,
    "history": lambda run: run.log,
    "log": lambda run: run.log,
}
"""Arguments that the run gives to every part which has them. They cannot be written."""

SIZED: dict[str, Callable[[Run], Any]] = {"num_buckets": lambda run: max(1024, 4 * len(run.items))}
"""Arguments that the run gives where nothing is written, or null."""


class Written:
    """What stands for a part until it is built."""


class _Arguments(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, arbitrary_types_allowed=True, protected_namespaces=()
    )


@functools.cache
def argument_types(
    target: Callable[..., Any], only: tuple[str, ...] | None = None
) -> type[BaseModel]:
    """Returns the arguments that a configuration may write of a class or a function.

    Args:
        target: a class, by its constructor, or a function.
        only: those among them; None is all that the run does not provide.

    Returns:
        A model that refuses unknown keys and other types; a part is a `Written`.

    Example:
        >>> from tfrs_negatives.step.samplers import Uniform
        >>> list(argument_types(Uniform).model_fields)
        ['num_negatives']
    """
    hints, fields = _hints(target), {}
    for name, parameter in parameters(target).items():
        if name in PROVIDED or (only is not None and name not in only):
            continue
        annotation, default = _writable(hints.get(name, Any)), parameter.default
        if name in SIZED:
            annotation, default = annotation | None, None
        fields[name] = (annotation, ... if default is parameter.empty else default)
    named: Any = fields
    return create_model(getattr(target, "__name__", "Arguments"), __base__=_Arguments, **named)


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the named parameters of a constructor, without the object itself, or a function."""
    known = list(inspect.signature(_function_of(target)).parameters.values())
    named = [p for p in known if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return {p.name: p for p in named[isinstance(target, type) :]}


def family_of(target: Callable[..., Any], name: str) -> Family | None:
    """Returns the family of the parts that an argument takes, one or a list; None for a value."""
    return _family_in(_hints(target).get(name, Any))


def signature_text(target: Callable[..., Any]) -> dict[str, str]:
    """Returns each argument that may be written -> its type and default, as text.

    Example:
        >>> from tfrs_negatives.step.miners import Hardest
        >>> signature_text(Hardest)
        {'k': 'int', 'by': 'logit or score = logit'}
    """
    texts = {}
    for name, field in argument_types(target).model_fields.items():
        default = "null" if field.default is None else str(field.default)
        end = "" if field.is_required() else f" = {default}"
        texts[name] = _type_text(field.annotation) + end
    return texts


def _function_of(target: Callable[..., Any]) -> Callable[..., Any]:
    constructor: Any = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    return constructor


@functools.cache
def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = inspect.unwrap(_function_of(target))
    if function is object.__init__:
        return {}
    names = _names_for_types(sys.modules[function.__module__])
    try:
        return get_type_hints(function, localns=names, include_extras=True)
    except NameError as error:
        rule = "annotations of names that its module has, or imports for types"
        raise bad_input(f"{function.__module__}:{function.__qualname__}", rule, error) from error


def _names_for_types(module: types.ModuleType) -> dict[str, Any]:
    """Returns what a module imports for annotations only, under `if TYPE_CHECKING:`."""
    try:
        body = ast.parse(inspect.getsource(module)).body
    except (OSError, TypeError):
        return {}
    names: dict[str, Any] = {}
    blocks = [x.body for x in body if isinstance(x, ast.If) and "TYPE_CHECKING" in ast.dump(x.test)]
    for node in (node for block in blocks for node in block):
        for alias in getattr(node, "names", []):
            own = alias.asname or alias.name.partition(".")[0]
            if isinstance(node, ast.ImportFrom):
                names[own] = getattr(importlib.import_module(str(node.module)), alias.name)
            else:
                names[own] = importlib.import_module(alias.name if alias.asname else own)
    return names


def _family_in(annotation: Any) -> Family | None:
    if isinstance(annotation, type) and annotation in FAMILIES:
        return FAMILIES[annotation]
    found = (_family_in(inner) for inner in get_args(annotation))
    return next((family for family in found if family is not None), None)


def _writable(annotation: Any) -> Any:
    """Returns the type of what a file can say of an annotation."""
    if isinstance(annotation, type) and annotation in FAMILIES:
        return Written
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        known = tuple(_writable(one) for one in inner if _is_data(one))
        return Union[known] if known else annotation  # noqa: UP007
    if origin in (list, Sequence) and _family_in(annotation) is not None:
        return list[Written]
    return annotation


def _is_data(annotation: Any) -> bool:
    plain = get_origin(annotation) or annotation
    if plain in (Literal, Any, Sequence, Mapping, *FAMILIES):
        return True
    data = (bool, int, float, str, list, dict, type(None))
    return isinstance(plain, type) and issubclass(plain, data)


def _type_text(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(_type_text(one) for one in inner)
    if origin is list and inner == (Written,):
        return "parts"
    names = {type(None): "null", Written: "a part", Any: "any"}
    plain = str(annotation) if inner else str(getattr(annotation, "__name__", annotation))
    return names.get(annotation, plain)
