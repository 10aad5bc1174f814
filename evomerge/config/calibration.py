"""`calibration`: the texts from which methods that use data take their statistics."""

from __future__ import annotations

from pydantic import Field, model_validator

from evomerge.config.base import Strict


class CalibrationTexts(Strict):
    """Where texts come from: a file, or the documents of a task."""

    documents: str | None = None
    """A file of JSON objects, one a line, each with a `text`, or a `prompt` and a `completion`.

    Example: `documents: texts.jsonl`
    """
    task: str | None = None
    """An lm-eval task whose documents are read with their right answers. Of a task of
    `fitness.tasks` some documents are set aside, which no other split has.

    Example: `task: gsm8k`
    """

    @model_validator(mode="after")
    def _have_one_source(self) -> CalibrationTexts:
        if (self.documents is None) == (self.task is None):
            raise ValueError("give either documents or task")
        return self


class CalibrationConfig(Strict):
    """The texts from which methods that use data (RegMean, Fisher merging and others) take their
    statistics: a fourth split, which shares no document with `search`, `select` and `test`.

    `evomerge calibrate CAMPAIGN` runs each model on its texts, once; `evomerge check` says how long
    that takes.
    """

    documents: str | None = None
    """A file of JSON objects, one a line, each with a `text`, or a `prompt` and a `completion`,
    for every model that has no texts of its own.

    Example: `documents: texts.jsonl`
    """
    task: str | None = None
    """An lm-eval task whose documents are read with their right answers, in the place of a file.
    Of a task of `fitness.tasks` `samples` documents are set aside, which no other split has.

    Example: `task: gsm8k`
    """
    per_expert: dict[str, CalibrationTexts] = Field(default_factory=dict)
    """Model, also `base` → its own texts. Give them where experts know different things: a
    statistic says what matters on its texts.

    Example: `per_expert: {math: {task: gsm8k}, lang: {documents: prose.jsonl}}`
    """
    samples: int = Field(default=256, ge=1)
    """How many texts a model reads, those of the least hashes. Papers take 100 to 1,000.

    Example: `documents: texts.jsonl, samples: 512`
    """
    tokens: int = Field(default=512, ge=2)
    """The number of tokens at which each text is cut off.

    Example: `documents: texts.jsonl, tokens: 1024`
    """

    folder: str = "statistics"
    """The folder in which `evomerge calibrate` writes MODEL.safetensors, and in which such files
    are found; those that `models.statistics` names lie elsewhere.

    Example: `documents: texts.jsonl, folder: statistics`
    """

    @model_validator(mode="after")
    def _have_a_source(self) -> CalibrationConfig:
        if self.documents is not None and self.task is not None:
            raise ValueError("give either documents or task")
        if self.documents is None and self.task is None and not self.per_expert:
            raise ValueError("give documents, a task, or per_expert")
        return self

    def texts_of(self, model: str) -> CalibrationTexts | None:
        """Return where a model's texts come from; None where there are none for it."""
        if model in self.per_expert:
            return self.per_expert[model]
        if self.documents is None and self.task is None:
            return None
        return CalibrationTexts(documents=self.documents, task=self.task)
