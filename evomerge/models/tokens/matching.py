"""Match the rows of models' vocabularies by the tokens they stand for.

As mergekit 0.1.5 does (`tokenizer/embed.py`): every model gets one row for each token of the
result. Its own, where it has the token; else a default one, which all models that lack the token
share, so that a task vector against a base that lacks it too is zero. Which row that is, is said at
`TokenizerConfig`.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from evomerge.common.digest import content_digest
from evomerge.common.errors import InputError
from evomerge.config import TokenizerConfig, TokenOfModel, TokenRow
from evomerge.models.checkpoint import Checkpoint, tensor_digest
from evomerge.models.files.finite import NonFinite
from evomerge.models.messages import campaign_key
from evomerge.models.tokens.result_tokenizer import build_tokenizer
from evomerge.recipe import BASE

_OPTIONAL = frozenset({"bos_token_id", "eos_token_id", "pad_token_id"})
"""The tokens that a config may leave out, where the result has none of them."""
_CHUNK = 8192
"""Rows that are widened to float64 at a time, for the mean of all."""

Row = tuple[str, int]
"""A source, and the number of its row."""


@dataclass(frozen=True)
class DefaultRows:
    """Rows that are the mean of as many rows of other models; of none, zeros.

    Attributes:
        ids: their numbers in the result, int64 (n,).
        parts: source → its rows that are averaged, int64 (n,).
    """

    ids: np.ndarray
    parts: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of the result, and where their rows come from.

    Attributes:
        words: token → id.
        rows: of the result's embeddings; those that no token names are padding.
        places: source → for each row of the result the source's row of the same token, -1 where
            it has none; int64 (rows,).
        own: the same, but -1 where the source has a row that it may not keep.
        defaults: the default rows.
        folder: of the result's tokenizer.
    """

    words: Mapping[str, int]
    rows: int
    places: Mapping[str, np.ndarray]
    own: Mapping[str, np.ndarray]
    defaults: Sequence[DefaultRows]
    folder: Path = field(compare=False)

    @cached_property
    def digest(self) -> str:
        """32 hex digits over tokens, rows and defaults."""
        return content_digest(
            {
                "words": sorted(self.words.items()),
                "rows": self.rows,
                "own": {name: own.tolist() for name, own in self.own.items()},
                "defaults": [
                    [one.ids.tolist(), {name: rows.tolist() for name, rows in one.parts.items()}]
                    for one in self.defaults
                ],
            }
        )

    @cached_property
    def padding(self) -> np.ndarray:
        """The rows that no token names, int64."""
        return np.setdiff1d(np.arange(self.rows), list(self.words.values()))

    def lacking(self, name: str) -> int:
        """Count the tokens that a source takes default rows for."""
        return int((self.own[name] < 0).sum()) - len(self.padding)

    @property
    def nowhere(self) -> int:
        """The number of tokens whose default rows are zeros."""
        return sum(len(one.ids) for one in self.defaults if not one.parts)


class Matched(Checkpoint):
    """A model with the result's vocabulary: its embeddings and head are put together when read.

    Its digest is over its own, the vocabulary, and the models whose rows it may have.

    Attributes:
        unmatched: the model as it is.
        vocabulary: the result's.
        models: source name → model, those that default rows are taken of.
    """

    def __init__(
        self, unmatched: Checkpoint, vocabulary: Vocabulary, models: Mapping[str, Checkpoint]
    ) -> None:
        super().__init__(
            unmatched.name,
            unmatched.spec,
            unmatched.folder,
            copy.deepcopy(unmatched.config),
            unmatched.layout.with_vocabulary(vocabulary.rows),
            unmatched._tensors,
            unmatched._flags,
        )
        self.unmatched, self.vocabulary, self.models = unmatched, vocabulary, models
        self._made: dict[str, tuple[Tensor, Tensor]] = {}
        self._set_vocabulary(self._config)

    @property
    @override
    def tokenizer_folder(self) -> Path:
        return self.vocabulary.folder

    @override
    def shape(self, name: str) -> tuple[int, ...]:
        spec = self.layout.tensor(name)
        return spec.shape if spec.vocab_dim is not None else self.unmatched.shape(name)

    @override
    def dtype(self, name: str) -> torch.dtype:
        return self.unmatched.dtype(name)

    @override
    def read(self, name: str) -> Tensor:
        tensor, spec = self.unmatched.read(name), self.layout.tensor(name)
        if spec.vocab_dim is None:
            return tensor
        own = self.vocabulary.own[self.name]
        # 1. rows that stay where they are need no copy
        same = _prefix(own)
        if same == len(own):
            return tensor.narrow(0, 0, same)
        # 2. the model's own rows, in the result's order
        if spec.name not in self._made:
            self._made[spec.name] = self._make_rows(spec.name, tensor)
        ids, rows = self._made[spec.name]
        index = torch.from_numpy(own[same:].clip(min=0))
        result = torch.cat([tensor[:same], tensor.index_select(0, index)]).to(rows.dtype)
        # 3. default rows and padding
        result[ids] = rows
        return result

    def _make_rows(self, name: str, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """Make a tensor's rows that are not the model's own.

        Returns:
            Their numbers, int64 (n,), and the rows, (n, …), of the narrowest dtype that holds the
            model's and those of all models they are taken of.
        """
        own, dtype = self.vocabulary.own[self.name], tensor.dtype
        ids, rows = [], []
        for one in self.vocabulary.defaults:
            mine = np.flatnonzero(own[one.ids] < 0)
            if not len(mine):
                continue
            total = torch.zeros(len(mine), *tensor.shape[1:], dtype=torch.float32)
            for source, taken in one.parts.items():
                theirs = self.models[source].read(name)
                dtype = torch.promote_types(dtype, theirs.dtype)
                total += theirs.index_select(0, torch.from_numpy(taken[mine]))
            ids.append(one.ids[mine])
            rows.append(total / max(len(one.parts), 1))
        padding = self.vocabulary.padding
        if len(padding):
            mean = _mean(tensor, own[own >= 0], rows)
            ids.append(padding)
            rows.append(mean.expand(len(padding), *mean.shape))
        if not ids:
            return torch.empty(0, dtype=torch.int64), tensor[:0].to(dtype)
        return torch.from_numpy(np.concatenate(ids)), torch.cat(rows).to(dtype)

    @override
    def mapped(self, name: str) -> Sequence[Tensor]:
        return self.unmatched.mapped(name)

    @property
    @override
    def non_finite(self) -> Mapping[str, NonFinite]:
        return self.unmatched.non_finite

    @cached_property
    def tensor_digests(self) -> Mapping[str, str]:
        """Canonical name → SHA-256 over dtype, shape and bytes, with the result's rows."""
        rows = {s.name for s in self.layout.tensors if s.vocab_dim is not None}
        matched = {name: tensor_digest(self.read(name)) for name in rows}
        return {**self.unmatched.tensor_digests, **matched}

    @cached_property
    def digest(self) -> str:
        """32 hex digits over the models' digests and the vocabulary."""
        givers = {name: model.digest for name, model in self.models.items()}
        vocabulary = self.vocabulary.digest
        return content_digest(
            {"model": self.unmatched.digest, "vocabulary": vocabulary, "models": givers}
        )

    @override
    def as_saved(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.unmatched.as_saved(tensors)

    @override
    def beside(self) -> dict[str, Tensor]:
        return self.unmatched.beside()

    @override
    def config_to_save(self) -> Any:
        config = self.unmatched.config_to_save()
        self._set_vocabulary(config)
        return config

    def _set_vocabulary(self, config: Any) -> None:
        """Set the number of rows, and the result's number of each token that a config names."""
        config.get_text_config(decoder=True).vocab_size = self.vocabulary.rows
        places = self.vocabulary.places[self.name]
        new = {int(old): index for index, old in enumerate(places) if old >= 0}
        for part in {id(c): c for c in (config, config.get_text_config(decoder=True))}.values():
            for key, value in list(vars(part).items()):
                if key.endswith(("_token_id", "_token_index")) and value is not None:
                    found = _renumbered(value, new)
                    if found is not None or key in _OPTIONAL:
                        setattr(part, key, found)

    def __reduce__(self) -> tuple[Any, ...]:
        return Matched, (self.unmatched, self.vocabulary, self.models)


def as_unmatched(source: Checkpoint) -> Checkpoint:
    """Return a model with its own vocabulary."""
    return source.unmatched if isinstance(source, Matched) else source


def match_vocabularies(
    sources: Mapping[str, Checkpoint], config: TokenizerConfig, trust_remote_code: bool
) -> dict[str, Checkpoint]:
    """Give every model the vocabulary that `config` describes; no weights are read.

    Raises:
        InputError: a tokenizer is missing or cannot be loaded, or a token's row cannot be found.
    """
    tokenizer, vocabularies = build_tokenizer(sources, config, trust_remote_code)
    words = tokenizer.words
    # 1. the result's rows, and each model's own among them
    rows = max(len(words), max(words.values()) + 1)
    rows += -rows % (config.pad_to_multiple_of or 1)
    places = {name: np.full(rows, -1) for name in sources}
    for name, known in vocabularies.items():
        for token, index in words.items():
            places[name][index] = known.get(token, -1)
    # 2. default rows of tokens that a model lacks, or may not keep its own for
    found: dict[tuple[str, ...], list[tuple[int, list[int]]]] = defaultdict(list)
    default = _Defaults(sources, places, vocabularies, config)
    forced = {words[token] for token, said in config.tokens.items() if said.force}
    lacking = np.min(list(places.values()), axis=0) < 0
    for token, index in sorted(words.items(), key=lambda pair: pair[1]):
        if lacking[index] or index in forced:
            parts = default.of(token, index)
            found[tuple(source for source, _ in parts)].append((index, [row for _, row in parts]))
    defaults = [_grouped(names, pairs) for names, pairs in found.items()]
    own = {name: _without(array, forced) for name, array in places.items()}
    # 3. the models with these rows
    vocabulary = Vocabulary(words, rows, places, own, defaults, tokenizer.folder())
    return {name: Matched(source, vocabulary, sources) for name, source in sources.items()}


def vocabulary_notes(sources: Mapping[str, Checkpoint]) -> Iterator[str]:
    """Yield a note of the result's vocabulary, and one for each model that lacks some of it."""
    base = sources[BASE]
    if not isinstance(base, Matched):
        return
    vocabulary = base.vocabulary
    yield (
        f"models.tokenizer: the result has {len(vocabulary.words)} tokens in {vocabulary.rows} "
        "rows, which are matched by their text"
    )
    if vocabulary.nowhere:
        yield f"models.tokenizer: no model has {vocabulary.nowhere} of them; their rows are zeros"
    for name in sources:
        if lacking := vocabulary.lacking(name):
            yield f"{campaign_key(name)}: has other models' rows for {lacking} of the tokens"


@dataclass(frozen=True)
class _Defaults:
    """Finds the rows whose mean is the default row of a token."""

    sources: Mapping[str, Checkpoint]
    places: Mapping[str, np.ndarray]
    vocabularies: Mapping[str, Mapping[str, int]]
    config: TokenizerConfig

    @cached_property
    def _once(self) -> list[str]:
        """The sources, each folder once: a file's base may be one of its models, too."""
        names: dict[Path, str] = {}
        for name, source in self.sources.items():
            names.setdefault(source.folder.resolve(), name)
        return list(names.values())

    def of(self, token: str, index: int) -> list[Row]:
        said = self.config.tokens.get(token, TokenRow()).source
        if said is not None:
            return self._said(token, said)
        have = [(name, int(self.places[name][index])) for name in self._once]
        have = [(name, row) for name, row in have if row >= 0]
        # the base's row goes before the mean of several
        if self.config.missing == "base" and have[:1] and have[0][0] == BASE:
            return have[:1]
        return have

    def _said(self, token: str, said: Any) -> list[Row]:
        """Return the row that `tokens` names.

        Raises:
            InputError: the model has no such token.
        """
        if isinstance(said, str):
            said = TokenOfModel(kind="model_token", model=said, token=token)
        if not isinstance(said, TokenOfModel):
            return []
        rows = self.sources[said.model].layout.vocab_size
        row = self.vocabularies[said.model].get(said.token or "", -1)
        row = row if said.token_id is None else said.token_id
        if not 0 <= row < rows:
            named = repr(said.token) if said.token_id is None else f"number {said.token_id}"
            raise InputError(
                f"models.tokenizer.tokens.{token}: {said.model} has no token {named} among its "
                f"{rows} rows"
            )
        return [(said.model, row)]


def _without(places: np.ndarray, forced: set[int]) -> np.ndarray:
    own = places.copy()
    own[list(forced)] = -1
    return own


def _prefix(own: np.ndarray) -> int:
    """Count the first rows that stay where they are: a copy of them is quicker than a selection."""
    moved = np.flatnonzero(own != np.arange(len(own)))
    return int(moved[0]) if len(moved) else len(own)


def _grouped(names: Sequence[str], pairs: Sequence[tuple[int, list[int]]]) -> DefaultRows:
    ids, rows = (np.array(column) for column in zip(*pairs, strict=True))
    return DefaultRows(ids, {name: rows[:, i] for i, name in enumerate(names)})


def _renumbered(value: Any, new: Mapping[int, int]) -> Any:
    """Renumber one id or several; one whose token the result lacks is left out."""
    if isinstance(value, list):
        return [new[one] for one in value if one in new] or None
    return value if value < 0 else new.get(value)


def _mean(tensor: Tensor, kept: np.ndarray, others: Sequence[Tensor]) -> Tensor:
    """Average a tensor's rows `kept` and the rows of `others`, in one order and in float64."""
    total = sum((rows.numpy().sum(axis=0, dtype=np.float64) for rows in others), np.float64(0))
    for start in range(0, len(kept), _CHUNK):
        part = tensor.index_select(0, torch.from_numpy(kept[start : start + _CHUNK]))
        total = total + part.float().numpy().sum(axis=0, dtype=np.float64)
    count = len(kept) + sum(map(len, others))
    return torch.from_numpy(np.asarray(total / count)).float()
