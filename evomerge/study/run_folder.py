"""The run folder: the study, beside the campaign file that made it."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import yaml

from evomerge.common.data_files import read_text, yaml_data
from evomerge.common.errors import InputError
from evomerge.config import CampaignConfig, load_campaign
from evomerge.config.paths import resolve_storage
from evomerge.study.driver import driver_at, driver_named
from evomerge.study.storage_url import describe, sqlite_url
from evomerge.study.study import Study

CAMPAIGN_FILE = "campaign.yaml"
SEARCH = "search"
"""The search of a campaign with stages, which names its driver between these too."""
SQLITE, STUDY_FILE = "sqlite", "study.db"
"""The storage that is this file in the run's folder."""
STATISTICS = "statistics"


def study_place(config: CampaignConfig, folder: Path) -> tuple[str, str]:
    """The storage URL and the name of a campaign's study."""
    return _url(config.study.storage, folder), config.study.name or config.name


def _url(storage: str, folder: Path) -> str:
    return sqlite_url(folder / STUDY_FILE) if storage == SQLITE else storage


def shown_campaign(config: CampaignConfig) -> dict[str, Any]:
    """Return the campaign as JSON data for others: without passwords and addresses."""
    shown = config.model_dump(mode="json", exclude={"trackers", "notify"})
    if config.study.storage != SQLITE:
        shown["study"]["storage"] = describe(config.study.storage)
    return shown


def remember_campaign(config: CampaignConfig, folder: Path) -> None:
    """Write the campaign, with absolute paths, into the run's folder, whole or not at all.

    Raises:
        InputError: the folder cannot be written.
    """
    path, partial = folder / CAMPAIGN_FILE, folder / f".{CAMPAIGN_FILE}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial.write_text(
            yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8"
        )
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None


def check_folder(config: CampaignConfig, folder: Path) -> None:
    """Check that the run a folder holds, if any, is of this campaign's study.

    Raises:
        InputError: another study's run lies there.
    """
    path = folder / CAMPAIGN_FILE
    if path.is_file():
        held = load_campaign(path)
        theirs = study_place(held, folder)
        if theirs[1] != study_place(config, folder)[1]:
            raise InputError(
                f"{folder}: holds the run of study {theirs[1]!r}, which belongs to another "
                "campaign; choose another --out"
            )
        names = [stage.name for stage in held.stages]
        if names != [stage.name for stage in config.stages][: len(names) or None]:
            raise InputError(
                f"{folder}: holds a run of this campaign with other stages; stages may be added "
                "after the last one; for other changes choose another --out"
            )


def search_named(config: CampaignConfig, folder: Path) -> AbstractContextManager[None]:
    """Let others see, while within, that a search of a campaign with stages runs in the folder.

    Raises:
        InputError: the folder cannot be written.
    """
    return driver_named(folder / SEARCH) if config.stages else nullcontext()


def stage_folder(folder: Path, stage: str) -> Path:
    """The folder of a stage, within the campaign's."""
    return folder / stage


def stage_study(config: CampaignConfig, stage: str) -> str:
    """The name of a stage's study."""
    return f"{config.study.name or config.name}-{stage}"


def statistics_folder(folder: Path) -> Path:
    """The folder, absolute, in which a run keeps statistics of its models."""
    return folder.resolve() / STATISTICS


def open_study_of(config: CampaignConfig, folder: Path) -> Study:
    """Open the study of a campaign's run for reading.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    return Study.read(*study_place(config, folder))


def open_study(folder: Path) -> Study:
    """Open the study of a run folder, or of its latest stage, for reading.

    The campaign beside it is not checked: its models and tasks may have gone since.

    Raises:
        InputError: the folder holds no run, or its study cannot be read.
    """
    own, campaign = _latest(folder)
    held = campaign.get("study") or {}
    storage = resolve_storage(held.get("storage", SQLITE), own)
    return Study.read(_url(storage, own), held.get("name") or campaign["name"])


def open_run(folder: Path) -> tuple[CampaignConfig, Study]:
    """Open a run folder for reading: its campaign and study, or those of its latest stage.

    Raises:
        InputError: the folder holds no run, or its study cannot be read.
    """
    own = run_folder(folder)
    config = load_campaign(own / CAMPAIGN_FILE)
    return config, open_study_of(config, own)


def study_to_mend(folder: Path) -> Study:
    """Open the study of a run folder, or of its latest stage, for writing, under its lock.

    Raises:
        InputError: the folder holds no run, a search runs on it, or its study cannot be written.
    """
    own = run_folder(folder)
    return Study.reopen(*study_place(load_campaign(own / CAMPAIGN_FILE), own))


class FollowedRun:
    """Follows a run that may be going on: its study, or always that of its latest stage."""

    def __init__(self, folder: Path) -> None:
        """Open the run for reading.

        Raises:
            InputError: the folder holds no run, or its study cannot be read.
        """
        self._folder = folder
        self._own = run_folder(folder)
        self._study = open_study(self._own)

    @property
    def study(self) -> Study:
        """The study; what was read of it before is not read again.

        Raises:
            InputError: it cannot be read.
        """
        own = run_folder(self._folder)
        if own != self._own:  # a stage is done, and the next has begun
            latest = open_study(own)
            self._study.close()
            self._own, self._study = own, latest
        return self._study

    @property
    def between_stages(self) -> bool:
        """True while a search of the whole campaign runs on this machine, whatever its stage."""
        return driver_at(self._folder / SEARCH) == "at work"


def run_folder(folder: Path) -> Path:
    """Find the folder of the run itself: the given one, or that of its latest stage.

    Raises:
        InputError: the folder holds no run.
    """
    return _latest(folder)[0]


def _latest(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Find the folder of the run itself, as `run_folder`, and read its campaign."""
    path = folder / CAMPAIGN_FILE
    if not path.is_file():
        raise InputError(
            f"{folder}: no run here (no {CAMPAIGN_FILE}); give the folder that "
            "`evomerge search` was run with: runs/<name>, or its --out"
        )
    campaign = _remembered(folder)
    stages = [stage["name"] for stage in campaign.get("stages") or []]
    for stage in reversed(stages):
        own = stage_folder(folder, stage)
        if (own / CAMPAIGN_FILE).is_file() or stage == stages[0]:
            return _latest(own)
    return folder, campaign


def _remembered(folder: Path) -> dict[str, Any]:
    """Read the campaign of a run as plain data; it was checked when it was written.

    Raises:
        InputError: somebody has changed it, and it is no campaign any more.
    """
    path = folder / CAMPAIGN_FILE
    data = yaml_data(read_text(path), str(path))
    try:
        held, stages = data.get("study") or {}, data.get("stages") or []
        named = [data["name"], held.get("name", ""), held.get("storage", "")]
        whole = [*named, *(stage["name"] for stage in stages)]
        if all(text is None or isinstance(text, str) for text in whole):
            return data
    except (AttributeError, KeyError, TypeError):
        pass
    return load_campaign(path).model_dump(mode="json")  # says what is wrong with it
