"""The stock commands that are printed beside an export."""

from __future__ import annotations

import pytest

from evomerge.config import FitnessConfig
from evomerge.export.lm_eval_command import stock_commands


@pytest.mark.parametrize(
    ("task", "size"),
    [
        ({"metric": "acc"}, 16),
        ({"metric": "acc", "measures": ["word_perplexity"]}, 1),
        ({"metric": "bits_per_byte,none"}, 1),
    ],
)
def test_windows_of_rolling_tasks_are_scored_one_at_a_time(task, size):
    splits = {"search": 0.5, "select": 0.2, "test": 0.3}
    fitness = FitnessConfig.model_validate(
        {"tasks": [{"task": "t", **task}], "splits": splits, "batch_size": 16}
    )
    (command,) = stock_commands(fitness, "out", "float32")
    assert f"--batch_size {size} " in f"{command} "
