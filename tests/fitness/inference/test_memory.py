"""How many tokens a forward pass may hold."""

from __future__ import annotations

import pytest
import torch

from evomerge.fitness.inference import memory
from evomerge.fitness.inference.memory import FIRST, MOST, ON_CPU, Budget, sized

GIB = 1 << 30
CPU, GPU = [torch.device("cpu")], [torch.device("cuda", 0)]


def test_the_budget_is_the_largest_power_of_two_that_keeps_to_its_share():
    # 4096 tokens took 1 GiB: 40 GiB hold 32 GiB's worth of four-fifths.
    assert sized(4096, GIB, 40 * GIB) == 4096 * 32
    assert sized(4096, GIB, 39 * GIB) == 4096 * 16
    assert sized(4096, 2 * GIB, GIB) == 1024
    assert sized(4096, 0, 80 * GIB) == MOST
    assert sized(1, 100 * GIB, GIB) == 1


@pytest.mark.parametrize("wanted", [None, 100])
def test_on_cpu_nothing_is_measured(wanted):
    budget = Budget(CPU, wanted)
    with budget.measured(10):
        pass
    assert budget.tokens == (wanted or ON_CPU)


def test_on_a_gpu_the_first_pass_sizes_the_others(monkeypatch):
    held = {"allocated": 10 * GIB, "peak": 12 * GIB, "reserved": 14 * GIB, "free": 36 * GIB}
    gpu = memory.Accelerator
    monkeypatch.setattr(gpu, "forget_peak", lambda self: None)
    monkeypatch.setattr(gpu, "allocated", lambda self: held["allocated"])
    monkeypatch.setattr(gpu, "peak", lambda self: held["peak"])
    monkeypatch.setattr(gpu, "reserved", lambda self: held["reserved"])
    monkeypatch.setattr(gpu, "memory", lambda self: (held["free"], 80 * GIB))
    budget = Budget(GPU)
    assert budget.tokens == FIRST
    with budget.measured(4096):
        pass
    # 2 GiB for 4096 tokens; 36 free and 4 cached, of which 32 may be taken.
    assert budget.tokens == 16 * 4096
    held["peak"] = 70 * GIB
    with budget.measured(4096):
        pass
    assert budget.tokens == 16 * 4096


def test_a_pass_that_fails_halves_the_budget_for_good():
    budget = Budget(GPU)
    budget.halve(3000)
    assert budget.tokens == 1500
    with budget.measured(10):  # measures nothing: no GPU here
        pass
    budget.halve(4000)
    assert budget.tokens == 750
    budget.halve(1)
    assert budget.tokens == 1


def test_of_several_gpus_the_fullest_counts(monkeypatch):
    free = {0: 60 * GIB, 1: 10 * GIB}
    gpu = memory.Accelerator
    monkeypatch.setattr(gpu, "forget_peak", lambda self: None)
    monkeypatch.setattr(gpu, "allocated", lambda self: 10 * GIB)
    monkeypatch.setattr(gpu, "peak", lambda self: 11 * GIB)
    monkeypatch.setattr(gpu, "reserved", lambda self: 10 * GIB)
    monkeypatch.setattr(gpu, "memory", lambda self: (free[self.device.index], 80 * GIB))
    budget = Budget([torch.device("cuda", 0), torch.device("cuda", 1)])
    with budget.measured(4096):
        pass
    assert budget.tokens == 8 * 4096
