"""What stands beside the weights of an export: card, mergekit file, where the models lie."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index
from mergekit_oracle import merged_by_mergekit, tensors_in
from merges import thin
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from evomerge.common.errors import InputError
from evomerge.config import DtypeConfig, ModelsConfig
from evomerge.export.card import TaskScore, model_card
from evomerge.export.folder import Measured, export_recipe
from evomerge.export.mergekit_file import mergekit_file
from evomerge.export.parents import Parent, licence_of
from evomerge.materialize.disk.provenance import MergeInputs, load_sources
from evomerge.models.checks.checked_models import check_models
from evomerge.recipe import Merge, Recipe, Slot, load_recipe


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    tiny.save_family(folder)
    return folder


def origin_of(folder, weights="checkpoint"):
    config = ModelsConfig(
        base=str(folder / "base"),
        experts={"math": str(folder / "math"), "lang": str(folder / "lang")},
    )
    return MergeInputs(config, check_models(config), DtypeConfig(weights=weights))


@pytest.fixture(scope="module")
def origin(family):
    return origin_of(family)


def recipe_of(origin, *merges):
    digests = {name: source.digest for name, source in origin.models.sources.items()}
    return Recipe(
        sources=digests, path=[Slot(source="base", layer=i) for i in (0, 1)], merges=merges
    )


def merge(slot, group, method="task_arithmetic", **experts):
    values = {name: {"weight": weight} for name, weight in experts.items()}
    return Merge(slot=slot, group=group, method=method, experts=values)


def some_recipe(origin):
    return recipe_of(origin, merge(0, "mlp", math=0.25, lang=1), merge(None, "head", math=0.123456))


def test_the_card_says_what_was_dropped_at_random(origin):
    recipe = thin(some_recipe(origin), 0.25, "l1")
    parents = [Parent("base", "org/base", "org/base", "mit", "0" * 32)]
    card = model_card(recipe, origin.models.layout, "out", parents, "reason", None, [])
    header, *rows = card[card.index("| tensors") :].splitlines()
    assert "DARE density | DARE rescale" in header
    assert any("0.25 | l1" in row for row in rows)


def test_the_folder_holds_recipe_card_and_mergekit_file(origin, tmp_path):
    recipe = some_recipe(origin)
    out = export_recipe(recipe, origin, tmp_path / "out")
    assert load_recipe(out / "recipe.json") == recipe
    assert yaml.safe_load((out / "mergekit.yaml").read_text())["merge_method"] == "task_arithmetic"
    card = (out / "README.md").read_text()
    matter = yaml.safe_load(card.split("---")[1])
    assert matter == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "evomerge", "mergekit"],
    }
    assert "| layer 0, mlp | task_arithmetic | 0.25 | 1 |" in card
    assert "| head | task_arithmetic | 0.1235 |  |" in card
    assert "| layer 1 | copy of base |  |  |" in card
    assert "evomerge merge recipe.json" in card
    assert "mergekit-yaml mergekit.yaml" in card
    assert "## Scores" not in card
    assert "convert_hf_to_gguf.py" in card
    assert load_sources(out / "evomerge.json").models == {
        "base": origin.config.base,
        **origin.config.experts,
    }
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 2


def test_a_merge_that_is_the_same_everywhere_is_one_row(origin, tmp_path):
    groups = [
        (0, "layer"),
        (1, "layer"),
        (None, "embeddings"),
        (None, "final_norm"),
        (None, "head"),
    ]
    out = export_recipe(
        recipe_of(origin, *(merge(*place, math=0.5) for place in groups)), origin, tmp_path / "out"
    )
    assert "| all | task_arithmetic | 0.5 |" in (out / "README.md").read_text()


def scaled(recipe, scale=0.5):
    first = recipe.path[0].model_copy(update={"scale": scale})
    return recipe.model_copy(update={"path": (first, *recipe.path[1:])})


@pytest.mark.parametrize("source", ["base", "math"])
def test_an_input_scale_of_the_first_layer_stands_in_the_embeddings(origin, tmp_path, source):
    embeddings = Merge(
        slot=None, group="embeddings", method="passthrough", experts={source: {}}, parameters={}
    )
    recipe = scaled(recipe_of(origin, *([embeddings] if source != "base" else [])))
    out = export_recipe(recipe, origin, tmp_path / "out")
    theirs = merged_by_mergekit((out / "mergekit.yaml").read_text(), tmp_path / "theirs")
    ours = tensors_in(out)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_several_methods_are_a_file_for_mergekit_multi_and_the_card_says_so(origin, tmp_path):
    recipe = recipe_of(origin, merge(0, "mlp", math=1), merge(1, "mlp", "ties", math=1))
    out = export_recipe(recipe, origin, tmp_path / "out")
    assert "mergekit-multi mergekit.yaml" in (out / "README.md").read_text()


def test_another_depth_is_refused_where_mergekit_would_keep_the_bases_layer_types(tmp_path):
    """mergekit 0.1.5 fails on it, after all weights are written."""

    settings = {**tiny.llama_config().to_dict(), "head_dim": 8}
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
    keys += ("num_attention_heads", "num_key_value_heads", "tie_word_embeddings")
    config = Qwen3Config(**{key: settings[key] for key in keys})
    for name in ("base", "math", "lang"):
        torch.manual_seed(ord(name[0]))
        Qwen3ForCausalLM(config).save_pretrained(tmp_path / "m" / name)
        tiny.save_tokenizer(tmp_path / "m" / name)
    origin = origin_of(tmp_path / "m")
    path = tuple(Slot(source="base", layer=layer) for layer in (0, 1, 1))
    stacked = recipe_of(origin).model_copy(update={"path": path})
    with pytest.raises(InputError, match=r"leaves .*layer_types.* as they are .* a checkpoint"):
        mergekit_file(stacked, origin)
    mergekit_file(recipe_of(origin), origin)


def test_a_recipe_mergekit_cannot_express_comes_without_its_file_and_the_card_says_why(
    origin, tmp_path
):
    recipe = scaled(recipe_of(origin, merge(None, "embeddings", math=1)))
    out = export_recipe(recipe, origin, tmp_path / "out")
    assert not (out / "mergekit.yaml").exists()
    card = (out / "README.md").read_text()
    assert (
        "There is no `mergekit.yaml`: mergekit cannot express this recipe: path[0] scales" in card
    )
    with pytest.raises(InputError, match="merged by task_arithmetic, which has no word for it"):
        export_recipe(recipe, origin, tmp_path / "x.yaml", "mergekit")
    assert not (tmp_path / "x.yaml").exists()


def test_one_file_formats_write_only_that_file(origin, tmp_path):
    recipe = some_recipe(origin)
    assert export_recipe(recipe, origin, tmp_path, "recipe") == tmp_path / "recipe.json"
    path = export_recipe(recipe, origin, tmp_path / "new" / "m.yaml", "mergekit")
    assert path.read_text().startswith("# For mergekit 0.1.5")
    assert {p.name for p in tmp_path.iterdir()} == {"recipe.json", "new"}
    assert load_recipe(tmp_path / "recipe.json") == recipe
    assert export_recipe(recipe, origin, path, "mergekit") == path, "the same text is there"
    path.write_text("mine")
    with pytest.raises(InputError, match=r"m\.yaml: exists"):
        export_recipe(recipe, origin, path, "mergekit")


def test_an_export_of_an_export_has_its_own_recipe_and_sources(origin, family, tmp_path):
    first = export_recipe(some_recipe(origin), origin, tmp_path / "first")
    config = ModelsConfig(base=str(first), experts={"math": str(family / "math")})
    models = check_models(config)
    again = MergeInputs(config, models, DtypeConfig())
    digests = {name: source.digest for name, source in models.sources.items()}
    recipe = Recipe(sources=digests, path=[Slot(source="base", layer=i) for i in (0, 1)])
    second = export_recipe(recipe, again, tmp_path / "second")
    assert load_recipe(second / "recipe.json") == recipe
    assert json.loads((second / "evomerge.json").read_text())["models"]["base"] == str(first)


def test_models_that_mergekit_would_merge_otherwise_get_no_file(family, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(family, tmp_path / "m")
    weights = tmp_path / "m" / "base" / "model.safetensors"
    tensors = load_file(weights)
    mixed = {**tensors, "model.norm.weight": tensors["model.norm.weight"].float()}
    save_file(mixed, weights, metadata={"format": "pt"})
    origin = origin_of(tmp_path / "m")
    with pytest.raises(InputError, match="several dtypes"):
        mergekit_file(some_recipe(origin), origin)
    mergekit_file(some_recipe(origin), origin_of(tmp_path / "m", "float32"))

    renamed = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(renamed, weights, metadata={"format": "pt"})
    origin = origin_of(tmp_path / "m")
    with pytest.raises(InputError, match=r"stores model\.embed_tokens\.weight under another name"):
        mergekit_file(some_recipe(origin), origin)

    save_file(tensors, weights, metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m" / "math")
    model.resize_token_embeddings(70)
    model.save_pretrained(tmp_path / "m" / "math")
    origin = origin_of(tmp_path / "m")
    with pytest.raises(InputError, match="math has another number of vocabulary rows"):
        mergekit_file(some_recipe(origin), origin)


def test_the_card_names_models_of_the_hub_and_only_those_as_base_models(origin):
    parents = [
        Parent("base", "org/base@v1", "org/base", "apache-2.0", "0" * 32),
        Parent("math", "models/math", None, "not stated", "1" * 32),
    ]
    card = model_card(
        some_recipe(origin), origin.models.layout, "out", parents, "reason", None, ["lm_eval …"]
    )
    matter = yaml.safe_load(card.split("---")[1])
    assert matter["base_model"] == ["org/base"]
    assert matter["base_model_relation"] == "merge"
    assert "| base | `org/base@v1` | apache-2.0 |" in card
    assert "lm_eval …" in card


def test_scores_stand_in_the_card_in_the_hubs_model_index_form(origin, tmp_path):
    scores = [
        TaskScore("gsm8k", "exact_match", 0.5, 0.45, 0.55, 400, "openai/gsm8k"),
        TaskScore("gsm8k.response_tokens", "response_tokens", 81.5, 80, 83, 400, "openai/gsm8k"),
        TaskScore("mine", "acc", 0.25, 0.2, 0.3, 100),
    ]
    out = export_recipe(
        some_recipe(origin), origin, tmp_path / "out", measured=Measured(scores=scores)
    )
    data = ModelCard.load(out / "README.md").data
    assert data.model_name == "out"
    found = {r.dataset_name: r for r in data.eval_results}
    assert {name: r.metric_value for name, r in found.items()} == {
        "gsm8k": 0.5,
        "gsm8k.response_tokens": 81.5,
        "mine": 0.25,
    }
    assert found["gsm8k"].dataset_type == "openai/gsm8k"
    assert found["mine"].dataset_type == "mine"
    assert found["mine"].metric_args == {"interval": [0.2, 0.3], "confidence": 0.95}
    assert "100 documents held out" in found["mine"].metric_name
    [index] = eval_results_to_model_index(data.model_name, data.eval_results)
    assert index == yaml.safe_load(str(data))["model-index"][0]


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({}, "not stated"),
        ({"README.md": "---\nlicense: mit\n---\n# x"}, "mit"),
        ({"README.md": "---\nlicense: other\nlicense_name: llama3\n---\n"}, "llama3"),
        ({"README.md": "---\nlicense: [a, b]\n---\n"}, "a, b"),
        ({"README.md": "# no front matter", "LICENSE.txt": "MIT"}, "see its LICENSE.txt"),
        ({"README.md": "---\n: [\n---\n", "LICENCE": ""}, "see its LICENCE"),
        ({"README.md": "---\nlicense: mit"}, "mit"),
        ({"README.md": "---"}, "not stated"),
    ],
)
def test_licences_are_told_as_found(tmp_path, files, licence):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert licence_of(tmp_path) == licence
