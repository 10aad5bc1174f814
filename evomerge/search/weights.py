"""The space of merges in weight space: one method, tuned at a granularity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.config import Bounds, SpaceConfig, WeightsConfig
from evomerge.errors import InputError
from evomerge.methods.registry import Method, Parameter, find_method
from evomerge.models.layout import Layout, TensorSpec
from evomerge.models.source import Source
from evomerge.recipe import BASE, Merge, Recipe, Slot
from evomerge.search.bounds import fixed_and_bounds, own_bounds
from evomerge.search.domain import Gene, Genome, Value
from evomerge.search.lineage import Lineage, SourceGrams, owners_of_coefficients
from evomerge.search.space import Space


@dataclass(frozen=True)
class _Coefficient:
    """Where one gene goes: a parameter of one expert (or shared: None) in one tuned group."""

    group: int
    expert: str | None
    parameter: str


@dataclass(frozen=True)
class _Group:
    """Tensors that are tuned together: a label, and the (slot, group) pairs of their merges."""

    label: str
    targets: tuple[tuple[int | None, str], ...]


class WeightSpace(Space):
    """Merging in weight space: one method, tuned at a granularity.

    The genome runs through the model from the embeddings to the head, group by group, so that a
    crossover at a point splits the model in depth.

    Attributes:
        genes: in genome order.
        method: the merge method.
    """

    def __init__(
        self,
        config: SpaceConfig,
        layout: Layout,
        digests: Mapping[str, str],
        seed: int,
        sources: Mapping[str, Source] | None = None,
    ) -> None:
        """Check the configuration against the method's signature and the models' layout.

        Args:
            digests: source name → content digest, the base first.
            seed: keys the random masks of every recipe of this space.
            sources: read, if ever, for the Grams of spherical recombination; without them genomes
                recombine linearly.

        Raises:
            InputError: unknown method or parameter, bounds outside the method's range, no genes.
        """
        where, weights = "space.weights", config.weights
        if weights is None:
            raise InputError(f"{where}: required, but not given")
        self.method: Method = find_method(weights.method, f"{where}.method")
        self._sources = dict(digests)
        self._experts = [name for name in digests if name != BASE]
        self._layers = layout.layers
        self._seed = seed
        self.method.check_experts(len(self._experts), f"{where}.method")
        self._groups = list(_groups(weights, layout))
        self._fixed, bounds = fixed_and_bounds(self.method, weights.genes, f"{where}.genes")
        self._switched = self._experts if weights.choose_experts else []
        if not bounds:
            raise InputError(
                f"{where}.genes: nothing to search; give at least one parameter of "
                f"{self.method.name} as [low, high]: {', '.join(self.method.parameters)}"
            )
        self._coefficients, self._pinned, genes = [], {}, []
        own = own_bounds(self.method, weights.genes, f"{where}.genes")
        for coefficient in self._enumerate(bounds):
            name = self._name(coefficient)
            given = own.of(name, bounds[coefficient.parameter])
            if isinstance(given, Bounds):
                genes.append(Gene(name, given.low, given.high, log=given.log))
                self._coefficients.append(coefficient)
            else:
                self._pinned[coefficient] = given
        own.check_used()
        switches = [
            Gene(f"use.{name}", kind="categorical", choices=(False, True))
            for name in self._switched
        ]
        super().__init__([*switches, *genes])
        self.initial = self._uniform()
        self.label = self.method.name
        self._lineage = self._find_lineage(layout, sources)
        self.seeds = self._lineage.seeds(self._sources) if self._lineage else {}

    @property
    def cuts(self) -> Sequence[int]:
        """Where each group of tensors begins."""
        owners = [*(-1 for _ in self._switched), *(c.group for c in self._coefficients)]
        return [i for i, group in enumerate(owners) if i == 0 or group != owners[i - 1]]

    def _uniform(self) -> Genome:
        """The uniform merge (weights 1/N) of all experts, other genes at their defaults."""
        defaults = {p.name: _number(p.default) for p in self.method.parameters.values()}
        defaults["weight"] = 1 / len(self._experts)
        switches = [gene.unit(True) for gene in self.genes[: len(self._switched)]]
        pairs = zip(self._coefficient_genes, self._coefficients, strict=True)
        return np.array([*switches, *(gene.unit(defaults[c.parameter]) for gene, c in pairs)])

    @property
    def _coefficient_genes(self) -> tuple[Gene, ...]:
        return self.genes[len(self._switched) :]

    def recombine(self, a: Genome, b: Genome, split: int, weight: float) -> Genome:
        """SLERP of what the genomes stand for, where genes are linear coefficients of the sources
        (`Lineage`); elsewhere the genes themselves, linearly.
        """
        if self._lineage is None or self._lineage.grams is None:
            return super().recombine(a, b, split, weight)
        return self._lineage.recombine(a, b, split, weight)

    def statistics(self, genome: Genome) -> dict[str, float]:
        """The mean over groups of every parameter, by name: `weight.math`, `lambda`; where experts
        are chosen, the number of those that are used, `experts`.
        """
        found: dict[str, list[float]] = {}
        units = genome[len(self._switched) :]
        for gene, coefficient, unit in zip(
            self._coefficient_genes, self._coefficients, units, strict=True
        ):
            name = ".".join(p for p in (coefficient.parameter, coefficient.expert) if p)
            found.setdefault(name, []).append(_number(gene.value(unit)))
        means = {name: float(np.mean(values)) for name, values in found.items()}
        return {**means, "experts": float(len(self._used(genome)))} if self._switched else means

    def _used(self, genome: Genome) -> list[str]:
        """The experts that a genome does not leave out."""
        off = {
            name
            for name, gene, unit in zip(self._switched, self.genes, genome, strict=False)
            if not gene.value(unit)
        }
        return [name for name in self._experts if name not in off]

    def keep_in(self, folder: Path) -> None:
        """Keep the Grams, once computed, in the run's folder."""
        if self._lineage and self._lineage.grams:
            self._lineage.grams.folder = folder

    def _find_lineage(self, layout: Layout, sources: Mapping[str, Source] | None) -> Lineage | None:
        """The genes as linear coefficients of the sources; None where they are not."""
        settings = {p.name: self._fixed.get(p.name, p.default) for p in self._shared_parameters()}
        searched = {c.parameter for c in self._coefficients}
        owners = owners_of_coefficients(self.method.name, searched, settings, self._experts)
        if owners is None or self._switched or self._pinned or any(g.log for g in self.genes):
            return None
        place = {(c.group, c.expert): i for i, c in enumerate(self._coefficients)}
        blocks = [[place[group, owner] for owner in owners] for group in range(len(self._groups))]
        grams = None
        if sources is not None:
            tensors = [_tensors(group, layout) for group in self._groups]
            grams = SourceGrams(sources, tensors, task_vectors=None not in owners)
        return Lineage(owners, np.array(blocks), self.genes, grams)

    def _shared_parameters(self) -> Iterator[Parameter]:
        return (p for p in self.method.parameters.values() if not p.per_expert)

    def decode(self, genome: Genome) -> Recipe:
        """The recipe of a genome; every parameter of the method stands in it, defaults too."""
        values: list[dict[str | None, dict[str, Any]]] = [{} for _ in self._groups]
        units = genome[len(self._switched) :]
        searched = {
            coefficient: gene.value(unit)
            for gene, coefficient, unit in zip(
                self._coefficient_genes, self._coefficients, units, strict=True
            )
        }
        for coefficient, value in (self._pinned | searched).items():
            into = values[coefficient.group].setdefault(coefficient.expert, {})
            into[coefficient.parameter] = value
        experts = self._used(genome)
        if not experts:
            return self._recipe(BASE, [])
        merges = [
            self._merge(self.method, target, values[index], self._fixed, experts)
            for index, group in enumerate(self._groups)
            for target in group.targets
        ]
        return self._recipe(BASE, merges)

    def encode(self, recipe: Recipe) -> Genome:
        """The genome of a recipe of this space's method along the base's own path.

        An expert that a merge leaves out has weight 0 there, or is switched off where that is a
        gene. Of several merges tuned together, the first counts.

        Raises:
            InputError: another path or another method, or experts that the space has not.
        """
        straight = [(slot.source, slot.layer) for slot in recipe.path]
        if straight != [(BASE, layer) for layer in range(self._layers)]:
            raise InputError("the recipe has a path of its own; this space searches weights")
        merges = {(merge.slot, merge.group): merge for merge in recipe.merges}
        for merge in merges.values():
            if merge.method != self.method.name:
                raise InputError(
                    f"the recipe merges with {merge.method}; this space searches {self.method.name}"
                )
            if unknown := set(merge.experts) - set(self._experts):
                raise InputError(f"the recipe merges {min(unknown)!r}; no expert is called that")
        used = {name for merge in merges.values() for name in merge.experts}
        params: dict[str, Value] = {f"use.{name}": name in used for name in self._switched}
        for coefficient, gene in zip(self._coefficients, self._coefficient_genes, strict=True):
            found = merges.get(self._groups[coefficient.group].targets[0])
            owner, name = coefficient.expert, coefficient.parameter
            given: Mapping[str, Any] = found.parameters if found else {}
            if owner is not None:
                given = found.experts.get(owner, {"weight": 0.0}) if found else {"weight": 0.0}
            if name in given:
                params[gene.name] = given[name]
        return self.genome_of(params)

    def parents(self) -> dict[str, Recipe]:
        """The base and each expert as recipes: every layer and group copied from one source."""
        copy = find_method("passthrough", "space")
        targets = [target for group in self._groups for target in group.targets]
        recipes = {BASE: self._recipe(BASE, [])}
        for name in self._experts:
            merges = [
                Merge(slot=slot, group=group, method=copy.name, experts={name: {}})
                for slot, group in targets
                if slot is None
            ]
            recipes[name] = self._recipe(name, merges)
        return recipes

    def baselines(self) -> dict[str, Recipe]:
        """Merges that need no search: the method's uniform and default, and two that anybody tries.

        "uniform" gives every expert weight 1/N, "default" the method's own defaults; parameters
        fixed in the campaign keep their fixed values. Whatever the method, the experts' average
        and TIES with its defaults stand beside them. Identical recipes appear once.
        """
        share = {"weight": 1 / len(self._experts)}
        found = {f"{self.method.name} default": self._everywhere(self.method, {}, self._fixed)}
        if "weight" in self.method.parameters:
            name = f"{self.method.name} uniform"
            found[name] = self._everywhere(self.method, share, self._fixed)
        found.setdefault("ties default", self._everywhere(find_method("ties", "space"), {}, {}))
        found["average"] = self._everywhere(find_method("linear", "space"), share, {})
        unique: dict[str, str] = {}
        for name, recipe in found.items():
            unique.setdefault(recipe.digest, name)
        return {name: found[name] for name in unique.values()}

    def _everywhere(
        self, method: Method, per_expert: Mapping[str, float], fixed: Mapping[str, Any]
    ) -> Recipe:
        """One method with equal parameters on every tensor."""
        values: dict[str | None, dict[str, float]] = {e: dict(per_expert) for e in self._experts}
        merges = [
            self._merge(method, target, values, fixed, self._experts)
            for group in self._groups
            for target in group.targets
        ]
        return self._recipe(BASE, merges)

    def _merge(
        self,
        method: Method,
        target: tuple[int | None, str],
        values: Mapping[str | None, Mapping[str, Any]],
        fixed: Mapping[str, Any],
        experts: Sequence[str],
    ) -> Merge:
        complete: dict[str | None, dict[str, Any]] = {}
        for owner in (None, *experts):
            given = {**fixed, **values.get(owner, {})}
            complete[owner] = {
                p.name: given.get(p.name, p.default)
                for p in method.parameters.values()
                if p.per_expert == (owner is not None)
            }
        return Merge(
            slot=target[0],
            group=target[1],
            method=method.name,
            experts={name: complete[name] for name in experts},
            parameters=complete[None],
        )

    def _recipe(self, source: str, merges: Sequence[Merge]) -> Recipe:
        path = tuple(Slot(source=source, layer=layer) for layer in range(self._layers))
        # without random masks a seed would only make equal merges look different
        drawn = any(find_method(merge.method, "space").needs_position for merge in merges)
        seed = self._seed if drawn else 0
        return Recipe(sources=self._sources, path=path, merges=tuple(merges), seed=seed)

    def _enumerate(self, bounds: Mapping[str, Any]) -> Iterator[_Coefficient]:
        for index in range(len(self._groups)):
            for name in bounds:
                owners = self._experts if self.method.parameters[name].per_expert else [None]
                yield from (_Coefficient(index, owner, name) for owner in owners)

    def _name(self, coefficient: _Coefficient) -> str:
        """`weight.layer_03.math`; shared parameters have no expert."""
        label = self._groups[coefficient.group].label
        parts = [coefficient.parameter, label, coefficient.expert]
        return ".".join(part for part in parts if part)


def _groups(weights: WeightsConfig, layout: Layout) -> Iterator[_Group]:
    """The tuned groups in depth order: embeddings, layers, final norm, head."""
    granularity = weights.granularity
    layers = range(layout.layers)
    outside = [_Group(name, ((None, name),)) for name in layout.outside_groups]
    if granularity == "model":
        targets = [group.targets[0] for group in outside]
        yield _Group("model", (*targets, *((layer, "layer") for layer in layers)))
        return
    width = len(str(layout.layers - 1))
    yield from (group for group in outside if group.label == "embeddings")
    if granularity == "block":
        for first in layers[:: weights.block]:
            block = layers[first : first + weights.block]
            label = f"layers_{first:0{width}d}_{block[-1]:0{width}d}"
            yield _Group(label, tuple((layer, "layer") for layer in block))
        layers = range(0)
    for layer in layers:
        label = f"layer_{layer:0{width}d}"
        if granularity == "layer":
            yield _Group(label, ((layer, "layer"),))
        else:
            yield from (_Group(f"{label}.{m}", ((layer, m),)) for m in layout.modules)
    yield from (group for group in outside if group.label != "embeddings")


def _tensors(group: _Group, layout: Layout) -> list[TensorSpec]:
    """The tensors that a group's merges make."""
    targets = set(group.targets)
    return [
        spec
        for spec in layout.tensors
        if (spec.layer, spec.group) in targets
        or (spec.layer is not None and (spec.layer, "layer") in targets)
    ]


def _number(value: bool | float | int | str) -> float:
    return float(value) if not isinstance(value, str) else 0.0
