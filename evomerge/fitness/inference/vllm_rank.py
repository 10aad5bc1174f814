"""What every rank of a vLLM engine can do beside vLLM's own methods: take a candidate's weights."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evomerge.materialize.kernel import Kernel
    from evomerge.materialize.statistics.store import Store
    from evomerge.models.layout import Layout
    from evomerge.models.source import Source
    from evomerge.recipe import Recipe


class Rank:
    """Is mixed into vLLM's worker (`worker_extension_cls`); its methods run in every rank.

    vLLM fuses and shards the tensors itself, as when it reads a checkpoint.
    """

    reload_weights: Any

    def load_candidate(self, recipe: Recipe, layout: Layout, kernel: Kernel) -> None:
        """Replace the weights by a recipe's, tensor by tensor, rounded as its checkpoint is.

        `layout` is the base model's.

        Raises:
            NonFiniteError: a merged tensor is not finite; the weights are then in part the last
                candidate's, until the next is loaded.
        """
        from evomerge.materialize.disk.stream import saved_parts

        parts = (part() for part in saved_parts(recipe, layout, kernel))
        self.reload_weights(weights_iterator=chain.from_iterable(parts))

    def merge_candidate(
        self,
        recipe: Recipe,
        layout: Layout,
        sources: Mapping[str, Source],
        weights: str,
        store: Store | None,
    ) -> None:
        """Do so in a process of its own: sources are mapped here, and merged by the CPU.

        Args:
            recipe: the candidate.
            layout: the base model's.
            sources: name → model.
            weights: the dtype to which tensors are rounded, as `Kernel` has it.
            store: what the models alone decide, shared with the other workers.
        """
        from evomerge.materialize.kernel import Kernel
        from evomerge.materialize.statistics.statistics import Statistics

        if getattr(self, "_kernel", None) is None:
            self._kernel = Kernel(sources, weights, statistics=Statistics(store=store))
        self.load_candidate(recipe, layout, self._kernel)
