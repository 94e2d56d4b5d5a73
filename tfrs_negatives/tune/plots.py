"""`plots/`: how the best value came about, the metric against each parameter and each epoch."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import optuna
from matplotlib.axes import Axes
from optuna.visualization import matplotlib as drawing

from tfrs_negatives.core.files import drafted


def write_plots(study: optuna.Study, folder: Path, *, metric: str, baseline: float) -> None:
    """Draws the trials, as Optuna does.

    Args:
        study: the trials; at least one is complete.
        folder: gets `history.png`, `parameters.png` and `epochs.png`.
        metric: the name of the value.
        baseline: the metric of the most popular items, a line in the first and the last.
    """
    name = f"{metric}, validation part"
    # Optuna sets a style for all of matplotlib, and draws into the current figure.
    with mpl.rc_context(), drafted(folder, argument="out") as draft:
        history = drawing.plot_optimization_history(study, target_name=name)
        _mark(history, baseline)
        _save(draft / "history.png")
        drawing.plot_slice(study, target_name=name)
        _save(draft / "parameters.png")
        epochs = drawing.plot_intermediate_values(study)
        epochs.set(xlabel="epoch", ylabel=name)
        _mark(epochs, baseline)
        _save(draft / "epochs.png")


def _mark(axes: Axes, baseline: float) -> None:
    axes.axhline(baseline, color="gray", linestyle=":", label="most popular items")
    axes.legend(fontsize="small")


def _save(path: Path) -> None:
    plt.savefig(path, dpi=120, bbox_inches="tight")
    plt.close()
