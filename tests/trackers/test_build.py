"""Trackers by name: a wrong one is refused with its place in the campaign file."""

from __future__ import annotations

import re

import pytest

from evomerge.common.errors import InputError
from evomerge.config import parse_campaign
from evomerge.trackers.build import build_trackers


def campaign(**sections):
    data = {
        "name": "c",
        "models": {"base": "zoo/base", "experts": {"math": "zoo/math"}},
        "space": {"weights": {"method": "linear"}},
        "fitness": {"tasks": [{"task": "t"}]},
    }
    return parse_campaign(data | sections, "campaign.yaml")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("tensorbord", "trackers.0: no tracker is called 'tensorbord'; did you mean 'tensorboard'"),
        ({"kind": "mlflow", "url": "x"}, "trackers.0.url: unknown option of mlflow; did you mean"),
        ({"kind": "wandb", "mode": "on"}, "trackers.0.mode: expected 'online' or"),
        ("nosuch.module:Class", "trackers.0: nosuch.module:Class cannot be imported"),
        ("diary:Nobody", "trackers.0: diary:Nobody cannot be imported"),
        ("diary:Stranger", "trackers.0: diary:Stranger is no subclass of evomerge.trackers.Track"),
        ("os:system", "trackers.0: os:system is no subclass"),
        ({"kind": "diary:Diary", "hang": 1}, "trackers.0.hang: unknown option of diary:Diary"),
    ],
)
def test_a_tracker_that_is_none_is_refused_by_name(wanted, message):
    with pytest.raises(InputError, match=f"(?i){re.escape(message)}"):
        build_trackers(campaign(trackers=[wanted]))


def test_a_missing_package_is_named_with_the_extra_that_has_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"mlflow needs .* pip install 'evomerge\[mlflow\]'"):
        build_trackers(campaign(trackers=["mlflow"]))


@pytest.mark.parametrize(
    ("notice", "message"),
    [
        ({}, "notify.0: give webhook or command"),
        ({"webhook": "https://a", "command": "b"}, "notify.0: give webhook or command"),
        ({"webhook": "file:///etc/passwd"}, "notify.0.webhook"),
        ({"command": "b", "when": ["always"]}, "notify.0.when.0"),
        ({"command": "b", "on": ["best"]}, "notify.0.on: unknown key"),
    ],
)
def test_a_notice_that_cannot_be_given_is_refused(notice, message):
    with pytest.raises(InputError, match=re.escape(message)):
        campaign(notify=[notice])
