"""Mining anew between epochs, because a model outgrows its hard negatives."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.data.id_lists import query_column
from tfrs_negatives.data.interactions import Interactions
from tfrs_negatives.mining.mine import ModelIndex, mine_hard_negatives
from tfrs_negatives.mining.rules import MiningRules
from tfrs_negatives.step.samplers.negative_table import NegativeTable

logger = logging.getLogger("tfrs_negatives")

_MINING = ("catalogue", "rank_range", "relative_margin", "choose", "seed", "batch_size", "progress")


class MineHardNegatives(tf.keras.callbacks.Callback):
    """Mines with the current model at the end of epochs, and loads what it finds into the table.

    The first step of the next epoch uses the new negatives, whatever the data pipeline has read
    ahead. The logs of an epoch that ends with a mining have `mined_negatives`, the mean number of a
    query, and one line says what was dropped.

    Until the first mining the table is empty and the model learns from its other negatives alone;
    hard ones from the beginning drive it apart. Put the callback before `Checkpoints`, so that the
    table which the next epoch uses is saved: a resumed training then needs no file.

    Args:
        table: what `Explicit` of the model reads.
        log: the training log, with the queries of the table.
        folder: where `epoch_0001.parquet` and so on go, and stay.
        every_epochs: mines after every so many epochs.
        first_epoch: the first epoch, counted from 1, after which it mines.
        build_index: what makes an index of the current model, as `build_index` does; ScaNN's is
            measured with queries of the log, at the last rank of the window. None scores every
            item: with many of them, `functools.partial(tfn.build_index, kind="scann")` is faster.
        **mining: `catalogue`, `rank_range`, `relative_margin`, `choose`, `seed`, `batch_size` and
            `progress` of `mine_hard_negatives`. Each epoch adds its number to the seed.

    Raises:
        InputError: if an argument is unknown or out of range, the log has another query key than
            the table, the folder cannot be made, or the model does not read the table.

    Example:
        >>> import numpy as np
        >>> log = Interactions({"user": np.array([1, 2])}, np.array([7, 8]), query_key="user")
        >>> callbacks = [MineHardNegatives(NegativeTable(log), log, folder="mined", first_epoch=3)]

    Source: ANCE (Xiong et al., ICLR 2021). There another process mines while training goes on, with
        a model that is a few thousand steps old; here training waits, and the model is the current.
    """

    def __init__(
        self,
        table: NegativeTable,
        log: Interactions,
        *,
        folder: str | Path,
        every_epochs: int = 1,
        first_epoch: int = 1,
        build_index: Callable[..., ModelIndex] | None = None,
        **mining: Any,
    ) -> None:
        super().__init__()
        for name, number in {"every_epochs": every_epochs, "first_epoch": first_epoch}.items():
            if number < 1:
                raise bad_input(name, "at least 1", number)
        unknown = sorted(mining.keys() - set(_MINING))
        if unknown:
            raise bad_input("mining", f"arguments among {list(_MINING)}", unknown)
        if query_column(log, argument="log")[0] != table.query_key:
            raise bad_input("log.query_key", f"{table.query_key!r}, as in the table", log.query_key)
        if build_index is not None and not callable(build_index):
            raise bad_input("build_index", "a function of a model, or None", repr(build_index))
        if mining.get("batch_size", 1) < 1:
            raise bad_input("batch_size", "at least 1", mining["batch_size"])
        rules = {n: x for n, x in mining.items() if n in MiningRules.__dataclass_fields__}
        self.rules = MiningRules(num=table.num, **rules)
        self.table, self.log, self.folder = table, log, Path(folder)
        self.every_epochs, self.first_epoch = every_epochs, first_epoch
        self.build_index, self.mining = build_index, mining

    def on_train_begin(self, logs: Any = None) -> None:
        """Sees that the model reads the table, and that the folder can be written."""
        if not any(part is self.table for part in self.model.submodules):
            raise bad_input("table", "one that an `Explicit` of the model reads", self.table.name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            found = f"{self.folder}: {error.strerror}"
            raise bad_input("folder", "a folder that can be written", found) from error

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Mines, where the epoch is one that ends with it."""
        after = epoch + 1 - self.first_epoch
        if after < 0 or after % self.every_epochs:
            return
        path = self.folder / f"epoch_{epoch + 1:04}.parquet"
        own = {"num": self.table.num, "seed": self.rules.seed + epoch + 1}
        summary = mine_hard_negatives(
            self.model, self.log, out=path, index=self._index(), **{**self.mining, **own}
        )
        self.table.load(path)
        logger.info("epoch %d: %s", epoch + 1, summary)
        if logs is not None:
            logs["mined_negatives"] = summary.kept / summary.queries

    def _index(self) -> ModelIndex | None:
        if self.build_index is None:
            return None
        features, _ = self.log.queries()
        probes = {name: features[name] for name in self.model.query_signature if name in features}
        last = self.rules.rank_range[1]
        size = {n: self.mining[n] for n in ("batch_size",) if n in self.mining}
        return self.build_index(self.model, recall_k=last, probe_queries=probes, **size)
