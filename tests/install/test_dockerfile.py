"""The Dockerfile copies what is there, installs what is pinned, and its user has no rights."""

from __future__ import annotations

import re
import shlex
import tomllib

import pytest
from packaging.specifiers import SpecifierSet
from pages import ROOT

PYTHON_OF = {"ubuntu24.04": "3.12"}
"""The Python that an image's system has."""


@pytest.fixture(scope="module")
def steps():
    """(instruction, its arguments), in order; continued lines joined, comments left out."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def arguments(steps, instruction):
    return [given for name, given in steps if name == instruction]


def test_the_image_has_a_fixed_version_and_a_python_that_evomerge_takes(steps, project):
    [image] = arguments(steps, "FROM")
    found = re.fullmatch(r"nvidia/cuda:(\d+\.\d+\.\d+)-base-(\w+\.\d+)", image)
    assert found, image
    assert SpecifierSet(project["requires-python"]).contains(PYTHON_OF[found[2]])


def test_what_is_copied_is_there_and_reaches_the_builder(steps):
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    for given in arguments(steps, "COPY"):
        *sources, _ = shlex.split(given)
        for source in sources:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in kept, source


def test_whatever_the_wheel_is_made_of_is_copied(steps):
    copied = {s for given in arguments(steps, "COPY") for s in shlex.split(given)[:-1]}
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheel = build["targets"]["wheel"]
    assert {"pyproject.toml", "README.md", *wheel["packages"], *wheel["force-include"]} <= copied


def test_it_installs_what_is_pinned_with_extras_that_there_are(steps, project):
    [install] = [given for given in arguments(steps, "RUN") if "pip install" in given]
    assert "--constraint constraints.txt" in install
    extras = re.search(r"\.\[([\w,]+)\]", install)[1].split(",")
    assert set(extras) <= set(project["optional-dependencies"])
    assert "==" not in install, "versions are pinned in one place, constraints.txt"


def test_the_command_is_evomerge_as_a_user_without_rights(steps):
    names = [name for name, _ in steps]
    assert arguments(steps, "ENTRYPOINT") == ['["evomerge"]']
    [user] = arguments(steps, "USER")
    assert user != "root"
    assert any(f"useradd --create-home {user}" in given for given in arguments(steps, "RUN"))
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert "RUN" not in names[names.index("USER") :], "what follows could not install anything"
