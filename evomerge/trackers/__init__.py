"""Trackers: they are told what a campaign records, one file each.

A tracker is a subclass of `Tracker`: in a file of this folder under `@tracker("name")`, an entry
point of another package, or anywhere as `module:Class`. Keyword-only arguments of its constructor
are its options in the campaign file.
"""

from evomerge.trackers.base import Outcome, Run, Tracker, numbers, tracker, trackers

__all__ = ["Outcome", "Run", "Tracker", "numbers", "tracker", "trackers"]
