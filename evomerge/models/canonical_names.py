"""Find the canonical name of each stored tensor, and check that none is missing or left over."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from transformers.core_model_loading import apply_renamings

from evomerge.common.errors import InputError
from evomerge.models.files.conversion import Pieces, rules_of
from evomerge.models.files.lazy_tensors import Computed, LazyTensors
from evomerge.models.files.shards import StoredTensor
from evomerge.models.layout import Layout, TensorSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_ROTARY = r"rotary_emb\.inv_freq$"
"""A buffer that old checkpoints keep in every layer, and that no class declares."""


def canonical_tensors(
    stored: Mapping[str, StoredTensor], model: PreTrainedModel, layout: Layout, folder: Path
) -> LazyTensors:
    """Return the layout's tensors under their canonical names, in its order.

    StoredTensor names may lack or carry the base model's prefix, or be old ones that transformers
    renames when it loads the model, or those of pieces that it puts together. Buffers the class
    declares useless are skipped, and so are duplicates of tied tensors.

    Args:
        stored: the tensors of `folder`, by stored name.
        model: the skeleton `layout` was read off.
        layout: what the config calls for.
        folder: for messages.

    Raises:
        InputError: a tensor that is unexpected, missing, stored twice, of another shape than the
            config says, not floating-point, or tied by the config but stored with another value.
    """
    ignored = [*(model._keys_to_ignore_on_load_unexpected or ()), _ROTARY]
    known = {*layout.names, *layout.tied}
    # 1. Each stored tensor: known, a piece of a known one, or useless. The rules are those by which
    # transformers renames old names: GPT-NeoX's head was embed_out.
    rules = rules_of(model)
    pieces = Pieces(model, rules)
    found: dict[str, StoredTensor] = {}
    for name, entry in stored.items():
        candidates = [*_candidates(name, rules.renamings, model.base_model_prefix)]
        canonical = next((candidate for candidate in candidates if candidate in known), None)
        if canonical is None:
            unused = any(re.search(pattern, name) for pattern in ignored)
            if not unused and not pieces.take(candidates, known, entry):
                _refuse(name, entry, model)
        elif canonical in found:
            raise InputError(f"{entry.file}: {canonical} is stored twice, once as {name}")
        else:
            found[canonical] = entry
    # 2. Stored copies of tied tensors are dropped, pieces are put together.
    for duplicate, name in layout.tied.items():
        _drop_duplicate(found, duplicate, name)
    made = _put_together(pieces, found, layout)
    # 3. Each tensor of the layout must be there, in its shape.
    for spec in layout.tensors:
        if spec.name in made:
            continue
        if spec.name not in found:
            files = {entry.file for entry in stored.values()}
            where = files.pop() if len(files) == 1 else folder
            raise InputError(f"{where}: tensor {spec.name} is missing; download the model again")
        tensor = found[spec.name].tensor
        _check(spec, found[spec.name].file, tuple(tensor.shape), tensor.dtype)
    return LazyTensors({n: made[n] if n in made else found[n].tensor for n in layout.names})


def _put_together(
    pieces: Pieces, found: Mapping[str, StoredTensor], layout: Layout
) -> dict[str, Computed]:
    """Put together the tensors that are stored in pieces."""
    known, made = {*layout.names}, {}
    for name, tensor, shape, piece in pieces.tensors():
        if name not in known:
            raise InputError(
                f"{piece.file}: makes a tensor {name} that the config does not call for"
            )
        if name in found:
            raise InputError(f"{piece.file}: {name} is stored twice, once in pieces")
        _check(layout.tensor(name), piece.file, shape, tensor.dtype)
        made[name] = tensor
    return made


def _candidates(name: str, renamings: Sequence[Any], prefix: str) -> Iterator[str]:
    """Yield the canonical names that a stored name may stand for, the most literal first."""
    for given in (name, apply_renamings(name, renamings)):
        yield from (given, f"{prefix}.{given}", given.removeprefix(f"{prefix}."))


def _refuse(name: str, entry: StoredTensor, model: PreTrainedModel) -> NoReturn:
    raise InputError(
        f"{entry.file}: unexpected tensor {name}; transformers' {type(model).__name__} with this "
        "config has no such weight (quantized, or another architecture?)"
    )


def _drop_duplicate(found: dict[str, StoredTensor], duplicate: str, name: str) -> None:
    """Drop a stored duplicate of a tied tensor, after checking that it is one."""
    entry = found.pop(duplicate, None)
    if entry is None:
        return
    original = found.setdefault(name, entry)
    if not same_bytes(entry.tensor, original.tensor):
        raise InputError(
            f"{entry.file}: {duplicate} differs from {name}, though the config ties the two; "
            "set tie_word_embeddings: false in config.json if both are meant"
        )


def _check(spec: TensorSpec, file: Path, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if shape != spec.shape:
        raise InputError(
            f"{file}: {spec.name} has shape {list(shape)}, the config calls for "
            f"{list(spec.shape)}; weights and config.json are of different models"
        )
    if dtype not in _FLOATS:
        raise InputError(
            f"{file}: {spec.name} is stored as {dtype}; quantized weights "
            "cannot be merged, give the unquantized model"
        )


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors have the same dtype, shape and bytes (so that NaN equals itself)."""
    alike = one.dtype == other.dtype and one.shape == other.shape
    return alike and torch.equal(as_bytes(one), as_bytes(other))


def as_bytes(tensor: Tensor) -> Tensor:
    """View a tensor's bytes in row-major order, uint8 (bytes,); a copy if it is not contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)
