"""`merge`, `quickstart`, and what `export` leaves for others, as a user meets them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from command_line import evomerge
from mergekit_oracle import tensors_in

from evomerge.recipe import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with a finished run in `run/` and its winner in `out/`."""
    folder = tmp_path_factory.mktemp("done")
    tiny.save_campaign(folder)
    evomerge("search", folder / "campaign.yaml", "--out", folder / "run", "--trials", 2)
    evomerge("export", folder / "run", "--to", folder / "out")
    return folder


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_the_exports_recipe_merges_to_the_same_bytes(done, tmp_path):
    result = evomerge("merge", done / "out" / "recipe.json", "--to", tmp_path / "again")
    assert result.stdout.strip() == str(tmp_path / "again")
    assert weights(tmp_path / "again") == weights(done / "out")


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


def test_the_card_has_scores_with_intervals_and_the_commands(done):
    card = (done / "out" / "README.md").read_text()
    best = json.loads(evomerge("best", done / "run", "--json").stdout)
    test = best["scores"]["test"]
    assert f"{test['mean']:.3f} [{test['low']:.3f}, {test['high']:.3f}]" in card
    for row in ("base (parent)", "math (parent)", "average (baseline)", "pick (18 items)"):
        assert row in card
    assert "lm_eval --model hf" in card
    assert f"pretrained={done / 'out'}" in card


def test_the_card_of_another_trial_has_that_trials_scores(done, tmp_path):
    from evomerge.study.run_folder import open_run

    [trial] = [
        e
        for e in open_run(done / "run")[1].evaluations()
        if (e.name, e.split) == ("lang", "search")
    ]
    evomerge("export", done / "run", "--trial", trial.number, "--to", tmp_path / "lang")
    card = (tmp_path / "lang" / "README.md").read_text()
    assert f"| this merge | {trial.value:.3f} [" in card


def test_export_formats_write_one_file(done, tmp_path):
    for name, format in (("recipe.json", "recipe"), ("mergekit.yaml", "mergekit")):
        evomerge("export", done / "run", "--format", format, "--to", tmp_path / name)
        assert (tmp_path / name).read_bytes() == (done / "out" / name).read_bytes()


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


def test_quickstart_copies_a_campaign_that_checks(tmp_path):
    result = evomerge("quickstart", "--to", tmp_path / "try")
    campaign = tmp_path / "try" / "quickstart.yaml"
    assert result.stdout.strip() == str(campaign)
    assert "listops_eo" in evomerge("check", campaign, "--no-measure").stdout
    assert {"README.md", "train.py", "zoo", "tasks"} <= set(os.listdir(tmp_path / "try"))


def test_quickstart_overwrites_nothing(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    assert "not an empty folder" in evomerge("quickstart", "--to", tmp_path, code=2).stderr
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_quickstart_is_a_quick_command():
    code = "import sys; from evomerge.cli import quickstart; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_a_wheel_brings_the_quickstart_along(tmp_path):
    """Needs hatchling, from an index or already there."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "from evomerge.cli.quickstart import quickstart_files; print(quickstart_files())"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "site",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        check=True,
        capture_output=True,
        text=True,
    )
    files = Path(run.stdout.strip())
    assert files == tmp_path / "site" / "evomerge" / "quickstart_files"
    theirs = {p.relative_to(files) for p in files.rglob("*") if p.is_file()}
    source = ROOT / "search_spaces" / "quickstart"
    ours = {p.relative_to(source) for p in source.rglob("*") if p.is_file()}
    assert {p for p in ours if "__pycache__" not in p.parts} == theirs
