"""Run a campaign, or go on with what its folder already holds, for scripts and the command line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from evomerge.config import CampaignConfig, as_overrides, load_campaign
from evomerge.python.progress import ProgressDisplay
from evomerge.python.run import Run, open_run
from evomerge.study.run_folder import check_folder, remember_campaign, search_named

if TYPE_CHECKING:
    from evomerge.campaign.stages import Stage


def search(
    campaign: str | Path | Mapping[str, Any] | CampaignConfig,
    out: str | Path | None = None,
    *,
    trials: int | None = None,
    hours: float | None = None,
    workers: int | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
) -> Run:
    """Run a campaign, or go on with what its folder already holds.

    Progress goes to standard error, in a notebook below the cell. An interruption loses at most
    what is in flight; the same call goes on.

    Args:
        campaign: a campaign file, its content as a mapping, or what `load_campaign` returned.
            Relative paths of a mapping start at the current folder.
        out: the run's folder; by default `runs/<name>`.
        trials: the study's total, in the place of the campaign's.
        hours: this call's wall time.
        workers: number of workers.
        seed: of the search and of masks.
        overrides: further `key.path=value` overrides, as `--set` of the command line.

    Returns:
        the run, finished, or as far as `hours` went; `status()["done"]` tells.

    Raises:
        InputError: the campaign cannot work; names key and way out.
        EvomergeError: the base model cannot be scored, or no trial succeeded.
        KeyboardInterrupt: it was interrupted; what was recorded stays.
    """
    from evomerge.workers.isolated import begin_imports

    started = time.monotonic()
    given = as_overrides(trials=trials, hours=hours, workers=workers, seed=seed)
    if isinstance(campaign, CampaignConfig):
        campaign = campaign.model_dump(mode="json", by_alias=True, exclude_unset=True)
    config = load_campaign(campaign, [*overrides, *given])
    begin_imports(config)
    limit = config.budget.hours
    folder = Path(out or Path("runs") / config.name)
    console = Console(file=sys.stderr)
    run_stages(config, folder, console, None if limit is None else started + 3600 * limit)
    return open_run(folder)


def run_stages(
    config: CampaignConfig,
    folder: Path,
    console: Console,
    deadline: float | None,
    note: Callable[[str], None] | None = None,
    waiting: Callable[[str], AbstractContextManager[Any]] | None = None,
) -> bool:
    """Run the stages that are left, one after the other; a campaign without stages is one.

    Args:
        config: the campaign.
        folder: the run's.
        console: shows progress.
        deadline: the moment to stop asking, on the monotonic clock.
        note: is told what the user should know of the models; by default the console prints it.
        waiting: says, around some seconds of waiting, what it is for; by default by a spinner.

    Returns:
        Whether the last stage ran: not if `deadline` came before.
    """
    from evomerge.campaign.stages import stages_of

    check_folder(config, folder)
    tell = note or (lambda text: console.print(f"note: {text}", markup=False, highlight=False))
    with search_named(config, folder):
        for place in range(max(1, len(config.stages))):
            stages = stages_of(config, folder)  # anew: one stage's winner is a model of the next
            if stages[place].done:
                continue
            if not _run_stage(
                stages[place:], folder, config, console, deadline, tell, waiting or console.status
            ):
                return False
    return True


def _run_stage(
    stages: list[Stage],
    folder: Path,
    config: CampaignConfig,
    console: Console,
    deadline: float | None,
    note: Callable[[str], None],
    waiting: Callable[[str], AbstractContextManager[Any]],
) -> bool:
    """Run the first of the stages that are left; returns whether the next may begin."""
    with waiting("opening models and tasks"):
        from evomerge.campaign.defaults import with_defaults
        from evomerge.campaign.setup import prepare
        from evomerge.campaign.stages import check_later, run_stage

        setup = with_defaults(prepare(stages[0].config, stages[0].folder), stages[0].folder)
        check_later(setup, stages)
    for text in (*setup.models.notes, *([setup.said] if setup.by_default else [])):
        note(text)
    if config.stages:
        remember_campaign(config, folder)
    with ProgressDisplay(console) as display:
        if stages[0].name:
            display.begin(stages[0].title)
        return run_stage(stages[0], setup, display, deadline)
