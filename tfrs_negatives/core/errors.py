"""The one form of error that this package raises."""

from __future__ import annotations

import difflib
from collections.abc import Collection


class InputError(ValueError):
    """Something from outside is wrong; the message names what, what was expected, what came.

    The command line turns it into one line on standard error and exit code 2.
    """

    # The name that users import, in tracebacks as well.
    __module__ = "tfrs_negatives"
    # Keras wraps an error inside a layer in a page of call arguments, unless it bears this mark.
    _keras_call_info_injected = True
    # TensorFlow turns an error inside a graph into one of another type, unless it bears this one.
    ag_pass_through = True


def bad_input(argument: str, expected: str, received: object) -> InputError:
    """Returns the error of one wrong argument, in the form that every error of this package has.

    Args:
        argument: name of the argument, column, file or configuration key.
        expected: what would have been right.
        received: what came instead.

    Example:
        >>> raise bad_input("num_negatives", "a positive integer", -3)
        Traceback (most recent call last):
        ...
        tfrs_negatives.InputError: `num_negatives`: expected a positive integer. Received: -3
    """
    return InputError(f"`{argument}`: expected {expected}. Received: {received}")


def known_key(name: str, known: Collection[str], prefix: str = "", *, what: str = "key") -> str:
    """Returns what is expected in the place of an unknown key: the nearest one, or all.

    Args:
        name: the unknown key.
        known: the keys of this place.
        prefix: the path before it.
        what: what is unknown, a key or a name.

    Example:
        >>> known_key("epoch", ["epochs", "seed"], "train")
        'a known key, perhaps `train.epochs`'
    """
    names = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    if names:
        return f"a known {what}, perhaps `{'.'.join(filter(None, [prefix, names[0]]))}`"
    return f"one of {sorted(known)}" if known else f"no {what} here"
