"""`MixtureSpace`: the experts within one mixture merged into fewer, alone or after a merge."""

from __future__ import annotations

from collections.abc import Mapping
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
    space; as many as the model has leave the inner space's recipe as it is.
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
        own = [(-1, Gene(EXPERTS, low, high, kind="int"))] if low < high else []
        super().__init__(inner, own, {EXPERTS: float(self._all)})
        self.label = f"{inner.label}, its experts merged into fewer"

    @override
    def decode(self, genome: Genome) -> Recipe:
        """The inner space's recipe with fewer experts."""
        experts = int(self.own_values(genome).get(EXPERTS, self._low))
        return self._with(self.inner.decode(self.inside(genome)), experts)

    @override
    def baselines(self) -> dict[str, Recipe]:
        """The inner space's, and the base with as few experts as may be."""
        fewest = self._with(self.parents()[BASE], self._low)
        return {**self.inner.baselines(), f"{self._low} experts": fewest}

    def _with(self, recipe: Recipe, experts: int) -> Recipe:
        if experts == self._all:
            return recipe
        mixture = Mixture(experts=experts, groups=self._groups)
        return with_calibration(recipe.model_copy(update={"mixture": mixture}), self._calibration)
