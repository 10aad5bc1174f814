"""Supervised losses of documents: what stands for a task's metric where a gradient is wanted.

By lm-eval's output type:

- `multiple_choice`: the cross-entropy of the right choice among all, over their log-likelihoods;
- `loglikelihood`: minus the log-likelihood of the target;
- `generate_until`: a surrogate, minus the mean log-likelihood of the tokens of the target text, as
  if the model had been made to write it. The metric looks at what the model writes by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from evomerge.common.errors import InputError
from evomerge.fitness.document_loss import DocumentLoss
from evomerge.fitness.tasks.lm_eval_task import LmEvalMetric
from evomerge.fitness.tasks.score_source import ScoreSource

KINDS = ("multiple_choice", "loglikelihood", "generate_until")
"""lm-eval's output types that have a loss."""


def check_losses(kinds: Mapping[str, str], where: str) -> None:
    """Refuse tasks without a loss.

    Args:
        kinds: task → lm-eval's output type, or `callable`.

    Raises:
        InputError: there are such; begins with `where` and names them.
    """
    lacking = [f"{task} ({kind})" for task, kind in kinds.items() if kind not in KINDS]
    if lacking:
        raise InputError(
            f"{where}: {', '.join(lacking)} has no loss that a gradient could follow; there are "
            f"such for {', '.join(KINDS)}: leave the gradient out, or the task"
        )


def loss_of(source: ScoreSource, place: int) -> DocumentLoss:
    """Return the loss of a source's document at `place`.

    Raises:
        InputError: the task has none, or the document no right answer; names both.
    """
    if not isinstance(source, LmEvalMetric):
        raise InputError(f"{source.name}: a {source.kind} has no loss that a gradient could follow")
    check_losses({source.name: source.kind}, "fitness.tasks")
    requests, document = source.requests[place], deepcopy(source.documents[place])
    if source.kind == "loglikelihood":
        return DocumentLoss((requests[0].args[:2],))
    if source.kind == "generate_until":
        return DocumentLoss(((requests[0].args[0], _target(source, place, document)),), (0,), True)
    choices = len(source.task.doc_to_choice(deepcopy(document)))
    right = _right_choices(source.task, document, choices)
    if not right:
        raise InputError(f"{source.name}: item {source.ids[place]} has no right choice")
    return DocumentLoss(tuple(one.args[:2] for one in requests[:choices]), right)


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
