"""What the pages tell people to write and to type is what evomerge takes."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
import tiny
import yaml
from pages import ROOT, blocks

from evomerge.config import CampaignConfig, load_campaign, parse_campaign
from evomerge.judging.scores import Scores
from evomerge.mergekit import from_mergekit
from evomerge.search.optimizers import base
from evomerge.search.spaces.genes import Domain, Gene

sys.path.insert(0, str(ROOT / "docs"))
import rooms


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_is_a_campaign_a_part_of_one_a_task_or_mergekits(block):
    text = block.text
    data = yaml.safe_load(text)
    if "merge_method" in data:
        from_mergekit(text, "the page")
        return
    if "include" in data:  # a task that changes another
        assert data["include"].endswith(".yaml")
        return
    if "task" in data:
        assert {"dataset_path", "output_type", "metric_list"} <= set(data)
        return
    assert set(data) <= set(CampaignConfig.model_fields)
    whole = {} if {"name", "models", "space", "fitness"} <= data.keys() else tiny.campaign_data()
    for key, value in data.items():
        both = isinstance(value, dict) and isinstance(whole.get(key), dict)
        whole[key] = {**whole[key], **value} if both else value
    if "stages" in data:
        del whole["space"]
    parse_campaign(whole, "the page")


def test_contributing_says_where_things_live_in_the_rooms_own_words():
    text = rooms.GUIDE.read_text(encoding="utf-8")
    assert rooms.with_table(text) == text, "run: python docs/rooms.py"


def test_every_file_says_what_it_is_for():
    files = [*rooms.PACKAGE.rglob("*.py")]
    assert [file for file in files if not rooms.first_line(file).endswith((".", ":"))] == []


def test_the_tutorials_campaign_is_the_quickstarts():
    [tutorial] = blocks("yaml", pages=[ROOT / "docs/tutorial.md"])
    shown = parse_campaign(yaml.safe_load(tutorial.text), "the tutorial")
    quickstart = ROOT / "search_spaces/quickstart/quickstart.yaml"
    paths = {"models": {"base", "experts"}, "fitness": {"include_path"}}
    assert shown.model_dump(exclude=paths) == load_campaign(quickstart).model_dump(exclude=paths)


@pytest.fixture
def hill_climber(tmp_path, monkeypatch):
    """The module that the how-to shows."""
    [shown] = blocks("python", pages=[ROOT / "docs/how-to/add-an-optimizer.md"])
    (tmp_path / "hill_climber.py").write_text(shown.text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(base.REGISTRY, "known", base.optimizers())
    yield importlib.import_module("hill_climber")
    sys.modules.pop("hill_climber", None)


def test_the_shown_optimizer_climbs(hill_climber):
    domain = Domain([Gene("x"), Gene("y")], np.array([0.1, 0.9]))
    climber = hill_climber.HillClimber(domain, 0)
    values = []
    for ask in range(200):
        proposal = climber.ask(ask)
        value = -float(np.abs(proposal.genome - 0.5).sum())
        climber.tell(proposal, Scores(value, se=0.0, n=1))
        values.append(value)
    assert max(values) > -0.1 > values[0]


def test_the_shown_optimizer_minds_constraints_and_trusts_no_estimate(hill_climber):
    domain = Domain([Gene("x"), Gene("y")], np.array([0.1, 0.5]))
    climber = hill_climber.HillClimber(domain, 0)
    tried = []
    for ask in range(200):
        proposal = climber.ask(ask)
        x = float(proposal.genome[0])
        tried.append(x)
        # higher where x is large, but beyond 0.4 a constraint breaks; every fifth is a lucky guess
        guess = ask % 5 == 4
        broken = max(0.0, x - 0.4)
        scores = Scores(x + 10 * guess, se=0.0, n=1, estimated=guess, violation=broken)
        climber.tell(proposal, scores)
    parent = climber.ask(200).parents[0]
    assert parent % 5 != 4
    assert 0.3 < tried[parent] <= 0.4
