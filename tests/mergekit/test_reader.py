"""mergekit files read as recipes: the same tensors as mergekit's, or a refusal by name."""

from __future__ import annotations

import pytest
import tiny
import torch
import yaml
from mergekit_oracle import merged_by_mergekit, tensors_in

from evomerge.common.errors import InputError
from evomerge.config import DtypeConfig, ModelsConfig
from evomerge.materialize.disk.checkpoint import write_checkpoint
from evomerge.mergekit import from_mergekit, load_mergekit
from evomerge.models.checks.checked_models import check_models

LAYERS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    tiny.save_family(folder, dtype=torch.float32, spread=3.0, num_hidden_layers=LAYERS)
    return folder


def read(text, folder):
    """The text with A, B and BASE standing for the models' folders, and what we make of it."""
    for word, name in (("BASE", "base"), ("A", "math"), ("B", "lang")):
        text = text.replace(f"{word}!", str(folder / name))
    return text, from_mergekit(text)


def assert_mergekit_agrees(text, folder, out):
    """Merge a file by both tools and compare every tensor."""
    text, merge = read(text, folder)
    base, *experts = merge.models.items()
    models = check_models(ModelsConfig(base=base[1], experts=dict(experts)))
    digests = {name: source.digest for name, source in models.sources.items()}
    recipe = merge.recipe(models.layout, digests)
    ours = tensors_in(
        write_checkpoint(recipe, models, DtypeConfig(weights=merge.weights), out / "ours")
    )
    theirs = merged_by_mergekit(text, out / "theirs")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-6, msg=name)


FILES = {
    "linear without a base, few gradient entries": """
merge_method: linear
models:
  - {model: A!, parameters: {weight: [0.1, 0.9, 0.4]}}
  - {model: B!, parameters: {weight: 1}}
""",
    "linear with the base's weight from the whole file's": """
merge_method: linear
base_model: BASE!
models:
  - model: A!
    parameters: {weight: [{filter: mlp, value: 0.3}, {filter: self_attn, value: [0, 1]}]}
  - {model: B!}
parameters: {weight: 0.25, normalize: false}
""",
    "slerp with the usual filters": """
merge_method: slerp
base_model: A!
slices:
  - sources:
      - {model: A!, layer_range: [0, 6]}
      - {model: B!, layer_range: [0, 6]}
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - value: 0.5
dtype: float32
""",
    "task arithmetic in three slices": """
merge_method: task_arithmetic
base_model: BASE!
slices:
  - sources:
      - {model: BASE!, layer_range: [0, 1], parameters: {weight: 7}}
      - {model: A!, layer_range: [0, 1], parameters: {weight: [0.2, 0.8]}}
      - {model: B!, layer_range: [0, 1], parameters: {weight: -0.1}}
  - sources:
      - {model: A!, layer_range: [1, 4], parameters: {weight: [0.2, 0.8]}}
      - {model: BASE!, layer_range: [1, 4]}
    parameters: {lambda: 0.5}
  - sources:
      - {model: BASE!, layer_range: [4, 6]}
      - {model: A!, layer_range: [4, 6]}
      - {model: B!, layer_range: [4, 6]}
    parameters: {weight: 0.35}
parameters: {normalize: [true, false, true]}
""",
    "ties with mergekit's own defaults": """
merge_method: ties
base_model: BASE!
models:
  - {model: BASE!}
  - {model: A!, parameters: {weight: 1, density: [{filter: "*", value: [1, 0.31, 0.1]}]}}
  - {model: B!, parameters: {weight: [{filter: lm_head, value: 0.9}, {value: 4e-1}]}}
parameters: {lambda: 0.9}
tokenizer_source: base
out_dtype: float32
""",
    "dare_ties with mergekit's own defaults, which drop nothing": """
merge_method: dare_ties
base_model: BASE!
models:
  - {model: A!, parameters: {weight: 0.8}}
  - {model: B!, parameters: {weight: 0.5}}
""",
    "numbers in filters are the result's for all models and the model's own for one": """
merge_method: task_arithmetic
base_model: BASE!
slices:
  - sources:
      - {model: BASE!, layer_range: [0, 4]}
      - {model: A!, layer_range: [0, 4]}
  - sources:
      - {model: BASE!, layer_range: [2, 6]}
      - model: A!
        layer_range: [2, 6]
        parameters: {weight: [{filter: layers.5., value: 0.9}, {value: 0.2}]}
parameters:
  weight: [{filter: layers.3., value: 0.7}, {value: 0.4}]
  lambda: [{filter: layers.5., value: 0.5}, {filter: layers.2., value: 0.3}, {value: 1}]
""",
    "one layer again and again": """
merge_method: passthrough
slices:
  - sources: [{model: A!, layer_range: [0, 6]}]
  - sources: [{model: A!, layer_range: [5, 6]}]
  - sources: [{model: B!, layer_range: [5, 6], parameters: {scale: [0.5, 0.25]}}]
  - sources: [{model: A!, layer_range: [2, 6]}]
""",
    "layers passed through from two models": """
merge_method: passthrough
slices:
  - sources: [{model: A!, layer_range: [0, 2], parameters: {scale: [0.5, 1]}}]
  - sources: [{model: B!, layer_range: [2, 6]}]
""",
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_a_mergekit_file_merges_to_mergekits_tensors(folder, tmp_path, text):
    assert_mergekit_agrees(text, folder, tmp_path)


def test_models_are_named_by_their_folders_and_the_base_comes_first(folder):
    _, merge = read(FILES["ties with mergekit's own defaults"], folder)
    assert merge.models == {n: str(folder / n) for n in ("base", "math", "lang")}
    again = from_mergekit(
        "merge_method: linear\nmodels: [{model: a/x y}, {model: b/base}, {model: c/base@v1}]"
    )
    assert list(again.models) == ["base", "base_2", "base_3"]


@pytest.mark.parametrize(
    ("keys", "weights"),
    [
        ("", "checkpoint"),
        ("dtype: bfloat16", "bfloat16"),
        ("dtype: float32\nout_dtype: float16", "float16"),
        ("out_dtype: torch.bfloat16", "bfloat16"),
    ],
)
def test_the_result_is_rounded_to_out_dtype_else_to_dtype(keys, weights):
    text = f"merge_method: passthrough\nmodels: [{{model: a/x}}]\n{keys}"
    assert from_mergekit(text).weights == weights


def test_differences_from_mergekit_are_noted():
    notes = from_mergekit(
        "merge_method: dare_ties\nbase_model: b\nmodels: [{model: a, parameters: {weight: 1}}]\n"
        "parameters: {rescale: true}\nchat_template: auto"
    ).notes
    assert "own masks" in notes[0]
    assert "no base_model" in from_mergekit("merge_method: linear\nmodels: [{model: a}]").notes[0]


GOOD = {
    "merge_method": "ties",
    "base_model": "org/base",
    "models": [{"model": "org/a", "parameters": {"weight": 1}}],
}


def sources(*ranges):
    return {"sources": [{"model": m, "layer_range": r} for m, r in zip("ab", ranges, strict=False)]}


SLICED = {"merge_method": "linear", "models": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_method": "ranked_ties"}, "merge_method: 'ranked_ties' is unknown; did you mean '"),
        ({"colour": 1}, "colour: evomerge does not read this key"),
        ({"modules": {}}, "modules: evomerge does not read"),
        ({"merge_method": None}, "merge_method"),
        ({"tokenizer_source": "base", "tokenizer": {}}, "either tokenizer or tokenizer_source"),
        ({"tokenizer": {"source": "org/c"}}, r"tokenizer\.source: org/c is not read"),
        ({"tokenizer_source": "org/c"}, "none of the file's models"),
        ({"tokenizer": {"tokens": {"w": {"source": "org/c"}}}}, r"tokenizer\.tokens: org/c is not"),
        ({"tokenizer": {"tokens": {"w": {"force": True}}}}, "force needs a source"),
        ({"chat_template": "chatlm"}, "chat_template: 'chatlm' is no template; give one of chatml"),
        ({"dtype": "float64"}, "dtype: float64 is not written"),
        ({"parameters": {"rescale": True}}, r"parameters\.rescale: evomerge's ties has no such"),
        ({"parameters": {"densty": 0.5}}, "did you mean 'density'"),
        ({"parameters": {"density": "high"}}, r"parameters\.density: 'high' is neither a number"),
        ({"parameters": {"density": [{"value": 1, "filtr": "x"}]}}, "not of the form"),
        ({"parameters": {"lambda": float("nan")}}, "is not finite"),
        (
            {"models": [{"model": "org/a", "parameters": {"weight": 1, "lambda": 0.5}}]},
            r"models\[0\]\.parameters\.lambda: 'lambda' of ties is not read here",
        ),
        ({"base_model": None}, "base_model: ties needs one"),
        ({"models": None}, "either 'models' or 'slices'"),
        ({"models": [{"model": "org/base"}]}, "ties needs a model beside the base"),
        ({"models": GOOD["models"] * 2}, "org/a is listed twice"),
        (
            {"models": [{"model": "org/a+org/lora"}]},
            r"adapter on org/a; .* onto the base, org/b",
        ),
        ({"base_model": "org/base+org/lora"}, "base_model: .*an adapter is no base; merge it"),
        ({"models": [{"model": {"path": "x", "kind": 1}}]}, r"models\.0\.model: expected text"),
        ({"merge_method": "slerp", "models": [{"model": "a"}, {"model": "b"}]}, "takes 2 models"),
        ({"merge_method": "passthrough", "models": [{"model": "a"}]}, "takes one model"),
        (SLICED | {"slices": [sources([4, 4])]}, r"slices\[0\]: layer_range \[4, 4\] has no"),
        (SLICED | {"slices": [sources([0, 4], [1, 5])]}, r"slices\[0\]: .* several layer_range"),
        (SLICED | {"slices": [sources([0, 4]) | {"residual_weight": 1}]}, "residual_weight"),
        (SLICED | {"slices": [sources([0, 4]) | {"base_model": "c"}]}, "a base of its own"),
        (
            SLICED | {"slices": [sources([0, 4]), sources([4, 6], [4, 6])]},
            r"slices\[1\]: it has more sources",
        ),
        (SLICED | {"merge_method": "ties", "slices": [sources([0, 4])]}, "among its sources"),
    ],
)
def test_what_is_not_read_is_refused_by_name(change, message):
    with pytest.raises(InputError, match=f"file.yaml: .*{message}"):
        from_mergekit(yaml.safe_dump({**GOOD, **change}), "file.yaml")


FORMS = {
    "one text": {"model": "org/base+org/tuned"},
    "a mapping": {"model": {"model": "org/base", "lora": "org/tuned"}},
    "paths": {"model": {"model": {"path": "org/base"}, "lora": {"path": "org/tuned"}}},
    "lora beside model": {"model": "org/base", "lora": "org/tuned"},
}


@pytest.mark.parametrize("form", FORMS)
def test_an_adapter_on_the_base_is_an_expert_that_is_its_folder(form):
    merge = from_mergekit(yaml.safe_dump({**GOOD, "models": [FORMS[form], *GOOD["models"]]}))
    assert merge.models == {"base": "org/base", "tuned": "org/tuned", "a": "org/a"}
    assert any("mergekit ignores it" in note for note in merge.notes) == (form[:4] == "lora")


@pytest.mark.parametrize(
    "spec", ["./base+ads/tuned", "{}/base+ads/tuned", "here/../base+ads/tuned"]
)
def test_the_base_of_an_adapter_may_be_named_by_another_path(spec, tmp_path):
    for folder in ("base", "here", "ads/tuned"):
        (tmp_path / folder).mkdir(parents=True)
    models = [{"model": spec.format(tmp_path)}, *GOOD["models"]]
    (tmp_path / "file.yaml").write_text(
        yaml.safe_dump({**GOOD, "base_model": "base", "models": models})
    )
    merge = load_mergekit(tmp_path / "file.yaml")
    assert merge.models == {"base": "base", "tuned": "ads/tuned", "a": "org/a"}


def test_without_a_base_model_adapters_say_what_the_base_is():
    entries = [{"model": "org/a"}, {"model": "org/b@v1+org/tuned@main"}]
    file = {"merge_method": "linear", "models": entries, "parameters": {"weight": 1}}
    merge = from_mergekit(yaml.safe_dump(file))
    assert merge.models == {"base": "org/b@v1", "a": "org/a", "tuned": "org/tuned@main"}


def test_a_model_without_a_needed_parameter_is_named(folder):
    entries = [{"model": "a", "parameters": {"weight": 1}}, {"model": "org/b"}]
    merge = from_mergekit(yaml.safe_dump({**GOOD, "models": entries}))
    models = check_models(
        ModelsConfig(base=str(folder / "base"), experts={"x": str(folder / "math")})
    )
    with pytest.raises(InputError, match=r"'weight' is missing for b \(org/b\), tensor model"):
        merge.recipe(models.layout, dict.fromkeys(merge.models, ""))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {
                "models": [
                    {"model": "a", "parameters": {"weight": {"filter": "q_proj", "value": 1}}}
                ]
            },
            r"'weight' is missing for a \(a\), tensor model\.layers\.0\.self_attn\.k_proj",
        ),
        (
            SLICED | {"slices": [sources([4, 8])], "parameters": {"weight": 1}},
            r"layer_range \[4, 8\]: the models have layers 0 to 5",
        ),
    ],
)
def test_what_does_not_fit_the_models_is_refused(folder, change, message):
    merge = from_mergekit(yaml.safe_dump({**GOOD, **change}))
    models = check_models(
        ModelsConfig(base=str(folder / "base"), experts={"x": str(folder / "math")})
    )
    with pytest.raises(InputError, match=message):
        merge.recipe(models.layout, dict.fromkeys(merge.models, ""))


def test_a_filter_on_some_tensors_of_a_module_gives_merges_of_their_own(folder):
    density = [{"filter": "0.self_attn.q_proj", "value": 0.1}, {"value": 1}]
    merge = from_mergekit(yaml.safe_dump({**GOOD, "parameters": {"density": density}}))
    models = check_models(
        ModelsConfig(base=str(folder / "base"), experts={"x": str(folder / "math")})
    )
    recipe = merge.recipe(models.layout, dict.fromkeys(merge.models, ""))
    found = {(m.slot, m.group): m.experts["a"]["density"] for m in recipe.merges}
    assert found.pop((0, "self_attn.q_proj.weight")) == 0.1
    assert set(found.values()) == {1.0}
    assert (0, "self_attn.k_proj.weight") in found
    assert (0, "mlp") in found
    assert (1, "layer") in found


def test_a_file_that_cannot_be_read_is_refused_with_its_name(tmp_path):
    path = tmp_path / "merge.yaml"
    with pytest.raises(InputError, match=r"merge\.yaml: cannot be read"):
        load_mergekit(path)
    path.write_text("models: [")
    with pytest.raises(InputError, match=r"merge\.yaml: not valid YAML"):
        load_mergekit(path)
    path.write_text("- 1")
    with pytest.raises(InputError, match=r"merge\.yaml: expected a mapping"):
        load_mergekit(path)
