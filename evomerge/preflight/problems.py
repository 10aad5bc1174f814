"""Why a campaign cannot work, by its forecast, and what else should be known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from evomerge.campaign.initial_points import descents_of
from evomerge.campaign.setup import Setup
from evomerge.common.accelerator import accelerators
from evomerge.fitness.engines import scores_here
from evomerge.preflight.forecast import Forecast, Memory
from evomerge.preflight.machine import free_disk, this_machine
from evomerge.preflight.probe import ProbeFailed
from evomerge.preflight.propose import TRIALS_A_GENE
from evomerge.results.audit import OFTEN
from evomerge.results.evidence import FEW

NO_STAGES: Mapping[str, Setup] = {}
MANY_GENES = 100
"""Above so many, a gradient is the better beginning."""


def problems(
    setup: Setup, forecast: Forecast, run: Path, stages: Mapping[str, Setup] = NO_STAGES
) -> Iterator[str]:
    """Each names the key and the way out.

    Args:
        setup: of the campaign, or of its first stage.
        forecast: what it takes.
        run: the run's folder.
        stages: name → set-up, of a campaign with stages.
    """
    if isinstance(forecast.found, ProbeFailed) and forecast.found.fatal:
        yield forecast.found.reason
    if setup.config.workers.address is None:
        yield from _too_many(setup, forecast)
    if stages and forecast.export > free_disk(run):
        yield (
            f"stages: a stage's winner is written into {run}, which takes "
            f"{size_of(forecast.export)}, and {size_of(free_disk(run))} are free there; make "
            "room, or give another --out"
        )
    limit, first = setup.config.budget.hours, forecast.hours(forecast.work.first)
    if limit and first > limit:
        yield (
            f"budget.hours: in {limit:g} hours there is no trial: parents, defaults and the first "
            f"trial take {first:.2g}; give more, or fewer items (fitness.splits)"
        )


def notes(
    setup: Setup, forecast: Forecast, stages: Mapping[str, Setup] = NO_STAGES
) -> Iterator[str]:
    """One line each; the arguments are those of `problems`."""
    config, memory, probe = setup.config, forecast.memory, forecast.probe
    if isinstance(forecast.found, ProbeFailed) and not forecast.found.fatal:
        yield f"{forecast.found.reason}; its seconds and part of its memory are left out"
    if not scores_here(config):
        unknown = ", in seconds not known here" if math.isnan(forecast.item_seconds) else ""
        yield f"fitness.engine: scoring happens elsewhere, in memory of its own{unknown}"
    if config.fitness.engine.kind == "vllm" and not _generates(setup):
        yield (
            "fitness.engine: no task generates answers, at which alone vllm is the quicker one; "
            "hf takes less memory, and no more time"
        )
    if probe and probe.failed:
        yield f"the uniform merge cannot be scored ({probe.failed}); the base was timed instead"
    if probe:
        yield from _cut_off(probe.cut)
    if config.workers.address is not None:
        yield f"workers run on {config.workers.address}; what this machine has does not count"
    else:
        each = memory.own if memory.device == "cpu" else memory.libraries
        if each * forecast.workers + memory.mapped > this_machine().memory:
            yield (
                f"the models ({size_of(memory.mapped)}) do not stay in memory beside the "
                "workers, so that candidates read them from the disk, which these seconds do not "
                "know of"
            )
    if forecast.export > forecast.disk:
        yield (f"an export ({size_of(forecast.export)}) has no room on the current folder's disk")
    for key, search in ({f"stages.{n}": s for n, s in stages.items()} or {"budget": setup}).items():
        yield from _few_trials(key, search)
    if (test := sum(setup.sizes("test").values())) < FEW:
        yield (
            f"fitness.splits: test has {test} documents, too few to be sure of any lead: give "
            f"{FEW} at least, better 400"
        )
    limit, hours = config.budget.hours, forecast.hours(forecast.work)
    if limit and hours > limit:
        yield f"budget.hours: {limit:g} are enough for some {limit / hours:.0%} of the budget"


def _generates(setup: Setup) -> bool:
    return any(task.kind == "generate_until" for task in setup.tasks)


def _few_trials(key: str, setup: Setup) -> Iterator[str]:
    """Yield the rule of the how-to page "How many trials" if a search's budget is below it."""
    trials, genes = setup.most_trials, setup.space.dimension
    wanted = TRIALS_A_GENE * genes
    descends = setup.optimizer.descends(trials)
    if (
        trials >= wanted
        or descents_of(setup.config.initial)
        or (descends and descends[1] == trials)
    ):
        return
    fewer = (
        "search fewer genes (space.weights.granularity: model or block)"
        if setup.config.space.weights
        else "search a smaller space"
    )
    many = ", or begin with a gradient (initial: [{gradient: {}}])" if genes > MANY_GENES else ""
    yield (
        f"{key}: {trials:,} trials are few for {genes:,} genes; the rule to begin with is "
        f"{TRIALS_A_GENE} a gene, {wanted:,}: give more trials, or {fewer}{many}"
    )


def _cut_off(found: Mapping[str, Mapping[str, tuple[int, int]]]) -> Iterator[str]:
    """Tasks on which the answers of some parent do not end before the token limit."""
    for task in dict.fromkeys(task for tasks in found.values() for task in tasks):
        counts = {name: tasks[task] for name, tasks in found.items() if task in tasks}
        over = [f"{n} {cut} of {of}" for n, (cut, of) in counts.items() if cut > OFTEN * of]
        if over:
            yield (
                f"fitness.tasks: {task}: the token limit cuts answers off ({', '.join(over)}), so "
                "that a merge that answers briefly seems better for that alone; raise "
                "gen_kwargs.max_gen_toks"
            )


def _too_many(setup: Setup, forecast: Forecast) -> Iterator[str]:
    """Workers for which there is no room on this machine."""
    each, wanted, memory = setup.config.workers.gpus_per_worker, forecast.workers, forecast.memory
    gpus = len(accelerators())
    if each * wanted > gpus:
        yield (
            f"workers.gpus_per_worker: {wanted} × {each:g} GPUs are "
            f"asked for, and this machine has {gpus}; ask for fewer, or name a cluster "
            "(workers.address)"
        )
    elif forecast.fit < wanted:
        size = size_of(memory.own) if forecast.probe else f"at least {size_of(memory.own)}"
        yield (
            f"workers.count: {wanted} of {size} each are asked for, and this machine has "
            f"{size_of(forecast.free)} free: "
            + (f"{forecast.fit} fit" if forecast.fit else _way_out(setup, memory))
        )


def _way_out(setup: Setup, memory: Memory) -> str:
    parts = {name: getattr(memory, name) for name in ("model", "merging", "scoring")}
    most = max(parts, key=lambda name: parts[name])
    kinds = {task.kind for task in setup.tasks}
    keys = ["fitness.engine.batch_tokens"] * (kinds != {"callable"})
    keys += ["fitness.batch_size"] * ("generate_until" in kinds)
    ways = {
        "model": "set dtype.compute: bfloat16, or take a larger machine",
        "merging": "choose a method that merges entry by entry, or a larger machine",
        "scoring": f"lower {' and '.join(keys)}" if keys else "take a larger machine",
    }
    return f"none fits; most of it goes to {most}: {ways[most]}"


def size_of(nbytes: float) -> str:
    """Write a size in the largest unit of which there is one; decimal, as disks are sold."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= 0.9995 * size:  # so that it does not round to 1000 of the next
            count = nbytes / size
            return f"{count:.{max(0, 2 - math.floor(math.log10(max(1, count))))}f} {unit}"
    return f"{nbytes:.0f} bytes"
