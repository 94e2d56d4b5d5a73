"""An index as a SavedModel that says what it is, checked before anybody can see it."""

from __future__ import annotations

import operator
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.files import drafted
from tfrs_negatives.core.types import FEATURE_NAME
from tfrs_negatives.index.build.build import Index
from tfrs_negatives.index.retriever import is_positive_integer
from tfrs_negatives.index.saved.archive import is_export, write_manifest
from tfrs_negatives.index.saved.servable import FILTERS, Servable
from tfrs_negatives.index.search.backends import ScannSearch
from tfrs_negatives.towers.signature import FeatureSpecs, may_miss

_PACKAGES = ("tfrs-negatives", "tensorflow", "tf_keras", "scann", "numpy")

_SAMPLE_ITEMS = 32
"""Items whose vectors are compared with those of the export."""

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

    Signatures: `top_K` for each K of `ks`; `serving_default`, which is that of the first one;
    `with_exclusions` (`exclude`, [B, E] ids), `with_allowed` (`allow`, and `exclude`) and, for an
    index with groups, `with_allowed_groups` (`allow_groups`, and `exclude`), which answer with the
    largest K; `embed_query` and `embed_item`. Shorter lists are filled up with the padding of the
    manifest. Inputs are named as the features; outputs are `scores` and `ids`, or `vectors`.
    `load_index` answers any k and any set of filters.

    Everything is written beside the target, loaded and queried there by another process, and only
    then renamed. Whatever fails, nothing stays behind and an export that is to be replaced stays
    as it is.

    An export of an exact index has no operation but TensorFlow's own, and so loads in TensorFlow
    Serving; the manifest lists the others under `custom_ops`.

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
            query feature is ragged or has a name that a SavedModel cannot carry.
        ExportError: if the other process fails or answers differently.
    """
    # A link stays a link: what it points to is replaced.
    target = Path(path).resolve()
    ks = _check_ks(ks, len(index))
    _check_names(index)
    _check_target(target, overwrite)
    with drafted(target, argument="path") as work:
        _write(index, work, ks)
        if check:
            _check(index, work, ks)
    return Path(path)


def _write(index: Index, folder: Path, ks: tuple[int, ...]) -> None:
    servable = Servable(index)
    signatures = servable.signatures(ks)
    tf.saved_model.save(servable, str(folder), signatures=signatures)
    found = {"signatures": sorted(signatures), "custom_ops": _custom_ops(folder)}
    write_manifest(folder, {**_describe(index, ks), **found})


def _describe(index: Index, ks: tuple[int, ...]) -> dict[str, Any]:
    backend, groups = index.backend, index.groups
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {name: _version(name) for name in _PACKAGES},
        "kind": index.kind,
        "similarity": index.model.similarity,
        "item_key": index.model.items.item_key,
        "num_items": len(index),
        "width": backend.width,
        "ks": list(ks),
        "id_dtype": "int64" if isinstance(index.padding_id, int) else "string",
        "padding": {"id": index.padding_id, "score": "-inf"},
        "group_by": None if groups is None else {"name": groups.name, "padding": groups.padding},
        "query_features": _describe_features(index.query_signature),
        "item_features": _describe_features(index.item_signature),
        "scann": asdict(backend.settings) if isinstance(backend, ScannSearch) else None,
        "recall": index.recall,
        "sweep": index.sweep,
    }


def _describe_features(signature: FeatureSpecs) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "dtype": spec.dtype.name,
            "shape": spec.shape.as_list(),
            "may_miss": name in may_miss(signature),
        }
        for name, spec in signature.items()
    ]


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
    items = {
        name: index.model.items.features[name][:_SAMPLE_ITEMS] for name in index.item_signature
    }
    answers = _ask_other_process(folder, index.sample_features, items)
    vectors = index.embed_query(index.sample_features)
    for name, embedded in {"vectors": vectors, "item_vectors": index.embed_item(items)}.items():
        if not np.allclose(answers[name], embedded, rtol=1e-3, atol=1e-5):
            raise ExportError(f"the export embeds differently from the index in memory: {name}")
    for k in ks:
        expected = index.search(vectors, k)
        if not same_answers(expected, (answers[f"scores_{k}"], answers[f"ids_{k}"])):
            raise ExportError(f"the export answers differently from the index in memory at k={k}")
    k = max(ks)
    expected = index.search(vectors, k, exclude=answers[f"ids_{k}"][:, ::2])
    if not same_answers(expected, (answers["scores_rest"], answers["ids_rest"])):
        raise ExportError("the export excludes differently from the index in memory")


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


def _ask_other_process(
    folder: Path, features: dict[str, np.ndarray], items: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
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
        named = {f"feature_{n}": a for n, a in features.items()}
        named |= {f"item_{n}": a for n, a in items.items()}
        # Strings as bytes: an array of objects would have to be pickled.
        plain: dict[str, Any] = {
            n: _as_bytes(a) if a.dtype.kind in "OU" else a for n, a in named.items()
        }
        np.savez(queries, **plain)
        arguments = [str(folder), str(queries), str(answers)]
        command = [sys.executable, "-m", "tfrs_negatives.index.saved.verify", *arguments]
        _run(command, environment)
        with np.load(answers, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}


def _as_bytes(texts: np.ndarray) -> np.ndarray:
    # Of a tensor they are bytes in UTF-8 already, which `astype(str)` would read as ASCII.
    encoded = [text if isinstance(text, bytes) else text.encode() for text in texts.ravel()]
    return np.array(encoded, np.bytes_).reshape(texts.shape)


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


def _check_names(index: Index) -> None:
    signatures = {"query_signature": index.query_signature, "items": index.item_signature}
    for argument, signature in signatures.items():
        for name in signature:
            if not re.fullmatch(FEATURE_NAME, name):
                raise bad_input(argument, "feature names of letters, digits and _", repr(name))
    uneven = [n for n, spec in index.query_signature.items() if type(spec) is not tf.TensorSpec]
    if uneven:
        rule = "dense features, because an export has no ragged inputs: give the tower padded lists"
        raise bad_input("query_signature", rule, f"ragged or sparse {uneven}")
    taken = sorted(set(FILTERS) & index.query_signature.keys())
    if taken:
        raise bad_input("query_signature", f"no feature named as a filter, {FILTERS}", taken)


def _check_ks(ks: Any, num_items: int) -> tuple[int, ...]:
    """Returns the numbers of results that an export answers, in the given order.

    Raises:
        InputError: if there is none, one occurs twice, is not positive, or is above the corpus.
    """
    if not isinstance(ks, Sequence) or not ks or not all(is_positive_integer(k) for k in ks):
        raise bad_input("ks", "a list of positive integers", repr(ks))
    if len(set(ks)) < len(ks):
        raise bad_input("ks", "each k once", repr(ks))
    if max(ks) > num_items:
        raise bad_input("ks", f"no k above the {num_items} items of the index", repr(ks))
    return tuple(operator.index(k) for k in ks)


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not overwrite:
        raise bad_input("path", "a new folder, or overwrite=True", f"{target}, which exists")
    if not is_export(target):
        raise bad_input("path", "an exported index to overwrite", f"{target}, which is none")
