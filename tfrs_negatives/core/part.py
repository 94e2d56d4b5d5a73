"""What a composition is made of: parts that save themselves and that a configuration can name."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input, known_key

if TYPE_CHECKING:
    from typing_extensions import Self

Family = Literal["sampler", "frequency", "mask", "miner", "loss", "recipe"]
Kind = TypeVar("Kind", bound=type)
_MORE, _MORE_NAMED = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD

_FAMILIES: dict[str, dict[str, Any]] = {family: {} for family in get_args(Family)}


class Part:
    """What its constructor's arguments say: a configuration is derived from them.

    A part that has state is a `tf.keras.layers.Layer` as well, and stands before it among the
    bases. One that is not rebuilt from its arguments has a `get_config` of its own.

    Example:
        >>> class Nearest(Part):
        ...     def __init__(self, k, *, by="score"):
        ...         self.k = k
        >>> Nearest(3).get_config()
        {'k': 3, 'by': 'score'}
        >>> Nearest.from_config({"k": 4}).k
        4
    """

    _arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Remembers the arguments, beside what Keras tracks."""
        made = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(made, *args, **kwargs)
        except TypeError:
            return made  # The constructor says what is wrong.
        bound.apply_defaults()
        _, *given = bound.arguments.items()
        kinds = {p.name: p.kind for p in bound.signature.parameters.values()}
        named = {n: x for n, x in given if kinds[n] not in (_MORE, _MORE_NAMED)}
        more = [x for n, x in given if kinds[n] is _MORE_NAMED]
        object.__setattr__(made, "_arguments", {**named, **(more[0] if more else {})})
        return made

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, with parts inside them described."""
        own = {name: _described(value) for name, value in self._arguments.items()}
        is_layer = isinstance(self, tf.keras.layers.Layer)
        # What Keras says of a layer is of now: its name may have been chosen by Keras.
        return {**own, **super().get_config()} if is_layer else own  # type: ignore[misc]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Builds the part that `get_config` described."""
        load = tf.keras.utils.deserialize_keras_object
        return cls(**{n: x if _is_plain(x) else load(x) for n, x in config.items()})


def _described(value: Any) -> Any:
    """An argument as JSON would give it back; Keras cannot load an array of strings."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    value = list(value) if type(value) is tuple else value
    return value if _is_plain(value) else tf.keras.utils.serialize_keras_object(value)


def _is_plain(value: Any) -> bool:
    """Whether a value is a list with nothing in it to describe: Keras would visit each element."""
    plain = (str, int, float, type(None))
    return isinstance(value, list) and all(isinstance(one, plain) for one in value)


def part(family: Family, name: str | None = None) -> Callable[[Kind], Kind]:
    """Makes a class one that Keras can load and that a configuration can name.

    Args:
        family: what it is in a step.
        name: its name in a configuration; None is that of the class, `InBatch` as `in_batch`.

    Returns:
        A decorator, which also sets the attribute `name` of a class that has none.

    Example:
        >>> @part("loss")
        ... class MeanScore(Part):
        ...     "The mean of the scores."
        >>> find_part("loss", "mean_score") is MeanScore
        True
    """

    def register(cls: Kind) -> Kind:
        own = name or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()
        enter(family, own, cls)
        if "name" not in dir(cls):
            cls.name = own  # type: ignore[attr-defined]
        registered: Kind = tf.keras.utils.register_keras_serializable("tfrs_negatives")(cls)
        return registered

    return register


def enter(family: Family, name: str, found: Callable[..., Any]) -> None:
    """Gives what makes a part, a class or the function of a recipe, a name in its family."""
    _FAMILIES[family][name] = found


def part_names(family: Family) -> list[str]:
    """Returns the names of a family, sorted."""
    return sorted(_FAMILIES[family])


def find_part(family: Family, name: str) -> Callable[..., Any]:
    """Finds what makes a part by its name.

    Args:
        family: what it is in a step.
        name: as it was registered, or `package.module:Class` for one of one's own.

    Returns:
        The class; of a recipe the function.

    Raises:
        InputError: if there is none of that name; the nearest one is suggested.

    Example:
        >>> find_part("loss", "no_such_loss")
        Traceback (most recent call last):
        ...
        tfrs_negatives.InputError: `loss`: expected ... Received: 'no_such_loss'
    """
    if ":" in name:
        return find_own(family, name)
    if name in _FAMILIES[family]:
        return _FAMILIES[family][name]
    rule = known_key(name, _FAMILIES[family], what="name")
    raise bad_input(family, f"{rule}, or package.module:Name", repr(name))


def find_own(argument: str, name: str) -> Callable[..., Any]:
    """Imports a class or a function of one's own.

    Args:
        argument: what it is for, for the error.
        name: `package.module:name`.

    Raises:
        InputError: if it cannot be imported.

    Example:
        >>> find_own("frame", "collections:Counter")("aab")["a"]
        2
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise bad_input(argument, "package.module:Name that can be imported", name) from error
    if not callable(found):
        raise bad_input(argument, "the name of a class or a function", name)
    return found
