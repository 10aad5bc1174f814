"""`evomerge list` shows every plug-in."""

from __future__ import annotations

import pytest
from command_line import evomerge


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("methods", ["ties", "density", "dare_linear", "2306.01708"]),
        ("optimizers", ["cma", "population", "random"]),
        ("objectives", ["mean", "temperature", "normalized", "prefer"]),
        ("engines", ["hf", "batch_tokens", "api", "checkpoint"]),
        ("trackers", ["tensorboard", "mlflow", "experiment = none", "wandb"]),
    ],
)
def test_list_shows_every_plug_with_its_parameters(what, words):
    text = evomerge("list", what).stdout
    for word in words:
        assert word in text
