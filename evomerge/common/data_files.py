"""Read YAML and JSON files as plain data; any file, however hostile, fails with one message."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from evomerge.common.errors import InputError

DEPTH = 100
"""Most levels of nested sections; no campaign file needs a tenth of them."""
_NODES = 100_000
"""Most values of a YAML file with its aliases written out."""
_UNUSABLE = re.compile("[\0\ud800-\udfff]")
"""Characters that paths, UTF-8 files and databases refuse: NUL, and halves of surrogates."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which measures a document before it makes anything of it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > DEPTH:
            raise yaml.YAMLError(f"sections within sections, more than {DEPTH} deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
        return node

    def construct_document(self, node: yaml.Node) -> Any:
        nodes, depth = _written_out(node, {})
        if nodes > _NODES or depth > DEPTH:
            raise yaml.YAMLError(
                f"{nodes} values, {depth} deep, once its aliases are written out; "
                f"{_NODES} and {DEPTH} are read"
            )
        return super().construct_document(node)


def _check_keys(node: yaml.MappingNode) -> None:
    """Refuse a key that stands twice in a section: PyYAML would silently take the last.

    Raises:
        yaml.YAMLError: says which, and on which lines.
    """
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        name, line = (key.tag, str(key.value)), key.start_mark.line + 1
        if name in lines and key.value != "<<":
            places = f"lines {lines[name]} and {line}" if lines[name] != line else f"line {line}"
            raise yaml.YAMLError(
                f"the key {key.value!r} stands twice in one section, on {places}; leave one out"
            )
        lines[name] = line


def _written_out(node: yaml.Node, known: dict[int, tuple[float, float]]) -> tuple[float, float]:
    """Count a node's nodes, those of aliases each time they are named, and its depth."""
    if id(node) not in known:
        known[id(node)] = math.inf, math.inf  # a node that is below itself has no end
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        below = [part for n in inner for part in (n if isinstance(n, tuple) else [n])]
        found = [_written_out(part, known) for part in below]
        known[id(node)] = 1 + sum(n for n, _ in found), 1 + max((d for _, d in found), default=0)
    return known[id(node)]


def cache_folder(kind: str) -> Path:
    """Return the folder of one kind of things in `$EVOMERGE_CACHE`, or else the user's cache."""
    given = os.environ.get("EVOMERGE_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(given or f"{home}/evomerge").expanduser().resolve() / kind


def read_text(path: Path) -> str:
    """Read a file's text.

    Raises:
        InputError: the file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error}") from None


def yaml_documents(text: str, where: str) -> list[Any]:
    """Parse the documents of a YAML text; `where` names it in messages.

    Raises:
        InputError: not YAML, or more than is plain data of a sensible size.
    """
    try:
        documents = list(yaml.load_all(text, _Loader))
    # A value that is not what its tag says makes PyYAML fail in as many ways as there are tags.
    except Exception as error:
        raise InputError(f"{where}: not valid YAML: {error}") from None
    for document in documents:
        _check_depth_and_text(document, where)
    return documents


def yaml_data(text: str, where: str) -> Any:
    """Parse the one document of a YAML text; None for an empty one.

    Raises:
        InputError: as `yaml_documents`, or there are several documents.
    """
    documents = yaml_documents(text, where)
    if len(documents) > 1:
        raise InputError(f"{where}: not valid YAML: {len(documents)} documents where one is read")
    return documents[0] if documents else None


def json_data(text: str, where: str) -> Any:
    """Parse the value of a JSON text; `where` names it in messages.

    Raises:
        InputError: not JSON, nested too deeply, or with text that is not Unicode.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON: {error}") from None
    _check_depth_and_text(data, where)
    return data


def quoted(value: Any) -> str:
    """Show a value in a message, at most a hundred characters of it."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def _check_depth_and_text(data: Any, where: str) -> None:
    for value, depth in _walk(data):
        if depth > DEPTH:
            raise InputError(f"{where}: sections within sections, more than {DEPTH} deep")
        if isinstance(value, str) and (found := _UNUSABLE.search(value)):
            raise InputError(
                f"{where}: a text holds the character {found[0]!r}, which cannot be used: "
                f"{value[:60]!r}"
            )


def _walk(data: Any) -> Iterator[tuple[Any, int]]:
    """Walk every key and value with its depth; a value that several aliases name, once."""
    seen, left = set[int](), [(data, 0)]
    while left:
        value, depth = left.pop()
        yield value, depth
        if depth > DEPTH or not isinstance(value, dict | list) or id(value) in seen:
            continue
        seen.add(id(value))
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        left += [(part, depth + 1) for part in parts]
