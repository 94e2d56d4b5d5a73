"""A small run to serve, without a model: exact search over vectors that an export holds."""

import os
import shutil
import threading

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.files import put_in_place
from tfrs_negatives.index.retriever import Nature, Retriever
from tfrs_negatives.index.saved import archive
from tfrs_negatives.runs.tables import write_columns
from tfrs_negatives.serve.deployment import Deployment

NUM_ITEMS, NUM_USERS = 30, 20
ITEM_IDS = np.arange(100, 100 + NUM_ITEMS)
USERS = [f"u{n}" for n in range(NUM_USERS)]


class FakeIndex(Retriever):
    """Items [N, 2] and what came and went since; user "u3" has the vector of row 3.

    A score is `offset` and the inner product, so that it tells which export it is of.
    """

    def __init__(self, offset=0.0, seed=0, padding_id=-1):
        self.offset = offset
        self.padding = padding_id
        rng = np.random.default_rng(seed)
        self.users = rng.normal(size=[NUM_USERS, 2]).astype(np.float32)
        vectors = rng.normal(size=[NUM_ITEMS, 2]).astype(np.float32)
        ids = ITEM_IDS.tolist() if padding_id == -1 else [f"i/{i}" for i in ITEM_IDS]
        self.groups = {item: int(item) % 3 for item in ITEM_IDS.tolist()}
        self.vectors = dict(zip(ids, vectors, strict=True))
        self.frozen = set(ids)
        self.changed, self.gone = set(), set()
        self.sizes = []
        self.poison = None
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()

    def hold(self):
        """Makes searches wait for the gate, and forgets those that were."""
        self.gate.clear()
        self.started.clear()
        self.sizes.clear()

    def __len__(self):
        return len(self.vectors)

    @property
    def nature(self):
        user = {"user": tf.TensorSpec([None], tf.string), "age": tf.TensorSpec([None], tf.int64)}
        return Nature(2, self.padding, -(2**63), user)

    @property
    def item_signature(self):
        item = tf.int64 if self.padding == -1 else tf.string
        return {"item": tf.TensorSpec([None], item), "place": tf.TensorSpec([None, 2], tf.float32)}

    @property
    def num_upserted(self):
        return len(self.changed)

    @property
    def num_deleted(self):
        return len(self.gone)

    def embed(self, tower, features):
        if tower == "item":
            return features["place"].numpy()
        users = features["user"].numpy()
        rows = [int(user[1:]) if user[1:].isdigit() else 0 for user in users]
        return self.users[np.array(rows) % NUM_USERS]

    def contains(self, ids):
        return np.array([item in self.vectors for item in ids], bool)

    def upsert(self, ids, vectors, *, groups=None):
        self.vectors = {**self.vectors, **dict(zip(ids, vectors, strict=True))}
        self.groups |= dict.fromkeys(ids) if groups is None else dict(zip(ids, groups, strict=True))
        self.changed |= set(ids)
        self.gone -= set(ids)

    def delete(self, ids):
        self.vectors = {i: v for i, v in self.vectors.items() if i not in set(ids)}
        self.changed -= set(ids)
        self.gone |= set(ids) & self.frozen

    def answer(self, vectors, asked):
        k, allow_groups = asked.k, asked.allow_groups
        self.started.set()
        assert self.gate.wait(60)
        self.sizes.append(len(vectors))
        if self.poison is not None and np.isin(self.users[self.poison], vectors).all():
            raise RuntimeError("a search that cannot be")
        lists = [None if x is None else x.tolist() for x in (asked.exclude, asked.allow)]
        ids = list(self.vectors)
        table = np.stack([self.vectors[item] for item in ids])
        scores = np.full([len(vectors), k], -np.inf, np.float32)
        found = np.full([len(vectors), k], self.padding, object)
        for row, vector in enumerate(np.asarray(vectors)):
            keep = [
                (lists[0] is None or item not in lists[0][row])
                and (lists[1] is None or item in lists[1][row])
                and (allow_groups is None or self.groups.get(item) in allow_groups[row])
                for item in ids
            ]
            all_scores = np.where(keep, self.offset + table @ vector, -np.inf)
            for column, place in enumerate(np.argsort(-all_scores, kind="stable")[:k]):
                if np.isfinite(all_scores[place]):
                    scores[row, column], found[row, column] = all_scores[place], ids[place]
        return scores, found


def write_export(folder, *, offset=0.0, seed=0, padding_id=-1):
    """Writes an export for `open_fake`, complete under another name and then renamed."""
    draft = folder.with_name(f".{folder.name}.draft-{os.getpid()}-{threading.get_ident()}")
    draft.mkdir(parents=True)
    np.savez(draft / "vectors.npz", offset=offset, seed=seed, padding=np.array(padding_id))
    content = {name: [] for name in archive._KEYS - {"files"}}
    created = f"export {offset:g}"
    archive.write_manifest(draft, {**content, "created": created, "item_key": "item"})
    put_in_place(draft, folder)


def open_fake(folder):
    """What `open_export` is for real exports; the files are checked as they are there."""
    archive.read_manifest(folder)
    try:
        with np.load(folder / "vectors.npz") as saved:
            arguments = [saved[name].item() for name in ("offset", "seed", "padding")]
    except OSError as error:
        raise bad_input(str(folder / "vectors.npz"), "a readable file", error) from error
    return FakeIndex(*arguments)


def events():
    """(user, item, time), five of each user."""
    rng = np.random.default_rng(7)
    return [
        (user, int(item), 1_000_000 + 100 * n + e)
        for n, user in enumerate(USERS)
        for e, item in enumerate(rng.choice(ITEM_IDS, 5, replace=False))
    ]


def write_run(folder, **export):
    """Writes a run with an export, whose log is a CSV file inside it."""
    folder.mkdir(parents=True)
    log = "user,item,age,time\n" + "".join(
        f"{user},{item},{20 + int(user[1:])},{time}\n" for user, item, time in events()
    )
    (folder / "events.csv").write_text(log)
    (folder / "config.yaml").write_text(
        f"data:\n  source: csv:{folder / 'events.csv'}\n  split: random\n  test_fraction: 0.01\n"
        "  columns: {user: query_id, age: query, item: item_id, time: time}\n"
    )
    users = {"user": np.array(USERS), "age": np.arange(20, 20 + NUM_USERS)}
    write_columns(folder / "queries.parquet", users, query_key="user")
    items = {
        "id": ITEM_IDS,
        "training_events": np.arange(NUM_ITEMS),
        "title": np.array([f"<b>Film & {item}</b>" for item in ITEM_IDS]),
    }
    write_columns(folder / "items.parquet", items)
    write_export(folder / "index", **export)
    return folder


def deploy(folder, name="first", **options):
    """Returns a loaded deployment of such a run."""
    deployment = Deployment(folder, name, open_index=open_fake, **options)
    deployment.load()
    return deployment


def copy_run(folder, target):
    shutil.copytree(folder, target)
    return target
