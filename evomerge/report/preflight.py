"""What `evomerge check` found, as a table."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evomerge.config import SPLITS
from evomerge.setup import Setup
from evomerge.workers.worker import threads_per_worker


def preflight_table(setup: Setup) -> RenderableType:
    """Models, space, tasks with their splits, and workers of a campaign that can work."""
    config, layout, space = setup.config, setup.models.layout, setup.space
    facts = Table(title=f"campaign {config.name}", show_header=False)
    parameters = sum(math.prod(t.shape) for t in layout.tensors)
    facts.add_row("architecture", f"{layout.architecture}, {layout.layers} layers")
    facts.add_row("parameters", f"{parameters:,}")
    for name, source in setup.models.sources.items():
        facts.add_row(f"model {name}", f"{source.folder} (digest {source.digest[:12]})")
    facts.add_row("space", f"{space.label}, {space.dimension} genes")
    optimizer, screen = config.optimizer.kind, config.optimizer.screen
    facts.add_row("optimizer", f"{optimizer}, screen {screen}" if screen > 1 else optimizer)
    trials, items = config.budget.trials, config.budget.items
    facts.add_row("budget", f"{trials} trials" if items is None else f"{items:,} search items")
    kind = "Ray" if config.workers.on_ray else "in this process"
    threads = "" if config.workers.address else f", {threads_per_worker(config)} threads each"
    facts.add_row("workers", f"{config.workers.count}, {kind}{threads}")
    tasks = Table("task", "metric", *SPLITS, "few-shot only")
    for task in setup.tasks:
        counts = [str(len(setup.items[split][task.task])) for split in SPLITS]
        tasks.add_row(task.task, task.metric, *counts, str(len(task.excluded)))
    notes = [Text(f"note: {note}", style="yellow") for note in setup.models.notes]
    return Group(facts, tasks, *notes)
