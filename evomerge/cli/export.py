"""`evomerge export`: the winner, or other trials, as checkpoints; on request sent to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from evomerge.cli.shared import (
    RunFolder,
    ShardSize,
    app,
    exit_codes,
    hint,
    note,
    resumable,
    say,
    shard_bytes_of,
    stderr,
    waiting,
    warn,
)
from evomerge.common.errors import InputError


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
    anyway: Annotated[
        bool, typer.Option("--anyway", help="The best merge, also if it beats no parent.")
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
        _check_one(trial=trial is not None, front=front, archive=archive, anyway=anyway)
        _check_push(push, dry_run, format)
        config, study = open_run(folder)
        run, shard_bytes = run_folder(folder), shard_bytes_of(shard_size)
        with waiting(f"writing {to}"):
            from evomerge.export.many_trials import export_many
            from evomerge.export.trial import export_trial, scoring_commands

            if front or archive:
                kind: Literal["front", "archive"] = "front" if front else "archive"
                written = export_many(config, study, kind, to, format, run, shard_bytes, note, warn)
            else:
                written = export_trial(
                    config,
                    study,
                    trial,
                    to,
                    format,
                    run,
                    shard_bytes,
                    anyway=anyway,
                    note=note,
                    warn=warn,
                )
        say(written)
        if format == "hf" and not (front or archive):
            commands = scoring_commands(config, study, written)
            if commands:
                hint("its scores, with stock lm-eval:")
            for command in commands:
                hint(f"  {command}")
        if push is not None:
            _push(written, push, public, dry_run)


def _check_one(**given: bool) -> None:
    """Refuse options that are given together and say different things."""
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        raise InputError(f"give one of --{', --'.join(names)}")


def _check_push(repo: str | None, dry_run: bool, format: str) -> None:
    """Refuse a push that could not be made, before anything is written."""
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
        hint(f"nothing was sent ({why})")
    else:
        say(push(folder, upload, private=not public))
