"""Priors: starts for genes of layers, proposed from what the models' data says of each layer.

Sens-Merging (Liu et al. 2025, arXiv:2502.12420) and FIM-Merging (Xia 2026, arXiv:2603.21705) give
the weights of experts, LEWIS (Chopra et al. 2025, arXiv:2503.03874) densities. A layer is here a
group of tensors that are tuned together, whatever the granularity. WSM (Tian et al. 2025,
arXiv:2507.17634) weighs checkpoints of one training run, and needs no data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.common.errors import InputError
from evomerge.config import PriorStart, WeightsConfig
from evomerge.materialize.statistics.grams import grams
from evomerge.models.checks.checked_models import CheckedModels
from evomerge.models.files.calibration_file import CalibrationFile
from evomerge.models.layout import TensorSpec
from evomerge.models.source import Source
from evomerge.models.vocabulary import with_base_rows
from evomerge.recipe import BASE
from evomerge.search.spaces.genes import Genome
from evomerge.search.spaces.granularity import tuned_groups, without_piece
from evomerge.search.spaces.space import Space

ROWS = 1 << 18
"""Entries of a tensor that are held in float64 at a time."""
Values = NDArray[np.float64]
"""Shape (experts, groups)."""


def prior_point(
    start: PriorStart, weights: WeightsConfig | None, space: Space, models: CheckedModels
) -> Genome:
    """Return the genome that a prior proposes; genes that it says nothing of are as at the start.

    Values out of a gene's bounds go to the nearest. `fim` and `lewis` read
    every model once.

    Raises:
        InputError: the space has no genes by layer for it, or a model's statistics do not do; of
            models that lack them `check_needs` has said so before.
    """
    if weights is None or (weights.granularity == "model" and start.prior != "wsm"):
        raise InputError(
            f"{start.prior} is by layer; search weights, with space.weights.granularity: layer, "
            "block, module or tensor"
        )
    groups = list(tuned_groups(weights, models.layout))
    tensors = [group.tensors(models.layout) for group in groups]
    compute = {"sens": _sens, "fim": _fim, "lewis": _lewis, "wsm": _wsm}[start.prior]
    values = compute(start, tensors, models)
    parameter = "density" if start.prior == "lewis" else "weight"
    params: dict[str, float] = {}
    known: dict[str, list[str]] = {}
    for gene in space.genes:  # a piece of a tensor begins as the whole tensor would
        known.setdefault(without_piece(gene.name), []).append(gene.name)
    experts = [name for name in models.sources if name != BASE]
    for group, own in zip(groups, values.T, strict=True):
        for names, value in _names(parameter, group.label, experts, own, weights.methods):
            params |= {gene: value for name in names for gene in known.get(name, ())}
    if not params:
        raise InputError(
            f"{start.prior} proposes {parameter}, which has no genes here; search it "
            f"(space.weights.genes.{parameter})"
        )
    return space.genome_of(params)


def _names(
    parameter: str, label: str, experts: Sequence[str], values: Values, methods: Sequence[str]
) -> Iterator[tuple[list[str], float]]:
    """Yield the names that a group's genes may have, with their value: each expert's, or all's."""
    kinds = [parameter, *(f"{method}.{parameter}" for method in methods)]
    for expert, value in zip(experts, values, strict=True):
        yield [f"{kind}.{label}.{expert}" for kind in kinds], float(value)
    wrappers = [f"{key}.{parameter}" for key in ("sparsify", "dare")]
    yield [f"{kind}.{label}" for kind in (*kinds, *wrappers)], float(values.mean())


# Sens-Merging


def _sens(
    start: PriorStart, tensors: Sequence[Sequence[TensorSpec]], models: CheckedModels
) -> Values:
    """Weights by how sensitive each expert's loss on its own texts is to a layer, beside others'.

    The cross-task factors τ are as the campaign file says, equal by default: how papers and code
    derive them from distances of logits differs in sign, and the search may find them.
    """
    experts = [name for name in models.sources if name != BASE]
    if unknown := set(start.tau) - set(experts):
        raise InputError(f"tau: no expert {min(unknown)!r}; there are {', '.join(experts)}")
    # 1. s_il = Σ over the layer's θ of the mean over texts of |θ ∂L/∂θ|
    found = np.array(
        [[_total(models.sources[name], "sens", group) for group in tensors] for name in experts]
    )
    # 2. α_il = s_il / ‖s_i‖₂ over layers; τ_i sum to 1
    alpha = sens_shares(found)
    tau = np.array([start.tau.get(name, 1.0) for name in experts])
    if not tau.any():
        raise InputError("tau: is 0 for every expert; give one a larger value")
    # 3. σ_il = softmax over experts of τ_i α_il / T; the coefficient is λ N σ_il
    return _scale(start, experts) * len(experts) * sens_weights(alpha, tau, start.temperature)


def sens_shares(sensitivities: Values) -> Values:
    """Divide each expert's sensitivities by their L2 norm over the layers; zeros stay zeros."""
    norms = np.sqrt(np.square(sensitivities).sum(axis=1, keepdims=True))
    return sensitivities / np.where(norms > 0, norms, 1.0)


def sens_weights(alpha: Values, tau: NDArray[np.float64], temperature: float) -> Values:
    """Return σ, softmax over experts of τ_i α_il / T, τ made to sum to 1; columns sum to 1.

    Args:
        alpha: shares of sensitivity, shape (experts, layers).
        tau: factors of experts, not negative, shape (experts,).
        temperature: T, over 0; the larger, the more alike experts count.
    """
    logits = (tau / tau.sum())[:, None] * alpha / temperature
    powers = np.exp(logits - logits.max(axis=0))
    return powers / powers.sum(axis=0)


# FIM-Merging


def _fim(
    start: PriorStart, tensors: Sequence[Sequence[TensorSpec]], models: CheckedModels
) -> Values:
    """Smaller weights where the base's curvature times the length of the change is larger."""
    experts = [name for name in models.sources if name != BASE]
    # 1. the layer's mean diagonal Fisher of the base, and ‖τ_il‖² of each expert
    entries = [sum(math.prod(spec.shape) for spec in group) for group in tensors]
    fisher = np.array(
        [
            _total(models.sources[BASE], "fisher", group) / max(count, 1)
            for group, count in zip(tensors, entries, strict=True)
        ]
    )
    lengths = np.diagonal(grams(models.sources, tensors, task_vectors=True), axis1=1, axis2=2).T
    # 2. scores to coefficients, λ times
    return _scale(start, experts) * fim_coefficients(fisher * lengths, start.sharpness)


def fim_coefficients(scores: Values, sharpness: float) -> Values:
    """Return σ(−sharpness · z), z the standardised logarithms of each expert's scores.

    The paper takes logarithms, normalises them over the layers and maps them by a sigmoid, so that
    a layer of a high score gets a small coefficient; its constants are not published. Layers of
    score 0, where nothing changed, get 1.

    Args:
        scores: mean diagonal Fisher × ‖τ‖², not negative, shape (experts, layers).
        sharpness: how far apart the coefficients lie; at 0 all are ½.
    """
    found = np.ones_like(scores)
    for row, own in zip(found, scores, strict=True):
        there = own > 0
        if there.any():
            logs = np.log(own[there])
            spread = logs.std()
            row[there] = 1 / (1 + np.exp(sharpness * (logs - logs.mean()) / (spread or 1.0)))
    return found


# LEWIS


def _lewis(
    start: PriorStart, tensors: Sequence[Sequence[TensorSpec]], models: CheckedModels
) -> Values:
    """Higher densities where a layer's activations, weighed by its weights, changed the most."""
    sources = models.sources
    if len({_file(source).head.documents for source in sources.values()} - {""}) > 1:
        raise InputError(
            "lewis compares the base and the experts on the same texts, and their statistics are "
            "of different ones; give one source of texts to all models (calibration.documents or "
            "task, without per_expert), and calibrate them again"
        )
    # 1. ‖ |W| · ‖x‖ ‖_F of every matrix that has statistics, in each model
    matrices = [spec for group in tensors for spec in group if _is_measured(spec, sources)]
    norms = {
        name: np.array([_activation_norm(source, sources[BASE], spec) for spec in matrices])
        for name, source in sources.items()
    }
    # 2. densities of the matrices; a group's is their mean by entries, 1 where it has none
    suffixes = [spec.suffix for spec in matrices]
    place = {spec.name: index for index, spec in enumerate(matrices)}
    rows = []
    for name in sources:
        if name == BASE:
            continue
        own = lewis_densities(np.abs(norms[name] - norms[BASE]), suffixes, start.low, start.high)
        rows.append([_mean_of(group, own, place) for group in tensors])
    return np.array(rows)


def lewis_densities(
    changes: NDArray[np.float64], suffixes: Sequence[str], low: float, high: float
) -> NDArray[np.float64]:
    """Return densities: changes as shares of each component's, then stretched to [low, high].

    Args:
        changes: |norm of the expert − norm of the base| of each matrix, shape (matrices,).
        suffixes: of each, its component: its name within the layer.
        low: density of the matrix that changed the least.
        high: of the one that changed the most.
    """
    shares = np.array(changes, dtype=np.float64)
    for suffix in set(suffixes):
        own = np.array([one == suffix for one in suffixes])
        shares[own] /= shares[own].sum() or 1.0
    if len(shares) == 0 or np.ptp(shares) == 0:
        return np.full(len(shares), (low + high) / 2)
    return low + (shares - shares.min()) / np.ptp(shares) * (high - low)


def _is_measured(spec: TensorSpec, sources: Mapping[str, Source]) -> bool:
    """Say whether a tensor is a layer's matrix whose inputs are known in every model."""
    files = [_file(source) for source in sources.values()]
    return spec.layer is not None and all(f.read("gram", spec.name) is not None for f in files)


def _activation_norm(source: Source, base: Source, spec: TensorSpec) -> float:
    """√ Σ_j (E x_j²) Σ_i W_ij² of a matrix W, the mean over tokens from the Gram's diagonal."""
    gram = _file(source).read("gram", spec.name)
    assert gram is not None, "only matrices whose inputs are known are asked for"
    squares = gram.diagonal().double().numpy()
    weight = with_base_rows(source, base, spec)
    found = []
    for block in _blocks(weight.mT if spec.transposed else weight):
        found.append(float((np.square(block).sum(axis=0) * squares).sum()))
    return math.sqrt(math.fsum(found))


def _mean_of(
    group: Sequence[TensorSpec], densities: NDArray[np.float64], place: Mapping[str, int]
) -> float:
    """Return the mean density of a group's matrices, by their entries; 1 where it has none."""
    sizes = {place[one.name]: math.prod(one.shape) for one in group if one.name in place}
    if not sizes:
        return 1.0
    return float(np.average(densities[list(sizes)], weights=list(sizes.values())))


# WSM


def _wsm(
    start: PriorStart, tensors: Sequence[Sequence[TensorSpec]], models: CheckedModels
) -> Values:
    """The same weight for all layers of a checkpoint; experts are in the order of the run."""
    weights = wsm_weights(len(models.sources) - 1, start.decay)
    return np.repeat(weights[:, None], len(tensors), axis=1)


def wsm_weights(count: int, decay: str) -> NDArray[np.float64]:
    """Return weights c_1 … c_k of a run's checkpoints, whose sum is 1, that stand for a decay.

    With c_j = w_j − w_(j+1) and c_k = w_k (eq. of the paper's theorem) the weighted sum is the
    model of a run whose updates between checkpoints j − 1 and j were multiplied by w_j. The decay
    begins with w_1 = 1 at the checkpoint before the first, the base, whose weight is so 0.

    Args:
        count: k, of checkpoints at equal distances.
        decay: w_j for x = (j − 1)/k: `linear` 1 − x, `cosine` (1 + cos πx)/2, `sqrt` 1 − √x.
    """
    x = np.arange(count + 1) / count
    forms = {"linear": 1 - x, "cosine": (1 + np.cos(np.pi * x)) / 2, "sqrt": 1 - np.sqrt(x)}
    return -np.diff(forms[decay])


# All of them


def _scale(start: PriorStart, experts: Sequence[str]) -> float:
    return 1 / len(experts) if start.scale is None else start.scale


def _file(source: Source) -> CalibrationFile:
    """Return the model's calibration file; `check_needs` has seen that there is one."""
    assert source.calibration is not None
    return source.calibration


def _total(source: Source, kind: str, group: Sequence[TensorSpec]) -> float:
    """Sum a statistic over a group's tensors, float64; tensors without one count as 0."""
    held = (_file(source).read(kind, spec.name) for spec in group)
    parts = [float(block.sum()) for t in held if t is not None for block in _blocks(t)]
    return math.fsum(parts)


def _blocks(tensor: Tensor) -> Iterator[NDArray[np.float64]]:
    """Yield a tensor's rows in order, float64, some `ROWS` entries at a time."""
    width = tensor.shape[-1] if tensor.dim() > 1 else 1
    rows = tensor.reshape(-1, width)
    for part in rows.split(max(1, ROWS // width)):
        yield part.to(torch.float64).numpy()
