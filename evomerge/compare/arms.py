"""The arms of a comparison: optimizers as they are named on the command line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import ValidationError

from evomerge.common.errors import InputError
from evomerge.config import OptimizerConfig

OPTION = "--optimizers"
FITNESS = "fitness."
SEARCH_KEYS = ("rungs", "race", "estimator")
"""Keys of `fitness` that arms may change: how a score is measured, not what it is."""


@dataclass(frozen=True)
class Arm:
    """One optimizer of a comparison.

    Attributes:
        label: its name in table and figure, as it was written.
        optimizer: its section of the campaign file.
        fitness: the keys of the campaign's, of `SEARCH_KEYS`, that it changes.
    """

    label: str
    optimizer: OptimizerConfig
    fitness: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """A name for its runs' folder: plain characters, different for every label."""
        plain = re.sub(r"[^\w.]+", "-", self.label).strip("-.")
        if plain == self.label:
            return plain
        return f"{plain[:40]}-{hashlib.sha256(self.label.encode()).hexdigest()[:6]}"


def parse_arms(text: str, own: OptimizerConfig) -> list[Arm]:
    """Read `cma,random` or `cma,cma:{sigma: 0.1}`: names, each with options in braces or none.

    `cma:{fitness.rungs: [32, all]}` also changes the campaign's rungs, race or estimator, and
    `cma:{screen: 4}` screens. The campaign's own optimizer without options of its own has those of
    the campaign file.

    Raises:
        InputError: an entry is not a name with options, or stands there twice.
    """
    arms = [_arm(entry, own) for entry in _entries(text)]
    if not arms:
        raise InputError(f"{OPTION}: name at least one optimizer (`evomerge list optimizers`)")
    labels = [arm.label for arm in arms]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"{OPTION}: {label!r} stands there twice; seeds repeat it already")
    return arms


def _arm(entry: str, own: OptimizerConfig) -> Arm:
    kind, brace, rest = entry.partition("{")
    kind = kind.rstrip().removesuffix(":").strip()
    if not brace:
        same = kind == own.kind
        return Arm(entry, own if same else OptimizerConfig(kind=kind))
    try:
        options = yaml.safe_load(brace + rest)
    except yaml.YAMLError:
        options = None
    if not kind or not isinstance(options, dict) or not all(isinstance(k, str) for k in options):
        raise InputError(f"{OPTION}: {entry!r}: write it as name or name:{{option: value}}")
    if "kind" in options:
        raise InputError(f"{OPTION}: {entry!r}: the kind stands before the colon")
    fitness = {k.removeprefix(FITNESS): v for k, v in options.items() if k.startswith(FITNESS)}
    for key in fitness:
        if key not in SEARCH_KEYS:
            raise InputError(
                f"{OPTION}: {entry!r}: {FITNESS}{key} must be the same for all; of fitness, "
                f"{', '.join(SEARCH_KEYS)} may differ"
            )
    plain = {k: v for k, v in options.items() if not k.startswith(FITNESS)}
    if kind == own.kind and not plain.keys() - {"screen"}:
        plain = {**own.model_dump(exclude={"kind"}), **plain}
    try:
        return Arm(entry, OptimizerConfig(kind=kind, **plain), fitness)
    except ValidationError as error:
        (problem,) = error.errors()
        raise InputError(
            f"{OPTION}: {entry!r}: screen: {problem['msg']} (found {problem['input']!r})"
        ) from None


def _entries(text: str) -> Iterator[str]:
    """Yield the parts between commas that stand in no bracket."""
    depth, entry = 0, ""
    for character in [*text, ","]:
        depth += (character in "{[") - (character in "}]")
        if character == "," and depth <= 0:
            if entry.strip():
                yield entry.strip()
            entry, depth = "", 0
        else:
            entry += character
    if entry.strip():
        raise InputError(f"{OPTION}: {entry.strip().rstrip(',')!r}: a bracket is never closed")
