"""Models and tasks on a node that does not see the driver's files, and the check that they are."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from calibrated_data import calibrate
from merges import random_recipe

from evomerge.campaign.open import keep_digests
from evomerge.campaign.setup import prepare
from evomerge.common.errors import InputError
from evomerge.config import load_campaign
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.checks.checked_models import check_models
from evomerge.models.checks.digests import digests_of
from evomerge.workers.ray import file_copies as copies
from evomerge.workers.ray.file_copies import file_sets_of, with_copies
from evomerge.workers.worker import Worker, WorkerSpec


class Driver:
    """Reads the driver's files, as the file server does, and counts."""

    def __init__(self, file_sets):
        self.file_sets, self.asked = file_sets, []

    def __call__(self, key, file, start, size):
        self.asked.append((key, file, start))
        return (self.file_sets[key].folder / file).read_bytes()[start : start + size]


@pytest.fixture
def spec(tiny_folder):
    """What a worker is built from, with copies in `node`."""
    given = [f"workers={{kind: ray, copy_to: {tiny_folder / 'node'}}}"]
    setup = prepare(load_campaign(tiny_folder / "campaign.yaml", given))
    digests = {name: source.digest for name, source in setup.models.sources.items()}
    kept = tiny_folder / "statistics"
    keep_digests(setup.models.sources, kept)
    return WorkerSpec(setup.config, setup.items, 1, statistics=kept, digests=digests)


def test_a_worker_measures_the_same_on_copies_when_the_files_are_gone(
    spec, tiny_folder, monkeypatch
):
    monkeypatch.setattr(copies, "PART", 1000)
    setup = prepare(spec.config)
    recipe = setup.space.baselines().popitem()[1]
    expected = Worker(spec).measure(recipe, "search").scores["pick"]
    file_sets = file_sets_of(spec.config)
    driver = Driver(file_sets)
    here = with_copies(spec, file_sets, driver)
    shutil.rmtree(tiny_folder / "models")
    shutil.rmtree(tiny_folder / "tasks")
    worker = Worker(here, elsewhere=True)
    assert worker.measure(recipe, "search").scores["pick"].tolist() == expected.tolist()
    assert len(set(driver.asked)) == len(driver.asked)
    assert {start for _, file, start in driver.asked if file == "model.safetensors"} > {0, 1000}


def test_calibration_files_come_along_and_others_are_refused(spec, tiny_folder):
    folder = tiny_folder / "calibrated"
    files = calibrate(check_models(spec.config.models), folder)
    own = {"statistics": {name: files[name] for name in ("math", "lang")}}
    models = spec.config.models.model_copy(update=own)
    config = spec.config.model_copy(update={"models": models})
    opened = check_models(models)
    recipe = random_recipe(opened, "fisher")
    spec = replace(spec, config=config, digests=digests_of(opened.sources))
    expected = Worker(spec).measure(recipe, "search").scores["pick"]
    here = with_copies(spec, file_sets := file_sets_of(config), Driver(file_sets))
    other = (folder / "lang.safetensors").read_bytes()
    shutil.rmtree(folder)
    worker = Worker(here, elsewhere=True)
    assert worker.measure(recipe, "search").scores["pick"].tolist() == expected.tolist()
    [copy] = Path(here.config.models.statistics["math"]).iterdir()
    copy.write_bytes(other)
    with pytest.raises(InputError, match=r"models\.statistics\.math: .* is another file than"):
        Worker(here, elsewhere=True)


def test_prompts_come_along(spec, tiny_folder):
    (tiny_folder / "p.jsonl").write_text("".join(f'{{"text": "w{i}"}}\n' for i in range(20)))
    given = ["fitness.tasks=[{agreement: {expert: math, prompts: p.jsonl, tokens: 2}}]"]
    setup = prepare(load_campaign(tiny_folder / "campaign.yaml", given))
    config = setup.config.model_copy(update={"workers": spec.config.workers})
    spec = replace(spec, config=config, items=setup.items, teachers=setup.teachers)
    here = with_copies(spec, file_sets := file_sets_of(config), Driver(file_sets))
    (tiny_folder / "p.jsonl").unlink()
    worker = Worker(here, elsewhere=True)
    found = worker.measure(setup.space.parents()["math"], "search").scores["agreement_math"]
    assert found.tolist() == [1.0] * 10


def test_callables_and_their_documents_come_along(spec, tiny_folder):
    (tiny_folder / "beside.py").write_text("FACTOR = 2.0\n")
    code = "import beside\ndef size(model, tokenizer, items):\n    "
    (tiny_folder / "own.py").write_text(code + "return [beside.FACTOR * i['n'] for i in items]\n")
    (tiny_folder / "n [1].jsonl").write_text("".join(f'{{"n": {i}}}\n' for i in range(20)))
    given = ["fitness.tasks=[{callable: own:size, documents: 'n [1].jsonl'}]"]
    config = load_campaign(tiny_folder / "campaign.yaml", given)
    setup = prepare(config)
    config = config.model_copy(update={"workers": spec.config.workers})
    spec = replace(spec, config=config, items=setup.items)
    here = with_copies(spec, file_sets := file_sets_of(config), Driver(file_sets))
    for name in ("own.py", "beside.py", "n [1].jsonl"):
        (tiny_folder / name).unlink()
    worker = Worker(here, elsewhere=True)
    found = worker.measure(setup.space.parents()["math"], "search").scores["size"]
    assert found.max() > 2.0
    assert (found % 2 == 0).all()


def test_the_second_worker_of_a_node_copies_nothing(spec):
    file_sets = file_sets_of(spec.config)
    first, second = Driver(file_sets), Driver(file_sets)
    assert with_copies(spec, file_sets, first) == with_copies(spec, file_sets, second)
    assert first.asked
    assert not second.asked


def test_a_copy_that_was_cut_short_is_made_anew(spec, tiny_folder):
    file_sets = file_sets_of(spec.config)

    def dies(key, file, start, size):
        if file == "model.safetensors":
            raise ConnectionError
        return Driver(file_sets)(key, file, start, size)

    with pytest.raises(ConnectionError):
        with_copies(spec, file_sets, dies)
    Worker(with_copies(spec, file_sets, Driver(file_sets)), elsewhere=True)


def test_files_that_changed_are_copied_again(spec, tiny_folder):
    file_sets = file_sets_of(spec.config)
    with_copies(spec, file_sets, Driver(file_sets))
    path = tiny_folder / "tasks" / "pick.yaml"
    path.write_text(path.read_text() + "\n")
    again = Driver(file_sets_of(spec.config))
    with_copies(spec, again.file_sets, again)
    assert {key for key, _, _ in again.asked} == {"tasks"}


def test_a_node_without_room_is_at_fault(spec, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    file_sets = file_sets_of(spec.config)
    with pytest.raises(OSError, match="No space left") as error:
        with_copies(spec, file_sets, Driver(file_sets))
    assert error.value.errno == errno.ENOSPC


def test_another_model_in_a_nodes_folder_is_refused_by_name(spec, tiny_folder):
    math, lang = tiny_folder / "models" / "math", tiny_folder / "models" / "lang"
    shutil.copy(lang / "model.safetensors", math / "model.safetensors")
    with pytest.raises(InputError, match=r"models\.experts\.math: .*math on .* another model"):
        Worker(spec, elsewhere=True)


def test_other_documents_on_a_node_are_refused(spec, tiny_folder):
    path = tiny_folder / "tasks" / "pick.jsonl"
    path.write_text(path.read_text().replace("w1 ", "w2 "))
    with pytest.raises(InputError, match="the task's documents have changed"):
        Worker(spec, elsewhere=True)


def test_weights_are_read_once_a_machine_for_their_digests(spec, tiny_folder, monkeypatch):
    read = Checkpoint._scanned.func
    counted = []

    def counting(self):
        counted.append(self.name)
        return read(self)

    monkeypatch.setattr(Checkpoint._scanned, "func", counting)
    Worker(spec, elsewhere=True)
    assert counted == [], "the driver, on this machine, has kept them"
    elsewhere = replace(spec, statistics=tiny_folder / "other")
    Worker(elsewhere, elsewhere=True)
    assert sorted(counted) == ["base", "lang", "math"]
    Worker(elsewhere, elsewhere=True)
    assert len(counted) == 3
    os.utime(tiny_folder / "models" / "math" / "model.safetensors")
    Worker(elsewhere, elsewhere=True)
    assert counted[3:] == ["math"], "a file that was touched is read again"


def test_digests_are_checked_where_nothing_can_be_kept(spec, tiny_folder):
    (tiny_folder / "file").write_text("")
    blocked = replace(spec, statistics=tiny_folder / "file" / "statistics")
    Worker(blocked, elsewhere=True)
    wrong = replace(blocked, digests={**spec.digests, "lang": "0" * 32})
    with pytest.raises(InputError, match="another model"):
        Worker(wrong, elsewhere=True)
