"""The whole loop on Ray."""

from __future__ import annotations

import pytest
from running import evaluations, facts, run
from silent import Silent

from evomerge.campaign.open import open_campaign
from evomerge.campaign.setup import prepare
from evomerge.common.errors import InputError
from evomerge.config import load_campaign
from evomerge.results.results import Results
from evomerge.study.run_folder import open_run


@pytest.mark.slow
def test_ray_refuses_what_the_cluster_does_not_have(tiny_folder):
    with pytest.raises(InputError, match="1 × 1 GPU asked for, but Ray has 0"):
        run(tiny_folder, overrides=["workers={kind: ray, gpus_per_worker: 1}"])


@pytest.mark.slow
def test_the_same_campaign_on_ray_gives_the_same_trials_on_copies_of_the_models(tiny_folder, whole):
    node = tiny_folder / "node"
    workers = f"workers={{kind: ray, cpus_per_worker: 1, copy_to: {node}}}"
    out = run(tiny_folder, overrides=[workers])
    assert facts(out) == facts(whole)
    copied = {path.parent.name.partition("-")[0] for path in node.glob("*/model.safetensors")}
    assert copied == {"base", "math", "lang"}


@pytest.mark.slow
def test_two_workers_on_ray_lose_and_repeat_nothing(tiny_folder):
    out = tiny_folder / "run"
    config = load_campaign(tiny_folder / "campaign.yaml", ["workers.count=2"])
    with open_campaign(prepare(config), out, Silent()) as campaign:
        while campaign._executor.workers < 2:
            campaign._executor.wait()
        campaign.run()
    trials = [e for e in evaluations(out) if e.optimizers_own]
    assert sorted(t.ask for t in trials) == list(range(12))
    assert len({t.digest for t in trials}) == 12
    assert any(t.tells < t.ask for t in trials), "asked while another was in flight"
    assert Results(open_run(out)[1]).status()["done"]
