"""Commands that write checkpoints: export, merge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from evomerge.cli.shared import RunFolder, app, exit_codes, resumable, stderr, stdout
from evomerge.common.errors import InputError

ShardSize = Annotated[
    str, typer.Option(metavar="SIZE", help="The largest file of weights: 5GB, 900MB.")
]


@app.command()
def export(
    folder: RunFolder,
    to: Annotated[Path, typer.Option("--to", help="A new folder, or the file's path.")],
    trial: Annotated[
        int | None, typer.Option(help="A trial's number.", show_default="the winner")
    ] = None,
    front: Annotated[
        bool, typer.Option("--front", help="The whole Pareto front: a folder each, and an index.")
    ] = False,
    archive: Annotated[
        bool, typer.Option("--archive", help="The optimizer's whole archive, likewise.")
    ] = False,
    format: Annotated[
        Literal["hf", "mergekit", "recipe"],
        typer.Option(help="hf: a checkpoint folder; mergekit, recipe: that one file."),
    ] = "hf",
    shard_size: ShardSize = "5GB",
    push: Annotated[
        str | None,
        typer.Option(metavar="REPO", help="Send it to the hub: NAME/MODEL.", show_default=False),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public/--private", help="Who sees a repository made by --push.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="With --push: write the export, show what would be sent."),
    ] = False,
) -> None:
    """Write the winner, or other trials, as checkpoints that transformers loads."""
    from evomerge.study.run_folder import open_run, run_folder

    with exit_codes(), resumable():
        _check_one(trial=trial is not None, front=front, archive=archive)
        _check_push(push, dry_run, format)
        config, study = open_run(folder)
        run, shard_bytes = run_folder(folder), _bytes(shard_size)
        from evomerge.export.many_trials import export_many
        from evomerge.export.trial import export_trial, scoring_commands

        with stderr.status(f"writing {to}"):
            if front or archive:
                kind: Literal["front", "archive"] = "front" if front else "archive"
                written = export_many(config, study, kind, to, format, run, shard_bytes)
            else:
                again = push is not None
                written = export_trial(
                    config, study, trial, to, format, run, shard_bytes, again=again
                )
        stdout.print(f"{written}", markup=False, highlight=False, soft_wrap=True)
        if format == "hf" and not (front or archive):
            stderr.print("its scores, with stock lm-eval:", highlight=False)
            for command in scoring_commands(config, study, written):
                stderr.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)
        if push is not None:
            _push(written, push, public, dry_run)


def _check_one(**given: bool) -> None:
    """Refuse options that are given together and say different things."""
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        raise InputError(f"give one of --{', --'.join(names)}")


def _check_push(repo: str | None, dry_run: bool, format: str) -> None:
    if repo is None:
        if dry_run:
            raise InputError("--dry-run shows what --push would send; add --push NAME/MODEL")
        return
    if format != "hf":
        raise InputError(f"--push sends checkpoints; leave out --format {format}")
    from evomerge.export.push import check_repo, offline

    check_repo(repo, dry_run or offline())


def _push(folder: Path, repo: str, public: bool, dry_run: bool) -> None:
    """Send an export, or show what would be sent."""
    from evomerge.export.push import offline, push, upload_of, upload_table

    upload = upload_of(folder, repo)
    dry = dry_run or offline()
    stderr.print(upload_table(upload, public))
    if dry:
        why = "--dry-run" if dry_run else "HF_HUB_OFFLINE is set"
        stderr.print(f"nothing was sent ({why})", markup=False, highlight=False)
    else:
        url = push(folder, upload, private=not public)
        stdout.print(url, markup=False, highlight=False, soft_wrap=True)


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
        from evomerge.export.merge import merge_file
        from evomerge.materialize.disk.provenance import Trust

        with stderr.status(f"writing {to}"):
            written, notes = merge_file(
                file, to, given, dtype, _bytes(shard_size), Trust(allow_pickle, trust_remote_code)
            )
        for note in notes:
            stderr.print(f"note: {note}", style="yellow", markup=False, highlight=False)
        stdout.print(f"{written}", markup=False, highlight=False, soft_wrap=True)


def _named(text: str) -> tuple[str, str]:
    """`NAME=MODEL` in two."""
    name, separator, model = text.partition("=")
    if not separator or not name or not model:
        raise InputError(f"--expert {text}: write it as NAME=MODEL")
    return name, model


def _bytes(size: str) -> int:
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        found = TypeAdapter(ByteSize).validate_python(size)
    except ValidationError:
        found = ByteSize(0)
    if found < 1:
        raise InputError(f"--shard-size {size}: write a size such as 5GB or 900MB")
    return int(found)
