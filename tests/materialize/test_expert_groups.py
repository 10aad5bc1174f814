"""Experts of a mixture merged into fewer: what is exact, and that search and export agree."""

import json
from types import MappingProxyType

import numpy as np
import pytest
import torch
from mixtures import is_routed, logits, mixture, with_copies
from tiny import save_tokenizer
from transformers import AutoModelForCausalLM

from evomerge.campaign.calibrate import calibrate_model
from evomerge.common.errors import InputError
from evomerge.export.folder import export_recipe
from evomerge.materialize.disk.provenance import NO_TRUST
from evomerge.materialize.disk.recipe_models import open_inputs
from evomerge.materialize.disk.weight_record import record_weights
from evomerge.materialize.expert_groups import ExpertGroups, leaders_of
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.memory.resident import Resident
from evomerge.materialize.plan import plan
from evomerge.methods.core.calibration_in_recipes import with_calibration
from evomerge.models.checks.digests import calibration_digests
from evomerge.models.mixture import mixture_layers
from evomerge.recipe import Merge, Mixture, Recipe, Slot


def saved(model, folder):
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def opened(folder, statistics=MappingProxyType({}), **experts):
    specs = {"base": str(folder), **{name: str(place) for name, place in experts.items()}}
    place = folder / "recipe.json"
    return open_inputs(specs, place, "checkpoint", NO_TRUST, statistics=statistics)


def recipe_of(inputs, experts, merges=(), **mixture_keys):
    sources = inputs.models.sources
    return Recipe(
        sources={name: source.digest for name, source in sources.items()},
        path=tuple(Slot(source="base", layer=i) for i in range(inputs.models.layout.layers)),
        merges=tuple(merges),
        mixture=Mixture(experts=experts, **mixture_keys) if experts else None,
    )


def resident(inputs, dtype=torch.float32):
    return Resident(inputs.models.layout, Kernel(inputs.models.sources), dtype)


DENSE = {"num_experts_per_tok": 4}  # every token goes to all four: then each mass stays


@pytest.mark.parametrize("permuted", [False, True], ids=["in order", "permuted"])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_copies_merge_without_any_change_of_logits(kind, permuted, tmp_path):
    # every expert is routed to, and has one copy: both halves of the mass go to one expert
    model = with_copies(mixture(kind, **DENSE), {2: 0, 3: 1}, permuted)
    inputs = opened(saved(model, tmp_path / "base"))
    made = resident(inputs)
    made.write(recipe_of(inputs, 2))
    assert made.model.config.num_experts_per_tok == 2
    torch.testing.assert_close(logits(made.model), logits(model), rtol=1e-5, atol=1e-5)


def test_copies_merge_without_change_where_a_token_goes_to_one_expert_of_all(tmp_path):
    # Mixtral's one weight is 1, whatever the mass of the others: groups of any size
    model = with_copies(mixture("mixtral", num_experts_per_tok=1), {2: 0, 3: 0}, permuted=True)
    inputs = opened(saved(model, tmp_path / "base"))
    made = resident(inputs)
    made.write(recipe_of(inputs, 2))
    torch.testing.assert_close(logits(made.model), logits(model), rtol=1e-5, atol=1e-5)


def test_equal_experts_give_the_leaders_own_bytes(tmp_path):
    model = with_copies(mixture(), {1: 0, 2: 0, 3: 0})
    model.state_dict()["model.layers.1.mlp.experts.down_proj"][3] += 1
    inputs = opened(saved(model, tmp_path / "base"))
    made = resident(inputs)
    made.write(recipe_of(inputs, 2))
    found, state = made.model.state_dict(), model.state_dict()
    for name in ("gate_up_proj", "down_proj"):
        place = f"model.layers.1.mlp.experts.{name}"
        assert torch.equal(found[place], state[place][[0, 3]])


@pytest.mark.parametrize(
    "kind",
    [
        *("mixtral", "deepseek_v3"),
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("qwen2_moe", "qwen3_moe", "olmoe")),
    ],
)
def test_an_export_loads_in_transformers_and_says_what_the_search_said(kind, tmp_path):
    inputs = opened(saved(mixture(kind), tmp_path / "base"))
    recipe = recipe_of(inputs, 3)
    made = resident(inputs)
    made.write(recipe)
    out = export_recipe(recipe, inputs, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(out)
    state = loaded.state_dict()
    for name, weight in made.model.state_dict().items():
        assert torch.equal(weight, state[name]), name
        assert not is_routed(name) or len(weight) == 3
    assert torch.equal(logits(made.model), logits(loaded))
    assert made.record(recipe).digest == record_weights(out, recipe, statistics=False).digest
    assert "merges the experts" in (out / "README.md").read_text()


def test_a_model_goes_from_one_number_of_experts_to_another_and_back(tmp_path):
    model = mixture("qwen2_moe")
    inputs = opened(saved(model, tmp_path / "base"))
    made, whole = resident(inputs), recipe_of(inputs, None)
    for experts in (None, 2, 3, 2, None):
        made.write(whole if experts is None else recipe_of(inputs, experts))
        fresh = resident(inputs)
        fresh.write(whole if experts is None else recipe_of(inputs, experts))
        assert torch.equal(logits(made.model), logits(fresh.model))
        counted = sum(weight.numel() for weight in made.model.parameters())
        assert counted == sum(weight.numel() for weight in fresh.model.parameters())
    assert torch.equal(logits(made.model), logits(model))


def test_experts_of_a_merge_are_merged_and_its_derivatives_are_those_of_differences(tmp_path):
    from evomerge.materialize.gradients import CoefficientGradients

    other = saved(mixture(seed=1), tmp_path / "other")
    inputs = opened(saved(mixture(), tmp_path / "base"), other=other)

    def recipe(weight):
        given = {"slot": 1, "group": "layer", "method": "task_arithmetic"}
        merge = Merge(**given, experts={"other": {"weight": weight}}, parameters={"lambda": 1.0})
        return recipe_of(inputs, 2, [merge])

    def loss_at(weight):
        made.write(recipe(weight))
        return sum(float((w.double() ** 3).sum()) for w, s in made.written if s.slot == 1)

    made = resident(inputs)
    expected = (loss_at(0.51) - loss_at(0.49)) / 0.02
    loss_at(0.5)
    found = CoefficientGradients(Kernel(inputs.models.sources), recipe(0.5))
    for weight, step in made.written:
        if found.has_gradient(step):
            found.add(step, 3 * weight**2)
    derivative = next(v for key, v in found.sums().items() if key.parameter == "weight")
    assert derivative == pytest.approx(expected, rel=1e-3)


def test_leaders_are_the_most_used_and_no_two_are_the_same_while_others_are_left():
    similar = np.array([[1, 1, 0.2, 0.9], [1, 1, 0.2, 0.9], [0.2, 0.2, 1, 0], [0.9, 0.9, 0, 1]])
    assert leaders_of(similar, np.array([0.4, 0.3, 0.1, 0.2]), 3) == [0, 3, 2]
    assert leaders_of(similar, np.array([0.4, 0.3, 0.1, 0.2]), 4) == [0, 3, 2, 1]
    assert leaders_of(similar, None, 2) == [0, 2]
    assert leaders_of(similar, None, 3, first=(3,)) == [3, 2, 0]


def test_experts_that_lead_by_the_recipe_keep_their_rows_of_the_router(tmp_path):
    model = mixture()
    inputs = opened(saved(model, tmp_path / "base"))
    made = resident(inputs)
    made.write(recipe_of(inputs, 2, leads={1: (1, 3)}))
    name = "model.layers.1.mlp.gate.weight"
    assert torch.equal(made.model.state_dict()[name], model.state_dict()[name][[1, 3]])


@pytest.mark.parametrize("leads", [{0: (0, 0)}, {0: (4,)}, {2: (0,)}, {0: (0, 1, 2)}])
def test_experts_that_cannot_lead_are_refused(leads, tmp_path):
    inputs = opened(saved(mixture(), tmp_path / "base"))
    with pytest.raises(InputError, match=r"mixture.leads.\d: .* at most 2 of the experts 0 to 3"):
        plan(recipe_of(inputs, 2, leads=leads), inputs.models.layout, inputs.models.sources)


def test_a_recipe_without_a_mixture_is_the_same_text_as_ever(tmp_path):
    inputs = opened(saved(mixture(), tmp_path / "base"))
    assert "mixture" not in recipe_of(inputs, None).to_json()
    assert recipe_of(inputs, 2).digest != recipe_of(inputs, None).digest


@pytest.mark.parametrize(
    ("kind", "changes", "experts", "message"),
    [
        ("mixtral", {}, 4, "mixture.experts: 4, but the model has 4 a layer; write 2 to 3"),
        ("deepseek_v3", {"n_group": 2, "topk_group": 2}, 2, "n_group: 2 fixed groups"),
        ("llama", {}, 2, "LlamaForCausalLM has no experts that could be merged"),
        ("gpt_oss", {"num_local_experts": 4, "head_dim": 8}, 2, "keeps its experts in a way"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(kind, changes, experts, message, tmp_path):
    inputs = opened(saved(mixture(kind, **changes), tmp_path / "base"))
    with pytest.raises(InputError, match=message):
        export_recipe(recipe_of(inputs, experts), inputs, tmp_path / "out")


def test_merge_writes_a_recipe_that_names_a_mixture(tmp_path):
    from evomerge.export.merge import merge_file

    folder = saved(mixture(), tmp_path / "base")
    recipe = recipe_of(opened(folder), 2)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_json()))
    out, _ = merge_file(tmp_path / "recipe.json", tmp_path / "out", {"base": str(folder)}, None)
    assert json.loads((out / "config.json").read_text())["num_local_experts"] == 2
    again, _ = merge_file(out / "recipe.json", tmp_path / "again", {}, None)
    assert (out / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


def calibrated(folder, target):
    words = [" ".join(f"w{(i * 7 + j * 3) % 60}" for j in range(9)) for i in range(12)]
    lines = [json.dumps({"text": text}) for text in words]
    target.with_suffix(".jsonl").write_text("\n".join(lines))
    given = target.with_suffix(".jsonl")
    calibrate_model(str(folder), given, ["router"], target, samples=12, tokens=32)
    return str(target)


def test_groups_by_the_router_count_experts_by_their_use(tmp_path):
    model = with_copies(mixture("qwen3_moe", **DENSE), {2: 0, 3: 1}, permuted=True)
    folder = saved(model, tmp_path / "base")
    inputs = opened(folder, statistics={"base": calibrated(folder, tmp_path / "base.safetensors")})
    recipe = with_calibration(
        recipe_of(inputs, 2, groups="router"), calibration_digests(inputs.models.sources)
    )
    assert [*recipe.calibration] == ["base"]
    made = resident(inputs)
    made.write(recipe)
    torch.testing.assert_close(logits(made.model), logits(model), rtol=1e-5, atol=1e-5)
    # of different experts the mean by frequencies, in the leader's order of units
    other = saved(mixture("qwen3_moe"), tmp_path / "other")
    statistics = {"base": calibrated(other, tmp_path / "other.safetensors")}
    inputs = opened(other, statistics=statistics)
    parts = mixture_layers(inputs.models.layout)[0]
    base = inputs.models.sources["base"]
    groups = ExpertGroups(base).of(parts, Mixture(experts=2, groups="router"))
    used = base.calibration.read("router", parts.router.name)[0]
    assert int(used.argmax()) in groups.leaders
    down = base.read(parts.outward.name)
    for found, leader, shares in zip(
        groups.merged(parts, parts.outward, down), groups.leaders, groups.members, strict=True
    ):
        assert sum(shares.values()) == pytest.approx(1)
        expected = torch.zeros_like(down[0])
        for expert, share in shares.items():
            order = groups.orders.get(expert, torch.arange(down.shape[-1]))
            expected += float(used[expert] / used[[*shares]].sum()) * down[expert][:, order]
            assert share == pytest.approx(float(used[expert] / used[[*shares]].sum()))
        torch.testing.assert_close(found, expected)
        assert leader in shares


def test_groups_by_the_router_without_its_statistics_are_refused_with_the_way_to_them(tmp_path):
    inputs = opened(saved(mixture(), tmp_path / "base"))
    with pytest.raises(InputError, match=r"needs the statistics of routers .*--kinds router"):
        export_recipe(recipe_of(inputs, 2, groups="router"), inputs, tmp_path / "out")
