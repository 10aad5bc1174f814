"""Convert weights between the pieces that are saved and the tensors that are computed with.

Mixtral, Qwen-MoE and their like are saved expert by expert and computed with all experts of a layer
in one tensor. The rules are transformers' own (`conversion_mapping`), and so is the arithmetic.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from evomerge.common.errors import InputError
from evomerge.models.files.lazy_tensors import Computed
from evomerge.models.files.shards import StoredTensor
from evomerge.models.messages import reason

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter, WeightRenaming

_STACKED = re.compile(r"(^|\.)experts\.[^.]+$")
"""Names of the weights of all experts of a layer in one tensor."""


@dataclass(frozen=True)
class Rules:
    """transformers' rules to read the checkpoints of one model: renamings, and conversions."""

    renamings: Sequence[WeightRenaming]
    converters: Sequence[WeightConverter]


def rules_of(model: PreTrainedModel) -> Rules:
    """Find the rules for a model, or a skeleton of one."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    transforms = get_model_conversion_mapping(model)
    return Rules(
        [t for t in transforms if isinstance(t, WeightRenaming)],
        [t for t in transforms if isinstance(t, WeightConverter)],
    )


@dataclass(frozen=True)
class Piece:
    """A stored tensor that is part of another, with the converter that puts it there.

    Attributes:
        key: its name as the converter knows it.
        pattern: the converter's pattern that the name matches.
    """

    key: str
    pattern: str
    converter: WeightConverter
    stored: StoredTensor


class Pieces:
    """Stored tensors gathered by the canonical tensor that they are pieces of."""

    def __init__(self, model: PreTrainedModel, rules: Rules) -> None:
        self._model, self._rules = model, rules
        self._found: dict[str, list[Piece]] = defaultdict(list)

    def take(self, candidates: Sequence[str], known: Collection[str], stored: StoredTensor) -> bool:
        """Keep a stored tensor if some converter makes a known one of it; tell whether one does."""
        for name in candidates:
            for converter in self._rules.converters:
                target, pattern = converter.rename_source_key(name)
                if pattern is not None and target in known:
                    self._found[target].append(Piece(name, pattern, converter, stored))
                    return True
        return False

    def tensors(self) -> Iterator[tuple[str, Computed, tuple[int, ...], StoredTensor]]:
        """Yield each canonical name with its tensor, shape, and one of its pieces, for messages.

        Raises:
            InputError: pieces that do not fit together.
        """
        from transformers.core_model_loading import dot_natural_key

        for target, pieces in self._found.items():
            ordered = sorted(pieces, key=lambda piece: dot_natural_key(piece.key))
            for piece in ordered:
                if not piece.stored.tensor.dtype.is_floating_point:
                    raise InputError(
                        f"{piece.stored.file}: {piece.key} is stored as {piece.stored.tensor.dtype}"
                        "; quantized weights cannot be merged, give the unquantized model"
                    )
            try:
                shapes = self._convert(target, ordered, meta=True)
            # Whatever an operation finds wrong, it is the pieces that are.
            except Exception as error:
                raise InputError(
                    f"{ordered[0].stored.file}: {target} cannot be put together from "
                    f"{len(ordered)} tensors: {reason(error)}; download the model again"
                ) from None
            for name, found in shapes.items():
                make = partial(self._make, target, ordered, name)
                yield name, Computed(found.dtype, make), tuple(found.shape), ordered[0].stored

    def _make(self, target: str, pieces: Sequence[Piece], name: str) -> Tensor:
        return self._convert(target, pieces)[name]

    def _convert(
        self, target: str, pieces: Sequence[Piece], meta: bool = False
    ) -> dict[str, Tensor]:
        converter = copy.deepcopy(pieces[0].converter)
        for piece in pieces:
            tensor = piece.stored.tensor
            converter.add_tensor(
                target, piece.key, piece.pattern, tensor.to("meta") if meta else tensor
            )
        made = converter.convert(target, model=self._model, config=self._model.config)
        return {k: v[0] if isinstance(v, list) else v for k, v in made.items()}


def as_saved(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert tensors to the names and pieces that `save_pretrained` would write.

    Args:
        model: a skeleton; of its depth no more is used than that its layers are numbered.
        tensors: canonical names, any part of the model.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        PrefixChange,
        WeightConverter,
        revert_weight_conversion,
    )

    if getattr(model, "_weight_conversions", None) is None:
        # where transformers looks for them; it would go through all modules again for every tensor
        transforms = get_model_conversion_mapping(model, add_legacy=False)
        model._weight_conversions = [t for t in transforms if not isinstance(t, PrefixChange)]
    converters = [t for t in model._weight_conversions if isinstance(t, WeightConverter)]
    if any(len(converter.target_patterns) > 1 for converter in converters):
        # What is saved in one piece may be in two parts here; transformers reads both forms.
        return dict(tensors)
    saved = revert_weight_conversion(model, dict(tensors))
    return {name: tensor.contiguous() for name, tensor in saved.items()}


def stacks_of(model: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Count the matrices of each tensor of stacked experts, along its first dimensions.

    There is one per expert, or two where the gate's and the up projection lie behind each other.

    Args:
        shapes: canonical name → shape.

    Returns:
        canonical name → number of matrices, for stacked tensors alone.
    """
    stacked = {name for name, shape in shapes.items() if _STACKED.search(name) and len(shape) > 1}
    if not stacked:
        return {}
    converters = rules_of(model).converters
    return {name: shapes[name][0] * _joined(name, converters) for name in stacked}


def _joined(name: str, converters: Sequence[WeightConverter]) -> int:
    """Count the stored matrices that make one expert's."""
    from transformers.core_model_loading import Concatenate, MergeModulelist

    for converter in converters:
        kinds = [type(operation) for operation in converter.operations]
        if kinds != [MergeModulelist, Concatenate] or converter.operations[1].dim != 1:
            continue
        if converter.reverse_transform().rename_source_key(name)[1] is not None:
            return len(converter.source_patterns)
    return 1
