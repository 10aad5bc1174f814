"""Statistics on disk: the same bytes with and without them, shared, and rebuilt when damaged."""

import json
import os
import signal
from dataclasses import dataclass

import numpy as np
import pytest
import tiny
import torch
from calibrated_data import calibrate
from safetensors import safe_open

from evomerge.config import ModelsConfig
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.plan import plan
from evomerge.materialize.statistics import store as store_module
from evomerge.materialize.statistics.statistics import Statistics
from evomerge.materialize.statistics.store import Store, tidy
from evomerge.methods import View, methods
from evomerge.methods.core.magnitude_histograms import magnitude_histogram
from evomerge.models.checks.checked_models import check_models
from evomerge.models.checks.digests import digests_of
from evomerge.recipe import BASE, Merge, Recipe, Slot

STORED = [name for name, method in methods().items() if method.statistic or method.joint]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    paths = tiny.save_family(tmp_path_factory.mktemp("family"), num_hidden_layers=1)
    experts = {name: str(paths[name]) for name in ("math", "lang")}
    models = check_models(ModelsConfig(base=str(paths["base"]), experts=experts))
    calibrate(models, tmp_path_factory.mktemp("statistics"))
    return models


def recipe_of(models, name):
    method = methods()[name]
    least, most = method.experts
    experts = ("math", "lang")[: 2 if most is None else most]
    assert len(experts) >= least
    own = {p.name: 0.4 for p in method.parameters.values() if p.per_expert}
    merge = Merge(slot=0, group="layer", method=name, experts=dict.fromkeys(experts, own))
    return Recipe(
        sources={n: s.digest for n, s in models.sources.items()},
        path=[Slot(source=BASE, layer=0)],
        merges=[merge],
        seed=2,
    )


def merged(models, name, store=None):
    kernel = Kernel(models.sources, statistics=Statistics(store=store))
    recipe = recipe_of(models, name)
    found = {}
    for step in plan(recipe, models.layout, models.sources):
        found[step.name] = torch.empty(step.tensor.shape, dtype=torch.float16)
        kernel.fill(found[step.name], step, recipe.seed)
    return found


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value.view(torch.int16), theirs[name].view(torch.int16)), name


def computes_nothing(monkeypatch):
    """From here on a statistic that is computed fails the test."""

    def refuse(self, owner, view, tensor, experts, values, compute, stored=Statistics._stored):
        def computed():
            raise AssertionError(f"{owner} of {tensor} is computed again")

        return stored(self, owner, view, tensor, experts, values, computed)

    monkeypatch.setattr(Statistics, "_stored", refuse)


@pytest.mark.parametrize("name", STORED)
def test_a_method_gives_the_same_bytes_with_and_without_the_store(
    models, tmp_path, monkeypatch, name
):
    without = merged(models, name)
    assert_same(merged(models, name, Store(tmp_path, digests_of(models.sources))), without)
    assert list(tmp_path.glob("*/*.safetensors"))
    assert not list(tmp_path.glob("*/*.partial"))
    computes_nothing(monkeypatch)
    assert_same(merged(models, name, Store(tmp_path, digests_of(models.sources))), without)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "another", "lost"])
def test_a_damaged_statistic_is_computed_again(models, tmp_path, monkeypatch, damage):
    store = Store(tmp_path, digests_of(models.sources))
    expected = merged(models, "ties", store)
    first = min(tmp_path.glob("*/*.safetensors"))
    content = first.read_bytes()
    broken = {
        "truncated": content[:-5],
        "flipped": content[:-1] + bytes([content[-1] ^ 1]),
        "emptied": b"",
        "another": content.replace(b"checksum", b"checksam"),
    }
    first.unlink() if damage == "lost" else first.write_bytes(broken[damage])
    assert_same(merged(models, "ties", store), expected)
    assert first.read_bytes() == content
    computes_nothing(monkeypatch)
    assert_same(merged(models, "ties", store), expected)


def test_statistics_of_other_sources_are_not_taken(models, tmp_path):
    base = torch.zeros(100)
    view = View(base, [base + 1], torch.float32)
    other = View(base, [torch.arange(100.0)], torch.float32)
    for digest, own in (("a", view), ("b", other), ("a", view)):
        store = Store(tmp_path, {BASE: "0", "math": digest})
        [found] = Statistics(store=store).of(magnitude_histogram, own, "w", ["math"])
        assert np.array_equal(found.floors, magnitude_histogram(own, 0).floors)
    assert len(list(tmp_path.glob("*/*"))) == 2


def test_a_change_of_the_code_is_another_statistic(tmp_path, monkeypatch):
    store = Store(tmp_path, {BASE: "0", "math": "1"})
    before = store.place(magnitude_histogram, "w", ["math"], torch.float32)
    assert before == store.place(magnitude_histogram, "w", ["math"], torch.float32)
    store_module._version.cache_clear()
    monkeypatch.setattr(store_module.inspect, "getsource", lambda _: "another")
    assert store.place(magnitude_histogram, "w", ["math"], torch.float32) != before
    store_module._version.cache_clear()


def test_two_workers_share_what_they_write_at_the_same_time(models, tmp_path):
    expected = merged(models, "ties")
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            ours = merged(models, "ties", Store(tmp_path, digests_of(models.sources)))
            alike = all(torch.equal(value, ours[name]) for name, value in expected.items())
            os._exit(0 if alike else 1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    files = list(tmp_path.glob("*/*"))
    assert len(files) == 2 * len(models.layout.tensors_of_layer(0))
    assert all(file.suffix == ".safetensors" for file in files)


def test_statistics_are_mapped_files_not_copies(models, tmp_path):
    statistics = Statistics(store=Store(tmp_path, digests_of(models.sources)))
    base = torch.zeros(5000)
    view = View(base, [torch.randn(5000)], torch.float32)
    [found] = statistics.of(magnitude_histogram, view, "w", ["math"])
    assert statistics.nbytes == 0
    address = found.floors.__array_interface__["data"][0]
    with open("/proc/self/maps") as maps:
        [line] = [text for text in maps if _holds(text, address)]
    assert str(tmp_path) in line


def _holds(line, address):
    low, high = (int(part, 16) for part in line.split()[0].split("-"))
    return low <= address < high


def test_a_kill_while_writing_leaves_nothing_that_is_read(models, tmp_path, monkeypatch):
    expected = merged(models, "ties")
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)

        def killed(_, partial, **__):
            partial.write_bytes(b"half a file")
            os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(store_module, "save_file", killed)
        merged(models, "ties", Store(tmp_path, digests_of(models.sources)))
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert len(list(tmp_path.glob("*/*.partial"))) == 1
    assert_same(merged(models, "ties", Store(tmp_path, digests_of(models.sources))), expected)
    tidy(tmp_path)
    assert not list(tmp_path.glob("*/*.partial"))


def test_without_room_on_the_disk_statistics_stay_in_memory(models, tmp_path, monkeypatch, caplog):
    expected = merged(models, "ties")
    monkeypatch.setattr(store_module, "RESERVE", 1 << 60)
    assert_same(merged(models, "ties", Store(tmp_path, digests_of(models.sources))), expected)
    assert not list(tmp_path.glob("*/*.safetensors"))
    assert caplog.text.count("stay in memory") == 1


@dataclass(frozen=True)
class Odd:
    """A statistic with something that no file holds."""

    value: object
    nbytes: int = 8


def odd(view: View, expert: int) -> Odd:
    return Odd({"a"})


def test_a_statistic_that_no_file_holds_stays_in_memory(models, tmp_path):
    statistics = Statistics(store=Store(tmp_path, digests_of(models.sources)))
    base = torch.zeros(10)
    view = View(base, [base], torch.float32)
    for _ in range(2):
        assert statistics.of(odd, view, "w", ["math"]) == [Odd({"a"})]
    assert statistics.of(lambda view, expert: Odd(1), view, "w", ["math"]) == [Odd(1)]
    assert not list(tmp_path.glob("*/*"))


def test_files_are_safetensors_with_their_structure_as_metadata(models, tmp_path):
    merged(models, "ties", Store(tmp_path, digests_of(models.sources)))
    file = next(tmp_path.glob("magnitude_histogram/*.safetensors"))
    with safe_open(file, framework="np") as opened:
        meta = json.loads(opened.metadata()["statistic"])
        arrays = [opened.get_tensor(str(i)) for i in range(len(opened.keys()))]
    assert set(meta["value"]) == {"floors", "counts"}
    assert arrays[meta["value"]["counts"]["array"]][-1] == max(arrays[1])
