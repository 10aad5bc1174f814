"""Say where things live, from the rooms' own docstrings.

`python docs/rooms.py` rewrites the table in CONTRIBUTING.md; the site's page "Where things live"
is made of the same lines, down to single files, when it is built.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "evomerge"
GUIDE = ROOT / "CONTRIBUTING.md"
START, END = "<!-- rooms: made by docs/rooms.py -->\n", "<!-- end of rooms -->\n"


def rooms() -> list[Path]:
    """The folders at the top of the package, by name."""
    return sorted(folder for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file())


def first_line(file: Path) -> str:
    """The first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def table() -> str:
    """The rooms in one table, as it stands in CONTRIBUTING.md."""
    rows = [f"| `{room.name}/` | {first_line(room / '__init__.py')} |" for room in rooms()]
    return "\n".join(["| room | |", "|---|---|", *rows]) + "\n"


def page() -> str:
    """Every file of every room with its first line, as a page of the site."""
    lines = ["# Where things live", "Every file of `evomerge/`, in its own words."]
    for room in rooms():
        lines += [f"## {room.name}", first_line(room / "__init__.py")]
        lines += ["| file | |\n|---|---|\n" + "\n".join(_rows(room))]
    return "\n\n".join(lines) + "\n"


def _rows(room: Path) -> Iterator[str]:
    for file in sorted(room.rglob("*.py"), key=lambda file: (len(file.parts), file)):
        if file != room / "__init__.py":
            name = file.relative_to(room).as_posix().replace("__init__.py", "")
            yield f"| `{name}` | {first_line(file)} |"


def with_table(text: str) -> str:
    """The guide with the table in its place."""
    before, _, rest = text.partition(START)
    return before + START + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    GUIDE.write_text(with_table(GUIDE.read_text(encoding="utf-8")), encoding="utf-8")
