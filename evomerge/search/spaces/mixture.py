"""`MixtureSpace`: the experts within one mixture merged into fewer, alone or after a merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from typing_extensions import override

from evomerge.common.errors import InputError
from evomerge.config import MixtureConfig, TokenizerConfig, WeightsConfig
from evomerge.methods.core.calibration_in_recipes import with_calibration
from evomerge.models.layout import Layout
from evomerge.models.mixture import mixture_layers
from evomerge.recipe import BASE, Mixture, Recipe
from evomerge.search.spaces.genes import Gene, Genome
from evomerge.search.spaces.granularity import tuned_groups
from evomerge.search.spaces.parents_and_baselines import LayerOrderRecipes
from evomerge.search.spaces.space import Space
from evomerge.search.spaces.sparsify_and_lines import Wrapped

EXPERTS = "mixture.experts"
LEADS = 0.5
"""The value of an expert's gene above which it leads a group."""
UNDECIDED = 0.25
"""Where the genes of experts begin: few of their neighbours lead."""


class BaseAlone(Space):
    """A space without genes, whose one recipe is the base model."""

    def __init__(
        self,
        layout: Layout,
        digests: Mapping[str, str],
        tokenizer: TokenizerConfig | None = None,
    ) -> None:
        """`digests`: source name → content digest, the base first; `tokenizer`: how the sources'
        tokens were matched.
        """
        super().__init__([], seeds={})
        groups = list(tuned_groups(WeightsConfig(method="linear", granularity="model"), layout))
        recipes = LayerOrderRecipes(digests, groups, layout.layers, 0, tokenizer)
        self._parents = recipes.parents()
        self.seeds = {BASE: self.initial}
        self.label = BASE

    @override
    def decode(self, genome: Genome) -> Recipe:
        return self._parents[BASE]

    @override
    def parents(self) -> dict[str, Recipe]:
        return self._parents

    @override
    def baselines(self) -> dict[str, Recipe]:
        return {}


class MixtureSpace(Wrapped):
    """A space whose models are mixtures, with their experts merged into fewer.

    The gene `mixture.experts`, how many each layer has then, stands before those of the inner
    space; as many as the model has leave the inner space's recipe as it is. With `per_layer: free`
    it is followed by `mixture.lead.LAYER.EXPERT` of every expert of every layer: those above a half
    lead a group, those of the largest values if they are too many; the rule fills what is left.
    """

    def __init__(
        self,
        config: MixtureConfig,
        inner: Space,
        layout: Layout,
        calibration: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Wrap `inner`; `calibration`: source → digest of its calibration file.

        Raises:
            InputError: the models are no mixtures, or have fewer experts than are asked for.
        """
        self._groups, self._calibration = config.groups, calibration
        try:
            layers = mixture_layers(layout)
        except InputError as error:
            raise InputError(f"space.mixture: {error}") from None
        self._all = next(iter(layers.values())).experts
        low, high = config.bounds
        if high > self._all:
            raise InputError(
                f"space.mixture.experts: {high}, but models.base has {self._all} experts a layer; "
                f"write at most {self._all}"
            )
        self._low = low
        own = [Gene(EXPERTS, low, high, kind="int")] if low < high else []
        self._leads: dict[int, list[str]] = {}
        if config.per_layer == "free":
            width, wide = len(str(layout.layers - 1)), len(str(self._all - 1))
            self._leads = {
                layer: [
                    f"mixture.lead.layer_{layer:0{width}d}.expert_{expert:0{wide}d}"
                    for expert in range(self._all)
                ]
                for layer in layers
            }
        names = [name for of_layer in self._leads.values() for name in of_layer]
        self._starts = [len(own) + place * self._all for place in range(len(self._leads))]
        genes = [*own, *map(Gene, names)]
        plain = {EXPERTS: float(self._all), **dict.fromkeys(names, UNDECIDED)}
        super().__init__(inner, [(-1, gene) for gene in genes], plain)
        self.label = f"{inner.label}, its experts merged into fewer"

    @override
    def decode(self, genome: Genome) -> Recipe:
        """The inner space's recipe with fewer experts."""
        values = self.own_values(genome)
        experts, leads = int(values.get(EXPERTS, self._low)), {}
        for layer, names in self._leads.items():
            ordered = sorted(range(self._all), key=lambda one: (-values[names[one]], one))
            leading = [one for one in ordered if values[names[one]] > LEADS][:experts]
            if leading:
                leads[layer] = tuple(sorted(leading))
        return self._with(self.inner.decode(self.inside(genome)), experts, leads)

    @override
    def baselines(self) -> dict[str, Recipe]:
        """The inner space's, and the base with as few experts as may be."""
        fewest = self._with(self.parents()[BASE], self._low)
        return {**self.inner.baselines(), f"{self._low} experts": fewest}

    @property
    @override
    def cuts(self) -> Sequence[int]:
        """Where a layer's genes begin, too."""
        return sorted({*self._starts, *super().cuts})

    @override
    def statistics(self, genome: Genome) -> dict[str, float]:
        """The number of experts, where it is searched, and the inner space's statistics."""
        own = {name: v for name, v in self.own_values(genome).items() if name == EXPERTS}
        return {**own, **self.inner.statistics(self.inside(genome))}

    def _with(
        self,
        recipe: Recipe,
        experts: int,
        leads: Mapping[int, tuple[int, ...]] = MappingProxyType({}),
    ) -> Recipe:
        if experts == self._all:
            return recipe
        mixture = Mixture(experts=experts, groups=self._groups, leads=dict(leads))
        return with_calibration(recipe.model_copy(update={"mixture": mixture}), self._calibration)
