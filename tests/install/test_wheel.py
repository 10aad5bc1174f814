"""A wheel has everything that runs, and nothing else; it works outside of the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from pages import ROOT

QUICKSTART = ROOT / "search_spaces" / "quickstart"
PACKAGE = ROOT / "evomerge"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Made by the hatchling that is installed, so that no index is asked."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    [made] = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of commands of an environment whose other packages are those of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True, with_pip=False)
    commands = folder / "bin"
    pip("--python", commands / "python", "install", "--no-deps", "--no-index", wheel)
    [site] = folder.glob("lib/python*/site-packages")
    # they come after the wheel, and where they are editable they are not followed
    others = [path for path in sys.path if path.endswith("-packages")]
    (site / "others.pth").write_text("\n".join(others))
    return commands


def pip(*arguments) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def files_below(folder: Path) -> set[str]:
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return {str(p) for p in found if "__pycache__" not in p.parts and p.suffix != ".pyc"}


@pytest.mark.slow
def test_a_wheel_has_every_file_of_the_package_and_the_quickstart(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {f"evomerge/{name}" for name in files_below(PACKAGE)}
    expected |= {f"evomerge/cli/quickstart_files/{name}" for name in files_below(QUICKSTART)}
    beside = {name for name in names if ".dist-info/" in name}
    assert names - beside == expected
    for name in ("py.typed", "explain/glossary.yaml", "explain/parameters.yaml"):
        assert f"evomerge/{name}" in names
    assert any(name.endswith("entry_points.txt") for name in beside)
    assert any("LICENSE" in name for name in beside)


@pytest.mark.slow
def test_an_installed_wheel_works_outside_of_the_repository(installed, tmp_path):
    settings = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(command, *arguments):
        command = [installed / command, *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=settings, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def evomerge(*arguments):
        return run("evomerge", *arguments)

    place = run("python", "-c", "import evomerge; print(evomerge.__file__)")
    assert str(installed.parent) in place
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert evomerge("--version").strip() == version
    assert "ties" in evomerge("list", "methods")
    assert "sign" in evomerge("explain", "ties")
    assert "rung" in evomerge("explain", "rung")
    assert evomerge("quickstart", "--to", "try").strip() == "try/quickstart.yaml"
    assert "listops_eo" in evomerge("check", "try/quickstart.yaml", "--no-measure")
