"""Load the tokenizers of model folders, and compare how two of them number their tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.common.errors import InputError
from evomerge.models.messages import reason

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

TEXT_FILES = (
    *("tokenizer*", "vocab.*", "merges.txt", "*.model", "*.tiktoken", "tekken.json"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template*", "*_chat_templates/*"),
    "generation_config.json",
)
"""The files that decide how text goes in and out."""
_VOCABULARY_FILES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")


def load_tokenizer(
    folder: Path, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase | None:
    """Load a folder's tokenizer, or return None where there is none.

    Raises:
        InputError: there are tokenizer files, but they cannot be loaded.
    """
    # Without these files transformers makes up an empty tokenizer for some architectures.
    if not any(next(folder.glob(pattern), None) for pattern in _VOCABULARY_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    # Each tokenizer class fails on a damaged file in its own way.
    except Exception as error:
        raise InputError(f"{folder}: its tokenizer cannot be loaded: {reason(error)}") from None


def load_generation_config(folder: Path) -> GenerationConfig | None:
    """Load a folder's settings of generation (end tokens, penalties), or return None."""
    if not (folder / "generation_config.json").is_file():
        return None
    from transformers import GenerationConfig

    return GenerationConfig.from_pretrained(folder)


def tokenizer_digest(folder: Path) -> str:
    """Compute SHA-256, as hex digits, over the files that decide how text goes in and out.

    Those are the tokenizer's, its chat templates, and the generation settings.
    """
    digest = hashlib.sha256()
    files = {path for pattern in TEXT_FILES for path in folder.glob(pattern) if path.is_file()}
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def tokens_by_id(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Map token id → token, added tokens included."""
    return {index: token for token, index in tokenizer.get_vocab().items()}


def conflicts(one: Mapping[int, str], other: Mapping[int, str], rows: int) -> list[int]:
    """List the ids below `rows` that both vocabularies name, but differently, in rising order."""
    shared = sorted(index for index in one.keys() & other.keys() if index < rows)
    return [index for index in shared if one[index] != other[index]]
