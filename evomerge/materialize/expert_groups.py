"""Merge the experts of a mixture into fewer, layer by layer: M-SMoE.

Each group has a leader, whose row of the router it keeps. The others' hidden units are brought into
the leader's order (weight matching, as in `models.alignment`), and a group's expert is the mean of
its experts by their frequencies. Groups are the base model's, whatever is merged into its experts.

Source: Li et al. 2023, arXiv:2310.01334. There every expert keeps its router row, and points to its
group's expert. A checkpoint that transformers loads has one row for each expert, so that a group
keeps its leader's, and as many groups in one layer as in the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from evomerge.common.errors import InputError
from evomerge.models.alignment.git_rebasin import assigned
from evomerge.models.layout import TensorSpec
from evomerge.models.mixture import MixtureLayer
from evomerge.models.source import Source
from evomerge.recipe import Mixture

INPUTS = 64
"""Random inputs on which experts are compared."""
DIGITS = 5
"""Decimals of a similarity that count, so that rounding decides no group."""


@dataclass(frozen=True)
class Groups:
    """The groups of one layer's experts.

    Attributes:
        leaders: of each group, in the order of the experts.
        members: of each group, expert → its share of the group's frequency, the leader's too.
        orders: expert that leads none → its hidden units in its leader's order, int64 (units,).
    """

    leaders: tuple[int, ...]
    members: tuple[Mapping[int, float], ...]
    orders: Mapping[int, Tensor]

    def merged(self, parts: MixtureLayer, spec: TensorSpec, whole: Tensor) -> Iterator[Tensor]:
        """Yield what each group has of a tensor with a part for every expert, in float32.

        A group of equal experts gives exactly the leader's part: members count by their
        differences from it.

        Args:
            whole: [experts, …].
        """
        for leader, shares in zip(self.leaders, self.members, strict=True):
            own = whole[leader].float()
            if spec == parts.choice_bias:  # a group is chosen where one of its experts was
                yield whole[[*shares]].float().amax()
            elif spec == parts.router:
                yield own
            else:
                merged = own.clone()
                for expert, share in shares.items():
                    if expert != leader:
                        theirs = self._aligned(parts, spec, expert, whole[expert]).float()
                        merged += share * (theirs - own)
                yield merged

    def spread(self, parts: MixtureLayer, spec: TensorSpec, gradient: Tensor) -> Tensor:
        """Turn ∂L/∂ what `merged` gives into ∂L/∂ what it was given, [experts, …], float32."""
        found = torch.zeros(parts.experts, *gradient.shape[1:], device=gradient.device)
        for own, leader, shares in zip(gradient, self.leaders, self.members, strict=True):
            if spec == parts.router:
                found[leader] = own
            if spec in (parts.router, parts.choice_bias):
                continue
            for expert, share in shares.items():
                back = self._aligned(parts, spec, expert, own, inverse=True)
                found[expert] = share * back.float()
        return found

    def _aligned(
        self,
        parts: MixtureLayer,
        spec: TensorSpec,
        expert: int,
        tensor: Tensor,
        inverse: bool = False,
    ) -> Tensor:
        """Bring an expert's matrix into its leader's order of units, or back."""
        order = self.orders.get(expert)
        if order is None:
            return tensor
        order = (order.argsort() if inverse else order).to(tensor.device)
        if spec == parts.outward:
            return tensor.index_select(1, order)
        return tensor.index_select(0, torch.cat([order, order + len(order)]))


class ExpertGroups:
    """Finds the groups of a model's layers, each once."""

    def __init__(self, base: Source) -> None:
        self._base = base
        self._lock = Lock()
        self._found: dict[tuple[int, str], Groups] = {}
        self._similar: dict[tuple[int, str], tuple[np.ndarray, np.ndarray | None]] = {}
        self._orders: dict[tuple[int, int, int], Tensor] = {}

    def of(self, parts: MixtureLayer, mixture: Mixture) -> Groups:
        """Return the groups of a layer.

        Raises:
            InputError: the statistics of the router are lacking, or do not fit.
        """
        key = (parts.layer, repr(mixture))
        with self._lock:
            if key not in self._found:
                self._found[key] = self._group(parts, mixture)
            return self._found[key]

    def _group(self, parts: MixtureLayer, mixture: Mixture) -> Groups:
        # 1. how alike experts are, and how much each is used
        about = (parts.layer, mixture.groups)
        if about not in self._similar:
            of_kind = self._by_outputs if mixture.groups == "weights" else self._by_router
            self._similar[about] = of_kind(parts)
        similar, used = self._similar[about]
        # 2. leaders, and the one that each of the others joins
        first = mixture.leads.get(parts.layer, ())
        leaders = sorted(leaders_of(similar, used, mixture.experts, first))
        joined: dict[int, list[int]] = {leader: [leader] for leader in leaders}
        for expert in range(parts.experts):
            if expert not in joined:
                joined[leaders[int(similar[expert, leaders].argmax())]].append(expert)
        # 3. shares of each group's frequency, and its experts' units in one order
        shares = tuple(_shares(sorted(group), used) for group in joined.values())
        pairs = {expert: leader for leader, group in joined.items() for expert in group[1:]}
        return Groups(tuple(leaders), shares, self._in_order(parts, pairs))

    def _by_outputs(self, parts: MixtureLayer) -> tuple[np.ndarray, None]:
        """Compare experts by what they give for random inputs; no frequencies are known.

        What an expert computes does not depend on the order of its units, as its weights do.
        """
        from transformers.activations import ACT2FN

        text = self._base.config.get_text_config(decoder=True)
        act = ACT2FN[getattr(text, "hidden_act", None) or text.hidden_activation]
        inward, outward = (self._base.read(s.name) for s in (parts.inward, parts.outward))
        drawn = np.random.Generator(np.random.Philox(key=parts.layer))
        shape = (INPUTS, outward.shape[1])
        inputs = torch.from_numpy(drawn.standard_normal(shape, dtype=np.float32))
        outputs = []
        with torch.no_grad():
            for into, out_of in zip(inward, outward, strict=True):
                gate, up = (inputs @ into.float().T).chunk(2, dim=-1)
                outputs.append(((act(gate) * up) @ out_of.float().T).reshape(-1))
        return _cosines(torch.stack(outputs)), None

    def _by_router(self, parts: MixtureLayer) -> tuple[np.ndarray, np.ndarray]:
        """Compare experts by the router's logits on the base's calibration texts.

        Raises:
            InputError: there are no such statistics.
        """
        file, name = self._base.calibration, parts.router.name
        found = None if file is None else file.read("router", name)
        if found is None or found.shape != (parts.experts + 1, parts.experts):
            raise InputError(
                f"recipe: mixture: groups: router needs the router statistics of {name} of the "
                "base; make them with evomerge calibrate --kinds router, and name the file in "
                "models.statistics"
            )
        used, gram = found[0].double().numpy(), found[1:].double()
        norms = gram.diagonal().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        return (gram / norms / norms[:, None]).numpy().round(DIGITS), used

    def _in_order(self, parts: MixtureLayer, pairs: Mapping[int, int]) -> dict[int, Tensor]:
        """Find for each expert the order of its units that is most like its leader's.

        Args:
            pairs: expert → its leader.
        """
        keys = {expert: (parts.layer, leader, expert) for expert, leader in pairs.items()}
        if any(key not in self._orders for key in keys.values()):
            inward, outward = (self._base.read(s.name) for s in (parts.inward, parts.outward))
        for expert, key in keys.items():
            if key in self._orders:
                continue
            # Σ over gate, up and down of ⟨leader's unit i, expert's unit j⟩
            one, other = key[1], expert
            similar = torch.zeros(outward.shape[-1], outward.shape[-1])
            for ours, theirs in zip(inward[one].chunk(2), inward[other].chunk(2), strict=True):
                similar.addmm_(ours.float(), theirs.float().T)
            similar.addmm_(outward[one].float().T, outward[other].float())
            self._orders[key] = torch.from_numpy(assigned(similar.numpy())[0])
        return {expert: self._orders[key] for expert, key in keys.items()}


def leaders_of(
    similar: np.ndarray, used: np.ndarray | None, count: int, first: Sequence[int] = ()
) -> list[int]:
    """Choose the experts that lead a group.

    By usage, where it is known: the most used first, as M-SMoE does, but one that is the same as a
    leader only when no others are left. Else those that are least alike: first the one that is most
    like all, then always the one whose nearest leader is farthest. Of equals the lower one.

    Args:
        similar: (experts, experts), 1 where two are the same.
        used: (experts,), frequencies.
        count: of leaders.
        first: those that are chosen already.
    """
    leaders = list(first)
    left = [one for one in range(len(similar)) if one not in leaders]
    while len(leaders) < count:
        nearest = similar[:, leaders].max(axis=1) if leaders else -similar.sum(axis=1)
        if used is None:
            chosen = min(left, key=lambda one: (nearest[one], one))
        else:
            same = nearest >= 1 if leaders else np.zeros(len(similar), dtype=bool)
            chosen = min(left, key=lambda one: (same[one], -used[one], one))
        leaders.append(chosen)
        left.remove(chosen)
    return leaders


def _shares(group: Sequence[int], used: np.ndarray | None) -> dict[int, float]:
    """Share a group's frequency; experts of a group that is never used count the same."""
    frequencies = [1.0 if used is None else float(used[one]) for one in group]
    total = math.fsum(frequencies)
    if total == 0:
        return dict.fromkeys(group, 1 / len(group))
    return {one: own / total for one, own in zip(group, frequencies, strict=True)}


def _cosines(vectors: Tensor) -> np.ndarray:
    """Return the cosines of rows with each other, rounded; 0 with a row of zeros."""
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    return (unit @ unit.T).numpy().round(DIGITS)
