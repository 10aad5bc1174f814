"""Agreement with an expert: the share of its own greedy tokens that a model would say, too."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from evomerge.common.errors import InputError
from evomerge.fitness.expert_answers import Experts
from evomerge.fitness.inference.local_model import Local, make_lm
from evomerge.fitness.tasks.task_set import TaskSet, list_items

PROMPTS = [{"prompt": f"q : w{i} w{i + 2} a :"} for i in range(6)] + [{"text": "w1"}]


def config(tasks, prompts, **options):
    path = tasks.folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in prompts))
    return tasks.config({"agreement": {"expert": "math", "prompts": str(path), **options}})


def scores(tasks, model, expert, tokenizer, prompts=PROMPTS, **options):
    """The prompts' scores of a model, by the answers of an expert."""
    teacher = Local(make_lm(expert, tokenizer, 8))
    ask = lambda recipe, prompts, question: teacher.expert_answers(  # noqa: E731
        prompts, question, "model.layers"
    )
    local = Local(make_lm(model, tokenizer, 8))
    experts = Experts({"math": None}, ask, None, [])
    task_set = TaskSet(config(tasks, prompts, **options), local, experts)
    [items] = task_set.items
    wanted = {items.task: items.ids}
    task_set.ask_experts(wanted)
    return task_set.score(wanted)[items.task]


def greedy(model, tokens, most):
    said = []
    while len(said) < most and (not said or said[-1] != model.config.eos_token_id):
        said.append(int(model(torch.tensor([[*tokens, *said]])).logits[0, -1].argmax()))
    return said


def test_a_model_agrees_with_itself_everywhere(tasks, llama, tokenizer):
    found = scores(tasks, llama(), llama(), tokenizer, tokens=20)
    np.testing.assert_array_equal(found, np.ones(len(PROMPTS)))


def test_a_prompts_score_is_the_share_of_the_experts_tokens_said_too(tasks, llama, tokenizer):
    model, expert = llama(), llama(seed=4)
    with torch.no_grad():  # not so far apart that nothing agrees
        for ours, theirs in zip(model.parameters(), expert.parameters(), strict=True):
            theirs.copy_(ours + 0.2 * theirs)
    found = scores(tasks, model, expert, tokenizer, tokens=9)
    expected = []
    for document in PROMPTS:
        prompt = tokenizer.encode(next(iter(document.values())))
        said = greedy(expert, prompt, 9)
        logits = model(torch.tensor([[*prompt, *said]])).logits[0]
        own = logits.argmax(-1)[len(prompt) - 1 : -1]
        expected.append(float((own == torch.tensor(said)).double().mean()))
    np.testing.assert_allclose(found, expected)
    assert 0 < np.mean(found) < 1


def test_prompts_may_stand_in_the_chat_template(tasks, llama, tokenizer):
    expert, asked = Local(make_lm(llama(), tokenizer, 8)), []

    def ask(recipe, prompts, question):
        asked.extend(prompts)
        return expert.expert_answers(prompts, question, "model.layers")

    local = Local(make_lm(llama(), tokenizer, 8))
    section = config(tasks, [{"prompt": "w1 w2"}], apply_chat_template=True)
    task_set = TaskSet(section, local, Experts({"math": None}, ask, None, []))
    task_set.ask_experts({"agreement_math": task_set.items[0].ids})
    assert asked == ["user : w1 w2 assistant : "]


def test_it_is_a_task_like_any_other(tasks):
    [items] = list_items(config(tasks, PROMPTS))
    assert (items.task, items.kind, items.metric) == ("agreement_math", "agreement", "agreement")
    assert (items.teacher, items.higher_is_better, len(items.ids)) == ("math", True, 7)
    assert items.texts[0] == "q : w0 w2 a :"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "prompts.jsonl has no documents"),
        ('{"prompt": "a"}\n\n{"question": "b"}\n', "line 3: no prompt or text; keys: question; "),
        ('{"prompt": " "}\n', "line 1: prompt is ' ', not a text"),
        ('{"text": 3}\n', "line 1: text is '3', not a text"),
        ('["a"]\n', "line 1: write one JSON object a line"),
        (None, "prompts.jsonl cannot be read"),
    ],
)
def test_a_file_without_prompts_is_refused_by_name_and_line(text, message, tasks):
    section = config(tasks, PROMPTS)
    path = tasks.folder / "prompts.jsonl"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(InputError) as refused:
        list_items(section)
    assert str(refused.value).startswith(f"fitness.tasks[0].agreement.prompts: {path}")
    assert message in str(refused.value)


def test_answers_that_leave_no_room_for_a_prompt_are_refused(tasks, llama, tokenizer):
    with pytest.raises(InputError, match=r"agreement_math: answers of 300 .* lower agreement.tok"):
        scores(tasks, llama(), llama(), tokenizer, tokens=300)
