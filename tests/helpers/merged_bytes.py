"""The bytes of a merge, in memory and streamed."""

from __future__ import annotations

from pathlib import Path

import tiny
import torch
from calibrated_data import calibrate
from safetensors import safe_open

from evomerge.config import ModelsConfig
from evomerge.materialize.disk import stream
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.memory.resident import Resident
from evomerge.models.checks.checked_models import check_models


def open_family(folder, experts=("math", "lang"), **changes):
    paths = tiny.save_family(folder, experts, **changes)
    models = check_models(
        ModelsConfig(base=str(paths["base"]), experts={e: str(paths[e]) for e in experts})
    )
    calibrate(models, Path(folder) / "statistics")
    return models


def resident_bytes(models, recipe, scratch=1 << 20):
    """Weights of the resident model as the checkpoint's dtype would store them, exactly."""
    resident = Resident(models.layout, Kernel(models.sources, scratch=scratch), torch.float32)
    resident.write(recipe)
    state = resident.model.state_dict()
    stored = {}
    for spec in models.layout.tensors:
        narrow = state[spec.name].to(torch.float16)
        assert torch.equal(narrow.float(), state[spec.name]), "rounded to the checkpoint's dtype"
        stored[spec.name] = narrow
    return stored


def streamed_bytes(models, recipe, folder, **options):
    folder.mkdir()
    files = stream.write_weights(recipe, models.layout, Kernel(models.sources), folder, **options)
    tensors = {}
    for path in files:
        with safe_open(path, framework="pt") as shard:
            tensors.update({name: shard.get_tensor(name) for name in list(shard.keys())})
    return tensors


def assert_same_bytes(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name].view(torch.int16), theirs[name].view(torch.int16)), name
