"""An index as a SavedModel that says what it is, checked before anybody can see it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tfrs_negatives.files import drafted
from tfrs_negatives.index.archive import is_export, write_manifest
from tfrs_negatives.index.arguments import check_ks
from tfrs_negatives.index.backends import MISSING, ScannSearch
from tfrs_negatives.index.build import Index
from tfrs_negatives.types import FEATURE_NAME, RetrievalModel, bad_input

_Step = Callable[[Any], Any]

_PACKAGES = ("tfrs-negatives", "tensorflow", "tf_keras", "scann", "numpy")

_CHECK_SECONDS = 600
"""How long the other process may take to load an export and answer."""


class ExportError(RuntimeError):
    """An export was written but did not answer as the index in memory does. It has been removed."""


def export_index(
    index: Index,
    path: str | Path,
    *,
    ks: Sequence[int] = (10, 100),
    check: bool = True,
    overwrite: bool = False,
) -> Path:
    """Writes an index as a SavedModel with a manifest.

    Signatures: `top_K` for each K of `ks`, `serving_default`, which is that of the first one, and
    `embed_query`. Inputs are named as the query features; outputs are `scores` and `ids`, or
    `vectors`. Everything is written beside the target, loaded and queried there by another
    process, and only then renamed. Whatever fails, nothing stays behind and an export that is to
    be replaced stays as it is.

    Args:
        index: made by `build_index`.
        path: the folder to make; folders above it are made as well.
        ks: how many results the signatures answer with, each once, at most the corpus.
        check: whether another process must give the same answers (ids up to ties in score).
        overwrite: whether an export that is already there is replaced. It is kept until the new
            one has passed; between the two renames there is a moment without either.

    Returns:
        The path.

    Raises:
        InputError: if `ks` is wrong, the path cannot be written, something is there already, or a
            query feature has a name that a SavedModel cannot carry.
        ExportError: if the other process fails or answers differently.
    """
    # A link stays a link: what it points to is replaced.
    target = Path(path).resolve()
    ks = check_ks(ks, len(index))
    _check_names(index.model)
    _check_target(target, overwrite)
    with drafted(target, argument="path") as work:
        _write(index, work, ks)
        if check:
            _check(index, work, ks)
    return Path(path)


class _Servable(tf.Module):
    """What an export consists of: the vectors, the ids, and what the query tower reads."""

    def __init__(self, index: Index) -> None:
        super().__init__()
        self._search = index.backend.stored()
        self._ids = tf.Variable(index.model.items.ids, trainable=False, name="ids")
        self._padding_id = tf.constant(index.padding_id, self._ids.dtype)
        self._features = {
            name: tf.TensorSpec(spec.shape, spec.dtype, name=name)
            for name, spec in index.model.query_signature.items()
        }
        embed = tf.function(index.model.query_vectors)
        self._embed: _Step = lambda features: tf.cast(embed(features), tf.float32)
        self._query_state = _state_of(index.model, self._trace(self._embed))

    def signatures(self, ks: tuple[int, ...]) -> dict[str, Any]:
        """Returns the concrete functions of the export by name."""
        functions = {f"top_{k}": self._trace(self._top_k(k)) for k in ks}
        functions["serving_default"] = functions[f"top_{ks[0]}"]
        functions["embed_query"] = self._trace(lambda features: {"vectors": self._embed(features)})
        return functions

    def _top_k(self, k: int) -> _Step:
        def answer(features: Any) -> dict[str, tf.Tensor]:
            scores, rows = self._search.search(self._embed(features), k)
            found = tf.gather(self._ids, tf.maximum(rows, 0))
            return {"scores": scores, "ids": tf.where(rows == MISSING, self._padding_id, found)}

        return answer

    def _trace(self, function: _Step) -> Any:
        return tf.function(function).get_concrete_function(self._features)


def _state_of(model: RetrievalModel, embed: Any) -> list[Any]:
    # Only what the query tower reads: not the item tower, not the optimizer, no sampler's tables.
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


def _write(index: Index, folder: Path, ks: tuple[int, ...]) -> None:
    servable = _Servable(index)
    tf.saved_model.save(servable, str(folder), signatures=servable.signatures(ks))
    description = _describe(index, ks)
    write_manifest(folder, {**description, "custom_ops": _custom_ops(folder)})


def _describe(index: Index, ks: tuple[int, ...]) -> dict[str, Any]:
    backend = index.backend
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {name: _version(name) for name in _PACKAGES},
        "kind": index.kind,
        "similarity": index.model.similarity,
        "num_items": len(index),
        "width": backend.width,
        "ks": list(ks),
        "id_dtype": "int64" if isinstance(index.padding_id, int) else "string",
        "padding": {"id": index.padding_id, "score": "-inf"},
        "query_features": [
            {"name": name, "dtype": spec.dtype.name, "shape": spec.shape.as_list()}
            for name, spec in index.model.query_signature.items()
        ],
        "scann": asdict(backend.settings) if isinstance(backend, ScannSearch) else None,
        "recall": index.recall,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _custom_ops(folder: Path) -> list[str]:
    # TensorFlow's own operations have no namespace.
    saved_model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    graph = saved_model.meta_graphs[0].graph_def
    nodes = [*graph.node, *(node for body in graph.library.function for node in body.node_def)]
    return sorted({node.op for node in nodes if ">" in node.op})


def _check(index: Index, folder: Path, ks: tuple[int, ...]) -> None:
    answers = _ask_other_process(folder, index.sample_features)
    vectors = index.embed_query(index.sample_features)
    if not np.allclose(answers["vectors"], vectors, rtol=1e-3, atol=1e-5):
        raise ExportError("the export embeds queries differently from the index in memory")
    for k in ks:
        expected = index.search(vectors, k)
        if not same_answers(expected, (answers[f"scores_{k}"], answers[f"ids_{k}"])):
            raise ExportError(f"the export answers differently from the index in memory at k={k}")


def same_answers(
    expected: tuple[np.ndarray, np.ndarray], received: tuple[np.ndarray, np.ndarray]
) -> bool:
    """Returns whether two answers agree: the same scores, and the same ids up to ties in score.

    Args:
        expected: scores [B, k] and ids [B, k].
        received: the same from elsewhere.

    Example:
        >>> scores = np.array([[3.0, 2.0, 2.0]])
        >>> same_answers((scores, np.array([[7, 8, 9]])), (scores, np.array([[7, 9, 8]])))
        True
        >>> same_answers((scores, np.array([[7, 8, 9]])), (scores, np.array([[8, 7, 9]])))
        False
    """
    (scores, ids), (other_scores, other_ids) = expected, received
    if scores.shape != other_scores.shape or not _close(scores, other_scores).all():
        return False
    for row, column in np.argwhere(ids != other_ids):
        # An item that is not in the expected answer may stand only for one cut off by a tie.
        place = np.flatnonzero(ids[row] == other_ids[row, column])
        tied_with = scores[row, place[0] if len(place) else -1]
        if not _close(tied_with, other_scores[row, column]):
            return False
    return True


def _close(left: Any, right: Any) -> Any:
    return np.isclose(left, right, rtol=1e-4, atol=1e-5)


def _ask_other_process(folder: Path, features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    package_root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(package_root), os.getenv("PYTHONPATH")])),
        # This process may hold all of the accelerator's memory.
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    with tempfile.TemporaryDirectory() as scratch:
        queries, answers = Path(scratch, "queries.npz"), Path(scratch, "answers.npz")
        # Strings as bytes: an array of objects would have to be pickled.
        plain: dict[str, Any] = {
            f"feature_{n}": a.astype("S") if a.dtype == object else a for n, a in features.items()
        }
        np.savez(queries, **plain)
        arguments = [str(folder), str(queries), str(answers)]
        command = [sys.executable, "-m", "tfrs_negatives.index.verify", *arguments]
        _run(command, environment)
        with np.load(answers, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}


def _run(command: list[str], environment: dict[str, str]) -> None:
    try:
        subprocess.run(  # noqa: S603
            command, env=environment, check=True, capture_output=True, timeout=_CHECK_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"the export did not answer within {_CHECK_SECONDS} s") from error
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ExportError(f"the export failed in another process: {last}") from error


def _check_names(model: RetrievalModel) -> None:
    for name in model.query_signature:
        if not re.fullmatch(FEATURE_NAME, name):
            raise bad_input("query_signature", "feature names of letters, digits and _", repr(name))


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not overwrite:
        raise bad_input("path", "a new folder, or overwrite=True", f"{target}, which exists")
    if not is_export(target):
        raise bad_input("path", "an exported index to overwrite", f"{target}, which is none")
