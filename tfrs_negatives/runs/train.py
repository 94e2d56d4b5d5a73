"""A configuration to a run folder: train, evaluate, index, recommend.

`files` says what a run folder holds; `folder` says how it comes about.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfrs_negatives.clustering import ClusteredBatches, RefreshClusters
from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.files import write_text
from tfrs_negatives.data import Interactions, ItemTable, RetrievalData, load
from tfrs_negatives.evaluation import Evaluation, TopKEvaluation, evaluate
from tfrs_negatives.index import Index, build_index, export_index, load_index
from tfrs_negatives.index.saved.archive import read_manifest
from tfrs_negatives.mining import MiningRules, MiningSummary, mine_hard_negatives
from tfrs_negatives.model.two_tower import TwoTower
from tfrs_negatives.runs import files
from tfrs_negatives.runs.build import (
    Learned,
    build_batches,
    build_model,
    learn_features,
    steps_per_epoch,
    training_log,
)
from tfrs_negatives.runs.checkpoints import Checkpoints, EpochClock, HistoryFile
from tfrs_negatives.runs.config import RunConfig, load_config
from tfrs_negatives.runs.describe import as_text, describe
from tfrs_negatives.runs.folder import begin_run, check_log, is_trained, reopen_run
from tfrs_negatives.runs.tables import (
    KnownItems,
    read_columns,
    read_items,
    read_queries,
    write_columns,
)

logger = logging.getLogger("tfrs_negatives")


def load_data(config: RunConfig) -> RetrievalData:
    """Loads and cuts the log that the configuration names."""
    options, items = dict(config.data), config.data.items
    options["items"] = None if items is None else ItemTable(items.path, items.columns)
    return load(**options, seed=config.train.seed)


def train_run(
    config: RunConfig,
    folder: Path,
    *,
    data: RetrievalData | None = None,
    overwrite: bool = False,
    callbacks: Sequence[tf.keras.callbacks.Callback] = (),
) -> dict[str, Any]:
    """Trains, evaluates and writes a run folder, which appears only when it is complete.

    Args:
        config: the run.
        folder: where the run goes.
        data: the log, where it is loaded already.
        overwrite: whether an existing run, complete or not, may be replaced.
        callbacks: more Keras callbacks, such as a progress bar.

    Returns:
        What `metrics.json` holds.

    Raises:
        InputError: if the folder exists, is unfinished or cannot be written, or the data is bad.
    """
    with begin_run(folder, config, overwrite=overwrite) as work:
        return _train(config, work, data, callbacks)


def resume_run(
    folder: Path, *, callbacks: Sequence[tf.keras.callbacks.Callback] = ()
) -> dict[str, Any]:
    """Finishes a run that was interrupted, as if it had not been.

    Args:
        folder: where the run was to go.
        callbacks: more Keras callbacks, such as a progress bar.

    Returns:
        What `metrics.json` holds; `seconds_per_epoch` is of the epochs that were left.

    Raises:
        InputError: if there is no unfinished run, another process is training it, it is damaged, or
            its log has changed.
    """
    with reopen_run(folder) as (work, config):
        if is_trained(work):
            return _read_metrics(work)
        return _train(config, work, None, callbacks)


def _train(
    config: RunConfig,
    work: Path,
    data: RetrievalData | None,
    callbacks: Sequence[tf.keras.callbacks.Callback],
) -> dict[str, Any]:
    data = data or load_data(config)
    _check_ks(config, len(data.items))
    check_log(work, data)
    tf.keras.utils.set_random_seed(config.train.seed)
    learned = learn_features(config, data)
    _write_schema(work, data, learned)
    model = build_model(config, data, learned)
    metrics = _fit(config, data, model, work, callbacks)
    _write_run(data, model, metrics, work)
    return metrics


def _write_schema(work: Path, data: RetrievalData, learned: Learned) -> None:
    """Says what the log was understood to be, and records it."""
    lines = describe(data, learned.queries, learned.items)
    logger.info("%s", as_text(data, lines))
    write_text(work / files.SCHEMA, _to_json([line._asdict() for line in lines]))


def _fit(
    config: RunConfig,
    data: RetrievalData,
    model: TwoTower,
    work: Path,
    callbacks: Sequence[tf.keras.callbacks.Callback],
) -> dict[str, Any]:
    clock, extra, history = EpochClock(), [], HistoryFile(work / files.HISTORY)
    if config.evaluation.every_epochs is not None:
        every = config.evaluation.every_epochs
        extra = [TopKEvaluation(data.test, every_epochs=every, **protocol(config, data))]
    dataset, refresh, checkpoints = _resumed_batches(config, data, model, work / files.CHECKPOINTS)
    model.fit(
        dataset,
        steps_per_epoch=steps_per_epoch(config, data),
        epochs=config.train.epochs,
        # Before the clock, whose seconds are to hold what the clusters cost.
        callbacks=[*refresh, clock, *extra, history, checkpoints, *callbacks],
        verbose=0,
    )
    history.keep(config.train.epochs)
    result = evaluate(model, data.test, **protocol(config, data))
    _write_per_query(work, data.test, result)
    return {
        "data": data.name,
        "test": result.metrics,
        "loss": float(history.rows[-1]["loss"]),
        "seconds_per_epoch": clock.seconds_per_epoch,
    }


def _resumed_batches(
    config: RunConfig, data: RetrievalData, model: TwoTower, folder: Path
) -> tuple[tf.data.Dataset, list[RefreshClusters], Checkpoints]:
    """Restores the model, and returns the batches from there on and the callbacks they need."""
    batches = build_batches(config, data, item_key=model.item_key)
    clustered = batches if isinstance(batches, ClusteredBatches) else None
    track = {} if clustered is None else {"clusters": clustered.state}
    every = config.train.checkpoint_every_steps
    checkpoints = Checkpoints(folder, every_steps=every, track=track)
    start = checkpoints.restore(model)
    if batches is not None:
        refresh = [] if clustered is None else [RefreshClusters(clustered)]
        return batches.dataset(start_step=start), refresh, checkpoints
    size, seed = config.train.batch_size, config.train.seed
    log = training_log(config, data)
    stream = log.stream(size, item_key=model.item_key, seed=seed, start_step=start)
    return stream, [], checkpoints


def protocol(config: RunConfig, data: RetrievalData) -> dict[str, Any]:
    """Returns the arguments of `evaluate` that the configuration decides."""
    has_history = config.evaluation.exclude_seen and data.train.query_key is not None
    exclude = data.train if has_history else None
    options = config.evaluation.model_dump(include={"ks", "propensity"})
    return {**options, "exclude": exclude, "train": data.train}


def evaluate_run(folder: Path, *, progress: bool = False) -> Evaluation:
    """Evaluates the model of a run folder on the test part of its log, and rewrites its metrics."""
    config, model = load_run(folder)
    metrics = _read_metrics(folder)
    data = load_data(config)
    result = evaluate(model, data.test, progress=progress, **protocol(config, data))
    _write_per_query(folder, data.test, result)
    write_text(folder / files.METRICS, _to_json({**metrics, "test": result.metrics}))
    return result


def _write_per_query(folder: Path, test: Interactions, result: Evaluation) -> None:
    key = test.query_key
    keys = {} if key is None else {key: result.query_features[key]}
    columns = {**keys, **result.per_query}
    write_columns(folder / files.PER_QUERY, columns, query_key=key or "")


def _read_metrics(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / files.METRICS).read_text())
    except ValueError as error:
        raise bad_input("run", f"{files.METRICS} in JSON", f"{folder}: {error}") from error


def load_run(folder: Path) -> tuple[RunConfig, TwoTower]:
    """Reads the configuration and the model of a run folder.

    Raises:
        InputError: if a file of the run is missing.
    """
    for name in (files.CONFIG, files.MODEL, files.METRICS):
        if not (folder / name).is_file():
            raise bad_input("run", f"a run folder with {name}", folder)
    # First: it imports the parts of one's own.
    config = load_config(folder / files.CONFIG)
    try:
        model = tf.keras.models.load_model(folder / files.MODEL)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise bad_input("run", f"a readable {files.MODEL}", f"{folder}: {reason}") from error
    return config, model


def index_run(folder: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Builds the index of a run and exports it to its `index/`; returns the manifest.

    Where ScaNN was tuned, `index_sweep.png` shows what was tried.
    """
    config, model = load_run(folder)
    _check_ks(config, len(model.items))
    index = _build_index(config, model, folder)
    export_index(index, folder / files.INDEX, ks=config.index.ks, overwrite=overwrite)
    if index.sweep and importlib.util.find_spec("matplotlib"):
        from tfrs_negatives.index.build.plots import plot_sweep

        plot_sweep(index.sweep, folder / files.SWEEP, target=config.index.target_recall)
    return read_manifest(folder / files.INDEX)


def _build_index(config: RunConfig, model: TwoTower, folder: Path, *, recall_k: int = 10) -> Index:
    probes = read_columns(folder / files.QUERIES)
    return build_index(
        model,
        kind=config.index.kind,
        target_recall=config.index.target_recall,
        recall_k=recall_k,
        group_by=config.index.group_by,
        probe_queries={name: probes[name][:1000] for name in model.query_signature},
        seed=config.train.seed,
    )


def mine_run(
    folder: Path,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
    **rules: Any,
) -> MiningSummary:
    """Mines the hard negatives of the training queries of a run, with its model.

    Args:
        folder: a run.
        out: the Parquet file; None is `hard_negatives.parquet` in the run.
        overwrite: whether a file that is there may be replaced.
        progress: whether to show a bar.
        **rules: `rank_range`, `relative_margin`, `num`, `choose` and `seed` of
            `mine_hard_negatives`.

    Raises:
        InputError: if the file exists, a file of the run is missing, or a rule is out of range.
    """
    out = out or folder / files.HARD_NEGATIVES
    if out.exists() and not overwrite:
        raise bad_input("out", "a new file, or --overwrite", out)
    last = MiningRules(**rules).rank_range[1]
    config, model = load_run(folder)
    log = load_data(config).train
    index = _build_index(config, model, folder, recall_k=last)
    return mine_hard_negatives(model, log, out=out, index=index, progress=progress, **rules)


def recommend(
    folder: Path, queries: Sequence[str], *, k: int | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Asks the index of a run what it recommends to queries of its training log.

    Args:
        folder: a run with an index.
        queries: the ids of the queries, as text.
        k: how many items; None is ten, or what the index has if that is less.

    Returns:
        Per query k records of rank, id, title where known, score and number of training events.

    Raises:
        InputError: if the run has no index, a query is unknown or k is out of range.
    """
    if not (folder / files.INDEX).is_dir():
        raise bad_input("run", "a run with an index: `tfrs-negatives index RUN` builds it", folder)
    index = load_index(folder / files.INDEX)
    features = read_queries(folder).take(queries)
    names = [feature["name"] for feature in index.manifest["query_features"]]
    k = min(10, max(index.manifest["ks"])) if k is None else k
    scores, ids = index.top_k({name: features[name] for name in names}, k)
    items = read_items(folder)
    answers = zip(queries, ids.tolist(), scores.tolist(), strict=True)
    return {query: _records(items, row_ids, row_scores) for query, row_ids, row_scores in answers}


def _records(items: KnownItems, ids: list[Any], scores: list[float]) -> list[dict[str, Any]]:
    return [
        {
            "rank": rank,
            "id": item,
            **({} if items.title(item) is None else {"title": items.title(item)}),
            "score": round(score, 4),
            "training_events": events,
        }
        for rank, (item, score) in enumerate(zip(ids, scores, strict=True), 1)
        if (events := items.training_events(item)) is not None
    ]


def _check_ks(config: RunConfig, num_items: int) -> None:
    for name, ks in {"evaluation.ks": config.evaluation.ks, "index.ks": config.index.ks}.items():
        if not 0 < min(ks) <= max(ks) <= num_items:
            raise bad_input(name, f"numbers from 1 to {num_items}, the corpus", ks)


def _write_run(data: RetrievalData, model: TwoTower, metrics: dict[str, Any], work: Path) -> None:
    model.save(work / files.MODEL)
    queries, _ = data.train.queries()
    write_columns(work / files.QUERIES, queries, query_key=data.train.query_key or "")
    items = {"id": data.items.ids, "training_events": data.train.item_counts(data.items)}
    if data.titles is not None:
        items["title"] = data.titles
    write_columns(work / files.ITEMS, items)
    # The last file: where it is, the others are there.
    write_text(work / files.METRICS, _to_json(metrics))


def _to_json(record: Mapping[str, Any] | Sequence[Any]) -> str:
    return json.dumps(record, indent=2) + "\n"
