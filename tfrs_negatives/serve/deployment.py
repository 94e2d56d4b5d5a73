"""Which export of a run is in service, how another takes its place, and what was changed since."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tfrs_negatives.core.errors import InputError, bad_input
from tfrs_negatives.index.retriever import check_lists
from tfrs_negatives.index.saved.archive import MANIFEST_NAME
from tfrs_negatives.runs import files
from tfrs_negatives.runs.tables import UnknownId
from tfrs_negatives.serve.schemas import MAX_CHANGED_ITEMS
from tfrs_negatives.serve.tables import RunTables, read_tables
from tfrs_negatives.towers.signature import feature_arrays, join_rows

if TYPE_CHECKING:
    from tfrs_negatives.index.live.delta import DeltaIndex

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportName:
    """What tells one export from another.

    Attributes:
        created: when it was made, as its manifest says.
        checksum: SHA-256 of the manifest, which holds those of all files.
        item_key: the item feature that is the id; None where the manifest does not say.
    """

    created: str | None
    checksum: str
    item_key: str | None = None


@dataclass(frozen=True)
class Served:
    """All that an answer is made from. A batch takes one, and so never mixes two exports."""

    run: str
    export: ExportName
    index: DeltaIndex
    tables: RunTables


class KeptItem(NamedTuple):
    """An upserted item, kept for the item tower of the next export.

    Attributes:
        features: one value of each.
        group: what `allow_groups` filters by, or None.
    """

    features: Mapping[str, Any]
    group: int | str | None = None


@dataclass
class _Changes:
    """What was changed since the process began, to be done again on the next export."""

    upserted: dict[Any, KeptItem] = field(default_factory=dict)
    deleted: set[Any] = field(default_factory=set)


class NotReady(RuntimeError):
    """No export is loaded yet."""


def open_export(folder: Path) -> DeltaIndex:
    """Loads an export, with room for items that come and go in front of it.

    Raises:
        InputError: if it is no export, or a file is missing, truncated or changed.
    """
    from tfrs_negatives.index import load_index
    from tfrs_negatives.index.live.delta import DeltaIndex

    return DeltaIndex(load_index(folder), capacity=MAX_CHANGED_ITEMS)


class Deployment:
    """A run in service: its latest complete export, and the changes made to it.

    Every method may be called from any thread. Readers take `served` once and never wait.

    Args:
        folder: a run with an index.
        name: how requests name it.
        open_index: loads the folder of an export.
        open_tables: reads the tables of the run.
        after_load: is called when an export has come into service.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        open_index: Callable[[Path], DeltaIndex] = open_export,
        open_tables: Callable[[Path], RunTables] = read_tables,
        after_load: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder
        self.name = name
        self.num_swaps = 0
        self.num_refused = 0
        self._open_index = open_index
        self._open_tables = open_tables
        self._after_load = after_load
        self._served: Served | None = None
        self._changes = _Changes()
        self._looked_at: object = None
        # Held while the items change or an export takes over, not while one is loaded.
        self._lock = threading.Lock()

    @property
    def served(self) -> Served:
        """What answers now.

        Raises:
            NotReady: if nothing is loaded yet.
        """
        if self._served is None:
            raise NotReady(f"the export of {self.name} is being loaded")
        return self._served

    @property
    def is_ready(self) -> bool:
        """Whether an export is loaded."""
        return self._served is not None

    def load(self) -> None:
        """Loads the first export.

        Raises:
            InputError: if the run has none, or it is damaged; the message names the file.
        """
        if not (self.folder / files.INDEX / MANIFEST_NAME).is_file():
            expected = "a run with an index: `tfrs-negatives index RUN` builds it"
            raise bad_input("run", expected, self.folder)
        self._looked_at = self._files()
        self._served = self._open()
        self._after_load()

    def refresh(self) -> None:
        """Looks whether there is another export, and lets it take over if it is sound.

        One that is not is reported once, by its file, and the old one stays.
        """
        found = self._files()
        if found is None or found == self._looked_at:
            return
        try:
            if self._read_name() != self.served.export:
                self._swap(self._open())
        except InputError as error:
            # Of files that are being written or renamed right now nothing is known yet.
            if self._files() == found:
                self._refuse(error)
                self._looked_at = found
            return
        self._looked_at = found

    def upsert(self, items: Mapping[Any, KeptItem]) -> Served:
        """Adds items by their features, or replaces them: all, or none where one is wrong.

        Args:
            items: id -> its features; the one that is the id itself may be left out.

        Returns:
            What has the items now.

        Raises:
            InputError: if an id or a feature is malformed, or too many items were changed.
            NotReady: if nothing is loaded yet.
        """
        with self._lock:
            served = self.served
            kept = {item: _complete(served, item, given) for item, given in items.items()}
            _embed_and_upsert(served.index, kept)
            self._changes.upserted.update(kept)
            self._changes.deleted -= kept.keys()
            return served

    def delete(self, ids: Sequence[str]) -> Served:
        """Takes items out.

        Args:
            ids: as text, also where ids are integers.

        Returns:
            What lacks the items now.

        Raises:
            UnknownId: if there is no such item; none is taken out then.
            NotReady: if nothing is loaded yet.
        """
        with self._lock:
            served = self.served
            plain = list(dict.fromkeys(_plain_id(served.index, item) for item in ids))
            for item, known in zip(plain, served.index.contains(plain), strict=True):
                if not known:
                    raise UnknownId(str(bad_input("id", "an item of the index", repr(item))))
            served.index.delete(plain)
            self._changes.deleted |= set(plain)
            for item in plain:
                self._changes.upserted.pop(item, None)
            return served

    def _open(self) -> Served:
        """Loads the export that is there, and asks it something before anybody else does."""
        export = self._read_name()
        try:
            index = self._open_index(self.folder / files.INDEX)
            tables = self._open_tables(self.folder)
            if tables.queries is not None:
                _try_out(index, tables)
        except InputError:
            raise
        except Exception as error:
            # TensorFlow raises almost anything for a graph that it cannot read.
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            expected = "an export that can be loaded"
            raise bad_input("run", expected, f"{self.folder / files.INDEX}: {reason}") from error
        if self._read_name() != export:
            raise bad_input("run", "an export that stays as it is", self.folder / files.INDEX)
        return Served(self.name, export, index, tables)

    def _swap(self, new: Served) -> None:
        with self._lock:
            _apply(self._changes, new)
            self._served = new
            self.num_swaps += 1
        self._after_load()
        _log.info("%s: the export %s took over", self.name, new.export.checksum[:12])

    def _refuse(self, error: InputError) -> None:
        self.num_refused += 1
        _log.error("%s: an export is refused, the old one stays in service: %s", self.name, error)

    def _read_name(self) -> ExportName:
        path = self.folder / files.INDEX / MANIFEST_NAME
        try:
            content = path.read_bytes()
            manifest = json.loads(content)
            created, item_key = manifest.get("created"), manifest.get("item_key")
        except (OSError, ValueError, AttributeError) as error:
            raise bad_input(str(path), "a manifest in JSON", error) from error
        return ExportName(created, hashlib.sha256(content).hexdigest(), item_key)

    def _files(self) -> object:
        """What tells whether anything has changed, without reading; None while there is none."""
        folder = self.folder / files.INDEX
        try:
            stats = {path: path.stat() for path in folder.rglob("*")}
        except OSError:
            return None
        if folder / MANIFEST_NAME not in stats:
            return None
        return {p: (s.st_ino, s.st_size, s.st_mtime_ns) for p, s in stats.items()}


def _try_out(index: DeltaIndex, tables: RunTables) -> None:
    queries = tables.queries
    assert queries is not None  # noqa: S101
    features = {name: queries.columns[name][:1] for name in index.query_signature}
    scores, _ = index.top_k(features, 1)
    if not np.isfinite(scores).all():
        raise bad_input("run", "an export that finds an item for a known query", "none")


def _complete(served: Served, item: Any, given: KeptItem) -> KeptItem:
    key = served.export.item_key
    if key is None or key not in served.index.item_signature:
        return given
    if given.features.get(key, item) != item:
        expected = f"the id of the item, {item!r}"
        raise bad_input(f"features[{key!r}]", expected, repr(given.features[key]))
    return KeptItem({**given.features, key: item}, given.group)


def _embed_and_upsert(index: DeltaIndex, items: Mapping[Any, KeptItem]) -> None:
    check_lists(list(items), 1, argument="id", padding=index.padding_id)
    if index.padding_id in items:
        raise bad_input("id", "an id that an item can have", repr(index.padding_id))
    # Each alone, so that the error is about one value of one item.
    signature = index.item_signature
    rows = [
        feature_arrays({n: [v] for n, v in item.features.items()}, signature)
        for item in items.values()
    ]
    vectors = index.embed("item", join_rows(rows, signature))
    groups = [item.group for item in items.values()]
    has_groups = any(group is not None for group in groups)
    index.upsert(list(items), vectors, groups=groups if has_groups else None)


def _plain_id(index: DeltaIndex, item: str) -> Any:
    if isinstance(index.padding_id, str):
        return item
    try:
        number = int(item)
    except ValueError:
        number = None
    if number is None or not -(2**63) <= number < 2**63:
        raise UnknownId(str(bad_input("id", "an integer, as the index has", repr(item[:50]))))
    return number


def _apply(changes: _Changes, new: Served) -> None:
    """Does to a new export what was done to the old one."""
    gone = list(changes.deleted)
    if gone:
        held = new.index.contains(gone)
        new.index.delete([item for item, known in zip(gone, held, strict=True) if known])
    if not changes.upserted:
        return
    try:
        _embed_and_upsert(new.index, changes.upserted)
    except Exception as error:
        # The model may read other features now, and TensorFlow raises almost anything. To refuse
        # the export for that would stop all updates.
        _log.error(
            "%s: %d upserted items are lost, the new item tower cannot encode them: %s",
            new.run,
            len(changes.upserted),
            error,
        )
        changes.upserted.clear()
