"""The pages for people, their fenced blocks, and the commands that they tell people to type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "search_spaces").rglob("*.md")),
]
FENCED = r"^( *)```(\w*)\n(.*?)^ *```$"
SHELL = ("console", "bash")
PROGRAMS = "evomerge|python3?|make"
"""The programs whose commands are looked for in running text."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: the page's path within the repository.
        line: the line of its first fence.
        language: as the fence names it.
        text: its content, taken in by the fence's indentation.
    """

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command of a page, in one line without its comment.

    Attributes:
        words: of the command, settings of the environment left out.
        then: the folder to go to afterwards, where the comment says "then: cd FOLDER".
    """

    place: str
    line: str
    then: str | None = None

    @property
    def words(self) -> list[str]:
        found = shlex.split(self.line)
        while re.match(r"[A-Z_]+=", found[0]):
            found = found[1:]
        return found

    def __str__(self) -> str:
        return f"{self.place} {self.line[:60]}"


def blocks(*languages: str, pages: list[Path] = PAGES) -> Iterator[Block]:
    """Yield the fenced blocks in one of the languages."""
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for found in re.finditer(FENCED, text, re.M | re.S):
            if found[2] in languages:
                line = text[: found.start()].count("\n") + 1
                body = re.sub(f"^{found[1]}", "", found[3], flags=re.M)
                yield Block(str(page.relative_to(ROOT)), line, found[2], body)


def commands(block: Block) -> Iterator[Command]:
    """Yield the commands of a block of shell lines, in their order."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            text, _, comment = line.partition(" #")
            then = re.search(r"then: cd (\S+)", comment)
            yield Command(str(block), text.strip(), then and then[1])


def mentions(pages: list[Path] = PAGES) -> Iterator[Command]:
    """Yield the commands within running text, where arguments may be left out."""
    for page in pages:
        name = str(page.relative_to(ROOT))
        text = page.read_text(encoding="utf-8")
        prose = re.sub(FENCED, lambda found: "\n" * found[0].count("\n"), text, flags=re.M | re.S)
        for found in re.finditer(rf"`([A-Z_]+=\w+ )*(?:{PROGRAMS}) [^`]+`", prose):
            line = prose[: found.start()].count("\n") + 1
            yield Command(f"{name}:{line}", " ".join(found[0].strip("`").split()))
    for block in blocks("text", pages=pages):  # of other programs that start one
        for found in re.findall(r"evomerge [^'>&\n]+", block.text):
            yield Command(str(block), re.sub(r" 2$", "", found.strip()))
