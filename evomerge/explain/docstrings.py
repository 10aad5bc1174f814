"""Read the texts that stand in docstrings: prose, lists of arguments, examples, fields' own."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import yaml

SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields|Note|\.\. .*):*$")


@dataclass(frozen=True)
class Docstring:
    """A docstring in parts.

    Attributes:
        text: the prose.
        arguments: name → text of the list under `Args:`.
        example: the data after `Example:`, a section of a campaign file; empty without one.
    """

    text: str
    arguments: dict[str, str] = field(default_factory=dict)
    example: dict[str, Any] = field(default_factory=dict)


def read(documented: Any) -> Docstring:
    """Read the docstring of a class or a function, in Google's style."""
    return parse(inspect.getdoc(documented) or "")


def parse(docstring: str) -> Docstring:
    """Take a docstring apart into prose, arguments and example."""
    # 1. the example, `key: value, …` between backticks, at the end
    prose, _, example = docstring.partition("Example: `")
    written = " ".join(example.rpartition("`")[0].split())
    data = yaml.safe_load(f"{{{written}}}") if written else {}
    # 2. prose until the first section; of sections the arguments
    lines, arguments = [], ""
    section = ""
    for line in prose.splitlines():
        found = SECTION.match(line)
        if found:
            section = found[1]
        elif line and not line.startswith(" ") and section:
            section = ""
        if not section:
            lines.append(line)
        elif section == "Args" and not found:
            arguments += line + "\n"
    return Docstring("\n".join(lines).strip(), _arguments(inspect.cleandoc(arguments)), data)


def _arguments(text: str) -> dict[str, str]:
    """Read `name: text` (or `name:`, text below) entries, continued on indented lines."""
    entries = re.split(r"^(\w+)(?: *\([^)\n]*\))?: *", text, flags=re.MULTILINE)
    return {
        name: " ".join(entry.split())
        for name, entry in zip(entries[1::2], entries[2::2], strict=True)
    }


@cache
def of_fields(model: type) -> dict[str, Docstring]:
    """Read the docstrings that stand below the fields of a class and of those it inherits from."""
    found: dict[str, Docstring] = {}
    for kind in reversed(model.__mro__):
        if kind.__module__.partition(".")[0] != "evomerge":
            continue
        body = _classes(inspect.getsourcefile(kind) or "")[kind.__name__].body
        for statement, after in itertools.pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                match after:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        found[statement.target.id] = parse(inspect.cleandoc(text))
    return found


@cache
def _classes(file: str) -> dict[str, ast.ClassDef]:
    """Parse the classes at the top of a file."""
    with open(file, encoding="utf-8") as source:
        tree = ast.parse(source.read())
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
