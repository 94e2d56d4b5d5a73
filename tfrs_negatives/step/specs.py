"""Parts as a configuration writes them: data, until a run builds them.

`name`, `{name: null}` and `{name: {argument: value}}` are one thing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tfrs_negatives.core.errors import InputError, bad_input, known_key
from tfrs_negatives.core.part import Family, find_part
from tfrs_negatives.step import frequency, losses, miners, samplers  # noqa: F401  (registered)
from tfrs_negatives.step.arguments import (
    FAMILIES,
    PROVIDED,
    SIZED,
    Run,
    Written,
    argument_types,
    family_of,
    parameters,
)
from tfrs_negatives.step.masks import keep, known_positives  # noqa: F401  (registered)


@dataclass(frozen=True)
class Spec(Written):
    """A part by its name, with every argument that a configuration may write of it.

    Attributes:
        family: what it is in a step.
        name: as registered, or `package.module:Class`.
        arguments: name -> value; a `Spec` where the value is a part.
    """

    family: Family
    name: str
    arguments: Mapping[str, Any]

    @classmethod
    def read(cls, family: Family, data: Any, path: str) -> Spec:
        """Checks what is written.

        Args:
            family: what it is in a step.
            data: `name` or `{name: {argument: value}}`.
            path: the key, for errors.

        Raises:
            InputError: if the name or an argument is unknown, or a value is of the wrong type.

        Example:
            >>> Spec.read("miner", {"hardest": {"k": 5}}, "task.miners[0]").write()
            {'hardest': {'k': 5, 'by': 'logit'}}
        """
        if isinstance(data, Spec):
            return data
        pair = {data: None} if isinstance(data, str) else data
        if not isinstance(pair, dict) or [type(name) for name in pair] != [str]:
            rule = f"a {family} as `name` or `{{name: {{argument: value}}}}`"
            raise bad_input(path, rule, repr(data))
        ((name, arguments),) = pair.items()
        try:
            target = find_part(family, name)
        except InputError as error:
            raise InputError(re.sub("^`[^`]*`", f"`{path}`", str(error))) from error.__cause__
        base = next((base for base, known in FAMILIES.items() if known == family), object)
        if base is not object and not (isinstance(target, type) and issubclass(target, base)):
            raise bad_input(path, f"a subclass of `records.{base.__name__}`", name)
        return cls(family, name, read_arguments(target, arguments, f"{path}.{name}"))

    @property
    def target(self) -> Callable[..., Any]:
        """The class, or the function of a recipe."""
        return find_part(self.family, self.name)

    def write(self) -> Any:
        """Returns the data that `read` reads, with every argument."""
        arguments = {name: write(value) for name, value in self.arguments.items()}
        return {self.name: arguments} if arguments else self.name

    def build(self, run: Run, path: str) -> Any:
        """Makes the part.

        Args:
            run: what the run knows.
            path: the key, for errors.

        Raises:
            InputError: if the constructor refuses an argument; the message names its key.
        """
        path, known = f"{path}.{self.name}", parameters(self.target)
        arguments = build_arguments(self.arguments, run, path)
        for name in known.keys() & PROVIDED.keys():
            arguments[name] = PROVIDED[name](run)
            if arguments[name] is None and known[name].default is known[name].empty:
                raise bad_input(f"{path}.{name}", "what the run provides", None)
        for name in arguments.keys() & SIZED.keys():
            if arguments[name] is None:
                arguments[name] = SIZED[name](run)
        try:
            return self.target(**arguments)
        except InputError as error:
            raise below(path, error) from error


def below(path: str, error: InputError) -> InputError:
    """Returns the error with the path before the name of the argument."""
    return InputError(f"`{path}.{str(error)[1:]}")


def write(value: Any) -> Any:
    """Returns a checked value as data."""
    if isinstance(value, Spec):
        return value.write()
    return [write(one) for one in value] if isinstance(value, list | tuple) else value


def build_arguments(arguments: Mapping[str, Any], run: Run, path: str) -> dict[str, Any]:
    """Returns the arguments with parts in the place of their specs; raises as `Spec.build`."""

    def build(value: Any, key: str) -> Any:
        if isinstance(value, Spec):
            return value.build(run, key)
        if isinstance(value, list):
            return [build(one, f"{key}[{i}]") for i, one in enumerate(value)]
        return value

    return {name: build(value, f"{path}.{name}") for name, value in arguments.items()}


def read_arguments(
    target: Callable[..., Any], data: Any, path: str, *, only: tuple[str, ...] | None = None
) -> dict[str, Any]:
    """Checks arguments by the signature of what takes them.

    Args:
        target: a class or a function.
        data: name -> value; None is no argument.
        path: the key, for errors.
        only: the arguments that may be written; None is all that the run does not provide.

    Returns:
        Name -> value of every argument that may be written, parts as `Spec`.

    Raises:
        InputError: if an argument is unknown, missing or of the wrong type.

    Example:
        >>> from tfrs_negatives.step.miners import Hardest
        >>> read_arguments(Hardest, {"k": 1.5}, "task.miners[0].hardest")
        Traceback (most recent call last):
        ...
        tfrs_negatives.InputError: `task.miners[0].hardest.k`: expected a valid integer...
    """
    if not isinstance(data, dict | None):
        raise bad_input(path, "a mapping of arguments", repr(data))
    model, given = argument_types(target, only), dict(data or {})
    for name, value in given.items():
        key = f"{path}.{name}"
        if name not in model.model_fields:
            provided = name in PROVIDED and name in parameters(target)
            known = "nothing: the run provides it" if provided else None
            raise bad_input(key, known or known_key(name, model.model_fields, path), repr(value))
        family = family_of(target, name)
        if family is not None:
            given[name] = _read_parts(family, value, key)
    try:
        checked = model.model_validate(given)
    except ValidationError as error:
        raise _explain(error, path) from None
    return {name: getattr(checked, name) for name in model.model_fields}


def _read_parts(family: Family, value: Any, path: str) -> Any:
    if isinstance(value, list):
        return [Spec.read(family, one, f"{path}[{i}]") for i, one in enumerate(value)]
    return None if value is None else Spec.read(family, value, path)


def _explain(error: ValidationError, path: str) -> InputError:
    first = error.errors()[0]
    key = path + "".join(f"[{x}]" if isinstance(x, int) else f".{x}" for x in first["loc"])
    if first["type"] == "missing":
        return bad_input(key, "a value", "none")
    received = repr(write(first["input"]))
    if "Written" in first["msg"]:
        return bad_input(key, "one part, not a list", received)
    return bad_input(key, first["msg"].removeprefix("Input should be "), received)


def with_value(node: Any, rest: list[str], value: Any, *, key: str) -> Any:
    """Returns checked arguments with another value at a path, as data to be checked again.

    Args:
        node: a `Spec`, a list of them, a mapping of arguments, or what else stands there.
        rest: the path from there on, split at the dots: an argument of a part, in a list after the
            name or the number of the part.
        value: what is to stand there.
        key: the whole path, for errors.

    Raises:
        InputError: if the path leads nowhere, or to several parts of one name.

    Example:
        >>> spec = Spec.read("loss", "easy_hard_mixture", "task.loss")
        >>> with_value(spec, ["hard_share"], 0.25, key="task.loss.hard_share")
        {'easy_hard_mixture': {'hard_share': 0.25}}
    """
    if not rest:
        return value
    if isinstance(node, Spec):
        deeper = rest[_pieces(node, rest) :]
        inner = with_value(dict(node.arguments), deeper, value, key=key)
        return {node.name: inner}
    if isinstance(node, list):
        place = _place(node, rest, key)
        deeper = rest[1:] if rest[0].isdigit() else rest
        changed = with_value(node[place], deeper, value, key=key)
        return [changed if i == place else one for i, one in enumerate(node)]
    if isinstance(node, dict):
        return {**node, rest[0]: with_value(node.get(rest[0]), rest[1:], value, key=key)}
    raise bad_input(key, f"a part before `{'.'.join(rest)}`", repr(node))


def _pieces(spec: Spec, rest: list[str]) -> int:
    """Returns how many pieces of the path are the part's name, which may hold dots; 0 for none."""
    pieces = spec.name.split(".")
    return len(pieces) if rest[: len(pieces)] == pieces else 0


def _place(parts: list[Any], rest: list[str], key: str) -> int:
    numbered = rest[0].isdigit() and int(rest[0]) < len(parts)
    named = [i for i, one in enumerate(parts) if isinstance(one, Spec) and _pieces(one, rest)]
    if numbered:
        return int(rest[0])
    if len(named) == 1:
        return named[0]
    known = ", ".join(f"{i} ({getattr(one, 'name', one)})" for i, one in enumerate(parts))
    rule = "the number of the part" if named else "the name or the number of a part"
    raise bad_input(key, f"{rule}: {known or 'there is none'}", ".".join(rest))
