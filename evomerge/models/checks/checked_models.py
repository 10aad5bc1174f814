"""Check that base and experts can be merged, before the first candidate is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evomerge.common.errors import InputError
from evomerge.common.remembered import remembered
from evomerge.config import ModelsConfig, TokenizerConfig
from evomerge.models.adapter import Adapter
from evomerge.models.alignment.git_rebasin import HEADS, Aligned
from evomerge.models.canonical_names import same_bytes
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.checks.calibrations import check_calibrations
from evomerge.models.checks.config_settings import check_heads, settings_notes
from evomerge.models.checks.merge_lock import lock_of
from evomerge.models.checks.unchanged import FileState, calibration_files, weight_files
from evomerge.models.known_models import KIND
from evomerge.models.layout import Layout, TensorSpec
from evomerge.models.messages import campaign_key
from evomerge.models.open_models import as_stored, open_models
from evomerge.models.tokens.matching import as_unmatched, vocabulary_notes
from evomerge.models.tokens.tokenizer import (
    conflicts,
    load_tokenizer,
    tokenizer_digest,
    tokens_by_id,
)
from evomerge.models.vocabulary import with_base_rows
from evomerge.recipe import BASE


@dataclass(frozen=True)
class CheckedModels:
    """Models that fit together.

    Attributes:
        layout: the base model's, and that of every result.
        sources: name → checkpoint, the base first, then the experts in the campaign's order.
        notes: findings worth telling the user, one line each.
        configs_only: only their configs are here; see `evomerge.models.checks.configs_only`.
        tokenizer: how their tokens were matched, where they were.
        files: weight file → its state when it was opened, before anything was read.
    """

    layout: Layout
    sources: Mapping[str, Checkpoint]
    notes: tuple[str, ...]
    configs_only: bool = False
    tokenizer: TokenizerConfig | None = None
    files: Mapping[Path, FileState] = field(default_factory=dict)


def check_models(models: ModelsConfig, *, only_merged: bool = False) -> CheckedModels:
    """Open base and experts and check that they can be merged.

    Experts must have the base's architecture, tensors, shapes and ties, differ from it in at least
    one weight, and number their tokens as it does, unless `tokenizer` matches them by their text.
    Vocabulary rows may differ in number: see `evomerge.models.vocabulary`. An expert that looks
    locked against merging is refused, unless the config allows it
    (`evomerge.models.checks.merge_lock`). Reads all weights once, to compute the digests.

    Args:
        only_merged: nothing is scored. The base may stand among the experts, for merges of models,
            not task vectors, and need have no tokenizer.

    Raises:
        InputError: one message naming `models.experts.<name>` and the tensor or key at fault.
    """
    opened = open_models(models)
    files = weight_files(source.folder for source in opened.values()) | calibration_files(opened)
    base, *experts = map(as_unmatched, opened.values())
    # 1. what the configs and the files' headers show
    for expert in experts:
        check_architecture(base, expert)
        _check_ties(base, expert)
        check_tensors(base, expert)
        check_heads(base, expert)
    if models.tokenizer is None:
        notes = _remembered_notes(base, experts, models.trust_remote_code, only_merged)
    else:
        notes = [*vocabulary_notes(opened)]
    # 2. what the weights show
    for source in (base, *experts):
        check_finite(source)
    for model in (base, *experts):
        notes += _left_out_notes(model)
    for expert in experts:
        notes += _lock_notes(base, expert, models.allow_locked)
        notes += settings_notes(base, expert)
        notes += _alignment_notes(expert)
        notes += shape_notes(base, expert, models.tokenizer is not None)
        notes += _adapter_notes(base, as_stored(expert))
        if not only_merged:
            _check_differs(base, expert)
    check_calibrations(opened)
    notes += _twin_notes(base, experts)
    return CheckedModels(
        opened[BASE].layout, opened, tuple(notes), tokenizer=models.tokenizer, files=files
    )


def check_finite(source: Checkpoint) -> None:
    """Refuse a model that holds NaN or infinity, of which no merge could be better."""
    damaged = source.non_finite
    for name, found in damaged.items():
        others = f", and {len(damaged) - 1} more tensors" if len(damaged) > 1 else ""
        raise InputError(
            f"{campaign_key(source.name)}: {name} holds {found}{others}; every merge with it would "
            f"too; leave it out, or give another copy than {source.spec}"
        )


def check_architecture(base: Checkpoint, expert: Checkpoint) -> None:
    """Refuse an expert of another architecture or depth."""
    key, ours, theirs = campaign_key(expert.name), base.layout, expert.layout
    if theirs.architecture != ours.architecture:
        raise InputError(
            f"{key}: architecture {theirs.architecture}, but the base is {ours.architecture}; "
            "only models finetuned from the base can be merged with it"
        )
    if theirs.layers != ours.layers:
        raise InputError(
            f"{key}: num_hidden_layers is {theirs.layers}, but {ours.layers} in the base"
        )


def _check_ties(base: Checkpoint, expert: Checkpoint) -> None:
    """Refuse a head tied on one side only, unless the other side's equals the embedding."""
    key = campaign_key(expert.name)
    for name, target in base.layout.tied.items():
        if name in expert.names() and not _equal_in(expert, name, target):
            raise InputError(
                f"{key}: stores a {name} of its own, but the base ties it to {target}, so a merge "
                "has no place for it; give an expert that was finetuned with tied embeddings"
            )
    for name, target in expert.layout.tied.items():
        if name in base.names() and not _equal_in(base, name, target):
            raise InputError(
                f"{key}: ties {name} to {target}, but the base stores the two apart; "
                "give an expert that was finetuned with the base's tie_word_embeddings"
            )


def _equal_in(source: Checkpoint, name: str, target: str) -> bool:
    return same_bytes(source.read(name), source.read(target))


def check_tensors(base: Checkpoint, expert: Checkpoint) -> None:
    """Refuse an expert with other tensors, or of other shapes; the vocabulary's rows may differ."""
    key = campaign_key(expert.name)
    ours = {*base.names(), *base.layout.tied}
    theirs = {*expert.names(), *expert.layout.tied}
    for lacking in (name for name in base.names() if name not in theirs):
        raise InputError(f"{key}: has no tensor {lacking}, but the base has; compare config.json")
    for extra in (name for name in expert.names() if name not in ours):
        raise InputError(f"{key}: has a tensor {extra} that the base lacks; compare config.json")
    for spec in base.layout.tensors:
        found = expert.shape(spec.name)
        compared = 0 if spec.vocab_dim is None else 1
        if len(found) != len(spec.shape) or found[compared:] != spec.shape[compared:]:
            raise InputError(
                f"{key}: {spec.name} has shape {list(found)}, but {list(spec.shape)} in the base"
            )


def _lock_notes(base: Checkpoint, expert: Checkpoint, allowed: bool) -> Iterator[str]:
    found = lock_of(base, as_stored(expert))
    if found is None:
        return
    if not allowed:
        raise InputError(
            f"{found}; ask for the model as it was before, or set models.allow_locked: true where "
            "its layers are only taken whole (space.path)"
        )
    yield found


def _alignment_notes(expert: Checkpoint) -> Iterator[str]:
    if not isinstance(expert, Aligned):
        return
    moved = expert.alignment.moved
    found = ", ".join(f"{changed} of {total} {kind}" for kind, (changed, total) in moved.items())
    yield f"{campaign_key(expert.name)}: aligned to the base: moved {found or 'nothing'}" + (
        "" if HEADS in moved else "; its attention is not known here and stays as it is"
    )


def _check_differs(base: Checkpoint, expert: Checkpoint) -> None:
    if _merge_alike(expert, base, base):
        raise InputError(
            f"{campaign_key(expert.name)}: equal to the base: its task vector is zero; "
            f"leave it out, or give another model than {expert.spec}"
        )


def _merge_alike(one: Checkpoint, other: Checkpoint, base: Checkpoint) -> bool:
    """Tell whether two models have the same weights, as far as a merge with `base` reads them."""
    return all(_tensor_alike(one, other, base, spec) for spec in base.layout.tensors)


def _tensor_alike(one: Checkpoint, other: Checkpoint, base: Checkpoint, spec: TensorSpec) -> bool:
    if one.shape(spec.name) == other.shape(spec.name):
        return _digest_of(one, spec.name) == _digest_of(other, spec.name)
    return same_bytes(with_base_rows(one, base, spec), with_base_rows(other, base, spec))


def _digest_of(source: Checkpoint, name: str) -> str:
    return source.tensor_digests[source.layout.tensor(name).name]


def _left_out_notes(model: Checkpoint) -> Iterator[str]:
    if names := as_stored(model).left_out:
        yield (
            f"{campaign_key(model.name)}: {', '.join(names[:3])}{', …' * (len(names) > 3)} left "
            "out: a value or reward head is no part of the language model"
        )


def _twin_notes(base: Checkpoint, experts: list[Checkpoint]) -> Iterator[str]:
    for place, other in enumerate(experts):
        one = next((one for one in experts[:place] if _merge_alike(one, other, base)), None)
        if one is not None:
            yield f"{campaign_key(other.name)}: the same weights as {campaign_key(one.name)}"


def shape_notes(base: Checkpoint, expert: Checkpoint, matched: bool = False) -> Iterator[str]:
    """Yield a note if an expert's vocabulary has another size, and one if dtypes differ.

    Args:
        matched: the vocabularies are matched by their tokens, whatever their sizes.
    """
    ours, theirs = base.layout.vocab_size, expert.layout.vocab_size
    outcome = "the rows beyond are dropped" if theirs > ours else "the base's fill the rest"
    if theirs != ours and not matched:
        yield (
            f"{campaign_key(expert.name)}: vocabulary of {theirs} rows, {ours} in the base; "
            f"the result has {ours}, {outcome}"
        )
    differing = [n for n in base.names() if expert.dtype(n) != base.dtype(n)]
    if differing:
        first = differing[0]
        yield (
            f"{campaign_key(expert.name)}: {len(differing)} of {len(base.names())} tensors have "
            f"another dtype than the base's; {first} is {_plain(expert, first)}, "
            f"not {_plain(base, first)}"
        )


def _adapter_notes(base: Checkpoint, expert: Checkpoint) -> Iterator[str]:
    trained_on = expert.trained_on if isinstance(expert, Adapter) else None
    if trained_on and Path(trained_on).name != Path(base.spec.partition("@")[0]).name:
        yield (
            f"{campaign_key(expert.name)}: an adapter trained on {trained_on}; it is merged onto "
            f"{base.spec}, which should have the same weights"
        )


def _plain(source: Checkpoint, name: str) -> str:
    return str(source.dtype(name)).removeprefix("torch.")


def tokenizer_notes(
    base: Checkpoint,
    experts: Sequence[Checkpoint],
    trust_remote_code: bool,
    only_merged: bool = False,
) -> Iterator[str]:
    """Check the tokenizers against the base's; yield a note per expert that differs or has none.

    Raises:
        InputError: the base has none, though candidates are to be scored, or an expert numbers its
            tokens otherwise.
    """
    ours = _tokens(base, trust_remote_code)
    if ours is None and only_merged:
        yield f"models.base: no tokenizer in {base.folder}, so the result has none"
        return
    if ours is None:
        raise InputError(
            f"models.base: no tokenizer in {base.folder}; copy its tokenizer files there, "
            "candidates are scored with it"
        )
    rows = base.layout.vocab_size
    if beyond := sorted(index for index in ours.names if index >= rows):
        yield (
            f"models.base: its tokenizer has {len(beyond)} tokens from id {beyond[0]} "
            f"({ours.names[beyond[0]]!r}) on, and its embedding {rows} rows: text with such a "
            "token cannot be scored or generated; resize the embedding, or take the tokens out"
        )
    for expert in experts:
        key = campaign_key(expert.name)
        theirs = _tokens(expert, trust_remote_code)
        if theirs is None:
            yield f"{key}: no tokenizer; taken to number its tokens as the base does"
            continue
        rows = min(base.layout.vocab_size, expert.layout.vocab_size)
        differing = conflicts(ours.names, theirs.names, rows)
        markers = ours.added & theirs.added
        for index in differing:
            if index not in markers:
                raise InputError(
                    f"{key}: token id {index} is {theirs.names[index]!r}, but "
                    f"{ours.names[index]!r} in the base; models with different tokenizers are "
                    "merged only if models.tokenizer, or tokenizer_source in a mergekit file, is "
                    "given: it matches tokens by their text"
                )
        if differing:
            first = differing[0]
            yield (
                f"{key}: has other names for {len(differing)} added tokens, such as "
                f"{theirs.names[first]!r} for {ours.names[first]!r} (id {first}); prompts have the "
                "base's"
            )


def _remembered_notes(
    base: Checkpoint, experts: Sequence[Checkpoint], trust_remote_code: bool, only_merged: bool
) -> list[str]:
    """Return `tokenizer_notes`, without loading tokenizers whose files were compared before."""
    models = [
        [
            one.name,
            str(one.folder),
            one.layout.vocab_size,
            one.known.key,
            tokenizer_digest(one.folder),
        ]
        for one in (base, *experts)
        if one.known is not None
    ]
    # a tokenizer with code of its own, or of a model of which nothing is remembered, is loaded
    plain = len(models) == 1 + len(experts) and not trust_remote_code
    key = {"what": "notes on tokenizers", "models": models, "only_merged": only_merged}
    flags = (trust_remote_code, only_merged)
    notes: list[str] = remembered(
        KIND, key if plain else None, lambda: [*tokenizer_notes(base, experts, *flags)]
    )
    return notes


@dataclass(frozen=True)
class _Tokens:
    """A tokenizer's tokens by id, and the ids of those added beside what it learned from text."""

    names: Mapping[int, str]
    added: frozenset[int]


def _tokens(source: Checkpoint, trust_remote_code: bool) -> _Tokens | None:
    try:
        tokenizer = load_tokenizer(source.folder, trust_remote_code=trust_remote_code)
    except InputError as error:
        raise InputError(f"{campaign_key(source.name)}: {error}") from None
    if tokenizer is None:
        return None
    return _Tokens(tokens_by_id(tokenizer), frozenset(tokenizer.added_tokens_decoder))
