"""The command line: every command is a thin call into the package.

TensorFlow is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tfrs_negatives import __version__
from tfrs_negatives.cli.parts import parts
from tfrs_negatives.core.errors import InputError, bad_input
from tfrs_negatives.serve.command import serve

app = typer.Typer(
    help="Negative sampling for two-tower retrieval: train, evaluate, index, recommend.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RunFolder = Annotated[Path, typer.Argument(help="A run folder, as `train` writes it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")]


def main() -> None:
    """Runs the command line: 0 is success, 2 bad input in one sentence, 1 any other failure."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("tfrs_negatives").setLevel(logging.INFO)
    # Where a module with parts of one's own may be.
    sys.path.append(os.getcwd())
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Options before any command."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
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
    from tfrs_negatives.cli.demo import run_demo

    report = run_demo(out, overwrite=overwrite, quiet=as_json)
    if as_json:
        _print_json(report)


@app.command()
def train(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value, over the configuration.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file; the defaults without.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder to write; runs/train.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Finish the run that was to go there.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only print the configuration, the recipe as its parts."),
    ] = False,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a model and write its run folder.

    Example: tfrs-negatives train --out runs/ml100k data.source=ml-100k:ml-100k data.min_rating=3

    What the section `task` can be made of: tfrs-negatives parts

    A run that was interrupted or killed goes on from its last checkpoint:
    tfrs-negatives train --resume runs/ml100k
    """
    if resume is not None:
        if overrides or config or out or dry_run or overwrite:
            raise bad_input("resume", "no other option but --json: the run has its own", resume)
        _resume(resume, as_json)
        return
    from tfrs_negatives.runs.config import load_config

    resolved = load_config(config, overrides or [])
    if dry_run:
        typer.echo(resolved.to_yaml(), nl=False)
        return
    from tfrs_negatives.runs.progress import EpochProgress
    from tfrs_negatives.runs.train import train_run

    out = out or Path("runs/train")
    metrics = train_run(resolved, out, overwrite=overwrite, callbacks=[EpochProgress()])
    _report(metrics, as_json, wrote=out)


def _resume(run: Path, as_json: bool) -> None:
    from tfrs_negatives.runs.progress import EpochProgress
    from tfrs_negatives.runs.train import resume_run

    _report(resume_run(run, callbacks=[EpochProgress()]), as_json, wrote=run)


@app.command()
def search(
    space: Annotated[
        list[str],
        typer.Option(
            metavar="RULE",
            help="section.key=log(low, high), uniform(low, high), int(low, high), "
            "int(low, high, log) or one_of(a, b, ...), the values in YAML. Once for each key.",
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value, over the configuration.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file; the defaults without.")] = None,
    trials: Annotated[int, typer.Option(help="How many, those stopped early included.")] = 20,
    metric: Annotated[
        str, typer.Option(help="What is to be high after the last epoch.")
    ] = "recall_at_20",
    seed: Annotated[int, typer.Option(help="Of the draws; train.seed is that of training.")] = 0,
    out: Annotated[Path, typer.Option(help="The folder of the search.")] = Path("runs/search"),
    validation_fraction: Annotated[
        float | None,
        typer.Option(help="Share of the training events to choose on; 0.1, or as configured."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search good settings on a part of the training events; the test part is not looked at.

    Example: tfrs-negatives search --space "train.learning_rate=log(1e-3, 1e-1)"
    --space "task.recipe=one_of(in_batch, mixed_negative_sampling)" data.min_rating=3

    Trials that fall behind the median are stopped early. The same command goes
    on where it was interrupted; more --trials add to it. The folder gets
    best.yaml, for `train --config` on all training events, trials.csv and
    report.png. The models of the trials are not kept: they lack the events
    that were held out. To search the number of epochs give it a rule too, such
    as train.epochs=int(2, 12): the value is that after the last one.
    """
    from tfrs_negatives.runs.config import load_config

    if validation_fraction is not None:
        overrides = [*(overrides or []), f"data.validation_fraction={validation_fraction}"]
    resolved = load_config(config, overrides or [])
    try:
        from tfrs_negatives.tune import run_search
    except ModuleNotFoundError as error:
        if error.name not in ("optuna", "matplotlib"):
            raise
        needed = "what `pip install 'tfrs-negatives[compare]'` installs"
        raise bad_input("search", needed, f"no {error.name}") from error
    report = run_search(resolved, space, out, trials=trials, metric=metric, seed=seed)
    if not as_json:
        from tfrs_negatives.tune.results import print_trials

        print_trials(report)
        report = {"most_popular": report["most_popular"], "best_trial": report["best"]["number"]}
    _report(report, as_json, wrote=out / "best.yaml")


@app.command()
def compare(
    configs: Annotated[list[Path], typer.Argument(help="YAML files, a variant each.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="For all variants.")
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V1,V2", help="A variant for each value; the product of several."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many runs of each, with seeds 0, 1, ...")] = 3,
    out: Annotated[Path, typer.Option(help="Where report and runs go.")] = Path("runs/compare"),
    baseline: Annotated[
        str | None, typer.Option(help="The variant to test against; the first.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="recall_at_K or ndcg_at_K; recall at the smallest K.")
    ] = None,
    as_json: AsJson = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Train anew what has another configuration.")
    ] = False,
) -> None:
    """Train several variants with several seeds, and write a report of which one to choose.

    Example: tfrs-negatives compare mixed.yaml in_batch.yaml --grid model.temperature=0.05,0.1

    A variant is named after its file and its values of the grid. The same command goes on where it
    was interrupted. OUT/report.html needs no other file.
    """
    from tfrs_negatives.compare import compare as run
    from tfrs_negatives.compare import read_variants, summary_rows
    from tfrs_negatives.runs.progress import print_records

    results = run(
        read_variants(configs, overrides=overrides or [], grid=grid or []),
        folder=out,
        seeds=seeds,
        baseline=baseline,
        metric=metric,
        overwrite=overwrite,
        progress=True,
    )
    table, choice = summary_rows(results), results["recommendation"]
    page = out / "report.html"
    if as_json:
        _report({**choice, "table": table}, as_json, wrote=page)
        return
    shown = [{n: "" if x is None else x for n, x in row.items()} for row in table]
    print_records(shown, title=f"{results['data']['name']}, mean over {seeds} seed(s)")
    others = ", ".join(choice["not_worse"]) or "none"
    _report({"best": choice["best"], "not significantly worse": others}, as_json, wrote=page)


@app.command()
def evaluate(run: RunFolder, as_json: AsJson = False) -> None:
    """Evaluate the model of a run on the test part of its log, over the full corpus."""
    from tfrs_negatives.runs.train import evaluate_run

    result = evaluate_run(run, progress=not as_json)
    _report({"test": result.metrics}, as_json, wrote=run / "metrics.json")


@app.command()
def index(run: RunFolder, as_json: AsJson = False, overwrite: Overwrite = False) -> None:
    """Build the retrieval index of a run, check it in another process, and export it."""
    from tfrs_negatives.runs.train import index_run

    manifest = index_run(run, overwrite=overwrite)
    names = ("kind", "num_items", "similarity", "ks", "recall")
    shown = manifest if as_json else {name: manifest[name] for name in names if name in manifest}
    _report(shown, as_json, wrote=run / "index")


@app.command()
def mine(
    run: RunFolder,
    out: Annotated[
        Path | None, typer.Option(help="The Parquet file; RUN/hard_negatives.parquet.")
    ] = None,
    ranks: Annotated[
        tuple[int, int],
        typer.Option(metavar="LOW HIGH", help="Which ranks, 1 is the best item not chosen."),
    ] = (1, 100),
    relative_margin: Annotated[
        float | None, typer.Option(help="0.05: at most 95% of the mean score of the positives.")
    ] = None,
    num: Annotated[int, typer.Option(help="How many for each query, at most.")] = 4,
    choose: Annotated[str, typer.Option(help="top, or random among what is left.")] = "top",
    seed: Annotated[int, typer.Option(help="Of random choice.")] = 0,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """Mine hard negatives: items that the model ranks high and the query has not chosen.

    Example: tfrs-negatives mine runs/first --ranks 20 120 --relative-margin 0.05

    For each query of the training log: what it has chosen is taken out, the
    19 best of the others are left alone (it may only not have seen them), and
    of the next 101 those that score at most 95% of its positives are kept. The
    best 4 of these are written. `tfn.NegativeTable` reads the file, and gives
    them to `tfn.Explicit` in training.
    """
    from dataclasses import asdict

    from tfrs_negatives.runs.progress import print_records
    from tfrs_negatives.runs.train import mine_run

    summary = mine_run(
        run,
        out=out,
        overwrite=overwrite,
        progress=not as_json,
        rank_range=ranks,
        relative_margin=relative_margin,
        num=num,
        choose=choose,
        seed=seed,
    )
    record = asdict(summary)
    if not as_json:
        print_records(summary.by_rule(), title="what became of the items that the index found")
        record = {name: record[name] for name in ("queries", "short", "empty", "seconds")}
    _report(record, as_json, wrote=out or run / "hard_negatives.parquet")


@app.command()
def recommend(
    run: RunFolder,
    query: Annotated[str, typer.Argument(help="Id of a query of the training log, a user.")],
    k: Annotated[int | None, typer.Option("--k", "-k", help="How many items; 10.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask the index of a run what it recommends."""
    from tfrs_negatives.runs.train import recommend as ask

    records = ask(run, [query], k=k)[query]
    if as_json:
        _print_json(records)
        return
    from tfrs_negatives.runs.progress import print_records

    print_records(records, title=f"for {query}")


app.command()(serve)
app.command()(parts)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check the installation: versions, legacy Keras, ScaNN. Exit code 1 where one fails."""
    from tfrs_negatives.cli.doctor import diagnose

    checks = diagnose()
    if as_json:
        _print_json(checks)
    else:
        for check in checks:
            typer.echo(f"{'ok  ' if check['ok'] else 'FAIL'}  {check['name']}: {check['found']}")
    if not all(check["ok"] for check in checks):
        raise typer.Exit(1)


def _report(record: dict[str, Any], as_json: bool, *, wrote: Path) -> None:
    if as_json:
        _print_json({**record, "wrote": str(wrote)})
        return
    from tfrs_negatives.runs.progress import print_tree

    print_tree(record)
    typer.echo(f"wrote {wrote}")


def _print_json(record: Any) -> None:
    typer.echo(json.dumps(record, indent=2))
