"""The arithmetic of the speed benchmark: turns, ratios, what is named as worse, what is written."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # `benchmarks` is not installed

from benchmarks.speed import run
from benchmarks.speed.measure import (
    Case,
    Claim,
    Contestant,
    is_held,
    measure_case,
    peak_growth,
    ratio_of,
    regressions,
    time_in_turn,
)
from benchmarks.speed.render import page


def section(*claims, seconds=None, peaks=None):
    """Results of one case, as they are written."""
    keys = ("of", "beside", "quantity", "asked")
    case = {
        "title": "sizes",
        "turns": 3,
        "seconds": seconds or {},
        "peaks": peaks or {},
        "facts": {},
        "claims": [dict(zip(keys, claim, strict=True)) for claim in claims],
    }
    place = {"date": "2020-02-02", "machine": "2 cores, x", "versions": {"Python": "3"}, "seed": 0}
    return {**place, "text": "What it is.", "cases": [case]}


def only_case(results):
    return results["cases"][0]


# ------------------------------------------------------------------ turns


def test_contestants_take_turns_and_warm_ups_are_not_timed():
    order, now = [], [0.0]

    def call(name, seconds):
        order.append(name)
        now[0] += seconds * (100 if len(order) <= 2 else 1)
        return len(order)

    calls = {"a": lambda: call("a", 1.0), "b": lambda: call("b", 3.0)}
    seconds, results = time_in_turn(calls, turns=3, warm_up=1, clock=lambda: now[0])
    assert "".join(order) == "abababab"
    assert seconds == {"a": [1.0] * 3, "b": [3.0] * 3}
    assert results == {"a": 7, "b": 8}


def test_a_case_is_prepared_once_and_measured_per_repeat(monkeypatch):
    prepared = []

    def timed(calls, *, turns, warm_up):
        assert (turns, warm_up) == (4, 1)
        return {"one": [3.0], "ten": [5.0]}, {name: call() for name, call in calls.items()}

    def prepare(name):
        prepared.append(name)
        return lambda: len(name)

    monkeypatch.setattr("benchmarks.speed.measure.time_in_turn", timed)
    case = Case(
        "sizes",
        [
            Contestant("one", lambda: prepare("one")),
            Contestant("ten", lambda: prepare("ten"), repeats=10),
        ],
        [Claim("one", "ten", "time", 0.1)],
        turns=4,
        warm_up=1,
        given_bytes={"given": 7},
        facts=lambda results: {name: {"length": x} for name, x in results.items()},
    )
    measured = measure_case(case)
    assert prepared == ["one", "ten"]
    assert measured["seconds"] == {"one": [3.0], "ten": [0.5]}
    assert measured["peaks"] == {"given": 7}
    assert measured["facts"] == {"one": {"length": 3}, "ten": {"length": 3}}
    assert json.loads(json.dumps(measured)) == measured


def test_memory_is_what_the_calls_add_to_the_preparation():
    megabyte = 2**20

    def prepare():
        np.ones(200 * megabyte, np.uint8)  # for a moment: larger than all that the calls need
        kept = np.ones(100 * megabyte, np.uint8)
        return lambda: np.ones(50 * megabyte, np.uint8).sum() + kept[0]

    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux can forget a peak")
    assert 45 * megabyte < peak_growth(Contestant("x", prepare), calls=2) < 75 * megabyte


# ------------------------------------------------------------------ ratios


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [
        # Turn by turn the base took 2, 4 and 4 times as long; its median 4 is twice the other's 2.
        ("speed", (2.0, 2 + 0.2 * (4 - 2), 4.0)),
        ("time", (0.5, 0.25, 0.25 + 0.8 * (0.5 - 0.25))),
        ("memory", (0.3, 0.3, 0.3)),
    ],
)
def test_a_ratio_is_of_medians_and_its_quantiles_are_of_turns(quantity, expected):
    seconds = {"base": [4.0, 4.0, 8.0], "new": [2.0, 1.0, 2.0]}
    claim = ("new", "base", quantity, None)
    case = only_case(section(claim, seconds=seconds, peaks={"base": 10, "new": 3}))
    assert ratio_of(case, case["claims"][0]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("quantity", "asked", "held"),
    [("speed", 2, True), ("speed", 2.01, False), ("time", 0.5, False), ("time", 0.51, True)],
)
def test_a_speed_is_asked_at_least_and_a_share_below(quantity, asked, held):
    claim = ("new", "base", quantity, asked)
    case = only_case(section(claim, seconds={"base": [4.0], "new": [2.0]}))
    assert is_held(case, case["claims"][0]) is held


@pytest.mark.parametrize(
    ("quantity", "factor", "is_worse"),
    [
        ("speed", 0.79, True),
        ("speed", 0.81, False),
        ("time", 1 / 0.79, True),
        ("time", 1 / 0.81, False),
        ("memory", 1 / 0.79, True),
    ],
)
def test_what_fell_below_four_fifths_is_named(quantity, factor, is_worse):
    def results(ratio):
        claims = [("new", "base", quantity, None), ("base", "base", "time", None)]
        own = 1 / ratio if quantity == "speed" else ratio
        seconds, peaks = {"new": [own], "base": [1.0]}, {"new": own, "base": 1}
        return {"step": section(*claims, seconds=seconds, peaks=peaks)}

    lines = regressions(results(5.0 * factor), results(5.0))
    assert len(lines) == is_worse
    if is_worse:
        assert lines[0].startswith("step, sizes: new beside base: " + quantity)
        assert lines[0].endswith("committed 5")


def test_a_ratio_that_nothing_is_committed_of_is_named():
    claim, seconds = ("new", "base", "speed", None), {"new": [1.0], "base": [1.0]}
    results = {"step": section(claim, seconds=seconds)}
    assert regressions(results, {}) == ["step, sizes: new beside base: no committed ratio"]
    assert regressions({}, results) == []


# ------------------------------------------------------------------ what is written


def results_with(new_seconds):
    claims = [
        ("new", "old", "speed", 2.0),
        ("new", "older", "time", 0.5),
        ("old", "older", "time", None),
    ]
    seconds = {"old": [1.0], "older": [4.0], "new": [new_seconds]}
    return section(*claims, seconds=seconds, peaks={"new": 52_000_000})


def test_the_page_says_what_was_asked_and_what_it_got():
    text = page({"step": results_with(1.0), "pool": results_with(0.5)})
    assert "3 of 4 targets are held.\n- not held: step, sizes: new beside old\n" in text
    first, second = (line for line in text.splitlines() if line.startswith("| `new`"))
    assert "| 1 | 52 | speed, to `old` | at least 2 | 1 [1, 1] | **no** |" in first
    assert "| 0.5 | 52 | speed, to `old` | at least 2 | 2 [2, 2] | yes |" in second
    assert "|  |  |  | time, to `older` | below 0.5 | 0.25 [0.25, 0.25] | yes |" in text
    assert "| `old` | 1 |  | time, to `older` |  | 0.25 [0.25, 0.25] |  |" in text
    assert text.count("2020-02-02") == 1


def test_sections_that_were_not_measured_are_kept(tmp_path):
    run.publish({"pool": results_with(1.0), "step": results_with(1.0)}, tmp_path)
    both = run.merged(run.load_results(tmp_path), {"step": results_with(0.5)})
    run.publish(both, tmp_path)
    assert list(both) == ["step", "pool"]
    assert run.load_results(tmp_path) == {"step": results_with(0.5), "pool": results_with(1.0)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "results.json"]


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Runs the script with a section that takes so many seconds in the place of a measurement."""

    def start(*options, seconds):
        monkeypatch.setattr(sys, "argv", ["run.py", "--only", "step", *options])
        monkeypatch.setattr(run, "HERE", tmp_path)
        monkeypatch.setattr(run, "measure_section", lambda *_, **__: results_with(seconds))
        return run.main()

    return start


@pytest.mark.parametrize(("seconds", "code"), [(1.2, 0), (1.3, 1)])
def test_a_check_fails_where_something_is_worse_and_writes_nothing(
    started, tmp_path, capsys, seconds, code
):
    assert started(seconds=1.0) == 0
    before = {path: path.read_text() for path in tmp_path.iterdir()}
    assert len(before) == 2
    assert started("--check", seconds=seconds) == code
    assert ("new beside old" in capsys.readouterr().out) == code
    assert {path: path.read_text() for path in tmp_path.iterdir()} == before


def test_a_check_needs_ratios_of_the_same_sizes(started):
    with pytest.raises(SystemExit) as stop:
        started("--check", seconds=1.0)
    assert stop.value.code == 2
    assert started(seconds=1.0) == 0
    with pytest.raises(SystemExit) as stop:
        started("--check", "--quick", seconds=1.0)
    assert stop.value.code == 2


def test_small_sizes_are_printed_and_not_kept(started, tmp_path, capsys):
    assert started("--quick", seconds=1.0) == 0
    assert "# Speed" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
