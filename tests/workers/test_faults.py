"""Whose fault it is: the candidate's, the machine's, the device's."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from evomerge.common.errors import CandidateError, EvomergeError, InputError
from evomerge.workers.build import Job, LocalExecutor, attempt
from evomerge.workers.worker import Worker

JOB = Job(0, SimpleNamespace(digest="d"), "search")


def failing(error):
    def measure(recipe, split):
        raise error

    return measure


def wrapped(error):
    """As a library raises its own error over the system's."""
    try:
        try:
            raise error
        except OSError as inner:
            raise RuntimeError("cannot load") from inner
    except RuntimeError as outer:
        return outer


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        wrapped(FULL),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        OSError(errno.ESTALE, "Stale file handle"),
    ],
)
def test_a_full_disk_is_no_fault_of_the_candidates(error):
    outcome = attempt(JOB, failing(error))
    assert (outcome.retryable, outcome.machine_fault) == (True, True)
    assert type(error).__name__ in outcome.reason


def test_after_a_devices_fault_the_worker_is_lost_and_the_attempt_counts():
    outcome = attempt(JOB, failing(torch.AcceleratorError("CUDA error: illegal access")))
    assert (outcome.retryable, outcome.machine_fault) == (True, False)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CandidateError("not finite"), "not finite"),
        (MemoryError(), "out of memory"),
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried"),
            "OutOfMemoryError: CUDA out of memory.",
        ),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"),
        (
            FileNotFoundError(errno.ENOENT, "no such file"),
            "FileNotFoundError: [Errno 2] no such file",
        ),
    ],
)
def test_what_else_goes_wrong_is_the_candidates_own(error, reason):
    outcome = attempt(JOB, failing(error))
    assert (outcome.retryable, outcome.machine_fault, outcome.reason) == (False, False, reason)


def test_bad_input_is_wrong_for_every_candidate():
    with pytest.raises(InputError):
        attempt(JOB, failing(InputError("no such task")))


@pytest.fixture
def local(monkeypatch):
    """A local executor whose worker fails as told, and what was measured apart."""
    monkeypatch.setattr(Worker, "__init__", lambda self, spec: None)
    apart = []

    def measured_apart(job, spec):
        apart.append(job)
        return attempt(job, failing(CandidateError("measured apart")))

    monkeypatch.setattr("evomerge.workers.isolated.measured_apart", measured_apart)
    return LocalExecutor(None), apart


def fail_with(monkeypatch, error):
    monkeypatch.setattr(
        Worker, "measure", lambda self, recipe, split: failing(error)(recipe, split)
    )


def test_a_machines_fault_ends_a_local_run_in_order(local, monkeypatch):
    fail_with(monkeypatch, FULL)
    local[0].submit(JOB)
    with pytest.raises(EvomergeError, match=r"this machine is at fault: OSError.*No space left"):
        local[0].wait()


def test_a_process_whose_device_failed_uses_it_no_more(local, monkeypatch):
    executor, apart = local
    fail_with(monkeypatch, torch.AcceleratorError("CUDA error"))
    executor.submit(JOB)
    assert executor.wait().retryable
    executor.submit(JOB)
    assert executor.wait().reason == "measured apart"
    assert apart == [JOB]


def test_a_last_attempt_is_made_apart(local):
    executor, apart = local
    last = Job(0, JOB.recipe, "search", last=True)
    executor.submit(last)
    executor.wait()
    assert apart == [last]
