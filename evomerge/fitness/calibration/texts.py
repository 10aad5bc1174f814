"""The texts that a model is calibrated on: read, sampled by their hashes, and cut into tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from evomerge.common.digest import canonical_json
from evomerge.common.errors import InputError
from evomerge.fitness.tasks.own_metric import read_documents

_WAY_OUT = 'write {"text": "…"}, or {"prompt": "…", "completion": "…"}'


@dataclass(frozen=True)
class Text:
    """A text, and where it stands.

    Attributes:
        place: for messages: `texts.jsonl, line 3`.
    """

    text: str
    place: str


def read_texts(where: str, path: Path) -> list[Text]:
    """Read a file of JSON objects, one a line, with a `text`, or a `prompt` and a `completion`.

    Args:
        where: the key or option that names the file, for messages.

    Raises:
        InputError: it cannot be read, or a line holds no text; names file and line.
    """
    found = []
    for line, document in read_documents(where, path).items():
        place = f"{path}, line {line}"
        found.append(Text(_text_of(f"{where}: {place}", document), place))
    return found


def _text_of(where: str, document: dict[str, Any]) -> str:
    keys = ("text",) if "text" in document else ("prompt", "completion")
    parts = [document[key] for key in keys if key in document]
    if not parts:
        raise InputError(f"{where}: no text; keys: {', '.join(document) or 'none'}; {_WAY_OUT}")
    if not all(isinstance(part, str) for part in parts) or not "".join(parts).strip():
        raise InputError(f"{where}: {str(parts)[:60]} is no text; {_WAY_OUT}")
    return "".join(parts)


def sample(texts: Iterable[Text], count: int) -> list[Text]:
    """Choose so many different texts, those of the least SHA-256, in the order of their hashes.

    Neither their order nor that of files moves them; more texts change a sample by those alone.
    """
    ranked = {hashlib.sha256(one.text.encode()).hexdigest(): one for one in texts}
    return [ranked[digest] for digest in sorted(ranked)[:count]]


def texts_digest(texts: Sequence[Text]) -> str:
    """Compute SHA-256, as hex digits, over the texts in their order."""
    return hashlib.sha256(canonical_json([one.text for one in texts]).encode()).hexdigest()


def tokenized(
    name: str, texts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, tokens: int, rows: int
) -> list[Tensor]:
    """Cut texts into tokens as the tokenizer does by itself, at most so many of each.

    Args:
        name: the model's, for messages.
        rows: of its vocabulary.

    Returns:
        int64 [tokens] of each text.

    Raises:
        InputError: a text has fewer than two tokens, or one that the model lacks; names its place.
    """
    found = []
    for one in texts:
        ids = torch.tensor(tokenizer(one.text)["input_ids"][:tokens], dtype=torch.int64)
        if len(ids) < 2:
            raise InputError(
                f"{one.place}: {one.text[:40]!r} has fewer than two tokens, so that none is "
                "predicted; leave it out"
            )
        if int(ids.max()) >= rows:
            raise InputError(
                f"{one.place}: token {int(ids.max())} is beyond the {rows} rows of the vocabulary "
                f"of {name}; resize its embedding, or leave the text out"
            )
        found.append(ids)
    return found
