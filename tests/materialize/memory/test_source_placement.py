"""Where a worker keeps the sources: a matter of sizes and free memory, and told by the check."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
import torch
from transformers import AutoConfig

from evomerge.config import load_campaign
from evomerge.materialize.feed import AHEAD, DeviceCache, Prefetched
from evomerge.materialize.memory.source_placement import (
    Needs,
    feed_of,
    needs_of,
    pinned_room,
    residence,
    statistics_limit,
)
from evomerge.models.open_models import open_models
from evomerge.workers import devices

NEEDS = Needs(sources=60, candidate=15, scoring=10, step=2)


def least_free(wanted):
    """The least free memory at which statistics leave so much."""
    return next(free for free in range(1000) if free - statistics_limit(free) >= wanted)


def test_sources_are_held_from_the_byte_on_from_which_all_fits():
    enough = least_free(60 + 15 + 10 + 2)
    assert residence(NEEDS, enough) == "held"
    assert residence(NEEDS, enough - 1) == "streamed"


def test_sources_are_streamed_as_long_as_a_candidate_fits():
    enough = least_free(15 + 10 + (AHEAD + 2) * 2)
    assert residence(NEEDS, enough) == "streamed"
    assert residence(NEEDS, enough - 1) == "too large"


def test_half_of_the_hosts_memory_is_pinned_by_all_workers_together():
    assert pinned_room(64, 4) * 4 == 32


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny.save_campaign(folder)
    return open_models(load_campaign(folder / "campaign.yaml").models)


def test_needs_are_the_models_own_sizes(sources):
    layout = sources["base"].layout
    stored = {n: sum(s.read(x).nbytes for x in layout.names) for n, s in sources.items()}
    largest = max(torch.Size(t.shape).numel() for t in layout.tensors)
    found = needs_of(sources, layout, torch.float32, batch_size=4)
    assert found.sources == sum(stored.values())
    assert found.candidate == 2 * stored["base"]  # stored in float16
    assert found.step == len(sources) * largest * (2 + 4) + largest * 4
    assert found.scoring == 4 * needs_of(sources, layout, torch.float32, batch_size=1).scoring


@pytest.mark.parametrize("kind", ["gpt2", "mamba", "gemma3n", "gpt_neox", "qwen3_moe"])
def test_what_a_batch_needs_is_known_of_other_architectures(sources, kind):
    source = SimpleNamespace(config=AutoConfig.for_model(kind), dtype=sources["base"].dtype)
    found = needs_of({"base": source}, sources["base"].layout, torch.bfloat16, batch_size=1)
    assert 2**20 < found.scoring < 2**32


def test_the_feed_is_the_chosen_one(sources):
    lane = SimpleNamespace(device=torch.device("cpu"))
    assert isinstance(feed_of("held", sources, lane, 0), DeviceCache)
    assert isinstance(feed_of("streamed", sources, lane, 0), Prefetched)
    assert isinstance(feed_of("too large", sources, lane, 0), Prefetched)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU as far as questions about it go, with so many bytes free of so many."""

    def use(free, total):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, total))

    return use


def with_workers(folder, **workers):
    config = load_campaign(folder / "campaign.yaml")
    return config.model_copy(update={"workers": config.workers.model_copy(update=workers)})


def told(folder, sources, **workers):
    return devices.place_of_sources(with_workers(folder, **workers), sources)


def test_the_check_tells_where_sources_are_kept(tiny_folder, sources, gpu):
    assert told(tiny_folder, sources) == "mapped from their files, on the CPU"
    elsewhere = "on the workers' GPUs if there is room, else streamed"
    assert told(tiny_folder, sources, kind="ray", gpus_per_worker=1) == elsewhere
    gpu(80 * 10**9, 85 * 10**9)
    assert "of 80.0 GB free" in told(tiny_folder, sources)
    assert told(tiny_folder, sources, kind="ray", gpus_per_worker=1, address="auto") == elsewhere
    several = told(tiny_folder, sources, kind="ray", gpus_per_worker=2)
    assert several.startswith("copied from their files to the GPUs")
    gpu(10**6, 10**6)
    assert "lower fitness.batch_size" in told(tiny_folder, sources)


def test_workers_that_share_a_gpu_have_a_part_of_it_each(tiny_folder, sources, gpu):
    gpu(80 * 10**9, 80 * 10**9)
    assert "of 20.0 GB free" in told(tiny_folder, sources, kind="ray", gpus_per_worker=0.25)
    assert "of 80.0 GB free" in told(tiny_folder, sources, kind="ray", gpus_per_worker=1)


@pytest.mark.parametrize(
    ("count", "threads", "workers"), [(3, 2, 3), ("auto", 2, 4), ("auto", 9, 1)]
)
def test_workers_that_share_a_machine_have_a_part_of_its_memory_each(
    tiny_folder, sources, gpu, monkeypatch, count, threads, workers
):
    gpu(80 * 10**9, 80 * 10**9)
    monkeypatch.setattr(devices.os, "cpu_count", lambda: 8)
    memory = SimpleNamespace(available=48)
    monkeypatch.setattr(devices.psutil, "virtual_memory", lambda: memory)
    config = with_workers(tiny_folder, kind="ray", gpus_per_worker=1, count=count)
    assert devices.place(config, sources, threads).room == pinned_room(48, workers)
