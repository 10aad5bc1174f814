"""The interface to accelerators, over modules that stand in for torch's."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from evomerge.common import accelerator


class Shared:
    """As much as `torch.cuda` and `torch.xpu` have in common; says what it was asked."""

    default_generators = (torch.Generator(),)

    def __init__(self):
        self.started, self.asked = False, []

    def is_initialized(self):
        return self.started

    def mem_get_info(self, device):
        self.asked.append(device)
        return 3, 5

    def get_device_name(self, device):
        return f"a {device.type}"

    def memory_allocated(self, device):
        return 1

    def memory_reserved(self, device):
        return 2

    def max_memory_allocated(self, device):
        return 4

    def reset_peak_memory_stats(self, device):
        self.asked.append("reset")

    def Stream(self, device):
        return f"stream of {device}"

    def stream(self, stream):
        return nullcontext(stream)

    def current_stream(self, device):
        return f"current of {device}"


APPLES = SimpleNamespace(
    recommended_max_memory=lambda: 100,
    driver_allocated_memory=lambda: 30,
    current_allocated_memory=lambda: 20,
    _get_default_mps_generator=lambda: "mps's generator",
)


@pytest.fixture
def use(monkeypatch):
    def use(kind, module, count=1):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
        monkeypatch.setattr(torch, "get_device_module", lambda device: module)
        return module

    return use


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_every_kind_is_asked_by_the_same_names(use, kind):
    module = use(kind, Shared(), count=2)
    assert accelerator.available() == kind
    first, second = accelerator.accelerators()
    assert (first.device, second.device) == (torch.device(kind, 0), torch.device(kind, 1))
    assert second.memory() == (3, 5)
    assert (second.allocated(), second.reserved(), second.peak()) == (1, 2, 4)
    second.forget_peak()
    assert module.asked == [second.device, "reset"]
    assert second.name == accelerator.device_name(second.device) == f"a {kind}"
    assert second.stream() == f"stream of {kind}:1"
    assert second.current_stream() == f"current of {kind}:1"
    with second.on("one") as stream:
        assert stream == "one"


def test_apples_has_the_hosts_memory_and_no_streams(use):
    use("mps", APPLES)
    [gpu] = accelerator.accelerators()
    gpu.forget_peak()
    assert gpu.memory() == (70, 100)
    assert (gpu.allocated(), gpu.reserved(), gpu.peak()) == (20, 30, 30)
    assert gpu.stream() is None
    assert accelerator.generators() == [torch.default_generator, "mps's generator"]
    assert not accelerator.has_float64(gpu.device)


def test_a_build_for_a_gpu_without_one_has_none(use):
    use("cuda", Shared(), count=0)
    assert accelerator.available() is None
    assert accelerator.accelerators() == []


def test_no_accelerator_is_started_for_its_generators(use):
    module = use("cuda", Shared())
    assert accelerator.generators() == [torch.default_generator]
    module.started = True
    assert accelerator.generators() == [torch.default_generator, *Shared.default_generators]


def test_a_build_for_cpus_has_none(monkeypatch):
    def refuse():
        raise RuntimeError("Cannot access accelerator device when none is available.")

    for answer in (lambda: None, refuse):  # torch from 2.7 on, and 2.6
        monkeypatch.setattr(torch.accelerator, "current_accelerator", answer)
        assert accelerator.available() is None
        assert accelerator.accelerators() == []
        assert accelerator.generators() == [torch.default_generator]
    assert accelerator.device_name(torch.device("cpu")) == "cpu"


def test_float64_is_made_where_there_is_some(monkeypatch):
    asked = torch.ones(3)
    assert accelerator.as_float64(asked).dtype == torch.float64
    monkeypatch.setattr(accelerator, "WITHOUT_FLOAT64", {"cpu"})
    assert accelerator.as_float64(asked).device.type == "cpu"
