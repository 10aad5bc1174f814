"""Type the first hour's commands for real and draw the terminal, as `docs/first-hour.svg`.

`python docs/first_hour.py` copies the quickstart into a new folder, as it lies in a fresh clone,
and runs each of `COMMANDS` there in a terminal. The picture is what then stands on the screen;
nothing of it is typed by hand. It takes a few minutes.
"""

from __future__ import annotations

import io
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

DOCS = Path(__file__).resolve().parent
PICTURE = DOCS / "first-hour.svg"
QUICKSTART = Path("search_spaces/quickstart")
COLUMNS = 100
COMMANDS = (
    "evomerge init search_spaces/quickstart/zoo/{base,math,lang} \\\n"
    "    --task search_spaces/quickstart/tasks/listops_en.yaml \\\n"
    "    --task search_spaces/quickstart/tasks/listops_eo.yaml",
    "evomerge check campaign.yaml",
    "evomerge search campaign.yaml",
    "evomerge report runs/math-lang",
)
CONTROL = re.compile(r"\x1b\[(\d*)A|\x1b\[2K|\x1b\[\?25[lh]|\r")
"""Progress bars send these: lines up, erase the line, hide or show the cursor, to its start."""


def typed(command: str, folder: Path) -> bytes:
    """Run a command in a terminal of its own; returns all that it wrote there.

    Raises:
        RuntimeError: it failed.
    """
    terminal, program = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment["PYTHONPATH"] = str(DOCS.parent)
    shell = subprocess.Popen(
        ["bash", "-c", command], cwd=folder, env=environment, stdout=program, stderr=program
    )
    os.close(program)
    written = bytearray()
    try:
        while chunk := os.read(terminal, 65536):
            written += chunk
    except OSError:  # Linux's way of saying that the program has ended
        pass
    os.close(terminal)
    if shell.wait():
        raise RuntimeError(f"{command}:\n{written.decode()}")
    return bytes(written)


def screen(written: str) -> list[str]:
    """Return the lines that stand on the screen at the end, colours included."""
    lines, row = [""], 0
    for part in written.replace("\r\n", "\n").split("\n"):
        place = 0
        for found in CONTROL.finditer(part):
            lines[row] += part[place : found.start()]
            place = found.end()
            if found[0].endswith("A"):
                row = max(0, row - int(found[1] or 1))
            elif found[0].endswith("2K"):
                lines[row] = ""
        lines[row] += part[place:]
        row += 1
        if row == len(lines):
            lines.append("")
    return lines


def picture(shown: str) -> str:
    """Draw a terminal that shows the text, as SVG that needs no font from elsewhere."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(shown))
    drawn = console.export_svg(title="from models to a report", unique_id="first-hour")
    return re.sub(r"@font-face \{[^}]*\}\s*", "", drawn)


def main() -> None:
    """Run the commands in a new folder and write the picture."""
    began, shown = time.monotonic(), []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "evomerge"
        shutil.copytree(DOCS.parent / QUICKSTART, folder / QUICKSTART)
        for command in COMMANDS:
            written = "\n".join(screen(typed(command, folder).decode())).rstrip()
            shown += [f"\x1b[1;32m$\x1b[0m \x1b[1m{command}\x1b[0m", written, ""]
            print(f"{time.monotonic() - began:.0f} s: {command}", file=sys.stderr)
    PICTURE.write_text(picture("\n".join(shown).rstrip()), encoding="utf-8")


if __name__ == "__main__":
    main()
