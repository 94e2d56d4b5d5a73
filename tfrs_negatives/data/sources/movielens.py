"""MovieLens, from the folder that GroupLens ships or as tensorflow-datasets prepares it.

Both give the same log, in the same order, with the same features:

    user_id, gender, occupation, zip_code   strings
    age                                     integer; the 1M set knows only the start of a bracket
    movie_id                                string
    year                                    integer, from the end of the title; 0 where it has none
    genres                                  [N, W] int8 0/1, the genres that occur, by name

What only one of them has is left out: the release date and the link of the folder, the genres that
no movie has and the numbered occupations of tensorflow-datasets. Titles are kept for display; they
name a movie as its id does, so they are no feature.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import Columns
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.interactions import Interactions
from tfrs_negatives.data.retrieval_data import SourceLog

YEAR = re.compile(r"\((\d{4})\)")
GENRE_NAMES = {"unknown": "Unknown", "Children's": "Children"}
RECORDS_PER_BATCH = 8192


def read_grouplens(folder: Path) -> SourceLog:
    """Reads u.data, u.user, u.item and u.genre of the 100K set.

    Args:
        folder: where the files are.

    Returns:
        The log sorted by time, user and movie, with its ratings.

    Raises:
        InputError: if a file is missing or a line of it is malformed.
    """
    events = _integers(folder / "u.data", _lines(folder / "u.data", "\t", 4))
    users = _lines(folder / "u.user", "|", 5)
    row_of_user = {user[0]: row for row, user in enumerate(users)}
    user_ids = _names(events[:, 0])
    rows = [row_of_user.get(user, -1) for user in user_ids.tolist()]
    if -1 in rows:
        raise bad_input("u.user", "every user of u.data", f"no user {user_ids[rows.index(-1)]}")
    log = {
        "user_id": user_ids,
        "movie_id": _names(events[:, 1]),
        "rating": events[:, 2].astype(np.float32),
        "timestamp": events[:, 3],
        "age": _integers(folder / "u.user", [user[1] for user in users])[rows],
        "gender": np.array([user[2] for user in users])[rows],
        "occupation": np.array([user[3] for user in users])[rows],
        "zip_code": np.array([user[4] for user in users])[rows],
    }
    names = [line[0] for line in _lines(folder / "u.genre", "|", 2)]
    movies = _lines(folder / "u.item", "|", 5 + len(names))
    ids, titles = (np.array([movie[field] for movie in movies]) for field in (0, 1))
    genres = _integers(folder / "u.item", [movie[5:] for movie in movies])
    return _source(log, _movies(ids, titles, genres, names))


def read_prepared(size: str, data_dir: str | None) -> SourceLog:
    """Reads `movielens/<size>-ratings` and `-movies` of tensorflow-datasets.

    Args:
        size: "100k" or "1m".
        data_dir: folder of tensorflow-datasets; what is not prepared there is downloaded.

    Returns:
        The log sorted by time, user and movie, with its ratings.

    Raises:
        InputError: if the data can be neither found nor prepared.
    """
    ratings = _prepare(f"movielens/{size}-ratings", data_dir)
    movies = _prepare(f"movielens/{size}-movies", data_dir)
    names = movies.info.features["movie_genres"].feature.names
    age = "raw_user_age" if "raw_user_age" in ratings.info.features else "bucketized_user_age"
    columns = {
        "user_id": "user_id",
        "movie_id": "movie_id",
        "rating": "user_rating",
        "timestamp": "timestamp",
        "age": age,
        "gender": "user_gender",
        "occupation": "user_occupation_text",
        "zip_code": "user_zip_code",
    }
    records = _records(ratings, list(columns.values()))
    log = {ours: records[theirs] for ours, theirs in columns.items()}
    log["age"] = log["age"].astype(np.int64)
    log["gender"] = np.where(log["gender"] != 0, "M", "F")
    movie = _records(movies, ["movie_id", "movie_title", "movie_genres"])
    # A movie lists the numbers of its genres; -1 fills the rest of its row.
    genres = (movie["movie_genres"][:, :, None] == np.arange(len(names))).any(axis=1)
    return _source(log, _movies(movie["movie_id"], movie["movie_title"], genres, names))


def _movies(
    ids: np.ndarray, titles: np.ndarray, genres: np.ndarray, names: Sequence[str]
) -> tuple[ItemCatalogue, np.ndarray]:
    """Returns the movies by number, and their titles."""
    order = np.argsort(ids.astype(np.int64))
    titles = np.char.strip(titles[order])
    years = [int((YEAR.findall(title) or ["0"])[-1]) for title in titles.tolist()]
    by_name = np.argsort([GENRE_NAMES.get(name, name) for name in names])
    genres = genres[order][:, by_name].astype(np.int8)
    features = {"year": np.array(years), "genres": genres[:, genres.any(axis=0)]}
    return ItemCatalogue(ids[order], features, item_key="movie_id"), titles


def _source(log: Columns, movies: tuple[ItemCatalogue, np.ndarray]) -> SourceLog:
    order = np.lexsort((log["movie_id"], log["user_id"], log["timestamp"]))
    names = ("user_id", "age", "gender", "occupation", "zip_code")
    return SourceLog(
        log=Interactions(
            {name: log[name][order] for name in names},
            log["movie_id"][order],
            query_key="user_id",
            timestamps=log["timestamp"][order],
            labels=log["rating"][order],
        ),
        items=movies[0],
        titles=movies[1],
    )


def _lines(path: Path, separator: str, num_fields: int) -> list[list[str]]:
    if not path.is_file():
        raise bad_input("source", "a folder with u.data, u.user, u.item and u.genre", f"no {path}")
    lines = []
    for number, line in enumerate(path.read_text("latin-1").split("\n"), start=1):
        fields = line.split(separator)
        if not line.strip():
            continue
        if len(fields) != num_fields:
            expected = f"{num_fields} fields in line {number}"
            raise bad_input(path.name, expected, f"{len(fields)} fields")
        lines.append(fields)
    if not lines:
        raise bad_input(path.name, "at least one line", "an empty file")
    return lines


def _names(numbers: np.ndarray) -> np.ndarray:
    # `astype(str)` would make each as wide as the largest int64.
    return np.array([str(number) for number in numbers.tolist()])


def _integers(path: Path, fields: Any) -> np.ndarray:
    try:
        return np.array(fields).astype(np.int64)
    except ValueError as error:
        raise bad_input(path.name, "integers", error) from None


def _prepare(name: str, data_dir: str | None) -> Any:
    # Slow to import, and only this source needs it.
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
        builder.download_and_prepare()
    except (OSError, tf.errors.OpError) as error:
        expected = f"a folder with {name} prepared, or one it can be downloaded to"
        raise bad_input("data_dir", expected, f"{data_dir} ({error})") from error
    if builder.info.file_format.value != "tfrecord":
        raise bad_input("data_dir", f"{name} as tfrecord", builder.info.file_format.value)
    return builder


def _records(builder: Any, names: list[str]) -> dict[str, np.ndarray]:
    """Returns all examples as columns; strings decoded, a list as one row filled up with -1."""
    spec = {name: builder.info.features.tf_example_spec[name] for name in names}
    for name, feature in spec.items():
        if isinstance(feature, tf.io.FixedLenSequenceFeature):
            spec[name] = tf.io.RaggedFeature(feature.dtype)
    num_genres = builder.info.features["movie_genres"].feature.num_classes

    def parse(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        # Parsing a batch at once is twenty times faster than `tfds.load`, which parses one by one.
        parsed = tf.io.parse_example(examples, spec)
        return {
            name: column.to_tensor(-1, shape=[None, num_genres])
            if isinstance(column, tf.RaggedTensor)
            else column
            for name, column in parsed.items()
        }

    files = [os.fspath(path) for path in builder.info.splits["train"].filepaths]
    batches = tf.data.TFRecordDataset(files).batch(RECORDS_PER_BATCH).map(parse)
    parts = list(batches.as_numpy_iterator())
    columns = {name: np.concatenate([part[name] for part in parts]) for name in names}
    return {
        name: np.char.decode(column.astype("S"), "utf-8") if column.dtype == object else column
        for name, column in columns.items()
    }
