"""Prompts without labels: a campaign that scores agreement with experts, from file to verdict."""

from __future__ import annotations

import json

import pytest
import tiny
import yaml
from executors import crash
from running import evaluations, facts, run

from evomerge.campaign.setup import prepare
from evomerge.common.errors import InputError
from evomerge.config import load_campaign
from evomerge.fitness.engines.hf import HuggingFace
from evomerge.results.results import Results
from evomerge.study.run_folder import open_run

EXPERTS = ("math", "lang")


def entry(expert, **options):
    return {"agreement": {"expert": expert, "prompts": f"{expert}.jsonl", "tokens": 4, **options}}


def save(folder, tasks=None, **sections):
    """Models of the tiny family, prompts of two experts, and a campaign over them."""
    for place, name in enumerate(EXPERTS):
        prompts = [f"w{(i + place) % 60} w{(7 * i + place) % 60}" for i in range(20)]
        lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
        (folder / f"{name}.jsonl").write_text(lines)
    fitness = {
        "tasks": tasks or [entry(name) for name in EXPERTS],
        "splits": {"search": 0.5, "select": 0.2, "test": 0.3},
        "select_top": 2,
        **sections.pop("fitness", {}),
    }
    tiny.save_campaign(folder, fitness=fitness, **{"budget": {"trials": 4}, **sections})


@pytest.fixture
def asked(monkeypatch):
    """The prompts that experts were asked, a list for each time."""
    calls, answers = [], HuggingFace.expert_answers

    def counted(self, prompts, question):
        calls.append(list(prompts))
        return answers(self, prompts, question)

    monkeypatch.setattr(HuggingFace, "expert_answers", counted)
    return calls


def test_experts_are_asked_once_and_score_one_on_their_own_prompts(tiny_folder, asked):
    save(tiny_folder, fitness={"rungs": [8, "all"]})
    out = run(tiny_folder)
    assert [len(prompts) for prompts in asked] == [20, 20]
    parents = {e.name: e for e in evaluations(out) if (e.role, e.split) == ("parent", "search")}
    for name in EXPERTS:
        own = parents[name].scores[f"agreement_{name}"]
        assert own.tolist() == [1.0] * 10
    assert min(parents["base"].scores["agreement_math"]) < 1
    _, study = open_run(out)
    best = Results(study).best()
    assert set(best["scores"]["test"]["tasks"]) == {"agreement_math", "agreement_lang"}
    [said] = [note for note in best["verdict"]["notes"] if "is no accuracy" in note]
    assert "`math` scores 1 on agreement_math and `lang` scores 1 on agreement_lang" in said


@pytest.mark.slow
def test_a_killed_campaign_goes_on_without_asking_again(tiny_folder, asked, monkeypatch, tmp_path):
    save(tiny_folder)
    whole = facts(run(tiny_folder))
    asked.clear()
    other = tmp_path / "other"
    for jobs in (2, 5):
        crash(tiny_folder, other, monkeypatch, at=jobs)
    assert facts(run(tiny_folder, other)) == whole
    assert [len(prompts) for prompts in asked] == [20, 20]


def test_check_says_that_one_expert_caps_agreement_with_it(tiny_folder):
    save(tiny_folder, [entry("math")])
    setup = prepare(load_campaign(tiny_folder / "campaign.yaml"))
    assert any("math itself scores 1: no merge can beat it" in note for note in setup.models.notes)


@pytest.mark.slow
def test_agreement_with_one_expert_is_said_to_be_capped_by_it(tiny_folder):
    save(tiny_folder, [entry("math")], budget={"trials": 2})
    _, study = open_run(run(tiny_folder))
    verdict = Results(study).best()["verdict"]
    assert not verdict["beats"]
    assert any("no merge can beat it" in note for note in verdict["notes"])
    assert "add prompts of another expert" in verdict["advice"]


@pytest.mark.slow
def test_a_descent_follows_the_divergence_from_the_experts(tiny_folder, asked):
    descent = {"gradient": {"steps": 3, "batch": 6, "check": 3, "rate": 0.1, "from": "lang"}}
    loss = {"surrogate_loss": {"kind": "experts"}}
    save(tiny_folder, [entry("math")], initial=[descent], fitness=loss, budget={"trials": 1})
    out = run(tiny_folder)
    _, study = open_run(out)
    [record] = study.descents()
    assert record.checks[-1][1] < record.checks[0][1]
    assert [len(prompts) for prompts in asked] == [20]  # for scores and losses together


UNKNOWN = "no model is called 'art'; write one of base, lang, math"
PICK = {"tasks": [{"task": "pick"}, entry("math")]}
SERVER = {"kind": "api", "url": "http://x/v1/completions", "reload": "true", "checkpoint": "/none"}


def taught(**teachers):
    loss = {"kind": "experts", "teachers": teachers}
    return {**PICK, "fitness": {"include_path": "tasks", "surrogate_loss": loss}}


REFUSALS = {
    "expert": (
        {"tasks": [entry("math"), entry("art", prompts="math.jsonl")]},
        r"tasks\[1\].agreement.expert: " + UNKNOWN,
    ),
    "teacher": (taught(pick="art"), "surrogate_loss.teachers.pick: " + UNKNOWN),
    "task": (
        taught(sums="math"),
        "surrogate_loss.teachers.sums: no such task; tasks: pick, agreement_math",
    ),
    "own": (taught(agreement_math="lang"), "teachers.agreement_math: it has an expert of its own"),
    "untaught": (
        {**taught(), "initial": [{"gradient": {}}]},
        "surrogate_loss.teachers: pick has no expert to learn from; write teachers: {pick: EXPERT}",
    ),
    "engine": (
        {"fitness": {"engine": SERVER}},
        "agreement_math compares next tokens with an expert's, which fitness.engine api does not",
    ),
    "template": (
        {"tasks": [entry("math", apply_chat_template=True)]},
        "agreement_math has apply_chat_template, but the base model's tokenizer",
    ),
    "file": ({"tasks": [entry("base")]}, r"tasks\[0\].agreement.prompts: .*base.jsonl cannot"),
    "twice": ({"tasks": [entry("math"), entry("math")]}, "or a name of its own"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_compared_is_refused_before_any_work(case, tiny_folder):
    sections, message = REFUSALS[case]
    save(tiny_folder, **sections)
    with pytest.raises(InputError, match=message):
        prepare(load_campaign(tiny_folder / "campaign.yaml"))


def test_an_expert_whose_tokens_the_merge_lacks_is_refused(tiny_folder):
    save(tiny_folder)
    tokenizer = tiny_folder / "models" / "math" / "tokenizer.json"
    data = json.loads(tokenizer.read_text())
    data["model"]["vocab"]["more"] = 64  # beyond the base's rows
    tokenizer.write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"expert: math has a token 'more' \(id 64\) beyond the"):
        prepare(load_campaign(tiny_folder / "campaign.yaml"))


@pytest.mark.parametrize(
    ("source", "message"),
    [("base", "a token 'more' that the merge lacks"), ("union", "no token 'w59', which the merge")],
)
def test_where_tokens_are_matched_all_must_be_shared(source, message, tiny_folder):
    save(tiny_folder)
    tokenizer = tiny_folder / "models" / "math" / "tokenizer.json"
    data = json.loads(tokenizer.read_text())
    data["model"]["vocab"]["more"] = data["model"]["vocab"].pop("w59")
    tokenizer.write_text(json.dumps(data))
    given = [f"models.tokenizer={{source: {source}}}"]
    with pytest.raises(InputError, match=message):
        prepare(load_campaign(tiny_folder / "campaign.yaml", given))


def test_a_prompts_file_may_move_and_not_change(tiny_folder, tmp_path):
    save(tiny_folder)
    before = prepare(load_campaign(tiny_folder / "campaign.yaml")).identity
    moved = tiny_folder.rename(tmp_path / "moved")
    assert prepare(load_campaign(moved / "campaign.yaml")).identity == before
    data = yaml.safe_load((moved / "campaign.yaml").read_text())
    data["fitness"]["tasks"][0]["agreement"]["tokens"] = 5
    (moved / "campaign.yaml").write_text(yaml.safe_dump(data))
    assert prepare(load_campaign(moved / "campaign.yaml")).identity != before
