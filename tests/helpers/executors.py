"""Executors that crash, hold two slots, or answer at once."""

from __future__ import annotations

import os

import pytest
from running import run

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
