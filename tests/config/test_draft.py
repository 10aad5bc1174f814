"""A draft is written as a campaign file that reads back as it was meant, with its comments."""

from __future__ import annotations

import pytest
import yaml
from tiny import campaign_data

from evomerge.common.errors import InputError
from evomerge.config import Draft, load_campaign, seen_from


def test_a_draft_reads_back_as_its_data(tmp_path):
    data = campaign_data(initial=["uniform"], seed=3)
    why = {"space.weights.genes": "searched", "seed": "long " * 30, "fitness.tasks": "what is good"}
    Draft("A title.", data, why, ("nothing here " * 20,)).write(tmp_path / "c.yaml")
    text = (tmp_path / "c.yaml").read_text()
    assert yaml.safe_load(text) == data
    assert max(map(len, text.splitlines())) <= 100
    assert "    genes: {weight: [0, 1.5]}           # searched\n" in text
    assert "# - nothing here" in text
    load_campaign(tmp_path / "c.yaml")


def test_names_that_yaml_reads_otherwise_are_quoted():
    data = campaign_data(models={"base": "a: b", "experts": {"on": "1e5", "null": "#x"}})
    assert yaml.safe_load(Draft("t", data).text()) == data


def test_nothing_is_overwritten_and_no_draft_is_less_than_a_campaign(tmp_path):
    (tmp_path / "c.yaml").write_text("mine")
    with pytest.raises(InputError, match="exists; choose another --out"):
        Draft("t", campaign_data()).write(tmp_path / "c.yaml")
    assert (tmp_path / "c.yaml").read_text() == "mine"
    with pytest.raises(InputError, match="granularty"):
        Draft("t", {"name": "x", "space": {"weights": {"granularty": 1}}}).text()


def test_paths_are_written_as_seen_from_the_campaign(tmp_path):
    (tmp_path / "zoo" / "base").mkdir(parents=True)
    (tmp_path / "deep").mkdir()
    assert seen_from(tmp_path, "zoo/base", tmp_path) == "zoo/base"
    assert seen_from(tmp_path / "deep", "zoo/base", tmp_path) == "../zoo/base"
    assert seen_from(tmp_path, "org/model", tmp_path) == "org/model"
    assert seen_from(tmp_path, "/abs/olute") == "/abs/olute"
