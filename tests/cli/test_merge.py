"""`evomerge merge`: recipes and mergekit files to checkpoints, as a user meets it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from command_line import evomerge
from mergekit_oracle import tensors_in
from safetensors.torch import save_file

from evomerge.recipe import load_recipe


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_the_exports_recipe_merges_to_the_same_bytes(done, tmp_path):
    result = evomerge("merge", done / "out" / "recipe.json", "--to", tmp_path / "again")
    assert result.stdout.strip() == str(tmp_path / "again")
    assert weights(tmp_path / "again") == weights(done / "out")


@pytest.mark.slow
def test_the_exports_mergekit_file_gives_the_same_tensors_by_either_tool(done, tmp_path):
    file = done / "out" / "mergekit.yaml"
    evomerge("merge", file, "--to", tmp_path / "ours")
    assert weights(tmp_path / "ours") == weights(done / "out")
    command = Path(sys.executable).with_name("mergekit-yaml")
    subprocess.run([command, file, tmp_path / "theirs"], check=True, capture_output=True)
    ours, theirs = tensors_in(done / "out"), tensors_in(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=2**-10, atol=1e-7)


def test_a_recipe_alone_needs_to_be_told_where_its_models_lie(done, tmp_path):
    shutil.copy(done / "out" / "recipe.json", tmp_path)
    recipe = tmp_path / "recipe.json"
    text = evomerge("merge", recipe, "--to", tmp_path / "x", code=2).stderr.replace("\n", " ")
    assert "add --base PATH --expert lang=PATH --expert math=PATH" in text
    models = done / "models"
    given = ["--base", models / "base", "--expert", f"math={models / 'math'}"]
    last = f"lang={models / 'lang'}"
    evomerge("merge", recipe, *given, "--expert", last, "--to", tmp_path / "out")
    assert weights(tmp_path / "out") == weights(done / "out")
    wrong = f"lang={models / 'math'}"
    text = evomerge("merge", recipe, *given, "--expert", wrong, "--to", tmp_path / "x", code=2)
    assert "was made from another 'lang'" in text.stderr.replace("\n", " ")


def test_models_that_moved_are_asked_for_by_option(done, tmp_path):
    shutil.copytree(done / "models", tmp_path / "moved")
    shutil.copytree(done / "out", tmp_path / "out")
    sources = json.loads((tmp_path / "out" / "evomerge.json").read_text())
    sources["models"]["base"] = str(tmp_path / "gone")
    (tmp_path / "out" / "evomerge.json").write_text(json.dumps(sources))
    merge = ["merge", tmp_path / "out" / "recipe.json", "--to", tmp_path / "again"]
    text = evomerge(*merge, code=2).stderr.replace("\n", " ")
    assert "gone: no such folder" in text
    assert "--base PATH --expert lang=PATH" in text
    evomerge(*merge, "--base", tmp_path / "moved" / "base")
    assert weights(tmp_path / "again") == weights(done / "out")


def test_a_mergekit_file_names_models_from_its_own_folder(done, tmp_path):
    data = {
        "merge_method": "linear",
        "models": [
            {"model": "models/math", "parameters": {"weight": 1}},
            {"model": "models/lang", "parameters": {"weight": 3}},
        ],
        "dtype": "float32",
    }
    (done / "soup.yml").write_text(yaml.safe_dump(data))
    result = evomerge("merge", done / "soup.yml", "--to", tmp_path / "out")
    assert "no base_model" in result.stderr
    ours = tensors_in(tmp_path / "out")
    math, lang = (tensors_in(done / "models" / name) for name in ("math", "lang"))
    for name, tensor in ours.items():
        expected = (math[name].float() + 3 * lang[name].float()) / 4
        torch.testing.assert_close(tensor, expected)
    recipe = load_recipe(tmp_path / "out" / "recipe.json")
    assert list(recipe.sources) == ["base", "lang"]


def test_one_model_passed_through_can_be_converted(done, tmp_path):
    text = f"merge_method: passthrough\nmodels: [{{model: {done / 'models' / 'math'}}}]"
    (tmp_path / "copy.yaml").write_text(text)
    out = tmp_path / "out"
    evomerge("merge", tmp_path / "copy.yaml", "--to", out, "--dtype", "bfloat16")
    theirs = tensors_in(done / "models" / "math")
    for name, tensor in tensors_in(out).items():
        assert torch.equal(tensor, theirs[name].bfloat16())
    evomerge("merge", out / "recipe.json", "--to", tmp_path / "again")
    assert weights(tmp_path / "again") == weights(out)


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("r.json", "{}", [], "r.json: sources"),
        ("r.json", None, [], "cannot be read"),
        ("m.yaml", "merge_method: ranked_ties", [], "'ranked_ties' is unknown"),
        ("m.yaml", "space: {}\nmodels: {}", [], "space: evomerge does not read this key"),
        (
            "m.yaml",
            "merge_method: linear\nmodels: [{model: ./a, parameters: {weight: 1}}]",
            [],
            "no such folder",
        ),
        (
            "m.yaml",
            "merge_method: linear\nmodels: [{model: ./a, parameters: {weight: 1}}]",
            ["--expert", "art=x"],
            "--expert art: ",
        ),
        ("m.yaml", "", ["--expert", "art"], "write it as NAME=MODEL"),
    ],
)
def test_bad_input_to_merge_is_one_clear_message(tmp_path, name, text, options, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    result = evomerge("merge", tmp_path / name, "--to", tmp_path / "out", *options, code=2)
    assert message in result.stderr.replace("\n", " ")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def family(tmp_path):
    """A campaign in whose folder `file.yaml` merges its models."""
    tiny.save_campaign(tmp_path)
    data = {
        "merge_method": "task_arithmetic",
        "base_model": "models/base",
        "models": [
            {"model": f"models/{name}", "parameters": {"weight": 0.5}} for name in ("math", "lang")
        ],
    }
    (tmp_path / "file.yaml").write_text(yaml.safe_dump(data))
    return tmp_path


def refused(folder, command, *options):
    """The one message of a command about the family's models, on one line."""
    file = "file.yaml" if command == "merge" else "campaign.yaml"
    to = {"merge": ["--to", folder / "out"], "search": ["--out", folder / "run"], "check": []}
    result = evomerge(command, folder / file, *to[command], *options, code=2)
    return " ".join(result.output.split())


@pytest.mark.parametrize("command", ["merge", "check", "search"])
def test_of_pickled_weights_every_command_says_how_to_allow_them(command, family):
    model = family / "models/math"
    torch.save(tensors_in(model), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    told = refused(family, command)
    assert "models.experts.math: " in told
    assert "only pickled weights" in told
    assert "models.allow_pickle: true" in told
    assert "--allow-pickle" in told
    assert "lies elsewhere" not in told
    if command == "merge":
        evomerge("merge", family / "file.yaml", "--to", family / "out", "--allow-pickle")
        assert (family / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("command", ["merge", "check", "search"])
def test_a_model_with_nan_is_named_by_every_command(command, family):
    file = family / "models/lang/model.safetensors"
    tensors = tensors_in(family / "models/lang")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    told = refused(family, command)
    assert "models.experts.lang: model.norm.weight holds NaN" in told


def test_a_value_out_of_range_is_named_with_the_file(family):
    path = family / "file.yaml"
    data = yaml.safe_load(path.read_text()) | {"merge_method": "ties", "parameters": {"density": 2}}
    path.write_text(yaml.safe_dump(data))
    found = refused(family, "merge")
    assert "file.yaml: merge of slot 0, layer: " in found
    assert "density is 2, outside [0, 1]" in found


@pytest.mark.slow
def test_an_option_may_name_the_base_with_an_adapter(family):
    tiny.save_adapter(family / "models/base", family / "tuned", r=2)
    models = family / "models"
    evomerge(
        "merge", family / "file.yaml", "--to", family / "alone", "--expert", f"math={family}/tuned"
    )
    both = f"math={models}/base+{family}/tuned"
    evomerge("merge", family / "file.yaml", "--to", family / "both", "--expert", both)
    assert weights(family / "both") == weights(family / "alone")
    told = refused(family, "merge", "--expert", f"math={models}/lang+{family}/tuned")
    assert f"models.experts.math: {models}/lang+{family}/tuned: an adapter on {models}/lang" in told


def test_one_merge_imports_neither_the_search_nor_the_study():
    code = (
        "import sys, evomerge.export.merge\n"
        "sys.exit(', '.join({'optuna', 'lm_eval', 'ray', 'cmaes', 'plotly', 'scipy.stats',"
        " 'evomerge.search', 'evomerge.study'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
