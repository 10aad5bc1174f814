"""The fourth split: texts for calibration that stand in no other split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from evomerge.common.errors import InputError
from evomerge.config import AUDIT, CalibrationTexts, CampaignConfig, FitnessConfig
from evomerge.fitness.calibration.task_texts import (
    TaskTexts,
    source_texts,
    sources_again,
    task_texts,
)
from evomerge.fitness.calibration.texts import Text, read_texts, sample
from evomerge.fitness.tasks.overlap import near_copies
from evomerge.fitness.tasks.surrogate_losses import KINDS
from evomerge.fitness.tasks.task_set import TaskItems
from evomerge.judging.splits import Marks, documents_of

KEY = "calibration"


class CalibrationSplit:
    """The texts of a campaign's calibration, once its tasks are known.

    Attributes:
        aside: task → ids of the items of the campaign's own tasks that no other split has.
    """

    def __init__(self, config: CampaignConfig, tasks: Sequence[TaskItems]) -> None:
        """Read the texts, and set documents of the campaign's own tasks aside.

        Raises:
            InputError: texts cannot be read, or a task has too few documents; names the key.
        """
        self._config, self._tasks = config, tasks
        self._named = dict(_sources(config))
        asked = {one.task: where for where, one in self._named.items() if one.task is not None}
        self._of_task: dict[str, TaskTexts] = {
            task: task_texts(where, task, config.fitness) for task, where in asked.items()
        }
        self.aside: dict[str, frozenset[str]] = {}
        for task, where in asked.items():
            for name, items in self._set_aside(where, self._of_task[task]).items():
                self.aside[name] = self.aside.get(name, frozenset()) | items

    def texts(
        self,
        splits: Mapping[str, Mapping[str, Sequence[str]]],
        audit: Sequence[TaskItems] = (),
    ) -> dict[str, list[Text]]:
        """Sample the texts of each model that has some, in their order.

        Args:
            splits: split → task → the items that it was dealt, without those set aside.
            audit: the tasks of `fitness.audit`, whose documents are kept from calibration, too.

        Raises:
            InputError: a text of a file stands in a split, or none is left; names it.
        """
        calibration = self._config.calibration
        if calibration is None:
            return {}
        fitness = self._config.fitness
        held = _documents(fitness, self._tasks, splits)
        if fitness.of_audit is not None:
            scored = {t.task: [i for i in t.ids if i not in t.excluded] for t in audit}
            held |= _documents(fitness.of_audit, audit, {AUDIT: scored})
        chosen: dict[str, list[Text]] = {}
        for where, one in self._named.items():
            found = self._of_file(where, one, held) or self._of_tasks(one, held)
            if not found:
                raise InputError(
                    f"{where}: no text is left that stands in no other split; give others"
                )
            chosen[where] = sample(found, calibration.samples)
        models = ["base", *self._config.models.experts]
        places = {model: _place(self._config, model) for model in models}
        return {model: chosen[where] for model, where in places.items() if where is not None}

    def _of_file(
        self, where: str, one: CalibrationTexts, held: Mapping[str, Sequence[str]]
    ) -> list[Text]:
        """The texts of a file; none of them may stand in a split."""
        if one.documents is None:
            return []
        found = read_texts(where, Path(one.documents))
        for place, split in standing_in([text.text for text in found], held).items():
            there = "fitness.audit" if split == AUDIT else f"the {split} split"
            raise InputError(
                f"{where}: {found[place].place}: {found[place].text[:60]!r} stands in {there} too, "
                "word for word or nearly; what a merge is measured on may not decide it: leave it "
                "out, or name the task (calibration.task), of which documents are set aside"
            )
        return found

    def _of_tasks(self, one: CalibrationTexts, held: Mapping[str, Sequence[str]]) -> list[Text]:
        """The texts of a task: those set aside of the campaign's own, else all in no split."""
        found = []
        for task, texts in self._of_task[one.task or ""].items():
            if any(own.task == task for own in self._tasks):
                aside = self.aside.get(task, frozenset())
                found += [texts[item] for item in sorted(aside) if item in texts]
            else:
                every = list(texts.values())
                taken = standing_in([text.text for text in every], held)
                found += [text for place, text in enumerate(every) if place not in taken]
        return found

    def _set_aside(self, where: str, texts: TaskTexts) -> dict[str, frozenset[str]]:
        """Choose documents of the campaign's own tasks that share nothing with any other.

        Those of the greatest hashes are taken, since the others' ranks begin with the least.

        Raises:
            InputError: more are asked for than half of what there is.
        """
        calibration = self._config.calibration
        assert calibration is not None
        own = [task.task for task in self._tasks if task.task in texts and task.weight > 0]
        if not own:
            return {}
        total = sum(len(texts[task]) for task in own)
        if 2 * calibration.samples > total:
            raise InputError(
                f"{where}: {calibration.samples} of the {total} documents are asked for, which "
                f"leaves too few to search on: ask for at most {total // 2} (calibration.samples), "
                "or give texts from elsewhere (documents)"
            )
        # 1. documents, each with all items of any task that it stands behind
        places: dict[str, list[tuple[str, str]]] = {}
        for task, documents in documents_of(self._marks()).items():
            for item, document in documents.items():
                places.setdefault(document, []).append((task, item))
        ranked = sorted(
            {d for d, there in places.items() if any(i in texts.get(t, ()) for t, i in there)}
        )
        # 2. the last of them; again without near copies of what is not chosen, until there are none
        chosen = ranked[-calibration.samples :]
        plain = {(t.task, i): x for t in self._tasks for i, x in zip(t.ids, t.texts, strict=True)}
        while chosen:
            ours = {place for document in chosen for place in places[document]}
            rest = [text for place, text in plain.items() if place not in ours]
            _, near = near_copies(rest, [plain[places[document][0]] for document in chosen])
            if not near:
                break
            chosen = [one for index, one in enumerate(chosen) if index not in set(near)]
        found: dict[str, set[str]] = {}
        for document in chosen:
            for task, item in places[document]:
                found.setdefault(task, set()).add(item)
        return {task: frozenset(items) for task, items in found.items()}

    def _marks(self) -> dict[str, Marks]:
        return {
            task.task: dict(zip(task.ids, task.marks, strict=True))
            for task in self._tasks
            if task.weight > 0
        }


def _sources(config: CampaignConfig) -> Iterator[tuple[str, CalibrationTexts]]:
    """Yield where texts come from, by the key that says so."""
    calibration = config.calibration
    if calibration is None:
        return
    if calibration.documents is not None or calibration.task is not None:
        yield KEY, CalibrationTexts(documents=calibration.documents, task=calibration.task)
    for model, texts in calibration.per_expert.items():
        yield f"{KEY}.per_expert.{model}", texts


def _documents(
    fitness: FitnessConfig,
    tasks: Sequence[TaskItems],
    splits: Mapping[str, Mapping[str, Sequence[str]]],
) -> dict[str, list[str]]:
    """Return split → texts of its documents: their values alone, and as prompts with answers."""
    found: dict[str, list[str]] = {split: [] for split in splits}
    plain = {t.task: dict(zip(t.ids, t.texts, strict=True)) for t in tasks}
    asked = {
        source.name: source_texts(source)
        for source in sources_again(fitness)
        if source.kind in KINDS and source.weight > 0
    }
    for split, dealt in splits.items():
        for task, items in dealt.items():
            found[split] += [plain[task][item] for item in items if task in plain]
            found[split] += [asked[task][item].text for item in items if task in asked]
    return found


def _place(config: CampaignConfig, model: str) -> str | None:
    """Return the key that says where a model's texts come from."""
    calibration = config.calibration
    assert calibration is not None
    if model in calibration.per_expert:
        return f"{KEY}.per_expert.{model}"
    return KEY if calibration.texts_of(model) else None


def standing_in(texts: Sequence[str], held: Mapping[str, Sequence[str]]) -> dict[int, str]:
    """Find texts that are copies, or near copies, of a split's documents: place → split.

    Args:
        held: split → texts of its documents.
    """
    ours = [_spaced(text) for text in texts]
    found: dict[int, str] = {}
    for split, documents in held.items():
        _, near = near_copies([_spaced(document) for document in documents], ours)
        closed = {_closed(document) for document in documents}
        short = [place for place, text in enumerate(ours) if _closed(text) in closed]
        for place in (*near, *short):
            found.setdefault(place, split)
    return dict(sorted(found.items()))


def _spaced(text: str) -> str:
    return " ".join(text.casefold().split())


def _closed(text: str) -> str:
    """A text without spaces, and without what joins a document's values."""
    return "".join(text.casefold().split()).replace("|", "")
