"""Whose fault it is: the candidate's, the machine's, the device's."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from evomerge.common.errors import CandidateError, InputError
from evomerge.workers.job import Job, attempt

JOB = Job(0, SimpleNamespace(digest="d"), "search")


def failing(error):
    def do(job):
        raise error

    return do


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
