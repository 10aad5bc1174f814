"""Find the rows of a layer's weights that may be permuted without changing what it computes.

Those are the hidden units of an MLP, the heads that share a key and value (KV) head, and the KV
heads with their groups of query heads. Nothing else moves: the residual stream between the layers
keeps its order, so that every layer is permuted by itself.

They are found by the names that transformers gives to linear maps. A module with a tensor whose
units are not known, or whose heads are told apart by their place (ALiBi), is not permuted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge.models.layout import TensorSpec, build_skeleton, layout_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

_MLPS = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("up_proj",), "down_proj"),
    (("gate_up_proj",), "down_proj"),
    (("fc1",), "fc2"),
    (("c_fc",), "c_proj"),
    (("fc_in",), "fc_out"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
)
"""(projections into the hidden units, projection out of them); a fused gate_up_proj stacks two."""

_QKV = ("q_proj", "k_proj", "v_proj")
_OUT = ("o_proj", "out_proj", "dense", "c_proj")
_FUSED = {"qkv_proj": "o_proj", "c_attn": "c_proj"}
"""Projection with queries, keys and values stacked → the output projection beside it. Other pairs
(CodeGen's qkv_proj with out_proj, GPT-BigCode's plain c_attn) stack them otherwise."""


@dataclass(frozen=True)
class Rows:
    """Permutable units of one tensor: `count` runs of `width` rows along `dim`, from `start` on.

    Attributes:
        suffix: the tensor's name within its layer.
        dim: the dimension that counts rows: 0, or 1 for a projection that takes the units in.
        count: the number of units (hidden units, heads, or KV heads).
        width: rows a unit has: 1 for a hidden unit, a head's width for a head.
        start: the first unit's first row.
    """

    suffix: str
    dim: int
    count: int
    width: int = 1
    start: int = 0

    def flatten(self, tensor: Tensor) -> Tensor:
        """Return the units of a tensor, float32 (count, width · the other dimensions)."""
        found = tensor.narrow(self.dim, self.start, self.count * self.width)
        return found.movedim(self.dim, 0).reshape(self.count, -1).float()


@dataclass(frozen=True)
class Heads:
    """The heads of one attention module.

    Attributes:
        q, k, v, o: rows of the weights; q and o have a unit per head, k and v per KV head.
        others: rows of biases, and of norms over all heads, with a unit per head or per KV head.
    """

    q: Rows
    k: Rows
    v: Rows
    o: Rows
    others: tuple[Rows, ...]

    @property
    def parts(self) -> tuple[Rows, ...]:
        """All rows that move with a head or a KV head."""
        return (self.q, self.k, self.v, self.o, *self.others)


@dataclass(frozen=True)
class LayerUnits:
    """The permutable units of one layer.

    Attributes:
        mlps: for each MLP, the rows of its hidden units in every tensor that has them.
        heads: the attention's heads; None where they are not known.
    """

    mlps: tuple[tuple[Rows, ...], ...]
    heads: Heads | None


def permutable_units(
    config: PretrainedConfig, *, trust_remote_code: bool = False
) -> tuple[LayerUnits, ...]:
    """Find the permutable units of every layer of the model that transformers builds from `config`.

    Raises:
        InputError: as `derive_layout`.
    """
    model = build_skeleton(config, trust_remote_code=trust_remote_code)
    layout = layout_of(model)
    return tuple(
        _Layer(model, f"{layout.prefix}.{index}", layout.tensors_of_layer(index)).units()
        for index in range(layout.layers)
    )


class _Layer:
    """The search for permutable units in one layer's tensors."""

    def __init__(self, model: PreTrainedModel, name: str, tensors: Sequence[TensorSpec]) -> None:
        self._model, self._name = model, name
        self._config = model.config.get_text_config(decoder=True)
        self._shapes = {spec.suffix: spec.shape for spec in tensors}

    def units(self) -> LayerUnits:
        parents = {suffix.rpartition(".")[0].rpartition(".")[0] for suffix in self._shapes}
        heads = [found for p in sorted(parents) if (found := self._heads(p)) is not None]
        mlps = (parts for p in sorted(parents) if (parts := self._mlp(p)))
        return LayerUnits(tuple(mlps), heads[0] if len(heads) == 1 else None)

    def _mlp(self, parent: str) -> tuple[Rows, ...]:
        """Find the hidden units' rows in the MLP under `parent`; () if there is none."""
        # 1. the projections in and out, of sizes that fit
        here = self._modules(parent)
        for inward, outward in _MLPS:
            if {*inward, outward} <= here.keys():
                break
        else:
            return ()
        count = self._size(here[outward], inwards=True)
        halves = 2 if inward == ("gate_up_proj",) else 1
        if any(self._size(here[module]) != halves * count for module in inward):
            return ()
        # 2. the units' rows in each
        parts = [
            part
            for module in inward
            for half in range(halves)
            for part in self._out_of(here[module], count, start=half * count)
        ]
        parts.append(self._into(here[outward], count))
        # 3. A tensor that has the units but is not known would be left behind: then none move.
        known = {f"{here[module]}.bias" for module in (*inward, outward)}
        known |= {part.suffix for part in parts}
        under = f"{parent}." if parent else ""
        besides = [
            shape
            for suffix, shape in self._shapes.items()
            if suffix.startswith(under) and suffix not in known
        ]
        return tuple(parts) if all(count not in shape for shape in besides) else ()

    def _heads(self, parent: str) -> Heads | None:
        """Find the heads of the attention under `parent`, if all its tensors are known.

        A head's width is that of its values, which the output projection takes; its queries may be
        wider, where they carry a gate.
        """
        here = self._modules(parent)
        if not parent or self._in_fixed_places():
            return None
        found = self._stacked(here) or self._apart(here)
        if found is None:
            return None
        main, biases, known = found
        # The tensors beside the projections: norms of queries or keys, over all heads or for each.
        others = [*biases]
        for suffix in [s for s in self._shapes if s.startswith(f"{parent}.") and s not in known]:
            of = main["q"] if ".q" in suffix else main["k"]
            size = self._shapes[suffix]
            if "norm" not in suffix or not suffix.endswith((".weight", ".bias")):
                return None
            if size == (of.count * of.width,):
                others.append(Rows(suffix, 0, of.count, of.width))
            elif size != (of.width,):  # else one for all heads, which stays
                return None
        return Heads(**main, others=tuple(others))

    def _apart(self, here: Mapping[str, str]) -> _Attention | None:
        out = [name for name in _OUT if name in here]
        if not set(_QKV) <= here.keys() or len(out) != 1:
            return None
        sizes = {name: self._size(here[name]) for name in _QKV}
        counts = self._counts(sizes["v_proj"], self._size(here[out[0]], inwards=True))
        if counts is None:
            return None
        count = dict(zip(_QKV, (counts[0], counts[1], counts[1]), strict=True))
        if any(sizes[name] % count[name] for name in _QKV):
            return None
        found = [
            [*self._out_of(here[name], count[name], sizes[name] // count[name])] for name in _QKV
        ]
        return self._attention(found, here[out[0]], counts[0])

    def _stacked(self, here: Mapping[str, str]) -> _Attention | None:
        fused = [name for name, out in _FUSED.items() if {name, out} <= here.keys()]
        if len(fused) != 1 or (fused[0] == "c_attn") != self._is_transposed(here[fused[0]]):
            return None
        module, out = here[fused[0]], here[_FUSED[fused[0]]]
        within, size = self._size(out, inwards=True), self._size(module)
        counts = self._counts((size - within) // 2, within)
        if counts is None:
            return None
        width, start, found = within // counts[0], 0, []
        for count in (counts[0], counts[1], counts[1]):
            found.append([*self._out_of(module, count, width, start)])
            start += count * width
        return self._attention(found, out, counts[0]) if start == size else None

    def _attention(self, found: list[list[Rows]], out: str, count: int) -> _Attention:
        width = self._size(out, inwards=True) // count
        weights = [parts[0] for parts in found]
        main = dict(zip("qkvo", [*weights, self._into(out, count, width)], strict=True))
        biases = [part for parts in found for part in parts[1:]]
        known = {part.suffix for part in (*main.values(), *biases)} | {f"{out}.bias"}
        return main, biases, known

    def _counts(self, values: int, within: int) -> tuple[int, int] | None:
        """Return the numbers of heads and of KV heads, from the sizes of all values and heads."""
        heads = getattr(self._config, "num_attention_heads", None)
        if not isinstance(heads, int) or within % heads:
            return None
        shared, rest = divmod(values, within // heads)
        return (heads, shared) if shared and not rest and heads % shared == 0 else None

    def _in_fixed_places(self) -> bool:
        """Tell whether a head's place has a meaning, or a later layer reads its keys and values."""
        config: Any = self._config
        by_place = getattr(config, "alibi", False) or (
            getattr(config, "position_embedding_type", None) == "alibi"
        )
        return bool(by_place or getattr(config, "num_kv_shared_layers", 0))

    def _modules(self, parent: str) -> dict[str, str]:
        """Map name → path within the layer, for modules under `parent` that have a 2-D weight."""
        found = {}
        for suffix, shape in self._shapes.items():
            path, _, leaf = suffix.rpartition(".")
            above, _, name = path.rpartition(".")
            if above == parent and leaf == "weight" and len(shape) == 2:
                found[name] = path
        return found

    def _is_transposed(self, path: str) -> bool:
        """Tell whether a module's weight is (in, out), as GPT-2's are, and not (out, in)."""
        from transformers.pytorch_utils import Conv1D

        return isinstance(self._model.get_submodule(f"{self._name}.{path}"), Conv1D)

    def _size(self, path: str, *, inwards: bool = False) -> int:
        return self._shapes[f"{path}.weight"][inwards != self._is_transposed(path)]

    def _out_of(self, path: str, count: int, width: int = 1, start: int = 0) -> Iterator[Rows]:
        """Yield the rows of units that a projection gives: in its weight, then in its bias."""
        yield Rows(f"{path}.weight", int(self._is_transposed(path)), count, width, start)
        if f"{path}.bias" in self._shapes:
            yield Rows(f"{path}.bias", 0, count, width, start)

    def _into(self, path: str, count: int, width: int = 1) -> Rows:
        """Return the rows of units that a projection takes in; its bias has none of them."""
        return Rows(f"{path}.weight", int(not self._is_transposed(path)), count, width)


_Attention = tuple[dict[str, Rows], list[Rows], set[str]]
"""Rows by role (q, k, v, o), those of the biases, and the suffixes that are accounted for."""
