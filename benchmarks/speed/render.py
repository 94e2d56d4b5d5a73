"""The page of the results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.speed.measure import TOLERANCE, is_held, ratio_of

TEXT = """# Speed

Written by `benchmarks/speed/run.py` from [results.json](results.json).

    .venv/bin/python benchmarks/speed/run.py            # measures everything, and writes this
    .venv/bin/python benchmarks/speed/run.py --check    # measures, and compares with what is here

{provenance}

{verdict}

## How it is measured

Every number is a ratio to a baseline of the same table, measured in the same process. The
contestants of a table take turns, A B C A B C, after calls that are not timed. *got* is the ratio
of the medians over all turns, with the 10 % and 90 % quantiles of the ratios of single turns in
brackets. *speed* is how many times as fast as the baseline; *time* is the share of its time,
*memory* that of its memory. *least s* is the fastest turn, in seconds of one step, batch, update or
query where a turn holds several. *peak MB* (10^6 bytes) is the most by which a process of its own
grew above its data and model, tracing included. Inputs are drawn from a fixed seed.

The machine is shared, and other work on it moves a ratio too: the brackets show how much. So
`--check` names what fell below {tolerance} of its committed ratio, and nothing finer.
"""


def page(results: Mapping[str, Any]) -> str:
    """Returns README.md.

    Args:
        results: section -> its results, as in `results.json`.
    """
    text = TEXT.format(
        provenance=_provenance(results), verdict=_verdict(results), tolerance=TOLERANCE
    )
    for name, section in results.items():
        text += f"\n## {name}\n\n{section['text']}\n"
        for case in section["cases"]:
            text += f"\n**{case['title']}**, {case['turns']} turns\n\n{_table(case)}"
    return text


def _provenance(results: Mapping[str, Any]) -> str:
    """Says when and where, once for all sections that were measured alike."""
    groups: dict[str, list[str]] = {}
    for name, section in results.items():
        versions = ", ".join(f"{package} {v}" for package, v in section["versions"].items())
        place = f"{section['date']}, {section['machine']}; {versions}; seed {section['seed']}"
        groups.setdefault(place, []).append(name)
    if len(groups) == 1:
        return f"{next(iter(groups))}."
    return "\n".join(f"- {', '.join(names)}: {place}." for place, names in groups.items())


def _verdict(results: Mapping[str, Any]) -> str:
    asked = {
        f"{name}, {case['title']}: {claim['of']} beside {claim['beside']}": is_held(case, claim)
        for name, section in results.items()
        for case in section["cases"]
        for claim in case["claims"]
        if claim["asked"] is not None
    }
    missed = [f"- not held: {name}" for name, held in asked.items() if not held]
    return "\n".join([f"{len(asked) - len(missed)} of {len(asked)} targets are held.", *missed])


def _table(case: Mapping[str, Any]) -> str:
    labels = sorted({label for facts in case["facts"].values() for label in facts})
    head = ["", "least s", "peak MB", *labels, "ratio", "asked", "got", "held"]
    lines = [head, ["---"] * len(head)]
    for name in dict.fromkeys([*case["seconds"], *case["peaks"]]):
        lines += _rows(case, name, labels)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _rows(case: Mapping[str, Any], name: str, labels: list[str]) -> list[list[str]]:
    """Returns a row per claim of a contestant; what is known of it alone stands in the first."""
    seconds, peak = case["seconds"].get(name), case["peaks"].get(name)
    facts = case["facts"].get(name, {})
    own = [
        f"`{name}`",
        f"{min(seconds):.3g}" if seconds else "",
        f"{peak / 1e6:,.0f}" if peak else "",
        *(f"{facts[label]:.4g}" if label in facts else "" for label in labels),
    ]
    claims = [_claim(case, claim) for claim in case["claims"] if claim["of"] == name]
    if not claims:
        return [[*own, "", "", "", ""]]
    return [[*(own if i == 0 else [""] * len(own)), *claim] for i, claim in enumerate(claims)]


def _claim(case: Mapping[str, Any], claim: Mapping[str, Any]) -> list[str]:
    ratio, asked = ratio_of(case, claim), claim["asked"]
    got = f"{ratio.median:.3g}"
    if claim["quantity"] != "memory":
        got += f" [{ratio.low:.3g}, {ratio.high:.3g}]"
    return [
        f"{claim['quantity']}, to `{claim['beside']}`",
        ""
        if asked is None
        else f"{'at least' if claim['quantity'] == 'speed' else 'below'} {asked:g}",
        got,
        "" if asked is None else ("yes" if is_held(case, claim) else "**no**"),
    ]
