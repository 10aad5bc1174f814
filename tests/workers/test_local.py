"""The executor in the driver's process, and when it measures in another one."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest
import torch

from evomerge.common.errors import CandidateError, EvomergeError
from evomerge.workers.job import Job, attempt
from evomerge.workers.local import LocalExecutor
from evomerge.workers.worker import Worker

JOB = Job(0, SimpleNamespace(digest="d"), "search")


def failing(error):
    def do(job):
        raise error

    return do


@pytest.fixture
def local(monkeypatch):
    """A local executor whose worker fails as told, and what was measured isolated."""
    monkeypatch.setattr(Worker, "__init__", lambda self, spec: None)
    isolated = []

    def measure_isolated(job, spec):
        isolated.append(job)
        return attempt(job, failing(CandidateError("measured isolated")))

    monkeypatch.setattr("evomerge.workers.local.measure_isolated", measure_isolated)
    return LocalExecutor(None), isolated


def fail_with(monkeypatch, error):
    monkeypatch.setattr(Worker, "measure", lambda self, recipe, split: failing(error)(recipe))


def test_a_machines_fault_ends_a_local_run_in_order(local, monkeypatch):
    fail_with(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    local[0].submit(JOB)
    with pytest.raises(EvomergeError, match=r"this machine is at fault: OSError.*No space left"):
        local[0].wait()


def test_a_process_whose_device_failed_uses_it_no_more(local, monkeypatch):
    executor, isolated = local
    fail_with(monkeypatch, torch.AcceleratorError("CUDA error"))
    executor.submit(JOB)
    assert executor.wait().retryable
    executor.submit(JOB)
    assert executor.wait().reason == "measured isolated"
    assert isolated == [JOB]


def test_a_last_attempt_is_isolated(local):
    executor, isolated = local
    last = Job(0, JOB.recipe, "search", last=True)
    executor.submit(last)
    executor.wait()
    assert isolated == [last]
