"""Evaluations as they are stored: small facts at hand, large parts read when they are asked for.

A study of 20,000 trials has 100 MB of recipes, genomes and item scores, of which a command needs
those of a few. An evaluation read from a study keeps what tells trials apart (digest, value,
counts, seconds: 1 kB), and gets recipe, scores and the like from its storage.
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from evomerge.common.errors import InputError
from evomerge.study import codec
from evomerge.study.record import DescentRecord, Evaluation, RungResult
from evomerge.study.storage_errors import errors_explained

RECENT = 256
"""Evaluations recorded last whose parts the driver keeps, for they are wanted next; parts that were
decoded last and are kept.
"""


class Parts(Protocol):
    """Gives the large parts of trials, by their keys in a storage."""

    def user(self, key: int, name: str) -> Any:
        """Read a user attribute; None where there is none."""

    def packed(self, key: int, name: str) -> Mapping[str, Any]:
        """Read the system attributes `name:0`, `name:1`, …"""

    def params(self, key: int) -> Mapping[str, Any]:
        """Read Optuna's params."""


@dataclass(frozen=True, slots=True)
class MemoryParts:
    """The parts of one trial, in memory."""

    user_attrs: Mapping[str, Any]
    system_attrs: Mapping[str, Any]
    given: Mapping[str, Any]

    def user(self, key: int, name: str) -> Any:
        """Read a user attribute; None where there is none."""
        return self.user_attrs.get(name)

    def packed(self, key: int, name: str) -> Mapping[str, Any]:
        """Give all system attributes."""
        return self.system_attrs

    def params(self, key: int) -> Mapping[str, Any]:
        """Give Optuna's params."""
        return self.given


class RecentParts:
    """The parts of trials, of the latest in memory, of others in the storage."""

    def __init__(self, storage: Parts, url: str) -> None:
        """`storage` gives the others; `url` names it in messages."""
        self._storage, self._url = storage, url
        self._decoded: OrderedDict[tuple[int, str], Any] = OrderedDict()
        self._recent: OrderedDict[int, MemoryParts] = OrderedDict()

    def decoded(self, key: int, name: str, read: Callable[[Parts, int], Any]) -> Any:
        """Decode a part, or give what was decoded lately."""
        place = key, name
        if place in (held := self._decoded):
            with suppress(KeyError):  # another thread has just let go of it
                return held[place]
        held[place] = found = read(self, key)
        if len(held) > RECENT:
            held.popitem(last=False)
        return found

    def keep(self, key: int, parts: MemoryParts) -> None:
        """Keep the parts of a trial that was recorded just now, in the place of the oldest."""
        self._recent[key] = parts
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    def user(self, key: int, name: str) -> Any:
        """Read a user attribute; None where there is none."""
        with errors_explained(self._url):
            return self._of(key).user(key, name)

    def packed(self, key: int, name: str) -> Mapping[str, Any]:
        """Read the system attributes `name:0`, `name:1`, …"""
        with errors_explained(self._url):
            return self._of(key).packed(key, name)

    def params(self, key: int) -> Mapping[str, Any]:
        """Read Optuna's params."""
        with errors_explained(self._url):
            return self._of(key).params(key)

    def _of(self, key: int) -> Parts:
        return self._recent.get(key) or self._storage


class StoredFacts(NamedTuple):
    """What a storage says of a finished trial without its large parts.

    Attributes:
        key: by which `Parts` find the rest.
        number: of the trial.
        value: the objective's value, of a pruned trial its last estimate; None where it failed.
        plain: user attributes, of `codec.SMALL`.
        rare: system attributes that few trials have: constraints, long plain facts, and whether
            there is a descent.
        finished: time of the result, in UTC.
    """

    key: int
    number: int
    value: float | None
    plain: Mapping[str, Any]
    rare: Mapping[str, Any]
    finished: datetime | None


class StoredEvaluation(Evaluation):
    """An evaluation whose large parts are read from a storage when they are asked for."""

    _parts: Parts
    _key: int


def stored(facts: StoredFacts, parts: Parts) -> StoredEvaluation | None:
    """Make the evaluation that a trial records; None when evomerge did not write it."""
    try:
        plain = {**facts.plain, **codec.unpack_plain(facts.rare)} if facts.rare else facts.plain
        given: dict[str, Any] = {
            "split": sys.intern(plain["split"]),
            "digest": plain["digest"],
            "role": sys.intern(plain["role"]),
            "value": facts.value,
            "number": facts.number,
            "finished": facts.finished,
            "_parts": parts,
            "_key": facts.key,
        }
        for name in _AS_WRITTEN:
            if name in plain:
                given[name] = plain[name]
        if "steps" in plain:
            given["rungs"] = tuple(RungResult(*result) for result in plain["steps"])
        if "parents" in plain:
            given["parents"] = tuple(plain["parents"])
        if facts.rare and (violation := codec.violation_of(facts.rare)):
            given["violation"] = violation
        # what few have, and all are asked for
        if "descent:0" not in facts.rare:
            given["descent"] = None
        state = plain.get("optimizer_state", _NOTHING)
        if state is not None:
            given["state"] = _NOBODY if state == _NOBODY else state
    except (KeyError, TypeError, ValueError):
        return None
    made = object.__new__(StoredEvaluation)
    for name in _FIELDS:  # in one order for all, so that their dicts share their keys
        if name in given:
            object.__setattr__(made, name, given[name])
        elif name in _EMPTY:
            object.__setattr__(made, name, _EMPTY[name])
    return made


_AS_WRITTEN = (
    "name",
    "se",
    "n",
    "estimated",
    "asked",
    "reason",
    "ask",
    "tells",
    "attempt",
    "seconds",
)
_EMPTY: Mapping[str, Any] = {"seconds": {}}
_NOTHING: Mapping[str, Any] = {}
_NOBODY: Mapping[str, Any] = {"members": []}
"""The state of optimizers that keep no members, one for all."""


class _Part:
    """A field that is read from the storage where an evaluation does not hold it itself."""

    def __init__(self, name: str, read: Callable[[Parts, int], Any]) -> None:
        self._name, self._read = name, read

    def __get__(self, one: StoredEvaluation | None, owner: type) -> Any:
        if one is None:
            return self
        try:
            if isinstance(one._parts, RecentParts):
                return one._parts.decoded(one._key, self._name, self._read)
            return self._read(one._parts, one._key)
        except ValueError as error:
            raise InputError(
                f"trial {one.number} of the study is damaged ({error}); bring the study back from "
                "a copy, or begin anew with another --out"
            ) from error


def _recipe(parts: Parts, key: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(codec.unpack("recipe", parts.packed(key, "recipe")) or "")
    return found


def _plain(name: str, default: Any) -> Callable[[Parts, int], Any]:
    """Read a plain fact, which is packed where it is long."""

    def read(parts: Parts, key: int) -> Any:
        found = parts.user(key, name)
        if found is None:
            long = codec.PLAIN + name
            found = codec.unpack_json(long, parts.packed(key, long))
        return default if found is None else found

    return read


_tasks = _plain("tasks", {})


def _scores(parts: Parts, key: int) -> Mapping[str, Any]:
    tasks = _tasks(parts, key)
    if not tasks:
        return {}
    packed = dict(parts.packed(key, "scores"))
    if any("aggregate" in task for task in tasks.values()):
        packed |= parts.packed(key, "parts")
    return codec.decode_scores(tasks, packed)


def _estimates(parts: Parts, key: int) -> dict[str, tuple[float, float]]:
    found = _plain("estimates", {})(parts, key)
    return {task: (mean, se) for task, (mean, se) in found.items()}


def _params(parts: Parts, key: int) -> dict[str, Any]:
    packed = codec.unpack_json("params", parts.packed(key, "params"))
    return dict(parts.params(key)) if packed is None else packed


def _descent(parts: Parts, key: int) -> DescentRecord | None:
    found = codec.unpack_json("descent", parts.packed(key, "descent"))
    return None if found is None else DescentRecord.from_json(found)


_LARGE: Mapping[str, Callable[[Parts, int], Any]] = {
    "recipe": _recipe,
    "estimates": _estimates,
    "scores": _scores,
    "answers": lambda parts, key: codec.decode_answers(parts.packed(key, "answers")),
    "params": _params,
    "genome": lambda parts, key: codec.decode_genome(parts.packed(key, "genome")),
    "state": _plain("optimizer_state", {}),
    "versions": _plain("versions", {}),
    "weights": lambda parts, key: codec.unpack_json("weights", parts.packed(key, "weights")),
    "descent": _descent,
}
for _name, _read in _LARGE.items():
    setattr(StoredEvaluation, _name, _Part(_name, _read))
_HELD = [f.name for f in fields(Evaluation) if f.name not in _LARGE]
_FIELDS = (*_HELD, "descent", "state", "_parts", "_key")
