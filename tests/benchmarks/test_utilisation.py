"""The benchmark of utilisation counts until the last proposal, and what workers did until then."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def job(digest, items):
    return SimpleNamespace(recipe=SimpleNamespace(digest=digest, merges=()), items={"t": items})


def test_further_rungs_after_the_last_proposal_do_not_count(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    simulated = runpy.run_path(str(BENCHMARKS / "utilisation.py"))["SimulatedWorkers"]
    setup = SimpleNamespace(items={"search": {"t": list(range(100))}})
    workers = simulated(setup, 2, mean=30.0, seed=0)
    workers._rng = SimpleNamespace(pareto=lambda shape: 0.0)
    for digest in "abcd":  # a proposal for each worker, and one for whichever is done first
        workers.submit(job(digest, range(10)))
        if workers.free == 0:
            workers.wait()
    assert workers.utilisation(1) == pytest.approx(1.0, abs=0.05)
    workers.submit(job("d", range(10, 100)))  # the rest of the last one, while the other is idle
    workers.wait(), workers.wait()
    workers.submit(job("c", range(10, 100)))
    assert workers.proposed == 3
    assert workers.utilisation(1) == pytest.approx(1.0, abs=0.05)
    workers.proposed = len(workers.busy) - 1
    assert workers.utilisation(1) < 0.8
