"""What a forecast makes of shapes and of what one candidate takes."""

from __future__ import annotations

import pytest
from configs import save_configs, seven_billion
from forecasts import FOUND, told, with_room

from evomerge.campaign.setup import prepare
from evomerge.config import load_campaign
from evomerge.preflight.forecast import foresee


@pytest.mark.parametrize("config", seven_billion(), ids=lambda config: config.model_type)
def test_three_models_of_seven_billion_parameters_from_their_configs(config, tmp_path):
    path = save_configs(tmp_path, config, tokenizer=False)
    setup = prepare(load_campaign(path), unread=True)
    found = foresee(setup, tmp_path, 12, None)
    parameters = {"llama": 6_738_415_616, "mistral": 7_241_732_096}[config.model_type]
    assert found.memory.model == 4 * parameters  # scored in float32 on the CPU
    assert found.memory.mapped == 3 * 2 * parameters
    assert found.export == 2 * parameters


def test_what_one_candidate_takes_becomes_memory_seconds_and_hours(unread, tmp_path, monkeypatch):
    with_room(monkeypatch, 10**9)
    found = foresee(unread, tmp_path, 12, lambda spec: FOUND)
    model = found.memory.model
    assert found.memory.scoring == 1600
    assert found.memory.own == 400_000_000 + model + 10_000_000, "scoring takes less than merging"
    assert found.fit == 10**9 // found.memory.own == 2
    assert found.item_seconds == 2.0
    work = found.work
    assert found.hours(work) == pytest.approx((100 + 2 * work.merges + 2 * work.items) / 3600)
    assert told(unread, found, tmp_path) == ""
