"""The training of DEXML: a softmax over shared mined negatives, mined anew every few epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.interactions import Interactions
from tfrs_negatives.mining.refresh import MineHardNegatives
from tfrs_negatives.step.masks.keep import AccidentalHits
from tfrs_negatives.step.masks.known_positives import KnownPositives
from tfrs_negatives.step.samplers.mined_union import MinedUnion
from tfrs_negatives.step.samplers.negative_table import NegativeTable
from tfrs_negatives.step.task import Retrieval


def dexml(
    items: ItemCatalogue,
    log: Interactions,
    *,
    folder: str | Path,
    decoupled: bool = True,
    shortlist: int = 100,
    first_epoch: int = 6,
    every_epochs: int = 5,
    **options: Any,
) -> tuple[Retrieval, MineHardNegatives]:
    """Returns the task and the callback that mines for it.

    Until `first_epoch` the candidates are the items of the batch, each once; from there on one item
    of each row's shortlist joins them, as negatives of all rows.

    Args:
        items: the catalogue.
        log: the training log.
        folder: where the minings are kept.
        decoupled: whether the known positives of a query never compete with each other. Without,
            they are negatives of each other, as in a plain softmax.
        shortlist: how many of the best items a query's pick is drawn from, its positives aside.
        first_epoch: the first epoch, counted from 1, with mined negatives; the model as it is one
            epoch before mines them.
        every_epochs: epochs until they are mined anew.
        **options: any keyword of `Retrieval`; the score is a cosine at temperature 0.05 and the
            loss the mean, unless they say otherwise.

    Returns:
        The task of a model, and what its `fit` needs among the callbacks, before `Checkpoints`.

    Raises:
        InputError: if `first_epoch` is below 2, or an argument of a part is out of range.

    Example:
        >>> import numpy as np
        >>> log = Interactions({"point": np.array([1, 2])}, np.array([7, 8]), query_key="point")
        >>> task, mining = dexml(ItemCatalogue([7, 8, 9]), log, folder="mined")
        >>> mining.first_epoch, mining.rules.rank_range, type(task.masks[0]).__name__
        (5, (1, 100), 'KnownPositives')

    Source: Gupta et al., ICLR 2024 (DEXML). We differ: the positives of a query have no rank in its
        shortlist, which so always has its length, and a row is a (query, item) event.
    """
    if first_epoch < 2:
        raise bad_input("first_epoch", "at least 2: an epoch is needed to mine with", first_epoch)
    table = NegativeTable(log, shortlist)
    callback = MineHardNegatives(
        table,
        log,
        folder=folder,
        first_epoch=first_epoch - 1,
        every_epochs=every_epochs,
        rank_range=(1, shortlist),
    )
    parts = {
        "negatives": [MinedUnion(table, items)],
        "masks": [KnownPositives(log, items) if decoupled else AccidentalHits()],
        "correct": None,
    }
    score = {"similarity": "cosine", "temperature": 0.05, "reduction": "mean"}
    return Retrieval(**{**parts, **score, **options}), callback
