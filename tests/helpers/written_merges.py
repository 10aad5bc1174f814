"""Merges written by a kernel, compiled or not."""

from __future__ import annotations

import torch

from evomerge.materialize.kernel import Kernel
from evomerge.materialize.plan import plan


def written(models, recipe, **options):
    kernel, tensors = Kernel(models.sources, **options), {}
    for step in plan(recipe, models.layout, models.sources):
        tensors[step.tensor.name] = torch.empty(step.tensor.shape)
        kernel.fill(tensors[step.tensor.name], step, recipe.seed)
    return kernel, tensors
