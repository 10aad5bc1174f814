"""Whole campaigns whose experts are not plain checkpoints: searched, exported, merged again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from mergekit_oracle import tensors_in
from running import evaluations, run
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from evomerge.common.errors import InputError
from evomerge.config import DtypeConfig, ModelsConfig, SpaceConfig, load_campaign
from evomerge.export.folder import export_recipe
from evomerge.export.merge import merge_file
from evomerge.export.trial import export_trial
from evomerge.materialize.disk.provenance import MergeInputs
from evomerge.materialize.disk.recipe_models import with_recipes_made
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.memory.resident import Resident
from evomerge.models.checkpoint import open_checkpoint
from evomerge.models.checks.checked_models import check_models
from evomerge.recipe import Recipe
from evomerge.search.spaces.weights import WeightSpace
from evomerge.study.run_folder import open_run


def some_recipe(models, method="ties", **weights):
    digests = {name: source.digest for name, source in models.sources.items()}
    config = SpaceConfig(weights={"method": method, "genes": {"weight": [0, 1.5]}, **weights})
    space = WeightSpace(config, models.layout, digests, seed=3)
    generator = torch.Generator().manual_seed(5)
    return space.decode(torch.rand(space.dimension, generator=generator).double().numpy())


def exported(config, recipe, to):
    return export_recipe(recipe, MergeInputs(config, check_models(config), DtypeConfig()), to)


def assert_resident_like_the_export(models, recipe, out):
    """What is scored in search, and what transformers loads from the export, are one model."""
    resident = Resident(models.layout, Kernel(models.sources), torch.float32)
    resident.write(recipe)
    scored = resident.model.state_dict()
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).state_dict()
    assert scored.keys() == loaded.keys()
    for name in scored:
        assert torch.equal(scored[name], loaded[name]), name


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """A folder with a campaign of one checkpoint and one adapter."""
    folder = tmp_path_factory.mktemp("adapters")
    tiny.save_campaign(folder)
    tiny.save_adapter(folder / "models" / "base", folder / "models" / "lora", r=3)
    return folder


def models_of(folder, **experts):
    specs = {name: str(folder / "models" / place) for name, place in experts.items()}
    return ModelsConfig(base=str(folder / "models" / "base"), experts=specs)


def test_a_campaign_searches_adapters_beside_checkpoints(adapters, tmp_path):
    models = "models.experts={math: models/math, lora: models/lora}"
    place = run(adapters, tmp_path / "run", [models, "budget.trials=3"])
    assert all(not e.failed for e in evaluations(place))
    assert {"math", "lora"} <= {e.name for e in evaluations(place)}
    config = load_campaign(adapters / "campaign.yaml", [models])
    out = export_trial(config, open_run(place)[1], None, tmp_path / "out", anyway=True)
    again, _ = merge_file(out / "recipe.json", tmp_path / "again", {}, None)
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_an_adapter_is_merged_alike_in_search_and_export(adapters, tmp_path):
    config = models_of(adapters, math="math", lora="lora")
    models = check_models(config)
    recipe = some_recipe(models)
    assert_resident_like_the_export(models, recipe, exported(config, recipe, tmp_path / "out"))


def test_an_adapter_merges_to_the_same_bytes_on_two_threads(adapters, tmp_path):
    config = models_of(adapters, math="math", lora="lora")
    recipe = some_recipe(check_models(config))
    one = exported(config, recipe, tmp_path / "one")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        two = exported(config, recipe, tmp_path / "two")
    finally:
        torch.set_num_threads(threads)
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


def test_mergekit_makes_the_same_of_an_adapter(adapters, tmp_path):
    config = models_of(adapters, math="math", lora="lora")
    recipe = some_recipe(check_models(config), "task_arithmetic")
    ours = exported(config, recipe, tmp_path / "ours")
    text = (ours / "mergekit.yaml").read_text()
    merge = MergeConfiguration.model_validate(yaml.safe_load(text))
    options = MergeOptions(
        quiet=True, write_model_card=False, lora_merge_cache=str(tmp_path / "cache")
    )
    run_merge(merge, str(tmp_path / "theirs"), options)
    wanted, found = tensors_in(tmp_path / "theirs"), tensors_in(ours)
    assert wanted.keys() == found.keys()
    for name in found:
        torch.testing.assert_close(found[name], wanted[name], rtol=2**-10, atol=1e-6)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A folder with a campaign and, in `run/`, what transformers' Trainer left of three steps."""
    folder = tmp_path_factory.mktemp("training")
    tiny.save_campaign(folder)
    start = folder / "models" / "base"
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    rows = torch.randint(4, 60, (12, 8), generator=torch.Generator().manual_seed(0))
    trainer = Trainer(
        model,
        TrainingArguments(
            str(folder / "run"),
            max_steps=3,
            save_steps=1,
            learning_rate=1e-2,
            per_device_train_batch_size=4,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        processing_class=AutoTokenizer.from_pretrained(start),
    )
    trainer.train()
    return folder


def test_checkpoints_of_one_training_run_are_experts_like_any_other(training, tmp_path):
    assert (training / "run" / "checkpoint-2" / "optimizer.pt").is_file()
    models = "models.experts={one: run/checkpoint-1, two: run/checkpoint-2, end: run/checkpoint-3}"
    space = "space.weights={method: linear, genes: {weight: [0, 1]}}"
    place = run(training, tmp_path / "run", [models, space, "budget.trials=3"])
    found = evaluations(place)
    assert all(not e.failed for e in found)
    assert {"one", "two", "end"} <= {e.name for e in found if e.role == "parent"}


def test_a_checkpoint_of_a_run_is_a_base_whose_training_state_is_not_exported(training, tmp_path):
    start, end = (str(training / "run" / f"checkpoint-{step}") for step in (1, 3))
    config = ModelsConfig(base=start, experts={"end": end})
    recipe = some_recipe(check_models(config), "task_arithmetic")
    out = exported(config, recipe, tmp_path / "out")
    assert (training / "run" / "checkpoint-1" / "trainer_state.json").is_file()
    assert not {"trainer_state.json", "optimizer.pt", "training_args.bin"} & {
        path.name for path in out.iterdir()
    }
    AutoModelForCausalLM.from_pretrained(out)


@pytest.fixture
def blend(tiny_folder, tmp_path):
    """A folder that holds a recipe and where its models lie, and no weights; and its checkpoint."""
    config = models_of(tiny_folder, math="math", lang="lang")
    out = exported(config, some_recipe(check_models(config)), tmp_path / "checkpoint")
    folder = tmp_path / "blend"
    folder.mkdir()
    for name in ("recipe.json", "evomerge.json"):
        shutil.copy(out / name, folder / name)
    return folder, out


def test_a_campaign_takes_a_recipe_as_an_expert(tiny_folder, blend, tmp_path):
    recipe, checkpoint = blend
    experts = f"models.experts={{math: models/math, blend: {recipe / 'recipe.json'}}}"
    place = run(tiny_folder, tmp_path / "run", [experts, "budget.trials=2"])
    found = evaluations(place)
    assert all(not e.failed for e in found)
    assert "blend" in {e.name for e in found}
    config, study = open_run(place)
    assert config.models.experts["blend"] == str(recipe / "recipe.json")
    digest = open_checkpoint("blend", str(checkpoint)).digest
    assert study.identity["models"]["blend"] == digest


def test_a_recipe_is_merged_once(tiny_folder, blend, monkeypatch):
    folder, checkpoint = blend
    config = models_of(tiny_folder, math="math").model_copy(
        update={"experts": {"blend": str(folder)}}
    )
    first = with_recipes_made(config)
    monkeypatch.setattr("evomerge.materialize.disk.recipe_models.write_merge", None)
    assert with_recipes_made(config) == first
    made = Path(first.experts["blend"])
    weights = (made / "model.safetensors").read_bytes()
    assert weights == (checkpoint / "model.safetensors").read_bytes()


def test_a_merge_of_a_merge_is_made_again_from_its_recipe_alone(tiny_folder, blend, tmp_path):
    folder, checkpoint = blend
    config = ModelsConfig(
        base=str(tiny_folder / "models" / "base"),
        experts={"math": str(tiny_folder / "models" / "math"), "blend": str(checkpoint)},
    )
    out = exported(config, some_recipe(check_models(config)), tmp_path / "out")
    only = tmp_path / "only"
    only.mkdir()
    for name in ("recipe.json", "evomerge.json"):
        shutil.copy(out / name, only / name)
    shutil.rmtree(folder)
    shutil.rmtree(checkpoint)
    again, _ = merge_file(only / "recipe.json", tmp_path / "again", {}, None)
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert (again / "recipe.json").read_bytes() == (out / "recipe.json").read_bytes()


def test_a_recipe_that_does_not_say_where_its_models_lie_is_refused(tiny_folder, blend):
    folder, _ = blend
    (folder / "evomerge.json").unlink()
    with pytest.raises(InputError, match=r"models\.experts\.blend: .*no evomerge\.json beside it"):
        with_recipes_made(
            ModelsConfig(
                base=str(tiny_folder / "models" / "base"),
                experts={"blend": str(folder / "recipe.json")},
            )
        )


def test_a_campaign_searches_the_language_tower_of_a_model_that_sees(tiny_folder, tmp_path):
    base = tiny_folder / "models" / "base"
    text = json.loads((base / "config.json").read_text())
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=63)
    seeing = LlavaForConditionalGeneration(config).to(torch.float16)
    seeing.save_pretrained(tiny_folder / "seeing")
    tiny.save_tokenizer(tiny_folder / "seeing")
    models = "models={base: seeing, experts: {math: models/math, plain: models/base}}"
    place = run(tiny_folder, tmp_path / "run", [models, "budget.trials=2"])
    assert all(not e.failed for e in evaluations(place))
    campaign, study = open_run(place)
    out = export_trial(campaign, study, None, tmp_path / "out", anyway=True)
    merged = LlavaForConditionalGeneration.from_pretrained(out).state_dict()
    own = {n: t for n, t in seeing.state_dict().items() if "vision" in n or "projector" in n}
    assert own
    assert all(torch.equal(merged[name], tensor) for name, tensor in own.items())


@pytest.fixture
def vocabularies(tmp_path, monkeypatch):
    """A folder with a campaign whose expert `lang` has two tokens more than the others."""
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    tiny.save_campaign(tmp_path)
    lang = tmp_path / "models" / "lang"
    model = AutoModelForCausalLM.from_pretrained(lang)
    model.resize_token_embeddings(66)
    model.save_pretrained(lang)
    tokenizer = AutoTokenizer.from_pretrained(lang)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(lang)
    return tmp_path


def test_a_campaign_searches_models_of_several_vocabularies(vocabularies, tmp_path):
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}{{ m.content ~ ' ' }}{% endfor %}")
    tokens = "models.tokenizer={source: union, chat_template: mine.jinja}"
    chat = "fitness.tasks=[{task: pick, num_fewshot: 0, apply_chat_template: true}]"
    overrides = [tokens, chat, "budget.trials=3"]
    place = run(vocabularies, tmp_path / "run", overrides)
    found = evaluations(place)
    # 1. a resume knows the models again, and does nothing twice
    run(vocabularies, place, overrides)
    assert len(evaluations(place)) == len(found)
    # 2. the export has the tokens, the template, and the weights that were scored
    config, study = open_run(place)
    with study:
        out = export_trial(config, study, None, tmp_path / "out", run=place, anyway=True)
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["tokenizer"]["source"] == "union"
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == 65
    said = tokenizer.apply_chat_template([{"role": "user", "content": "w1"}], tokenize=False)
    assert said == "w1 "
    models = check_models(config.models)
    assert_resident_like_the_export(models, Recipe.from_json(recipe), out)
    # 3. another vocabulary is another campaign
    with pytest.raises(InputError, match="belongs to another campaign"):
        run(vocabularies, place, [tokens.replace("mine.jinja", "chatml"), *overrides[1:]])
