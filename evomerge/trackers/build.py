"""Build the trackers that a campaign file asks for."""

from __future__ import annotations

from collections import Counter

from evomerge.common.extras import require
from evomerge.common.plugins import check_options
from evomerge.config import CampaignConfig, PlugConfig
from evomerge.trackers.base import REGISTRY, Tracker
from evomerge.trackers.notify import Notify


def build_trackers(config: CampaignConfig) -> dict[str, Tracker]:
    """Build what a campaign file's `trackers` and `notify` ask for, by the names messages use.

    Raises:
        InputError: as `build_tracker`.
    """
    built: dict[str, Tracker] = {}
    seen = Counter[str]()
    for place, wanted in enumerate(config.trackers):
        seen[wanted.kind] += 1
        nth = f" {seen[wanted.kind]}" if seen[wanted.kind] > 1 else ""
        built[f"tracker {wanted.kind}{nth}"] = build_tracker(wanted, f"trackers.{place}")
    for place, notice in enumerate(config.notify):
        built[f"notify.{place}"] = Notify(notice)
    return built


def build_tracker(config: PlugConfig, where: str) -> Tracker:
    """Build the tracker that a campaign file names at `where`, and check its options.

    Raises:
        InputError: no such tracker, an unknown option, an option's value of the wrong type, or the
            package it needs is not installed.
    """
    name = config.kind
    kind = REGISTRY.find(name, where)
    if kind.needs:
        require(kind.needs, name, f"{where}: {name}")
    return kind(**check_options(kind, config.options, where, of=name))
