"""Build the tokenizer of the result: one model's, or the base's with the tokens of all models."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from evomerge.common.data_files import cache_folder
from evomerge.common.digest import content_digest
from evomerge.common.errors import InputError
from evomerge.config import UNION, TokenizerConfig
from evomerge.models.adapter import is_adapter
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.messages import campaign_key
from evomerge.models.tokens.chat_templates import check_template, template_text
from evomerge.models.tokens.tokenizer import TEXT_FILES, load_tokenizer
from evomerge.recipe import BASE

_COMPANIONS = frozenset({".json", ".jinja", ".model", ".txt", ".tiktoken"})
_TEMPLATE = "chat_template.jinja"
_NOT_COPIED = frozenset({"config.json", "recipe.json", "evomerge.json", "trainer_state.json"})


@dataclass(frozen=True)
class ResultTokenizer:
    """The result's tokenizer.

    Attributes:
        words: token → id.
        donor: the model whose tokenizer it is, or began as.
        added: the tokens that the donor's lacks, as tokenizers take them: text, or an `AddedToken`.
        template: its chat template, None for the donor's own.
    """

    words: Mapping[str, int]
    donor: Checkpoint
    added: tuple[Any, ...]
    template: str | None

    def folder(self) -> Path:
        """Return the folder of the tokenizer's files, written once into the user's cache.

        Beside them lie the donor's other small files: generation settings, processors.
        """
        place = cache_folder("tokenizers") / self._digest()
        if place.is_dir():
            return place
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{place.name}.{uuid4().hex}")
        partial.mkdir()
        # 1. the donor's files; a tokenizer with tokens of others is saved anew
        for path in _companions(self.donor.folder):
            if not (self.added and any(path.match(pattern) for pattern in TEXT_FILES)):
                shutil.copyfile(path, partial / path.name)
        if self.added:
            trust = self.donor.flags["trust_remote_code"]
            tokenizer = _loaded(self.donor, trust)
            _add(tokenizer, self.added)
            tokenizer.save_pretrained(partial)
            for path in self.donor.folder.glob("generation_config.json"):
                shutil.copyfile(path, partial / path.name)
        # 2. the chat template, which goes before the one inside the tokenizer's settings
        if self.template is not None:
            (partial / _TEMPLATE).write_text(self.template, encoding="utf-8")
        # 3. whole or not at all; another process may have been faster
        try:
            os.replace(partial, place)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            if not place.is_dir():
                raise
        return place

    def _digest(self) -> str:
        files = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in _companions(self.donor.folder)
        }
        added = [str(token) for token in self.added]
        return content_digest({"files": files, "added": added, "template": self.template})


def build_tokenizer(
    sources: Mapping[str, Checkpoint], config: TokenizerConfig, trust_remote_code: bool
) -> tuple[ResultTokenizer, dict[str, dict[str, int]]]:
    """Build the result's tokenizer, and return it with every model's own vocabulary.

    A model without a tokenizer is taken to number its tokens as the base does. Tokens beyond a
    model's embedding rows are none of its own.

    Returns:
        The tokenizer, and source name → token → row.

    Raises:
        InputError: the base has no tokenizer, or one cannot be loaded; a chat template is unknown.
    """
    where = "models.tokenizer"
    if config.chat_template is not None:
        check_template(config.chat_template, f"{where}.chat_template")
    # 1. every model's tokens, of those for which it has rows
    loaded = {name: _loaded(source, trust_remote_code) for name, source in sources.items()}
    if loaded[BASE] is None:
        raise InputError(f"models.base: no tokenizer in {sources[BASE].folder}; {where} needs it")
    vocabularies = {}
    for name, source in sources.items():
        rows = source.shape(_embedding(source))[0]
        whole = (loaded[name] or loaded[BASE]).get_vocab()
        vocabularies[name] = {token: row for token, row in whole.items() if row < rows}
    # 2. the tokenizer to begin with, and the tokens it lacks
    donor = sources[BASE if config.source == UNION else config.source]
    if loaded[donor.name] is None and is_adapter(donor.folder):
        donor = sources[BASE]  # as mergekit reads MODEL+ADAPTER
    if loaded[donor.name] is None:
        raise InputError(f"{where}.source: {donor.name} has no tokenizer in {donor.folder}")
    tokenizer = loaded[donor.name]
    words = tokenizer.get_vocab()
    known = set(words)
    others = _of_others(loaded, vocabularies) if config.source == UNION else iter(())
    added = []
    for token in (*others, *config.tokens):
        if str(token) not in known:
            known.add(str(token))
            added.append(token)
    if added:
        _add(tokenizer, added)
        words = tokenizer.get_vocab()
    # 3. the chat template
    template = template_text(config.chat_template, sources.values(), trust_remote_code)
    return ResultTokenizer(words, donor, tuple(added), template), vocabularies


def _of_others(
    loaded: Mapping[str, Any], vocabularies: Mapping[str, Mapping[str, int]]
) -> Iterator[Any]:
    """Yield all models' tokens by rising number, those learned from text before those added."""
    special: dict[str, Any] = {}
    for name, tokenizer in loaded.items():
        if tokenizer is None:
            continue
        marked = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        for token in sorted(vocabularies[name], key=vocabularies[name].__getitem__):
            if token in marked:
                special.setdefault(token, marked[token])
            else:
                yield token
    yield from special.values()


def _add(tokenizer: Any, tokens: Any) -> None:
    tokenizer.add_tokens(list(tokens))


def _loaded(source: Checkpoint, trust_remote_code: bool) -> Any:
    try:
        return load_tokenizer(source.folder, trust_remote_code=trust_remote_code)
    except InputError as error:
        raise InputError(f"{campaign_key(source.name)}: {error}") from None


def _embedding(source: Checkpoint) -> str:
    specs = source.layout.tensors
    return next(s.name for s in specs if s.vocab_dim is not None and s.group == "embeddings")


def _companions(folder: Path) -> list[Path]:
    """List the small files beside a model's weights that its tokenizer and processors need."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and path.suffix in _COMPANIONS
        and path.name not in _NOT_COPIED
        and not path.name.endswith(".index.json")
    ]
