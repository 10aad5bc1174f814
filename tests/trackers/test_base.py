"""The numbers of an evaluation that trackers draw."""

from __future__ import annotations

import numpy as np

from evomerge.study.record import Evaluation
from evomerge.trackers.base import numbers


def test_curves_are_finite_and_as_many_as_one_can_look_at():
    genes, names = {f"g{i}": 0.5 for i in range(65)}, [f"t{i}" for i in range(1500)]
    scores = {name: np.array([np.nan if name == "t7" else 1.0]) for name in names}
    facts = {"split": "search", "digest": "d", "recipe": {}, "value": 1.0, "scores": scores}
    found = numbers(Evaluation(**facts, params=genes), None)
    assert len(found) == 1499 + 2
    assert not any(name.startswith("gene/") for name in found)
    few = dict(list(genes.items())[:64])
    assert "gene/g0" in numbers(Evaluation(**facts, params=few), None)
