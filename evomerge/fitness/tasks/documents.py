"""Tell documents apart, under whichever task or name they are found."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_eval.utils import handle_non_serializable, hash_string

DISTINCT = 40
"""Characters of a text from which on two documents do not share it by chance."""
EXCERPT = 60
"""Characters of the text that a mark begins with, for people to know the document by."""


def document_hash(document: Any) -> str:
    """Compute lm-eval's `doc_hash`: SHA-256 of the document as JSON, 64 hex digits."""
    return hash_string(
        json.dumps(document, indent=2, default=handle_non_serializable, ensure_ascii=False)
    )


def item_ids(documents: Sequence[Any]) -> tuple[str, ...]:
    """Name each document by its hash; the second and later copies are numbered, "#2", "#3"."""
    copies: Counter[str] = Counter()
    ids = []
    for document in documents:
        digest = document_hash(document)
        copies[digest] += 1
        ids.append(digest if copies[digest] == 1 else f"{digest}#{copies[digest]}")
    return tuple(ids)


def plain_text(document: Any) -> str:
    """Join all texts and numbers within a document; case, spaces and line ends do not count."""
    return " | ".join(_values(document))


def marks(document: Any) -> tuple[str, ...]:
    """Compute marks, of which other records of the same document share one, whatever their hash.

    There is one for each of its longer texts, for records with fields added, left out or rewritten;
    and one for all its values, whatever their names. Case, spaces and line ends do not count. A
    mark is a text's beginning, "#" and a digest of the whole.
    """
    values = list(_values(document))
    texts = dict.fromkeys(value for value in values if len(value) >= DISTINCT)
    return tuple(_mark(text) for text in (*texts, " | ".join(values)))


def _values(part: Any) -> Iterator[str]:
    """Yield texts and numbers within a document, in their order."""
    if isinstance(part, Mapping):
        part = list(part.values())
    if isinstance(part, list | tuple):
        for inner in part:
            yield from _values(inner)
    elif isinstance(part, str | int | float):
        yield " ".join(str(part).casefold().split())


def _mark(text: str) -> str:
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()
    return f"{text[:EXCERPT]}#{digest}"
