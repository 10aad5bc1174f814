"""Find the canonical name of each stored tensor, and check that none is missing or left over."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from evomerge.common.errors import InputError
from evomerge.models.files.conversion import Pieces, rules_of
from evomerge.models.files.lazy_tensors import Computed, LazyTensors
from evomerge.models.files.shards import StoredTensor
from evomerge.models.layout import Layout, TensorSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_ROTARY = r"rotary_emb\.inv_freq$"
"""A buffer that old checkpoints keep in every layer, and that no class declares."""

_WRAPPED = re.compile(r"^(module|_forward_module|pretrained_model)\.")
_WRAPPED_WITHIN = re.compile(
    r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
"""Names that wrappers put before a model's names (DDP, DeepSpeed, TRL), or before those of any of
its modules (torch.compile, FSDP, activation checkpointing)."""

_INNER_MODULE = re.compile(r"(?<=\.)module\.")
"""What DDP, too, puts before the names of one module: taken off where the name is no known one."""

_NUMBERED = re.compile(r"^(.+?)\.(\d+)\.")
_OTHER_HEADS = re.compile(
    r"^(\w+\.)?(v_head|value_head|reward_head|critic|critic_head|score|classifier)\."
)
"""Heads of value and reward models beside a language model; transformers ignores them, too."""


def canonical_tensors(
    stored: Mapping[str, StoredTensor], model: PreTrainedModel, layout: Layout, folder: Path
) -> LazyTensors:
    """Return the layout's tensors under their canonical names, in its order.

    Stored names may lack or carry the base model's prefix or a wrapper's (`torch.compile`, DDP,
    FSDP), be old ones that transformers renames when it loads the model, or those of pieces that it
    puts together. Buffers the class declares useless are skipped, and so are duplicates of tied
    tensors; the heads of reward and value models are left out, and named in the result.

    Args:
        stored: the tensors of `folder`, by stored name.
        model: the skeleton `layout` was read off.
        layout: what the config calls for.
        folder: for messages.

    Raises:
        InputError: a tensor that is unexpected, missing, stored twice, of another shape than the
            config says, not floating-point, or tied by the config but stored with another value.
    """
    try:
        return _canonical(_unwrapped(stored), model, layout, folder)
    except InputError as error:
        raise InputError(_cause(stored, model, layout, folder) or str(error)) from None


def _canonical(
    stored: Mapping[str, StoredTensor], model: PreTrainedModel, layout: Layout, folder: Path
) -> LazyTensors:
    ignored = [*(model._keys_to_ignore_on_load_unexpected or ()), _ROTARY]
    known = {*layout.names, *layout.tied}
    # 1. Each stored tensor: known, a piece of a known one, or useless. The rules are those by which
    # transformers renames old names: GPT-NeoX's head was embed_out.
    rules, base_prefix = rules_of(model), model.base_model_prefix
    pieces = Pieces(model, rules)
    stored = _without_common_prefix(
        stored, lambda n: not known.isdisjoint(_candidates(n, rules.renamings, base_prefix))
    )
    found: dict[str, StoredTensor] = {}
    left_out = []
    for name, entry in stored.items():
        candidates = [*_candidates(name, rules.renamings, base_prefix)]
        canonical = next((candidate for candidate in candidates if candidate in known), None)
        if canonical is None:
            unused = any(re.search(pattern, name) for pattern in ignored)
            if unused or pieces.take(candidates, known, entry):
                continue
            if _OTHER_HEADS.match(name) is None:
                _refuse(name, entry, model)
            left_out.append(name)
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
            _refuse_missing(spec, stored, model, folder)
        tensor = found[spec.name].tensor
        _check(spec, found[spec.name].file, tuple(tensor.shape), tensor.dtype)
    tensors = {n: made[n] if n in made else found[n].tensor for n in layout.names}
    return LazyTensors(tensors, tuple(left_out))


def _unwrapped(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Take the prefixes off that wrappers of a model put before its names, and within them."""
    found: dict[str, StoredTensor] = {}
    for name, entry in stored.items():
        plain = unwrapped_name(name)
        if plain in found or (plain != name and plain in stored):
            raise InputError(f"{entry.file}: {plain} is stored twice, once as {name}")
        found[plain] = entry
    return found


def unwrapped_name(name: str) -> str:
    """Take the prefixes of wrappers off a stored name: `module._orig_mod.lm_head.weight`."""
    plain = _WRAPPED_WITHIN.sub("", name)
    while (shorter := _WRAPPED.sub("", plain)) != plain:
        plain = shorter
    return plain


def _without_common_prefix(
    stored: Mapping[str, StoredTensor], is_known: Callable[[str], bool]
) -> Mapping[str, StoredTensor]:
    """Take off what all names begin with, until one of them is known."""
    plain = stored
    while not any(is_known(name) for name in plain):
        if len({name.partition(".")[0] for name in plain}) != 1:
            return stored
        plain = {name.partition(".")[2]: entry for name, entry in plain.items()}
    return plain


def _cause(
    stored: Mapping[str, StoredTensor], model: PreTrainedModel, layout: Layout, folder: Path
) -> str | None:
    """Name what is wrong with the whole model, of which a tensor that does not fit is a sign."""
    config = model.config
    if method := quantization_of(config):
        return (
            f"{folder}: quantized ({method}), as its config.json says; quantized weights cannot "
            "be merged, give the unquantized model"
        )
    # A list of layers that is shorter or longer in the weights than in the config.
    prefix, wanted = model.base_model_prefix, _layer_numbers({*layout.names, *layout.tied})
    for name, numbers in _layer_numbers(_unwrapped(stored)).items():
        own = next((n for n in _candidates(name, (), prefix) if n in wanted), None)
        count = len(numbers)
        if own is not None and numbers == set(range(count)) and count != len(wanted[own]):
            key = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
            return (
                f"{folder}: its config.json says {len(wanted[own])} layers ({key}), but the "
                f"weights have {count} ({own}.0 to {count - 1}); set {key} to {count}, or download "
                "the model again"
            )
    return None


def stored_layers(names: Iterable[str]) -> int | None:
    """Count the layers that stored names have; None where they have several numbered lists."""
    lists = list(_layer_numbers(names).values())
    return len(lists[0]) if len(lists) == 1 else None


def _layer_numbers(names: Iterable[str]) -> dict[str, set[int]]:
    """Map the name of each numbered list of modules → the numbers that occur."""
    found: dict[str, set[int]] = {}
    for name in names:
        if match := _NUMBERED.match(name):
            found.setdefault(match[1], set()).add(int(match[2]))
    return found


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
    inner = _INNER_MODULE.sub("", name)
    for given in dict.fromkeys((*_renamed(name, renamings), *_renamed(inner, renamings))):
        yield from (given, f"{prefix}.{given}", given.removeprefix(f"{prefix}."))


def _renamed(name: str, renamings: Sequence[Any]) -> tuple[str, str]:
    """Return a name, and what transformers' renamings make of it, one after the other."""
    renamed = name
    for renaming in renamings:
        renamed, _ = renaming.rename_source_key(renamed)
    return name, renamed


def _refuse(name: str, entry: StoredTensor, model: PreTrainedModel) -> NoReturn:
    raise InputError(
        f"{entry.file}: unexpected tensor {name}; transformers' {type(model).__name__} with this "
        "config has no such weight (quantized, or another architecture?); if it is none of the "
        "language model's, remove it from the file"
    )


def _refuse_missing(
    spec: TensorSpec, stored: Mapping[str, StoredTensor], model: PreTrainedModel, folder: Path
) -> NoReturn:
    files = {entry.file for entry in stored.values()}
    where = files.pop() if len(files) == 1 else folder
    if spec.group == "head":
        saved = ", ".join(getattr(model.config, "architectures", None) or ()) or "?"
        raise InputError(
            f"{where}: a backbone without a language-model head: {spec.name} is missing (saved as "
            f"{saved}); give the {type(model).__name__} it is part of, or set tie_word_embeddings: "
            "true in its config.json if its head is the embedding"
        )
    raise InputError(f"{where}: tensor {spec.name} is missing; download the model again")


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


def quantization_of(config: PretrainedConfig) -> str | None:
    """Return how a config says that the weights are quantized: `fp8`, `bitsandbytes, 4 bits`."""
    raw = getattr(config, "quantization_config", None)
    found = raw if isinstance(raw, Mapping) else getattr(raw, "to_dict", dict)()
    if not found:
        return None
    bits = next((n for n in (4, 8) if found.get(f"load_in_{n}bit")), found.get("bits"))
    method = str(getattr(found.get("quant_method"), "value", found.get("quant_method") or "by ?"))
    return f"{method}, {bits} bits" if bits else method


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors have the same dtype, shape and bytes (so that NaN equals itself)."""
    alike = one.dtype == other.dtype and one.shape == other.shape
    return alike and torch.equal(as_bytes(one), as_bytes(other))


def as_bytes(tensor: Tensor) -> Tensor:
    """View a tensor's bytes in row-major order, uint8 (bytes,); a copy if it is not contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)
