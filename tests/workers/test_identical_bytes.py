"""A recipe's weights are the same bytes by every way: in place, streamed, threads, workers."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
import tiny
import torch
from calibrated_data import calibrate
from merges import random_recipe, thin
from safetensors.torch import load_file

from evomerge.campaign.setup import prepare
from evomerge.config import load_campaign
from evomerge.materialize.disk.stream import write_weights
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.statistics.statistics import Statistics
from evomerge.materialize.statistics.store import Store
from evomerge.methods import methods
from evomerge.models.checks.checked_models import check_models
from evomerge.models.checks.digests import digests_of
from evomerge.workers.worker import Worker, WorkerSpec

LAYERS = 11
DROPPED = [
    name for name, m in methods().items() if "lambda" in m.parameters and not m.needs_position
]
MERGES = [*((name, False) for name in methods()), *((name, True) for name in DROPPED)]
"""Every method, and whether it merges what a random drop leaves."""


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """Tensors so large that torch shares one among threads."""
    folder = tmp_path_factory.mktemp("campaign")
    tiny.save_task(folder / "tasks")
    tiny.save_family(
        folder / "models", hidden_size=192, intermediate_size=336, num_hidden_layers=LAYERS
    )
    config = load_campaign(tiny.save_campaign(folder))
    files = calibrate(check_models(config.models), folder / "statistics")
    models = config.models.model_copy(update={"statistics": files})
    return prepare(config.model_copy(update={"models": models}))


@pytest.fixture(scope="module")
def places(setup):
    """A matrix for each of `MERGES`: (slot, group)."""
    found = [
        (layer, tensor.suffix)
        for layer in range(LAYERS)
        for tensor in setup.models.layout.tensors_of_layer(layer)
        if len(tensor.shape) == 2
    ]
    return dict(zip(MERGES, found[: len(MERGES)], strict=True))


@pytest.fixture(scope="module")
def recipe(setup, places):
    """All of `MERGES`."""
    merges = []
    for number, ((method, dropped), (slot, group)) in enumerate(places.items()):
        made = random_recipe(setup.models, method, seed=number)
        [merge] = (thin(made) if dropped else made).merges[:1]
        merges.append(merge.model_copy(update={"slot": slot, "group": group}))
    return made.model_copy(update={"merges": tuple(merges)})


def spec_of(setup, folder, threads):
    return WorkerSpec(
        setup.config,
        setup.items,
        threads,
        statistics=folder,
        digests=digests_of(setup.models.sources),
    )


def fingerprint(tensor):
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def written(spec, recipe):
    """In a new worker of this process: name → hash of the weight, one of float16 in float32."""
    worker = Worker(spec)
    worker._engine.load(recipe)
    assert torch.get_num_threads() == spec.threads
    weights = worker._engine._resident.model.state_dict()
    narrow = {name: value.to(torch.float16) for name, value in weights.items()}
    assert all(torch.equal(narrow[name].float(), weights[name]) for name in narrow)
    return {name: fingerprint(value) for name, value in narrow.items()}


def written_by_two(spec, recipe):
    """In two new workers, processes that write at once and share their statistics."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
        found = [processes.submit(written, spec, recipe) for _ in range(2)]
        assert len(processes._processes) == 2
        return [one.result() for one in found]


def streamed(setup, recipe, statistics, to):
    store = Store(statistics, digests_of(setup.models.sources)) if statistics else None
    kernel = Kernel(setup.models.sources, statistics=Statistics(store=store))
    to.mkdir()
    [file] = write_weights(recipe, setup.models.layout, kernel, to)
    return {name: fingerprint(value) for name, value in load_file(file).items()}


@pytest.fixture
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.slow
def test_in_place_streamed_on_threads_and_on_workers_weights_are_the_same_bytes(
    setup, recipe, tmp_path
):
    kept = tmp_path / "statistics"
    first, second = written_by_two(spec_of(setup, kept, threads=1), recipe)
    assert list(kept.iterdir())
    assert second == first
    for threads, statistics in ((1, None), (2, kept), (2, None), (4, tmp_path / "new"), (4, None)):
        torch.set_num_threads(threads)
        assert written(spec_of(setup, statistics, threads), recipe) == first
        to = tmp_path / f"{threads} {statistics and statistics.name}"
        assert streamed(setup, recipe, statistics, to) == first


@pytest.mark.slow
def test_the_merge_command_gives_the_workers_bytes_whatever_omp_num_threads_says(
    setup, recipe, tmp_path
):
    first = written(spec_of(setup, tmp_path / "statistics", threads=1), recipe)
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe.to_json()))
    models = setup.models.sources
    given = [f"--expert={name}={models[name].folder}" for name in models if name != "base"]
    given += [f"--statistics={name}={s.calibration.path}" for name, s in models.items()]
    for threads in ("1", "2", "4"):
        to = tmp_path / threads
        command = ["merge", str(file), f"--to={to}", f"--base={models['base'].folder}", *given]
        subprocess.run(
            [sys.executable, "-m", "evomerge", *command],
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            check=True,
        )
        weights = load_file(to / "model.safetensors")
        assert {name: fingerprint(value) for name, value in weights.items()} == first
