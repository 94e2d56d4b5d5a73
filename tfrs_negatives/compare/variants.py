"""What is compared: configurations by name, from files and a grid over their keys."""

from __future__ import annotations

import itertools
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.runs.config import RunConfig, load_config

Variants = Mapping[str, RunConfig]
Axis = tuple[str, list[str]]


def read_variants(
    paths: Sequence[str | Path], *, overrides: Sequence[str] = (), grid: Sequence[str] = ()
) -> dict[str, RunConfig]:
    """Reads configurations, each once for every point of the grid.

    Args:
        paths: YAML files; the stem of a file is the name of its variant.
        overrides: `section.key=value` for all variants, the value in YAML.
        grid: `section.key=value,value,...`, each value in YAML; the product of all is taken, and
            the name of a variant then says which values are its own.

    Returns:
        Name -> configuration, in the order of the files and of the values.

    Raises:
        InputError: if a file, a key or a value is wrong, a key is given twice or is the seed, or
            two variants would have one name.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "deep.yaml"
        >>> _ = path.write_text("train: {epochs: 2}")
        >>> found = read_variants([path], grid=["model.hidden=[64, 32],[]", "train.batch_size=8,9"])
        >>> list(found)[:2]
        ['deep, hidden=[64, 32], batch_size=8', 'deep, hidden=[64, 32], batch_size=9']
        >>> found["deep, hidden=[], batch_size=9"].model.hidden
        []
    """
    axes = [_parse_axis(text) for text in grid]
    _check_keys([text.partition("=")[0] for text in overrides], [key for key, _ in axes])
    named = [
        (", ".join([Path(path).stem, *labels]), load_config(path, [*overrides, *chosen]))
        for path in paths
        for labels, chosen in _points(axes)
    ]
    repeated = [name for name, times in Counter(name for name, _ in named).items() if times > 1]
    if repeated:
        raise bad_input("config", "files of different names, each value once", repeated[0])
    return dict(named)


def _parse_axis(text: str) -> Axis:
    """Splits `key=v1,v2` at the commas that are in no bracket."""
    key, equals, values = text.partition("=")
    if not equals or not key:
        raise bad_input("grid", "section.key=value,value", repr(text))
    listed = f"[{values}]"
    try:
        node = yaml.compose(listed, yaml.SafeLoader)
    except yaml.YAMLError:
        raise bad_input("grid", "values in YAML between commas", repr(text)) from None
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise bad_input("grid", "at least one value", repr(text))
    return key, [listed[n.start_mark.index : n.end_mark.index].strip() for n in node.value]


def _check_keys(overrides: Sequence[str], axes: Sequence[str]) -> None:
    if "train.seed" in (*overrides, *axes):
        raise bad_input("train.seed", "--seeds, which is how many there are", "a value")
    times = Counter(axes) + Counter(set(overrides))
    repeated = [key for key in axes if times[key] > 1]
    if repeated:
        raise bad_input("grid", "each key once, and not in --set as well", repeated[0])


def _points(axes: Sequence[Axis]) -> Iterator[tuple[list[str], list[str]]]:
    """Yields the labels and the overrides of each point of the grid."""
    lasts = {key: key.rpartition(".")[2] for key, _ in axes}
    times = Counter(lasts.values())
    short = {key: last if times[last] == 1 else key for key, last in lasts.items()}
    for values in itertools.product(*(values for _, values in axes)):
        pairs = [(key, value) for (key, _), value in zip(axes, values, strict=True)]
        yield (
            [f"{short[key]}={value}" for key, value in pairs],
            [f"{key}={value}" for key, value in pairs],
        )


def check_variants(variants: Variants) -> None:
    """Raises `InputError` unless there is something to compare, on the same data.

    Args:
        variants: name -> configuration. They have to agree in `data` and `evaluation`, or their
            numbers could not stand in one table, and to differ in something else; `train.seed` is
            not looked at.
    """
    if not variants:
        raise bad_input("variants", "at least one configuration", "none")
    seen: dict[str, str] = {}
    first = next(iter(variants))
    for name, config in variants.items():
        for section in ("data", "evaluation"):
            ours, theirs = (_section(c, section) for c in (variants[first], config))
            for key in ours:
                if ours[key] != theirs[key]:
                    rule = f"the same in all variants, {ours[key]} as in {first}"
                    raise bad_input(f"{section}.{key}", rule, f"{theirs[key]} in {name}")
        other = seen.setdefault(with_seed(config, 0).to_yaml(), name)
        if other != name:
            raise bad_input("config", "different configurations", f"that of {other} as {name}")


def _section(config: RunConfig, section: str) -> dict[str, Any]:
    return config.with_absolute_paths().model_dump()[section]


def with_seed(config: RunConfig, seed: int) -> RunConfig:
    """Returns the configuration with another `train.seed`, and paths from any directory."""
    train = config.train.model_copy(update={"seed": seed})
    return config.with_absolute_paths().model_copy(update={"train": train})


def folder_names(names: Sequence[str]) -> dict[str, str]:
    """Gives each variant a name that a folder can have.

    Args:
        names: of the variants, all different.

    Returns:
        Name -> letters, digits and `. _ = -`; a checksum of the name follows where it is needed to
        tell two apart.

    Example:
        >>> list(folder_names(["mixed, temperature=0.1", "<b>", "(b)"]).values())
        ['mixed_temperature=0.1', 'b-449ad168', 'b-dc665f03']
    """
    cleaned = {name: re.sub(r"[^A-Za-z0-9._=-]+", "_", name).strip("._") for name in names}
    # Some file systems do not tell capitals from small letters.
    times = Counter(text.lower() for text in cleaned.values())
    return {
        name: text
        if 0 < len(text) <= 100 and times[text.lower()] == 1
        else f"{text[:100]}-{zlib.crc32(name.encode()):08x}"
        for name, text in cleaned.items()
    }
