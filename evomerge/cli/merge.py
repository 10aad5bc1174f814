"""`evomerge merge`: any recipe or mergekit file to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from evomerge.cli.shared import (
    ShardSize,
    app,
    exit_codes,
    note,
    resumable,
    say,
    shard_bytes_of,
    waiting,
)
from evomerge.common.errors import InputError


@app.command()
def merge(
    file: Annotated[
        Path,
        typer.Argument(help="A recipe.json, or a mergekit file (.yaml).", show_default=False),
    ],
    to: Annotated[Path, typer.Option("--to", help="A new folder for the checkpoint.")],
    base: Annotated[
        str | None,
        typer.Option(help="The base model.", show_default="as the file says"),
    ] = None,
    experts: Annotated[
        list[str] | None,
        typer.Option("--expert", metavar="NAME=MODEL", help="Where an expert lies; repeatable."),
    ] = None,
    dtype: Annotated[
        Literal["checkpoint", "float32", "float16", "bfloat16"] | None,
        typer.Option(help="The result's dtype.", show_default="as the file says, or the base's"),
    ] = None,
    shard_size: ShardSize = "5GB",
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read pickled weights where there are no others.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the models.")
    ] = False,
) -> None:
    """Write the checkpoint of a recipe or of a mergekit file, streamed."""
    with exit_codes(), resumable():
        given = dict(_named(text) for text in experts or [])
        if base is not None:
            given["base"] = base
        shard_bytes = shard_bytes_of(shard_size)
        with waiting(f"writing {to}"):
            from evomerge.export.merge import merge_file
            from evomerge.materialize.disk.provenance import Trust

            trust = Trust(allow_pickle, trust_remote_code)
            written, notes = merge_file(file, to, given, dtype, shard_bytes, trust)
        for text in notes:
            note(text)
        say(written)


def _named(text: str) -> tuple[str, str]:
    """Split `NAME=MODEL`."""
    name, separator, model = text.partition("=")
    if not separator or not name or not model:
        raise InputError(f"--expert {text}: write it as NAME=MODEL")
    return name, model
