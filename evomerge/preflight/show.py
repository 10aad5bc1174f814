"""Show what `evomerge check` found and what it expects, as tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evomerge.campaign.setup import Setup
from evomerge.config import SPLITS
from evomerge.preflight.forecast import Forecast
from evomerge.preflight.problems import NO_STAGES, notes, size_of
from evomerge.workers.devices import sources_line, threads_per_worker

_PARTS = ("libraries", "model", "merging", "statistics", "scoring")


def preflight_table(
    setup: Setup, forecast: Forecast, stages: Mapping[str, Setup] = NO_STAGES
) -> RenderableType:
    """Models, spaces, workers, what they will take, and tasks with their splits.

    Args:
        setup: of the campaign, or of its first stage.
        forecast: what it takes.
        stages: name → set-up, of a campaign with stages.
    """
    facts = Table(title=f"campaign {setup.config.name}", show_header=False)
    for row in (*_found(setup, stages), *_expected(setup, forecast)):
        facts.add_row(*map(Text, row))  # as it is: [all] is no markup
    tasks = Table("task", "metric", *SPLITS, "few-shot only")
    for task in setup.tasks:
        counts = [str(len(setup.items[split][task.task])) for split in SPLITS]
        tasks.add_row(task.task, task.metric, *counts, str(len(task.excluded)))
    told = (*setup.models.notes, *notes(setup, forecast, stages))
    return Group(facts, tasks, *(Text(f"note: {note}", style="yellow") for note in told))


def _found(setup: Setup, stages: Mapping[str, Setup]) -> Iterator[tuple[str, str]]:
    config, layout = setup.config, setup.models.layout
    yield "architecture", f"{layout.architecture}, {layout.layers} layers"
    yield "parameters", f"{layout.parameters:,}"
    for name, source in setup.models.sources.items():
        what = "config only" if setup.models.configs_only else f"digest {source.digest[:12]}"
        yield f"model {name}", f"{source.folder} ({what})"
    if stages:
        for name, one in stages.items():
            yield f"stage {name}", "; ".join(text for _, text in _searched(one))
    else:
        yield from _searched(setup)
    alone = "in a process of its own" if config.workers.isolated else "in this process"
    kind = "Ray" if config.workers.on_ray else alone
    threads = threads_per_worker(config)
    yield "workers", f"{config.workers.count}, {kind}, {threads} thread{'s' * (threads > 1)} each"
    yield "sources", sources_line(config, setup.models.sources)


def _searched(setup: Setup) -> Iterator[tuple[str, str]]:
    config, space = setup.config, setup.space
    yield "space", f"{space.label}, {space.dimension} genes"
    optimizer, screen = config.optimizer.kind, config.optimizer.screen
    told = [optimizer, *([f"screen {screen}"] if screen > 1 else [])]
    yield "optimizer", ", ".join([*told, *filter(None, [setup.optimizer.remark()])])
    if setup.said:
        yield "by default", setup.said
    trials, items = config.budget.trials, config.budget.items
    yield "budget", f"{trials} trials" if items is None else f"{items:,} search items"


def _expected(setup: Setup, forecast: Forecast) -> Iterator[tuple[str, str]]:
    memory, probe, work = forecast.memory, forecast.probe, forecast.work
    parts = {name: getattr(memory, name) for name in _PARTS}
    listed = ", ".join(f"{name} {size_of(size)}" for name, size in parts.items() if size)
    where = "" if memory.device == "cpu" else f" on {memory.device}"
    least = "" if probe else "at least "
    yield f"memory per worker{where}", f"{least}{size_of(memory.own)}: {listed}"
    yield "models, mapped", f"{size_of(memory.mapped)}, shared by the workers of a machine"
    if setup.config.workers.address is None and memory.own:
        yield "workers that fit", f"{forecast.fit}, in {size_of(forecast.free)} that are free"
    if probe is not None:
        score = forecast.item_seconds * sum(setup.sizes("search").values())
        how = "measured" if probe.real else "estimated from shapes and this machine's speed"
        merging = f"merging {_seconds(probe.merge)}"
        if math.isnan(score):
            yield "seconds per candidate", f"{merging} ({how}), and those of scoring"
        else:
            yield (
                "seconds per candidate",
                f"{_seconds(probe.merge + score)}: {merging}, scoring {_seconds(score)} "
                f"({how}, on {probe.asked} items)",
            )
        if probe.once >= 1:
            yield "once per campaign", f"{_seconds(probe.once)} s for what the models decide"
        if not math.isnan(hours := forecast.hours(work)):
            minutes = f" ({max(1, round(60 * hours))} min)" if hours < 1 else ""
            yield (
                "hours for the budget",
                f"{hours:.2g}{minutes}, at most: {work.merges:,} merges, {work.items:,} items",
            )
    yield (
        "an export",
        f"{size_of(forecast.export)}; {size_of(forecast.disk)} of disk are free",
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"
