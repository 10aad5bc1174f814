"""What a push to the hub sends, as a table."""

from __future__ import annotations

import yaml
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from evomerge.export.push import Upload


def upload_table(upload: Upload, public: bool) -> RenderableType:
    """Files with their sizes, and what the hub reads of the card."""
    who = "public" if public else "private"
    files = Table("file", "size", title=f"to {upload.repo} ({who} if it is new)")
    files.columns[1].justify = "right"
    for name, size in upload.files.items():
        files.add_row(name, decimal(size))
    files.add_section()
    files.add_row(f"{len(upload.files)} files", decimal(sum(upload.files.values())))
    card = yaml.safe_dump(dict(upload.metadata), sort_keys=False, allow_unicode=True)
    notes = [
        Text(f"note: its texts name folders of this machine: {', '.join(upload.local)}", "yellow")
    ]
    return Group(files, Text("the card's metadata:"), Text(card), *(notes if upload.local else []))
