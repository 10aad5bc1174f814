"""What a campaign's models alone decide is computed once, and kept beside its study."""

from __future__ import annotations

import pytest
import tiny
from running import facts, run

from evomerge.export.trial import export_trial
from evomerge.materialize.statistics.store import Store
from evomerge.study.run_folder import open_run, run_folder, statistics_folder

TIES = ["space.weights={method: ties, genes: {weight: [0, 1.5]}}"]


@pytest.mark.slow
def test_a_resumed_run_and_its_export_compute_no_statistic_again(tmp_path, monkeypatch):
    tiny.save_campaign(tmp_path)
    whole = run(tmp_path, tmp_path / "whole", [*TIES, "budget.trials=3"])
    out = run(tmp_path, None, [*TIES, "budget.trials=2"])
    kept = sorted(statistics_folder(out).glob("magnitude_histogram/*.safetensors"))
    assert kept
    computed = []
    monkeypatch.setattr(Store, "keep", lambda self, path, value: computed.append(path))
    run(tmp_path, None, [*TIES, "budget.trials=3"])
    export_trial(*open_run(out), None, tmp_path / "winner", run=run_folder(out), anyway=True)
    assert computed == []
    assert sorted(statistics_folder(out).glob("*/*")) == kept
    own = [fact for fact in facts(whole) if fact[0] == "search"]
    assert [fact for fact in facts(out) if fact[0] == "search"] == own
