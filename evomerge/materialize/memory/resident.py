"""A model built once, into which every candidate is written in place."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from itertools import groupby

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from evomerge.common.accelerator import device_name
from evomerge.materialize.disk.scales import embedding_factor
from evomerge.materialize.disk.weight_record import WeightsRecord, record_of
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.memory.gpu_memory import device_map, spread
from evomerge.materialize.memory.layers import Layers, LayerWeights, WeightKey, weight_key
from evomerge.materialize.plan import TensorStep, plan
from evomerge.models.layout import Layout
from evomerge.recipe import BASE, Recipe


class Resident:
    """The base model's architecture with uninitialised weights, ready for recipes.

    Attributes:
        model: the transformers model, in evaluation mode, without gradients. Its weights are those
            of the last recipe written; tied weights share storage, and so do slots of the path with
            the same weights. Its config is the recipe's too: depth, and layer types by slot.
        written: each stored weight of the last recipe, once, with the step that makes it.
    """

    def __init__(
        self,
        layout: Layout,
        kernel: Kernel,
        compute: torch.dtype,
        trust_remote_code: bool = False,
        parallel: bool = False,
    ) -> None:
        """Build the model.

        Args:
            layout: of the base model.
            kernel: merges, and brings the sources to the device.
            compute: dtype of the model.
            parallel: spread it over all GPUs that the process sees.

        Raises:
            InputError: the model does not fit on them.
        """
        base = kernel.sources[BASE]
        self._layout = layout
        self._kernel = kernel
        self._compute = compute
        with no_init_weights():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                copy.deepcopy(base.config), dtype=compute, trust_remote_code=trust_remote_code
            )
        model.tie_weights()
        settings = base.tokenizer_folder
        if (settings / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(settings)
        model = spread(model, device_map(model)) if parallel else model.to(kernel.device)
        self.model = model.eval().requires_grad_(False)
        self._tensors = self.model.state_dict(keep_vars=True)
        self._layers = Layers(self.model, layout, base.config)
        self.written: Sequence[tuple[Tensor, TensorStep]] = ()

    @torch.no_grad()
    def write(self, recipe: Recipe) -> None:
        """Overwrite the model's weights with the recipe's, and wire its layers into the path.

        Layers whose weights are there already, from this or an earlier recipe, are not written.

        Raises:
            InputError: the recipe does not fit the models.
            NonFiniteError: a merged tensor is not finite; the weights are then part old, part new,
                until the next recipe is written.
        """
        steps = plan(recipe, self._layout, self._kernel.sources)
        # tensors outside the layers are written for every recipe
        targets = [(self._tensors[step.name].data, step) for step in steps if step.slot is None]
        inside = (step for step in steps if step.slot is not None)
        slots = [list(group) for _, group in groupby(inside, key=lambda step: step.slot)]
        keys = [weight_key(slot, recipe.seed) for slot in slots]
        weights = self._layers.assign([slot.layer for slot in recipe.path], keys)
        # write each slot's weights once, unless they are there already
        written: dict[int, tuple[LayerWeights, WeightKey]] = {}
        for one, slot, key in zip(weights, slots, keys, strict=True):
            if one.key != key and id(one) not in written:
                written[id(one)] = one, key
                one.key = None
                targets += [(one.tensors[step.tensor.suffix].data, step) for step in slot]
        self._kernel.fill_all(targets, recipe.seed)
        for one, key in written.values():
            one.key = key
        self._layers.wire(weights, recipe.path)
        # remember what makes each weight; slots that share weights count as the first of them
        made = [(self._tensors[step.name], step) for step in steps if step.slot is None]
        for one, slot in zip(weights, slots, strict=True):
            made += [(one.tensors[step.tensor.suffix], step) for step in slot]
        self.written = tuple({id(pair[0]): pair for pair in reversed(made)}.values())

    @torch.no_grad()
    def record(self, recipe: Recipe) -> WeightsRecord:
        """Record the weights of the recipe that was written last, named as in its checkpoint.

        Tensors have the names and pieces of the checkpoint, and the model's dtype: a checkpoint is
        compared rounded to that.

        Raises:
            InputError: no checkpoint can say the recipe's scales.
        """
        tensors, base = self.model.state_dict(), self._kernel.sources[BASE]
        factor = embedding_factor(recipe, self._layout)

        def part(step: TensorStep) -> list[tuple[str, Tensor]]:
            tensor = tensors[step.name].to("cpu", self._compute)
            scaled = step.slot is None and step.tensor.group == "embeddings" and factor != 1
            saved = base.as_saved({step.name: tensor * factor if scaled else tensor})
            return list(saved.items())

        steps = plan(recipe, self._layout, self._kernel.sources)
        device = self._kernel.device
        return record_of(
            recipe,
            [partial(part, step) for step in steps],
            statistics=self._kernel.statistics.store is not None,
            device=device_name(device),
            rounded_to=str(self._compute).removeprefix("torch."),
        )
