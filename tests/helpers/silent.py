"""A listener that is told everything and says nothing."""

from __future__ import annotations


class Silent:
    """Of a campaign, and of a comparison."""

    def begin(self, title):
        pass

    def on_record(self, evaluations):
        pass

    def phase(self, name, done, total):
        pass

    def recorded(self, evaluation):
        pass

    def said(self, message):
        pass
