"""What a request may ask for at most."""

from __future__ import annotations

MAX_BODY_BYTES = 8 * 2**20
"""A list of `MAX_IDS` ids fits."""

MAX_IDS = 100_000
"""Ids in each of `exclude`, `allow` and `allow_groups`."""

MAX_K = 1000

MAX_ITEMS_PER_CALL = 1000
"""Items in one upsert or deletion: the item tower encodes them in one piece."""

MAX_CHANGED_ITEMS = 10_000
"""Items upserted since the start. They are searched exactly, so they have to stay few."""

MAX_LISTED = 100
"""Ids that a search for queries lists."""

MAX_HISTORY = 1000
"""Events of a history that are shown, the latest."""

MAX_TEXT = 1000
"""Characters of an id or a prefix in the address."""
