"""What is never done unless the campaign file, or the user, says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from invented import Invented
from starlette.testclient import TestClient
from typer.testing import CliRunner

from evomerge.cli import app
from evomerge.common.errors import InputError
from evomerge.config import DtypeConfig, ModelsConfig
from evomerge.export.folder import export_recipe
from evomerge.export.merge import merge_file
from evomerge.export.parents import licence_of
from evomerge.materialize.disk.provenance import MergeInputs
from evomerge.materialize.disk.recipe_models import with_recipes_made
from evomerge.models.checkpoint import load_config
from evomerge.models.checks.checked_models import check_models
from evomerge.models.tokens.tokenizer import load_tokenizer
from evomerge.recipe import Recipe, Slot
from evomerge.report.pages import dashboard as room
from evomerge.report.pages.dashboard import Content, dashboard
from evomerge.report.pages.report import report_page

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def _edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def models(tiny_folder):
    """Folders of a base and two experts."""
    return {name: tiny_folder / "models" / name for name in ("base", "math", "lang")}


def _config(models, **flags):
    experts = {name: str(folder) for name, folder in models.items() if name != "base"}
    return ModelsConfig(base=str(models["base"]), experts=experts, **flags)


def test_code_beside_a_model_that_transformers_knows_is_never_run(models, tmp_path):
    canary = tmp_path / "canary"
    for folder in models.values():
        (folder / "own.py").write_text(
            f"open({str(canary)!r}, 'w')\n"
            "from transformers import LlamaConfig\n"
            "class Own(LlamaConfig): pass\n"
        )
        _edit(
            folder / "config.json",
            auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "org/model--own.Own"},
        )
        _edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "own.Tokens"]})
    assert check_models(_config(models)).layout.layers == 2
    assert not canary.exists()
    load_config(models["math"], trust_remote_code=True)
    assert canary.exists(), "the code would have been seen to run"


def test_a_tokenizer_of_its_own_code_is_refused(models, tmp_path):
    folder, canary = models["math"], tmp_path / "canary"
    (folder / "own.py").write_text(f"open({str(canary)!r}, 'w')\n")
    _edit(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["own.Slow", "own.Own"]},
        tokenizer_class="Own",
    )
    _edit(folder / "config.json", model_type="own")
    with pytest.raises(InputError, match="tokenizer cannot be loaded"):
        load_tokenizer(folder)
    assert not canary.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("kernel", ["org/kernel@main", {"": "kernels-community/flash-attn"}])
def test_a_config_cannot_ask_for_a_kernel_of_the_hub(models, key, kernel):
    _edit(models["math"] / "config.json", **{key: kernel})
    with pytest.raises(InputError, match=rf"config.json: {key} is .*trust_remote_code"):
        load_config(models["math"], trust_remote_code=False)
    _edit(models["math"] / "config.json", **{key: "sdpa"})
    load_config(models["math"], trust_remote_code=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"num_labels": 10**9},
        {"model_type": "llava", "vision_config": {"num_hidden_layers": 10**9}},
    ],
)
def test_a_config_of_a_billion_parts_is_refused_at_once(models, changes):
    _edit(models["math"] / "config.json", **changes)
    with pytest.raises(InputError, match=r"config.json: num_\w+ is 1000000000"):
        load_config(models["math"], trust_remote_code=False)


@pytest.mark.parametrize("flag", ["allow_pickle", "trust_remote_code"])
def test_a_recipe_from_elsewhere_cannot_grant_itself_trust(models, tmp_path, flag):
    opened = check_models(_config(models))
    recipe = Recipe(
        sources={name: source.digest for name, source in opened.sources.items()},
        path=[Slot(source="math", layer=0), Slot(source="base", layer=1)],
    )
    origin = MergeInputs(_config(models, **{flag: True}), opened, DtypeConfig())
    out = export_recipe(recipe, origin, tmp_path / "out")
    option = f"--{flag.replace('_', '-')}"
    with pytest.raises(InputError, match=rf"evomerge.json: .*with {flag}.*{option}"):
        merge_file(out / "recipe.json", tmp_path / "again", {}, None)
    command = ["merge", str(out / "recipe.json"), "--to", str(tmp_path / "again"), option]
    assert CliRunner().invoke(app, command).exit_code == 0

    inside = {**models, "math": out / "recipe.json"}
    with pytest.raises(InputError, match=rf"models.experts.math: .*models.{flag}: true"):
        with_recipes_made(_config(inside))
    assert with_recipes_made(_config(inside, **{flag: True})).experts["math"] != inside["math"]


OFFLINE = """
import socket, sys
from pathlib import Path

def refuse(*where, **_):
    print("connects to", where, file=sys.stderr)
    raise SystemExit(9)

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from evomerge.config import load_campaign
from evomerge.export.merge import merge_file
from evomerge.campaign.setup import prepare

folder = Path(sys.argv[1])
prepare(load_campaign(folder / "campaign.yaml"))
merge_file(folder / "merge.yaml", folder / "out", {}, None)
"""


def test_nothing_is_fetched_for_models_that_are_folders(tiny_folder):
    (tiny_folder / "merge.yaml").write_text(
        "merge_method: linear\nmodels:\n"
        "- {model: models/math, parameters: {weight: 1}}\n"
        "- {model: models/lang, parameters: {weight: 1}}\n"
    )
    online = {key: text for key, text in os.environ.items() if not key.endswith("_OFFLINE")}
    ran = subprocess.run(
        [sys.executable, "-c", OFFLINE, tiny_folder],
        env=online,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "connects to" not in ran.stderr
    assert ran.returncode == 0, ran.stderr
    assert (tiny_folder / "out/model.safetensors").is_file()


def test_a_model_card_takes_no_markup_from_a_parents(models, tmp_path):
    licence = f"mit | {EVIL} [x](http://evil.example) `y`"
    (models["math"] / "README.md").write_text(f"---\nlicense: {json.dumps(licence)}\n---\n")
    assert licence_of(models["math"]) == licence
    opened = check_models(_config(models))
    recipe = Recipe(
        sources={name: source.digest for name, source in opened.sources.items()},
        path=[Slot(source="math", layer=0), Slot(source="base", layer=1)],
    )
    inputs = MergeInputs(_config(models), opened, DtypeConfig())
    out = export_recipe(recipe, inputs, tmp_path / "out")
    card = (out / "README.md").read_text()
    [row] = [line for line in card.splitlines() if "evil.example" in line]
    assert r"mit \| \</script\>\<script\>" in row
    assert r"\[x\](http" in row


def test_a_study_may_be_called_anything(tmp_path, monkeypatch):
    run = Invented(tmp_path / "run").references().search([0.5])
    content = Content(run.folder)
    monkeypatch.setattr(content.run.study, "name", EVIL)
    monkeypatch.setattr(run.study, "name", EVIL)
    page = TestClient(dashboard(content, ["localhost"]), base_url="http://localhost")
    for text in (page.get("/").text, page.get("/content").text, report_page(run.study)):
        assert "<script>alert" not in text
        assert "<img" not in text
    assert "&lt;script&gt;alert" in page.get("/").text


def test_the_dashboard_listens_to_this_machine_alone_unless_told_otherwise(tmp_path, monkeypatch):
    run, asked = Invented(tmp_path / "run"), []
    monkeypatch.setattr(
        room, "serve", lambda content, listening, host: asked.append((listening, host))
    )
    result = CliRunner().invoke(app, ["dashboard", str(run.folder), "--port", "0"])
    assert result.exit_code == 0, result.output
    [(listening, host)] = asked
    with listening:
        assert (host, listening.getsockname()[0]) == ("127.0.0.1", "127.0.0.1")
