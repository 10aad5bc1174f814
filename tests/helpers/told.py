"""Studies with invented scores, told to trackers as a campaign tells them."""

from __future__ import annotations

from contextlib import contextmanager

from invented import Invented
from silent import Silent

from evomerge.campaign.notify_trackers import CLOSE_SECONDS, tracked
from evomerge.config import CampaignConfig
from evomerge.study.run_folder import open_run
from evomerge.trackers.build import build_trackers


class Ear(Silent):
    """A listener that remembers what is said."""

    def __init__(self):
        self.lines = []

    def said(self, message):
        self.lines.append(message)


class Told(Invented):
    """A study whose evaluations are told to trackers as they are recorded."""

    def __init__(self, folder):
        self.listener, self.ear = None, Ear()
        super().__init__(folder)

    @contextmanager
    def run(self, **sections):
        """A run with the campaign file's `trackers` or `notify`; what is added within is told."""
        config, study = open_run(self.folder)
        study.close()
        config = CampaignConfig.model_validate(config.model_dump() | sections)
        with tracked(build_trackers(config), self.study, self.folder, self.ear) as self.listener:
            yield self
        self.listener = None

    def add(self, *arguments, **options):
        evaluation = super().add(*arguments, **options)
        if self.listener is not None:
            self.listener.recorded(evaluation)
        return evaluation

    @property
    def recorded(self):
        return len(self.study.evaluations())


def time_enough(monkeypatch):
    monkeypatch.setattr(
        "evomerge.campaign.notify_trackers.CLOSE_SECONDS", dict.fromkeys(CLOSE_SECONDS, 120)
    )
