"""Documents of lm-eval tasks as texts: each prompt with its right answer after it."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from evomerge.common.errors import InputError
from evomerge.config import FitnessConfig, TaskConfig
from evomerge.fitness.calibration.texts import Text
from evomerge.fitness.document_loss import RightAnswerLoss
from evomerge.fitness.tasks import lm_eval_task
from evomerge.fitness.tasks.lm_eval_loading import first_metric, open_manager
from evomerge.fitness.tasks.lm_eval_quirks import quiet, templates_compiled_once
from evomerge.fitness.tasks.score_source import ScoreSource
from evomerge.fitness.tasks.surrogate_losses import KINDS, loss_of
from evomerge.fitness.tasks.task_set import load_sources

TaskTexts = Mapping[str, Mapping[str, Text]]
"""Task → item id → the document's text."""


def task_texts(where: str, name: str, fitness: FitnessConfig) -> TaskTexts:
    """Read the documents of a task, group or tag; without those of few-shot examples.

    Prompts are as the campaign has them where the task is one of its own, else as the task's file
    says, and never in a chat template.

    Args:
        where: the key that names it, for messages.

    Raises:
        InputError: it cannot be loaded, or its documents have no right answers.
    """
    own = [one for one in fitness.lm_eval_tasks if one.task == name]
    alone = fitness.model_copy(update={"tasks": own[:1] or [TaskConfig(task=name)], "audit": None})
    try:
        if not own:
            with quiet():
                metric = first_metric(name, open_manager(alone).task_index)
            tasks = [TaskConfig(task=name, metric=metric)]
            alone = alone.model_copy(update={"tasks": tasks})
        sources = {one.name.partition(".")[0]: one for one in sources_again(alone)}
        return {task: source_texts(source) for task, source in sources.items()}
    except InputError as error:
        text = str(error).replace("fitness.tasks[0].task", where).replace("fitness.tasks[0]", where)
        raise InputError(text if text.startswith(where) else f"{where}: {text}") from None


def sources_again(fitness: FitnessConfig) -> list[ScoreSource]:
    """Load the sources of scores once more, without the warnings that were given before."""
    logger = logging.getLogger(lm_eval_task.__name__)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return list(load_sources(fitness, None))
    finally:
        logger.setLevel(level)


def source_texts(source: ScoreSource) -> dict[str, Text]:
    """Return the documents of a source of scores, by item id; without few-shot examples.

    Raises:
        InputError: one has no right answer.
    """
    if source.kind not in KINDS:
        raise InputError(
            f"{source.name}: a {source.kind} has no right answers; name a task of kind "
            f"{', '.join(KINDS)}, or give a file of texts (documents)"
        )
    found = {}
    with quiet(), templates_compiled_once():
        for place, item in enumerate(source.ids):
            if item in source.excluded:
                continue
            loss = loss_of(source, place)
            assert isinstance(loss, RightAnswerLoss)
            prompt, answer = loss.pairs[loss.right[0]]
            found[item] = Text(f"{prompt}{answer}", f"{source.name}, item {item[:12]}")
    return found
