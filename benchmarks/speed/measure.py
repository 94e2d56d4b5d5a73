"""Contestants in turn, how much memory each takes, and the ratios between them.

A contestant is timed beside the others of its case in one process: A B C A B C and so on, so that
whatever else the machine does disturbs all of them alike. Its memory is measured in a process of
its own.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

Call = Callable[[], Any]
Quantity = Literal["speed", "time", "memory"]

TOLERANCE = 0.8
"""The share of a committed ratio below which a new one is a regression."""

REST = 0.02


@dataclass(frozen=True)
class Contestant:
    """One way to do what the case is about.

    Attributes:
        name: its row in the table.
        prepare: makes data and models, and returns the call that is timed.
        repeats: how many times the call does what the case is about.
    """

    name: str
    prepare: Callable[[], Call]
    repeats: int = 1


@dataclass(frozen=True)
class Claim:
    """A ratio of two contestants, and what was asked of it.

    Attributes:
        of: a contestant.
        beside: its baseline: another contestant, or a name in `Case.given_bytes`.
        quantity: "speed" is how many times as fast, at least what was asked; "time" and "memory"
            are the share of the baseline's, below what was asked.
        asked: the limit, or None.
    """

    of: str
    beside: str
    quantity: Quantity = "speed"
    asked: float | None = None


@dataclass(frozen=True)
class Case:
    """Contestants that do the same, and what is claimed of them.

    Attributes:
        title: what they do, with the sizes.
        contestants: in the order of their turns.
        claims: the rows of the table.
        turns: how often each is timed.
        warm_up: how often each is called before, untimed: it traces, allocates and fills.
        given_bytes: name -> bytes of a baseline of memory that nobody runs.
        facts: the last results by contestant -> what is to be said of each: label -> number.
    """

    title: str
    contestants: Sequence[Contestant]
    claims: Sequence[Claim]
    turns: int = 15
    warm_up: int = 2
    given_bytes: Mapping[str, int] = field(default_factory=dict)
    facts: Callable[[Mapping[str, Any]], dict[str, dict[str, float]]] = lambda results: {}


class Ratio(NamedTuple):
    """The ratio of the medians, and the 10 % and 90 % quantiles of the ratios of single turns."""

    median: float
    low: float
    high: float


# ------------------------------------------------------------------ measuring


def measure_case(case: Case) -> dict[str, Any]:
    """Times the contestants of a case in turn, in this process.

    Returns:
        What `results.json` holds of a case, but for the peaks.
    """
    calls = {contestant.name: contestant.prepare() for contestant in case.contestants}
    seconds, results = time_in_turn(calls, turns=case.turns, warm_up=case.warm_up)
    repeats = {contestant.name: contestant.repeats for contestant in case.contestants}
    return {
        "title": case.title,
        "turns": case.turns,
        "seconds": {n: [float(f"{s / repeats[n]:.6g}") for s in row] for n, row in seconds.items()},
        "peaks": dict(case.given_bytes),
        "facts": case.facts(results),
        "claims": [asdict(claim) for claim in case.claims],
    }


def time_in_turn(
    calls: Mapping[str, Call],
    *,
    turns: int,
    warm_up: int,
    clock: Callable[[], float] = time.perf_counter,
    rest: float = REST,
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Calls each once per turn.

    Args:
        calls: name -> what is timed.
        turns: how often each is timed.
        warm_up: how many turns before are not timed.
        clock: tells the seconds.
        rest: seconds to wait before each call: threads of the one before that read ahead or spin
            would be its neighbours.

    Returns:
        name -> the seconds of each turn, and name -> its last result.

    Example:
        >>> seconds, results = time_in_turn({"a": lambda: 1, "b": lambda: 2}, turns=3, warm_up=1)
        >>> len(seconds["a"]), results
        (3, {'a': 1, 'b': 2})
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    results = {}
    for turn in range(warm_up + turns):
        for name, call in calls.items():
            time.sleep(rest)
            began = clock()
            results[name] = call()
            elapsed = clock() - began
            if turn >= warm_up:
                seconds[name].append(elapsed)
    return seconds, results


def peak_growth(contestant: Contestant, *, calls: int) -> int:
    """Returns the bytes by which this process grew at most above its data and models."""
    call = contestant.prepare()
    # What the preparation needed for a moment must not hide what the calls need. Only Linux can
    # forget a peak; elsewhere a large preparation makes the growth look smaller.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    for _ in range(calls):
        call()
    # Resident memory is counted in pages: less than one is no measurement.
    return max(_peak() - before, resource.getpagesize())


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# ------------------------------------------------------------------ judging


def ratio_of(case: Mapping[str, Any], claim: Mapping[str, Any]) -> Ratio:
    """Returns the ratio that a claim is about.

    Args:
        case: a case of `results.json`.
        claim: one of its claims.

    Example:
        >>> case = {"seconds": {"old": [4.0, 4.0, 8.0], "new": [2.0, 2.0, 2.0]}}
        >>> ratio_of(case, {"of": "new", "beside": "old", "quantity": "speed"}).median
        2.0
    """
    if claim["quantity"] == "memory":
        share = case["peaks"][claim["of"]] / case["peaks"][claim["beside"]]
        return Ratio(share, share, share)
    own, base = case["seconds"][claim["of"]], case["seconds"][claim["beside"]]
    above, below = (base, own) if claim["quantity"] == "speed" else (own, base)
    low, high = np.quantile(np.divide(above, below), [0.1, 0.9])
    return Ratio(statistics.median(above) / statistics.median(below), float(low), float(high))


def is_held(case: Mapping[str, Any], claim: Mapping[str, Any]) -> bool:
    """Whether a claim has what was asked of it."""
    median = ratio_of(case, claim).median
    return median >= claim["asked"] if claim["quantity"] == "speed" else median < claim["asked"]


def regressions(new: Mapping[str, Any], committed: Mapping[str, Any]) -> list[str]:
    """Returns a line for every claim whose ratio is worse than `TOLERANCE` of the committed one.

    A share that grew is worse as a speed that fell is. A claim that nothing is committed of is
    named too, so that no comparison passes by comparing nothing.

    Args:
        new: section -> its results.
        committed: the same, of another time.
    """
    before, now = _ratios(committed), _ratios(new)
    lines = []
    for name, (quantity, ratio) in now.items():
        if name not in before:
            lines.append(f"{name}: no committed ratio")
            continue
        old = before[name][1]
        share = ratio / old if quantity == "speed" else old / ratio
        if share < TOLERANCE:
            lines.append(f"{name}: {quantity} {ratio:.3g}, committed {old:.3g}")
    return lines


def _ratios(sections: Mapping[str, Any]) -> dict[str, tuple[Quantity, float]]:
    return {
        f"{section}, {case['title']}: {claim['of']} beside {claim['beside']}": (
            claim["quantity"],
            ratio_of(case, claim).median,
        )
        for section, results in sections.items()
        for case in results["cases"]
        for claim in case["claims"]
    }
