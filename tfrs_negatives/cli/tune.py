"""`tfrs-negatives tune`: a space of settings to the best of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfrs_negatives.cli.common import AsJson, importing, report


def tune(
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
    out: Annotated[Path, typer.Option(help="The folder of the trials.")] = Path("runs/tune"),
    validation_fraction: Annotated[
        float | None,
        typer.Option(help="Share of the training events to choose on; 0.1, or as configured."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose good settings on a part of the training events; the test part is not looked at.

    Example: tfrs-negatives tune --space "train.learning_rate=log(1e-3, 1e-1)"
    --space "task.recipe=one_of(in_batch, mixed_negative_sampling)" data.min_rating=3

    Trials that fall behind the median are stopped early. The same command goes
    on where it was interrupted; more --trials add to it. The folder gets
    best.yaml, for `train --config` on all training events, trials.csv and
    report.png. The models of the trials are not kept: they lack the events
    that were held out. To choose the number of epochs give it a rule too, such
    as train.epochs=int(2, 12): the value is that after the last one.
    """
    from tfrs_negatives.runs.config import load_config

    if validation_fraction is not None:
        overrides = [*(overrides or []), f"data.validation_fraction={validation_fraction}"]
    resolved = load_config(config, overrides or [])
    with importing("tune", extra="compare"):
        from tfrs_negatives.tune import run_tuning
    found = run_tuning(resolved, space, out, trials=trials, metric=metric, seed=seed)
    if not as_json:
        from tfrs_negatives.tune.results import print_trials

        print_trials(found)
        found = {"most_popular": found["most_popular"], "best_trial": found["best"]["number"]}
    report(found, as_json, wrote=out / "best.yaml")
