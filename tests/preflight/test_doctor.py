"""`evomerge doctor` says what a bug report needs, and what is wrong."""

from __future__ import annotations

import json
from collections import namedtuple

from command_line import evomerge

from evomerge.common import accelerator
from evomerge.preflight import doctor


def test_the_screen_has_versions_devices_memory_and_disk(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    text = evomerge("doctor").stdout
    for word in ("evomerge  0.", "torch ", "transformers ", "CPU", "GPU", "memory", "disk"):
        assert word in text
    assert "HF_HUB_OFFLINE=1" in text
    assert "secret" not in text
    assert len(text.splitlines()) < 24


def test_json_is_one_object():
    found = json.loads(evomerge("doctor", "--json").stdout)
    assert {name for name, _ in found["facts"]} >= {"evomerge", "packages", "memory", "disk"}


def test_a_missing_and_a_wrong_package_are_named_with_the_way_out(monkeypatch):
    needs = ["cmaes>=99", "no-such-package>=1", "pytest<1; extra == 'test'"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: needs)
    old, missing = doctor._wrong_versions()
    assert old.startswith("cmaes is 0.")
    assert old.endswith("pip install 'cmaes>=99'")
    assert missing == "no-such-package is missing; pip install 'no-such-package>=1'"


def test_a_full_disk_is_wrong(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: usage(8 << 30, 0, 1 << 30))
    found = doctor.Findings()
    doctor._disk(found)
    assert any("less than 20.0 GB free" in text for text in found.wrong)


def test_a_gpu_that_torch_is_not_built_for_is_wrong(monkeypatch):
    monkeypatch.setattr(doctor, "_driver", lambda: "NVIDIA H200, 570.1")
    monkeypatch.setattr(accelerator, "available", lambda: None)
    monkeypatch.setattr(doctor, "_build", lambda: doctor.FOR_CPUS)
    found = doctor.Findings()
    doctor._devices(found)
    assert any("torch is built for CPUs" in text for text in found.wrong)
