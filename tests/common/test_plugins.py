"""Plug-ins of other packages, as entry points and as `module:Name`."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from evomerge.common.errors import InputError
from evomerge.common.plugins import Registry, subclass_of

CODE = """
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from evomerge.fitness.engines import Engine
from evomerge.judging.objectives import objective
from evomerge.methods import PerExpert, merge_method
from evomerge.search.optimizers import Optimizer
from evomerge.trackers import Tracker


class Middle(Optimizer):
    "Proposes the middle of the box."

    def __init__(self, domain, seed, *, steps: int = 3):
        super().__init__(domain, seed)

    def _propose(self, rng):
        return np.full(self.domain.dimension, 0.5), ()

    def _learn(self, proposal, scores):
        pass


class Echo(Engine):
    "Answers nothing."

    def load(self, recipe): ...
    def prepare(self, requests): ...
    def answer(self, requests, counted=False): ...


class Silent(Tracker):
    "Writes nowhere."


def median(means, weights, *, shift: float = 0.0):
    "The tasks' median."
    return np.median(means, axis=-1) + shift


@objective
def registered_median(means, weights):
    "The tasks' median again."
    return np.median(means, axis=-1)


@merge_method(reference="nobody, eq. 0")
def halfway(
    base: Any, experts: Sequence[Any], *, weight: Annotated[Sequence[float], PerExpert(1, 0, 2)]
) -> Any:
    "Half of the first expert's task vector is added."
    return base + 0.5 * weight[0] * (experts[0] - base)


not_a_plugin = 3
"""
GROUPS = {
    "methods": "halfway",
    "optimizers": "Middle",
    "objectives": "median",
    "engines": "Echo",
    "trackers": "Silent",
}


def distribution(folder: Path, name: str, entries: str, code: str = CODE) -> None:
    """Write an installed package into a folder of sys.path."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(entries)


class Shape:
    """The base class of the plug-ins below."""


class Square(Shape):
    """Stands for a room's own plug-in."""


def shapes() -> Registry:
    """A registry that discovers anew; its room's own plug-in is `square`."""
    accept = subclass_of(Shape, "shapes.Shape")
    registry = Registry("shape", "evomerge.trackers", "evomerge.shapes", accept)
    registry.add("square", Square)
    return registry


def shape_code(*classes: str) -> str:
    return "from shapes import Shape\n" + "".join(f"class {c}(Shape): pass\n" for c in classes)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a package with entry points of the group `evomerge.shapes`."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "shapes", SimpleNamespace(Shape=Shape))
    written = []

    def install(name, entries, code):
        distribution(tmp_path, name, f"[evomerge.shapes]\n{entries}\n", code)
        written.append(name)

    yield install
    for name in written:
        sys.modules.pop(name, None)


def test_entry_points_are_found_beside_the_rooms_own(installed):
    installed("others", "circle = others:Circle\nring = others:Ring", shape_code("Circle", "Ring"))
    registry = shapes()
    assert list(registry.all()) == ["circle", "ring", "square"]
    assert registry.find("circle", "here").__name__ == "Circle"
    assert registry.refused == {}


def test_a_broken_entry_point_is_an_error_only_where_it_is_asked_for(installed):
    installed("broken", "torn = broken:Torn", "raise RuntimeError('no licence')")
    installed("strange", "odd = strange:odd", "odd = 3")
    installed("absent", "gone = absent:Gone", "")
    registry = shapes()
    assert list(registry.all()) == ["square"]
    assert registry.find("square", "here") is Square
    for name, reason in {
        "torn": r"torn = broken:Torn of broken 1\.2: RuntimeError: no licence",
        "odd": r"odd = strange:odd of strange 1\.2: .*is no subclass of shapes\.Shape",
        "gone": r"gone = absent:Gone of absent 1\.2: AttributeError: .*'Gone'",
    }.items():
        with pytest.raises(InputError, match=f"^here: the shape '{name}' can.*{reason}"):
            registry.find(name, "here")


def test_a_name_that_is_taken_is_refused_naming_both(installed):
    installed("rival", "square = rival:Square\nstar = rival:Star", shape_code("Square", "Star"))
    installed("second", "star = second:Star", shape_code("Star"))
    registry = shapes()
    assert registry.all() == {}
    own = r"evomerge's own \(.*Square\)"
    with pytest.raises(InputError, match=f"{own} and by .*square = rival:Square of rival 1.2"):
        registry.find("square", "here")
    with pytest.raises(InputError, match=r"star = rival:Star of rival.*star = second:Star of sec"):
        registry.find("star", "here")


def test_module_and_name_need_no_registration(installed):
    installed("others", "", shape_code("Circle"))
    registry = shapes()
    assert registry.find("others:Circle", "here").__name__ == "Circle"
    assert list(registry.all()) == ["square"]
    for name, reason in {
        "others:Nobody": r"others:Nobody cannot be imported \(AttributeError",
        "nosuch:Circle": r"nosuch:Circle cannot be imported \(ModuleNotFoundError",
        "os:system": r"os:system is no subclass of shapes\.Shape",
        "sqare": "no shape is called 'sqare'; did you mean 'square'",
    }.items():
        with pytest.raises(InputError, match=f"^here: {reason}"):
            registry.find(name, "here")


def test_two_of_one_name_in_the_house_are_a_mistake():
    registry = shapes()
    assert registry.add("square", Square) is Square
    with pytest.raises(ValueError, match=r"'square' is defined twice, by .*Square and .*Shape"):
        registry.add("square", Shape)


@pytest.fixture
def others(tmp_path):
    """Two installed packages: one with a plug-in of each kind, one whose plug-ins are broken."""
    entries = "".join(
        f"[evomerge.{group}]\ntheir_{group} = others:{name}\n" for group, name in GROUPS.items()
    )
    distribution(tmp_path, "others", entries)
    bad = "".join(f"[evomerge.{group}]\nworse_{group} = nosuch:Thing\n" for group in GROUPS)
    distribution(tmp_path, "worse", bad, "")
    return tmp_path


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the folder's packages installed."""
    start = f"import sys; sys.path.insert(0, {str(folder)!r})\n"
    return subprocess.run(
        [sys.executable, "-c", start + code], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("group", GROUPS)
def test_list_shows_other_packages_and_warns_of_the_broken(others, group):
    code = f"from evomerge.cli import main; sys.argv[1:] = ['list', {group!r}]; main()"
    done = run(others, code)
    assert done.returncode == 0, done.stderr
    assert f"their_{group}" in done.stdout
    assert f"worse_{group}" not in done.stdout
    warning = " ".join(done.stderr.split())
    assert f"worse_{group} = nosuch:Thing of worse 1.2: ModuleNotFoundError" in warning


def test_other_packages_are_used_by_name_and_by_module(others):
    done = run(
        others,
        """
import numpy as np
from evomerge.config import OptimizerConfig
from evomerge.judging.objectives import find_objective
from evomerge.methods import find_method
from evomerge.search.optimizers import build_optimizer
from evomerge.search.spaces.genes import Domain, Gene
domain = Domain([Gene("x")], np.array([0.1]), (), {})
for kind in ("their_optimizers", "others:Middle"):
    optimizer = build_optimizer(OptimizerConfig(kind=kind, steps=5), domain, 0)
    assert optimizer.ask(9).genome.tolist() == [0.5]
means, weights = np.array([1.0, 2.0, 9.0]), np.ones(3)
for name in ("their_objectives", "others:median"):
    found = find_objective(name, "fitness.objective", {"shift": 1.0})
    assert found.name == name and found.function(means, weights, **found.options) == 3.0
assert find_objective("others:registered_median", "x").summary == "The tasks' median again."
for name in ("their_methods", "others:halfway"):
    method = find_method(name, "x")
    assert method.name == name and list(method.parameters) == ["weight"]
print("done")
""",
    )
    assert done.stdout == "done\n", done.stderr
