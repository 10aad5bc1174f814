"""The whole campaign file."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from evomerge.config.base import Strict
from evomerge.config.fitness import FitnessConfig
from evomerge.config.models import DtypeConfig, ModelsConfig
from evomerge.config.search import BudgetConfig, OptimizerConfig, StageConfig, Start
from evomerge.config.space import SpaceConfig
from evomerge.config.study import StudyConfig
from evomerge.config.trackers import NotifyConfig, TrackerConfig
from evomerge.config.workers import WorkersConfig


class CampaignConfig(Strict):
    """The whole campaign file."""

    name: str = Field(pattern=r"^[\w.-]+$")
    models: ModelsConfig
    space: SpaceConfig
    stages: list[StageConfig] = Field(default_factory=list)
    """Searches to run one after the other, in the place of `space`."""
    fitness: FitnessConfig
    dtype: DtypeConfig = DtypeConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    initial: list[Start] = Field(default_factory=list)
    """Points to try first: `uniform`, a model's name, a recipe file, a mergekit file, trials of
    another run (`{run: FOLDER}`) or of any Optuna study (`{study: URL, name: NAME}`), before them
    the ends of gradient descents (`{gradient: {steps: 30, from: uniform}}`).
    """
    budget: BudgetConfig = BudgetConfig()
    study: StudyConfig = StudyConfig()
    workers: WorkersConfig = WorkersConfig()
    trackers: list[TrackerConfig] = Field(default_factory=list)
    notify: list[NotifyConfig] = Field(default_factory=list)
    chunk_mib: int = Field(default=16, ge=1)
    """Scratch memory of one element-wise merge, in MiB: bounds the fp32 copies held at a time."""
    seed: int = 0

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not name.strip("."):
            raise ValueError("it names the run's folder, so that dots alone will not do")
        return name

    @model_validator(mode="before")
    @classmethod
    def _stages_have_spaces(cls, data: Any) -> Any:
        """Take the first stage's `space` as the campaign's."""
        stages = data.get("stages") if isinstance(data, dict) else None
        if not (isinstance(stages, list) and stages and isinstance(stages[0], dict)):
            return data
        first = stages[0].get("space")
        if first is None:
            return data
        if data.get("space", first) != first:
            raise ValueError("give space or stages, not both; every stage has a space of its own")
        if data.get("initial"):
            raise ValueError("initial: a campaign with stages gives it in a stage")
        return {**data, "space": first}

    @model_validator(mode="after")
    def _stages_are_models(self) -> CampaignConfig:
        taken = ["base", "merged", *self.models.experts]
        for stage in self.stages:
            if stage.name in taken:
                raise ValueError(
                    f"stages: {stage.name!r} is taken; a stage's winner is a model of the later "
                    "stages, under a name of its own"
                )
            taken.append(stage.name)
        return self
