"""Find the experts of a mixture, and the config of the same mixture with fewer of them.

No architecture is named here: the experts of a layer are what transformers stacks in one tensor,
and whether a config with fewer of them means the same model otherwise is seen on a skeleton.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from evomerge.common.errors import InputError
from evomerge.models.layout import Layout, TensorSpec, build_skeleton, layout_of
from evomerge.models.messages import reason
from evomerge.models.path_config import settings_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

    from evomerge.models.checkpoint import Checkpoint

_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""What configs call the number of experts of a layer."""
_PER_TOKEN = "num_experts_per_tok"
_CHOICE = ("correction", "expert_bias")
"""Parts of the names of biases that decide which experts a token goes to, and nothing else."""


@dataclass(frozen=True)
class MixtureLayer:
    """The tensors of a layer that have a part for each of its experts.

    Attributes:
        layer: its index.
        experts: how many there are.
        inward: [experts, 2 · units, hidden], the gate's and the up projections of all experts.
        outward: [experts, hidden, units], their down projections.
        router: [experts, hidden].
        choice_bias: [experts], added to scores when experts are chosen, and to nothing else; None
            where there is none.
    """

    layer: int
    experts: int
    inward: TensorSpec
    outward: TensorSpec
    router: TensorSpec
    choice_bias: TensorSpec | None = None

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """All of them."""
        found = (self.inward, self.outward, self.router, self.choice_bias)
        return tuple(spec for spec in found if spec is not None)


def mixture_layers(layout: Layout) -> dict[int, MixtureLayer]:
    """Find the layers of a model that are mixtures of experts.

    Raises:
        InputError: there are none, or their tensors are not known; names the architecture.
    """
    found = {}
    for layer in range(layout.layers):
        stacks = [spec for spec in layout.tensors_of_layer(layer) if spec.matrices > 1]
        if stacks:
            found[layer] = _layer(layout, layer, stacks)
    if not found:
        raise InputError(
            f"{layout.architecture} has no experts that could be merged: it is no mixture, or "
            "transformers does not stack its experts; leave mixture out"
        )
    if len({one.experts for one in found.values()}) > 1:
        raise InputError(f"{layout.architecture} has layers with other numbers of experts")
    return found


def _layer(layout: Layout, layer: int, stacks: list[TensorSpec]) -> MixtureLayer:
    # 1. gate and up in one stack, down in another
    by_role = {spec.suffix.rpartition(".")[2]: spec for spec in stacks}
    if by_role.keys() != {"gate_up_proj", "down_proj"} or len(stacks) != 2:
        _refuse(layout, stacks[0])
    inward, outward = by_role["gate_up_proj"], by_role["down_proj"]
    experts, units = outward.shape[0], outward.shape[-1]
    if inward.shape != (experts, 2 * units, outward.shape[1]):
        _refuse(layout, inward)
    # 2. the router: a row for each expert, and perhaps a bias
    routers: dict[str, TensorSpec] = {}
    for spec in layout.tensors_of_layer(layer):
        if spec in stacks or experts not in spec.shape or spec.group != "router":
            continue
        if spec.shape == (experts, outward.shape[1]) and spec.suffix.endswith(".weight"):
            role = "router"
        elif spec.shape == (experts,) and any(part in spec.suffix for part in _CHOICE):
            role = "choice_bias"
        else:
            _refuse(layout, spec)
        if role in routers:
            _refuse(layout, spec)
        routers[role] = spec
    if "router" not in routers:
        _refuse(layout, inward)
    return MixtureLayer(layer, experts, inward, outward, **routers)


def _refuse(layout: Layout, spec: TensorSpec) -> NoReturn:
    raise InputError(
        f"{layout.architecture} keeps its experts in a way that is not known ({spec.name}, "
        f"{list(spec.shape)}), so that they cannot be merged; leave mixture out"
    )


def with_fewer_experts(layout: Layout, experts: int) -> Layout:
    """Return the layout of the same model with this number of experts in each mixture.

    Raises:
        InputError: as `mixture_layers`.
    """
    parts = {t.name for one in mixture_layers(layout).values() for t in one.tensors}

    def smaller(spec: TensorSpec) -> TensorSpec:
        if spec.name not in parts:
            return spec
        matrices = spec.matrices // spec.shape[0] * experts if spec.matrices > 1 else 1
        return replace(spec, shape=(experts, *spec.shape[1:]), matrices=matrices)

    return replace(layout, tensors=tuple(map(smaller, layout.tensors)))


def set_experts(config: PretrainedConfig, original: PretrainedConfig, experts: int) -> None:
    """Write a number of experts into `config`, and how many of them a token goes to at most."""
    text, before = config.get_text_config(decoder=True), original.get_text_config(decoder=True)
    for key in _COUNTS:
        if isinstance(getattr(before, key, None), int):
            setattr(text, key, experts)
    if isinstance(per_token := getattr(before, _PER_TOKEN, None), int):
        setattr(text, _PER_TOKEN, min(per_token, experts))


def config_with_experts(
    base: Checkpoint, layout: Layout, experts: int, *, trust_remote_code: bool = False
) -> PretrainedConfig:
    """Build the config of a checkpoint with this number of experts in each mixture.

    Args:
        layout: the model's.

    Raises:
        InputError: the model is no mixture, or transformers would build something else from it
            than the same model with fewer experts; names the first difference.
    """
    smaller = with_fewer_experts(layout, experts)
    config = base.config_to_save()
    text = config.get_text_config(decoder=True)
    if base.beside():
        raise InputError(
            "the experts of a multimodal model keep their number, since the rest of the model is "
            "built around it; leave mixture out"
        )
    if (getattr(text, "n_group", None) or 1) > 1:
        raise InputError(
            f"{layout.architecture} chooses among n_group: {text.n_group} fixed groups of "
            "experts first, which merged experts would not fit; leave mixture out"
        )
    made = copy.deepcopy(config)
    try:
        set_experts(made, config, experts)
        made = type(config).from_dict(made.to_dict())
        built = layout_of(build_skeleton(made, trust_remote_code=trust_remote_code))
    # Config classes check their values each in their own way, with their own exceptions.
    except Exception as error:
        raise InputError(
            f"the config cannot say {experts} experts: {reason(error)}; leave mixture out"
        ) from None
    wanted = {spec.name: spec.shape for spec in smaller.tensors}
    found = {spec.name: spec.shape for spec in built.tensors}
    for name in {**wanted, **found}:
        if wanted.get(name) != found.get(name):
            raise InputError(
                f"with {experts} experts in its config {layout.architecture} would have {name} "
                f"of shape {found.get(name)}, not {wanted.get(name)}; leave mixture out"
            )
    made.architectures = [layout.architecture]
    return made


def settings_with_experts(
    config: PretrainedConfig, experts: int, *, trust_remote_code: bool = False
) -> Mapping[str, Mapping[str, Any]]:
    """Return module's name → its settings that depend on the number of experts, for this number.

    They are those that differ between models of one expert and of another number.
    """

    def built(count: int) -> dict[str, nn.Module]:
        made = copy.deepcopy(config)
        set_experts(made, config, count)
        model = build_skeleton(made, trust_remote_code=trust_remote_code)
        return dict(model.named_modules())

    other, found = built(experts + 1 if experts == 1 else 1), {}
    for name, module in built(experts).items():
        before, after = settings_of(other[name]), settings_of(module)
        found[name] = {key: value for key, value in after.items() if before.get(key) != value}
    return {name: own for name, own in found.items() if own}
