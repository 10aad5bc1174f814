"""What an installation may lack is named with the extra that brings it."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from evomerge.common.errors import InputError
from evomerge.common.extras import has, require

ROOT = Path(__file__).parents[2]


def test_what_is_missing_is_named_with_the_extra_that_brings_it(monkeypatch):
    require("numpy", "any", "whoever")
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert not has("wandb")
    with pytest.raises(InputError, match=r"trackers.0: wandb needs the .*'evomerge\[wandb\]'"):
        require("wandb", "wandb", "trackers.0: wandb")


def test_every_extra_that_a_message_names_is_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    source = "\n".join(file.read_text() for file in (ROOT / "evomerge").rglob("*.py"))
    named = re.findall(r"""require\(\s*"\w+",\s*"(\w+)"|how_to_install\(['"](\w+)""", source)
    assert {first or second for first, second in named} >= {"compare", "dashboard"}
    assert {a or b for a, b in named} <= set(project["optional-dependencies"])
