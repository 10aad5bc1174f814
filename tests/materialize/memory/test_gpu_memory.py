"""The plan of a GPU's memory: where sources lie, which layer goes where; hooks change no number.

There is no GPU here: two are pretended where only sizes count, and the hooks run on the CPU.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
import torch
from paths import REPEATED, by_hand, logits, recipe_of, stepped_logits
from paths import open_models as open_paths
from transformers import AutoConfig, AutoModelForCausalLM

from evomerge.common.errors import InputError
from evomerge.config import load_campaign
from evomerge.materialize.feed import AHEAD, DeviceCache, Prefetched
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.memory import resident as resident_module
from evomerge.materialize.memory.gpu_memory import (
    GpuMemoryPlan,
    Needs,
    device_map,
    needs_of,
    spread,
)
from evomerge.materialize.memory.resident import Resident
from evomerge.methods import methods
from evomerge.models.layout import derive_layout
from evomerge.models.open_models import open_models
from evomerge.recipe import Merge

MIB = 1 << 20
NEEDS = Needs(sources=60, candidate=15, scoring=10, step=2, work=3)


def plan(free):
    return GpuMemoryPlan(NEEDS, free, 0)


def least_free(wanted):
    """The least free memory at which statistics leave so much."""
    return next(free for free in range(1000) if free - plan(free).statistics >= wanted)


def test_sources_are_cached_from_the_byte_on_from_which_all_fits():
    enough = least_free(60 + 15 + 10 + 3)
    assert plan(enough).placement == "cached"
    assert plan(enough - 1).placement == "prefetched"


def test_sources_are_prefetched_as_long_as_a_candidate_fits():
    enough = least_free(15 + 10 + (AHEAD + 2) * 2 + 3)
    assert plan(enough).placement == "prefetched"
    assert plan(enough - 1).placement == "too large"


def test_a_gpu_on_which_no_candidate_fits_is_refused():
    GpuMemoryPlan(NEEDS, 15 + 2, 0).check()
    with pytest.raises(InputError, match=r"needs 0\.0 GB of its GPU before anything is scored"):
        GpuMemoryPlan(NEEDS, 15 + 1, 0).check()


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
    assert found.step == len(sources) * largest * 2
    assert found.work == (len(sources) + 1) * largest * 4
    assert found.scoring == 4 * needs_of(sources, layout, torch.float32, batch_size=1).scoring


def test_a_campaign_on_7_b_has_room_on_one_gpu_of_24_gb_with_its_sources_streamed():
    """As `benchmarks/hardware.py` and the page on hardware have it."""
    config = AutoConfig.for_model(
        "llama",
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32_000,
    )
    source = SimpleNamespace(config=config, dtype=lambda name: torch.bfloat16)
    models, layout = dict.fromkeys(("base", "math", "lang"), source), derive_layout(config)
    needs = needs_of(models, layout, torch.bfloat16, batch_size=4)
    found = GpuMemoryPlan(needs, free=24 * 10**9 - 2**30, pinnable=1 << 40)
    assert found.placement == "prefetched"
    assert needs.candidate < needs.least < 21.5e9 < needs.all
    assert "streamed to the GPU from pinned memory" in str(found)


def test_a_merge_needs_what_its_method_holds(sources):
    layout = sources["base"].layout

    def work(*names):
        known = [methods()[name] for name in names]
        return needs_of(sources, layout, torch.float32, 1, known).work

    entries = max(torch.Size(t.shape).numel() for t in layout.tensors)
    columns = max(t.shape[-1] for t in layout.tensors if len(t.shape) > 1)
    assert work("ties") == work() == 4 * entries * (len(sources) + 1)
    assert work("ties", "tsvm") == 4 * entries * (3 * len(sources) + 1)
    assert work("wudi") >= 4 * len(sources) * 5 * columns**2


@pytest.mark.parametrize("kind", ["gpt2", "mamba", "gemma3n", "gpt_neox", "qwen3_moe"])
def test_what_a_batch_needs_is_known_of_other_architectures(sources, kind):
    source = SimpleNamespace(config=AutoConfig.for_model(kind), dtype=sources["base"].dtype)
    found = needs_of({"base": source}, sources["base"].layout, torch.bfloat16, batch_size=1)
    assert 2**20 < found.scoring < 2**32


def test_the_feed_is_the_chosen_one(sources):
    stream = SimpleNamespace(device=torch.device("cpu"))
    kinds = {"cached": DeviceCache, "prefetched": Prefetched, "too large": Prefetched}
    for free in (1000, least_free(15 + 10 + (AHEAD + 2) * 2 + 3), 1):
        assert type(plan(free).feed(sources, stream)) is kinds.pop(plan(free).placement)
    assert not kinds


def weightless(tied):
    config = AutoConfig.for_model(
        "llama",
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=4,
        vocab_size=1000,
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model


def size_on(model, devices, device):
    homes = {
        name: home
        for name, _ in model.named_parameters()
        for prefix, home in devices.items()
        if name.startswith(prefix)
    }
    named = dict(model.named_parameters())
    return sum(named[n].numel() * named[n].element_size() for n, d in homes.items() if d == device)


@pytest.mark.parametrize("tied", [False, True])
def test_whole_layers_go_to_one_gpu_after_another_about_as_much_to_each(tied):
    model = weightless(tied)
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    devices = device_map(model, {0: whole, 1: whole})
    homes = [devices[f"model.layers.{layer}"] for layer in range(8)]
    assert homes == sorted(homes)
    assert set(homes) == {0, 1}
    sizes = [size_on(model, devices, gpu) for gpu in (0, 1)]
    assert max(sizes) < 0.75 * sum(sizes)
    if tied:
        assert devices["lm_head"] == devices["model.embed_tokens"]


def test_what_does_not_fit_is_refused_and_never_put_on_a_disk():
    model = weightless(False)
    with pytest.raises(InputError, match=r"workers\.gpus_per_worker: .* not fit on the 2 GPUs"):
        device_map(model, {0: 8 * MIB, 1: 8 * MIB})


@pytest.fixture
def hooked(monkeypatch):
    """Residents that are `parallel` have their hooks, but every module on the CPU."""
    monkeypatch.setattr(resident_module, "device_map", lambda model: {"": "cpu"})
    monkeypatch.setattr(
        resident_module,
        "spread",
        lambda model, _: spread(
            model, dict.fromkeys([n for n, _ in model.named_children()], "cpu")
        ),
    )


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2"])
def test_paths_repeat_and_reorder_layers_that_have_hooks(hooked, tmp_path, kind):
    models = open_paths(tmp_path, kind)
    resident = Resident(models.layout, Kernel(models.sources), torch.float32, parallel=True)
    layer = resident.model.get_submodule(models.layout.prefix)[0]
    assert any(hasattr(part, "_hf_hook") for part in layer.modules())
    for path in (REPEATED, REPEATED[::-1], REPEATED[:2]):
        resident.write(recipe_of(models, path))
        torch.testing.assert_close(logits(resident.model), by_hand(models, path), atol=1e-5, rtol=0)
        stepped = stepped_logits(resident.model)
        torch.testing.assert_close(stepped, logits(resident.model), atol=1e-4, rtol=0)


def test_merges_are_written_into_hooked_models_to_the_byte(hooked, tmp_path):
    models = open_paths(tmp_path, experts=("math", "lang"))
    experts = {"math": {"weight": 0.7, "density": 0.4}, "lang": {"weight": 0.5, "density": 0.6}}
    merges = [Merge(slot=s, group="layer", method="ties", experts=experts) for s in range(3)]
    recipe = recipe_of(models, [("base", layer) for layer in range(3)], tuple(merges))
    residents = [
        Resident(models.layout, Kernel(models.sources), torch.float32, parallel=parallel)
        for parallel in (False, True)
    ]
    for resident in residents:
        resident.write(recipe)
    assert torch.equal(*(logits(resident.model) for resident in residents))
