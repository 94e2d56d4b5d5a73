"""How fast the package is beside what it replaces, and whether it has become slower.

A section is measured in a process of its own, and so is the memory of each of its contestants.

Run it from the root of the repository; it writes results.json and README.md beside itself, some
twenty minutes on two cores that do nothing else::

    .venv/bin/python benchmarks/speed/run.py
    .venv/bin/python benchmarks/speed/run.py --only step masks
    .venv/bin/python benchmarks/speed/run.py --check

`--only` keeps what is written of the other sections. `--check` writes nothing, and exits with 1
where a ratio is worse than that in results.json. `--quick` takes sizes at which a ratio says
nothing, to see that all of it works, and prints the page.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import inspect
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.speed.measure import Case, measure_case, peak_growth, regressions
from benchmarks.speed.render import page
from benchmarks.speed.sizes import QUICK, SEED, Sizes
from tfrs_negatives.core.files import write_text

HERE = Path(__file__).parent
# Section -> the module that makes its cases. TensorFlow is in the processes that measure only: a
# process begins with the peak of memory of the one that started it.
SECTIONS = {
    "step": "training_cases",
    "frequency": "training_cases",
    "evaluation": "search_cases",
    "evaluation_memory": "search_cases",
    "pool": "training_cases",
    "masks": "training_cases",
    "samplers": "method_cases",
    "losses": "method_cases",
    "clustering": "clustering_cases",
    "index": "search_cases",
    "batches": "training_cases",
}
PACKAGES = ("tensorflow", "tensorflow-recommenders", "scann", "scikit-learn", "tfrs-negatives")


def main() -> int:
    """Measures, and writes or compares; returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure_here(arguments.measure, arguments.peak, quick=arguments.quick)))
        return 0
    committed = load_results(HERE)
    if arguments.check and arguments.quick:
        parser.error("--check compares with the full sizes, not with --quick")
    if arguments.check and not committed:
        parser.error("--check needs results.json: measure first")
    measured: dict[str, Any] = {}
    for section in arguments.only:
        measured[section] = measure_section(section, quick=arguments.quick)
        if not (arguments.check or arguments.quick):
            publish(merged(committed, measured), HERE)
    if arguments.quick:
        print(page(measured))
    worse = regressions(measured, committed) if arguments.check else []
    print("\n".join(worse) or "done")
    return 1 if worse else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="small sizes, printed and not kept")
    parser.add_argument("--check", action="store_true", help="compare with results.json")
    # What a process that measures is started with.
    parser.add_argument("--measure", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--peak", nargs=2, type=int, help=argparse.SUPPRESS)
    return parser


def measure_here(section: str, peak: tuple[int, int] | None, *, quick: bool) -> Any:
    """Measures in this process.

    Args:
        section: which.
        peak: the numbers of a case and of a contestant; None times all of them.
        quick: whether the sizes are small.

    Returns:
        The growth of memory in bytes; or the text and the cases of the section.
    """
    module = importlib.import_module(f"benchmarks.speed.{SECTIONS[section]}")
    make = getattr(module, section)
    cases: list[Case] = make(QUICK if quick else Sizes())
    if peak:
        case = cases[peak[0]]
        return peak_growth(case.contestants[peak[1]], calls=case.warm_up + 1)
    return {"text": inspect.getdoc(make), "cases": [measure_case(case) for case in cases]}


def measure_section(section: str, *, quick: bool) -> dict[str, Any]:
    """Starts the processes of a section.

    Returns:
        What `results.json` holds of it.
    """
    options = [section, *(["--quick"] if quick else [])]
    results = _in_process(options)
    for number, case in enumerate(results["cases"]):
        for place, name in enumerate(case["seconds"]):
            case["peaks"][name] = _in_process([*options, "--peak", str(number), str(place)])
    return {**describe(), **results}


def _in_process(options: Iterable[str]) -> Any:
    print("measuring", *options, file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--measure", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def describe() -> dict[str, Any]:
    """Returns what is needed to measure the same again."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {"Python": platform.python_version(), **versions},
        "seed": SEED,
    }


def merged(committed: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """Returns all sections, the measured ones anew, in the order of the page."""
    both = {**committed, **measured}
    return {section: both[section] for section in SECTIONS if section in both}


def load_results(folder: Path) -> dict[str, Any]:
    """Returns section -> results as `publish` wrote them, none where nothing was written."""
    file = folder / "results.json"
    return json.loads(file.read_text()) if file.exists() else {}


def publish(results: dict[str, Any], folder: Path) -> None:
    """Writes results.json and README.md."""
    write_text(folder / "results.json", json.dumps(results, indent=1) + "\n")
    write_text(folder / "README.md", page(results))


if __name__ == "__main__":
    sys.exit(main())
