"""Layers that both towers use, saved once and found again as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input

# The shared layers of the towers that are being rebuilt, as far as they are.
_rebuilt: ContextVar[list[Any] | None] = ContextVar("rebuilt", default=None)
_MARK = "number_of_shared_layer"


def serialize_towers(towers: Mapping[str, Any]) -> dict[str, Any]:
    """Describes towers, and once the layers that several of them use.

    Keras marks a layer that it meets again, but a description that it has copied by then stays
    without the mark, as that of the whole first tower does. So a layer of several towers is
    described beside them, and inside it is only a number.

    Args:
        towers: name -> a layer with `get_config`, as everything in it.

    Returns:
        The same names, and "shared_layers"; for `deserialize_towers`.

    Example:
        >>> table = tf.keras.layers.Embedding(5, 2)
        >>> def tower(name):
        ...     ids = tf.keras.Input((), name=name, dtype=tf.int64)
        ...     return tf.keras.Model(ids, table(ids))
        >>> config = serialize_towers({"query": tower("last_id"), "item": tower("item_id")})
        >>> [layer["class_name"] for layer in config["shared_layers"]]
        ['Embedding']
        >>> towers = deserialize_towers(config)
        >>> towers["query"].layers[-1] is towers["item"].layers[-1]
        True
    """
    shared = _shared_layers(list(towers.values()))
    layers = [_serialize(layer, shared[:number]) for number, layer in enumerate(shared)]
    described = {name: _serialize(tower, shared) for name, tower in towers.items()}
    return {**described, "shared_layers": layers}


def deserialize_towers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Builds what `serialize_towers` described, and any other parts beside it."""
    layers: list[Any] = []
    token = _rebuilt.set(layers)
    try:
        for layer in config.get("shared_layers", ()):
            layers.append(tf.keras.utils.deserialize_keras_object(layer))
        parts = {name: part for name, part in config.items() if name != "shared_layers"}
        built: dict[str, Any] = tf.keras.utils.deserialize_keras_object(parts)
        return built
    finally:
        _rebuilt.reset(token)


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class SharedLayer:
    """Stands in the description of a tower for a layer that is described beside it.

    Args:
        number: of the layer among those.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def get_config(self) -> dict[str, int]:
        """Returns the constructor's argument."""
        return {"number": self.number}

    def described(self) -> dict[str, Any]:
        """Returns what Keras would say, but for its mark: it tells objects apart by address."""
        name = tf.keras.utils.get_registered_name(type(self))
        kind = {"module": __name__, "class_name": "SharedLayer", "registered_name": name}
        return {**kind, "config": self.get_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Returns the layer of this number."""
        layers = _rebuilt.get()
        if layers is None:
            raise bad_input("config", "that of a whole model, whose towers share layers", "a tower")
        return layers[config["number"]]


def _shared_layers(towers: Sequence[Any]) -> list[Any]:
    """Returns the layers that several towers hold, those inside of others first."""
    inside = [{id(part): part for part in (tower, *tower.submodules)} for tower in towers]
    shared = {
        key: part
        for number, first in enumerate(inside)
        for key, part in first.items()
        if isinstance(part, tf.keras.layers.Layer)
        and any(key in other for other in inside[number + 1 :])
    }
    return sorted(shared.values(), key=lambda layer: len(layer.submodules))


def _serialize(part: Any, shared: Sequence[Any]) -> Any:
    with ExitStack() as stack:
        for number, layer in enumerate(shared):
            stack.enter_context(_described_by(layer, number))
        config = tf.keras.utils.serialize_keras_object(part)
    return _with_stand_ins(config)


@contextmanager
def _described_by(layer: Any, number: int) -> Iterator[None]:
    """Inside, the description of a layer is its number."""
    # Past Keras, which would track the attribute.
    object.__setattr__(layer, "get_config", lambda: {_MARK: number, "name": layer.name})
    try:
        yield
    finally:
        object.__delattr__(layer, "get_config")


def _with_stand_ins(config: Any) -> Any:
    """Puts a `SharedLayer` in the place of every layer that is described by its number."""
    if isinstance(config, (list, tuple)):
        return type(config)(_with_stand_ins(part) for part in config)
    if not isinstance(config, dict):
        return config
    inner = config.get("config")
    if isinstance(inner, dict) and _MARK in inner:
        # A functional model keeps its own of a layer beside: its name and what it is called on.
        own = {key: config[key] for key in ("name", "inbound_nodes") if key in config}
        return {**own, **SharedLayer(inner[_MARK]).described()}
    return {key: _with_stand_ins(value) for key, value in config.items()}
