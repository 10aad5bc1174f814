"""Docstrings are taken apart into prose, arguments and an example."""

from __future__ import annotations

from evomerge.config import BudgetConfig
from evomerge.explain.docstrings import of_fields, parse

TEXT = """Climb.

From the first point.

Args:
    step: length of a step,
        in units of the gene.
    seed: of every draw.

Raises:
    InputError: none.

Example: `kind: climb, step: 0.1,
bounds: [0, 1]`
"""


def test_prose_arguments_and_example_are_apart():
    read = parse(TEXT)
    assert read.text == "Climb.\n\nFrom the first point."
    assert read.arguments == {
        "step": "length of a step, in units of the gene.",
        "seed": "of every draw.",
    }
    assert read.example == {"kind": "climb", "step": 0.1, "bounds": [0, 1]}


def test_fields_have_the_docstrings_below_them():
    told = of_fields(BudgetConfig)
    assert set(told) == set(BudgetConfig.model_fields)
    assert told["hours"].example == {"hours": 8}
