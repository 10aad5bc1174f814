"""Experts whose units are permuted."""

import numpy as np
import torch

from evomerge.models.alignment.git_rebasin import Alignment, Move
from evomerge.models.alignment.permutable_rows import permutable_units


def shuffled(config, prefix, seed=0):
    """A random order of everything that may move, as an alignment."""
    rng = np.random.default_rng(seed)
    moves = {}
    for layer, units in enumerate(permutable_units(config)):
        orders = [(part, order) for m in units.mlps for order in [rng.permutation(m[0].count)]
                  for part in m]  # fmt: skip
        if units.heads is not None:
            shared = units.heads.k.count
            size = units.heads.q.count // shared
            groups = rng.permutation(shared)
            heads = np.concatenate([g * size + rng.permutation(size) for g in groups])
            by_count = {shared: groups, units.heads.q.count: heads}
            orders += [(part, by_count[part.count]) for part in units.heads.parts]
        for part, order in orders:
            moves.setdefault(f"{prefix}.{layer}.{part.suffix}", []).append(Move(part, order))
    return Alignment(moves, {})


def permuted(model, seed=0):
    """The model with its units and heads in a random order."""
    prefix = next(n for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList))
    orders = shuffled(model.config, prefix, seed)
    state = model.state_dict()
    model.load_state_dict({name: orders.apply(name, t) for name, t in state.items()})
    return model


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(3, 15)[None]).logits
