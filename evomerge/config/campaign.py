"""The whole campaign file."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from evomerge.config.base import Strict
from evomerge.config.calibration import CalibrationConfig
from evomerge.config.fitness import FitnessConfig
from evomerge.config.models import DtypeConfig, ModelsConfig
from evomerge.config.search import (
    BudgetConfig,
    OptimizerConfig,
    PolishConfig,
    PriorStart,
    StageConfig,
    Start,
)
from evomerge.config.space import SpaceConfig
from evomerge.config.study import StudyConfig
from evomerge.config.trackers import NotifyConfig, TrackerConfig
from evomerge.config.workers import WorkersConfig


class CampaignConfig(Strict):
    """The whole campaign file."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """The campaign's name, also that of its run's folder, `runs/<name>`, and of its study.

    Example: `name: night`
    """
    models: ModelsConfig
    """The base model and the experts that are merged.

    Example: `models: {base: meta-llama/Llama-3.1-8B, experts: {math: org/math, code:
    org/code}}`
    """
    space: SpaceConfig
    """The merges that the search may try.

    Example: `space: {weights: {method: ties, granularity: model, genes: {weight: [0, 1.5]}}}`
    """
    stages: list[StageConfig] = Field(default_factory=list)
    """Searches to run one after the other, in the place of `space`. Use them where a path is
    searched first and weights along it after.

    Example: `stages: [{name: path, space: {path: {kind: layer_swap, outer: lang, inner: math}},
    trials: 50}, {name: weights, space: {weights: {method: linear}}}]`
    """
    fitness: FitnessConfig
    """The measure of a merge: tasks, the objective over them, and how documents are split.

    Example: `fitness: {tasks: [{task: gsm8k, metric: exact_match}], objective: mean}`
    """
    calibration: CalibrationConfig | None = Field(
        default=None, exclude_if=lambda said: said is None
    )
    """The texts from which methods that use data take their statistics (`evomerge calibrate`). Give
    it where a method needs them, such as RegMean or Fisher merging.

    Example: `calibration: {documents: texts.jsonl, samples: 256, tokens: 512}`
    """
    dtype: DtypeConfig = DtypeConfig()
    """The dtypes of candidates' weights, and of computing their scores.

    Example: `dtype: {weights: checkpoint, compute: bfloat16}`
    """
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer with its options. Change it for niches (m2n2), for several goals (nsga2),
    or with few genes and few trials (map).

    Example: `optimizer: {kind: cma, sigma: 0.2}`
    """
    initial: list[Start] = Field(default_factory=list)
    """Points to try first: `uniform`, a model's name, a recipe file, a mergekit file, trials of
    another run (`{run: FOLDER}`) or of any Optuna study (`{study: URL, name: NAME}`), values of
    genes (`{genes: {weight: 0.4}}`), weights or densities by layer from calibration data
    (`{prior: sens}`), before
    them the ends of gradient descents (`{gradient: {steps: 30, from: uniform}}`). Unless
    given, a short descent from the best that is known, where merges have a gradient and it costs at
    most 15 % of the budget; `[]` turns it off.

    Example: `initial: [uniform, {run: runs/last-night, trials: 3}]`
    """
    budget: BudgetConfig = BudgetConfig()
    """The limits of the search: trials, items, hours.

    Example: `budget: {trials: 150, hours: 8}`
    """
    polish: PolishConfig | None = Field(default=None, exclude_if=lambda polish: polish is None)
    """A short gradient descent from the best finalist, accepted only if it is better on select.
    Give `polish: {}` where genes are smooth (weights) and an hour more does not matter.

    Example: `polish: {steps: 20}`
    """
    study: StudyConfig = StudyConfig()
    """The place where trials are recorded.

    Example: `study: {storage: sqlite}`
    """
    workers: WorkersConfig = WorkersConfig()
    """The processes that evaluate candidates.

    Example: `workers: {kind: ray, count: 4, gpus_per_worker: 1}`
    """
    trackers: list[TrackerConfig] = Field(default_factory=list)
    """Services that show the campaign as it goes (`evomerge list trackers`).

    Example: `trackers: [tensorboard]`
    """
    notify: list[NotifyConfig] = Field(default_factory=list)
    """Messages when the campaign ends, fails or finds a better merge.

    Example: `notify: [{webhook: 'https://example.org/hook', when: [finish]}]`
    """
    chunk_mib: int = Field(default=16, ge=1)
    """Scratch memory of one element-wise merge, in MiB: bounds the fp32 copies held at a time.
    Lower it where memory is short; results stay the same.

    Example: `chunk_mib: 16`
    """
    seed: int = 0
    """The seed of the search, and of random masks. Change it to repeat a campaign
    independently.

    Example: `seed: 1`
    """

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
    def _merges_have_experts(self) -> CampaignConfig:
        spaces = [self.space, *(stage.space for stage in self.stages)]
        if not self.models.experts and any(s.weights or s.mixture is None for s in spaces):
            raise ValueError(
                "models.experts: expected at least 1 entry; only space.mixture alone needs none"
            )
        return self

    @model_validator(mode="after")
    def _smaller_mixtures_are_last(self) -> CampaignConfig:
        for stage in self.stages[:-1]:
            if stage.space.mixture is not None:
                raise ValueError(
                    f"stages.{stage.name}: its winner has fewer experts than the models of later "
                    "stages; let space.mixture be the last stage's"
                )
        return self

    @model_validator(mode="after")
    def _polish_has_weights(self) -> CampaignConfig:
        if self.polish and self.stages and all(one.space.weights is None for one in self.stages):
            raise ValueError(
                "polish: no stage searches weights, and a path has no gradient; leave polish out, "
                "or give a stage space.weights"
            )
        return self

    @model_validator(mode="after")
    def _calibrated_are_models(self) -> CampaignConfig:
        for name in self.calibration.per_expert if self.calibration else ():
            self.models.check_name("calibration.per_expert", name)
        return self

    @model_validator(mode="after")
    def _priors_have_statistics(self) -> CampaignConfig:
        for place, stage in enumerate(self.stages):
            merges = any(one.space.path.kind == "none" for one in self.stages[:place])
            if merges and any(isinstance(start, PriorStart) for start in stage.initial):
                raise ValueError(
                    f"stages: {stage.name}: a prior needs calibration data of all models, and the "
                    "winner of the stage before has none; give it in the first stage"
                )
        return self

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
