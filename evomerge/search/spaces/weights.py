"""The space of merges in weight space: methods, tuned at a granularity."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from evomerge.common.errors import InputError
from evomerge.config import Bounds, SpaceConfig, TokenizerConfig
from evomerge.methods import Method, find_method
from evomerge.models.layout import Layout, TensorSpec
from evomerge.models.source import Source
from evomerge.recipe import BASE, Merge, MergeCoefficient, Recipe
from evomerge.recipe.recipe import merge_name
from evomerge.search.frank_wolfe import Vertices
from evomerge.search.spaces.bounds import Searched, read_tuning
from evomerge.search.spaces.genes import Condition, Gene, Genome, Value
from evomerge.search.spaces.given_back import gives_source
from evomerge.search.spaces.granularity import piece_label, tuned_groups
from evomerge.search.spaces.parents_and_baselines import LayerOrderRecipes
from evomerge.search.spaces.slerp_recombination import (
    LinearCombinations,
    SourceGrams,
    owners_of_coefficients,
)
from evomerge.search.spaces.space import Derivatives, Space

_BASE_ALONE: Mapping[str, float] = {"weight": 0.0, "base_weight": 1.0}
"""The values with which a merge is the base."""


_Values = dict[str | None, dict[str, Value]]
"""Expert, or None for what experts share → parameter → value."""


@dataclass(frozen=True)
class _Coefficient:
    """The target of a gene: a parameter of one expert (or shared: None) in one tuned group, or in
    one piece of each of its tensors.
    """

    group: int
    expert: str | None
    searched: Searched
    piece: int | None = None

    @property
    def parameter(self) -> str:
        """The parameter, as methods call it."""
        return self.searched.parameter.name


class WeightSpace(Space):
    """Merging in weight space: one method or several to choose from, tuned at a granularity.

    The genome begins with what is decided for the whole model: which experts are used, which method
    merges. Then it runs through the model from the embeddings to the head, group by group, so that
    a crossover at a point splits the model in depth. Where the method is a gene, the genes of
    parameters that the chosen one does not have are inactive.

    Attributes:
        genes: in genome order.
        methods: the merge methods to choose from, in the file's order.
        groups: the tensors that are tuned together, in depth order.
    """

    def __init__(
        self,
        config: SpaceConfig,
        layout: Layout,
        digests: Mapping[str, str],
        seed: int,
        sources: Mapping[str, Source] | None = None,
        tokenizer: TokenizerConfig | None = None,
        calibration: Mapping[str, str] = MappingProxyType({}),
        pieces: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Check the configuration against the methods' signatures and the models' layout.

        Args:
            digests: source name → content digest, the base first.
            seed: keys the random masks of every recipe of this space.
            sources: read, if ever, for the Grams of spherical recombination; without them genomes
                recombine linearly.
            tokenizer: how the sources' tokens were matched; every recipe says so.
            calibration: source → digest of its calibration file; recipes say those that they need.
            pieces: label of a group → number of pieces of its tensors, each with genes; of 0 the
                coefficients stay where they begin. Groups that are not named are whole.

        Raises:
            InputError: unknown method or parameter, bounds outside a method's range, no genes.
        """
        where, weights = "space.weights", config.weights
        if weights is None:
            raise InputError(f"{where}: required, but not given")
        self.methods: Sequence[Method] = [
            find_method(m, f"{where}.method") for m in weights.methods
        ]
        self._by_name = {method.name: method for method in self.methods}
        self.label = " or ".join(self._by_name)
        self._experts = [name for name in digests if name != BASE]
        for method in self.methods:
            method.check_experts(len(self._experts), f"{where}.method")
            if weights.chunks is not None:
                method.check_pieces(f"{where}.chunks")
        self._switched = self._experts if weights.choose_experts else []
        self._layers = layout.layers
        self.groups = list(tuned_groups(weights, layout))
        self._pieces = [pieces.get(group.label, 1) for group in self.groups]
        self._tensors = [group.tensors(layout) for group in self.groups]
        self._recipes = LayerOrderRecipes(
            digests, self.groups, layout.layers, seed, tokenizer, calibration
        )
        tuning = read_tuning(self.methods, weights.genes, f"{where}.genes")
        self._fixed, self._searched = tuning.fixed, tuning.searched
        if not tuning.searched and len(self.methods) == 1:
            [method] = self.methods
            raise InputError(
                f"{where}.genes: nothing to search; give at least one parameter of "
                f"{method.name} as [low, high]: {', '.join(method.parameters)}"
            )
        self._chosen_by = self._method_genes(weights.methods_per)
        self._coefficients: dict[str, _Coefficient] = {}
        self._pinned: dict[_Coefficient, Value] = {}
        owned = list(self._enumerate(tuning.searched, tuning.own.of))
        tuning.own.check_used()
        if weights.chunks is not None and not owned:
            raise InputError(
                f"{where}.chunks.budget: no tensor's share of it comes to one coefficient, so "
                "there is nothing to search; write a larger budget, or a smaller power"
            )
        super().__init__([gene for _, gene in owned])
        self._owners = [owner for owner, _ in owned]
        self.initial = self._uniform()
        self._combinations = self._find_combinations(sources)
        self.seeds = self._combinations.seeds(digests) if self._combinations else {}

    def _method_genes(self, per: str) -> list[str | None]:
        """For each group, the name of the gene that chooses its method; None where there is one."""
        if len(self.methods) == 1:
            return [None for _ in self.groups]
        return ["method" if per == "model" else f"method.{g.label}" for g in self.groups]

    def _enumerate(
        self, searched: Sequence[Searched], bounds_of: Any
    ) -> Iterator[tuple[int, Gene]]:
        """The genes in order, each with the index of its group, −1 for the whole model's.

        Notes what each coefficient's gene is called, and which coefficients have one value.
        """
        for name in self._switched:
            yield -1, Gene(f"use.{name}", kind="categorical", choices=(False, True))
        names, known = tuple(self._by_name), set()
        for index, group in enumerate(self.groups):
            choice = self._chosen_by[index]
            if choice is not None and choice not in known:
                known.add(choice)
                owner = -1 if choice == "method" else index
                yield owner, Gene(choice, kind="categorical", choices=names)
            for coefficient in self._of_group(index, searched):
                kind, piece = coefficient.searched, coefficient.piece
                own = None if piece is None else piece_label(piece, self._pieces[index])
                parts = [kind.name, group.label, own, coefficient.expert]
                name = ".".join(part for part in parts if part)
                given = bounds_of(name, kind.bounds)
                if not isinstance(given, Bounds):
                    self._pinned[coefficient] = given
                    continue
                when = tuple(self._conditions(coefficient))
                gene = Gene(name, given.low, given.high, log=given.log, when=when)
                if self._pieces[index] == 0:
                    self._pinned[coefficient] = gene.value(gene.unit(self._beginning(coefficient)))
                    continue
                self._coefficients[name] = coefficient
                yield index, gene

    def _conditions(self, coefficient: _Coefficient) -> Iterator[Condition]:
        """Yield the conditions of a coefficient: its expert is used, and its method chosen."""
        if coefficient.expert in self._switched:
            yield Condition(f"use.{coefficient.expert}", (True,))
        choice, methods = self._chosen_by[coefficient.group], coefficient.searched.methods
        if choice is not None and set(methods) != set(self._by_name):
            yield Condition(choice, methods)

    def _of_group(self, index: int, searched: Sequence[Searched]) -> Iterator[_Coefficient]:
        count = self._pieces[index]
        for piece, kind in product(range(count) if count > 1 else [None], searched):
            owners = self._experts if kind.parameter.per_expert else [None]
            yield from (_Coefficient(index, owner, kind, piece) for owner in owners)

    @property
    @override
    def cuts(self) -> Sequence[int]:
        owners = self._owners
        return [i for i, group in enumerate(owners) if i == 0 or group != owners[i - 1]]

    @property
    def places(self) -> Sequence[int]:
        """For each group the index in the genome where its genes begin, or would if it had any."""
        return [bisect_left(self._owners, group) for group in range(len(self.groups))]

    def _uniform(self) -> Genome:
        """The uniform merge (weights 1/N) of all experts by the first method, the rest as methods
        have it by default.
        """
        params: dict[str, Value] = {f"use.{name}": True for name in self._switched}
        params |= {choice: self.methods[0].name for choice in self._chosen_by if choice}
        for name, coefficient in self._coefficients.items():
            params[name] = self._beginning(coefficient)
        return np.array([gene.unit(params[gene.name]) for gene in self.genes])

    def _beginning(self, coefficient: _Coefficient) -> Value:
        """The value of a coefficient in the uniform merge."""
        is_weight = coefficient.parameter == "weight"
        return 1 / len(self._experts) if is_weight else coefficient.searched.parameter.default

    @override
    def recombine(self, a: Genome, b: Genome, split: int, weight: float) -> Genome:
        """SLERP of what the genomes stand for, where genes are linear coefficients of the sources
        (`LinearCombinations`); elsewhere the genes themselves, linearly.
        """
        if self._combinations is None or self._combinations.grams is None:
            return super().recombine(a, b, split, weight)
        return self._combinations.recombine(a, b, split, weight)

    @override
    def statistics(self, genome: Genome) -> dict[str, float]:
        """The mean of every parameter over the groups where it is active, by name: `weight.math`,
        `lambda` (0 where it is active nowhere). Where experts are chosen, the number of those that
        are used, `experts`; where methods are, the share of groups of each, `method.ties`.
        """
        params = self.params(genome)
        found: dict[str, list[float]] = {}
        for gene, coefficient in self._coefficients.items():
            name = ".".join(
                part for part in (coefficient.searched.name, coefficient.expert) if part
            )
            found.setdefault(name, []).extend(float(params[g]) for g in (gene,) if g in params)
        means = {name: float(np.mean(values)) if values else 0.0 for name, values in found.items()}
        if self._switched:
            means["experts"] = float(len(self._used(params)))
        if len(self.methods) > 1:
            chosen = [self._method_of(index, params).name for index in range(len(self.groups))]
            means |= {f"method.{name}": chosen.count(name) / len(chosen) for name in self._by_name}
        return means

    def fixed(self, method: Method, parameter: str) -> Value | None:
        """The one value that a method's shared parameter has in this space; None if searched."""
        searched = [*self._coefficients.values(), *self._pinned]
        if any(c.parameter == parameter and method.name in c.searched.methods for c in searched):
            return None
        return self._fixed[method.name].get(parameter, method.parameters[parameter].default)

    def _used(self, params: Mapping[str, Value]) -> list[str]:
        """The experts that a genome does not leave out."""
        return [name for name in self._experts if params.get(f"use.{name}", True)]

    def _method_of(self, group: int, params: Mapping[str, Value]) -> Method:
        choice = self._chosen_by[group]
        return self._by_name[str(params[choice])] if choice else self.methods[0]

    @override
    def keep_in(self, folder: Path) -> None:
        if self._combinations and self._combinations.grams:
            self._combinations.grams.folder = folder

    def _find_combinations(self, sources: Mapping[str, Source] | None) -> LinearCombinations | None:
        """The genes as linear coefficients of the sources; None where they are not."""
        if (
            len(self.methods) > 1
            or self._switched
            or self._pinned
            or max(self._pieces) > 1
            or any(g.log for g in self.genes)
        ):
            return None
        [method] = self.methods
        settings = {
            p.name: self._fixed[method.name].get(p.name, p.default)
            for p in method.parameters.values()
            if not p.per_expert
        }
        searched = {c.parameter for c in self._coefficients.values()}
        owners = owners_of_coefficients(method.name, searched, settings, self._experts)
        if owners is None:
            return None
        place = {(c.group, c.expert): i for i, c in enumerate(self._coefficients.values())}
        blocks = [[place[group, owner] for owner in owners] for group in range(len(self.groups))]
        grams = None
        if sources is not None:
            grams = SourceGrams(sources, self._tensors, task_vectors=None not in owners)
        return LinearCombinations(owners, np.array(blocks), self.genes, grams)

    @override
    def decode(self, genome: Genome) -> Recipe:
        params = self.params(genome)
        experts = self._used(params)
        if not experts:
            return self._recipes.recipe(BASE, [])
        methods = [self._method_of(index, params) for index in range(len(self.groups))]
        searched = {c: params[name] for name, c in self._coefficients.items() if name in params}
        values: list[_Values] = [{} for _ in self.groups]
        pieces: list[list[_Values]] = [
            [{} for _ in range(count if count > 1 else 0)] for count in self._pieces
        ]
        for coefficient, value in (self._pinned | searched).items():
            index, piece = coefficient.group, coefficient.piece
            if methods[index].name in coefficient.searched.methods:
                into = values[index] if piece is None else pieces[index][piece]
                into.setdefault(coefficient.expert, {})[coefficient.parameter] = value
        merges = [
            self._recipes.merge(
                method, target, own or _means(parts), self._fixed[method.name], experts, parts
            )
            for group, method, own, parts in zip(self.groups, methods, values, pieces, strict=True)
            for target in group.targets
        ]
        return self._recipes.recipe(BASE, merges)

    @override
    def pull_back(self, genome: Genome, derivatives: Derivatives) -> NDArray[np.float64]:
        # a gene is one parameter of every tensor of its group, and moves them all alike
        active, found = self.params(genome), np.zeros(self.dimension)
        for index, gene in enumerate(self.genes):
            coefficient = self._coefficients.get(gene.name)
            if coefficient is None or gene.name not in active:
                continue
            owner = (coefficient.expert, coefficient.parameter)
            targets = self.groups[coefficient.group].targets
            keys = (MergeCoefficient(*target, *owner, coefficient.piece) for target in targets)
            total = math.fsum(derivatives.get(key, 0.0) for key in keys)
            found[index] = total * gene.slope(genome[index])
        return found

    @override
    def vertices(self) -> Vertices | None:
        # 1. the genes of weights by expert, group by group
        place = {gene.name: index for index, gene in enumerate(self.genes)}
        weights = {
            place[name]: coefficient
            for name, coefficient in self._coefficients.items()
            if coefficient.parameter == "weight" and coefficient.expert is not None
        }
        if len({one.expert for one in weights.values()}) < len(self._experts):
            return None
        # 2. each model alone: weight 1 for its own task vector, 0 for the others'
        points = np.tile(self.initial, (1 + len(self._experts), 1))
        for row, name in enumerate([BASE, *self._experts]):
            for index, coefficient in weights.items():
                points[row, index] = self.genes[index].unit(float(coefficient.expert == name))
        # 3. what moves together
        together: dict[tuple[int, int | None], list[int]] = {}
        for index, coefficient in weights.items():
            together.setdefault((coefficient.group, coefficient.piece), []).append(index)
        return Vertices(points, [np.array(block) for block in together.values()])

    @override
    def encode(self, recipe: Recipe) -> Genome:
        """The genome of a recipe of this space's methods along the base's own path.

        An expert that a merge leaves out has weight 0 there, or is switched off where that is a
        gene. Of several merges tuned together here, the mean counts. The masks of random methods
        are this space's, not the recipe's.

        Raises:
            InputError: another path or another method, experts that the space has not, or a
                parameter that has no gene and another value here.
        """
        path = [(slot.source, slot.layer, slot.scale) for slot in recipe.path]
        if path != [(BASE, layer, 1.0) for layer in range(self._layers)]:
            raise InputError("the recipe has a path of its own; this space searches weights")
        for merge in recipe.merges:
            self._check_encodable(merge)
        merges = {(merge.slot, merge.group): merge for merge in recipe.merges}
        found = [_merges_of(tensors, merges) for tensors in self._tensors]
        for count, own in zip(self._pieces, found, strict=True):
            for cut in own:
                if cut is not None and cut.pieces and len(cut.pieces) != count:
                    raise InputError(
                        f"the {merge_name(cut)} of the recipe has {len(cut.pieces)} pieces, and "
                        f"{max(count, 1)} here (space.weights.chunks)"
                    )
        used = {name for merge in recipe.merges for name in merge.experts}
        params: dict[str, Value] = {f"use.{name}": name in used for name in self._switched}
        params |= self._choices(found)
        for name, coefficient in self._coefficients.items():
            values = [_value_in(merge, coefficient) for merge in found[coefficient.group]]
            known = [float(value) for value in values if value is not None]
            if known:
                params[name] = known[0] if len(set(known)) == 1 else float(np.mean(known))
        return self.genome_of(params)

    @override
    def point_of(self, recipe: Recipe) -> Genome | None:
        """As elsewhere; a model may also stand where it alone has weight 1, if it is then given
        back.
        """
        found = super().point_of(recipe)
        digests = {parent.digest: name for name, parent in self.parents().items()}
        if found is not None or recipe.digest not in digests:
            return found
        name = digests[recipe.digest]
        genome = self._alone(name)
        return genome if gives_source(self.decode(genome).merges, name) else None

    def _alone(self, name: str) -> Genome:
        """The genome where a source has weight 1, the others 0, and densities are 1."""
        params: dict[str, Value] = {f"use.{expert}": expert == name for expert in self._switched}
        params |= {choice: self.methods[0].name for choice in self._chosen_by if choice}
        for gene, coefficient in self._coefficients.items():
            kind = coefficient.searched.parameter
            own = {"weight": coefficient.expert == name, "base_weight": name == BASE, "density": 1}
            params[gene] = float(own.get(kind.name, kind.default))
        return np.array([gene.unit(params[gene.name]) for gene in self.genes])

    def _check_encodable(self, merge: Merge) -> None:
        if merge.drop is not None:
            raise InputError(
                "the recipe drops entries at random before it merges (DARE); this space does not"
            )
        if merge.aim is not None:
            raise InputError(
                "the recipe changes weights less where activations are large (aim); this space "
                "does not"
            )
        if merge.sparsify is not None:
            kind = merge.sparsify.kind
            raise InputError(
                f"the recipe drops entries before it merges ({kind}); this space does not"
            )
        method = self._by_name.get(merge.method)
        if method is None:
            raise InputError(
                f"the recipe merges with {merge.method}; this space searches {self.label}"
            )
        if unknown := set(merge.experts) - set(self._experts):
            raise InputError(f"the recipe merges {min(unknown)!r}; no expert is called that")
        searched = {
            c.parameter
            for c in (*self._coefficients.values(), *self._pinned)
            if method.name in c.searched.methods
        }
        parts = merge.of_pieces()
        active = [v for m in parts for v in m.experts.values() if v.get("weight", 1.0) != 0]
        for p in method.parameters.values():
            if p.name in searched:
                continue
            here = self._fixed[method.name].get(p.name, p.default)
            for given in active if p.per_expert else [one.parameters for one in parts]:
                if (there := given.get(p.name, p.default)) != here:
                    bounds = ", or give it bounds" if p.type is float else ""
                    raise InputError(
                        f"the recipe has {p.name} {there} where this space has {here}; write "
                        f"{p.name}: {there} in space.weights.genes{bounds}"
                    )

    def _choices(self, found: Sequence[Sequence[Merge | None]]) -> dict[str, Value]:
        """The method genes of a recipe's merges by group; without merges they are left out."""
        chosen: dict[str, Value] = {}
        for choice, merges in zip(self._chosen_by, found, strict=True):
            for merge in merges:
                if choice is None or merge is None:
                    continue
                if chosen.setdefault(choice, merge.method) != merge.method:
                    finer = "methods_per: group" if choice == "method" else "a finer granularity"
                    raise InputError(
                        f"the recipe merges with {chosen[choice]} and {merge.method}, but of this "
                        f"space gene {choice!r} says one; write {finer}"
                    )
        return chosen

    @override
    def parents(self) -> dict[str, Recipe]:
        return self._recipes.parents()

    @override
    def baselines(self) -> dict[str, Recipe]:
        return self._recipes.baselines(self.methods, self._fixed)

    @override
    def grid(self, points: int) -> dict[str, Recipe]:
        return self._recipes.grid(self.methods, self._fixed, self._searched, points)


def _merges_of(
    tensors: Sequence[TensorSpec], merges: Mapping[tuple[int | None, str], Merge]
) -> list[Merge | None]:
    """The merges that make some tensors, each once; None among them where one has none."""
    keys = [[(tensor.layer, group) for group in tensor.groups] for tensor in tensors]
    found = dict.fromkeys(next((key for key in of if key in merges), None) for of in keys)
    return [None if key is None else merges[key] for key in found]


def _value_in(merge: Merge | None, coefficient: _Coefficient) -> Value | None:
    """Read a coefficient off a recipe's merge; None where its gene does not matter."""
    name, owner = coefficient.parameter, coefficient.expert
    if merge is None or (owner is not None and owner not in merge.experts):
        return _BASE_ALONE.get(name)
    if merge.method not in coefficient.searched.methods:
        return None
    if merge.pieces and coefficient.piece is not None:
        own = merge.pieces[coefficient.piece]
        if own.has(owner, name):
            return own.parameters[name] if owner is None else own.experts[owner][name]
    given: Mapping[str, Any] = merge.parameters if owner is None else merge.experts[owner]
    return given.get(name, coefficient.searched.parameter.default)


def _means(pieces: Sequence[_Values]) -> _Values:
    """Return what a merge says of a tensor as a whole: each value's mean over its pieces."""
    found: dict[str | None, dict[str, list[float]]] = {}
    for own in pieces:
        for owner, values in own.items():
            for name, value in values.items():
                found.setdefault(owner, {}).setdefault(name, []).append(float(value))
    return {
        owner: {name: math.fsum(given) / len(given) for name, given in values.items()}
        for owner, values in found.items()
    }
