"""`evomerge init` writes campaigns that `check` accepts, from models and from mergekit's files."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import tiny
import yaml
from command_line import SCREEN, evomerge
from mergekit_files import EVOLVE, RECIPES, with_models
from typer.testing import CliRunner

from evomerge.cli import app
from evomerge.config import load_campaign


@pytest.fixture
def here(tiny_folder, monkeypatch):
    """The folder that the command is typed in."""
    (tiny_folder / "campaign.yaml").unlink()
    tiny.save_task(tiny_folder / "tasks", "other", task_seed=1)
    monkeypatch.chdir(tiny_folder)
    return tiny_folder


def test_models_and_a_task_are_enough(here):
    models = ["models/base", "models/math", "words=models/lang"]
    result = evomerge("init", *models, "--task", "tasks/pick.yaml", "--no-measure")
    assert result.stdout.strip() == "campaign.yaml"
    assert result.stderr.startswith("reading configs and tasks\n")
    text = (here / "campaign.yaml").read_text()
    assert "# 10 genes for 2 layers and 2 experts" in text
    config = load_campaign(here / "campaign.yaml")
    assert list(config.models.experts) == ["math", "words"]
    assert "10 genes" in evomerge("check", "campaign.yaml", "--no-measure").stdout


def test_asked_nothing_it_asks(here):
    answers = "models/base\nmodels/math\nmodels/lang\n\ntasks/pick.yaml:acc\ntasks/other.yaml\n\n"
    arguments = ["init", "--no-measure", "--out", "deep/c.yaml"]
    result = CliRunner().invoke(app, arguments, input=f"{answers}weakest_link\n2\n", env=SCREEN)
    assert result.exit_code == 0, result.output
    data = yaml.safe_load((here / "deep" / "c.yaml").read_text())
    assert data["fitness"]["objective"] == "weakest_link"
    assert data["fitness"]["include_path"] == "../tasks"
    assert data["models"]["base"] == "../models/base"
    assert data["budget"]["hours"] == 2


def test_nobody_to_answer_is_one_message(here):
    result = CliRunner().invoke(app, ["init"], input="models/base\n", env=SCREEN)
    assert result.exit_code == 2
    assert "type evomerge init BASE EXPERT… --task NAME" in result.output


def test_a_front_of_two_tasks(here):
    tasks = ["--task", "tasks/pick.yaml", "--task", "tasks/other.yaml:acc"]
    evomerge("init", "models/base", "models/math", *tasks, "--goal", "pareto", "--no-measure")
    data = yaml.safe_load((here / "campaign.yaml").read_text())
    assert data["fitness"]["objective"] == {"kind": "pareto", "of": ["pick", "other"]}
    assert data["optimizer"]["kind"] == "nsga2"
    evomerge("check", "campaign.yaml", "--no-measure")


def test_what_is_there_stays(here):
    (here / "campaign.yaml").write_text("mine")
    assert "exists; choose another --out" in evomerge("init", "a", "b", code=2).stderr
    assert (here / "campaign.yaml").read_text() == "mine"


def test_init_is_a_quick_command():
    code = "import sys; from evomerge.cli import init; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def convert(here, text, *arguments):
    models = {path.name: path for path in (here / "models").iterdir()}
    (here / "theirs.yml").write_text(with_models(text, models))
    given = ["--include-path", "tasks", "--out", "ours.yaml", *arguments]
    result = evomerge("init", "--from", "theirs.yml", *given)
    checked = evomerge("check", "ours.yaml", "--no-measure").stdout
    return result, yaml.safe_load((here / "ours.yaml").read_text()), checked


def test_a_file_of_mergekit_evolve_is_a_campaign_with_what_is_lost_in_a_list(here):
    options = ["--evolve-options", "--max-fevals 40 --vllm"]
    result, data, checked = convert(here, EVOLVE["blocks"], *options)
    assert data["budget"] == {"trials": 40}
    assert "without a counterpart: --vllm" in result.stderr
    assert "the base has no chat template" in result.stderr
    assert "# - --vllm" in (here / "ours.yaml").read_text()
    assert "10 genes" in checked


def test_a_recipe_is_a_campaign_that_begins_at_it(here):
    _, data, checked = convert(here, RECIPES["ties"], "--task", "pick")
    assert data["initial"] == ["theirs.yml"]
    assert data["budget"]["trials"] == 100
    assert "4 genes" in checked


@pytest.mark.slow
@pytest.mark.parametrize("name", [*EVOLVE, *RECIPES])
def test_check_accepts_every_form(here, name):
    if name in EVOLVE:
        convert(here, EVOLVE[name], "--evolve-options", "--max-fevals 40")
    else:
        convert(here, RECIPES[name], "--task", "pick")


@pytest.mark.slow
def test_the_first_hour_takes_five_commands(tmp_path):
    """The quickstart's models, and no file opened."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    tasks = [f"--task=tasks/{task}.yaml" for task in ("listops_en", "translate_eo", "listops_eo")]

    def typed(*arguments, folder=tmp_path / "try"):
        command = [sys.executable, "-m", "evomerge", *arguments]
        run = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        return run.stdout

    typed("quickstart", "--to", "try", folder=tmp_path)
    typed("init", "zoo/base", "zoo/math", "zoo/lang", *tasks)
    assert "hours for the budget" in typed("check", "campaign.yaml")
    assert "Trial" in typed("search", "campaign.yaml", "--trials", "24")
    typed("report", "runs/math-lang")
    assert list((tmp_path / "try" / "runs" / "math-lang").rglob("*.html"))


def test_prompts_are_enough_where_there_are_no_labels(here):
    for name in ("math", "lang"):
        lines = "".join(f'{{"prompt": "w{i} w{i + 1}"}}\n' for i in range(40))
        (here / f"{name}.jsonl").write_text(lines)
    command = ["init", "models/base", "models/math", "models/lang", "--no-measure"]
    refused = evomerge(*command, "--prompts", "lang.jsonl", code=2)
    assert "whose are they? write EXPERT=lang.jsonl" in refused.stderr
    refused = evomerge(*command, "--prompts", "art=lang.jsonl", code=2)
    assert "no model is called 'art'; write one of base, math, lang" in refused.stderr
    refused = evomerge(*command, "--prompts", "math=none.jsonl", code=2)
    assert "--prompts math=none.jsonl: no such file" in refused.stderr
    prompts = ["--prompts", "math=math.jsonl", "--prompts", "lang=lang.jsonl"]
    evomerge(*command, *prompts, "--out", "deep/c.yaml")
    data = yaml.safe_load((here / "deep" / "c.yaml").read_text())
    assert data["fitness"]["tasks"][1] == {
        "agreement": {"expert": "lang", "prompts": "../lang.jsonl"}
    }
    result = evomerge("check", "deep/c.yaml")
    assert "agreement with an expert is no accuracy" in " ".join(result.stdout.split())
