"""A model built once, into which every candidate is written in place."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from evomerge.materialize.kernel import Kernel
from evomerge.materialize.plan import plan
from evomerge.models.layout import Layout
from evomerge.recipe import BASE, Recipe


class Resident:
    """The base model's architecture with uninitialised weights, ready for recipes.

    Attributes:
        model: the transformers model, in evaluation mode, without gradients. Its weights are those
            of the last recipe written; tied weights share storage.
    """

    def __init__(
        self, layout: Layout, kernel: Kernel, compute: torch.dtype, trust_remote_code: bool = False
    ) -> None:
        base = kernel.sources[BASE]
        self._layout = layout
        self._kernel = kernel
        with no_init_weights():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                base.config, dtype=compute, trust_remote_code=trust_remote_code
            )
        model.tie_weights()
        if (base.folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(base.folder)
        self.model = model.to(kernel.device).eval().requires_grad_(False)
        self._tensors = self.model.state_dict(keep_vars=True)

    @torch.no_grad()
    def write(self, recipe: Recipe) -> None:
        """Overwrite the model's weights with the recipe's.

        Raises:
            InputError: the recipe does not fit the models.
            NonFiniteError: a merged tensor is not finite; the weights are then part old, part new,
                until the next recipe is written.
        """
        for step in plan(recipe, self._layout, self._kernel.sources):
            self._kernel.fill(self._tensors[step.tensor.name].data, step, recipe.seed)
