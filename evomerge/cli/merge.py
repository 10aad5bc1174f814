"""`evomerge merge`: any recipe or mergekit file to a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

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
from evomerge.models.files.hash_ahead import hashing_ahead


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
    statistics: Annotated[
        list[str] | None,
        typer.Option(
            "--statistics", metavar="NAME=FILE", help="A model's calibration file; repeatable."
        ),
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
        given = dict(_named(text, "--expert", "MODEL") for text in experts or [])
        files = dict(_named(text, "--statistics", "FILE") for text in statistics or [])
        if base is not None:
            given["base"] = base
        shard_bytes = shard_bytes_of(shard_size)
        with waiting(f"writing {to}"), hashing_ahead(_folders_in(file, given)):
            from evomerge.export.merge import merge_file
            from evomerge.materialize.disk.provenance import Trust

            trust = Trust(allow_pickle, trust_remote_code)
            written, notes = merge_file(file, to, given, dtype, shard_bytes, trust, files)
        for text in notes:
            note(text)
        say(written)


def _folders_in(file: Path, given: Mapping[str, str]) -> list[Path]:
    """Find the folders that a file seems to name, before what reads it properly is imported."""
    from evomerge.common.data_files import json_data, read_text, yaml_documents

    try:
        if file.suffix == ".json":
            beside = file.with_name("evomerge.json")
            data = json_data(read_text(beside), str(beside))
            data = data.get("models") if isinstance(data, dict) else None
        else:
            data = yaml_documents(read_text(file), str(file))
    except InputError:
        data = None  # what is wrong is said by what reads it properly
    texts = [*given.values(), *_texts(data)]
    places = [Path(folder, text) for text in texts for folder in (file.parent, "")]
    return [place for place in places if _is_model(place)]


def _texts(data: Any) -> Iterator[str]:
    if isinstance(data, dict | list):
        for value in data.values() if isinstance(data, dict) else data:
            yield from _texts(value)
    elif isinstance(data, str):
        yield data


def _is_model(place: Path) -> bool:
    try:
        return (place / "config.json").is_file()
    except (OSError, ValueError):  # no path at all
        return False


def _named(text: str, option: str, value: str) -> tuple[str, str]:
    """Split `NAME=MODEL`, or `NAME=FILE`."""
    name, separator, place = text.partition("=")
    if not separator or not name or not place:
        raise InputError(f"{option} {text}: write it as NAME={value}")
    return name, place
