"""What is true of every array, whatever container it came from."""

from __future__ import annotations

import numpy as np

from tfrs_negatives.core.errors import bad_input

MAX_BYTES = 2**31
"""An array above this is refused where one long row is what makes it so large."""


def int64_of(array: np.ndarray, name: str) -> np.ndarray:
    """Returns integers as int64 (flags stay int8), and everything else as it is.

    Raises:
        InputError: for an integer outside int64, with its row.
    """
    if array.dtype.kind not in "iu" or (array.dtype == np.int8 and array.ndim == 2):
        return array
    if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
        row = int(np.argwhere(array > np.iinfo(np.int64).max)[0][0])
        raise bad_input(name, "integers that fit into int64", f"{array[row]} in row {row}")
    return array.astype(np.int64, copy=False)


def check_texts(array: np.ndarray, name: str) -> np.ndarray:
    """Returns texts that stay the same on their way through numpy and UTF-8.

    Args:
        array: [E] or [E, W] of numpy's fixed-width texts.
        name: of the column, for errors.

    Raises:
        InputError: for a NUL character, which numpy cuts off at the end of a text, or half of a
            surrogate pair, with the row.
    """
    if not array.size or not array.dtype.itemsize:
        return array
    codes = np.ascontiguousarray(array).view(np.uint32).reshape(len(array), -1)
    width = array.dtype.itemsize // 4
    letters = codes.reshape(-1, width)
    nul = (letters[:, :-1] == 0) & (letters[:, 1:] != 0)
    halves = (letters >= 0xD800) & (letters <= 0xDFFF)
    for wrong, rule in ((nul, "text without NUL characters"), (halves, "text that UTF-8 can hold")):
        if wrong.any():
            row = int(np.argwhere(wrong)[0][0]) // (len(letters) // len(array))
            raise bad_input(name, rule, f"other in row {row}")
    return array


def check_width(lengths: np.ndarray, name: str, *, bytes_each: int) -> None:
    """Refuses a column whose longest row makes it far larger than its rows are.

    Args:
        lengths: [E] characters or elements of each row.
        name: of the column, for errors.
        bytes_each: of a character or an element; every row takes as many as the longest.

    Raises:
        InputError: with the longest row.
    """
    longest = int(lengths.max(initial=0))
    total = longest * len(lengths) * bytes_each
    if total > MAX_BYTES and longest > 20 * max(float(lengths.mean()), 1.0):
        received = f"{longest} in row {int(lengths.argmax())}, {lengths.mean():.0f} on average"
        raise bad_input(name, "rows of similar lengths: all take as much as the longest", received)
