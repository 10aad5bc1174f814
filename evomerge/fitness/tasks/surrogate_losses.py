"""Losses of documents: what stands for a task's metric where a gradient is wanted.

`supervised`, by lm-eval's output type:

- `multiple_choice`: the cross-entropy of the right choice among all, over their log-likelihoods;
- `loglikelihood`: minus the log-likelihood of the target;
- `generate_until`: a surrogate, minus the mean log-likelihood of the tokens of the target text, as
  if the model had been made to write it. The metric looks at what the model writes by itself.

With a `power` it is bounded (`fitness.document_loss.BoundedLoss`).

`entropy`: that of the choices, else of the next token, at a target's tokens or a prompt's end.

`experts`: the divergence from an expert's answer to the same prompt; a task of agreement has its
expert's whatever the kind, but for `entropy`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from evomerge.common.errors import InputError
from evomerge.config import SurrogateLossConfig
from evomerge.fitness.answers import AGREEMENT
from evomerge.fitness.document_loss import (
    BoundedLoss,
    ChoiceEntropy,
    DocumentLoss,
    ExpertAndHiddenLoss,
    ExpertLoss,
    LastTokens,
    RightAnswerLoss,
    TokenEntropy,
)
from evomerge.fitness.expert_answers import ExpertAnswer
from evomerge.fitness.tasks.lm_eval_quirks import quiet, templates_compiled_once
from evomerge.fitness.tasks.lm_eval_task import LmEvalMetric
from evomerge.fitness.tasks.score_source import ScoreSource

KINDS = ("multiple_choice", "loglikelihood", "generate_until")
"""lm-eval's output types that have a loss."""

SUPERVISED = SurrogateLossConfig()


def check_losses(
    kinds: Mapping[str, str],
    where: str,
    loss: SurrogateLossConfig = SUPERVISED,
    unanswered: Sequence[str] = (),
) -> None:
    """Refuse tasks without a loss, and documents without a right answer where one is needed.

    Args:
        kinds: task → lm-eval's output type, `callable` or `agreement`.
        where: the key that asks for a gradient.
        loss: `fitness.surrogate_loss`.
        unanswered: what is wrong with each document that has no right answer.

    Raises:
        InputError: there are such; begins with `where` and names them.
    """
    known = (*KINDS, AGREEMENT)
    lacking = [f"{task} ({kind})" for task, kind in kinds.items() if kind not in known]
    if lacking:
        raise InputError(
            f"{where}: {', '.join(lacking)} has no loss that a gradient could follow; there are "
            f"such for {', '.join(KINDS)} and agreement: leave the gradient out, or the task"
        )
    taught = {task for task, kind in kinds.items() if kind == AGREEMENT} | loss.teachers.keys()
    untaught = [task for task in kinds if loss.kind == "experts" and task not in taught]
    if untaught:
        raise InputError(
            f"fitness.surrogate_loss.teachers: {', '.join(untaught)} has no expert to learn from; "
            f"write teachers: {{{untaught[0]}: EXPERT}}"
        )
    if loss.kind == "supervised" and unanswered:
        more = f", and {len(unanswered) - 1} more" if unanswered[1:] else ""
        raise InputError(
            f"{where}: {unanswered[0]}{more}; mend the documents, leave the gradient out, or "
            "follow a loss that needs no answers (fitness.surrogate_loss.kind)"
        )


def unanswered(source: ScoreSource) -> dict[str, str]:
    """Return item → what is wrong with it, of those that have no right answer to learn."""
    found: dict[str, str] = {}
    if not isinstance(source, LmEvalMetric) or source.kind not in KINDS or not source.weight:
        return found  # a measure beside a score is no loss
    with quiet(), templates_compiled_once():
        for place, item in enumerate(source.ids):
            try:
                _supervised(source, place)
            except InputError as error:
                found[item] = str(error)
            # It is the task author's own code.
            except Exception as error:
                found[item] = f"{source.name}: item {item}: {type(error).__name__}: {error}"
    return found


def prompt_of(source: ScoreSource, place: int) -> str:
    """Return the prompt of a source's document at `place`: its first request's context."""
    return str(source.requests[place][0].args[0])


def loss_of(
    source: ScoreSource,
    place: int,
    loss: SurrogateLossConfig = SUPERVISED,
    answer: Callable[[], ExpertAnswer] | None = None,
) -> DocumentLoss:
    """Return the loss of a source's document at `place`.

    Args:
        loss: `fitness.surrogate_loss`.
        answer: gives an expert's answer to the document's prompt.

    Raises:
        InputError: the task has none, or the document no right answer; names both.
    """
    if not isinstance(source, LmEvalMetric) and source.kind != AGREEMENT:
        raise InputError(f"{source.name}: a {source.kind} has no loss that a gradient could follow")
    check_losses({source.name: source.kind}, "fitness.tasks", loss)
    if loss.kind == "entropy":
        return _entropy(source, place, loss)
    if loss.kind == "experts" or source.kind == AGREEMENT:
        assert answer is not None
        return _of_expert(prompt_of(source, place), answer(), loss)
    assert isinstance(source, LmEvalMetric)
    found = _supervised(source, place)
    return BoundedLoss(found.pairs, found, loss.power) if loss.power else found


def _supervised(source: LmEvalMetric, place: int) -> RightAnswerLoss:
    requests, document = source.requests[place], deepcopy(source.documents[place])
    if source.kind == "loglikelihood":
        return RightAnswerLoss((requests[0].args[:2],))
    if source.kind == "generate_until":
        target = _target(source, place, document)
        return RightAnswerLoss(((requests[0].args[0], target),), (0,), True)
    choices = len(source.task.doc_to_choice(deepcopy(document)))
    right = _right_choices(source.task, document, choices)
    if not right:
        raise InputError(f"{source.name}: item {source.ids[place]} has no right choice")
    return RightAnswerLoss(tuple(one.args[:2] for one in requests[:choices]), right)


def _entropy(source: ScoreSource, place: int, loss: SurrogateLossConfig) -> DocumentLoss:
    requests = source.requests[place]
    if isinstance(source, LmEvalMetric) and source.kind == "multiple_choice":
        choices = len(source.task.doc_to_choice(deepcopy(source.documents[place])))
        return ChoiceEntropy(tuple(one.args[:2] for one in requests[:choices]))
    if source.kind == "loglikelihood":
        return TokenEntropy((requests[0].args[:2],))
    return TokenEntropy(((prompt_of(source, place), LastTokens(loss.tokens)),))


def _of_expert(prompt: str, answer: ExpertAnswer, loss: SurrogateLossConfig) -> DocumentLoss:
    pairs = ((prompt, tuple(answer.tokens.tolist())),)
    if loss.reads_hidden:
        return ExpertAndHiddenLoss(pairs, answer, loss.hidden_weight)
    return ExpertLoss(pairs, answer)


def _right_choices(task: Any, document: Any, count: int) -> tuple[int, ...]:
    """The indices of the right choices, as `process_results` finds them; () if out of range."""
    several_inputs = getattr(task, "multiple_input", 0)
    gold = (task.doc_to_text if several_inputs else task.doc_to_target)(document)
    if isinstance(gold, str):
        choices = task.doc_to_choice(document)
        gold = choices.index(gold) if gold in choices else -1
    found = tuple(gold) if isinstance(gold, list | tuple) else (gold,)
    return found if found and all(0 <= index < count for index in found) else ()


def _target(source: LmEvalMetric, place: int, document: Any) -> str:
    """The target text as it follows the context: after the task's delimiter, if that is missing."""
    task = source.task
    gold = task.doc_to_target(deepcopy(document))
    if task.config.doc_to_choice is not None:
        gold = task.doc_to_choice(document)[gold]
    if isinstance(gold, list | tuple):  # any of them is right; the first is taken
        gold = gold[0] if gold else ""
    if not str(gold).strip():
        raise InputError(
            f"{source.name}: item {source.ids[place]} has no target text for a gradient to follow"
        )
    context = source.requests[place][0].args[0]
    between = "" if context[-1:].isspace() else task.config.target_delimiter or ""
    return f"{between}{gold}"
