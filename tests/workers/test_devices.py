"""The device, dtype and threads of workers, and a GPU's plan as `evomerge check` tells it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny

from evomerge.common import accelerator
from evomerge.common.errors import InputError
from evomerge.config import load_campaign
from evomerge.models.open_models import open_models
from evomerge.workers import devices


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny.save_campaign(folder)
    return open_models(load_campaign(folder / "campaign.yaml").models)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU as far as questions about it go, with so many bytes free of so many."""

    def use(free, total):
        monkeypatch.setattr(accelerator, "available", lambda: "cuda")
        monkeypatch.setattr(accelerator.Accelerator, "memory", lambda self: (free, total))

    return use


def with_workers(folder, **workers):
    config = load_campaign(folder / "campaign.yaml")
    return config.model_copy(update={"workers": config.workers.model_copy(update=workers)})


def told(folder, sources, **workers):
    return devices.sources_line(with_workers(folder, **workers), sources)


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
def test_workers_of_a_machine_pin_half_of_its_memory_among_them(
    tiny_folder, sources, gpu, monkeypatch, count, threads, workers
):
    gpu(80 * 10**9, 80 * 10**9)
    monkeypatch.setattr(devices.os, "cpu_count", lambda: 8)
    memory = SimpleNamespace(available=48)
    monkeypatch.setattr(devices.psutil, "virtual_memory", lambda: memory)
    config = with_workers(tiny_folder, kind="ray", gpus_per_worker=1, count=count)
    assert devices.gpu_memory_plan(config, sources, threads).pinnable == 24 // workers


@pytest.mark.parametrize(
    ("here", "workers", "device"),
    [
        (None, {}, "cpu"),
        ("cuda", {}, "cuda"),
        ("xpu", {}, "xpu"),
        ("mps", {}, "cpu"),
        ("mps", {"device": "mps"}, "mps"),
        ("cuda", {"device": "cpu"}, "cpu"),
        ("cuda", {"kind": "ray"}, "cpu"),
        ("xpu", {"kind": "ray", "gpus_per_worker": 1}, "xpu"),
        (None, {"kind": "ray", "gpus_per_worker": 1}, "cuda"),
    ],
)
def test_workers_compute_on_what_torch_can_use(tiny_folder, monkeypatch, here, workers, device):
    monkeypatch.setattr(accelerator, "available", lambda: here)
    config = with_workers(tiny_folder, **workers)
    assert devices.device_of(config) == device
    assert devices.compute_dtype(config) == ("float32" if device == "cpu" else "bfloat16")


@pytest.mark.parametrize(
    ("here", "wanted", "told"), [(None, "xpu", "a CPU alone"), ("cuda", "mps", "cuda")]
)
def test_a_device_that_is_not_here_is_refused(tiny_folder, monkeypatch, here, wanted, told):
    monkeypatch.setattr(accelerator, "available", lambda: here)
    with pytest.raises(InputError, match=f"{wanted} is asked for, and torch can use {told} here"):
        devices.check_device(with_workers(tiny_folder, device=wanted))
    devices.check_device(with_workers(tiny_folder, device="cpu"))
