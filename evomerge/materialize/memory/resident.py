"""A model built once, into which every candidate is written in place."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from evomerge.common.accelerator import device_name
from evomerge.materialize.disk.scales import embedding_factor
from evomerge.materialize.disk.weight_record import WeightsRecord, record_of
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.memory.gpu_memory import device_map, spread
from evomerge.materialize.memory.layers import (
    Layers,
    WeightKey,
    Weights,
    layer_key,
    set_attributes,
    weight_key,
)
from evomerge.materialize.plan import TensorStep, plan
from evomerge.models.layout import Layout
from evomerge.models.mixture import mixture_layers, set_experts, settings_with_experts
from evomerge.models.tokens.tokenizer import load_generation_config
from evomerge.recipe import BASE, Recipe


class Resident:
    """The base model's architecture with uninitialised weights, ready for recipes.

    Attributes:
        model: the transformers model, in evaluation mode, without gradients. Its weights are those
            of the last recipe written; tied weights share storage, and so do slots of the path with
            the same weights. Its config is the recipe's too: depth, layer types by slot, experts.
        written: each stored weight of the last recipe, once, with the step that makes it.
        reuse: of the last recipe, the numbers of `tensors` and of their `parameters`, and, as
            `tensors kept` and `parameters kept`, of those that were in the model already.
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
        if (settings := load_generation_config(base.tokenizer_folder)) is not None:
            model.generation_config = settings
        model = spread(model, device_map(model)) if parallel else model.to(kernel.device)
        self.model = model.eval().requires_grad_(False)
        self._outside = Weights(self.model.state_dict(keep_vars=True))
        self._layers = Layers(self.model, layout, base.config)
        self._flags = {"trust_remote_code": trust_remote_code}
        self._experts: int | None = None
        self.written: Sequence[tuple[Tensor, TensorStep]] = ()
        self.reuse: Mapping[str, int] = {}

    @torch.no_grad()
    def write(self, recipe: Recipe) -> None:
        """Overwrite the model's weights with the recipe's, and wire its layers into the path.

        A weight that is made already of what the recipe says, by this or an earlier one (the same
        rule, coefficients, experts and seed, or the same copy), is not written again.

        Raises:
            InputError: the recipe does not fit the models.
            NonFiniteError: a merged tensor is not finite; the weights are then part old, part new,
                until the next recipe is written.
        """
        steps = plan(recipe, self._layout, self._kernel.sources)
        self._set_experts(steps)
        # 1. which weights each step is for: those outside of the layers, and those of the slots
        inside = (step for step in steps if step.slot is not None)
        slots = [list(group) for _, group in groupby(inside, key=lambda step: step.slot)]
        keys = [layer_key(slot, recipe.seed) for slot in slots]
        weights = self._layers.assign([slot.layer for slot in recipe.path], keys)
        held = [(self._outside, step) for step in steps if step.slot is None]
        held += [(one, step) for one, slot in zip(weights, slots, strict=True) for step in slot]
        # 2. each of them once, for slots may share weights: the first one's step makes it
        once: dict[int, tuple[Weights, TensorStep]] = {}
        for one, step in held:
            once.setdefault(id(one.tensors[step.tensor.suffix]), (one, step))
        lacking: list[tuple[Weights, TensorStep, WeightKey]] = []
        for one, step in once.values():
            key = weight_key(step, recipe.seed)
            if not one.holds(step.tensor.suffix, key):
                lacking.append((one, step, key))
        # 3. merge those that are not there; if that fails, nothing is known of any of them
        for one, step, _ in lacking:
            one.forget(step.tensor.suffix)
        targets = [(one.tensors[step.tensor.suffix].data, step) for one, step, _ in lacking]
        self._kernel.fill_all(targets, recipe.seed)
        for one, step, key in lacking:
            one.remember(step.tensor.suffix, key)
        # 4. wire the path, and say what was done
        self._layers.wire(weights, recipe.path)
        self.written = [(one.tensors[s.tensor.suffix], s) for one, s in once.values()]
        self.reuse = _reuse([weight for weight, _ in self.written], [out for out, _ in targets])

    def _set_experts(self, steps: Sequence[TensorStep]) -> None:
        """Give the model's mixtures as many experts as the steps make, in the same memory."""
        sizes = {step.name: step.shape[0] for step in steps if step.mixture is not None}
        experts = next(iter(sizes.values()), None)
        if experts == self._experts:
            return
        config = self._kernel.sources[BASE].config
        count = experts or next(iter(mixture_layers(self._layout).values())).experts
        settings = settings_with_experts(config, count, **self._flags)
        self._layers.cut(sizes, settings)
        for name, own in settings.items():
            if not name.startswith(f"{self._layout.prefix}."):
                set_attributes(self.model.get_submodule(name), own)
        set_experts(self.model.config, config, count)
        self._experts = experts

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


def _reuse(tensors: Sequence[Tensor], written: Sequence[Tensor]) -> dict[str, int]:
    """Count tensors and parameters, and those that were not written; see `Resident.reuse`."""
    parameters = sum(tensor.numel() for tensor in tensors)
    return {
        "tensors": len(tensors),
        "tensors kept": len(tensors) - len(written),
        "parameters": parameters,
        "parameters kept": parameters - sum(tensor.numel() for tensor in written),
    }
