"""Where a search begins: the campaign file's `initial`, as genomes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from evomerge.config import BestTrials
from evomerge.errors import InputError
from evomerge.judging.selection import finalists
from evomerge.recipe.recipe import load_recipe
from evomerge.runs import open_run
from evomerge.search.domain import Genome
from evomerge.search.space import Space


def starts(initial: Sequence[str | BestTrials], space: Space) -> list[Genome]:
    """The genomes to try first, in the file's order, equal ones once.

    Raises:
        InputError: a name that is no model of the space, a recipe that is no point of it, a run
            without trials or with no gene in common; names the entry.
    """
    found: dict[bytes, Genome] = {}
    for index, start in enumerate(initial):
        where = f"initial[{index}]"
        try:
            for genome in _genomes(start, space):
                found.setdefault(genome.tobytes(), genome)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    return list(found.values())


def _genomes(start: str | BestTrials, space: Space) -> Iterator[Genome]:
    if isinstance(start, BestTrials):
        yield from _best_of(start, space)
    elif start == "uniform":
        yield space.initial
    elif start.endswith(".json"):
        yield space.encode(load_recipe(Path(start)))
    elif start in space.seeds:
        yield space.seeds[start]
    else:
        known = ", ".join(["uniform", *space.seeds, "a recipe file (….json)", "{run: FOLDER}"])
        raise InputError(f"{start!r} is no point of this space; write one of {known}")


def _best_of(start: BestTrials, space: Space) -> Iterator[Genome]:
    _, study = open_run(Path(start.run))
    with study:
        own = [e for e in study.evaluations() if e.optimizers_own]
    top = finalists(own, start.trials)
    if not top:
        raise InputError(f"{start.run}: the run has no trial that succeeded")
    genes = {gene.name for gene in space.genes}
    for trial in top:
        if not genes & set(trial.params):
            raise InputError(f"{start.run}: its genes have no name in common with this space's")
        yield space.genome_of(trial.params)
