"""The smallest campaign file as data, and its messages when a section is spoilt."""

from __future__ import annotations

import copy

import pytest

from evomerge.common.errors import InputError
from evomerge.config import parse_campaign

SMALLEST = {
    "name": "small",
    "models": {"base": "org/base", "experts": {"math": "./math"}},
    "space": {"weights": {"method": "ties", "genes": {"weight": [0, 1]}}},
    "fitness": {"tasks": [{"task": "pick"}]},
}


def data(**sections):
    """The smallest campaign with whole sections put in place of its own."""
    return copy.deepcopy(SMALLEST) | sections


def parsed(**sections):
    """The campaign of these sections."""
    return parse_campaign(data(**sections), "file.yaml")


def refusal(**sections):
    """The message with which these sections are refused."""
    with pytest.raises(InputError) as caught:
        parsed(**sections)
    return str(caught.value)
