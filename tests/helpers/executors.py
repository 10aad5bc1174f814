"""Executors that crash, hold two slots, or answer at once, and runs that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from running import evaluations, run

from evomerge.workers.local import LocalExecutor
from evomerge.workers.worker import Worker


class CrashingExecutor(LocalExecutor):
    """Dies, as a driver would, in the middle of one measurement."""

    def __init__(self, spec, at):
        super().__init__(spec)
        self.left = at

    def wait(self):
        self.left -= 1
        if self.left < 0:
            raise SystemError("the driver died")
        return super().wait()


def crash(folder, out, monkeypatch, at):
    with monkeypatch.context() as patch:
        patch.setattr(
            "evomerge.campaign.open.build_executor", lambda spec: CrashingExecutor(spec, at)
        )
        with pytest.raises(SystemError):
            run(folder, out)


def die_after(measured, folder, out, monkeypatch):
    """Run the folder's campaign until its process ends, after so many measurements."""
    measure, left = Worker.measure, [measured]

    def dies(self, recipe, split, items=None, counted=False):
        if not left[0]:
            raise SystemExit("killed")
        left[0] -= 1
        return measure(self, recipe, split, items, counted)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "measure", dies)
        with pytest.raises(SystemExit):
            run(folder, out)
    assert evaluations(out)


def kill_at(recorded, folder, out, *options):
    """Search as the command does, killed each time that so many evaluations are on record; then
    once more, to the end.
    """
    command = [sys.executable, "-m", "evomerge", "search", "campaign.yaml", "--out", str(out)]
    for wanted in (*recorded, None):
        process = subprocess.Popen([*command, *options], cwd=folder, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            with suppress(Exception):  # the study is not there yet
                if wanted is not None and len(evaluations(out)) >= wanted:
                    process.send_signal(signal.SIGKILL)
            time.sleep(0.05)
        # On a busy machine it may be done before it is killed.
        assert process.returncode in ([0] if wanted is None else [0, -signal.SIGKILL])


class TwoSlots(LocalExecutor):
    """Two places, as if apart, served in the order of submission; the driver dies at a moment."""

    isolated = True
    left = -1

    def __init__(self, spec):
        super().__init__(spec)
        self.jobs = []

    @property
    def free(self):
        return 2 - len(self.jobs)

    def submit(self, job):
        self.jobs.append(job)

    def wait(self):
        if not TwoSlots.left:
            raise SystemError("the driver died")
        TwoSlots.left -= 1
        super().submit(self.jobs.pop(0))
        return super().wait()


class Deadly(Worker):
    """Takes its process down with one of the recipes."""

    def measure(self, recipe, split, items=None):
        if recipe.digest == os.environ["DEADLY"]:
            os._exit(9)
        return super().measure(recipe, split, items)
