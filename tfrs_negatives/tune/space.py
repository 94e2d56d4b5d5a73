"""`train.learning_rate=log(1e-3, 1e-1)` to a parameter that Optuna can draw."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from tfrs_negatives.core.errors import InputError, bad_input
from tfrs_negatives.runs.config import RunConfig, parse_yaml

RULE = re.compile(r"\s*(\w+(?:\.[\w:]+)+)\s*=\s*(log|uniform|int|one_of)\s*\((.*)\)\s*", re.DOTALL)
NUMBER = r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
BOUNDS = re.compile(rf"{NUMBER},{NUMBER}(,\s*log\s*)?")
EXAMPLE = (
    "a rule such as train.learning_rate=log(1e-3, 1e-1), model.temperature=uniform(0.05, 0.3), "
    "task.recipe.num_uniform=int(256, 4096, log) or task.recipe=one_of(in_batch, ngame)"
)
FIXED = ("data", "evaluation", "index")


@dataclass(frozen=True)
class Parameter:
    """A key of the configuration and the values that it may take.

    Attributes:
        key: `section.key`.
        rule: the values as they were written, in one form.
        distribution: the values as Optuna draws them; it draws the values of `one_of` as text.
        values: what each text of `one_of` stands for; empty for numbers.
    """

    key: str
    rule: str
    distribution: BaseDistribution
    values: dict[str, Any] = field(default_factory=dict)

    def override(self, drawn: Any) -> str:
        """Returns what was drawn as `section.key=value`."""
        return f"{self.key}={json.dumps(self.values.get(drawn, drawn))}"

    @property
    def ends(self) -> list[Any]:
        """What Optuna may draw: all values of `one_of`, else the lowest and the highest."""
        chosen: Any = self.distribution
        return list(self.values) or [chosen.low, chosen.high]

    @property
    def count(self) -> float:
        """How many values there are; infinity for real numbers."""
        if isinstance(self.distribution, IntDistribution):
            return self.distribution.high - self.distribution.low + 1
        return len(self.values) or math.inf

    def draw(self, trial: optuna.Trial) -> str:
        """Returns what the sampler of a trial draws, as `section.key=value`."""
        chosen: Any = self.distribution
        if self.values:
            return self.override(trial.suggest_categorical(self.key, chosen.choices))
        whole = isinstance(chosen, IntDistribution)
        suggest = trial.suggest_int if whole else trial.suggest_float
        return self.override(suggest(self.key, chosen.low, chosen.high, log=chosen.log))


def parse_space(rules: Sequence[str]) -> list[Parameter]:
    """Reads the rules of a space.

    Args:
        rules: each `section.key=` and then `log(low, high)` or `uniform(low, high)` for real
            numbers, `int(low, high)` or `int(low, high, log)` for whole ones, both ends included,
            or `one_of(a, b, ...)` with values in YAML.

    Returns:
        A parameter per rule.

    Raises:
        InputError: if there is no rule, one is not of this form, its bounds are not in order, a key
            comes twice or is one that all trials share.

    Example:
        >>> [parameter] = parse_space(["model.hidden=one_of([64], [128, 64])"])
        >>> [parameter.override(text) for text in parameter.ends]
        ['model.hidden=[64]', 'model.hidden=[128, 64]']
        >>> parse_space(["model.temperature=uniform(0.3, 0.1)"])
        Traceback (most recent call last):
        ...
        tfrs_negatives.InputError: `model.temperature`: expected finite bounds, the lower one
        first, and above 0 for log. Received: uniform(0.3, 0.1)
    """
    if not rules:
        raise bad_input("space", EXAMPLE, "none")
    parameters = [_parse(rule) for rule in rules]
    keys = [parameter.key for parameter in parameters]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise bad_input("space", "one rule for each key", f"several for {', '.join(twice)}")
    for key in keys:
        if key.split(".")[0] in FIXED or key == "train.seed":
            expected = "a key of the model, its negatives, batches or training: all trials share "
            raise bad_input("space", expected + "the log, what is measured and the seed", key)
    return parameters


def check_space(config: RunConfig, parameters: Sequence[Parameter]) -> None:
    """Raises what `load_config` raises where a key is unknown or a value is out of its range."""
    for parameter in parameters:
        for drawn in parameter.ends:
            config.with_overrides([parameter.override(drawn)])


def size_of(parameters: Sequence[Parameter]) -> float:
    """Returns how many settings a space has.

    Example:
        >>> size_of(parse_space(["train.epochs=int(1, 3)", "model.item_bias=one_of(true, false)"]))
        6
        >>> size_of(parse_space(["model.temperature=uniform(0.05, 0.3)"]))
        inf
    """
    return math.prod(parameter.count for parameter in parameters)


def _parse(text: str) -> Parameter:
    found = RULE.fullmatch(text)
    if found is None:
        raise bad_input("space", EXAMPLE, repr(text))
    key, kind, inside = found.groups()
    return _one_of(key, inside) if kind == "one_of" else _between(key, kind, inside)


def _between(key: str, kind: str, inside: str) -> Parameter:
    found = BOUNDS.fullmatch(inside)
    if found is None or (found[3] and kind != "int"):
        raise bad_input("space", EXAMPLE, repr(f"{key}={kind}({inside})"))
    rule = f"{kind}({found[1]}, {found[2]}{', log' if found[3] else ''})"
    log = kind == "log" or bool(found[3])
    low, high = float(found[1]), float(found[2])
    if not low < high < math.inf or low == -math.inf or (log and low <= 0):
        expected = "finite bounds, the lower one first, and above 0 for log"
        raise bad_input(key, expected, rule)
    if kind != "int":
        distribution: BaseDistribution = FloatDistribution(low, high, log=log)
        return Parameter(key, f"{kind}({low}, {high})", distribution)
    if not (low.is_integer() and high.is_integer()):
        raise bad_input(key, "whole numbers for int", rule)
    whole = IntDistribution(int(low), int(high), log=log)
    return Parameter(key, f"int({whole.low}, {whole.high}{', log' if log else ''})", whole)


def _one_of(key: str, inside: str) -> Parameter:
    try:
        choices = parse_yaml(f"[{inside}]")
        texts = [v if isinstance(v, str) else json.dumps(v) for v in choices]
        rule = f"one_of({json.dumps(choices)[1:-1]})"
    except (yaml.YAMLError, TypeError):
        raise _no_choice(key, inside) from None
    if not texts or len(set(texts)) < len(texts):
        raise _no_choice(key, inside)
    distribution = CategoricalDistribution(texts)
    return Parameter(key, rule, distribution, dict(zip(texts, choices, strict=True)))


def _no_choice(key: str, inside: str) -> InputError:
    return bad_input(key, "one_of with different values in YAML", f"one_of({inside})")
