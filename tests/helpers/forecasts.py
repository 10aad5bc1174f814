"""A probe that found something, and machines of other sizes."""

from __future__ import annotations

from evomerge.preflight import forecast, problems
from evomerge.preflight.machine import Machine
from evomerge.preflight.probe import Probe

FOUND = Probe(
    libraries=400_000_000,
    merging=10_000_000,
    statistics=0,
    scoring=1600,
    merge=2.0,
    once=100.0,
    score=2.0,
    asked=30,
    real=False,
)


def with_room(monkeypatch, memory, gpus=()):
    """Let this machine have so many bytes free."""
    for module in (forecast, problems):
        monkeypatch.setattr(module, "this_machine", lambda: Machine(memory, gpus))


def told(setup, forecast, tmp_path):
    """All problems in one text."""
    return " ".join(problems.problems(setup, forecast, tmp_path))
