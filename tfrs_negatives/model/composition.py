"""What a task is made of, as data: a recipe, and what takes the place of what it says."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tfrs_negatives.core.errors import InputError, bad_input, known_key
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.interactions import Interactions
from tfrs_negatives.step.arguments import PROVIDED, Run, parameters
from tfrs_negatives.step.specs import (
    Spec,
    below,
    build_arguments,
    read_arguments,
    with_value,
    write,
)
from tfrs_negatives.step.task import Retrieval

KEYS = ("negatives", "frequency", "masks", "miners", "loss", "correct", "strength")
"""The arguments of `Retrieval` that a recipe decides."""

PLAIN: dict[str, Any] = {
    "negatives": ["in_batch"],
    "frequency": "streaming",
    "miners": [],
    "loss": "sampled_softmax",
    "correct": "both",
    "strength": 1.0,
}
"""What they are where neither a recipe nor anybody else says so."""

DEFAULT_RECIPE = {"mixed_negative_sampling": {"num_uniform": 2048}}


class Expansion(NamedTuple):
    """What a composition comes to.

    Attributes:
        parts: a value for each of `KEYS`, a `Spec` for each part.
        order: of the batches, "random" or "clustered".
    """

    parts: dict[str, Any]
    order: str

    def build(self, run: Run, **options: Any) -> Retrieval:
        """Makes the task.

        Args:
            run: what the run knows.
            **options: more arguments of `Retrieval`, and such that take the place of its own.

        Raises:
            InputError: if a part refuses an argument, or two do not go together.
        """
        asked = {name: value for name, value in self.parts.items() if name not in options}
        built = build_arguments(asked, run, "task")
        try:
            return Retrieval(**built, **options)
        except InputError as error:
            raise below("task", error) from error


def expand(preset: Mapping[str, Any], own: Mapping[str, Any]) -> Expansion:
    """Fills up what a recipe says.

    Args:
        preset: what the function of a recipe returned, data; `order` is that of the batches.
        own: what takes its place, data or `Spec`.

    Raises:
        InputError: if a key, a name or an argument is unknown, or of the wrong type.

    Example:
        >>> expand({"negatives": ["in_batch"]}, {"correct": None}).parts["masks"][0].name
        'accidental_hits'
    """
    said = {**PLAIN, **preset, **own}
    order = said.pop("order", "random")
    # With both sides corrected the copies of the positive are part of what estimates its share of
    # the denominator; elsewhere they would only count against it.
    said.setdefault("masks", [] if said["correct"] == "both" else ["accidental_hits"])
    if said["correct"] is None:
        said["frequency"] = None  # Nothing would read it.
    parts = read_arguments(Retrieval, said, "task", only=KEYS)
    return Expansion({name: parts[name] for name in KEYS}, order)


@dataclass(frozen=True)
class Composition:
    """The section `task` of a configuration.

    Attributes:
        recipe: the recipe with its arguments; None where every part is named.
        own: what is said beside it, of `KEYS`.
        named: whether the recipe was, or is the default.
    """

    recipe: Spec | None
    own: Mapping[str, Any]
    named: bool = True

    @classmethod
    def read(cls, data: Any) -> Composition:
        """Checks a section, and tries its parts on a small catalogue.

        Args:
            data: `recipe` and any of `KEYS`; a composition is returned as it is.

        Raises:
            InputError: if a key is unknown or never read, or a value is not what its part takes.

        Example:
            >>> Composition.read({"recipe": "in_batch"}).expansion.parts["negatives"][0].name
            'in_batch'
        """
        if isinstance(data, Composition):
            return data
        if not isinstance(data, dict):
            raise bad_input("task", "a mapping of recipe and parts", repr(data))
        for name in data:
            if name not in ("recipe", *KEYS):
                raise bad_input(f"task.{name}", known_key(name, ["recipe", *KEYS], "task"), name)
        said = data.get("recipe", DEFAULT_RECIPE)
        recipe = None if said is None else Spec.read("recipe", said, "task.recipe")
        own = {name: value for name, value in data.items() if name != "recipe"}
        made = cls(recipe, own, named="recipe" in data)
        made._check()
        return made

    @functools.cached_property
    def expansion(self) -> Expansion:
        """What recipe and own keys come to."""
        return expand(_call(self.recipe), self.own)

    def write(self) -> dict[str, Any]:
        """Returns the expansion as data, which `read` reads."""
        parts = {name: write(value) for name, value in self.expansion.parts.items()}
        return {"recipe": None, **parts}

    @property
    def asked(self) -> dict[str, Any]:
        """What `read` was given."""
        return {**({"recipe": self.recipe} if self.named else {}), **self.own}

    def with_argument(self, path: list[str], value: Any, *, key: str) -> Composition:
        """Returns the composition with another argument of a part, also of one of the recipe's.

        Args:
            path: below `task`, split at the dots: `negatives`, `uniform`, `num_negatives`.
            value: data.
            key: the whole path, for errors.

        Raises:
            InputError: if there is no such part or argument, or as `read` raises.
        """
        name, *rest = path
        if name not in ("recipe", *KEYS):
            raise bad_input(key, known_key(name, ["recipe", *KEYS], "task"), repr(value))
        known = self.recipe if name == "recipe" else self.expansion.parts[name]
        said = {**self.asked, name: with_value(known, rest, value, key=key)}
        if name != "recipe" and self.named and self.recipe is not None:
            # What they decided was brought, and is there now.
            said["recipe"] = _without(self.recipe, self._unread(said))
        return Composition.read(said)

    def _unread(self, own: Mapping[str, Any]) -> list[str]:
        """Returns the arguments of the recipe that decide only what `own` takes the place of."""
        decided = _decided(self.recipe)
        return [name for name, keys in decided.items() if keys and keys <= own.keys()]

    def _check(self) -> None:
        expansion = self.expansion
        for name in self._unread(self.own) if self.named else []:
            beside = ", ".join(f"`task.{key}`" for key in self.own)
            raise bad_input(f"task.recipe.{name}", f"no such argument beside {beside}", "both")
        for name, idle in {"frequency": None, "strength": 1.0}.items():
            if expansion.parts["correct"] is None and self.own.get(name, idle) != idle:
                rule = "no such key where nothing is corrected"
                raise bad_input(f"task.{name}", rule, write(self.own[name]))
        try:
            _try(expansion)
        except InputError as error:
            raise self._named(error) from error

    def _named(self, error: InputError) -> InputError:
        """Returns the error with the argument of the recipe that it is about."""
        key = str(error).removeprefix("`task.").partition("[")[0]
        decided = {} if key in self.own else _decided(self.recipe)
        names = [f"`task.recipe.{name}`" for name, keys in decided.items() if key in keys]
        return InputError(", ".join([*names, str(error)]))


def _call(recipe: Spec | None) -> dict[str, Any]:
    # Of `package.module:name` the task may be asked, and not the data.
    return {} if recipe is None else dict(inspect.unwrap(recipe.target)(**recipe.arguments))


def _decided(recipe: Spec | None) -> dict[str, set[str]]:
    """Returns the arguments of a recipe -> which of `KEYS` each changes, as it is."""
    if recipe is None:
        return {}
    said, found = _call(recipe), {}
    for name, parameter in parameters(recipe.target).items():
        if name in recipe.arguments and parameter.default is not parameter.empty:
            other = _call(_without(recipe, [name]))
            found[name] = {key for key in {*said, *other} if said.get(key) != other.get(key)}
    return found


def _without(recipe: Spec, names: list[str]) -> Spec:
    left = {name: x for name, x in recipe.arguments.items() if name not in names}
    return Spec.read("recipe", {recipe.name: left}, "task.recipe")


def _try(expansion: Expansion) -> None:
    """Raises what the parts refuse of what is written, before any data is read."""
    for num_items in (8, 2**20):
        log = Interactions({"query": np.arange(2)}, np.arange(2), query_key="query")
        run = Run(ItemCatalogue(np.arange(num_items)), log, np.ones(num_items, np.int64))
        try:
            # A name, or Keras would count it, and name the task of the run by another number.
            expansion.build(run, name="tried")
            return
        except InputError as error:
            if PROVIDED.keys() & re.split(r"\W+", str(error).split("`")[1]):
                return
            refused = error
        except Exception:
            return  # A part may read more of a catalogue than this one has.
    # What 8 items are too few for, a million may not be.
    raise refused
