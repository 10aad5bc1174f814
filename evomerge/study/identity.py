"""Check that a campaign may go on in an existing study; name every key that differs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from evomerge.common.errors import InputError

LM_EVAL = "versions.lm_eval"
SHOWN = 6
"""Number of differing keys that a message spells out."""
_ABSENT = object()


def as_json(value: Any) -> Any:
    """Convert a value to what comes back from JSON: tuples to lists, keys to text."""
    return json.loads(json.dumps(value))


def check_identity(where: str, recorded: Mapping[str, Any], campaign: Mapping[str, Any]) -> None:
    """Refuse a campaign that is not the study's own; `where` names the study in messages.

    Raises:
        InputError: lists the keys that differ with both values; a differing lm-eval version has
            its own wording, because scores of different versions must not be mixed.
    """
    differing = list(_differences(recorded, as_json(campaign)))
    others = [difference for difference in differing if difference[0] != LM_EVAL]
    if others:
        listed = [
            f"{key} is {_short(theirs)} in the study, {_short(ours)} in the campaign file"
            for key, theirs, ours in others[:SHOWN]
        ]
        if len(others) > SHOWN:
            listed.append(f"and {len(others) - SHOWN} more")
        raise InputError(
            f"{where} belongs to another campaign: {'; '.join(listed)}; "
            "use another study.name or --out, where `initial: [{run: FOLDER, trials: 3}]` begins "
            "with this study's best genes"
        )
    for _, theirs, ours in differing:
        raise InputError(
            f"{where} was scored with lm-eval {_short(theirs)}, but {_short(ours)} is installed; "
            "scores of different lm-eval versions must not be mixed: install the study's version, "
            "or use another study.name or --out, where `initial: [{run: FOLDER, trials: 3}]` "
            "begins with this study's best genes"
        )


def _differences(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, recorded value, campaign's value) wherever two nested mappings differ."""
    for key in dict.fromkeys([*theirs, *ours]):
        a, b = theirs.get(key, _ABSENT), ours.get(key, _ABSENT)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b


def _short(value: Any) -> str:
    text = "absent" if value is _ABSENT else repr(value)
    return text if len(text) <= 48 else f"{text[:45]}..."
