"""What this machine has, and how fast it is."""

from __future__ import annotations

import pytest
import torch

from evomerge.preflight import machine
from evomerge.preflight.machine import Rates


def test_free_memory_respects_the_limits_of_a_container(tmp_path, monkeypatch):
    files = [tmp_path / name for name in ("max", "current", "stat")]
    files[0].write_text("1000000\n")
    files[1].write_text("700000\n")
    files[2].write_text("anon 5\ninactive_file 200000\n")
    monkeypatch.setattr(machine, "_GROUPS", [tuple(map(str, files))])
    assert machine.this_machine().memory == 500_000
    files[0].write_text("max\n")
    assert machine.this_machine().memory > 10**8


def test_the_peak_is_that_since_it_was_forgotten():
    machine.forget_peak()
    before = machine.usage()
    tensor = torch.ones(50_000_000)
    del tensor
    after = machine.usage()
    assert after.peak - before.peak > 190_000_000
    machine.forget_peak()
    assert machine.usage().peak < after.peak - 150_000_000


def test_rates_are_measured_once_for_rows_that_are_alike(monkeypatch):
    monkeypatch.setattr(machine, "_BEYOND_CACHES", 1 << 20)
    rates = Rates("cpu", torch.float32, (64, 128))
    assert 1e6 < rates.multiplications(64) < 1e13
    calls = []
    monkeypatch.setattr(machine, "best_of", lambda *_: calls.append(1) or 1.0)
    assert rates.multiplications(100) == rates.multiplications(64)
    assert calls == []
    assert rates.multiplications(4096) == 512 * 64 * 128 * (1 << 20) // (64 * 128 * 4)
    assert rates.copied == 2 << 20


def test_the_best_of_several_calls_counts():
    seconds = iter([9.0, 3.0, 1.0, 2.0])
    clock = iter([0.0])

    def work():
        work.now += next(seconds)

    work.now = next(clock)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine.time, "perf_counter", lambda: work.now)
        assert machine.best_of(work, "cpu", seconds=0.1) == 1.0
