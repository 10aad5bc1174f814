"""Small models with texts of random tokens, and statistics taken of them in the plainest way."""

from __future__ import annotations

import torch
from families import FAMILIES
from torch import nn
from transformers.pytorch_utils import Conv1D

from evomerge.fitness.calibration.layered_model import LayeredModel
from evomerge.models.open_models import open_model

LENGTHS = (9, 24, 2, 17, 5)


def texts(lengths=LENGTHS, vocabulary=50):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, vocabulary, (n,), generator=generator) for n in lengths]


def saved(family, folder, **changes):
    """A model of a family as transformers has it, and its folder."""
    model = FAMILIES[family]() if isinstance(family, str) else family
    model.save_pretrained(folder)
    return model, folder


def layered(folder, given):
    return LayeredModel(open_model(str(folder)), "the model", given[0])


def inputs_of(model, given):
    """Module's name → its inputs at all tokens, [tokens, in], by hooks on the whole model."""
    found = {}

    def keep(name):
        return lambda _, args: found.setdefault(name, []).append(args[0].detach())

    own = [
        (name, module)
        for name, module in model.named_modules()
        if getattr(module, "weight", None) is not None and not isinstance(module, nn.Embedding)
    ]
    handles = [module.register_forward_pre_hook(keep(name)) for name, module in own]
    with torch.no_grad():
        for text in given:
            model(text[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return {
        name: torch.cat([x.reshape(-1, x.shape[-1]) for x in inputs])
        for name, inputs in found.items()
    }


def is_matrix(module):
    return isinstance(module, nn.Linear | Conv1D)


def gradients_of(model, text):
    """Name → gradient of the text's summed negative log-likelihood, by autograd on the whole."""
    model.requires_grad_(True)
    model.zero_grad()
    logits = model(text[None], use_cache=False).logits[0, :-1].double()
    (-logits.log_softmax(-1).gather(-1, text[1:, None])).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
