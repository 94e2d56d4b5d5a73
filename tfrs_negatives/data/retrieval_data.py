"""A log with its catalogue: as a source has it, and cut into training and test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.interactions import Interactions

if TYPE_CHECKING:
    from tfrs_negatives.data.sources.synthetic import SyntheticTruth


@dataclass(frozen=True)
class RetrievalData:
    """A log cut into training and test, with its catalogue.

    Attributes:
        train: what may be learned from. Vocabularies, counts and histories come from here only.
        test: what is predicted.
        items: the corpus, items without any event included.
        name: what the data is called in tables.
        truth: what the synthetic generator knows; None for real data and for a split not its own.
        titles: [N] strings, the names of the items for display; None where there are none.
    """

    train: Interactions
    test: Interactions
    items: ItemCatalogue
    name: str
    truth: SyntheticTruth | None = None
    titles: np.ndarray | None = None


@dataclass(frozen=True)
class SourceLog:
    """A log as its source has it, before the rating threshold and the split.

    Attributes:
        log: E events.
        items: the corpus.
        is_test: [E] bool, the split that the source comes with; None where it has none.
        titles: [N] strings, or None.
        truth: what the synthetic generator knows, or None.
    """

    log: Interactions
    items: ItemCatalogue
    is_test: np.ndarray | None = None
    titles: np.ndarray | None = None
    truth: SyntheticTruth | None = None
