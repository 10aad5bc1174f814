"""Statistics of what enters a model's matrices: Gram matrices, magnitudes, what routers say.

`gram/W` is XᵀX / T, float32 [in, in], X the inputs of the matrix W at the T tokens of the texts;
matrices that read the same input share the first one's. `cross/W` is XᵀX̄ / T, X̄ the mean of what
enters W in several models, which are run side by side. `mean_abs/W` is the mean of |x| over the
tokens, float32 [in]; a norm's, too, which has an input for each of its weights. `router/W`, W a
router's, is float32 [1 + experts, experts]: the share of the tokens' choices that falls to each
expert, and ZᵀZ / T of the router's logits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from evomerge.common.errors import InputError
from evomerge.fitness.calibration.in_order import InOrder, in_threads
from evomerge.fitness.calibration.layered_model import LayeredModel
from evomerge.fitness.calibration.work_folder import States, WorkFolder
from evomerge.models.layout import Layout
from evomerge.models.mixture import mixture_layers

ROWS = 1024
"""Tokens whose inputs are multiplied at once: texts are put together until they have as many."""
COLUMNS = 512
"""Columns of a Gram matrix that are computed at once, from the diagonal on: it is symmetric."""
ENDS = "inputs-ends"


@dataclass(frozen=True)
class Watched:
    """A module whose inputs are looked at.

    Attributes:
        tensor: canonical name of its weight.
        size: numbers of an input.
        matrix: whether it multiplies by its weight.
    """

    tensor: str
    module: nn.Module
    size: int
    matrix: bool


def watched(model: LayeredModel, layer: int | None) -> list[Watched]:
    """List the modules of a layer, or of those outside the layers, with a weight and an input."""
    layout = model.source.layout
    inside = layout.tensors if layer is None else layout.tensors_of_layer(layer)
    shapes = {spec.name: spec.shape for spec in inside if spec.layer == layer}
    found = []
    for name, module in model.modules.items():
        shape = shapes.get(f"{name}.weight", ())
        if len(shape) not in (1, 2) or isinstance(module, nn.Embedding):
            continue
        size = shape[0] if isinstance(module, Conv1D) else shape[-1]
        found.append(
            Watched(f"{name}.weight", module, size, isinstance(module, nn.Linear | Conv1D))
        )
    return found


def check_inputs(layout: Layout, name: str, kinds: Sequence[str]) -> None:
    """Refuse statistics of routers of models that have none.

    Raises:
        InputError: names the model.
    """
    if "router" in kinds:
        try:
            mixture_layers(layout)
        except InputError as error:
            raise InputError(f"{name}: router: {error}") from None


def without_inputs(layout: Layout) -> str | None:
    """Return a tensor whose matrices, a mixture's experts, have inputs that no module sees."""
    return next((spec.name for spec in layout.tensors if spec.matrices > 1), None)


class _Inputs(threading.local):
    """The inputs that a pass in this thread has met: tensor's name → [tokens, in].

    Beside a router's stand, under the name of its layer's experts, those that it chose: int64
    [tokens, chosen].
    """

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}


@contextmanager
def _hooked(modules: Sequence[Watched], experts: Mapping[str, nn.Module]) -> Iterator[_Inputs]:
    """Collect the inputs of modules within, each as the very tensor that the module was given.

    Args:
        modules: with a weight.
        experts: the experts of a layer, by the name of the module, and which of them are chosen.
    """
    inputs = _Inputs()

    def hook(one: Watched) -> torch.utils.hooks.RemovableHandle:
        def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if args and args[0].shape[-1] == one.size:
                inputs.seen[one.tensor] = args[0]

        return one.module.register_forward_pre_hook(keep)

    def hook_experts(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def keep(_: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
            inputs.seen[name] = kwargs["top_k_index"] if "top_k_index" in kwargs else args[1]

        return module.register_forward_pre_hook(keep, with_kwargs=True)

    handles = [hook(one) for one in modules]
    handles += [hook_experts(name, module) for name, module in experts.items()]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


class _Sums:
    """Sums over tokens of XᵀX, XᵀX̄, |x| and what routers say, in the order of the units."""

    def __init__(
        self,
        modules: Sequence[Watched],
        kinds: Sequence[str],
        routers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`routers`: router's weight → the name of the module of its experts."""
        self._kinds, self._routers = {*kinds} - {"router"}, routers
        self.modules = [one for one in modules if self._kinds or one.tensor in routers]
        self.crossed: dict[str, Tensor] = {}
        self.routed: dict[str, Tensor] = {}
        self.shared: dict[str, str] = {}
        self.products: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}

    def add(
        self, unit: int, own: int, models: Sequence[Sequence[Mapping[str, Tensor]]], order: InOrder
    ) -> None:
        """Add a unit's texts.

        Args:
            own: the place of the model whose statistics they are.
            models: of each, the texts, each as the inputs that its pass has met.
        """
        texts = models[own]
        # 1. matrices that were given the very same tensor share its first one's product
        owners: dict[int, str] = {}
        for one in self.modules:
            if one.matrix and one.tensor in texts[0]:
                owners.setdefault(id(texts[0][one.tensor]), one.tensor)
        for one in self.modules:
            name, given = one.tensor, texts[0].get(one.tensor)
            if given is None:  # a module that this architecture does not call
                continue
            rows = _rows(texts, one)
            owner = owners.get(id(given)) if one.matrix else None
            # 2. this unit's sums, on this thread alone
            first = self._kinds if owner == name else set()
            whole = "gram" in first
            blocks = [*_lower_blocks(rows)] if whole else []
            cross = rows.T @ _mean(models, one) if "cross" in first else None
            magnitudes = "mean_abs" in self._kinds
            sums = rows.abs().sum(0, dtype=torch.float64).cpu() if magnitudes else None
            routed = self._routed(one, rows, texts) if name in self._routers else None
            # 3. added in the units' order
            with order.turn(name, unit):
                self.rows[name] = self.rows.get(name, 0) + len(rows)
                if sums is not None:
                    self.sums[name] = self.sums[name] + sums if unit else sums
                if routed is not None:
                    self.routed[name] = self.routed[name] + routed if unit else routed
                if cross is not None:
                    self.crossed[name] = self.crossed[name] + cross if unit else cross
                if {"gram", "cross"} & self._kinds and owner not in (None, name):
                    self.shared[name] = str(owner)
                if whole and not unit:
                    self.products[name] = rows.new_zeros(one.size, one.size)
                for start, block in blocks:
                    self.products[name][start:, start : start + block.shape[1]] += block

    def _routed(
        self, router: Watched, rows: Tensor, texts: Sequence[Mapping[str, Tensor]]
    ) -> Tensor:
        """Count a router's choices, and multiply its logits: float64 [1 + experts, experts]."""
        weight: Tensor = router.module.weight  # type: ignore[assignment]
        logits = rows @ weight.float().T
        chosen = torch.cat([text[self._routers[router.tensor]].reshape(-1) for text in texts])
        counts = torch.bincount(chosen, minlength=len(weight))[: len(weight)]
        return torch.cat([counts[None].double(), (logits.T @ logits).double()]).cpu()

    def statistics(self) -> dict[str, Tensor]:
        """The means, by their keys in the file."""
        found = {}
        for name, total in self.routed.items():
            shares, products = total[:1] / total[0].sum(), total[1:] / self.rows[name]
            found[f"router/{name}"] = torch.cat([shares, products]).float()
        for name, total in self.sums.items():
            found[f"mean_abs/{name}"] = (total / self.rows[name]).float()
        for name, product in self.products.items():
            lower = product.div_(self.rows[name]).tril_()
            found[f"gram/{name}"] = (lower + lower.tril(-1).T).cpu()
        for name, product in self.crossed.items():
            found[f"cross/{name}"] = (product / self.rows[name]).cpu()
        return found


def _rows(texts: Sequence[Mapping[str, Tensor]], one: Watched) -> Tensor:
    """Put the texts' inputs of a module together, float32 [tokens, in]."""
    return torch.cat([text[one.tensor].reshape(-1, one.size) for text in texts]).float()


def _mean(models: Sequence[Sequence[Mapping[str, Tensor]]], one: Watched) -> Tensor:
    """Average a module's inputs over the models, float32 [tokens, in]."""
    first, *rest = (_rows(texts, one) for texts in models)
    return sum(rest, first) / len(models)


def _lower_blocks(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield XᵀX from the diagonal down, column block by column block, with its first column."""
    size = rows.shape[1]
    for start in range(0, size, COLUMNS):
        yield start, rows[:, start:].T @ rows[:, start : start + COLUMNS]


def take_inputs(
    model: LayeredModel,
    texts: Sequence[Tensor],
    kinds: Sequence[str],
    work: WorkFolder,
    threads: int,
    told: Callable[[str], None],
    together: Sequence[LayeredModel] = (),
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Take `gram`, `cross`, `mean_abs` and `router` with one pass of the texts, layer by layer.

    In memory are the weights of one layer, its Gram matrices, and of each thread one text's
    activations and one Gram matrix more; hidden states are in mapped files. A process that was
    killed loses the layer that it was in.

    Args:
        texts: int64 [tokens] each.
        threads: how many texts are run at once.
        told: is told of each layer.
        together: the models that `cross` is about, this one among them.

    Returns:
        the statistics, mapped, by their keys; and matrix → the matrix whose Gram it shares.

    Raises:
        InputError: one is not finite; names the model and the tensor.
    """
    lengths, size = [len(text) for text in texts], model.hidden_size
    units, models = _units(lengths), together or [model]
    own = [one is model for one in models].index(True)
    mixtures = mixture_layers(model.source.layout) if "router" in kinds else {}
    parts = [f"inputs-of-layer-{layer}" for layer in range(model.layers)]
    # 1. what enters the first layer; the model's own states are there last, and stand for all
    if not work.has("inputs-0") and not work.has(parts[0]):
        with _written(work, _names(0, own, models), own, lengths, size) as states, torch.no_grad():
            for one, entered in zip(models, states, strict=True):
                for index, text in enumerate(texts):
                    entered.write(index, one.first(text))
    # 2. layer by layer
    for layer, part in enumerate(parts):
        if work.has(part):
            continue
        mixture = mixtures.get(layer)
        experts = mixture.inward.name.rpartition(".")[0] if mixture else ""
        routers = {mixture.router.name: experts} if mixture else {}
        chosen = {experts: model.modules[experts]} if mixture else {}
        sums = _Sums(watched(model, layer), kinds, routers)
        with ExitStack() as held:
            for one in models:
                held.enter_context(one.loaded(layer))
            before = [work.states(name, lengths, size) for name in _names(layer, own, models)]
            names = _names(layer + 1, own, models)
            after = held.enter_context(_written(work, names, own, lengths, size))
            passes = [
                _Pass(one.through, watched(one, layer), given, left)
                for one, given, left in zip(models, before, after, strict=True)
            ]
            passes[own] = replace(passes[own], modules=sums.modules, experts=chosen)
            _run(passes, own, sums, texts, units, threads)
        work.keep(part, check_finite(model.name, sums.statistics()), sums.shared)
        for name in _names(layer, own, models):
            work.drop(name)
        told(f"{', '.join(kinds)}: layer {layer + 1} of {model.layers}")
    # 3. the final norm and the head, which have no Gram matrices
    if "mean_abs" in kinds and not work.has(ENDS):
        sums = _Sums(watched(model, None), ["mean_abs"])
        last = work.states(f"inputs-{model.layers}", lengths, size)
        _run([_Pass(model.logits, sums.modules, last, None)], 0, sums, texts, units, threads)
        work.keep(ENDS, check_finite(model.name, sums.statistics()), {})
    for name in _names(model.layers, own, models):
        work.drop(name)
    found: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    for part in (*parts, *([ENDS] if "mean_abs" in kinds else [])):
        found |= work.part(part)
        shared |= work.facts(part)
    return found, shared


@dataclass(frozen=True)
class _Pass:
    """Runs the texts through a model's loaded layer, or its head.

    Attributes:
        run: (text, hidden states before) → those after.
        modules: whose inputs are looked at.
        before: hidden states of the texts.
        after: where they are written; None after the head.
        experts: as `_hooked` takes them.
    """

    run: Callable[[Tensor, Tensor], Tensor]
    modules: Sequence[Watched]
    before: States
    after: States | None
    experts: Mapping[str, nn.Module] = field(default_factory=dict)


def _names(layer: int, own: int, models: Sequence[LayeredModel]) -> list[str]:
    """Name the states before a layer, of each model."""
    name = f"inputs-{layer}"
    return [name if place == own else f"{name}-of-{place}" for place in range(len(models))]


@contextmanager
def _written(
    work: WorkFolder, names: Sequence[str], own: int, lengths: Sequence[int], size: int
) -> Iterator[list[States]]:
    """Yield the states of each model to write; the `own` one's are there last."""
    with work.writing(names[own], lengths, size) as last, ExitStack() as held:
        yield [
            last if place == own else held.enter_context(work.writing(name, lengths, size))
            for place, name in enumerate(names)
        ]


def _run(
    passes: Sequence[_Pass],
    own: int,
    sums: _Sums,
    texts: Sequence[Tensor],
    units: Sequence[range],
    threads: int,
) -> None:
    """Run all texts through all passes side by side, and add up the inputs of the `own` one's."""
    with ExitStack() as held:
        inputs = [held.enter_context(_hooked(one.modules, one.experts)) for one in passes]

        def one(number: int, unit: range, order: InOrder) -> None:
            seen: list[list[Mapping[str, Tensor]]] = [[] for _ in passes]
            for index in unit:
                for each, met, kept in zip(passes, inputs, seen, strict=True):
                    met.seen = {}
                    with torch.no_grad():
                        found = each.run(texts[index], each.before.read(index))
                    if each.after is not None:
                        each.after.write(index, found)
                    kept.append(met.seen)
            sums.add(number, own, seen, order)

        in_threads(one, units, threads)


def _units(lengths: Sequence[int]) -> list[range]:
    """Put texts that follow each other together until they have `ROWS` tokens."""
    found, start, tokens = [], 0, 0
    for index, length in enumerate(lengths):
        tokens += length
        if tokens >= ROWS or index == len(lengths) - 1:
            found.append(range(start, index + 1))
            start, tokens = index + 1, 0
    return found


def check_finite(name: str, statistics: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return statistics, all of whose numbers are finite.

    Raises:
        InputError: one's are not; names model, kind and tensor.
    """
    for key, values in statistics.items():
        if not torch.isfinite(values).all():
            kind, _, tensor = key.partition("/")
            bad = values[~torch.isfinite(values)][0]
            raise InputError(
                f"{name}: the {kind} of {tensor} holds {bad.item()}; its "
                "activations overflow on these texts: leave them out, or the model"
            )
    return statistics
