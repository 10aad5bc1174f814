"""A campaign's stages: searches one after the other, each building on the winners before it.

A stage is a run like any other, in a folder of its own within the campaign's. When its budget is
spent, its winner is chosen on select; the test split is opened by the last stage only. The winner
of a search of weights becomes a checkpoint, and under the stage's name an expert of the later
stages. The winner of a search of paths has a depth of its own: later stages take its layers over,
by `path: {kind: given, layers: STAGE}`, and search the weights along them.

EvoLLM's hybrid (Akiba et al. 2024, arXiv:2403.13187, section 3.3) is two stages: weights, then a
path with the first one's winner as model A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evomerge.campaign.defaults import with_defaults
from evomerge.campaign.listener import Listener
from evomerge.campaign.open import open_campaign
from evomerge.campaign.setup import Setup
from evomerge.common.errors import InputError
from evomerge.common.signals import terminated_like_interrupted
from evomerge.config import CampaignConfig, PathConfig, StageConfig
from evomerge.export.folder import Format
from evomerge.export.trial import export_trial
from evomerge.recipe import load_recipe
from evomerge.results.results import Results
from evomerge.study.judged import known_of
from evomerge.study.record import Evaluation
from evomerge.study.run_folder import open_study_of, stage_folder, stage_study

_NOT_YET = [0]
"""The layers that stand for a path which no earlier stage has found yet."""
WINNER = "winner"
"""Name, in a stage's folder, of its winner's checkpoint or, of a path, recipe file."""


@dataclass(frozen=True)
class Stage:
    """One search of a campaign; a campaign without stages is one whole.

    Attributes:
        name: None for the whole campaign.
        config: of the stage as a campaign of its own.
        folder: the stage's run folder.
        place: from 1.
        of: number of stages.
        before: the stages whose winners it builds on.
    """

    name: str | None
    config: CampaignConfig
    folder: Path
    place: int = 1
    of: int = 1
    before: tuple[Stage, ...] = ()

    @property
    def last(self) -> bool:
        """True for the stage that opens the test split."""
        return self.place == self.of

    @property
    def gives_path(self) -> bool:
        """True if its winner is a path for the later stages, and not an expert."""
        return self.config.space.path.kind != "none"

    @property
    def winner(self) -> Path:
        """Place of its winner, once it has one: a checkpoint's folder, or the recipe of a path."""
        return self.folder / (f"{WINNER}.json" if self.gives_path else WINNER)

    @property
    def done(self) -> bool:
        """True if its winner is there for the stages after it; False for the last stage."""
        return not self.last and self.winner.exists()

    @property
    def title(self) -> str:
        """Name and place, for display."""
        return f"stage {self.name} ({self.place} of {self.of})"


def stages_of(config: CampaignConfig, folder: Path) -> list[Stage]:
    """List a campaign's stages, in the order in which they run.

    Raises:
        InputError: a stage whose winner was built upon is given another budget.
    """
    if not config.stages:
        return [Stage(None, config, folder)]
    found: list[Stage] = []
    for place, stage in enumerate(config.stages, 1):
        before = tuple(found)
        own = _config_of(stage, config, before)
        place_of = stage_folder(folder, stage.name)
        found.append(Stage(stage.name, own, place_of, place, len(config.stages), before))
    for one in found:
        _check_budget(one)
    return found


def _config_of(
    stage: StageConfig, whole: CampaignConfig, before: Sequence[Stage]
) -> CampaignConfig:
    """Make a campaign of its own of a stage."""
    winners = {str(s.name): str(s.winner.resolve()) for s in before if not s.gives_path}
    experts = {**whole.models.experts, **winners}
    trials = stage.trials or whole.budget.trials
    update: dict[str, Any] = {
        "models": whole.models.model_copy(update={"experts": experts}),
        "space": stage.space.model_copy(update={"path": _path_of(stage, before)}),
        "stages": [],
        **({"initial": stage.initial} if "initial" in stage.model_fields_set else {}),
        "study": whole.study.model_copy(update={"name": stage_study(whole, stage.name)}),
        "budget": whole.budget.model_copy(update={"trials": trials}),
        "optimizer": stage.optimizer or whole.optimizer,
        "polish": None if stage.space.weights is None else whole.polish,
    }
    return whole.model_copy(update=update)


def _path_of(stage: StageConfig, before: Sequence[Stage]) -> PathConfig:
    """Return the stage's path; where it names an earlier stage, the layers of that one's winner.

    Raises:
        InputError: no earlier stage of that name has a path for its winner.
    """
    path = stage.space.path
    named = path.options.get("layers")
    if path.kind != "given" or not isinstance(named, str):
        return path
    paths = {s.name: s for s in before if s.gives_path}
    if named not in paths:
        known = ", ".join(map(str, paths)) or "none"
        raise InputError(
            f"stages.{stage.name}.space.path.layers: no earlier stage {named!r} that searches a "
            f"path (there are: {known}); or write the layers' numbers"
        )
    if not paths[named].winner.is_file():  # looked at before it is run
        return PathConfig.model_validate({"kind": "given", "layers": _NOT_YET})
    slots = load_recipe(paths[named].winner).path
    given = {"layers": [slot.layer for slot in slots], "scales": [slot.scale for slot in slots]}
    return PathConfig.model_validate({"kind": "given", **given})


def check_later(setup: Setup, stages: Sequence[Stage]) -> dict[str, Setup]:
    """Check, before the first stage, that the later ones can work.

    An expert, which has their shapes, stands in for winners that do not exist yet, and the base's
    own layers for their paths.

    Returns:
        the set-ups of all stages by name; none for a campaign without stages.

    Raises:
        InputError: a stage's space or optimizer cannot work; names the stage.
    """
    if stages[0].name is None:
        return {}
    found = {stages[0].name: setup}
    sources = dict(setup.models.sources)
    stand_in = list(sources.values())[-1]
    for stage in stages[1:]:
        if not stage.before[-1].gives_path:
            sources[str(stage.before[-1].name)] = stand_in
        models = replace(setup.models, sources=dict(sources))
        config = stage.config
        if config.space.path.options.get("layers") == _NOT_YET:
            whole = {"kind": "given", "layers": list(range(setup.models.layout.layers))}
            space = config.space.model_copy(update={"path": PathConfig.model_validate(whole)})
            config = config.model_copy(update={"space": space})
        try:
            later = replace(setup, models=models).with_config(config, stage.folder)
            found[str(stage.name)] = with_defaults(later, stage.folder)
        except InputError as error:
            raise InputError(f"stages.{stage.name}: {error}") from None
    return found


def run_stage(stage: Stage, setup: Setup, listener: Listener, deadline: float | None) -> bool:
    """Run a stage, or go on with it; but for the last, write its winner down.

    Returns:
        Whether the next may begin: not if `deadline` came before the budget was spent.

    Raises:
        InputError: as `open_campaign`, or the winner cannot be written.
        EvomergeError: the base model itself cannot be scored, or no trial succeeded.
    """
    _say_test_was_opened(stage, listener)
    known = known_of(e for s in stage.before for e in _record(s) if not e.failed)
    notes = {"stage": _note(stage)} if stage.name else {}
    with (
        open_campaign(setup, stage.folder, listener, known, notes) as campaign,
        terminated_like_interrupted(),  # again: Ray puts a handler of its own in place
    ):
        if stage.last:
            campaign.run(deadline)
            return True
        if not campaign.choose(deadline):
            return False
    with open_study_of(stage.config, stage.folder) as study:
        form: Format = "recipe" if stage.gives_path else "hf"
        export_trial(stage.config, study, None, stage.winner, form, stage.folder, anyway=True)
    return True


def _say_test_was_opened(stage: Stage, listener: Listener) -> None:
    """Say so where a stage was added to a campaign whose last stage had opened the test split."""
    for one in stage.before:
        with open_study_of(one.config, one.folder) as study:
            if study.note("test_opened"):
                listener.said(
                    f"the test split was opened for stage {one.name} before {stage.name} was "
                    "added: its figures will not be of untouched data"
                )


def _record(stage: Stage) -> list[Evaluation]:
    with open_study_of(stage.config, stage.folder) as study:
        return study.evaluations()


def _note(stage: Stage) -> dict[str, Any]:
    """The study's note of the stage and of those before it."""
    return {
        "name": stage.name,
        "place": stage.place,
        "of": stage.of,
        "before": [_winner_of(s) for s in stage.before],
    }


def _winner_of(stage: Stage) -> dict[str, Any]:
    with open_study_of(stage.config, stage.folder) as study:
        best = Results(study).best()
    return {
        "stage": stage.name,
        "trial": best["trial"],
        "digest": best["digest"],
        **{split: best["scores"][split]["mean"] for split in ("search", "select")},
        "of": list(best["recipe"]["sources"]),
        "winner": str(stage.winner),
    }


def _check_budget(stage: Stage) -> None:
    if not stage.done:
        return
    budget = stage.config.budget
    unit, wanted = ("trials", budget.trials) if budget.items is None else ("items", budget.items)
    with open_study_of(stage.config, stage.folder) as study:
        done = (study.note("concluded") or {}).get(unit)
    if done is not None and wanted > done:
        raise InputError(
            f"stages.{stage.name}: its winner was chosen after {done} {unit}, and the later stages "
            f"build on it, so that it cannot have {wanted}; use another --out"
        )
