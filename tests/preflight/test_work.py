"""The work of a campaign, counted before it begins."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
from configs import save_configs, small_config
from typer.testing import CliRunner

from evomerge.campaign.setup import prepare
from evomerge.cli import app
from evomerge.config import load_campaign
from evomerge.preflight.forecast import foresee
from evomerge.preflight.work import depths_of, work_of
from evomerge.study.run_folder import open_run


@pytest.mark.slow
def test_the_work_is_that_of_a_real_campaign(tmp_path):
    campaign = tiny.save_campaign(tmp_path, optimizer={"kind": "random"}, budget={"trials": 6})
    command = ["search", str(campaign), "--out", str(tmp_path / "run")]
    assert CliRunner().invoke(app, command).exit_code == 0
    done = [e for e in open_run(tmp_path / "run")[1].evaluations() if e.seconds]
    work = work_of(prepare(load_campaign(campaign)), 6)
    assert (work.merges, work.items) == (len(done), sum(e.n for e in done))
    assert work.trials == 6


def test_a_budget_of_items_bounds_the_work(unread):
    config = unread.config
    whole = work_of(unread, 12)
    budget = config.budget.model_copy(update={"items": 60})
    some = work_of(replace(unread, config=config.model_copy(update={"budget": budget})), 12)
    assert (whole.trials, some.trials) == (12, 2)
    finalists = 3 - 2  # fewer than are chosen
    assert whole.items - some.items == 10 * 30 + finalists * 12


def test_descents_of_proposals_are_counted_as_far_as_items_reach(unread):
    optimizer = unread.config.optimizer
    budget = unread.config.budget

    def work(trials, items=None, **options):
        own = optimizer.model_validate(options)
        update = {"optimizer": own, "budget": budget.model_copy(update={"items": items})}
        return work_of(unread.with_config(unread.config.model_copy(update=update)), trials)

    plain = work(4, kind="random")
    whole = work(4, kind="gradient", steps=10, batch=6, check=5)
    # ten steps of 6 documents, three items each; three looks at most at 12
    assert whole.items - plain.items == 4 * (10 * 3 * 6 + 3 * 12)
    assert whole.merges - plain.merges == 4 * 11
    half = work(4, kind="m2n2", gradient=0.5)
    assert half.items - plain.items == 2 * 3 * 3 * 30
    few = work(4, kind="gradient", steps=10, batch=6, check=5, items=100)
    assert few.items < whole.items


def test_paths_of_other_depths_take_time_and_memory_for_their_layers(tmp_path):
    found = {}
    for kind in ("none", "indicator"):
        space = {"path": {"kind": "indicator", "a": "math", "others": ["lang"]}}
        extra = {"space": space} if kind == "indicator" else {}
        folder = save_configs(tmp_path, small_config(), **extra)
        setup = prepare(load_campaign(folder), unread=True)
        found[kind] = depths_of(setup), foresee(setup, tmp_path, 12, None).memory.model
    plain, flow = found["none"][0], found["indicator"][0]
    assert (plain.mean, plain.deepest, set(plain.held.values())) == (6, 6, {1})
    assert flow.deepest > 6
    assert max(flow.held.values()) == 2  # of two models
    layer = (found["none"][1] - 4 * (2 * 64 * 32 + 32)) / 6
    more = sum(flow.held.values()) - 6
    assert found["indicator"][1] - found["none"][1] == pytest.approx(more * layer)
