"""`evomerge explain` and `evomerge list` fit a terminal of 80 columns."""

from __future__ import annotations

import json

import pytest
from command_line import evomerge
from rich.cells import cell_len

from evomerge.cli.shared import stdout
from evomerge.explain import REGISTRIES


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setattr(stdout, "_width", 80)  # setting `width` could not be undone


def test_a_key_is_explained_with_an_example():
    text = evomerge("explain", "fitness.objective").stdout
    assert "weakest_link" in text
    assert "objective: weakest_link" in text


def test_without_a_topic_it_says_what_there_is():
    text = evomerge("explain").stdout
    for word in ("fitness.rungs", "ties", "m2n2", "baseline"):
        assert word in text


def test_the_json_schema_is_json():
    assert json.loads(evomerge("explain", "--json-schema").stdout)["title"] == "CampaignConfig"


def test_a_topic_that_is_not_there_is_bad_input():
    assert "did you mean" in evomerge("explain", "basline", code=2).stderr


@pytest.mark.parametrize("kind", REGISTRIES)
def test_list_has_a_line_for_each_plug_in_within_80_columns(kind, narrow):
    lines = evomerge("list", kind).stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(REGISTRIES[kind].all())
    assert max(map(cell_len, lines)) <= 80
