"""The experts whose answers a campaign compares with: checked before any is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from evomerge.common.errors import InputError
from evomerge.config import AgreementTaskConfig, CampaignConfig, FitnessConfig
from evomerge.fitness.tasks.task_set import TaskItems
from evomerge.models.checks.checked_models import CheckedModels
from evomerge.models.tokens.tokenizer import load_tokenizer, tokens_by_id
from evomerge.recipe import BASE

TEACHERS = "fitness.surrogate_loss.teachers"


def experts_asked(fitness: FitnessConfig) -> list[str]:
    """List the models that the campaign compares with, each once."""
    return list(dict.fromkeys(name for name, _ in _named(fitness)))


def _named(fitness: FitnessConfig) -> Iterator[tuple[str, str]]:
    """Yield the name of each model that is compared with, and the key that names it."""
    for index, task in enumerate(fitness.tasks):
        if isinstance(task, AgreementTaskConfig):
            yield task.agreement.expert, f"fitness.tasks[{index}].agreement.expert"
    for name, expert in fitness.surrogate_loss.teachers.items():
        yield expert, f"{TEACHERS}.{name}"


def check_experts(config: CampaignConfig, models: CheckedModels, tasks: Sequence[str]) -> None:
    """Refuse experts that are not there, or whose tokens are not those of the merge.

    Args:
        tasks: names of the tasks.

    Raises:
        InputError: names the key.
    """
    fitness = config.fitness
    for task in fitness.surrogate_loss.teachers:
        if task not in tasks:
            raise InputError(f"{TEACHERS}.{task}: no such task; tasks: {', '.join(tasks)}")
        if task in (one.task for one in fitness.agreements):
            raise InputError(f"{TEACHERS}.{task}: it has an expert of its own; leave it out")
    for name, where in _named(fitness):
        if name not in models.sources:
            raise InputError(
                f"{where}: no model is called {name!r}; write one of {', '.join(models.sources)}"
            )
        if not models.configs_only and (found := _other_token(config, models, name)):
            raise InputError(
                f"{where}: {name} has {found}, so that its next tokens cannot be compared with a "
                "merge's; name a model with the merge's tokens"
            )


def _other_token(config: CampaignConfig, models: CheckedModels, name: str) -> str | None:
    """Describe a token that an expert and the merge do not share; None if they share all."""
    source, merged = models.sources[name], models.sources[BASE]
    trusted = config.models.trust_remote_code
    own = load_tokenizer(source.folder, trust_remote_code=trusted)
    ours = load_tokenizer(merged.tokenizer_folder, trust_remote_code=trusted)
    if own is None or ours is None or source.folder == merged.tokenizer_folder:
        return None
    theirs, rows = tokens_by_id(own), models.layout.vocab_size
    # 1. numbered alike, the merge may lack rows of the expert's
    if models.tokenizer is None:
        beyond = sorted(index for index in theirs if index >= rows)
        lost = f"a token {theirs[beyond[0]]!r} (id {beyond[0]}) beyond" if beyond else None
        return lost and f"{lost} the merge's {rows} rows"
    # 2. matched by their texts, either may have tokens of its own
    mine = set(tokens_by_id(ours).values())
    if more := sorted(set(theirs.values()) - mine):
        return f"a token {more[0]!r} that the merge lacks"
    less = sorted(mine - set(theirs.values()))
    return f"no token {less[0]!r}, which the merge has" if less else None


def agreement_notes(tasks: Sequence[TaskItems]) -> list[str]:
    """Say what agreement can and cannot show, where a campaign scores it."""
    teachers = {task.teacher for task in tasks if task.weight > 0}
    named = [str(name) for name in teachers if name is not None]
    if not named:
        return []
    if teachers == {named[0]}:
        return [
            f"fitness.tasks: agreement with {named[0]} is all that counts, and {named[0]} itself "
            "scores 1: no merge can beat it; add prompts of another expert, or a task"
        ]
    return [
        "fitness.tasks: agreement with an expert is no accuracy: on its own prompts an expert "
        "scores 1, and it caps what a merge can be seen to know"
    ]
