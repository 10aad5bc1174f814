"""`evomerge list` shows every plug-in."""

from __future__ import annotations

import pytest
from command_line import evomerge


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("methods", ["ties", "elect sign", "dare_linear"]),
        ("optimizers", ["cma", "CMA-ES", "random"]),
        ("objectives", ["mean", "weakest_link", "normalized", "pareto"]),
        ("engines", ["hf", "transformers model", "api"]),
        ("trackers", ["tensorboard", "mlflow", "wandb"]),
    ],
)
def test_list_shows_every_plug_in_and_its_purpose(what, words):
    text = evomerge("list", what).stdout
    for word in words:
        assert word in text
