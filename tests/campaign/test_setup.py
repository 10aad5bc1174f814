"""What would fail later is refused first, and a study goes on with its own campaign only."""

from __future__ import annotations

import os
import shutil

import pytest
import tiny
import yaml
from running import facts, run
from silent import Silent
from transformers import GPT2Config, GPT2LMHeadModel

from evomerge.campaign.open import open_campaign
from evomerge.campaign.setup import prepare
from evomerge.common.errors import InputError
from evomerge.config import load_campaign
from evomerge.study.run_folder import study_place
from evomerge.study.study import Study


def test_experts_in_another_order_are_another_campaign(whole):
    path = whole.parent / "campaign.yaml"
    data = yaml.safe_load(path.read_text())
    data["models"]["experts"] = dict(reversed(data["models"]["experts"].items()))
    other = whole.parent / "reordered.yaml"
    other.write_text(yaml.safe_dump(data, sort_keys=False))
    config = load_campaign(other)
    assert list(config.models.experts) != list(load_campaign(path).models.experts)
    with (
        pytest.raises(InputError, match=r"belongs to another campaign.*sources"),
        open_campaign(prepare(config), whole, Silent()),
    ):
        pass


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=1", "seed"),
        ("optimizer={kind: random}", "optimizer"),
        ("fitness.splits={search: 0.4, select: 0.3, test: 0.3}", "fitness.splits"),
        ("space.weights.genes={weight: [0, 1]}", "space.weights"),
    ],
)
def test_a_study_of_another_campaign_is_refused_and_untouched(whole, override, key):
    before = facts(whole)
    with pytest.raises(InputError, match=f"belongs to another campaign: {key}"):
        run(whole.parent, overrides=[override])
    assert facts(whole) == before


def change_the_prompt(folder):
    path = folder / "tasks" / "pick.yaml"
    path.write_text(path.read_text().replace("{{q}}", "{{q}} w1"))


def change_an_answer(folder):
    path = folder / "tasks" / "pick.yaml"
    path.write_text(path.read_text().replace("{{answer}}", "{{3 - answer}}"))


def change_the_documents(folder):
    path = folder / "tasks" / "pick.jsonl"
    path.write_text(path.read_text().replace("w1 ", "w2 "))


def change_the_tokenizer(folder):
    path = folder / "models" / "base" / "tokenizer.json"
    path.write_text(path.read_text().replace('"Whitespace"', '"WhitespaceSplit"'))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (change_the_prompt, "fitness.prompts.pick"),
        (change_an_answer, "fitness.prompts.pick"),
        (change_the_documents, "fitness.documents.pick"),
        (change_the_tokenizer, "tokenizer"),
    ],
)
def test_what_would_change_scores_behind_the_studys_back_is_refused(tiny_folder, change, key):
    out = run(tiny_folder, overrides=["budget.trials=1"])
    before = facts(out)
    change(tiny_folder)
    with pytest.raises(InputError, match=f"belongs to another campaign.*{key}"):
        run(tiny_folder)
    assert facts(out) == before


def test_paths_budget_and_workers_may_change_between_runs(whole, tmp_path):
    tiny.save_campaign(tmp_path)  # the same contents elsewhere
    config = load_campaign(tmp_path / "campaign.yaml", ["budget.trials=13"])
    with open_campaign(prepare(config), whole, Silent()):
        pass
    assert (
        Study.read(*study_place(config, whole))
        .campaign["models"]["base"]
        .startswith(os.fspath(tmp_path))
    )


def test_a_measure_that_is_no_task_is_refused_before_any_work(tmp_path):
    tiny.save_campaign(tmp_path)
    options = ["optimizer={kind: map_elites, measures: [nothing]}"]
    with pytest.raises(InputError, match=r"optimizer.measures: 'nothing'"):
        prepare(load_campaign(tmp_path / "campaign.yaml", options))


def test_paths_that_no_checkpoint_could_hold_are_refused_before_the_search(tiny_folder):
    for name in ("base", "math", "lang"):
        config = GPT2Config(
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=64,
            vocab_size=64,
            scale_attn_by_inverse_layer_idx=True,
        )
        model = GPT2LMHeadModel(config)
        shutil.rmtree(tiny_folder / "models" / name)
        model.save_pretrained(tiny_folder / "models" / name)
        tiny.save_tokenizer(tiny_folder / "models" / name)
    tiny.save_campaign(tiny_folder, space={"path": {"kind": "slices"}})
    with pytest.raises(InputError, match=r"space\.path: winners could not be exported.*scaling"):
        prepare(load_campaign(tiny_folder / "campaign.yaml"))


def test_a_split_of_one_document_is_told(tmp_path):
    fitness = {"include_path": "tasks", "tasks": [{"task": "pick"}]}
    fitness["splits"] = {"search": 8, "select": 1, "test": 1}
    notes = prepare(load_campaign(tiny.save_campaign(tmp_path, fitness=fitness))).models.notes
    alone = [note for note in notes if "one document" in note]
    assert [note.split(" has ")[0] for note in alone] == [
        "fitness.splits: select",
        "fitness.splits: test",
    ]
