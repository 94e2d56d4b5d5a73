"""Multi-label data in the text format of the Extreme Classification Repository.

A folder has train.txt and test.txt, or all.txt, each with a header `points words labels` and then a
line for each point, everything numbered from 0:

    label,label word:value word:value

A point is a query and a label an item, so every (point, label) pair is an event:

    point_id      the place of the point in the files, train.txt first; no tower reads it
    words         the words of the point, see `read_xmc`
    label_id      the number of the label
    label_words   the words of its text, padded with ""

`words.txt` and `labels.txt` have a text in each line; without the first a word is called by its
number, without the second a label has no words and no title.
"""

from __future__ import annotations

import logging
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import Encoding
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.interactions import Interactions
from tfrs_negatives.data.retrieval_data import SourceLog
from tfrs_negatives.data.schema import Column

logger = logging.getLogger("tfrs_negatives")

Form = Literal["list", "multi_hot", "numeric"]

WORDS = "words"
"""The feature of a point whose encoding may be declared."""
LARGEST = float(np.finfo(np.float32).max)
TEXT_BYTES = 2**29
"""Texts of all events that are larger become flags, where nothing is declared."""
MAX_BYTES = 2**31
"""A larger column of words is refused."""


class Points(NamedTuple):
    """P points side by side.

    Attributes:
        num_words: W.
        num_labels: N.
        label_counts: [P] int64, how many labels each has.
        labels: their labels, one point after another.
        word_counts: [P] int64.
        words: their words, likewise.
        values: float32, the value of each word.
    """

    num_words: int
    num_labels: int
    label_counts: np.ndarray
    labels: np.ndarray
    word_counts: np.ndarray
    words: np.ndarray
    values: np.ndarray


def read_xmc(folder: Path, *, encoding: Encoding | None = None) -> SourceLog:
    """Reads a folder of the repository's format.

    The words of a point come in the form in which the tower is to read them:

    - `list`: texts, padded with "". The tower takes the mean of their vectors, so the values do
      not count; only a word of value 0 is left out.
    - `multi_hot`: [E, W] flags. The tower takes the sum; much smaller where points are long.
    - `numeric`: [E, W] value x log(P / points with the word), over the points of train.txt (all.txt
      where there is no other), each point of length 1. The tower scales each word to mean 0 and
      variance 1.

    Args:
        folder: where the files are.
        encoding: the form; None is `list` where the padded texts of all events take at most 512
            MiB, else `multi_hot`.

    Returns:
        The log; with train.txt and test.txt it knows its split. Points without labels have no
        event; how many there are is said.

    Raises:
        InputError: if a file is missing, or a line of it malformed, or the words are too large.
    """
    parts = [read_points(folder / name) for name in _file_names(folder)]
    points = _joined(parts, folder)
    texts = _texts(folder / "words.txt", points.num_words)
    point = np.repeat(np.arange(len(points.label_counts)), points.label_counts)
    if not len(point):
        raise bad_input("source", "at least one point with a label", f"none in {folder}")
    _say_skipped(points)
    form = _form(points, texts, len(point), encoding)
    words = _FORMS[form](points, texts, len(parts[0].label_counts))
    log = Interactions(
        {"point_id": point, WORDS: words[point]},
        points.labels,
        query_key="point_id",
        columns={
            "point_id": Column("query_id", encoding="left_out"),
            WORDS: Column("query", encoding=form),
        },
    )
    titles = _titles(folder / "labels.txt", points.num_labels)
    ends = len(parts[0].labels)
    is_test = np.arange(len(point)) >= ends if len(parts) == 2 else None
    return SourceLog(log, _catalogue(points.num_labels, titles), is_test=is_test, titles=titles)


def _file_names(folder: Path) -> list[str]:
    both, there = ["train.txt", "test.txt"], [p.name for p in folder.glob("*.txt")]
    if set(both) <= set(there):
        return both
    if "all.txt" in there and not set(both) & set(there):
        return ["all.txt"]
    raise bad_input("source", "a folder with train.txt and test.txt, or with all.txt", folder)


def read_points(path: Path) -> Points:
    """Reads one file of points.

    Args:
        path: the file.

    Raises:
        InputError: with the number of the line that is wrong.
    """
    with path.open("rb") as lines:
        num_points, num_words, num_labels = _header(path, lines.readline())
        label_counts, labels = array("q"), array("q")
        word_counts, words, values = array("q"), array("q"), array("f")
        for number, line in _point_lines(path, lines, num_points):
            own_labels, own_words, own_values = _parse(path, number, line)
            _check_numbers(path, number, own_labels, num_labels, "label")
            _check_numbers(path, number, own_words, num_words, "word")
            label_counts.append(len(own_labels))
            labels.extend(own_labels)
            word_counts.append(len(own_words))
            words.extend(own_words)
            values.extend(own_values)
    columns = (label_counts, labels, word_counts, words, values)
    return Points(num_words, num_labels, *map(np.array, columns))


def _header(path: Path, line: bytes) -> list[int]:
    sizes = line.split()
    if len(sizes) != 3 or not all(size.isdigit() for size in sizes):
        raise bad_input(path.name, "`points words labels` in line 1", _shown(line))
    numbers = [int(size) for size in sizes]
    if not all(numbers):
        raise bad_input(path.name, "at least one point, word and label", _shown(line))
    return numbers


def _point_lines(path: Path, lines: BinaryIO, num_points: int) -> Iterator[tuple[int, bytes]]:
    found = 0
    for number, line in enumerate(lines, start=2):
        if found == num_points:
            if line.strip():
                raise bad_input(path.name, f"{num_points} points, as line 1 says", "more of them")
            continue
        found += 1
        yield number, line
    if found < num_points:
        raise bad_input(path.name, f"{num_points} points, as line 1 says", found)


def _parse(path: Path, number: int, line: bytes) -> tuple[list[int], list[int], list[float]]:
    """Returns the labels, the words and their values of a line."""
    labels, _, rest = line.rstrip().partition(b" ")
    pairs = [pair.split(b":") for pair in rest.split()]
    try:
        own_labels = [int(label) for label in labels.split(b",")] if labels else []
        words, values = [int(word) for word, _ in pairs], [float(value) for _, value in pairs]
        # Python reads 1_0 as 10; a NaN is not below anything.
        if b"_" in line or not all(abs(value) <= LARGEST for value in values):
            raise ValueError
    except ValueError:
        rule = f"`label,label word:value word:value` in line {number}, a space first without labels"
        raise bad_input(path.name, rule, _shown(line)) from None
    if 0.0 in values:
        kept = [n for n, value in enumerate(values) if value]
        words, values = [words[n] for n in kept], [values[n] for n in kept]
    return own_labels, words, values


def _check_numbers(path: Path, number: int, own: list[int], limit: int, what: str) -> None:
    if own and not 0 <= min(own) <= max(own) < limit:
        wrong = next(one for one in own if not 0 <= one < limit)
        expected = f"{what}s from 0 to {limit - 1} in line {number}, as line 1 says"
        raise bad_input(path.name, expected, wrong)
    if len(set(own)) < len(own):
        raise bad_input(path.name, f"each {what} once in line {number}", sorted(own)[:10])


def _shown(line: bytes) -> str:
    return repr(line[:60].decode(errors="replace").rstrip())


def _joined(parts: list[Points], folder: Path) -> Points:
    first, last = parts[0], parts[-1]
    if first[:2] != last[:2]:
        received = f"{list(first[:2])} in train.txt, {list(last[:2])} in test.txt of {folder}"
        raise bad_input("source", "as many words and labels in both files", received)
    columns = zip(*(part[2:] for part in parts), strict=True)
    return Points(*first[:2], *(np.concatenate(column) for column in columns))


def _say_skipped(points: Points) -> None:
    skipped = int((points.label_counts == 0).sum())
    if skipped:
        logger.info("%d of %d points have no label: skipped", skipped, len(points.label_counts))


# ------------------------------------------------------------------ words


def _texts(path: Path, num_lines: int) -> np.ndarray:
    """Returns the texts of a file; without one, the numbers as texts."""
    if not path.is_file():
        return np.array([str(number) for number in range(num_lines)])
    lines = _lines(path, num_lines)
    if "" in lines:
        raise bad_input(path.name, "a text in every line", f"none in line {lines.index('') + 1}")
    return np.array(lines)


def _lines(path: Path, num_lines: int) -> list[str]:
    try:
        lines = path.read_text("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise bad_input(path.name, "UTF-8", error) from None
    lines = [line.strip() for line in (lines[:-1] if lines[-1] == "" else lines)]
    if len(lines) != num_lines:
        raise bad_input(path.name, f"{num_lines} lines, one for each", len(lines))
    return lines


def _form(points: Points, texts: np.ndarray, num_events: int, encoding: Encoding | None) -> Form:
    width = points.num_words
    sizes: dict[Form, int] = {
        "list": num_events * int(points.word_counts.max(initial=1)) * texts.dtype.itemsize,
        "multi_hot": num_events * width,
        "numeric": num_events * width * 4,
    }
    if encoding not in (None, "left_out", *sizes):
        raise bad_input(f"columns.{WORDS}", f"an encoding among {[*sizes]}", repr(encoding))
    declared = [form for form in sizes if form == encoding]
    form: Form = declared[0] if declared else "list"
    if not declared and sizes["list"] > TEXT_BYTES:
        form = "multi_hot"
        logger.info(
            "the words as texts take %d MB for all events, and are flags: %d MB (declare the "
            "encoding of `%s` to decide)",
            *(sizes["list"] >> 20, sizes[form] >> 20, WORDS),
        )
    if sizes[form] > MAX_BYTES:
        known = ", ".join(f"{name} {size >> 20} MB" for name, size in sizes.items())
        raise bad_input(f"columns.{WORDS}", f"an encoding of at most {MAX_BYTES >> 20} MB", known)
    return form


def _places(points: Points) -> tuple[np.ndarray, np.ndarray]:
    """Returns the point of each word, and its place in the point."""
    point = np.repeat(np.arange(len(points.word_counts)), points.word_counts)
    begins = np.cumsum(points.word_counts) - points.word_counts
    return point, np.arange(len(point)) - begins[point]


def _as_texts(points: Points, texts: np.ndarray, num_train: int) -> np.ndarray:
    shape = (len(points.word_counts), int(points.word_counts.max(initial=1)))
    padded = np.zeros(shape, texts.dtype)
    padded[_places(points)] = texts[points.words]
    return padded


def _as_flags(points: Points, texts: np.ndarray, num_train: int) -> np.ndarray:
    flags = np.zeros((len(points.word_counts), points.num_words), np.int8)
    flags[_places(points)[0], points.words] = 1
    return flags


def _as_weights(points: Points, texts: np.ndarray, num_train: int) -> np.ndarray:
    point, _ = _places(points)
    seen = np.bincount(points.words[point < num_train], minlength=points.num_words)
    # A word that no training point has is as rare as one that a single point has.
    idf = np.log(num_train / np.maximum(seen, 1))
    weights = np.zeros((len(points.word_counts), points.num_words), np.float32)
    weights[point, points.words] = points.values * idf[points.words]
    lengths = np.linalg.norm(weights, axis=1, keepdims=True)
    return weights / np.where(lengths > 0, lengths, 1)


_FORMS = {"list": _as_texts, "multi_hot": _as_flags, "numeric": _as_weights}


# ------------------------------------------------------------------ labels


def _titles(path: Path, num_labels: int) -> np.ndarray | None:
    return np.array(_lines(path, num_labels)) if path.is_file() else None


def _catalogue(num_labels: int, titles: np.ndarray | None) -> ItemCatalogue:
    features, columns = {}, {}
    if titles is not None:
        of_each = [re.findall(r"[^\W_]+", title.lower()) for title in titles.tolist()]
        longest = max(map(len, of_each))
        padded = [[*own, *[""] * (longest - len(own))] for own in of_each]
        # Without any letter in any title there is nothing to read.
        if longest:
            features["label_words"] = np.array(padded)
            columns["label_words"] = Column("item", encoding="list")
    return ItemCatalogue(np.arange(num_labels), features, item_key="label_id", columns=columns)
