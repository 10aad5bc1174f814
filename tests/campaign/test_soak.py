"""The soak in short: a campaign on three nodes, with deaths of workers, a node and the driver."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from running import run

from evomerge.results.results import Results
from evomerge.study.run_folder import open_run

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from soak import Plan, Soak, _facts, soak


@pytest.mark.slow
def test_under_fire_every_trial_is_recorded_once_and_the_campaign_ends(tiny_folder):
    out = tiny_folder / "run"
    plan = Plan(tiny_folder / "campaign.yaml", out, trials=120, every=15, drivers=2, limit=1800)
    found = soak(plan)
    assert found.problems == []
    happened = found.happened
    assert happened["trials"] == 120
    assert happened["drivers killed"] == 2
    assert happened["nodes lost"] == happened["nodes joined"] == 1
    assert happened["workers killed"] > 0
    events = Results(open_run(out)[1]).status()["events"]
    assert events["counts"]["workers joined"] > 0


def test_the_soak_notices_what_is_lost_or_changed(tiny_folder):
    """The judge of the soak can say no."""
    out = run(tiny_folder, overrides=["budget.trials=4"])
    found = Soak(Plan(tiny_folder / "campaign.yaml", out, trials=4), machines=None)
    found._judge()
    assert found.problems == []
    assert found._look() == 4
    trial = next(e for e in found._record() if e.optimizers_own)
    found.seen[trial.number] = (*_facts(trial)[:-2], 0.123, None)
    found.seen[10_000] = ("gone",)
    found._look()
    assert len(found.problems) == 2
    found.plan = Plan(found.plan.campaign, out, trials=6)
    found._judge()
    assert found.problems[-1] == "lost: [4, 5]"
