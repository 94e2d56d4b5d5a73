"""`tfrs-negatives demo`: compare samplers on the built-in log, then index the best and ask it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfrs_negatives.cli.common import AsJson, Overwrite, print_json

if TYPE_CHECKING:
    from tfrs_negatives.data import RetrievalData
    from tfrs_negatives.runs.config import RunConfig

COMMON = ["index.kind=scann", "model.id_dropout=0.2"]
SAMPLERS = {
    "in-batch, no correction": (
        "in_batch",
        ["task.recipe=in_batch", "task.correct=null"],
    ),
    "in-batch + logQ": ("in_batch_logq", ["task.recipe=in_batch"]),
    "mixed (MNS)": ("mixed", ["task.recipe={mixed_negative_sampling: {num_uniform: 2048}}"]),
}
COLUMNS = {
    "recall_at_10": "recall@10",
    "recall_at_100": "recall@100",
    "tail_recall_at_10": "tail@10",
    "tail_recall_at_100": "tail@100",
    "unseen_recall_at_100": "unseen@100",
    "coverage_at_100": "coverage",
}


def demo(
    out: Annotated[Path, typer.Option(help="Where the runs go.")] = Path("runs/demo"),
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """Compare samplers on the built-in log, then index the best and ask it for three users.

    Trains in-batch without correction, in-batch with logQ, and mixed negatives; prints a table
    beside the most popular items; builds, exports, reloads and queries the ScaNN index. Takes
    about two minutes.
    """
    found = _run(out, overwrite=overwrite, quiet=as_json)
    if as_json:
        print_json(found)


def _run(out: Path, *, overwrite: bool, quiet: bool) -> dict[str, Any]:
    """Returns `table`, a record per row; `index`, the manifest; `answers`, a list per user."""
    from tfrs_negatives.runs.config import load_config
    from tfrs_negatives.runs.progress import EpochProgress, print_records
    from tfrs_negatives.runs.train import index_run, load_data, recommend, train_run

    configs = {row: load_config(overrides=[*COMMON, *keys]) for row, (_, keys) in SAMPLERS.items()}
    data = load_data(next(iter(configs.values())))
    table = [_popular_row(data, next(iter(configs.values())))]
    for row, config in configs.items():
        bar = EpochProgress(label=row)
        folder = out / SAMPLERS[row][0]
        metrics = train_run(config, folder, data=data, overwrite=overwrite, callbacks=[bar])
        seconds = metrics["seconds_per_epoch"]
        table.append({"sampler": row, **_columns(metrics["test"]), "s/epoch": seconds})
    if not quiet:
        print_records(table, title=f"{data.name}: {len(data.train):,} events, full corpus")
    manifest = index_run(folder, overwrite=overwrite)
    users = data.train.queries()[0][str(data.train.query_key)][:3].astype(str).tolist()
    answers = recommend(folder, users, k=5)
    if not quiet:
        _print_answers(manifest, answers, folder)
    return {"table": table, "index": manifest, "answers": answers}


def _popular_row(data: RetrievalData, config: RunConfig) -> dict[str, Any]:
    from tfrs_negatives.evaluation import MostPopular, evaluate

    popular = MostPopular(data.items, data.train.item_counts(data.items))
    ks = config.evaluation.ks
    result = evaluate(popular, data.test, ks=ks, exclude=data.train, train=data.train)
    return {"sampler": "most popular", **_columns(result.metrics), "s/epoch": ""}


def _columns(metrics: dict[str, float]) -> dict[str, float]:
    return {label: metrics[name] for name, label in COLUMNS.items()}


def _print_answers(
    manifest: dict[str, Any], answers: dict[str, list[dict[str, Any]]], folder: Path
) -> None:
    from tfrs_negatives.runs.progress import print_records

    found = manifest["recall"]
    print(
        f"{manifest['kind']} index of {manifest['num_items']:,} items, recall at {found['k']} "
        f"against exact search {found['recall']:.3f}"
    )
    for user, records in answers.items():
        print_records(records, title=f"for {user}")
    print(f"wrote {folder.parent}; try: tfrs-negatives recommend {folder} {next(iter(answers))}")
