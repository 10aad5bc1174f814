"""A campaign with an expert whose units were permuted, from the check to its recipe's merge."""

from __future__ import annotations

import json
import shutil
from contextlib import closing

import pytest
import tiny
import torch
from running import evaluations, run
from transformers import AutoModelForCausalLM

from evomerge.campaign.open import open_workers
from evomerge.campaign.setup import prepare
from evomerge.common.errors import InputError
from evomerge.config import load_campaign
from evomerge.export.merge import merge_file
from evomerge.export.trial import export_trial
from evomerge.models.alignment.git_rebasin import Alignment, Move
from evomerge.models.alignment.permutable_rows import permutable_units
from evomerge.recipe import Recipe
from evomerge.study.run_folder import open_run
from evomerge.workers.job import Job


def permute(folder):
    """Reverse the MLP units and the heads of the model that lies there."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    moves: dict[str, list[Move]] = {}
    for layer, units in enumerate(permutable_units(model.config)):
        for part in (*units.mlps[0], *units.heads.parts):
            order = torch.arange(part.count).flip(0).numpy()
            moves.setdefault(f"model.layers.{layer}.{part.suffix}", []).append(Move(part, order))
    reverse = Alignment(moves, {})
    model.load_state_dict({name: reverse.apply(name, t) for name, t in model.state_dict().items()})
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of two campaigns alike, but that one's expert is permuted, and aligned again."""
    plain, permuted = (tmp_path_factory.mktemp(name) for name in ("plain", "permuted"))
    tiny.save_campaign(plain)
    shutil.copytree(plain, permuted, dirs_exist_ok=True)
    permute(permuted / "models" / "math")
    run(plain, plain / "run", ["budget.trials=3"])
    run(permuted, permuted / "run", ["budget.trials=3", "models.align=[math]"])
    return plain, permuted


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_an_aligned_expert_is_searched_and_exported_as_if_it_never_was_permuted(runs):
    plain, permuted = runs
    assert weights(plain / "models" / "math") != weights(permuted / "models" / "math")
    for folder in runs:
        config, study = open_run(folder / "run")
        values = [(e.split, e.name, e.value) for e in study.evaluations()]
        if folder == plain:
            expected = values
        export_trial(config, study, None, folder / "out", anyway=True)
    assert values == expected
    assert weights(plain / "out") == weights(permuted / "out")


def test_the_recipe_of_an_aligned_expert_merges_to_the_same_bytes(runs, tmp_path):
    out = runs[1] / "out"
    assert json.loads((out / "evomerge.json").read_text())["align"] == ["math"]
    merge_file(out / "recipe.json", tmp_path / "again", {}, None)
    assert weights(tmp_path / "again") == weights(out)
    assert not (out / "mergekit.yaml").exists()
    assert "math is aligned to the base first" in (out / "README.md").read_text()
    shutil.copy(out / "recipe.json", tmp_path)
    sources = json.loads((out / "evomerge.json").read_text())
    (tmp_path / "evomerge.json").write_text(json.dumps(sources | {"align": []}))
    with pytest.raises(InputError, match="was made from another 'math'"):
        merge_file(tmp_path / "recipe.json", tmp_path / "other", {}, None)


def test_workers_use_the_permutations_that_the_check_found(runs, monkeypatch):
    config = load_campaign(runs[1] / "campaign.yaml", ["models.align=[math]"])
    setup = prepare(config)
    assert any("math: aligned to the base" in note for note in setup.models.notes)
    monkeypatch.setattr("evomerge.models.alignment.git_rebasin.align", None)
    [parent] = [e for e in evaluations(runs[1] / "run") if (e.name, e.split) == ("math", "search")]
    with closing(open_workers(setup, runs[1] / "run")) as workers:
        workers.submit(Job(0, Recipe.from_json(parent.recipe), "search"))
        outcome = workers.wait()
    assert outcome.reason is None
    scores = outcome.measurement.scores
    assert {task: v.tolist() for task, v in scores.items()} == {
        task: v.tolist() for task, v in parent.scores.items()
    }
