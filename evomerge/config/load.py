"""Read a campaign file, with overrides from the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evomerge.common.data_files import read_text, yaml_data
from evomerge.common.errors import InputError
from evomerge.config.campaign import CampaignConfig
from evomerge.config.messages import explain
from evomerge.config.paths import absolute


def as_overrides(
    *, trials: int | None, hours: float | None, workers: int | None, seed: int | None
) -> list[str]:
    """Write settings that are given beside a campaign file as overrides; None is not given."""
    given = {
        "budget.trials": trials,
        "budget.hours": hours,
        "workers.count": workers,
        "seed": seed,
    }
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def load_campaign(
    path: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> CampaignConfig:
    """Read a campaign file, apply `key.path=value` overrides, and check its form.

    Relative paths in the file come back absolute, taken from the file's folder; those of a mapping,
    which may take the file's place, from the current folder.

    Raises:
        InputError: the file is missing, is not YAML, or breaks the schema; names file and key.
    """
    if isinstance(path, Mapping):
        where, folder, data = "the campaign", Path.cwd(), deepcopy(dict(path))
    else:
        path = Path(path)
        where, folder = str(path), path.parent.resolve()
        data = yaml_data(read_text(path), where)
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a mapping with keys name, models, space, fitness")
    for override in overrides:
        _override(data, override)
    return absolute(parse_campaign(data, where), folder)


def parse_campaign(data: Mapping[str, Any], where: str) -> CampaignConfig:
    """Validate plain data as a campaign; `where` names its origin in messages.

    Raises:
        InputError: one line per problem, each with its key and, for typos, the nearest valid key.
    """
    try:
        return CampaignConfig.model_validate(data)
    except ValidationError as error:
        lines = list(explain(error.errors(), data))
        raise InputError("\n".join(f"{where}: {line}" for line in dict.fromkeys(lines))) from None


def _override(data: dict[str, Any], override: str) -> None:
    """Apply one `key.path=value` in place; the value is read as YAML."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(f"--set {override}: write it as key.path=value")
    value = yaml_data(text, f"--set {override}")
    *parents, last = key.split(".")
    section: Any = data
    for parent in parents:
        section = _descend(section, parent)
    if not isinstance(section, dict):
        raise InputError(f"--set {override}: {'.'.join(parents)} is not a section")
    section[last] = value


def _descend(section: Any, key: str) -> Any:
    """Return the value under a key: of a list by position, or of named sections by name."""
    if isinstance(section, dict):
        return section.setdefault(key, {})
    if isinstance(section, list):
        named = {entry.get("name"): entry for entry in section if isinstance(entry, dict)}
        if key.isdecimal() and int(key) < len(section):
            return section[int(key)]
        return named.get(key)
    return None
