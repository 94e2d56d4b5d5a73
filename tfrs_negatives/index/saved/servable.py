"""What an export consists of: what answers, what embeds, and the signatures of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfrs_negatives.index.build.build import Index
from tfrs_negatives.index.search.answers import Answers
from tfrs_negatives.model.retrieval_model import RetrievalModel
from tfrs_negatives.towers.signature import FeatureSpecs

FILTERS = ("exclude", "allow", "allow_groups")
"""Names of the inputs of the signatures that filter."""

_Step = Callable[[Any], Any]


class Servable(tf.Module):
    """The vectors, the ids, and what the towers read, with the functions that use them.

    Attributes:
        answer: `Answers.answer` for vectors, any k and any set of filters.
        contains: `Answers.contains`.
    """

    def __init__(self, index: Index) -> None:
        super().__init__()
        self._answers = Answers(index.backend.stored(), index.ids, index.groups)
        self.answer, self.contains = self._answers.traced()
        self._index = _Untracked(index)
        self._embed_query = _in_float32(index.model.query_vectors)
        self._embed_item = _in_float32(index.model.item_vectors)
        self._state = [
            *_state_of(index.model, _trace(self._embed_query, index.query_signature)),
            *_state_of(index.model, _trace(self._embed_item, index.item_signature)),
        ]

    def signatures(self, ks: Sequence[int]) -> dict[str, Any]:
        """Returns the concrete functions of the export by name."""
        index, query = self._index.value, self._index.value.query_signature
        functions = {f"top_{k}": _trace(self._top_k(k), query) for k in ks}
        functions["serving_default"] = functions[f"top_{ks[0]}"]
        filters = {"with_exclusions": "exclude", "with_allowed": "allow"}
        filters |= {} if index.groups is None else {"with_allowed_groups": "allow_groups"}
        for name, argument in filters.items():
            taken = {"exclude", argument}
            inputs = {**query, **{n: self._list_spec(n) for n in taken}}
            functions[name] = _trace(self._top_k(max(ks)), inputs)
        functions["embed_query"] = _trace(_vectors_of(self._embed_query), query)
        functions["embed_item"] = _trace(_vectors_of(self._embed_item), index.item_signature)
        return functions

    def _top_k(self, k: int) -> _Step:
        def answer(inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            features = {name: x for name, x in inputs.items() if name not in FILTERS}
            lists = [inputs.get(name) for name in FILTERS]
            answer = self.answer(self._embed_query(features), tf.constant(k), *lists)
            return {name: tf.ensure_shape(x, [None, k]) for name, x in answer.items()}

        return answer

    def _list_spec(self, argument: str) -> tf.TensorSpec:
        nature = self._index.value.nature
        padding = nature.group_padding if argument == "allow_groups" else nature.padding_id
        return tf.TensorSpec([None, None], tf.string if padding == "" else tf.int64)


class _Untracked:
    # What a module holds is saved with it; this hides the model in memory from it.
    def __init__(self, value: Index) -> None:
        self.value = value


def _in_float32(function: _Step) -> _Step:
    embed = tf.function(function)
    return lambda features: tf.cast(embed(features), tf.float32)


def _vectors_of(embed: _Step) -> _Step:
    return lambda features: {"vectors": embed(features)}


def _trace(function: _Step, inputs: FeatureSpecs) -> Any:
    named = {n: tf.TensorSpec(spec.shape, spec.dtype, name=n) for n, spec in inputs.items()}
    return tf.function(function, autograph=False).get_concrete_function(named)


def _state_of(model: RetrievalModel, embed: Any) -> list[Any]:
    # Only what a tower reads: not the optimizer, no sampler's tables.
    captured = {id(tensor) for tensor in embed.captured_inputs}
    state = list(embed.variables)
    if isinstance(model, tf.Module):
        state += [
            part
            for part in tf.train.TrackableView(model).descendants()
            if isinstance(part, tf.saved_model.experimental.TrackableResource)
            and id(part.resource_handle) in captured
        ]
    return state
