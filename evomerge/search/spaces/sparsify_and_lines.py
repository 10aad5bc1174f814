"""Sparsifiers, LiNeS and AIM over a space of weights: sparse, scaled by depth, or held back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from evomerge.common.errors import InputError
from evomerge.config import AimConfig, DareConfig, LinesConfig, SparsifyConfig
from evomerge.methods import Method
from evomerge.methods.core.aim import aimed
from evomerge.methods.core.calibration_in_recipes import with_calibration
from evomerge.methods.core.lines_in_recipes import scaled_by_depth
from evomerge.methods.core.sparsify_in_recipes import check_kind, sparsified
from evomerge.recipe import Merge, MergeCoefficient, Recipe
from evomerge.search.frank_wolfe import Vertices
from evomerge.search.spaces.genes import Gene, Genome
from evomerge.search.spaces.space import Derivatives, Space
from evomerge.search.spaces.weights import WeightSpace

LINES = "space.weights.lines"


class Wrapped(Space):
    """Adds genes to another space and changes its recipes by them.

    Parents, baselines and the grid are the inner space's, unchanged.
    """

    def __init__(
        self,
        inner: Space,
        own: Sequence[tuple[int, Gene]],
        plain: Mapping[str, float],
    ) -> None:
        """Place the added genes among the inner space's.

        Args:
            own: (index, gene) pairs, indices rising: the gene stands before the inner gene of that
                index, at −1 before all.
            plain: added gene → its value where the search begins, which changes nothing.
        """
        self.inner = inner
        self._own_genes = [gene for _, gene in own]
        self._places = np.array([place for place, _ in own], dtype=int)
        self._own = self._places.clip(0) + np.arange(len(own))
        inside = np.arange(inner.dimension)
        self._inside = inside + np.searchsorted(self._places, inside, side="right")
        dimension = len(own) + inner.dimension
        first, genes = np.empty(dimension), dict(zip(self._own, self._own_genes, strict=True))
        first[self._own] = [gene.unit(plain[gene.name]) for gene in self._own_genes]
        first[self._inside] = inner.initial
        genes |= dict(zip(self._inside, inner.genes, strict=True))
        super().__init__([genes[index] for index in range(dimension)], first)
        self._plain = all(
            np.isclose(float(gene.value(gene.unit(plain[gene.name]))), plain[gene.name])
            for gene in self._own_genes
        )

    @override
    def statistics(self, genome: Genome) -> dict[str, float]:
        """The added genes' values, and the inner space's statistics."""
        return {**self.own_values(genome), **self.inner.statistics(self.inside(genome))}

    @property
    @override
    def cuts(self) -> Sequence[int]:
        """The inner space's cuts; what is about the whole model stands before them."""
        inner = np.asarray(self.inner.cuts)
        before = inner + np.searchsorted(self._places, inner, side="left")
        return sorted({0, *before.tolist()})

    @override
    def keep_in(self, folder: Path) -> None:
        self.inner.keep_in(folder)

    @override
    def pull_back(self, genome: Genome, derivatives: Derivatives) -> NDArray[np.float64]:
        found = np.zeros(self.dimension)
        found[self._inside] = self.inner.pull_back(self.inside(genome), derivatives)
        return found

    @override
    def vertices(self) -> Vertices | None:
        inner = self.inner.vertices()
        if inner is None:
            return None
        points = np.tile(self.initial, (len(inner.points), 1))
        points[:, self._inside] = inner.points
        return Vertices(points, [self._inside[block] for block in inner.blocks])

    @override
    def point_of(self, recipe: Recipe) -> Genome | None:
        """The inner space's, where the added genes can change nothing."""
        inner = self.inner.point_of(recipe) if self._plain else None
        if inner is None:
            return None
        genome = np.array(self.initial)
        genome[self._inside] = inner
        return genome

    @override
    def parents(self) -> dict[str, Recipe]:
        return self.inner.parents()

    @override
    def baselines(self) -> dict[str, Recipe]:
        return self.inner.baselines()

    @override
    def grid(self, points: int) -> dict[str, Recipe]:
        return self.inner.grid(points)

    def own_values(self, genome: Genome) -> dict[str, float]:
        """Return the value of each gene that this space adds, by name."""
        values = zip(self._own_genes, genome[self._own], strict=True)
        return {gene.name: float(gene.value(unit)) for gene, unit in values}

    def inside(self, genome: Genome) -> Genome:
        """Return the inner space's genome."""
        return genome[self._inside]


class SparsifySpace(Wrapped):
    """A space of weights whose experts lose entries of their task vectors first.

    The gene `sparsify.density`, one for the whole model, stands before those of the weights; with
    `per: group` each group's begins with `sparsify.density.GROUP`. A density that has a value
    instead of bounds has no gene. Under the campaign file's key `dare` genes are called
    `dare.density`, as in studies recorded before there were other kinds.
    """

    def __init__(
        self,
        config: DareConfig | SparsifyConfig,
        weights: WeightSpace,
        seed: int,
        calibration: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Wrap the weights; `seed` keys the masks; `calibration` is as the weights have it.

        Raises:
            InputError: a method has no task vectors, or both draw at random.
        """
        given = config.model_dump(exclude={"density", "per", "kind"}, exclude_none=True)
        self._options, self._seed, self._calibration = given, seed, calibration
        self._kind = config.kind if isinstance(config, SparsifyConfig) else "dare"
        key = "sparsify" if isinstance(config, SparsifyConfig) else "dare"
        for method in weights.methods:
            check_kind(method, self._kind, f"space.weights.{key}")
        # 1. the name of each group's gene, or of the one that all share
        self._density = f"{key}.density"
        self._gene_of = {
            target: f"{self._density}.{group.label}" if config.per == "group" else self._density
            for group in weights.groups
            for target in group.targets
        }
        # 2. genes between bounds; a value has none
        self._fixed, own = {}, []
        if isinstance(config.density, list):
            low, high = config.density
            places = weights.places if config.per == "group" else [-1]
            names = dict.fromkeys(self._gene_of.values())
            own = [(at, Gene(n, low, high)) for at, n in zip(places, names, strict=True)]
        else:
            self._fixed = dict.fromkeys(self._gene_of.values(), config.density)
        super().__init__(weights, own, {gene.name: 1.0 for _, gene in own})
        how = " at random" if self._kind == "dare" else f" ({self._kind})"
        self.label = f"{weights.label}, with entries dropped{how}"

    @override
    def statistics(self, genome: Genome) -> dict[str, float]:
        """The mean density, where it is searched, and the weights' statistics."""
        found = list(self.own_values(genome).values())
        own = {self._density: float(np.mean(found))} if found else {}
        return {**own, **self.inner.statistics(self.inside(genome))}

    @override
    def decode(self, genome: Genome) -> Recipe:
        """The weights' recipe with a sparsifier in every merge, but those of density 1."""
        densities = {**self._fixed, **self.own_values(genome)}

        def density(merge: Merge) -> float:
            return densities[self._gene_of[merge.slot, merge.group]]

        recipe = self.inner.decode(self.inside(genome))
        sparse = sparsified(recipe, self._kind, density, self._options, self._seed)
        return with_calibration(sparse, self._calibration)


class LinesSpace(Wrapped):
    """A space of weights whose task vectors are scaled by α + β·l/(L−1) in layer l of L.

    The genes `lines.alpha` and `lines.beta` stand before those of the weights; one that has a value
    instead of bounds has no gene. Source: Wang et al. 2024, arXiv:2410.17146, eq. 2.
    """

    def __init__(
        self, config: LinesConfig, inner: Space, weights: WeightSpace, layers: int
    ) -> None:
        """Wrap `inner`, which is the space of `weights`, or one over it.

        Raises:
            InputError: a method has no `lambda`, or a scale would leave its range.
        """
        self._layers = layers
        given = {name: getattr(config, name) for name in ("alpha", "beta")}
        self._fixed = {f"lines.{n}": float(v) for n, v in given.items() if not isinstance(v, list)}
        bounds = {n: v for n, v in given.items() if isinstance(v, list)}
        scales = [(-1, Gene(f"lines.{name}", low, high)) for name, (low, high) in bounds.items()]
        for method in weights.methods:
            _check(method, weights, config)
        super().__init__(inner, scales, {"lines.alpha": 1.0, "lines.beta": 0.0})
        self.label = f"{inner.label}, scaled by depth"

    @override
    def decode(self, genome: Genome) -> Recipe:
        """The inner space's recipe with every `lambda` scaled."""
        scales = {**self._fixed, **self.own_values(genome)}
        return scaled_by_depth(
            self.inner.decode(self.inside(genome)),
            self._layers,
            alpha=scales["lines.alpha"],
            beta=scales["lines.beta"],
        )

    @override
    def pull_back(self, genome: Genome, derivatives: Derivatives) -> NDArray[np.float64]:
        # λ' = λ(α + β·l/(L−1)): what is known of λ' goes on to λ, and to α and β
        scales, depth = {**self._fixed, **self.own_values(genome)}, max(self._layers - 1, 1)
        inner = dict(derivatives)
        slopes = dict.fromkeys(scales, 0.0)
        for merge in self.inner.decode(self.inside(genome)).merges:
            key = MergeCoefficient(merge.slot, merge.group, None, "lambda")
            known, place = derivatives.get(key, 0.0), (merge.slot or 0) / depth
            inner[key] = known * (scales["lines.alpha"] + scales["lines.beta"] * place)
            slopes["lines.alpha"] += known * float(merge.parameters["lambda"])
            slopes["lines.beta"] += known * float(merge.parameters["lambda"]) * place
        found = super().pull_back(genome, inner)
        for index, gene in zip(self._own, self._own_genes, strict=True):
            found[index] = slopes[gene.name] * gene.slope(genome[index])
        return found


class AimSpace(Wrapped):
    """A space of weights whose merges change weights less where the base's inputs are large.

    The gene `aim.omega` stands before those of the weights; an ω that has a value instead of bounds
    has no gene. Source: Nobari et al. 2025, arXiv:2502.02421.
    """

    def __init__(
        self, config: AimConfig, inner: Space, calibration: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Wrap `inner`, a space of weights or over one; `calibration` is as the weights have it."""
        self._quantile, self._calibration = config.quantile, calibration
        self._fixed, own = {}, []
        if isinstance(config.omega, list):
            low, high = config.omega
            own = [(-1, Gene("aim.omega", low, high))]
        else:
            self._fixed = {"aim.omega": config.omega}
        super().__init__(inner, own, {"aim.omega": 1.0})
        self.label = f"{inner.label}, held back by activations"

    @override
    def decode(self, genome: Genome) -> Recipe:
        """The inner space's recipe with every merge held back."""
        omega = {**self._fixed, **self.own_values(genome)}["aim.omega"]
        recipe = aimed(self.inner.decode(self.inside(genome)), lambda _: omega, self._quantile)
        return with_calibration(recipe, self._calibration)


def _check(method: Method, weights: WeightSpace, config: LinesConfig) -> None:
    """Refuse a scale that would take `lambda` out of its range for some genome."""
    parameter = method.parameters.get("lambda")
    if parameter is None:
        raise InputError(
            f"{LINES}: {method.name} has no 'lambda' to scale; use a method of task vectors, such "
            "as task_arithmetic for linear"
        )
    value = weights.fixed(method, "lambda")
    if value is None:
        raise InputError(
            f"{LINES}: alpha scales lambda, which space.weights.genes must leave fixed"
        )
    spans = [v if isinstance(v, list) else [v, v] for v in (config.alpha, config.beta)]
    for alpha in spans[0]:
        for scale in (alpha, *(alpha + beta for beta in spans[1])):
            parameter.check(float(value) * scale, f"{LINES}: with alpha {alpha:g}, lambda")
