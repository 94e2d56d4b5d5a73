"""What makes a recipe of a function that returns data."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from tfrs_negatives.core.part import enter
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.id_lists import History
from tfrs_negatives.model.composition import expand
from tfrs_negatives.step.arguments import Run
from tfrs_negatives.step.task import Retrieval

Preset = dict[str, Any]

SCORE: dict[str, Any] = {"similarity": "cosine", "temperature": 0.1, "reduction": "mean"}
"""What the recipes say of the score and of the loss, in Python; a run has its own settings."""


def recipe(preset: Callable[..., Preset]) -> Callable[..., Retrieval]:
    """Registers a recipe under the name of its function.

    Args:
        preset: keyword arguments with defaults -> data: `negatives`, `frequency`, `masks`,
            `miners`, `loss`, `correct` and `strength` as a configuration writes them, and `order`,
            "clustered" for batches of similar queries. An argument `history` is whether there is a
            training log, which the task then takes under this name.

    Returns:
        (items, *, the arguments of the preset, any keyword of `Retrieval`) -> the task.

    Example:
        >>> @recipe
        ... def hardest_of_uniform(*, num_uniform: int = 100):
        ...     "The five hardest of some items."
        ...     uniform = {"uniform": {"num_negatives": num_uniform}}
        ...     return {"negatives": [uniform], "miners": [{"hardest": {"k": 5}}]}
        >>> hardest_of_uniform(ItemCatalogue([1, 2, 3]), temperature=0.2).miners[0].k
        5
    """
    enter("recipe", preset.__name__, preset)
    known = inspect.signature(preset).parameters

    @functools.wraps(preset)
    def build(items: ItemCatalogue, **given: Any) -> Retrieval:
        chosen = {name: given.pop(name) for name in known if name in given}
        log = chosen.get("history")
        if "history" in known:
            chosen["history"] = log is not None
        own = {name: given[name] for name in ("correct",) if name in given}
        expansion = expand(preset(**chosen), own)
        counts = None if log is None else _events_of_each(items, log)
        return expansion.build(Run(items, log, counts), **{**SCORE, **given})

    positional, keywords = inspect.signature(build, follow_wrapped=False).parameters.values()
    own = [positional, *known.values(), keywords.replace(name="options")]
    build.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    return build


def _events_of_each(items: ItemCatalogue, log: History) -> np.ndarray:
    rows = items.rows(log.item_ids, name="history").numpy()
    return np.bincount(rows[rows >= 0], minlength=len(items))
